"""The listing of a run's start: parts follow each other without a gap, and the first step is the last of them."""

from __future__ import annotations

import time
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from sifscale.pace import FirstStep
from sifscale.start import Start


class Task(pl.LightningModule):
    """Learns nothing, from batches of crop numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Crops(Dataset[dict[str, torch.Tensor]]):
    """Three batches of three crops."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"crop": torch.full((3,), number)}


def test_parts_are_all_the_time_between_the_first_and_the_last_mark() -> None:
    before = time.perf_counter()
    Start()  # so that the next one is not the first of its process
    start, began = Start(), time.perf_counter()
    for part in ("cube", "features", "cube"):
        time.sleep(0.01)
        start.mark(part)
    ended = time.perf_counter()
    assert list(start.parts) == ["cube", "features"] and start.parts["cube"] >= 0.02
    assert ended - began - 1e-3 <= start.total_s <= ended - before
    assert 0 <= start.processor_s < start.total_s + 1


def test_only_the_first_run_of_a_process_had_a_command_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sifscale.start._starts", iter(range(2)))
    first, second = Start(), Start()
    assert list(first.parts) == ["command"] and second.parts == {}
    first.mark("imports")
    assert first.processor_s >= first.parts["command"] > 0


def test_the_listing_ends_with_the_first_step_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sifscale")
    Start()
    first = FirstStep(Start())
    assert not first.done
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[first],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Task(), DataLoader(Crops(), batch_size=None))
    assert first.done and list(first.start.parts) == ["first_batch", "first_step"]
    assert [record.getMessage() for record in caplog.records if record.name == "sifscale.pace"] == [str(first.start)]
    found = first.start.metrics()
    assert set(found) == {f"start/{part}_s" for part in ("first_batch", "first_step", "total", "processor")}
    assert found["start/total_s"] == pytest.approx(found["start/first_batch_s"] + found["start/first_step_s"])
    assert str(first.start).startswith("first training step after ") and "first batch " in str(first.start)
