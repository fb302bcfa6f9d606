"""Results in a Markdown file: tables of studies between markers, made from the runs in MLflow and from nothing else.

A table stands between two markers, each on a line of its own; what is between them is replaced:

    <!-- results: honest_minnesota -->
    <!-- end of results -->
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from sifscale import report
from sifscale.config import CompareConfig, Tracking
from sifscale.report import Outcome
from sifscale.study_runs import (
    CONFIG,
    ArmRun,
    age,
    check_comparable,
    commits,
    newest_runs,
    of_study,
    outcome,
    require_files,
    study_of,
    words,
)
from sifscale.whole import take_name, written_beside

START = re.compile(rb"<!-- results: ([\w.-]+) -->\s*")
END = re.compile(rb"<!-- end of results -->\s*")
MARKER = re.compile(rb"\s{0,3}<!--\s*(end of )?results\b")  # indented further it is Markdown's code, not a marker


@dataclass(frozen=True)
class Section:
    """A marked place: its study, and the lines first <= i < end (from 0) between the markers."""

    study: str
    first: int
    end: int


def publish(config: CompareConfig) -> None:
    """What ``compare.py readme=FILE`` does: write the file's tables anew; ValueError, one line, for bad input."""
    studies = update_tables(Path(str(config.readme)), config.tracking)
    report.show(f"{config.readme}: {', '.join(studies)}")


def update_tables(path: Path, tracking: Tracking) -> list[str]:
    """Rewrite every generated table of a Markdown file; returns the names of the studies, in order.

    Counted are the finished runs of experiment ``tracking.experiment`` that carry the tag ``study``; of several
    with one arm, seed and fold the newest. Outside the markers the file stays byte for byte. Raises ValueError,
    one line, and writes nothing, for markers that do not pair, a study without runs, runs that lack a file, or
    arms that were tested on different cubes, windows or splits.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name the Markdown file whose tables are to be written")
    lines = path.read_bytes().splitlines(keepends=True)
    sections = _sections(lines, path)
    tables = {}
    for study in dict.fromkeys(section.study for section in sections):
        try:
            tables[study] = _study_markdown(study, tracking)
        except ValueError as error:
            raise ValueError(f"{path}: study {study}: {error}") from None
    for section in reversed(sections):  # from the end, so that the line numbers before stay true
        ending = b"\r\n" if lines[section.first - 1].endswith(b"\r\n") else b"\n"
        lines[section.first : section.end] = [line.encode() + ending for line in tables[section.study]]
    _write(path, b"".join(lines))
    return list(tables)


def _sections(lines: Sequence[bytes], path: Path) -> list[Section]:
    """The marked places of a file, in order; ValueError, with a line number, where markers do not pair."""
    found: list[Section] = []
    opened: tuple[str, int] | None = None  # study, and number of its marker's line from 1
    for number, line in enumerate(lines, 1):
        if not MARKER.match(line):
            continue
        start, end = START.fullmatch(line), END.fullmatch(line)
        if not start and not end:
            raise ValueError(
                f"{path}: line {number}: unknown marker {line.decode(errors='replace').strip()!r}; write "
                "'<!-- results: STUDY -->' or '<!-- end of results -->', alone on its line and not indented"
            )
        if start and opened:
            raise ValueError(f"{path}: line {number}: a table begins inside that of line {opened[1]}; end that first")
        if end and not opened:
            raise ValueError(f"{path}: line {number}: a table ends that has no beginning; write a start marker before")
        if start:
            opened = start[1].decode(), number
        elif opened:
            found.append(Section(opened[0], opened[1], number - 1))
            opened = None
    if opened:
        raise ValueError(f"{path}: line {opened[1]}: table without an end; write '<!-- end of results -->' after it")
    if not found:
        raise ValueError(f"{path}: no table is marked; write '<!-- results: STUDY -->' and '<!-- end of results -->'")
    return found


def _study_markdown(name: str, tracking: Tracking) -> list[str]:
    """Lines of a study's table and of what stands below it; ValueError, one line, where there can be none."""
    runs = newest_runs(of_study(name, tracking))
    require_files(runs, tracking)
    check_comparable(runs)
    newest = max((one.run for one in runs), key=age)
    study, units = study_of(newest, tracking)
    if study is None:
        raise ValueError(f"{CONFIG} of run {newest.info.run_id} has no study; run it again")
    outcomes = [outcome(tracking, one.run, study.score, one.arm) for one in runs]
    rows = report.study_rows(study, outcomes)
    table = report.study_table(study, rows, units)
    notes = str(table.caption).splitlines() if table.caption else []
    return ["", *_markdown(table, units), "", *_origin(name, runs, _facts(runs, outcomes, rows), notes), ""]


