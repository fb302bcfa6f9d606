"""Averaged weights against averages by hand; what is validated, kept and resumed; the schedules they go with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from sifscale.config import RunConfig
from sifscale.task import DownscalingTask

if TYPE_CHECKING:
    from conftest import Workplace

Weights = list[Tensor]
# batch norm has running means and a count of batches, which are no parameters
WORDS = (
    "model.norm=batch", "model.widths=[4,8]", "model.bottleneck=8", "trainer.patience=null", "crop.number=4",
    "trainer.batch_size=2",  # several steps an epoch
)  # fmt: skip


class Killed(Exception):
    """Stands for the end of the process, right after a checkpoint was written."""


class Watch(pl.Callback):
    """Weights after each step, and whether to be killed after an epoch."""

    def __init__(self, die_after: int | None = None) -> None:
        self.steps: list[Weights] = []
        self.epochs: list[Weights] = []
        self.rates: list[float] = []
        self.validated: list[Weights] = []
        self.die_after = die_after

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.steps.append(copied(pl_module))

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.last_validated = copied(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs.append(copied(pl_module))
        self.validated.append(self.last_validated)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.die_after is not None and trainer.current_epoch > self.die_after:
            raise Killed


def copied(module: torch.nn.Module) -> Weights:
    return [parameter.detach().clone() for parameter in module.parameters()]


def fitted(
    workplace: Workplace, folder: Path, *words: str, die_after: int | None = None
) -> tuple[RunConfig, DownscalingTask, Watch, dict[str, list[tuple[int, float]]]]:
    """A short training in which someone watches."""
    run, watch = workplace.config(*WORDS, *words), Watch(die_after)
    task, history = workplace.fitted(run, folder, watch)
    return run, task, watch, history


def same(a: Weights, b: Weights, tolerance: float = 0.0) -> bool:
    return all(torch.allclose(x, y, rtol=0, atol=tolerance) for x, y in zip(a, b, strict=True))


def test_swa_is_the_mean_of_the_last_quarter_of_the_epochs_and_is_what_is_validated(
    workplace: Workplace, tmp_path: Path
) -> None:
    words = ("trainer.epochs=8", "trainer.average=swa")
    _, task, watch, _ = fitted(workplace, tmp_path, *words)
    for epoch in range(8):
        first = min(epoch, 6)
        mean = [torch.stack(found).mean(dim=0) for found in zip(*watch.epochs[first : epoch + 1], strict=True)]
        assert same(watch.validated[epoch], mean, 1e-6), epoch
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert same(copied(task), watch.validated[best["epoch"]])


def test_ema_follows_step_by_step_and_is_what_is_validated_and_kept(
    workplace: Workplace, tmp_path: Path
) -> None:
    words = ("trainer.epochs=4", "trainer.average=ema", "trainer.average_decay=0.3")
    _, task, watch, history = fitted(workplace, tmp_path, *words)
    mean, by_step = watch.steps[0], []
    for number, weights in enumerate(watch.steps):
        decay = min(0.3, (1 + number) / (10 + number))
        mean = [decay * a + (1 - decay) * b for a, b in zip(mean, weights, strict=True)] if number else weights
        by_step.append(mean)
    steps = len(watch.steps) // 4
    for epoch in range(4):
        assert same(watch.validated[epoch], by_step[(epoch + 1) * steps - 1], 1e-6)
        assert not same(watch.validated[epoch], watch.epochs[epoch], 1e-6), "training goes on from its own weights"
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert same(copied(task), watch.validated[best["epoch"]])
    rmse = dict(history["val/rmse"])
    assert best["epoch"] == min(rmse, key=lambda epoch: rmse[epoch])
    assert torch.equal(task.offset, torch.tensor(task.spec.scaler.offset)[:, None, None]), "no average of constants"


@pytest.mark.parametrize("words", ["trainer.average=ema", "trainer.average=swa", "trainer.schedule=one_cycle"])
def test_a_killed_run_goes_on_to_the_same_bits(
    workplace: Workplace, tmp_path: Path, words: str
) -> None:
    long = ("trainer.epochs=8", words)
    _, unbroken, whole, history = fitted(workplace, tmp_path / "whole", *long)
    killed = tmp_path / "killed"
    with pytest.raises(Killed):
        fitted(workplace, killed, *long, die_after=6)  # swa has averaged once
    assert (killed / "checkpoints" / "last.ckpt").exists()
    resume = f"resume={killed}"
    _, task, rest, resumed_history = fitted(workplace, killed, *long, resume)
    assert len(rest.epochs) == 1 and resumed_history == history
    assert same(rest.epochs[-1], whole.epochs[-1]) and same(rest.validated[-1], whole.validated[-1])
    expected, found = unbroken.state_dict(), task.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_one_cycle_rises_to_the_learning_rate_and_falls_over_all_steps(
    workplace: Workplace, tmp_path: Path
) -> None:
    words = ("trainer.epochs=5", "trainer.schedule=one_cycle")
    run, _, watch, _ = fitted(workplace, tmp_path, *words)
    peak = watch.rates.index(max(watch.rates))
    assert max(watch.rates) == pytest.approx(run.trainer.learning_rate)
    assert watch.rates == sorted(watch.rates[: peak + 1]) + sorted(watch.rates[peak + 1 :], reverse=True)
    assert 0 < peak < len(watch.rates) / 2 and watch.rates[-1] < run.trainer.learning_rate / 1e3
