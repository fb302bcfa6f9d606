"""Tables: what a run scored beside its references, and what the arms of a study scored beside reference figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from rich.console import Console
from rich.table import Table

from sifscale.config import Study
from sifscale.metrics import Sums


@dataclass(frozen=True)
class Outcome:
    """What a finished run left: its arm, metric sums of the test, the notebooks' R2 (legacy only), findings."""

    arm: str
    sums: dict[str, float]
    r2_positions: float | None
    findings: tuple[str, ...]


def run_table(scores: Mapping[str, Mapping[str, float]], units: str, title: str) -> Table:
    """R2, MAE, RMSE of the model and of each reference on the same test pixels."""
    table = Table(title=title)
    for column, right in (
        ("", False),
        ("R2", True),
        (f"MAE [{units}]", True),
        (f"RMSE [{units}]", True),
        ("pixels", True),
    ):
        table.add_column(column, justify="right" if right else "left")
    for name, values in scores.items():
        cells = [f"{values[key]:.4f}" for key in ("r2", "mae", "rmse")]
        table.add_row(name, *cells, f"{values['n']:,.0f}")
    return table


def study_rows(study: Study, outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """One row an arm, in order of appearance: scores pooled over folds (or averaged over runs) and reference figures.

    Pooling adds the sums of all folds before finishing; ``pool: none`` averages the finished scores of repeated runs.
    """
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.arm].append(outcome)
    rows = []
    for arm, runs in groups.items():
        sums = [Sums.from_dict(run.sums) for run in runs]
        if study.pool == "folds":
            scores = sum(sums[1:], start=sums[0]).finish()
        else:
            finished = [s.finish() for s in sums]
            scores = {key: mean(f[key] for f in finished) for key in finished[0]}
        positions = [run.r2_positions for run in runs if run.r2_positions is not None]
        row: dict[str, object] = {"arm": arm, "runs": len(runs)}
        row |= {key: scores[key] for key in ("r2", "mae", "rmse", "n")}
        row["r2_positions"] = mean(positions) if positions else None
        row |= {f"reference_{key}": value for key, value in study.reference.get(arm, {}).items()}
        row["findings"] = "; ".join(dict.fromkeys(f for run in runs for f in run.findings))
        rows.append(row)
    return rows


def study_table(study: Study, rows: Sequence[Mapping[str, object]], units: str) -> Table:
    """The study's table, ours beside the reference figures."""
    table = Table(title=study.title)
    positions = any(row["r2_positions"] is not None for row in rows)
    columns = [("arm", "arm"), ("runs", "runs"), ("r2", "R2"), ("mae", "MAE"), ("rmse", f"RMSE [{units}]")]
    if positions:
        columns.insert(3, ("r2_positions", "R2 by position"))
    known = [(key, label) for key, label in columns[2:] if any(f"reference_{key}" in row for row in rows)]
    columns += [(f"reference_{key}", f"reference {label}") for key, label in known]
    for key, label in columns:
        table.add_column(label, justify="left" if key == "arm" else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key, _ in columns))
    return table


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def show(*tables: Table | str) -> None:
    """Print to the terminal, wide enough for a table that is piped into a file."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for table in tables:
        console.print(table)
