"""When a run's first step is done, how fast it goes, how long it waits for data, and how much memory it has needed."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch

from sifscale.datamodule import Batch
from sifscale.processes import peak_memory_mb
from sifscale.start import Start

log = logging.getLogger(__name__)


class Pace(pl.Callback):
    """Adds up, over the training batches that it sees, seconds of work and of waiting for the next batch.

    On a GPU, which works while Python goes on, single steps are not told apart, but their sum is: each epoch ends with
    scores that wait for it.
    """

    def __init__(self) -> None:
        self.samples, self.worked_s, self.waited_s = 0, 0.0, 0.0
        self._since = 0.0

    def metrics(self) -> dict[str, float]:
        """What of it goes to MLflow: samples a second, share (0..1) of waiting for data, and peak memory.

        Without validation and what else happens between epochs. ZeroDivisionError before any batch.
        """
        total = self.worked_s + self.waited_s
        return {
            "perf/samples_per_s": self.samples / total,
            "perf/data_wait_share": self.waited_s / total,
            "perf/peak_memory_mb": peak_memory_mb(),
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that goes on within an epoch does not start it."""
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on, time until the first batch is waiting."""
        self._since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The batch has come."""
        now = time.perf_counter()
        self.waited_s, self._since = self.waited_s + now - self._since, now

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """The batch is done."""
        now = time.perf_counter()
        self.worked_s, self._since = self.worked_s + now - self._since, now
        self.samples += len(batch["crop"])


class FirstStep(pl.Callback):
    """Ends the listing of a run's start with its first training step, and logs it; ``done`` from then on."""

    def __init__(self, start: Start) -> None:
        self.start, self.done = start, False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The first batch has come."""
        if not self.done:
            self.start.mark("first_batch")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """The first step is done, on a GPU too, which is waited for this once."""
        if self.done:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.start.mark("first_step")
        self.done = True
        if trainer.is_global_zero:
            log.info("%s", self.start)
