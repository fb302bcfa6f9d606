"""Fit and test: Lightning's trainer, the best checkpoint on validation, the table of scores."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from sifscale import block_sums, bootstrap, noise_floor, progress, report
from sifscale.audit import observed_pixels, scored_pixels
from sifscale.averaging import weight_average
from sifscale.config import BlocksSplit, RunConfig
from sifscale.datamodule import CropDataModule
from sifscale.metrics import Sums, r2_residual, skill
from sifscale.models import parameter_count
from sifscale.models.regression import Fitted
from sifscale.splits import TRAIN, VALIDATION
from sifscale.task import REFERENCES, DownscalingTask
from sifscale.tracking import RunLog, is_main_process

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # hardware lists, advertising


def fit(
    run: RunConfig, task: DownscalingTask, data: CropDataModule, folder: Path, tracker: RunLog
) -> dict[str, list[tuple[int, float]]]:
    """Train, keep the best checkpoint on validation (the last where there is none), return metrics by epoch.

    Models that learn in one step, or nothing, have no epochs and thus no such metrics. Raises ValueError where there
    is no pixel to learn from.
    """
    if isinstance(task.model, Fitted) or not parameter_count(task.model):
        _fit_in_one_step(run, task, data, folder, tracker)
        return {}
    history = progress.EpochLog(tracker, folder / "history.json")
    log.info("run folder: %s (if stopped, go on with resume=%s)", folder, folder)
    log.info(
        "training %s: %s parameters, %d crops",
        run.label,
        f"{parameter_count(task.model):,}",
        len(data.plans.train),
    )
    monitored = data.plans.validation is not None
    # without fine truth the choice of the epoch must not see it either
    chosen_by = "val/loss" if run.trainer.loss == "aggregate" else "val/rmse"
    keep = pl.callbacks.ModelCheckpoint(
        folder / "checkpoints",
        filename="best",
        monitor=chosen_by if monitored else None,
        save_last=True,
        enable_version_counter=False,
    )
    callbacks: list[pl.Callback] = [*weight_average(run.trainer), history, keep]
    if monitored and run.trainer.patience:
        callbacks.append(pl.callbacks.EarlyStopping(chosen_by, patience=run.trainer.patience))
    if run.trainer.progress:
        callbacks.append(progress.EpochBar())
    last = folder / "checkpoints" / "last.ckpt"
    started = time.perf_counter()
    trainer = _trainer(run, callbacks, folder, validate=monitored)
    with _known_warnings():
        trainer.fit(
            task, data, ckpt_path=str(last) if run.resume and last.exists() else None, weights_only=True
        )
    seconds = time.perf_counter() - started
    samples = len(data.plans.train) * (trainer.current_epoch - history.first_epoch)
    if samples:  # none where a finished run is resumed
        tracker.metrics({"perf/samples_per_s": samples / seconds, "perf/train_s": seconds})
    best = Path(keep.best_model_path or last)
    state = torch.load(best, weights_only=True, map_location="cpu")
    task.load_state_dict(state["state_dict"])
    tracker.metrics({"best_epoch": float(state["epoch"])})
    tracker.artifact(best, "checkpoints")
    return history.values


def _fit_in_one_step(
    run: RunConfig, task: DownscalingTask, data: CropDataModule, folder: Path, tracker: RunLog
) -> None:
    """What a baseline learns, if anything; then validation scores and a checkpoint, as a network has them."""
    best = folder / "checkpoints" / "best.ckpt"
    if run.resume and best.exists():
        task.load_state_dict(torch.load(best, weights_only=True, map_location="cpu")["state_dict"])
        return
    if isinstance(task.model, Fitted):
        started = time.perf_counter()
        with torch.no_grad():
            train, validation = (map(task.fields, data.each_pixel_once(part)) for part in (TRAIN, VALIDATION))
            found = task.model.fit(train, validation, run.seed)
        log.info("fitted %s: %s", run.label, ", ".join(f"{name} {value:g}" for name, value in found.items()))
        seconds = {"perf/train_s": time.perf_counter() - started}
        tracker.metrics(seconds | {f"fit/{name}": value for name, value in found.items()})
    trainer = _trainer(run, [], folder, validate=data.plans.validation is not None)
    with _known_warnings():
        for scores in trainer.validate(task, data, verbose=False):
            tracker.metrics(dict(scores))
    trainer.save_checkpoint(best, weights_only=False)
    tracker.artifact(best, "checkpoints")


def test(
    run: RunConfig, task: DownscalingTask, data: CropDataModule, folder: Path, tracker: RunLog
) -> dict[str, float]:
    """Scores on the test part, beside nearest and bilinear; the table is printed, sums are kept for pooling."""
    block_px = run.split.block if isinstance(run.split, BlocksSplit) else run.window.suggested.block_px
    tally = block_sums.BlockTally(block_sums.block_map(data.features, block_px), data.plans.test)
    with _known_warnings():
        _trainer(run, [tally], folder, validate=False).test(task, data, verbose=False)
    sums, blocks = task.test_sums(), tally.by_name()
    scores = {name: sums[name].finish() for name in ("model", *REFERENCES)}
    floor = _noise_floor(data)
    metrics = _test_metrics(sums, scores, floor)
    metrics["perf/parameters"] = float(parameter_count(task.model))
    if run.protocol == "legacy":
        metrics["test/r2_positions"] = sums["model"].r2_positions()
    tracker.metrics(metrics)
    files: dict[str, Mapping[str, Any]] = {
        "metrics": metrics,
        "test_sums": {name: part.to_dict() for name, part in sums.items()},
        "test_block_sums": bootstrap.to_json(blocks),
    }
    for name, values in files.items():
        _write_json(folder / f"{name}.json", values)
        tracker.artifact(folder / f"{name}.json")
    if is_main_process():
        title, units = f"{run.label} on {run.window.name} ({run.protocol})", task.spec.units
        beyond = bootstrap.paired_difference(blocks["model"], blocks["bilinear"])
        notes = [f"RMSE less that of bilinear: {report.interval(beyond)}"]
        if floor:
            limit = metrics.get("test/noise_floor_rmse")
            notes.append(noise_floor.describe(floor.noise_sd, limit, scores["model"]["target_sd"], units))
        named = {run.label if name == "model" else name: values for name, values in scores.items()}
        report.show(report.run_table(named, units, title, notes))
    return metrics


def _test_metrics(
    sums: Mapping[str, Sums], scores: Mapping[str, Mapping[str, float]], floor: noise_floor.NoiseFloor | None
) -> dict[str, float]:
    model = scores["model"]
    names = ("r2", "mae", "rmse", "bias", "correlation", "negative_share")
    metrics = {f"test/{name}": model[name] for name in names}
    metrics["test/skill_bilinear"] = skill(model["rmse"], scores["bilinear"]["rmse"])
    metrics["test/r2_beyond_bilinear"] = r2_residual(sums["model"], sums["bilinear"])
    metrics["test/coarse_rmse"] = sums["coarse"].finish()["rmse"]
    metrics["test/coarse_rmse_raw"] = sums["coarse_raw"].finish()["rmse"]
    for reference in REFERENCES:
        metrics |= {f"test/{reference}_{name}": scores[reference][name] for name in ("r2", "mae", "rmse")}
    if floor:
        metrics["test/noise_sd"] = floor.noise_sd
        if floor.rmse == floor.rmse:  # NaN: coarse SIF lies on the target's own grid
            metrics["test/noise_floor_rmse"] = floor.rmse
    return metrics


def _noise_floor(data: CropDataModule) -> noise_floor.NoiseFloor | None:
    """Of the pixels that the test scores; the semivariograms are of whole samples, for more pairs."""
    features, observed = data.features, observed_pixels(data.features)
    scored = scored_pixels(data.plans, features.coarse.shape) & observed
    together = len(set(features.places)) > 1
    return noise_floor.estimate(
        np.asarray(features.target), observed, scored, features.block_px, together=together
    )


def _trainer(run: RunConfig, callbacks: list[pl.Callback], folder: Path, *, validate: bool) -> pl.Trainer:
    options = run.trainer
    return pl.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=options.strategy,
        precision=options.precision,
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
def _known_warnings() -> Iterator[None]:
    """Without advice that does not apply: batches are gathered whole, so loader workers would only cost."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Lightning 2.6 with torch 2.13: its own use of a name that torch is renaming
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
        yield


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1))
    temporary.replace(path)
