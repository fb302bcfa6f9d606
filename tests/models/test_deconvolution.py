"""The linear filter against least squares written out pixel by pixel, and what any such filter must do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sifscale.models.deconvolution import Deconvolution
from sifscale.models.interpolation import upsample
from sifscale.models.regression import Fields

Field = NDArray[np.float64]


def fields(height: int, width: int, factor: int, seed: int) -> Fields:
    rng = np.random.default_rng(seed)
    blocks = rng.normal(size=(2, 1, -(-height // factor), -(-width // factor)))
    coarse = torch.from_numpy(np.kron(blocks, np.ones((factor, factor)))[..., :height, :width].copy())
    target = coarse + torch.from_numpy(rng.normal(size=coarse.shape))
    counted = torch.from_numpy(rng.random(coarse.shape) < 0.8)
    return Fields(coarse, coarse, torch.where(counted, target, torch.nan), counted)


def model(factor: int, kernel: int, *strengths: float) -> Deconvolution:
    return Deconvolution(in_channels=1, factor=factor, kernel=kernel, strengths=strengths).double()


def around(coarse: Field, y: int, x: int, factor: int, kernel: int) -> Field:
    """Cells around the one of a pixel less that one, the edge value beyond the border."""
    cells, reach = coarse[::factor, ::factor], kernel // 2
    wide = np.pad(cells, reach, mode="edge")
    row, column = y // factor, x // factor
    return (wide[row : row + kernel, column : column + kernel] - cells[row, column]).ravel()


@pytest.mark.parametrize(("height", "width", "factor", "kernel"), [(21, 24, 3, 3), (16, 17, 2, 5), (14, 15, 1, 3)])
def test_it_is_ridge_regression_for_each_place_in_the_cell(height: int, width: int, factor: int, kernel: int) -> None:
    part, found, strength = fields(height, width, factor, 0), model(factor, kernel, 0.1), 0.1
    found.fit([part], [], 0)
    predicted = found(part.predictors, part.coarse)
    bilinear = upsample(part.coarse, factor, "bilinear")
    for place in range(factor**2):
        at = [
            (b, y, x)
            for b, _, y, x in np.argwhere(np.ones(part.target.shape))
            if y % factor * factor + x % factor == place
        ]
        features = np.array([around(part.coarse[b, 0].numpy(), y, x, factor, kernel) for b, y, x in at])
        known = np.array([bool(part.counted[b, 0, y, x]) for b, y, x in at])
        residual = np.array([float((part.target - bilinear)[b, 0, y, x]) for b, y, x in at])
        gram = features[known].T @ features[known]
        penalty = np.diag(np.where(gram.diagonal() > 0, strength * gram.diagonal(), 1))
        weights = np.linalg.solve(gram + penalty, features[known].T @ residual[known])
        got = [float((predicted - bilinear)[b, 0, y, x]) for b, y, x in at]
        np.testing.assert_allclose(got, features @ weights, atol=1e-5)


@given(st.integers(4, 14), st.integers(4, 14), st.integers(1, 4), st.floats(-5, 5), st.floats(0.1, 9))
def test_it_keeps_constants_and_follows_the_units(height: int, width: int, factor: int, add: float, by: float) -> None:
    part, found = fields(height, width, factor, 1), model(factor, 3, 0.01)
    found.fit([part], [], 0)
    with torch.no_grad():
        moved = found(part.predictors, part.coarse * by + add)
        torch.testing.assert_close(moved, found(part.predictors, part.coarse) * by + add)


def test_a_known_blur_of_smooth_cells_is_undone() -> None:
    """coarse.method=moving_mean: the task of the original study is linear, and a filter does most of it."""
    rng = torch.Generator().manual_seed(0)
    truth = torch.randn(4, 1, 60, 60, generator=rng).double()
    for _ in range(3):
        truth = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    coarse = torch.nn.functional.avg_pool2d(truth, 3, 1, 1, count_include_pad=False)
    part = Fields(coarse, coarse, truth, torch.ones_like(truth, dtype=torch.bool))
    found = model(1, 13, 1e-6)
    found.fit([part], [], 0)
    inside = np.s_[..., 6:-6, 6:-6]  # at the border the kernel reaches out of the field
    left = ((found(coarse, coarse) - truth)[inside] ** 2).mean()
    assert left < 0.1 * ((coarse - truth)[inside] ** 2).mean()


def test_before_it_is_fitted_it_is_bilinear_and_an_even_kernel_is_refused() -> None:
    part = fields(9, 9, 3, 0)
    assert torch.equal(model(3, 3, 0.1)(part.predictors, part.coarse), upsample(part.coarse, 3, "bilinear"))
    with pytest.raises(ValueError, match="kernel must be odd"):
        model(3, 4, 0.1)
