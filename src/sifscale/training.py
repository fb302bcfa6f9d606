"""One run: from typed config to test metrics. Reads as a list of what happens."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from sifscale import champion, feature_store, legacy, report, run_figures, selection
from sifscale import features as feature_room
from sifscale.audit import Finding, audit, below_noise_floor
from sifscale.config import (
    FOOTPRINT_SIF,
    WITHOUT_TRUTH,
    ConfigError,
    LegacySplit,
    NIRvRatioConfig,
    PersistenceConfig,
    RunConfig,
)
from sifscale.crop_kernels import load_kernels
from sifscale.crops import Plans, covering_crops, make_plans
from sifscale.cube import Cube
from sifscale.datamodule import CropBatches, CropDataModule, channel_ranges, fit_scaler, training_pixels
from sifscale.features import FeatureCube
from sifscale.fitting import fit
from sifscale.machine import set_up
from sifscale.models.persistence import with_other_composite
from sifscale.models.ratio import with_footprint_ratio, with_footprint_sif
from sifscale.precision import computed_in
from sifscale.resuming import checkpoint_folder, resumed_run_id
from sifscale.run_record import log_choices, log_correlation, opening_tags, run_name
from sifscale.served_model import log_model
from sifscale.splits import TEST, make_split, padded
from sifscale.start import Start
from sifscale.task import DownscalingTask
from sifscale.task_spec import Optimisation, Origin, TaskSpec
from sifscale.testing import Tested, test
from sifscale.tracking import RunLog, git_commit, is_main_process, run_log
from sifscale.trial import SearchTrial, trial_tags
from sifscale.windows import open_or_build

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a finished run found: metrics by name, what they are made of, findings of the audit."""

    metrics: dict[str, float]
    tested: Tested
    findings: list[Finding]


def train_once(
    run: RunConfig,
    folder: Path,
    parent: str | None = None,
    trial: SearchTrial | None = None,
    start: Start | None = None,
) -> Outcome:
    """Train (where there is something to train), test and log one run in ``folder``.

    parent: id of the MLflow run that this one belongs to. trial: of a search, which may stop the run. start: the clock
    of the command, where this is its first run. Raises ValueError with clear lines where the data or the machine do not
    allow the run, or where an honest run has a finding.
    """
    start = start or Start()
    set_up(run.trainer)
    pl.seed_everything(run.seed, workers=True, verbose=False)
    cube = open_or_build(run)
    start.mark("cube")
    # Half a second of Python, while the disk is waited for instead of before the first batch.
    Thread(target=load_kernels, name="kernels").start()
    features = prepare_features(run, cube)
    start.mark("features")
    plans = prepare_plans(run, features)
    features, correlation = choose_bands(run, features, plans)
    if isinstance(run.model, PersistenceConfig) and plans.parts is not None:
        features = with_other_composite(features, plans.parts)
    start.mark("plan")
    findings = audit(features, plans, scaler_saw(run, features, plans))
    start.mark("audit")
    resumed = resumed_run_id(folder) if run.resume else None
    opening = opening_tags(run, folder) | trial_tags(trial)
    with run_log(run.tracking, run_name(run), resume=resumed, parent=parent, tags=opening) as tracker:
        (folder / "run_id").write_text(tracker.run_id)
        log_choices(run, tracker, folder, cube, features, plans, findings)
        log_correlation(tracker, folder, *correlation)
        judge(run, findings)
        start.mark("tracking")
        task = make_task(run, features, plans, cube)
        data = CropDataModule(
            features, plans, batch_size=run.trainer.batch_size, seed=run.seed, augment=run.crop.augment
        )
        start.mark("model")
        fitted = fit(run, task, data, folder, tracker, trial, start)
        keep_model(run, tracker, folder, task, data)
        metrics, tested = test(run, task, data, application(run, cube, features.names), folder, tracker)
        judge_score(run, metrics, tracker)
        if is_main_process():
            champion.register(run, tracker, cube, plans, fitted.kept.get(champion.SCORE), folder)
            if run.evaluation.figures:
                for picture in run_figures.draw(
                    run, task, data, fitted.history, correlation, metrics, tested, folder / "figures"
                ):
                    tracker.artifact(picture, "figures")
            say_where(run, folder)
    if trial:
        trial.trained(fitted.kept)
    return Outcome(metrics, tested, findings)


