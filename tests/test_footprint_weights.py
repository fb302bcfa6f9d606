"""Footprint weights against shapely, a brute-force sum and the footprint means that they must repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sifscale.footprint_weights import FootprintWeights, cell_means, on_pixels
from sifscale.footprints import METHODS, FootprintSums, footprint_means
from sifscale.grid import Grid

Floats = NDArray[np.float64]
GRID = Grid("EPSG:5070", -7_000_000.0, 9_000_000.0, 4_000.0, 4_000.0, 7, 6)
FACTOR = 3


def footprints(number: int, seed: int = 0, inside: bool = False, size: float = 1.5) -> tuple[Floats, Floats, Floats]:
    """Corners (n, 4) of convex footprints of up to 2 x `size` cells, and weights; inside: none leaves the grid."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, (number, 4)), axis=1)
    radius, margin = rng.uniform(0.3, size, (number, 1)), size if inside else -1.0
    u = rng.uniform(margin, GRID.width - margin, (number, 1)) + radius * np.cos(angle)
    v = rng.uniform(margin, GRID.height - margin, (number, 1)) + 0.6 * radius * np.sin(angle)
    return GRID.west + u * GRID.dx, GRID.north - v * GRID.dy, rng.uniform(0.2, 3, number)


def weights_of(x: Floats, y: Floats, weight: Floats | None, radius: int, **options: Any) -> tuple[Floats, Floats]:
    made = FootprintWeights(GRID, FACTOR, radius, **options)
    made.add(x, y, weight)
    return made.finish()


def areas(grid: Grid, polygons: Any) -> Floats:
    """Overlap (n, height, width) of polygons with the cells of a grid, by shapely, as shares of the polygons."""
    row, column = np.divmod(np.arange(grid.height * grid.width), grid.width)
    cells = shapely.box(
        grid.west + column * grid.dx,
        grid.north - (row + 1) * grid.dy,
        grid.west + (column + 1) * grid.dx,
        grid.north - row * grid.dy,
    )
    shares = shapely.area(shapely.intersection(polygons[:, None], cells)) / shapely.area(polygons)[:, None]
    return np.asarray(shares).reshape(len(polygons), grid.height, grid.width)


def test_weights_are_those_of_a_brute_force_sum_over_shapely_areas() -> None:
    radius, support_px = 2, 5 * FACTOR
    x, y, q = footprints(60)
    polygons = shapely.polygons(np.stack([x, y], axis=-1))
    native, fine = areas(GRID, polygons), areas(GRID.refine(FACTOR), polygons)
    wanted = np.zeros((GRID.height, GRID.width, support_px, support_px))
    lost = np.full((GRID.height, GRID.width), np.nan)
    for row, column in np.ndindex(GRID.height, GRID.width):
        share = q * native[:, row, column]
        if share.sum() > 0:
            seen = np.pad(np.tensordot(share, fine, 1) / share.sum(), radius * FACTOR)
            at = np.s_[row * FACTOR : row * FACTOR + support_px, column * FACTOR : column * FACTOR + support_px]
            wanted[row, column] = seen[at] / seen[at].sum()
            lost[row, column] = 1 - seen[at].sum()
    found, found_lost = weights_of(x, y, q, radius)
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    np.testing.assert_allclose(found_lost, lost, atol=1e-9)
    assert np.nanmax(lost) > 0.1, "some of the footprints leave the grid"


@pytest.mark.parametrize("method", METHODS)
def test_a_field_seen_through_the_weights_is_its_footprint_means_gridded(method: str) -> None:
    x, y, q = footprints(200, inside=True)
    field = np.random.default_rng(1).normal(size=(GRID.height * FACTOR, GRID.width * FACTOR))
    sums = FootprintSums(GRID, method)
    sums.add(x, y, footprint_means(GRID.refine(FACTOR), field, x, y), np.zeros(len(x)), q)
    weights, lost = weights_of(x, y, q, 4, method=method)
    np.testing.assert_allclose(cell_means(weights, field), sums.finish()["mean"], atol=1e-9)
    np.testing.assert_allclose(lost[np.isfinite(lost)], 0, atol=1e-12)


@given(st.integers(0, 40), st.integers(1, 3), st.integers(0, 9999), st.sampled_from(METHODS))
def test_weights_sum_to_1_and_leave_a_constant_as_it_is(number: int, radius: int, seed: int, method: str) -> None:
    x, y, q = footprints(number, seed, size=3.0)
    weights, lost = weights_of(x, y, q, radius, method=method)
    sums = FootprintSums(GRID, method)
    sums.add(x, y, np.ones(number), np.ones(number), q)
    seen = sums.finish()["weight"] > 0
    total = weights.sum(axis=(2, 3))
    assert (weights >= 0).all() and np.array_equal(np.isnan(lost), ~seen)
    # A sounding may count in a cell by its points or centre and have all its area beyond the window.
    filled = seen & ~(lost == 1)
    np.testing.assert_allclose(total[filled], 1, rtol=1e-12)
    assert (total[~filled] == 0).all() and (method != "exact" or np.array_equal(filled, seen))
    constant = np.full((GRID.height * FACTOR, GRID.width * FACTOR), -2.5)
    np.testing.assert_allclose(cell_means(weights, constant)[filled], -2.5, rtol=1e-12)
    back = on_pixels(weights, np.full((GRID.height, GRID.width), 0.7), FACTOR)
    np.testing.assert_allclose(back[np.isfinite(back)], 0.7, rtol=1e-12)


