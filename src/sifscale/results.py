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

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from pydantic import ValidationError
from rich.table import Table

from sifscale import bootstrap, report
from sifscale.config import CompareConfig, Study, Tracking
from sifscale.metrics import pooled
from sifscale.report import Outcome
from sifscale.tracking import artifact_json, client, finished
from sifscale.whole import take_name, written_beside

START = re.compile(rb"<!-- results: ([\w.-]+) -->\s*")
END = re.compile(rb"<!-- end of results -->\s*")
MARKER = re.compile(rb"\s{0,3}<!--\s*(end of )?results\b")  # indented further it is Markdown's code, not a marker

SUMS, CONFIG = "test_sums.json", "config.yaml"
BLOCK_SUMS = {score: f"{score}_block_sums.json" for score in ("test", "cells", "truth")}
# Words of a command line that say where and in which parts a study ran, not what was run.
PLACES = ("-", "experiment=", "+experiment/", "paths.", "tracking.", "hydra")


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


def outcome(tracking: Tracking, run: Run, score: str) -> Outcome:
    """What a finished training run left in MLflow: its scores by block, findings and noise; score: as in a study.

    Noise is known of the target's own pixels only. Raises ValueError where the run was not scored so.
    """
    tags, metrics = run.data.tags, run.data.metrics
    own = score == "test"
    if not own and f"{score}/rmse" not in metrics:
        raise ValueError(f"run {run.info.run_id} of {tags['arm']!r} has no scores of '{score}'; correct study.score")
    blocks = bootstrap.from_json(artifact_json(tracking, run, BLOCK_SUMS[score]), "model")
    return Outcome(
        arm=tags["arm"],
        # of crops that overlap, a task's own sums count each
        sums=artifact_json(tracking, run, SUMS)["model"] if own else pooled(blocks).to_dict(),
        r2_positions=metrics.get("test/r2_positions"),
        findings=tuple(part for part in tags["audit"].split("; ") if part != "no finding"),
        blocks=blocks,
        noise_sd=metrics.get("test/noise_sd") if own else None,
        noise_floor_rmse=metrics.get("test/noise_floor_rmse") if own else None,
    )


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
    runs = _newest_runs(name, tracking)
    _check_comparable(runs)
    study, units = _study_of(max(runs, key=_age), tracking)
    outcomes = [outcome(tracking, run, study.score) for run in runs]
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


def _newest_runs(study: str, tracking: Tracking) -> list[Run]:
    """Runs that count, those of an arm together, arms in the order in which they were first tried."""
    runs = _finished_runs(study, tracking)
    if not runs:
        raise ValueError(
            f"no finished run in experiment '{tracking.experiment}' of {tracking.uri}; run "
            f"python train.py -m experiment={study}, or correct tracking"
        )
    arms = list(dict.fromkeys(run.data.tags["arm"] for run in runs))
    newest: dict[tuple[str | None, ...], Run] = {}
    for run in runs:
        newest[run.data.tags["arm"], run.data.params.get("seed"), run.data.params.get("split.folds")] = run
    for run in newest.values():
        if missing := {BLOCK_SUMS["test"], CONFIG} - _artifacts(client(tracking), run):
            raise ValueError(
                f"run {run.info.run_id} of {run.data.tags['arm']!r} has no {' and no '.join(sorted(missing))}; "
                "run the arm again, or delete the run in MLflow"
            )
    return sorted(newest.values(), key=lambda run: (arms.index(run.data.tags["arm"]), *_age(run)))


def _finished_runs(study: str, tracking: Tracking) -> list[Run]:
    """All finished and tested runs of a study, oldest first; sweeps' parents test nothing."""
    mlflow, runs = client(tracking), finished(tracking, f"tags.study = '{study}'")
    return sorted((run for run in runs if SUMS in _artifacts(mlflow, run)), key=_age)


def _artifacts(mlflow: MlflowClient, run: Run) -> set[str]:
    return {file.path for file in mlflow.list_artifacts(run.info.run_id)}


def _age(run: Run) -> tuple[int, int]:
    return run.info.start_time, run.info.end_time or 0


