"""A run that is stopped within an epoch goes on to the same bits: weights, averages, schedule and running loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytorch_lightning as pl
import torch

from sifscale.task import DownscalingTask

if TYPE_CHECKING:
    from conftest import Workplace

History = dict[str, list[tuple[int, float]]]
# one small batch norm network, whose running means are no parameters; four batches an epoch or a few more
WORDS = (
    "model.norm=batch",
    "model.widths=[4,8]",
    "model.bottleneck=8",
    "trainer.epochs=3",
    "trainer.batch_size=2",
    "trainer.schedule=one_cycle",
    "trainer.average=ema",
)
EACH_BATCH = "trainer.checkpoint_minutes=1e-9"


class Killed(Exception):
    """Stands for the end of the process."""


class Die(pl.Callback):
    """Before a batch of an epoch."""

    def __init__(self, at: tuple[int, int] | None) -> None:
        self.at, self.batches = at, list[tuple[int, int]]()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            raise Killed
        self.batches.append((trainer.current_epoch, batch_idx))


def fitted(
    workplace: Workplace, folder: Path, *words: str, die_at: tuple[int, int] | None = None
) -> tuple[DownscalingTask, History, list[tuple[int, int]]]:
    """A short training, which may die."""
    die = Die(die_at)
    task, history = workplace.fitted(workplace.config(*WORDS, *words), folder, die)
    return task, history, die.batches


@pytest.fixture(scope="module")
def unbroken(
    workplace: Workplace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DownscalingTask, History, list[tuple[int, int]], Path]:
    folder = tmp_path_factory.mktemp("unbroken")
    return *fitted(workplace, folder), folder


def test_a_run_stopped_twice_within_epochs_goes_on_to_the_same_bits(
    workplace: Workplace,
    unbroken: tuple[DownscalingTask, History, list[tuple[int, int]], Path],
    tmp_path: Path,
) -> None:
    expected, history, batches, folder = unbroken
    last = batches[-1][1]
    assert last >= 3, "else there is no inside of an epoch"
    resume = (EACH_BATCH, f"resume={tmp_path}")
    with pytest.raises(Killed):
        fitted(workplace, tmp_path, EACH_BATCH, die_at=(0, 2))
    with pytest.raises(Killed):
        fitted(workplace, tmp_path, *resume, die_at=(1, last))
    task, found, rest = fitted(workplace, tmp_path, f"resume={tmp_path}")

    assert rest == [(1, last), *((2, number) for number in range(last + 1))]
    assert found == history, "train/loss is that of whole epochs"
    states = [torch.load(of / "checkpoints" / "last.ckpt", weights_only=True) for of in (folder, tmp_path)]
    for name in ("state_dict", "current_model_state"):
        assert all(torch.equal(states[0][name][key], states[1][name][key]) for key in states[0][name])
    assert all(torch.equal(value, task.state_dict()[key]) for key, value in expected.state_dict().items())
    assert not [path.name for path in (tmp_path / "checkpoints").iterdir() if path.suffix != ".ckpt"]


def test_nothing_is_saved_within_an_epoch_before_its_time_or_where_it_is_not_asked_for(
    workplace: Workplace, tmp_path: Path
) -> None:
    for minutes in ("10", "null"):
        with pytest.raises(Killed):
            fitted(workplace, tmp_path, f"trainer.checkpoint_minutes={minutes}", die_at=(0, 2))
        assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
