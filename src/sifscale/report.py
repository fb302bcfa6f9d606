"""Tables: what a run scored beside its references, and what the arms of a study scored beside reference figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean

from rich.console import Console
from rich.table import Table

from sifscale.bootstrap import BlockSums, Difference, difference_of_seeds
from sifscale.config import Study
from sifscale.metrics import Sums, merged, pooled, skill
from sifscale.noise_floor import describe


@dataclass(frozen=True)
class Outcome:
    """What a finished run left: its arm, metric sums of the test, the notebooks' R2 (legacy only), findings.

    blocks: the sums by block of the map; references: pooled sums of the predictions that were tested beside the model.
    noise_sd, noise_floor_rmse: of the target (``noise_floor.py``), where known.
    """

    arm: str
    sums: dict[str, float]
    r2_positions: float | None
    findings: tuple[str, ...]
    blocks: BlockSums = field(default_factory=dict)
    seed: str = ""
    references: Mapping[str, Sums] = field(default_factory=dict)
    noise_sd: float | None = None
    noise_floor_rmse: float | None = None


def run_table(
    scores: Mapping[str, Mapping[str, float]], units: str, title: str, notes: Sequence[str]
) -> Table:
    """R2, MAE, RMSE of the model and of each reference on the same test pixels, with ``notes`` at the foot."""
    table = _table(title, notes)
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


def folds_table(
    rows: Mapping[str, Mapping[str, Mapping[str, float]]], units: str, title: str
) -> Table:
    """RMSE by fold (row) and prediction (column), with R2 of the model; rows: fold -> prediction -> scores."""
    table = _table(title, ())
    names = list(dict.fromkeys(name for by_name in rows.values() for name in by_name))
    table.add_column("")
    for column in (*(f"RMSE {name} [{units}]" for name in names), "R2 model", "n"):
        table.add_column(column, justify="right")
    for row, by_name in rows.items():
        model = by_name.get("model")
        scores = [f"{by_name[name]['rmse']:.4f}" if name in by_name else "-" for name in names]
        table.add_row(row, *scores, *((f"{model['r2']:.4f}", f"{model['n']:,.0f}") if model else ("-", "-")))
    return table


def interval(difference: Difference) -> str:
    """A difference with its 95 % interval and p, as text."""
    if difference.blocks < 2:
        return f"{difference.difference:+.4f} (one block: no interval)"
    return (
        f"{difference.difference:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] "
        f"(95 %, {difference.blocks} blocks, p {difference.p:.2g})"
    )


def study_rows(study: Study, outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """One row an arm, in order of appearance: scores pooled over folds (or averaged over runs) and reference figures.

    Pooling adds the sums of all folds before finishing; ``pool: none`` averages the finished scores of repeated runs.
    Differences to the study's baseline are those of ``bootstrap.difference_of_seeds``.
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
        row |= {key: scores[key] for key in ("r2", "mae", "rmse", "bias", "correlation", "negative_share", "n")}
        row["target_sd"] = scores["target_sd"]
        row["r2_positions"] = mean(positions) if positions else None
        row |= {f"reference_{key}": value for key, value in study.reference.get(arm, {}).items()}
        row |= _noise(runs)
        if study.baseline in groups and arm != study.baseline:
            row |= _beyond(runs, groups[study.baseline])
        row["findings"] = "; ".join(dict.fromkeys(f for run in runs for f in run.findings))
        rows.append(row)
    return rows


def _noise(runs: Sequence[Outcome]) -> dict[str, float]:
    """Noise and floor over the test pixels of all runs; empty where a run has none."""
    found = {}
    for name in ("noise_sd", "noise_floor_rmse"):
        known = [(run.sums["n"], value) for run in runs if (value := getattr(run, name)) is not None]
        if len(known) == len(runs):
            found[name] = (sum(n * value**2 for n, value in known) / sum(n for n, _ in known)) ** 0.5
    return found


def _beyond(runs: Sequence[Outcome], baseline: Sequence[Outcome]) -> dict[str, object]:
    """RMSE less that of the baseline, its interval, and skill over it; why not, where they cannot be compared."""
    try:
        found = difference_of_seeds(by_seed(runs), by_seed(baseline))
    except ValueError as error:
        return {"baseline_fault": str(error)}
    rmse, reference = (pooled(merged(run.blocks for run in of_arm)).finish()["rmse"] for of_arm in (runs, baseline))
    numbers = {f"baseline_{name}": value for name, value in asdict(found).items()}
    return {**numbers, "baseline_skill": skill(rmse, reference)}


def by_seed(runs: Sequence[Outcome]) -> dict[str, BlockSums]:
    """Sums by seed and block: the folds of a seed together."""
    seeds = dict.fromkeys(run.seed for run in runs)
    return {seed: merged(run.blocks for run in runs if run.seed == seed) for seed in seeds}


def study_table(study: Study, rows: Sequence[Mapping[str, object]], units: str) -> Table:
    """The study's table, ours beside the reference figures; noise and missing comparisons are said at the foot."""
    table = _table(study.title, _study_notes(study, rows, units))
    positions = any(row["r2_positions"] is not None for row in rows)
    columns = [("arm", "arm"), ("runs", "runs"), ("r2", "R2"), ("mae", "MAE"), ("rmse", f"RMSE [{units}]")]
    if positions:
        columns.insert(3, ("r2_positions", "R2 by position"))
    known = [(key, label) for key, label in columns[2:] if any(f"reference_{key}" in row for row in rows)]
    columns += [(f"reference_{key}", f"reference {label.partition(' [')[0]}") for key, label in known]
    if any("baseline_difference" in row for row in rows):
        columns += [("beyond", f"RMSE - {study.baseline} [95 %]"), ("baseline_skill", f"skill over {study.baseline}")]
    for key, label in columns:
        table.add_column(label, justify="left" if key == "arm" else "right", no_wrap=key == "beyond")
    for row in rows:
        table.add_row(*(_cell({**row, "beyond": _difference(row)}.get(key)) for key, _ in columns))
    return table


def _difference(row: Mapping[str, object]) -> str | None:
    if "baseline_difference" not in row:
        return None
    difference, low, high = (float(str(row[f"baseline_{name}"])) for name in ("difference", "low", "high"))
    return f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def _study_notes(study: Study, rows: Sequence[Mapping[str, object]], units: str) -> list[str]:
    notes = []
    if study.baseline and study.baseline not in [row["arm"] for row in rows]:
        notes.append(f"no differences: the baseline arm '{study.baseline}' has not run")
    notes += [f"{row['arm']}: {row['baseline_fault']}" for row in rows if "baseline_fault" in row]
    for row in rows:
        if "noise_sd" in row:
            noise, sd = float(str(row["noise_sd"])), float(str(row["target_sd"]))
            floor = float(str(row["noise_floor_rmse"])) if "noise_floor_rmse" in row else None
            notes.append(describe(noise, floor, sd, units))
    return list(dict.fromkeys(notes))  # arms tested on the same pixels have the same noise


def _table(title: str, notes: Sequence[str]) -> Table:
    return Table(title=title, caption="\n".join(notes) or None, caption_justify="left")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def show(*tables: Table | str) -> None:
    """Print to the terminal, wide enough for a table that is piped into a file."""
    console = Console(markup=False)  # [mW m-2] is a unit here, no style
    if not console.is_terminal:
        console = Console(width=160, markup=False)
    for table in tables:
        console.print(table)
