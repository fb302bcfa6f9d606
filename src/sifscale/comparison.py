"""Tables of finished studies side by side: printed, as metrics and CSV for DVC, and as a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from pydantic import ValidationError

from sifscale import figures, report
from sifscale.config import CompareConfig, Study

SCORES = ("r2", "mae", "rmse")


@dataclass(frozen=True)
class StudyTable:
    """A study's table under a label of the reader's choice; one row an arm, as a sweep wrote it."""

    label: str
    study: Study
    rows: tuple[Mapping[str, object], ...]

    def scores(self) -> dict[str, dict[str, float]]:
        """R2 (dimensionless), MAE and RMSE (units of the target) by arm, in the order of the table."""
        return {str(row["arm"]): {key: float(str(row[key])) for key in SCORES} for row in self.rows}


def compare(config: CompareConfig) -> None:
    """What ``compare.py tables=...`` does: print the tables, write metrics.json, rmse.png and a CSV for each label.

    Raises ValueError, one line, for a table that is absent, no study's, or another study's.
    """
    tables = [read_table(table.label, Path(table.path), str(config.study)) for table in config.tables or ()]
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        titled = table.study.model_copy(update={"title": f"{table.label}: {table.study.title}"})
        report.show(report.study_table(titled, table.rows, config.units))
        _write_csv(folder / f"{table.label}.csv", table)
    metrics = {table.label: table.scores() for table in tables}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    figures.save(draw(tables, config.units), folder / "rmse.png")
    report.show(f"comparison: {folder}")


def read_table(label: str, path: Path, study: str) -> StudyTable:
    """The table that a sweep of `study` wrote at `path`; ValueError, one line, for anything else."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run python train.py -m experiment={study}, or correct tables")
    try:
        content = json.loads(path.read_text())
        table = StudyTable(label, Study.model_validate(content["study"]), tuple(content["rows"]))
        table.scores()
    except (KeyError, TypeError, ValidationError, ValueError) as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        raise ValueError(f"{path}: is not a study's table ({reason}); name the JSON file that a sweep wrote") from None
    if table.study.name != study:
        raise ValueError(f"{path}: is of study {table.study.name!r}, not {study!r}; correct study or tables")
    if not table.rows:
        raise ValueError(f"{path}: holds no arm; run the study again")
    return table


def draw(tables: Sequence[StudyTable], units: str) -> Figure:
    """Bars of RMSE (`units`) by arm, a panel a table on one scale; dashed lines are the study's reference figures."""
    arms = max(len(table.rows) for table in tables)
    figure = Figure(figsize=(4.5 * len(tables) + 1.5, 0.35 * arms + 1.6), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False, sharex=True)[0]
    for axes, table in zip(panels, tables, strict=True):
        scores = table.scores()
        bars = axes.barh(list(scores), [score["rmse"] for score in scores.values()])
        axes.bar_label(bars, fmt="%.4f", padding=3, fontsize="small")
        axes.invert_yaxis()  # the first arm on top, as in the table
        references = {arm: known["rmse"] for arm, known in table.study.reference.items() if "rmse" in known}
        for number, (arm, rmse) in enumerate(references.items(), 1):
            axes.axvline(rmse, color=f"C{number % 10}", ls="--", lw=1, label=f"reference: {arm}")
        if references:
            axes.legend(fontsize="small", loc="lower left")
        axes.set(title=table.label, xlabel=f"RMSE ({units})")
        axes.margins(x=0.15)  # room for the numbers
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _write_csv(path: Path, table: StudyTable) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("arm", *SCORES))
        for arm, score in table.scores().items():
            writer.writerow((arm, *(score[key] for key in SCORES)))