def test_threads_and_granules_do_not_change_a_bit() -> None:
    tall = Grid(GRID.crs, GRID.west, GRID.north, 400.0, 400.0, 70, 60)  # more than one band of rows
    x, y, q = footprints(300)
    results = []
    for threads, granules in ((1, 1), (3, 1), (2, 7)):
        made = FootprintWeights(tall, 2, 1, threads=threads)
        for part in np.array_split(np.arange(len(x)), granules):
            made.add(x[part], y[part], q[part])
        results.append(made.finish())
    for weights, lost in results[1:]:
        np.testing.assert_array_equal(weights, results[0][0])
        np.testing.assert_array_equal(lost, results[0][1])


def test_a_part_of_a_window_has_the_weights_of_the_whole() -> None:
    x, y, q = footprints(150)
    whole, whole_lost = weights_of(x, y, q, 2)
    rows, columns = slice(2, 5), slice(3, 6)
    part = FootprintWeights(GRID.window(rows, columns), FACTOR, 2)
    part.add(x, y, q)
    known_rows, known_columns = (
        slice(-at.start * FACTOR, (size - at.start) * FACTOR)
        for at, size in ((rows, GRID.height), (columns, GRID.width))
    )
    weights, lost = part.finish(known_rows, known_columns)
    np.testing.assert_allclose(weights, whole[rows, columns], atol=1e-12)
    np.testing.assert_allclose(lost, whole_lost[rows, columns], atol=1e-12)


def test_values_are_carried_back_as_the_cells_saw_the_pixels() -> None:
    x, y, q = footprints(40)
    weights, _ = weights_of(x, y, q, 2)
    values = np.random.default_rng(2).normal(size=(GRID.height, GRID.width))
    values[1, 2] = np.nan
    total, reached = (np.zeros((GRID.height * FACTOR + 12, GRID.width * FACTOR + 12)) for _ in range(2))
    for row, column in np.ndindex(GRID.height, GRID.width):
        if np.isfinite(values[row, column]):
            at = np.s_[row * FACTOR : row * FACTOR + 15, column * FACTOR : column * FACTOR + 15]
            total[at] += weights[row, column] * values[row, column]
            reached[at] += weights[row, column]
    total, reached = total[6:-6, 6:-6], reached[6:-6, 6:-6]
    wanted = np.where(reached > 0, total / np.where(reached > 0, reached, 1), np.nan)
    np.testing.assert_allclose(on_pixels(weights, values, FACTOR), wanted, atol=1e-12)


def test_gaps_of_the_field_are_left_out_of_a_cells_mean() -> None:
    x, y, q = footprints(80)
    weights, _ = weights_of(x, y, q, 2)
    field = np.random.default_rng(3).normal(size=(GRID.height * FACTOR, GRID.width * FACTOR))
    field[4:9, 3:7] = np.nan
    known = np.pad(np.isfinite(field), 6)
    filled = np.pad(np.nan_to_num(field), 6)
    found = cell_means(weights, field)
    for row, column in np.ndindex(GRID.height, GRID.width):
        at = np.s_[row * FACTOR : row * FACTOR + 15, column * FACTOR : column * FACTOR + 15]
        seen = (weights[row, column] * known[at]).sum()
        wanted = (weights[row, column] * filled[at]).sum() / seen if seen > 0 else np.nan
        np.testing.assert_allclose(found[row, column], wanted, atol=1e-12)
    assert np.isnan(cell_means(weights, np.full_like(field, np.nan))).all()


@pytest.mark.parametrize("size_m", [0.0, 1e-3])
def test_a_footprint_without_an_area_counts_in_the_pixel_that_it_lies_in(size_m: float) -> None:
    column, row = 2.5 * GRID.dx, 3.1 * GRID.dy  # the middle pixel of the cell, and its uppermost row
    x = np.array([[0, size_m, size_m, 0]]) + GRID.west + column
    y = np.array([[0, 0, size_m, size_m]]) + GRID.north - row
    weights, lost = weights_of(x, y, None, 1)
    wanted = np.zeros((3 * FACTOR, 3 * FACTOR))
    wanted[FACTOR, FACTOR + 1] = 1
    np.testing.assert_allclose(weights[3, 2], wanted, atol=1e-12)
    assert np.nansum(lost) == 0 and weights.sum() == pytest.approx(1)


def test_bad_arguments_are_refused_and_add_nothing() -> None:
    made = FootprintWeights(GRID, FACTOR, 1)
    x, y, _ = footprints(3)
    with pytest.raises(ValueError, match=r"weight must be finite and above 0, found 0\.0; leave"):
        made.add(x, y, [1, 0, 2])
    with pytest.raises(ValueError, match=r"weight has shape \(2,\) for 3 footprints"):
        made.add(x, y, [1, 2])
    with pytest.raises(ValueError, match="corners have shapes"):
        made.add(x[:, :3], y[:, :3])
    with pytest.raises(ValueError, match="have a corner that is NaN"):
        made.add(np.where(x == x[1, 1], np.nan, x), y)
    assert not made.finish()[0].any()
    with pytest.raises(ValueError, match="factor and radius must be at least 1, found 3 and 0"):
        FootprintWeights(GRID, FACTOR, 0)
    with pytest.raises(ValueError, match="unknown gridding method 'middle'"):
        FootprintWeights(GRID, FACTOR, 1, "middle")
    with pytest.raises(ValueError, match="do not fit a fine field"):
        cell_means(made.finish()[0], np.zeros((20, 18)))
