"""Fit: Lightning's trainer, or one step, and the best checkpoint on validation."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from sifscale import progress
from sifscale.averaging import weight_average
from sifscale.config import WITHOUT_TRUTH, ConfigError, RunConfig
from sifscale.datamodule import CropDataModule
from sifscale.machine import compile_networks, compiler_failures_told, described, slowed_by
from sifscale.models import parameter_count
from sifscale.models.regression import Fitted
from sifscale.pace import FirstStep, Pace
from sifscale.precision import computed_in, computed_in_words
from sifscale.resuming import checkpoint_folder
from sifscale.splits import TRAIN, VALIDATION
from sifscale.start import Start
from sifscale.task import DownscalingTask
from sifscale.tracking import Pruned, RunLog, is_main_process
from sifscale.trial import SearchTrial
from sifscale.uncertainty import calibrate
from sifscale.whole import take_name, written_beside
from sifscale.within_epoch import WithinEpoch

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # hardware lists, advertising


@dataclass(frozen=True)
class Fit:
    """Metrics by epoch (name -> [(epoch, value)]), and the validation scores of the epoch that is kept."""

    history: dict[str, list[tuple[int, float]]]
    kept: dict[str, float]


class StopHopeless(pl.Callback):
    """Reports each epoch's validation scores to a search and stops where it finds the run hopeless; says ``why``."""

    def __init__(self, trial: SearchTrial) -> None:
        self.trial, self.why = trial, ""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.why = self.trial.report(scores, trainer.current_epoch, trainer.max_epochs or 0)
        trainer.should_stop |= bool(self.why)


def fit(
    run: RunConfig,
    task: DownscalingTask,
    data: CropDataModule,
    folder: Path,
    tracker: RunLog,
    trial: SearchTrial | None = None,
    start: Start | None = None,
) -> Fit:
    """Train, keep the best checkpoint on validation (the last where there is none), return metrics by epoch.

    start: the clock of the run, which ends with the first training step.

    Models that learn in one step, or nothing, have no epochs and thus no such metrics. Raises ValueError where there
    is no pixel to learn from, or none to calibrate error bars on, and Pruned where ``trial``'s search finds the run
    hopeless.
    """
    if run.uncertainty.name != "none" and (data.plans.validation is None or data.plans.parts is None):
        raise ConfigError(
            [
                "uncertainty.name: must be none where the split has no validation part, on which error bars are "
                f"calibrated (found '{run.uncertainty.name}')"
            ]
        )
    if isinstance(task.model, Fitted) or not parameter_count(task.model):
        return Fit({}, _fit_in_one_step(run, task, data, folder, tracker))
    history = progress.EpochLog(tracker, folder / "history.json")
    if is_main_process():
        _announce(run, task, data, folder)
    if run.trainer.compile:
        compile_networks(task.model)
    monitored = data.plans.validation is not None
    # without fine truth the choice of the epoch must not see it either
    pixels_or_cells = "val/cells_rmse" if run.evaluation.cell_px else "val/rmse"
    chosen_by = "val/loss" if run.trainer.loss in WITHOUT_TRUTH else pixels_or_cells
    checkpoints = checkpoint_folder(folder)
    keep = pl.callbacks.ModelCheckpoint(
        checkpoints,
        filename="best",
        monitor=chosen_by if monitored and run.trainer.keep == "best" else None,
        save_last=True,
        enable_version_counter=False,
    )
    start = start or Start()
    pace, first = Pace(), FirstStep(start)
    last = checkpoints / "last.ckpt"
    within = WithinEpoch(last, run.trainer.checkpoint_minutes)
    callbacks: list[pl.Callback] = [first, *weight_average(run.trainer), within, pace, history, keep]
    if monitored and run.trainer.patience:
        callbacks.append(pl.callbacks.EarlyStopping(chosen_by, patience=run.trainer.patience))
    if run.trainer.progress:
        callbacks.append(progress.EpochBar())
    hopeless = StopHopeless(trial) if trial else None
    if hopeless:
        callbacks.append(hopeless)
    started = time.perf_counter()
    trainer = lightning_trainer(run, callbacks, folder, validate=monitored)
    with known_warnings(), compiler_failures_told():
        trainer.fit(
            task, data, ckpt_path=str(last) if run.resume and last.exists() else None, weights_only=True
        )
    seconds = time.perf_counter() - started
    if pace.samples:  # none where a finished run is resumed
        tracker.metrics(pace.metrics() | {"perf/train_s": seconds} | start.metrics())
    if hopeless and hopeless.why:
        raise Pruned(hopeless.why)
    best = Path(keep.best_model_path or last)
    state = torch.load(best, weights_only=True, map_location="cpu")
    task.load_state_dict(state["state_dict"])
    if calibration := _calibrated(run, task, data, folder, tracker):
        _save(state | calibration, best)
    kept = history.at(state["epoch"])
    tracker.metrics({"best_epoch": float(state["epoch"])} | {f"best/{name}": kept[name] for name in kept})
    if not run.tracking.log_model:  # which holds the checkpoint
        tracker.artifact(best, "checkpoints")
    return Fit(history.values, kept)


