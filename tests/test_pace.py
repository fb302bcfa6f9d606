"""How fast a run goes: work and waiting add up to the time that passed, and are told apart."""

from __future__ import annotations

import time
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from sifscale.pace import Pace
from sifscale.processes import peak_memory_mb

WAIT_S, WORK_S, BATCHES = 0.02, 0.06, 5


class SlowBatches(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Any:
        for number in range(BATCHES):
            time.sleep(WAIT_S)
            yield {"crop": torch.full((3,), number)}


class SlowTask(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(WORK_S)
        return self.weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_work_and_waiting_are_told_apart() -> None:
    pace = Pace()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[pace],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit(SlowTask(), DataLoader(SlowBatches(), batch_size=None))
    passed = time.perf_counter() - started
    assert pace.samples == 2 * BATCHES * 3
    assert 2 * BATCHES * WORK_S <= pace.worked_s and 2 * (BATCHES - 1) * WAIT_S <= pace.waited_s
    assert pace.worked_s + pace.waited_s <= passed
    found = pace.metrics()
    assert found["perf/samples_per_s"] == pytest.approx(pace.samples / (pace.worked_s + pace.waited_s))
    assert found["perf/data_wait_share"] == pytest.approx(pace.waited_s / (pace.worked_s + pace.waited_s))


def test_peak_memory_never_falls() -> None:
    held = torch.ones(25_000_000)
    most = peak_memory_mb()
    assert most > held.numel() * 4 / 1e6
    del held
    assert peak_memory_mb() >= most
