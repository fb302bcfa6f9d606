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

import pytorch_lightning as pl
import torch

from sifscale import progress, report
from sifscale.config import RunConfig
from sifscale.datamodule import CropDataModule
from sifscale.metrics import skill
from sifscale.models import parameter_count
from sifscale.task import REFERENCES, DownscalingTask
from sifscale.tracking import RunLog, is_main_process

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # hardware lists, advertising


def fit(
    run: RunConfig, task: DownscalingTask, data: CropDataModule, folder: Path, tracker: RunLog
) -> dict[str, list[tuple[int, float]]]:
    """Train, keep the best checkpoint on validation (the last where there is none), return metrics by epoch."""
    history = progress.EpochLog(tracker, folder / "history.json")
    if not parameter_count(task.model):
        return {}
    log.info("run folder: %s (if stopped, go on with resume=%s)", folder, folder)
    log.info(
        "training %s: %s parameters, %d crops",
        run.label,
        f"{parameter_count(task.model):,}",
        len(data.plans.train),
    )
    monitored = data.plans.validation is not None
    keep = pl.callbacks.ModelCheckpoint(
        folder / "checkpoints",
        filename="best",
        monitor="val/rmse" if monitored else None,
        save_last=True,
        enable_version_counter=False,
    )
    callbacks: list[pl.Callback] = [history, keep]
    if monitored and run.trainer.patience:
        callbacks.append(pl.callbacks.EarlyStopping("val/rmse", patience=run.trainer.patience))
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


def test(
    run: RunConfig, task: DownscalingTask, data: CropDataModule, folder: Path, tracker: RunLog
) -> dict[str, float]:
    """Scores on the test part, beside nearest and bilinear; the table is printed, sums are kept for pooling."""
    with _known_warnings():
        _trainer(run, [], folder, validate=False).test(task, data, verbose=False)
    sums = task.test_sums()
    scores = {run.label: sums["model"].finish()} | {name: sums[name].finish() for name in REFERENCES}
    model = scores[run.label]
    metrics = {f"test/{key}": model[key] for key in ("r2", "mae", "rmse", "bias", "r")}
    metrics["test/skill_bilinear"] = skill(model["rmse"], scores["bilinear"]["rmse"])
    metrics["test/coarse_rmse"] = sums["coarse"].finish()["rmse"]
    metrics["perf/parameters"] = float(parameter_count(task.model))
    for name in REFERENCES:
        metrics |= {f"test/{name}_{key}": scores[name][key] for key in ("r2", "mae", "rmse")}
    if run.protocol == "legacy":
        metrics["test/r2_positions"] = sums["model"].r2_positions()
    tracker.metrics(metrics)
    _write_json(folder / "metrics.json", metrics)
    _write_json(folder / "test_sums.json", {name: part.to_dict() for name, part in sums.items()})
    tracker.artifact(folder / "metrics.json")
    tracker.artifact(folder / "test_sums.json")
    if is_main_process():
        title = f"{run.label} on {run.window.name} ({run.protocol})"
        report.show(report.run_table(scores, task.spec.units, title))
    return metrics


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
        enable_checkpointing=bool(callbacks),
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
