"""The state of a run saved within an epoch, so that a stopped one loses minutes and goes on as if it had not stopped.

Lightning keeps weights, optimiser, schedule and counts, and the loader how far it has come (`crop_batches`). Random
numbers need no state: they depend on seed, epoch and batch (`datamodule`). What is missing is the running loss.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from sifscale.datamodule import Batch
from sifscale.task import DownscalingTask
from sifscale.whole import take_name, written_beside

RUNNING_LOSS = "running_loss"  # key of a checkpoint: loss and weight so far, of all processes
ASKED_EVERY = 50  # batches, where there are several processes, which wait for one another when they decide


class WithinEpoch(pl.Callback):
    """Saves a checkpoint every so many ``minutes`` (None: never) as ``path``, where the ends of epochs save theirs too.

    After callbacks that change weights at the end of a batch. In every process: all decide alike.
    """

    def __init__(self, path: Path, minutes: float | None) -> None:
        self.path, self.minutes = path, minutes
        self._saved = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Another checkpoint is saved now."""
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save, unless the epoch ends and does so with its scores."""
        if self.minutes is None or trainer.is_last_batch or (trainer.world_size > 1 and (batch_idx + 1) % ASKED_EVERY):
            return
        if trainer.strategy.broadcast(time.monotonic() - self._saved >= 60 * self.minutes):
            with written_beside(self.path) as partial:
                trainer.save_checkpoint(partial)
                if trainer.is_global_zero:
                    take_name(partial, self.path)
            self._saved = time.monotonic()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the running loss where the epoch goes on; Lightning asks every process."""
        if isinstance(pl_module, DownscalingTask) and not trainer.is_last_batch:
            state = {name: value.clone() for name, value in _state(pl_module).items()}
            checkpoint[RUNNING_LOSS] = {n: trainer.strategy.reduce(v, reduce_op="sum") for n, v in state.items()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with the loss of all processes in the first one, as they are added up in the end."""
        if isinstance(pl_module, DownscalingTask) and trainer.is_global_zero:
            for name, value in checkpoint.get(RUNNING_LOSS, {}).items():
                setattr(pl_module.train_loss, name, value.to(pl_module.device))


def _state(task: DownscalingTask) -> dict[str, Tensor]:
    return {name: value for name, value in task.train_loss.metric_state.items() if isinstance(value, Tensor)}
