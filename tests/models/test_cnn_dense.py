"""The dense CNN: size, layout of its output, refusals."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sifscale.models import MODELS, parameter_count
from sifscale.models.cnn_dense import CNNDense


def test_original_size() -> None:
    model = MODELS["cnn_dense"](in_channels=4, factor=1, size=40)
    assert parameter_count(model) == 2_553_248
    assert model(torch.randn(2, 4, 40, 40), torch.zeros(2, 1, 40, 40)).shape == (2, 1, 40, 40)


def test_forward_pass_written_out() -> None:
    model = CNNDense(in_channels=3, factor=2, size=16)
    x = predictors = torch.randn(2, 3, 16, 16)
    w = iter(model.parameters())
    for _ in range(3):
        x = F.max_pool2d(F.relu(F.conv2d(x, next(w), next(w), padding=1)), 2)
    x = F.relu(F.linear(x.flatten(1), next(w), next(w)))
    x = F.linear(x, next(w), next(w)).reshape(2, 1, 16, 16)
    torch.testing.assert_close(model(predictors, torch.zeros(2, 1, 16, 16)), x)


def test_several_outputs_are_channels() -> None:
    model = CNNDense(in_channels=3, factor=2, size=16, outputs=3)
    assert model(torch.randn(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)).shape == (2, 3, 16, 16)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model = CNNDense(in_channels=3, factor=2, size=16)
    model(torch.randn(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("size", [0, -8, 7])
def test_size_must_be_at_least_8(size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 8 pixels, found {size}"):
        CNNDense(in_channels=3, factor=2, size=size)


def test_other_crop_sizes_are_refused_with_the_fix() -> None:
    model = CNNDense(in_channels=3, factor=2, size=16)
    with pytest.raises(ValueError, match="crops of 16 x 16 pixels, found 16 x 24: give crops of that size"):
        model(torch.randn(1, 3, 16, 24), torch.zeros(1, 1, 16, 24))