def _announce(run: RunConfig, task: DownscalingTask, data: CropDataModule, folder: Path) -> None:
    """What is trained, where, and on what, to the log; with what makes the machine slow."""
    log.info("run folder: %s (if stopped, go on with resume=%s)", folder, folder)
    log.info(
        "training %s: %s parameters, %d crops", run.label, f"{parameter_count(task.model):,}", len(data.plans.train)
    )
    computed = computed_in_words(run.trainer.precision, run.trainer.accelerator)
    log.info("training on %s", described(run.trainer, computed))
    for line in slowed_by(torch.get_num_threads()):
        log.warning("%s", line)


def _fit_in_one_step(
    run: RunConfig, task: DownscalingTask, data: CropDataModule, folder: Path, tracker: RunLog
) -> dict[str, float]:
    """What a baseline learns, if anything; then validation scores and a checkpoint, as a network has them."""
    best = checkpoint_folder(folder) / "best.ckpt"
    if run.resume and best.exists():
        state = torch.load(best, weights_only=True, map_location="cpu")
        task.load_state_dict(state["state_dict"])
        task.on_load_checkpoint(state)
        return {}
    if isinstance(task.model, Fitted):
        started = time.perf_counter()
        found = fit_at_once(task, data, run.seed)
        log.info("fitted %s: %s", run.label, ", ".join(f"{name} {value:g}" for name, value in found.items()))
        seconds = {"perf/train_s": time.perf_counter() - started}
        tracker.metrics(seconds | {f"fit/{name}": value for name, value in found.items()})
    trainer = lightning_trainer(run, [], folder, validate=data.plans.validation is not None)
    kept: dict[str, float] = {}
    with known_warnings():
        for scores in trainer.validate(task, data, verbose=False):
            kept |= scores
    tracker.metrics(kept)
    _calibrated(run, task, data, folder, tracker)
    trainer.save_checkpoint(best, weights_only=False)
    if not run.tracking.log_model:  # which holds the checkpoint
        tracker.artifact(best, "checkpoints")
    return kept


def fit_at_once(task: DownscalingTask, data: CropDataModule, seed: int) -> dict[str, float]:
    """Fit a model that learns in one step; returns what it says of itself."""
    assert isinstance(task.model, Fitted)
    with torch.no_grad():
        train, validation = (map(task.fields, data.each_pixel_once(part)) for part in (TRAIN, VALIDATION))
        return task.model.fit(train, validation, seed)


def _calibrated(
    run: RunConfig, task: DownscalingTask, data: CropDataModule, folder: Path, tracker: RunLog
) -> dict[str, Any]:
    """Fit the error bars of a trained task on the validation part; what a checkpoint keeps of that, if anything.

    In the trainer's precision, as the test: each process sees all pixels and finds the same.
    """
    uncertainty = task.spec.uncertainty
    if uncertainty is None:
        return {}
    trainer = lightning_trainer(run, [], folder, validate=False)
    with known_warnings():
        parts = trainer.predict(task, data.each_pixel_once(VALIDATION)) or []
    columns = torch.cat([torch.as_tensor(part, device="cpu") for part in parts])
    prediction, bars, target = columns[:, 0], columns[:, 1:4], columns[:, 4]
    found = task.calibration = calibrate(uncertainty["level"], prediction, bars, target)
    factors = f"standard error x {found.sd:.3g}, interval x {found.interval:.3g}"
    log.info("error bars calibrated on %s validation pixels: %s", f"{len(target):,}", factors)
    tracker.metrics({"calibration/sd": found.sd, "calibration/interval": found.interval})
    kept: dict[str, Any] = {}
    task.on_save_checkpoint(kept)
    return kept


def _save(state: dict[str, Any], path: Path) -> None:
    """A checkpoint in place of the one of that name, whole or not at all."""
    if is_main_process():
        with written_beside(path) as partial:
            torch.save(state, partial)
            take_name(partial, path)


def lightning_trainer(run: RunConfig, callbacks: list[pl.Callback], folder: Path, *, validate: bool) -> pl.Trainer:
    """Lightning's trainer as the run's options say."""
    options = run.trainer
    return pl.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=options.strategy,
        precision=computed_in(options.precision, options.accelerator),
        max_epochs=options.epochs,
        callbacks=callbacks,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, pl.callbacks.ModelCheckpoint) for callback in callbacks),
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if validate else 0,
        use_distributed_sampler=False,  # our batch order knows rank and world
        deterministic="warn",  # some GPU kernels (bilinear, backwards) have no deterministic form
    )


@contextmanager
def known_warnings() -> Iterator[None]:
    """Without advice that does not apply: batches are gathered whole, so loader workers would only cost."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Lightning 2.6 with torch 2.13: its own use of a name that torch is renaming
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
        # torch.compile looks through caches, which may be wrong; ours hold what their arguments alone say
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        yield
