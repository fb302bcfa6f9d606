"""The SIFnet family: sizes, reach, residual learning."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sifscale.models import MODELS, parameter_count
from sifscale.models.interpolation import upsample
from sifscale.models.sifnet import SIFNet, Variant

COUNTS: dict[Variant, int] = {"benchmark": 594_753, "large": 2_963_329, "small": 10_993}
REACHES_PX: dict[Variant, int] = {"benchmark": 6, "large": 6, "small": 3}


def build(variant: Variant, residual: bool) -> SIFNet:
    torch.manual_seed(0)
    return SIFNet(in_channels=5, factor=3, variant=variant, residual=residual)


def batch(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randn(2, 1, -(-height // 3), -(-width // 3), generator=generator)
    coarse = blocks.repeat_interleave(3, -2).repeat_interleave(3, -1)[..., :height, :width]
    return torch.randn(2, 5, height, width, generator=generator), coarse


@pytest.mark.parametrize("variant, count", COUNTS.items())
def test_parameter_counts(variant: Variant, count: int) -> None:
    model = MODELS["sifnet"](in_channels=32, factor=3, variant=variant, residual=False)
    assert parameter_count(model) == count


def test_forward_pass_of_small_written_out() -> None:
    model = build("small", residual=False)
    predictors, coarse = batch(7, 11)
    w = iter(model.parameters())
    start = F.conv2d(predictors, next(w), next(w))
    x = F.relu(F.conv2d(start, next(w), next(w), padding=1))
    x = F.relu(F.conv2d(x, next(w), next(w), padding=1) + start)
    x = F.conv2d(x, next(w), next(w), padding=1)
    x = F.conv2d(F.conv2d(x, next(w), next(w)), next(w), next(w))
    torch.testing.assert_close(model(predictors, coarse), x)


def test_forward_pass_of_benchmark_written_out() -> None:
    model = build("benchmark", residual=False)
    predictors, coarse = batch(7, 11)
    w = iter(model.parameters())

    def pair(x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.conv2d(x, next(w), next(w), padding=1))
        return F.conv2d(x, next(w), next(w), padding=1)

    x = F.conv2d(predictors, next(w), next(w))
    x = F.relu(x + pair(x))
    x = F.relu(x + pair(x))
    x = F.relu(F.conv2d(pair(x), next(w), next(w)))
    torch.testing.assert_close(model(predictors, coarse), F.conv2d(x, next(w), next(w)))


@pytest.mark.parametrize("variant, reach_px", REACHES_PX.items())
def test_reach(variant: Variant, reach_px: int) -> None:
    model = build(variant, residual=False)
    predictors = torch.randn(1, 5, 17, 17, requires_grad=True)
    model(predictors, torch.zeros(1, 1, 17, 17))[0, 0, 8, 8].backward()
    assert predictors.grad is not None
    read = predictors.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (int(read.min()), int(read.max())) == (8 - reach_px, 8 + reach_px)


@pytest.mark.parametrize("variant", COUNTS)
def test_residual_starts_at_bilinear_for_odd_sizes(variant: Variant) -> None:
    predictors, coarse = batch(7, 11)
    output = build(variant, residual=True)(predictors, coarse)
    assert output.shape == (2, 1, 7, 11)
    assert torch.equal(output, upsample(coarse, 3, "bilinear"))


@pytest.mark.parametrize("variant", COUNTS)
def test_only_the_first_of_several_outputs_is_the_corrected_interpolation(variant: Variant) -> None:
    predictors, coarse = batch(7, 11)
    output = SIFNet(in_channels=5, factor=3, variant=variant, residual=True, outputs=2)(predictors, coarse)
    assert torch.equal(output[:, :1], upsample(coarse, 3, "bilinear"))
    assert output.shape == (2, 2, 7, 11) and not output[:, 1:].any()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("variant", COUNTS)
def test_gradients_reach_every_parameter(variant: Variant, residual: bool) -> None:
    model = build(variant, residual)
    predictors, coarse = batch(7, 11)
    target = torch.randn(coarse.shape, generator=torch.Generator().manual_seed(2))
    if residual:  # at the start the zero last convolution stops all gradients but its own
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        F.mse_loss(model(predictors, coarse), target).backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()
        optimiser.zero_grad()
    F.mse_loss(model(predictors, coarse), target).backward()  # type: ignore[no-untyped-call]  # torch's own
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="'huge': choose one of benchmark, large, small"):
        SIFNet(in_channels=5, factor=3, variant="huge", residual=True)  # type: ignore[arg-type]  # under test