def _check_comparable(runs: Sequence[Run]) -> None:
    """ValueError where two runs were tested on different windows, cubes or splits; folds of one split may differ."""
    first, where = runs[0], _tested_on(runs[0])
    for run in runs[1:]:
        here = _tested_on(run)
        for key in sorted(where | here, key=lambda key: key != "window"):  # the window first: it says most
            if where.get(key) != here.get(key):
                raise ValueError(
                    f"{first.data.tags['arm']!r} was tested with {key} {where.get(key)}, {run.data.tags['arm']!r} with "
                    f"{here.get(key)}; a table needs one: run the older again, or delete its runs in MLflow"
                )


def _tested_on(run: Run) -> dict[str, str | None]:
    tags, params = run.data.tags, run.data.params
    split = {key: value for key, value in params.items() if key.startswith("split.") and key != "split.folds"}
    return {"window": tags.get("window"), "cube_hash": tags.get("cube_hash"), **split}


def _study_of(run: Run, tracking: Tracking) -> tuple[Study, str]:
    """The study as a run's configuration had it, and the units of its target."""
    values = yaml.safe_load(Path(client(tracking).download_artifacts(run.info.run_id, CONFIG)).read_text())
    try:
        study = Study.model_validate(values["study"])
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(
            f"{CONFIG} of run {run.info.run_id}: study.{'.'.join(map(str, fault['loc']))}: {fault['msg']}; run it again"
        ) from None
    return study, values["window"]["units"].get(values["window"]["target"], "1")


def _facts(
    runs: Sequence[Run], outcomes: Sequence[Outcome], rows: Sequence[Mapping[str, object]]
) -> dict[str, dict[str, str]]:
    """How each arm was run and tested, as text: fact -> arm -> text, empty where there is nothing to say."""
    facts: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        arm = str(row["arm"])
        ours = [run for run in runs if run.data.tags["arm"] == arm]
        words = dict.fromkeys(word for run in ours for word in _words(run))
        blocks = {block for found in outcomes if found.arm == arm for block in found.blocks}
        facts["commit"][arm] = f"commit {_commits(ours)}"
        facts["words"][arm] = f"with `{' '.join(words)}`" if words else ""
        facts["runs"][arm] = _count(len(ours), "run")
        facts["blocks"][arm] = _count(len(blocks), "block")
        facts["pixels"][arm] = _count(round(float(str(row["n"]))), "pixel")
        facts["audit"][arm] = f"audit: {row['findings']}" if row["findings"] else ""
    return facts


def _origin(study: str, runs: Sequence[Run], facts: Mapping[str, Mapping[str, str]], notes: Sequence[str]) -> list[str]:
    """One line on where the numbers are from; below it an item for each value that only some arms have."""
    days = sorted({datetime.fromtimestamp(run.info.start_time / 1000, UTC).date().isoformat() for run in runs})
    shared, items = [], []
    for fact, texts in facts.items():
        arms_with = {text: [arm for arm in texts if texts[arm] == text] for text in texts.values()}
        if len(arms_with) > 1:
            items += [f"- {', '.join(arms)}: {text}" for text, arms in arms_with.items() if text]
        elif fact != "commit":  # which the line names in any case
            shared += [text for text in arms_with if text]
    commits = _commits(runs)
    line = (
        f"Generated on the runs of {' and '.join(days) if len(days) < 3 else f'{days[0]} to {days[-1]}'} at "
        f"commit{'s' if ',' in commits else ''} {commits} with `python train.py -m experiment={study}`, cube "
        f"{runs[0].data.tags.get('cube_hash', 'unknown')[:8]}"
    )
    each = [f"each arm: {', '.join(shared)}"] if shared else []
    return ["; ".join([line, *each, *notes]) + ".", *([""] if items else []), *items]


def _commits(runs: Sequence[Run]) -> str:
    """Short hashes, oldest run first; files that differed from the commit are said, as ``git_commit`` says them."""
    tags = [run.data.tags.get("git_commit", "unknown") for run in sorted(runs, key=_age)]
    return ", ".join(dict.fromkeys(re.sub(r"^([0-9a-f]{7})[0-9a-f]*", r"\1", tag) for tag in tags))


def _words(run: Run) -> list[str]:
    """What a run's command line asked for beyond its study."""
    command = run.data.tags.get(MLFLOW_RUN_NOTE, "").strip("`").split()
    return [word for word in command[1:] if not word.startswith(PLACES)]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _write(path: Path, content: bytes) -> None:
    """Replace a file, behind whatever link and with the permissions it had."""
    path = path.resolve()
    with written_beside(path) as partial:
        partial.write_bytes(content)
        shutil.copymode(path, partial)
        take_name(partial, path)
