"""Grids and block means, against brute force, scikit-image and SciPy."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import block_reduce

from sifscale.grid import Grid, block_mean, block_repeat, fill_nearest, moving_mean, pad_to_multiple

FIELDS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=9),
    elements=st.one_of(st.just(np.nan), st.floats(-10, 10)),
)


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an all-NaN block must be silent
        yield


def mean_of_valid(pixels: NDArray[Any]) -> float:
    valid = pixels[~np.isnan(pixels)]
    return float(valid.mean()) if valid.size else np.nan


def test_centres_and_refine() -> None:
    grid = Grid("EPSG:4326", -101.0, 50.0, 0.5, 0.25, 3, 2)
    np.testing.assert_allclose(grid.x, [-100.75, -100.25])
    np.testing.assert_allclose(grid.y, [49.875, 49.625, 49.375])
    fine = grid.refine(3)
    assert (fine.height, fine.width, fine.west, fine.north) == (9, 6, -101.0, 50.0)
    np.testing.assert_allclose(fine.x.reshape(-1, 3).mean(1), grid.x)
    np.testing.assert_allclose(fine.y.reshape(-1, 3).mean(1), grid.y)


@pytest.mark.parametrize("fault", [{"dx": 0.0}, {"dy": -1.0}, {"height": 0}, {"width": -2}])
def test_grid_refuses_impossible_sizes(fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs dx, dy, height and width above 0"):
        replace(Grid("EPSG:4326", 0, 0, 1, 1, 1, 1), **fault)


@given(data=st.data(), height=st.integers(2, 12), width=st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_from_centres_finds_the_grid_again(data: st.DataObject, height: int, width: int) -> None:
    scale = data.draw(st.floats(1e-3, 1e4))
    west, north = data.draw(st.floats(-200, 200)) * scale, data.draw(st.floats(-90, 90)) * scale
    grid = Grid("EPSG:4326", west, north, 0.7 * scale, 1.1 * scale, height, width)
    keep = data.draw(hnp.arrays(np.bool_, (height, width)))
    # One whole row and column, so that the step can be known; the rest may be missing.
    keep[data.draw(st.integers(0, height - 1))], keep[:, data.draw(st.integers(0, width - 1))] = True, True
    row, column = np.nonzero(keep)
    order = data.draw(st.permutations(range(len(row))))
    row, column = row[order], column[order]
    noise = data.draw(hnp.arrays(np.float64, (2, len(row)), elements=st.floats(-2e-3, 2e-3)))
    x, y = grid.x[column] + noise[0] * grid.dx, grid.y[row] + noise[1] * grid.dy

    found, found_row, found_column, off_grid = Grid.from_centres(x, y, "EPSG:4326", 0.01)

    assert (found.height, found.width) == (height, width) and not off_grid.any()
    np.testing.assert_array_equal(found_row, row)
    np.testing.assert_array_equal(found_column, column)
    np.testing.assert_allclose(found.x, grid.x, rtol=0, atol=0.01 * grid.dx)
    np.testing.assert_allclose(found.y, grid.y, rtol=0, atol=0.01 * grid.dy)


@pytest.mark.parametrize("shift_px", [0.02, 0.3, 0.5, 0.77])
def test_from_centres_reports_points_off_the_grid(shift_px: float) -> None:
    grid = Grid("EPSG:4326", -100.0, 50.0, 0.046, 0.063, 12, 15)
    x, y = (a.ravel() for a in np.meshgrid(grid.x, grid.y))
    x[40] += shift_px * grid.dx
    found, row, column, off_grid = Grid.from_centres(x, y, grid.crs, 0.01)
    assert np.flatnonzero(off_grid).tolist() == [40]
    assert (row[40], column[40]) == (0, 0)
    assert (found.height, found.width) == (12, 15)
    assert found.dx == pytest.approx(grid.dx, rel=1e-3)


@pytest.mark.parametrize("hole", [1, 7, 400])
def test_from_centres_with_missing_rows_and_columns(hole: int) -> None:
    columns = np.concatenate([np.arange(4), np.arange(4) + 4 + hole])
    x, y = (a.ravel() for a in np.meshgrid(columns * 926.6, np.array([0, -2, -3, -7]) * 926.6))
    grid, row, column, off_grid = Grid.from_centres(x, y, "EPSG:32615", 0.01)
    assert (grid.height, grid.width) == (8, 8 + hole) and not off_grid.any()
    assert (grid.dx, grid.dy) == pytest.approx((926.6, 926.6))
    assert sorted(set(column)) == columns.tolist() and sorted(set(row)) == [0, 2, 3, 7]


def test_from_centres_without_a_grid() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no regular step along x"):
        Grid.from_centres(rng.random(50), rng.random(50), "EPSG:4326", 0.01)
    with pytest.raises(ValueError, match="no regular step along y"):
        Grid.from_centres(np.arange(4.0), np.ones(4), "EPSG:4326", 0.01)
    with pytest.raises(ValueError, match="NaN or infinite"):
        Grid.from_centres(np.array([0, np.nan]), np.ones(2), "EPSG:4326", 0.01)


def test_locate_continues_the_grid_and_marks_nan() -> None:
    grid = Grid("EPSG:4326", 0.0, 0.0, 1.0, 1.0, 2, 2)
    row, column, off_grid = grid.locate(np.array([-0.5, 0.7, np.nan]), np.array([-3.5, -0.5, -0.5]))
    assert (row[0], column[0]) == (3, -1)
    assert off_grid.tolist() == [False, True, True]


@given(field=FIELDS, factor=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_block_mean_is_the_mean_of_each_block(field: NDArray[np.float64], factor: int) -> None:
    mean = block_mean(field, factor)
    height, width = field.shape[-2:]
    assert mean.shape == (*field.shape[:-2], -(-height // factor), -(-width // factor))
    for index in np.ndindex(mean.shape):
        *lead, i, j = index
        block = field[(*lead, slice(i * factor, (i + 1) * factor), slice(j * factor, (j + 1) * factor))]
        np.testing.assert_allclose(mean[index], mean_of_valid(block), atol=1e-12)


def test_block_mean_agrees_with_scikit_image_and_keeps_the_dtype() -> None:
    field = np.random.default_rng(1).random((2, 12, 9))
    reduce: Any = block_reduce  # scikit-image has no types
    np.testing.assert_allclose(block_mean(field, 3), reduce(field, (1, 3, 3), np.mean))
    assert block_mean(field.astype(np.float32), 3).dtype == np.float32
    integers: Any = np.arange(16).reshape(4, 4)
    assert block_mean(integers, 2).tolist() == [[2.5, 4.5], [10.5, 12.5]]


@given(coarse=FIELDS, factor=st.integers(1, 4), data=st.data())
@settings(max_examples=60, deadline=None)
def test_block_repeat_inverts_block_mean(coarse: NDArray[Any], factor: int, data: st.DataObject) -> None:
    height, width = (n * factor - data.draw(st.integers(0, factor - 1)) for n in coarse.shape[-2:])
    repeated = block_repeat(coarse, factor, height, width)
    assert repeated.shape[-2:] == (height, width)
    np.testing.assert_allclose(block_mean(repeated, factor), coarse, rtol=1e-12)


@given(field=FIELDS, factor=st.sampled_from([1, 3, 5]))
@settings(max_examples=60, deadline=None)
def test_moving_mean_is_the_mean_of_the_neighbourhood(field: NDArray[np.float64], factor: int) -> None:
    mean = moving_mean(field, factor)
    reach = factor // 2
    for index in np.ndindex(field.shape):
        *lead, i, j = index
        rows, columns = (slice(max(k - reach, 0), k + reach + 1) for k in (i, j))
        window = field[(*lead, rows, columns)]
        expected = np.nan if np.isnan(field[index]) else mean_of_valid(window)
        np.testing.assert_allclose(mean[index], expected, atol=1e-12)


def test_moving_mean_agrees_with_scipy_inside_and_keeps_the_dtype() -> None:
    field = np.random.default_rng(2).random((20, 30))
    inside = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(moving_mean(field, 5)[inside], ndimage.uniform_filter(field, 5)[inside])
    assert moving_mean(field.astype(np.float32), 3).dtype == np.float32


@given(field=FIELDS)
@settings(max_examples=60, deadline=None)
def test_fill_nearest_takes_the_nearest_pixel(field: NDArray[np.float64]) -> None:
    layers = field.reshape(-1, *field.shape[-2:])
    if np.isnan(layers).all((1, 2)).any():
        with pytest.raises(ValueError, match="no finite pixel"):
            fill_nearest(field)
        return
    before = field.copy()
    filled = fill_nearest(field)
    np.testing.assert_array_equal(field, before)
    for layer, result in zip(layers, filled.reshape(layers.shape), strict=True):
        rows, columns = np.nonzero(~np.isnan(layer))
        for i, j in np.ndindex(layer.shape):
            distance = (rows - i) ** 2 + (columns - j) ** 2
            nearest = distance == distance.min()
            assert result[i, j] in layer[rows[nearest], columns[nearest]]  # any of several equally near


@given(field=FIELDS, factor=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_pad_to_multiple(field: NDArray[np.float64], factor: int) -> None:
    height, width = field.shape[-2:]
    padded, mask = pad_to_multiple(field, factor), pad_to_multiple(np.ones(field.shape, bool), factor)
    assert padded.shape[-2] % factor == padded.shape[-1] % factor == 0
    assert padded.shape[-2] - height < factor and padded.shape[-1] - width < factor
    np.testing.assert_array_equal(padded[..., :height, :width], field)
    assert np.isnan(padded[~mask]).all() and mask.sum() == field.size


def test_bad_input_is_named() -> None:
    field = np.zeros((4, 4))
    for call in (block_mean, moving_mean, pad_to_multiple):
        with pytest.raises(ValueError, match="factor must be an integer of at least 1, found 0"):
            call(field, 0)
    with pytest.raises(ValueError, match="odd factor, found 2; use 3"):
        moving_mean(field, 2)
    with pytest.raises(ValueError, match=r"make \(2, 2\)"):
        block_repeat(field, 3, 5, 6)
    with pytest.raises(ValueError, match="found int64"):
        pad_to_multiple(np.zeros((2, 2), np.int64), 3)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        pad_to_multiple(np.zeros(3), 3)
