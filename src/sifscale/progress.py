"""Lightning callbacks: metrics of each epoch to MLflow in one batch, and one progress bar a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from tqdm import tqdm

from sifscale.tracking import RunLog


class EpochLog(pl.Callback):
    """Logs train and validation metrics once an epoch, and keeps them as ``values`` (name -> [(epoch, value)]).

    State travels in the checkpoint, so that a resumed run has the whole history.
    """

    def __init__(self, tracker: RunLog, path: Path) -> None:
        self.tracker, self.path = tracker, path
        self.values: dict[str, list[tuple[int, float]]] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        scores["train/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        for name, value in scores.items():
            self.values.setdefault(name, []).append((epoch, value))
        if trainer.is_global_zero:
            self.tracker.metrics(scores, step=epoch)
            self.path.write_text(json.dumps(self.values))

    def at(self, epoch: int) -> dict[str, float]:
        """Validation scores of an epoch, empty where there was no validation."""
        scores = {name: dict(pairs).get(epoch) for name, pairs in self.values.items() if name.startswith("val/")}
        return {name: value for name, value in scores.items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        return {"values": {name: [list(pair) for pair in pairs] for name, pairs in self.values.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = {
            name: [(int(e), float(v)) for e, v in pairs] for name, pairs in state_dict["values"].items()
        }


class EpochBar(pl.Callback):
    """One bar over all epochs with the latest scores; short epochs make Lightning's bar a flicker."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar = tqdm(
            total=trainer.max_epochs, initial=trainer.current_epoch, unit="epoch", desc="training"
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        shown = ("train/loss", "val/rmse", "val/r2")
        self._bar.set_postfix(
            {n: f"{float(v):.4f}" for n, v in trainer.callback_metrics.items() if n in shown}
        )
        self._bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar.close()