def prepare_features(run: RunConfig, cube: Cube) -> FeatureCube:
    """The run's feature cube, materialised once for all runs with the same cube and feature options."""
    window, truth = run.window, run.window.truth if run.level == "fine" else None
    by_footprint = isinstance(run.model, NIRvRatioConfig) and run.model.ratio == "footprint"
    first_map = FOOTPRINT_SIF in run.features.bands
    footprints = by_footprint or first_map or run.trainer.loss == "footprints"
    of_cube = run.features.model_copy(update={"bands": tuple(b for b in run.features.bands if b != FOOTPRINT_SIF)})
    lazy = feature_room.build(
        cube, of_cube, run.coarse, window.target, truth=truth, cover=window.cover, footprints=footprints
    )
    if run.features.legacy:
        lazy = legacy.extend(lazy, run.features.legacy)
    # neither of these changes what is stored; how it is stored is told apart below
    chosen = of_cube.model_dump(mode="json", exclude={"stored_as"}) | {"name": "", "select": None}
    cover = window.cover.model_dump() if window.cover else None
    key = (cube.hash, chosen, run.coarse, window.target, truth, cover, *(["footprints"] if footprints else []))
    path = feature_store.materialise(lazy, Path(run.paths.data), *key, stored_as=run.features.stored_as)
    features = feature_store.open_features(path, run.trainer.memory_limit_mb)
    if by_footprint:
        assert isinstance(run.model, NIRvRatioConfig)
        features = with_footprint_ratio(features, run.model.floor)
    return with_footprint_sif(features) if first_map else features


def prepare_plans(run: RunConfig, features: FeatureCube) -> Plans:
    """Split first, then crops inside the parts (legacy: crops first, then a random split of them)."""
    valid = np.asarray(features.valid)
    if isinstance(run.split, LegacySplit):
        return make_plans(run.crop, run.split, valid, features.block_px, run.seed)
    return make_plans(run.crop, make_parts(run, features), valid, features.block_px, run.seed)


def make_parts(run: RunConfig, features: FeatureCube) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Parts of the split on the grid of the features (sample, y, x), which is the same map on any grid."""
    assert not isinstance(run.split, LegacySplit)
    finer = run.finer_by(run.level)
    shape = features.shape[0] // finer, features.shape[1] // finer
    parts = make_split(run.split, shape, features.places, features.times, run.seed)
    return padded(parts.repeat(finer, axis=1).repeat(finer, axis=2), features.coarse.shape[1:])


def application(run: RunConfig, cube: Cube, names: list[str]) -> CropDataModule | None:
    """The test part on the fine grid, where a simulation knows the truth: what the model is for; else None."""
    if not run.window.truth or run.level == "fine" or run.protocol == "legacy":
        return None
    if run.coarse.block_px != run.finer_by("fine") or isinstance(run.model, PersistenceConfig):
        log.info("no scores against %s: the model does not work on the fine grid", run.window.truth)
        return None
    fine = run.model_copy(update={"level": "fine"})
    features = prepare_features(fine, cube).select(names)
    parts, valid = make_parts(fine, features), np.asarray(features.valid)
    test = covering_crops(parts == TEST, valid, run.crop.size, features.block_px)
    plans = Plans(train=test, validation=None, test=test, parts=parts)  # nothing is trained here
    return CropDataModule(features, plans, batch_size=run.trainer.batch_size, seed=run.seed, augment=False)


def choose_bands(
    run: RunConfig, features: FeatureCube, plans: Plans
) -> tuple[FeatureCube, tuple[list[str], np.ndarray[Any, Any]]]:
    """Correlations on the training part, and the feature cube with only the bands that ``features.select`` keeps."""
    inside = training_pixels(plans, features, run.normalisation.model_copy(update={"fit": "train"}))
    names, matrix = selection.correlations(features, inside)
    if run.features.select:
        kept = selection.choose(run.features.select, run.features.bands, names, matrix)
        log.info("selected bands: %s", ", ".join(kept))
        others = [name for name in features.names if name not in run.features.bands]
        features = features.select([*kept, *others])
    return features, (names, matrix)


def scaler_saw(run: RunConfig, features: FeatureCube, plans: Plans) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Pixels (sample, y, x) that any scaling of this run was fitted on, for the audit."""
    if run.features.legacy and run.features.legacy.minmax_everything:
        return np.ones(features.coarse.shape, dtype=bool)
    if run.normalisation.method == "none":
        return np.zeros(features.coarse.shape, dtype=bool)
    return training_pixels(plans, features, run.normalisation)


