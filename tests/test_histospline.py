"""Histosplines against scipy's cubic spline through a cumulative sum, and against dense least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from sifscale.conservation import block_means
from sifscale.histospline import coefficients, field_of, mask_weights


def full(means: NDArray[np.float64], factor: int) -> torch.Tensor:
    values = torch.tensor(means)[None, None]
    return coefficients(values, torch.full_like(values, factor**2), None, factor)


def test_along_an_axis_it_is_the_derivative_of_the_cubic_spline_through_the_cumulative_sum() -> None:
    means, factor = np.random.default_rng(0).normal(size=9), 400
    found = field_of(full(means[None], factor), factor).numpy()[0, 0, 0]
    at = (np.arange(9 * factor) + 0.5) / factor
    spline = CubicSpline(np.arange(10), np.concatenate([[0], np.cumsum(means)]), bc_type=((2, 0.0), (2, 0.0)))
    np.testing.assert_allclose(found, spline(at, 1), atol=1e-4)


@settings(max_examples=30)
@given(height=st.integers(1, 9), width=st.integers(1, 9), factor=st.integers(1, 6), seed=st.integers(0, 99))
def test_full_blocks_have_their_means(
    height: int, width: int, factor: int, seed: int
) -> None:
    means = np.random.default_rng(seed).normal(size=(height, width))
    found = field_of(full(means, factor), factor)
    averaged, _ = block_means(found, torch.ones_like(found, dtype=torch.bool), factor)
    np.testing.assert_allclose(averaged[0, 0], means, atol=1e-12)


def test_a_small_field_is_nearly_the_one_of_least_squared_slope_by_dense_algebra() -> None:
    """Of all fields of pixels with these means along an axis, found by Lagrange multipliers."""
    means, factor = np.random.default_rng(1).normal(size=6), 20
    size = 6 * factor
    slope = np.diff(np.eye(size), axis=0)
    averages = np.kron(np.eye(6), np.full(factor, 1 / factor))
    system = np.block([[slope.T @ slope, averages.T], [averages, np.zeros((6, 6))]])
    best = np.linalg.solve(system, np.concatenate([np.zeros(size), means]))[:size]
    found = field_of(full(means[None], factor), factor).numpy()[0, 0, 0]
    np.testing.assert_allclose(found, best, atol=0.02 * np.abs(means).max())


@pytest.mark.parametrize("factor", [3, 4, 10])
def test_partly_valid_blocks_nearly_have_their_means_and_full_weights_are_those_of_full_blocks(factor: int) -> None:
    rng = np.random.default_rng(2)
    means = torch.tensor(rng.normal(size=(1, 1, 8, 9)))
    valid = torch.tensor(rng.random((1, 1, 8 * factor, 9 * factor)) < 0.5)
    valid[..., : factor // 2, :] = False  # as along a coast
    weights = mask_weights(valid, factor, torch.float64)
    _, counts = block_means(torch.zeros_like(valid, dtype=torch.float64), valid, factor)
    found = coefficients(means, counts, weights, factor)
    averaged, _ = block_means(field_of(found, factor), valid, factor)
    before = coefficients(means, counts, None, factor)  # as if blocks were full
    unswept, _ = block_means(field_of(before, factor), valid, factor)
    left, left_before = (float((part - means).square().mean().sqrt()) for part in (averaged, unswept))
    assert left < 0.02 and left < 0.2 * left_before
    by_weights = sum(
        weights[:, 3 * y + x] * found[:, 0, y : y + 8, x : x + 9] for y in range(3) for x in range(3)
    )
    np.testing.assert_allclose(by_weights, averaged[:, 0], atol=1e-12)


def test_blocks_without_a_mean_take_up_what_is_about_them() -> None:
    means = torch.arange(8.0, dtype=torch.float64).repeat(8, 1)[None, None]
    counts = torch.ones_like(means)
    counts[..., 3:5, 3:5] = 0
    found = field_of(coefficients(means, counts, None, 1), 1)
    np.testing.assert_allclose(found[..., 0:3, :], means[..., 0:3, :], atol=1e-12)
    assert ((found[..., 3:5, 3:5] > 1.5) & (found[..., 3:5, 3:5] < 5.5)).all()
    nothing = coefficients(means, torch.zeros_like(means), None, 4)
    assert (nothing == 0).all()


@settings(max_examples=20)
@given(y=st.integers(0, 3), x=st.integers(0, 4), factor=st.integers(1, 7), seed=st.integers(0, 99))
def test_a_cut_has_the_bits_of_the_whole(y: int, x: int, factor: int, seed: int) -> None:
    whole = full(np.random.default_rng(seed).normal(size=(6, 8)), factor)
    cut = field_of(whole[..., y : y + 5, x : x + 6], factor)
    rows, columns = slice(y * factor, (y + 3) * factor), slice(x * factor, (x + 4) * factor)
    np.testing.assert_array_equal(cut, field_of(whole, factor)[..., rows, columns])
