"""A command of ``train.py``: one run, or one run a fold and all of them pooled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sifscale import report, run_figures, structure
from sifscale.config import BlocksSplit, PlacesSplit, RunConfig
from sifscale.continuing import adopt
from sifscale.evaluation import BlockScores, Fields, GroupSums, Structures
from sifscale.metrics import merged, pooled
from sifscale.noise_floor import NoiseFloor
from sifscale.resuming import resumed_run_id, run_folder
from sifscale.run_record import log_config, opening_tags, run_name, tags
from sifscale.start import Start
from sifscale.testing import VIEWS, Tested, show, test_metrics, write
from sifscale.tracking import RunLog, is_main_process, run_log
from sifscale.training import (
    Outcome,
    judge_score,
    prepare_features,
    say_where,
    train_once,
)
from sifscale.trial import SearchTrial, trial_of_this_job, trial_tags
from sifscale.uncertainty import Spread
from sifscale.windows import open_or_build


def train(run: RunConfig, start: Start) -> dict[str, float]:
    """Train, test and log what the configuration asks for; returns the final metrics, of all folds those of the pool.

    start: the clock of the command, which lists its parts up to the first training step.

    Raises ValueError with clear lines where the data do not allow the run, or where an honest run has a finding.
    """
    start.mark("imports")
    folder = run_folder(run)
    if twin := adopt(run, folder):
        return dict(twin.data.metrics)
    with trial_of_this_job() as trial:
        if isinstance(run.split, BlocksSplit | PlacesSplit) and run.split.folds == "all":
            metrics = _every_fold(run, folder, trial, start)
        else:
            metrics = train_once(run, folder, trial=trial, start=start).metrics
        if trial:
            trial.complete()
        return metrics
    return {}  # a search ended the run before its test


def _every_fold(run: RunConfig, folder: Path, trial: SearchTrial | None, start: Start) -> dict[str, float]:
    """One MLflow run a fold, children of one that holds the pooled scores of the out-of-fold predictions."""
    assert isinstance(run.split, BlocksSplit | PlacesSplit)
    cube = open_or_build(run)
    start.mark("cube")
    resumed = resumed_run_id(folder) if run.resume else None
    opening = opening_tags(run, folder) | trial_tags(trial)
    with run_log(run.tracking, run_name(run), resume=resumed, tags=opening, watch=False) as tracker:
        (folder / "run_id").write_text(tracker.run_id)
        log_config(run, tracker, folder, {})
        start.mark("tracking")
        starts = [start, *(None for _ in range(run.split.k - 1))]
        folds = [_fold(run, fold, folder, tracker, trial, begun) for fold, begun in enumerate(starts)]
        tested = pool([outcome.tested for outcome in folds])
        metrics = test_metrics(run, tested) | _over_folds(folds)
        findings = [finding for outcome in folds for finding in outcome.findings]
        tracker.tags(tags(run, cube, findings))
        tracker.metrics(metrics)
        judge_score(run, metrics, tracker)
        if is_main_process():
            units = run.window.units.get(run.window.target, "1")
            write(run, tested, metrics, folder, tracker)
            title = f"{run.label} on {run.window.name} ({run.protocol}), {run.split.k} folds pooled"
            report.show(report.folds_table(_by_fold(folds, tested), units, f"{run.label} by fold"))
            show(run, title, tested, metrics, units)
            if tested.fields and run.evaluation.figures:
                pictures = run_figures.of_test(run, prepare_features(run, cube), metrics, tested, units)
                for picture in run_figures.save(pictures, folder / "figures"):
                    tracker.artifact(picture, "figures")
            say_where(run, folder)
    return metrics


def _fold(
    run: RunConfig, fold: int, folder: Path, tracker: RunLog, trial: SearchTrial | None, start: Start | None
) -> Outcome:
    """A run of its own, which goes on where it stopped if all are resumed; the study counts the pool, not its parts."""
    place = folder / f"fold_{fold}"
    place.mkdir(exist_ok=True)
    started = run.resume and (place / "config.yaml").exists()
    changes = {"split": run.split.model_copy(update={"folds": fold}), "study": None, "arm": run.label}
    one = run.model_copy(update={**changes, "resume": str(place) if started else None})
    return train_once(one, place, parent=tracker.run_id, trial=trial, start=start)


def pool(folds: Sequence[Tested]) -> Tested:
    """Sums of all folds added, their fields put together: each pixel as the fold that tested it predicts it."""
    views: dict[str, BlockScores] = {}
    groups: GroupSums = {}
    fields: Fields = {}
    structures: dict[str, Structures] = {}
    for tested in folds:
        for view, by_name in tested.views.items():
            total = views.setdefault(view, {})
            total |= {name: merged([total.get(name, {}), by_block]) for name, by_block in by_name.items()}
        for kind, by_group in tested.groups.items():
            of_kind = groups.setdefault(kind, {})
            of_kind |= {group: merged([of_kind.get(group, {}), of_group]) for group, of_group in by_group.items()}
        for view, parts in tested.structure.items():
            of_view = structures.setdefault(view, {})
            of_view |= {name: structure.merged([of_view.get(name, {}), blocks]) for name, blocks in parts.items()}
        for name, field in tested.fields.items():
            fields[name] = np.where(np.isfinite(field), field, fields.get(name, field))
    sums = merged(tested.sums for tested in folds)
    spread = {view: sum((t.spread[view] for t in folds), start=Spread.zero()) for view in folds[0].spread}
    return Tested(views, sums, _floor(folds), fields, groups, structures, spread)


def _floor(folds: Sequence[Tested]) -> NoiseFloor | None:
    """Over the test pixels of all folds, None where one of them has none."""
    floors = [tested.floor for tested in folds]
    known = [floor for floor in floors if floor is not None]
    if len(known) < len(floors):
        return None
    count = np.array([tested.sums["model"].finish()["n"] for tested in folds])
    noise_sd, rmse = (
        float(np.sqrt(np.average(np.square(values), weights=count)))
        for values in ([floor.noise_sd for floor in known], [floor.rmse for floor in known])
    )
    return NoiseFloor(noise_sd, rmse)


def _over_folds(folds: Sequence[Outcome]) -> dict[str, float]:
    """How much folds differ, and what all of them cost."""
    found = {
        f"folds/{name}_sd": float(np.std([outcome.metrics[f"test/{name}"] for outcome in folds], ddof=1))
        for name in ("r2", "mae", "rmse")
    }
    return found | {"perf/parameters": folds[0].metrics["perf/parameters"]}


def _by_fold(folds: Sequence[Outcome], pool: Tested) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by row (fold, pool), prediction and name, of the finest view there is."""
    view = next(view for view in reversed(VIEWS) if view in pool.views)
    rows = {f"fold {i}": outcome.tested.views.get(view, {}) for i, outcome in enumerate(folds)}
    rows["pool"] = pool.views[view]
    return {
        row: {name: pooled(blocks).finish() for name, blocks in by_name.items() if blocks}
        for row, by_name in rows.items()
    }