def _markdown(table: Table, units: str) -> list[str]:
    """A study's table in Markdown, without reference figures (no results) and number of runs (said below it)."""
    columns = [column for column in table.columns if not re.match(r"runs$|reference ", str(column.header))]
    cells = [[str(cell).replace("|", r"\|") for cell in (column.header, *column.cells)] for column in columns]
    for column in cells:
        column[0] = f"MAE [{units}]" if column[0] == "MAE" else column[0]
    head, *body = (f"| {' | '.join(row)} |" for row in zip(*cells, strict=True))
    return [head, "|---|" + "---:|" * (len(columns) - 1), *body]


def _facts(
    runs: Sequence[ArmRun], outcomes: Sequence[Outcome], rows: Sequence[Mapping[str, object]]
) -> dict[str, dict[str, str]]:
    """How each arm was run and tested, as text: fact -> arm -> text, empty where there is nothing to say."""
    facts: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        arm = str(row["arm"])
        ours = [one.run for one in runs if one.arm == arm]
        asked = dict.fromkeys(word for run in ours for word in words(run))
        blocks = {block for found in outcomes if found.arm == arm for block in found.blocks}
        facts["commit"][arm] = f"commit {commits(ours)}"
        facts["words"][arm] = f"with `{' '.join(asked)}`" if asked else ""
        facts["runs"][arm] = _count(len(ours), "run")
        facts["blocks"][arm] = _count(len(blocks), "block")
        facts["pixels"][arm] = _count(round(float(str(row["n"]))), "pixel")
        facts["audit"][arm] = f"audit: {row['findings']}" if row["findings"] else ""
    return facts


def _origin(
    study: str, arm_runs: Sequence[ArmRun], facts: Mapping[str, Mapping[str, str]], notes: Sequence[str]
) -> list[str]:
    """One line on where the numbers are from; below it an item for each value that only some arms have."""
    runs = [one.run for one in arm_runs]
    days = sorted({datetime.fromtimestamp(run.info.start_time / 1000, UTC).date().isoformat() for run in runs})
    shared, items = [], []
    for fact, texts in facts.items():
        arms_with = {text: [arm for arm in texts if texts[arm] == text] for text in texts.values()}
        if len(arms_with) > 1:
            items += [f"- {', '.join(arms)}: {text}" for text, arms in arms_with.items() if text]
        elif fact != "commit":  # which the line names in any case
            shared += [text for text in arms_with if text]
    made_at = commits(runs)
    line = (
        f"Generated on the runs of {' and '.join(days) if len(days) < 3 else f'{days[0]} to {days[-1]}'} at "
        f"commit{'s' if ',' in made_at else ''} {made_at} with `python train.py -m experiment={study}`, cube "
        f"{runs[0].data.tags.get('cube_hash', 'unknown')[:8]}"
    )
    each = [f"each arm: {', '.join(shared)}"] if shared else []
    return ["; ".join([line, *each, *notes]) + ".", *([""] if items else []), *items]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _write(path: Path, content: bytes) -> None:
    """Replace a file, behind whatever link and with the permissions it had."""
    path = path.resolve()
    with written_beside(path) as partial:
        partial.write_bytes(content)
        shutil.copymode(path, partial)
        take_name(partial, path)
