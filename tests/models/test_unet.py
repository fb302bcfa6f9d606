"""The U-Net against its published size, a forward pass written out by hand, and residual learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sifscale.models import MODELS, parameter_count
from sifscale.models.interpolation import upsample
from sifscale.models.unet import UNet

SMALL: dict[str, Any] = {
    "in_channels": 3,
    "factor": 3,
    "widths": (4, 8),
    "bottleneck": 16,
    "norm": "none",
    "upsampling": "transposed",
    "upsampling_relu": True,
    "dropout": 0.0,
    "residual": True,
}


def small(**changes: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(**{**SMALL, **changes})


def batch(height: int = 13, width: int = 18, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randn(2, 1, -(-height // 3), -(-width // 3), generator=generator)
    coarse = blocks.repeat_interleave(3, -2).repeat_interleave(3, -1)[..., :height, :width]
    return torch.randn(2, channels, height, width, generator=generator), coarse


def test_original_size() -> None:
    model = MODELS["unet"](
        in_channels=6,
        factor=1,
        widths=(16, 32, 64, 128),
        bottleneck=256,
        norm="none",
        upsampling="transposed",
        upsampling_relu=True,
        dropout=0.0,
        residual=False,
    )
    assert parameter_count(model) == 1_941_537
    assert model.depth == 4
    assert model(torch.randn(1, 6, 40, 40), torch.randn(1, 1, 40, 40)).shape == (1, 1, 40, 40)


@pytest.mark.parametrize("relu", [True, False])
def test_forward_pass_written_out(relu: bool) -> None:
    model = small(residual=False, upsampling_relu=relu)
    predictors, coarse = batch(10, 12)  # 10 -> 5 -> 2: the second level is up-sampled from 4 to 5 rows
    w = iter(model.parameters())

    def block(x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = F.relu(F.conv2d(x, next(w), next(w), padding=1))
        return x

    first = block(predictors)
    second = block(F.max_pool2d(first, 2))
    deepest = block(F.max_pool2d(second, 2))
    ups = [(next(w), next(w)) for _ in range(2)]
    x = F.conv_transpose2d(deepest, *ups[0], stride=2)
    x = F.interpolate(F.relu(x) if relu else x, (5, 6), mode="bilinear", align_corners=False)
    x = block(torch.cat((x, second), 1))
    x = F.conv_transpose2d(x, *ups[1], stride=2)
    x = block(torch.cat((F.relu(x) if relu else x, first), 1))
    torch.testing.assert_close(model(predictors, coarse), F.conv2d(x, next(w), next(w)))
    assert next(w, None) is None


@pytest.mark.parametrize("height, width", [(4, 4), (13, 18), (7, 31)])
@pytest.mark.parametrize("upsampling", ["transposed", "bilinear", "nearest"])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_any_size_and_finite(norm: str, upsampling: str, height: int, width: int) -> None:
    output = small(norm=norm, upsampling=upsampling, residual=False)(*batch(height, width))
    assert output.shape == (2, 1, height, width)
    assert output.isfinite().all()


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_residual_starts_at_bilinear(norm: str) -> None:
    predictors, coarse = batch()
    assert torch.equal(small(norm=norm)(predictors, coarse), upsample(coarse, 3, "bilinear"))


def test_only_the_first_of_several_outputs_is_the_corrected_interpolation() -> None:
    predictors, coarse = batch()
    output = small(outputs=3)(predictors, coarse)
    assert torch.equal(output[:, :1], upsample(coarse, 3, "bilinear")) and not output[:, 1:].any()
    direct = small(outputs=3, residual=False)(predictors, coarse)
    assert direct.shape == (2, 3, 13, 18) and direct[:, 1:].any()


def test_direct_network_does_not_read_coarse() -> None:
    model = small(residual=False)
    predictors, coarse = batch()
    assert torch.equal(model(predictors, coarse), model(predictors, coarse + 1))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("upsampling", ["transposed", "bilinear", "nearest"])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_gradients_reach_every_parameter(norm: str, upsampling: str, residual: bool) -> None:
    model = small(norm=norm, upsampling=upsampling, residual=residual, kernel_size=5)
    predictors, coarse = batch()
    target = torch.randn(coarse.shape, generator=torch.Generator().manual_seed(2))
    if residual:  # at the start the zero last convolution stops all gradients but its own
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        F.mse_loss(model(predictors, coarse), target).backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()
        optimiser.zero_grad()
    F.mse_loss(model(predictors, coarse), target).backward()  # type: ignore[no-untyped-call]  # torch's own
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_dropout_only_acts_in_training() -> None:
    model = small(dropout=0.5, residual=False)
    predictors, coarse = batch()
    assert not torch.equal(model(predictors, coarse), model(predictors, coarse))
    model.eval()
    assert torch.equal(model(predictors, coarse), small(residual=False)(predictors, coarse))


def test_convolutions_per_block_count() -> None:
    # one more 3x3 convolution in each of five blocks: 9 c^2 weights and c offsets
    extra = sum(9 * c * c + c for c in (4, 8, 16, 8, 4))
    assert parameter_count(small(convolutions=3)) - parameter_count(small()) == extra


def test_levels_below_two_pixels_stay_at_one() -> None:
    for height, width in ((3, 18), (1, 1)):
        assert small()(*batch(height, width)).shape == (2, 1, height, width)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"widths": ()}, r"found \[\] and 16"),
        ({"bottleneck": 0}, r"found \[4, 8\] and 0"),
        ({"kernel_size": 4}, "kernel_size must be odd, found 4"),
        ({"convolutions": 0}, "convolutions must be at least 1 a block, found 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), found 1.0"),
        ({"norm": "layer"}, "unknown norm 'layer': choose one of none, batch, group"),
        ({"upsampling": "cubic"}, "unknown upsampling 'cubic': choose one of transposed, bilinear, nearest"),
    ],
)
def test_bad_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**change)
