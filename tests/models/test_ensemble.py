"""An ensemble is the mean of its members, which learn side by side what each would learn alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from sifscale import fitting
from sifscale.config import RunConfig
from sifscale.conservation import block_means
from sifscale.datamodule import Batch, CropDataModule
from sifscale.models.ensemble import Ensemble
from sifscale.models.unet import UNet
from sifscale.task import DownscalingTask
from sifscale.tracking import RunLog
from sifscale.training import make_task, prepare_features, prepare_plans
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

SMALL = ("model.widths=[4,8]", "model.bottleneck=8", "trainer.optimiser=adamw", "trainer.schedule=constant")


def make_unet() -> UNet:
    """Not residual: a residual network starts with a head of zeros, whatever the rest of its weights."""
    return UNet(in_channels=3, factor=4, widths=(4, 8), bottleneck=8, norm="none", upsampling="bilinear",
                upsampling_relu=False, dropout=0.0, residual=False)  # fmt: skip


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(2, 1, 4, 4, generator=generator).repeat_interleave(4, -2).repeat_interleave(4, -1)
    return torch.randn(2, 3, 16, 16, generator=generator), coarse


def room(workplace: Workplace, *words: str) -> tuple[RunConfig, DownscalingTask, CropDataModule]:
    run = workplace.config(*SMALL, *words)
    torch.manual_seed(run.seed)
    features = prepare_features(run, open_or_build(run))
    plans = prepare_plans(run, features)
    data = CropDataModule(features, plans, batch_size=run.trainer.batch_size, seed=run.seed, augment=False)
    return run, make_task(run, features, plans), data


def test_members_differ_and_their_mean_is_the_prediction() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(make_unet, 3)
    alone = [member(*inputs()) for member in ensemble.members]
    assert not torch.allclose(alone[0], alone[1]) and not torch.allclose(alone[1], alone[2])
    each = ensemble.each(*inputs())
    assert each.shape == (3, 2, 1, 16, 16) and all(map(torch.equal, each, alone))
    torch.testing.assert_close(ensemble(*inputs()), (alone[0] + alone[1] + alone[2]) / 3)


def test_a_gradient_reaches_the_weights_of_all_members() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(make_unet, 2)
    ensemble(*inputs()).square().sum().backward()
    for member in ensemble.members:
        assert all(p.grad is not None and p.grad.any() for p in member.parameters())


@pytest.mark.parametrize("members", [0, 1])
def test_an_ensemble_of_less_than_two_is_refused(members: int) -> None:
    with pytest.raises(ValueError, match=f"needs 2 members or more, found {members}: take the model itself"):
        Ensemble(make_unet, members)


@pytest.mark.parametrize(
    "words",
    [("trainer.loss=mse",), ("trainer.loss=error_weighted", "trainer.weight_decay=0.1")],
)
def test_members_learn_together_what_each_learns_alone(workplace: Workplace, words: tuple[str, ...]) -> None:
    _, together, data = room(workplace, *words, "trainer.members=2", "model.residual=false")
    assert isinstance(together.model, Ensemble)
    alone = []
    for member in together.model.members:
        one = DownscalingTask.create(replace(together.spec, members=1), together.optimisation, False)
        one.model.load_state_dict(member.state_dict())
        alone.append(one)
    optimisers = [task.configure_optimizers() for task in (together, *alone)]
    before = [p.detach().clone() for p in together.parameters()]
    batches = list(data.train_dataloader())[:2] * 3
    for batch in batches:
        found = [stepped(*pair, batch) for pair in zip((together, *alone), optimisers, strict=True)]
        assert found[0] == pytest.approx(found[1] + found[2], rel=1e-5)
    assert not any(torch.equal(p, was) for p, was in zip(together.parameters(), before, strict=True))
    for member, one in zip(together.model.members, alone, strict=True):
        torch.testing.assert_close(member.state_dict(), one.model.state_dict(), rtol=1e-5, atol=1e-6)


def stepped(task: DownscalingTask, optimiser: torch.optim.Optimizer, batch: Batch) -> float:
    """One step on a batch; returns the loss before it."""
    task.train()
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
    loss = task.training_step(batch, 0)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    optimiser.step()
    return float(loss.detach())


@pytest.mark.parametrize("conservation", ["additive", "multiplicative", "softmax"])
def test_the_mean_of_members_conserves_as_each_of_them_does(workplace: Workplace, conservation: str) -> None:
    _, task, data = room(workplace, "trainer.members=2", f"conservation={conservation}")
    batch: dict[str, Any] = next(iter(data.test_dataloader()))
    with torch.no_grad():
        prediction = task.eval()(batch["predictors"], batch["coarse"], batch["valid"])
        free = task(batch["predictors"], batch["coarse"])
    means, counts = block_means(prediction, batch["valid"], 4)
    observed = batch["coarse"][..., ::4, ::4]
    torch.testing.assert_close(means[counts > 0], observed[counts > 0], rtol=1e-5, atol=1e-6)
    unequal, _ = block_means(free, batch["valid"], 4)
    assert float((unequal - observed)[counts > 0].abs().max()) > 1e-3


def test_an_ensemble_comes_back_from_its_checkpoint(workplace: Workplace, tmp_path: Path) -> None:
    run, task, data = room(workplace, "trainer.members=2", "trainer.epochs=1")
    fitting.fit(run, task, data, tmp_path, RunLog(None, ""))
    back = DownscalingTask.load_from_checkpoint(tmp_path / "checkpoints" / "best.ckpt", map_location="cpu")
    assert back.spec == task.spec and back.spec.members == 2 and isinstance(back.model, Ensemble)
    batch = next(iter(data.test_dataloader()))
    fields = batch["predictors"], batch["coarse"], batch["valid"]
    with torch.no_grad():
        assert torch.equal(back.eval()(*fields), task.eval()(*fields))
        first, second = back.model.each(*back._normal(*fields[:2]))
    assert not torch.allclose(first, second)
