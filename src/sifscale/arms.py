"""Arms of a comparison: what each scored and cost, how it differs from the reference, and all of it in plain words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from mlflow.entities import Run

from sifscale import report
from sifscale.choices import settings
from sifscale.config import Study, Tracking
from sifscale.effects import SIGNIFICANCE, Effect, Tried, holm
from sifscale.metrics import Sums, merged, pooled, skill
from sifscale.study_runs import ArmRun, outcome
from sifscale.tracking import children

SCORES = ("r2", "mae", "rmse", "bias")
REFERENCES = ("bilinear", "ridge")
COSTS = {"parameters": "perf/parameters", "train_s": "perf/train_s", "samples_per_s": "perf/samples_per_s"}
TOLD = 12  # arms that are told of in words

Row = Mapping[str, object]


@dataclass(frozen=True, eq=False)
class Arm:
    """An arm with its runs. parts: what was trained and tested by itself, the folds of runs that pool them.

    outcomes: what each run left, in the order of ``runs``.
    """

    name: str
    runs: tuple[Run, ...]
    parts: tuple[Run, ...]
    outcomes: tuple[report.Outcome, ...]

    @property
    def tried(self) -> Tried:
        """For main effects: settings of the newest run."""
        return Tried(settings(self.runs[-1].data.params), report.by_seed(self.outcomes))


def collect(runs: Sequence[ArmRun], score: str, tracking: Tracking) -> list[Arm]:
    """Arms in order of appearance; ValueError where a run was not scored so."""
    of_arm: dict[str, list[Run]] = defaultdict(list)
    for one in runs:
        of_arm[one.arm].append(one.run)
    return [
        Arm(
            name,
            tuple(ours),
            tuple(part for run in ours for part in _parts(run, tracking)),
            tuple(outcome(tracking, run, score, name) for run in ours),
        )
        for name, ours in of_arm.items()
    ]


def _parts(run: Run, tracking: Tracking) -> list[Run]:
    folds = children(tracking, run.info.run_id) if run.data.params.get("split.folds") == "all" else []
    newest = {fold.data.params.get("split.folds"): fold for fold in folds}  # oldest first
    return list(newest.values()) or [run]


def arm_rows(study: Study, arms: Sequence[Arm]) -> list[dict[str, object]]:
    """One row an arm: that of ``report.study_rows``, spread over seeds and folds, adjusted p, skill and cost."""
    rows = report.study_rows(study, [found for arm in arms for found in arm.outcomes])
    p = [row.get("baseline_p", float("nan")) for row in rows]
    for row, arm, adjusted in zip(rows, arms, holm(float(str(value)) for value in p), strict=True):
        row["seeds"], row["parts"] = len({found.seed for found in arm.outcomes}), len(arm.parts)
        for key in SCORES:
            values = _logged(arm, f"{study.score}/{key}")
            row[f"{key}_mean"] = mean(values) if values else None
            row[f"{key}_sd"] = stdev(values) if len(values) > 1 else None
        row["baseline_p_holm"] = adjusted if adjusted == adjusted else None
        row |= {f"skill_{name}": _skill(arm, name) for name in REFERENCES}
        row |= {name: mean(values) if (values := _logged(arm, key)) else None for name, key in COSTS.items()}
    return rows


def _logged(arm: Arm, key: str) -> list[float]:
    return [part.data.metrics[key] for part in arm.parts if key in part.data.metrics]


def _skill(arm: Arm, name: str) -> float | None:
    """Over a prediction that every run of the arm was tested beside, pooled as the scores are; else None."""
    beside = [found.references[name] for found in arm.outcomes if name in found.references]
    if len(beside) < len(arm.outcomes):
        return None
    ours = pooled(merged(found.blocks for found in arm.outcomes))
    theirs = sum(beside, start=Sums.zero())
    return skill(ours.finish()["rmse"], theirs.finish()["rmse"])


def verdict(study: Study, rows: Sequence[Row], effects: Sequence[Effect], units: str) -> list[str]:
    """What the numbers say, a sentence each: the best arm, each arm against the reference, each choice."""
    best = min(rows, key=lambda row: number(row, "rmse"))
    said = [f"Lowest RMSE: {best['arm']}, {number(best, 'rmse'):.4f} {units} (R2 {number(best, 'r2'):.4f})."]
    compared = [row for row in rows if "baseline_difference" in row]
    ordered = sorted(compared, key=lambda row: number(row, "baseline_difference"))
    said += [f"{row['arm']} {_judgement(row, study.baseline or '')}." for row in ordered[:TOLD]]
    if len(ordered) > TOLD:
        sure = [row for row in ordered[TOLD:] if number(row, "baseline_p_holm") < SIGNIFICANCE]
        better = sum(number(row, "baseline_difference") < 0 for row in sure)
        said.append(
            f"Of the {len(ordered) - TOLD} other arms {better} are better and {len(sure) - better} worse than "
            f"{study.baseline}; the table has them all."
        )
    if compared:
        said.append(_many(len(compared), study.baseline or ""))
    elif len(rows) > 1 and not study.baseline:
        said.append("No arm is the reference, so that no difference was tested; name one with baseline=ARM.")
    said += [f"{row['arm']} cannot be compared: {row['baseline_fault']}." for row in rows if "baseline_fault" in row]
    return said + [_choice(effect) for effect in effects if any(level.difference for level in effect.levels)]


def _judgement(row: Row, baseline: str) -> str:
    difference, low, high = (number(row, f"baseline_{name}") for name in ("difference", "low", "high"))
    numbers = f"{baseline}: {difference:+.4f}"
    if low != low:
        return f"cannot be told from {numbers} (one block: no interval)"
    numbers += f" [{low:+.4f}, {high:+.4f}], p {number(row, 'baseline_p'):.2g}"
    if number(row, "baseline_p_holm") < SIGNIFICANCE:
        return f"is {'better' if difference < 0 else 'worse'} than {numbers}"
    return f"is not better than {numbers}" if low <= 0 <= high else f"is not shown to differ from {numbers}"


def _many(count: int, baseline: str) -> str:
    if count == 1:
        return f"Differences are of RMSE to {baseline}, with 95 % interval."
    return (
        f"These are {count} comparisons with {baseline}; an arm is called better or worse where p, adjusted for their "
        f"number after Holm, is below {SIGNIFICANCE}. Intervals are of each difference alone."
    )


def _choice(effect: Effect) -> str:
    """One sentence on a key: the level that beats the first most, else the one that differs most."""
    levels = [(level, level.difference) for level in effect.levels if level.difference]
    level, found = max(
        levels, key=lambda pair: (pair[0].matters, pair[1].difference < 0, abs(pair[1].difference))
    )
    others = f", over {level.matched} setting{'s' * (level.matched > 1)} of the other choices"
    said = f"{level.value} instead of {effect.levels[0].value} changes RMSE by {report.interval(found)}{others}"
    return f"{effect.key} {'matters' if level.matters else 'is not shown to matter'}: {said}."


def number(row: Row, key: str) -> float:
    """A number of a row, NaN where there is none."""
    value = row.get(key)
    return float("nan") if value is None else float(str(value))
