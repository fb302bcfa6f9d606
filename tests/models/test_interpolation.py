"""Interpolation against scipy, a written-out cubic convolution and numpy's kron, cut blocks included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from sifscale.models import MODELS
from sifscale.models.interpolation import Interpolation, Mode, upsample

MODES: tuple[Mode, ...] = ("nearest", "bilinear", "bicubic")
sizes = st.integers(1, 23)


def block_values(height: int, width: int, factor: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(-(-height // factor), -(-width // factor)))


def piecewise_constant(blocks: NDArray[np.float64], factor: int, height: int, width: int) -> torch.Tensor:
    field = np.kron(blocks, np.ones((factor, factor)))[:height, :width]
    return torch.from_numpy(field)[None, None]


def keys_matrix(blocks: int, factor: int, pixels: int) -> NDArray[np.float64]:
    """Weights (pixel, block) of cubic convolution with a = -0.75 and the edge value repeated outside."""
    a = -0.75
    weights = np.zeros((pixels, blocks))
    for pixel in range(pixels):
        centre = (pixel + 0.5) / factor - 0.5
        for block in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d = abs(centre - block)
            if d <= 1:
                weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
            else:
                weight = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            weights[pixel, min(max(block, 0), blocks - 1)] += weight
    return weights


@settings(deadline=None, max_examples=60)
@given(height=sizes, width=sizes, factor=st.integers(1, 7), seed=st.integers(0, 99))
def test_bilinear_is_scipy_linear_between_block_centres(
    height: int, width: int, factor: int, seed: int
) -> None:
    blocks = block_values(height, width, factor, seed)
    rows, columns = ((np.arange(n) + 0.5) / factor - 0.5 for n in (height, width))
    expected = map_coordinates(blocks, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest")
    found = upsample(piecewise_constant(blocks, factor, height, width), factor, "bilinear")[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(height=sizes, width=sizes, factor=st.integers(2, 7), seed=st.integers(0, 99))
def test_bicubic_is_keys_cubic_convolution(height: int, width: int, factor: int, seed: int) -> None:
    blocks = block_values(height, width, factor, seed)
    down, across = (
        keys_matrix(n, factor, pixels) for n, pixels in zip(blocks.shape, (height, width), strict=True)
    )
    found = upsample(piecewise_constant(blocks, factor, height, width), factor, "bicubic")[0, 0]
    np.testing.assert_allclose(found.numpy(), down @ blocks @ across.T, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 3, 10, 41, 47])
def test_nearest_gives_the_piecewise_constant_field_back(factor: int) -> None:
    coarse = piecewise_constant(block_values(197, 101, factor), factor, 197, 101).float()
    assert torch.equal(upsample(coarse, factor, "nearest"), coarse)


@pytest.mark.parametrize("mode", MODES)
def test_factor_one_returns_coarse(mode: Mode) -> None:
    coarse = torch.randn(2, 1, 5, 7)
    assert torch.equal(upsample(coarse, 1, mode), coarse)


@pytest.mark.parametrize("mode", MODES)
def test_models_by_name_interpolate_and_have_no_parameters(mode: Mode) -> None:
    coarse = piecewise_constant(block_values(11, 7, 3), 3, 11, 7)
    model = MODELS[mode](in_channels=4, factor=3)
    assert torch.equal(model(torch.randn(1, 4, 11, 7), coarse), upsample(coarse, 3, mode))
    assert not list(model.parameters())


def test_identity_returns_coarse() -> None:
    coarse = torch.randn(2, 1, 5, 7)
    assert MODELS["identity"](in_channels=4, factor=3)(torch.randn(2, 4, 5, 7), coarse) is coarse


def test_bad_factor_and_mode_are_refused() -> None:
    with pytest.raises(ValueError, match="factor must be at least 1, found 0"):
        upsample(torch.zeros(1, 1, 4, 4), 0, "bilinear")
    with pytest.raises(ValueError, match="'lanczos': choose one of nearest, bilinear, bicubic"):
        Interpolation(in_channels=1, factor=2, mode="lanczos")  # type: ignore[arg-type]  # the fault under test
