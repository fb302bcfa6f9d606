"""``compare.py study=NAME``: finished runs of MLflow compared, in the terminal, as CSV, LaTeX and one HTML page."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.search_utils import SearchUtils
from sqlalchemy.engine import make_url

from sifscale import arm_tables, arms, report
from sifscale.arm_structures import structure_rows
from sifscale.comparison_page import Compared, ground, page_section
from sifscale.config import CompareConfig, Study, Tracking
from sifscale.effects import main_effects
from sifscale.html_report import page
from sifscale.study_runs import ArmRun, age, newest_runs, require_files, studies, study_of, tested_on, tested_runs
from sifscale.tracking import found
from sifscale.whole import write_text


def compare_runs(config: CompareConfig) -> None:
    """Compare the runs that ``study`` and ``filter`` choose; writes comparison.html, .csv and .tex, effects.csv.

    Runs that were tested on different cubes, windows or splits stand in sections of their own. Raises ValueError, one
    line, where there is nothing to compare.
    """
    _require_store(config.tracking)
    runs = newest_runs(chosen_runs(config), one_sweep=config.study is None, by_ground=True)
    require_files(runs, config.tracking)
    sections = _sections(config, runs)
    for section in sections:
        _show(section, alone=len(sections) == 1)
    pages = [page_section(section, at, config.tracking) for at, section in enumerate(sections)]
    title = sections[0].study.title if config.study else f"Runs with {config.filter}"
    count = f"{len(runs)} runs of {len({one.arm for one in runs})} arms, experiment {config.tracking.experiment}"
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    made = f"Made on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC with python {command}"
    origin = f"{made} (MLflow {mlflow.__version__}, {config.tracking.uri})."
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "comparison.html", page(title, count, pages, origin))
    scores = [{"ground": section.ground, **row} for section in sections for row in section.rows]
    write_text(folder / "comparison.csv", arm_tables.rows_csv(scores))
    levels = [{"ground": s.ground, **row} for s in sections for row in arm_tables.effect_rows(s.effects)]
    write_text(folder / "effects.csv", arm_tables.rows_csv(levels))
    write_text(folder / "comparison.tex", "\n".join(_latex(section, at) for at, section in enumerate(sections)))
    report.show(f"comparison: {folder / 'comparison.html'}")


def chosen_runs(config: CompareConfig) -> list[Run]:
    """Tested runs of the study and the filter, oldest first; ValueError, one line, that says what there is instead."""
    tracking, study = config.tracking, config.study
    where = f"experiment '{tracking.experiment}' of {tracking.uri}"
    known = studies(tracking)
    listed = f"; studies there: {', '.join(known) or 'none'}"
    if study is None and config.filter is None:
        raise ValueError(f"study: must be given, or filter, to say which runs of {where} to compare{listed}")
    conditions = []
    if study is not None:
        if study not in known:
            raise ValueError(f"study: no finished run of '{study}' in {where}{_unfinished(study, tracking)}{listed}")
        conditions.append(f"tags.study = '{study}'")
    if config.filter is not None:
        try:
            SearchUtils.parse_search_filter(config.filter)  # type: ignore[no-untyped-call]  # of MLflow
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"filter: is not one of MLflow's run search: {reason} (found {config.filter!r})") from None
        conditions.append(config.filter)
    runs = tested_runs(tracking, " and ".join(conditions))
    if not runs:
        raise ValueError(f"no finished and tested run with {' and '.join(conditions)} in {where}{listed}")
    return runs


def _unfinished(study: str, tracking: Tracking) -> str:
    if "'" in study:
        return ""
    counts = Counter(run.info.status.lower() for run in found(tracking, f"tags.study = '{study}'"))
    return f" ({', '.join(f'{count} {status}' for status, count in counts.items())})" if counts else ""


def _require_store(tracking: Tracking) -> None:
    """ValueError where the local database is not there: reading must not create it."""
    path = make_url(tracking.uri).database if tracking.uri.startswith("sqlite:") else None
    if path and not Path(path).is_file():
        raise ValueError(f"tracking.uri: no such database {path}; train something first, or correct tracking.uri")


def _sections(config: CompareConfig, runs: Sequence[ArmRun]) -> list[Compared]:
    """Runs by the ground that they were tested on, in the order of their first runs."""
    grounds: dict[str, list[ArmRun]] = {}
    for one in runs:
        grounds.setdefault(ground(tested_on(one.run)), []).append(one)
    study, units = _study(config, runs)
    names = list(dict.fromkeys(one.arm for one in runs))
    if config.baseline is not None and config.baseline not in names:
        raise ValueError(f"baseline: must be an arm: {', '.join(names)} (found {config.baseline!r})")
    return [_compared(name, study, units, ours, config.tracking) for name, ours in grounds.items()]


def _study(config: CompareConfig, runs: Sequence[ArmRun]) -> tuple[Study, str]:
    """What to compare by: the study of the newest run, or, of runs chosen by a filter alone, their test pixels."""
    newest = max((one.run for one in runs), key=age)
    study, units = study_of(newest, config.tracking)
    if study is None or config.study is None:
        study = Study(name="runs", title=str(config.filter), pool="folds", baseline=None, reference={})
    return study.model_copy(update={"baseline": config.baseline or study.baseline}), units


def _compared(name: str, study: Study, units: str, runs: Sequence[ArmRun], tracking: Tracking) -> Compared:
    collected = arms.collect(runs, study.score, tracking)
    rows = arms.arm_rows(study, collected)
    for row, structure in zip(rows, structure_rows(study, collected, tracking), strict=True):
        row |= structure
    honest = all(one.run.data.tags.get("protocol") != "legacy" for one in runs)  # crops that overlap have no interval
    effects = main_effects({arm.name: arm.tried for arm in collected}, study.baseline) if honest else []
    table = report.study_table(study, rows, units)
    notes = [f"{note}." for note in str(table.caption or "").splitlines()]
    said = arms.verdict(study, rows, effects, units)
    return Compared(name, study, units, collected, rows, effects, said, notes)


def _show(section: Compared, *, alone: bool) -> None:
    heads, cells = arm_tables.score_cells(section.study, section.rows, section.units)
    title = section.study.title if alone else section.ground
    report.show(arm_tables.terminal(title, heads, cells, "\n".join(section.notes)))
    structure, cells = arm_tables.structure_cells(section.study, section.rows)
    if cells:
        faults = arm_tables.structure_faults(section.rows)
        report.show(arm_tables.terminal("Structure of the maps", structure, cells, "\n".join(faults)))
    report.show(arm_tables.terminal("Cost of one training", *arm_tables.cost_cells(section.rows)))
    for effect in section.effects:
        follows = f"with {', '.join(effect.follows)}" if effect.follows else ""
        report.show(arm_tables.terminal(effect.key, *arm_tables.effect_cells(effect, section.units), follows))
    report.show(*section.verdict)


def _latex(section: Compared, at: int) -> str:
    heads, cells = arm_tables.score_cells(section.study, section.rows, section.units)
    caption = f"{section.study.title}: {section.ground}"
    return arm_tables.latex(heads, cells, caption, f"{section.study.name}-{at}" if at else section.study.name)