def keep_model(run: RunConfig, tracker: RunLog, folder: Path, task: DownscalingTask, data: CropDataModule) -> None:
    """Log what was trained as a model that MLflow can load."""
    if run.tracking.log_model and is_main_process():
        crops = CropBatches(data.features, data.plans.test, data.plans.parts)
        precision = computed_in(run.trainer.precision, run.trainer.accelerator)
        log_model(tracker, checkpoint_folder(folder) / "best.ckpt", task.spec, precision, crops[[0]])


def judge(run: RunConfig, findings: list[Finding]) -> None:
    """Findings are fatal under ``honest`` and printed under ``legacy``."""
    if findings and run.protocol == "honest":
        raise ConfigError(
            [f"audit: {finding}; protocol=honest does not train on this" for finding in findings]
        )
    for finding in findings:
        log.warning("audit: %s", finding)


def judge_score(run: RunConfig, metrics: dict[str, float], tracker: RunLog) -> None:
    """An honest run that scores better than the target's noise allows is called out, and keeps it as its finding."""
    floor_rmse = metrics.get("test/noise_floor_rmse", 0.0)
    for finding in below_noise_floor(metrics["test/rmse"], floor_rmse) if run.protocol == "honest" else []:
        log.warning("audit: %s", finding)
        tracker.tags({"audit": str(finding)})


def make_task(run: RunConfig, features: FeatureCube, plans: Plans, cube: Cube | None = None) -> DownscalingTask:
    """Model, scaler and optimiser options in one Lightning module; without ``cube`` it cannot predict maps."""
    known = features
    if run.trainer.loss in WITHOUT_TRUTH:  # without fine truth, its spread is not known either
        observed = np.where(features.valid, features.coarse, np.nan).astype(np.float32)
        known = replace(features, target=observed)
    scaler = fit_scaler(
        known, training_pixels(plans, features, run.normalisation), run.normalisation.method
    )
    spec = TaskSpec(
        model=run.model.model_dump(),
        channels=tuple(features.names),
        scaler=scaler,
        block_px=features.block_px,
        factor=run.coarse.factor,
        size=run.crop.size,
        conservation=run.conservation,
        target=run.window.target,
        units=run.window.units.get(run.window.target, "1"),
        members=run.trainer.members,
        origin=origin(run, features, plans, cube) if cube else None,
        uncertainty=None if run.uncertainty.name == "none" else run.uncertainty.model_dump(),
    )
    named = {field.name for field in fields(Optimisation)}
    options = run.trainer.model_dump(include=named) | run.evaluation.model_dump(include=named)
    optimisation = Optimisation(**options, conservation_weight=run.conservation_weight)
    task = DownscalingTask.create(spec, optimisation, keep_positions=run.protocol == "legacy")
    if run.trainer.channels_last:
        for weights in (parameter for parameter in task.model.parameters() if parameter.ndim == 4):
            weights.data = weights.data.contiguous(memory_format=torch.channels_last)
    return task


def origin(run: RunConfig, features: FeatureCube, plans: Plans, cube: Cube) -> Origin:
    """What makes the run's predictors again from another cube, and what they were in training."""
    grids = [cube.native, *([cube.fine] if cube.fine is not None else [])]
    bands = {str(name): band for grid in grids for name, band in grid.data_vars.items()}
    inside = training_pixels(plans, features, run.normalisation.model_copy(update={"fit": "train"}))
    return Origin(
        features=run.features.model_dump(mode="json"),
        coarse=run.coarse.model_dump(mode="json"),
        units={name: str(band.attrs.get("units", "1")) for name, band in bands.items()},
        ranges=channel_ranges(features, inside),
        window=run.window.name,
        level=run.level,
        cube_hash=cube.hash,
        git_commit=git_commit(),
    )


def say_where(run: RunConfig, folder: Path) -> None:
    """Print where pictures and runs are."""
    report.show(
        *([f"figures: {folder / 'figures'}"] if run.evaluation.figures else []),
        f"MLflow:  mlflow ui --backend-store-uri {run.tracking.uri}   (experiment '{run.tracking.experiment}')",
    )
