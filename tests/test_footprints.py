"""Footprints on a grid against shapely, pyproj, brute force and themselves in other pieces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Transformer

from sifscale.footprints import METHODS, FootprintSums, footprint_means, overlap_areas, project_corners
from sifscale.grid import Grid

Floats = NDArray[np.float64]

RAW = Path(os.environ.get("SIFSCALE_RAW", Path(__file__).parents[2] / "shared" / "data"))
OCO3 = RAW / "oco3_footprints" / "oco3_sif_wisconsin_2020-06-17.csv"
SINUSOIDAL = "+proj=sinu +lon_0=0 +R=6371007.181 +units=m +no_defs"
ALBERS = Grid("EPSG:5070", -7_000_000.0, 9_000_000.0, 4_000.0, 4_000.0, 60, 50)  # metres, far from the origin
CELLS = Grid("EPSG:5070", 0.0, 10.0, 1.0, 1.0, 10, 10)


def convex_quads(grid: Grid, number: int, seed: int = 0, overhang: float = 1.0) -> tuple[Floats, Floats]:
    """Random corners on ellipses of about a cell; their centres lie up to `overhang` cells outside the grid."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, (number, 4)), axis=1)
    size = rng.uniform(0.3, 2.0, (number, 1))
    u = rng.uniform(-overhang, grid.width + overhang, (number, 1)) + size * np.cos(angle)
    v = rng.uniform(-overhang, grid.height + overhang, (number, 1)) + 0.6 * size * np.sin(angle)
    return grid.west + u * grid.dx, grid.north - v * grid.dy


def by_shapely(grid: Grid, x: Floats, y: Floats) -> Floats:
    """Overlap area (n, height, width) of every footprint with every cell, relative to the grid's corner."""
    row, column = np.divmod(np.arange(grid.height * grid.width), grid.width)
    cells = shapely.box(column * grid.dx, -(row + 1) * grid.dy, (column + 1) * grid.dx, -row * grid.dy)
    polygons = shapely.polygons(np.stack([x - grid.west, y - grid.north], axis=-1))
    footprint, cell = shapely.STRtree(cells).query(polygons, predicate="intersects")
    areas = np.zeros((len(x), len(cells)))
    areas[footprint, cell] = shapely.area(shapely.intersection(polygons[footprint], cells[cell]))
    return areas.reshape(len(x), grid.height, grid.width)


def dense(grid: Grid, x: Floats, y: Floats) -> Floats:
    """What overlap_areas finds, as (n, height, width)."""
    areas = np.zeros((len(x), grid.height, grid.width))
    footprint, row, column, area = overlap_areas(grid, x, y)
    assert (area > 0).all()
    np.add.at(areas, (footprint, row, column), area)
    return areas


def gridded(grid: Grid, x: Floats, y: Floats, method: str = "exact", **options: Any) -> dict[str, NDArray[Any]]:
    """Result of soundings with values and errors that tell them apart."""
    sums = FootprintSums(grid, method, **options)
    sums.add(x, y, np.arange(len(x)) + 1.0, 0.1 + np.arange(len(x)) % 7)
    return dict(sums.finish())


def assert_same_bits(first: dict[str, NDArray[Any]], second: dict[str, NDArray[Any]]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def square(u: float, v: float, size: float = 1.0) -> tuple[Floats, Floats]:
    """Corners (1, 4) of a square on CELLS by its lower left corner."""
    return np.array([[u, u + size, u + size, u]]), np.array([[v, v, v + size, v + size]])


def test_overlaps_on_a_grid_in_metres_are_those_of_shapely() -> None:
    x, y = convex_quads(ALBERS, 800)
    difference_km2 = np.abs(dense(ALBERS, x, y) - by_shapely(ALBERS, x, y)) / 1e6
    assert difference_km2.max() < 1e-9


@pytest.mark.skipif(not OCO3.exists(), reason="real data are not here")
def test_overlaps_of_all_real_oco3_footprints_are_those_of_shapely() -> None:
    table = pd.read_csv(OCO3)
    longitude = table[[f"lon_{k}" for k in range(1, 5)]].to_numpy(np.float64)
    latitude = table[[f"lat_{k}" for k in range(1, 5)]].to_numpy(np.float64)
    x, y = project_corners(longitude, latitude, Grid("EPSG:5070", 0.0, 0.0, 1_000.0, 1_000.0, 1, 1))
    west, north = np.floor(x.min() / 1000) * 1000, np.ceil(y.max() / 1000) * 1000
    height, width = int((north - y.min()) // 1000) + 1, int((x.max() - west) // 1000) + 1
    grid = Grid("EPSG:5070", float(west), float(north), 1_000.0, 1_000.0, height, width)
    assert len(x) == 1445
    areas = dense(grid, x, y)
    for first in range(0, len(x), 100):  # shapely's fields of all at once would be large
        part = slice(first, first + 100)
        assert np.abs(areas[part] - by_shapely(grid, x[part], y[part])).max() / 1e6 < 1e-9


def test_means_errors_counts_and_weights_are_those_of_brute_force() -> None:
    x, y = convex_quads(CELLS, 80)
    rng = np.random.default_rng(1)
    value, error, weight = rng.normal(size=80), rng.uniform(0.1, 1, 80), rng.uniform(0.5, 2, 80)
    shares = by_shapely(CELLS, x, y) / shapely.area(shapely.polygons(np.stack([x, y], axis=-1)))[:, None, None]
    w = shares * weight[:, None, None]
    total = np.where(w.sum(axis=0) > 0, w.sum(axis=0), np.nan)
    sums = FootprintSums(CELLS)
    sums.add(x, y, value, error, weight)
    result = sums.finish()
    np.testing.assert_allclose(result["weight"], w.sum(axis=0), atol=1e-13)
    np.testing.assert_allclose(result["mean"], (w * value[:, None, None]).sum(axis=0) / total, rtol=1e-9)
    expected = np.sqrt(((w * error[:, None, None]) ** 2).sum(axis=0)) / total
    np.testing.assert_allclose(result["error"], expected, rtol=1e-9)
    np.testing.assert_array_equal(result["n_soundings"], (shares > 1e-12).sum(axis=0))
    assert result["n_soundings"].dtype == np.int32


def test_cells_without_soundings_are_nan_with_weight_0() -> None:
    x, y = square(2.2, 7.1, 0.5)
    result = gridded(CELLS, x, y)
    assert result["n_soundings"].sum() == 1 and result["n_soundings"][2, 2] == 1
    assert np.isnan(result["mean"]).sum() == np.isnan(result["error"]).sum() == 99
    assert result["weight"].sum() == result["weight"][2, 2] == 1
    assert gridded(CELLS, x[:0], y[:0])["weight"].sum() == 0


@settings(max_examples=300, deadline=None)
@given(
    corners=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=4, max_size=4),
    size=st.sampled_from([1.0, 1e-2, 1e-5, 1e-8, 1e-11]),
    method=st.sampled_from(METHODS),
)
def test_shares_of_a_footprint_inside_the_grid_sum_to_1(
    corners: list[tuple[float, float]], size: float, method: str
) -> None:
    # Any order of corners: convex, concave, crossing, without area; small ones around a corner shared by four cells.
    points = 5 + size * (np.array(corners) - 5)
    result = gridded(CELLS, points[None, :, 0], points[None, :, 1], method)
    # The right and lower border belong to the cells beyond: a point there, within rounding, is in no cell of the grid.
    if points[:, 0].min() < 10 - 1e-12 and points[:, 1].max() > 1e-12:
        assert abs(result["weight"].sum() - 1) < 1e-12
        assert (result["weight"] >= 0).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-16, 96), st.integers(-16, 96)), min_size=4, max_size=4))
def test_overlaps_of_any_simple_quadrilateral_are_those_of_shapely(corners: list[tuple[int, int]]) -> None:
    # Eighths of cells: corners on borders and in line with each other are frequent; coordinates are exact.
    points = np.array(corners)[None] / 8
    polygon = shapely.polygons(points)[0]
    if polygon.is_valid:
        expected = by_shapely(CELLS, points[:, :, 0], points[:, :, 1])
        np.testing.assert_allclose(dense(CELLS, points[:, :, 0], points[:, :, 1]), expected, atol=1e-12)
        result = gridded(CELLS, points[:, :, 0], points[:, :, 1])
        np.testing.assert_array_equal(result["n_soundings"] > 0, expected[0] > 1e-9)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (0, 2, 1, 3), (0, 1, 3, 2), (1, 3, 0, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_corners_may_come_in_any_order_around_or_across(order: tuple[int, ...], method: str) -> None:
    x, y = np.array([[2.3, 6.1, 5.2, 1.4]]), np.array([[2.2, 3.1, 6.4, 5.3]])
    expected = gridded(CELLS, x, y, method)
    found = gridded(CELLS, x[:, order], y[:, order], method)
    np.testing.assert_allclose(found["weight"], expected["weight"], atol=1e-14)


def test_a_concave_footprint_keeps_its_notch() -> None:
    x, y = np.array([[0.0, 4.0, 1.0, 4.0]]), np.array([[4.0, 0.0, 4.0, 8.0]])
    np.testing.assert_allclose(dense(CELLS, x, y), by_shapely(CELLS, x, y), atol=1e-13)


@pytest.mark.parametrize("x", [[3.5, 3.5, 3.5, 3.5], [1.5, 2.5, 4.5, 5.5]])
def test_a_footprint_without_area_counts_in_the_cell_of_its_centre(x: list[float]) -> None:
    corners = np.array([x])
    for method in ("exact", "centre"):
        result = gridded(CELLS, corners, corners, method)
        assert result["weight"][6, 3] == 1 and result["weight"].sum() == 1
    assert len(overlap_areas(CELLS, corners, corners)[0]) == 0
    assert footprint_means(CELLS, np.arange(100.0).reshape(10, 10), corners, corners)[0] == 63


def test_a_border_that_rounding_moved_makes_no_sliver() -> None:
    grid = Grid("EPSG:4326", -101.0, 49.8, 0.1, 0.1, 61, 80)
    west, south = grid.west + 0.1 * np.arange(80), grid.north - 0.1 * (1 + np.arange(61))
    x0, y0 = (a.reshape(-1, 1) for a in np.meshgrid(west, south))
    x, y = x0 + np.array([0, 0.1, 0.1, 0]), y0 + np.array([0, 0, 0.1, 0.1])
    result = gridded(grid, x, y)
    assert (result["n_soundings"] == 1).all()
    np.testing.assert_allclose(result["mean"].ravel(), np.arange(len(x)) + 1, rtol=1e-12)


def test_results_are_the_same_to_the_bit_for_any_threads_and_any_granules() -> None:
    grid = Grid("EPSG:5070", 0.0, 300.0, 1.0, 1.0, 300, 40)  # several bands
    x, y = convex_quads(grid, 5000, overhang=3)
    for method in METHODS:
        one = gridded(grid, x, y, method)
        assert_same_bits(one, gridded(grid, x, y, method, threads=2))
        sums = FootprintSums(grid, method, threads=3)
        for first, last in ((0, 1), (1, 1), (1, 3000), (3000, 5000)):
            number = np.arange(first, last)
            sums.add(x[first:last], y[first:last], number + 1.0, 0.1 + number % 7)
        assert_same_bits(one, dict(sums.finish()))


def test_the_order_of_soundings_matters_only_up_to_rounding() -> None:
    x, y = convex_quads(CELLS, 500)
    value, error = np.random.default_rng(2).normal(size=(2, 500)) ** 2
    forwards, backwards = FootprintSums(CELLS), FootprintSums(CELLS)
    forwards.add(x, y, value, error)
    backwards.add(x[::-1], y[::-1], value[::-1], error[::-1])
    for name, field in forwards.finish().items():
        np.testing.assert_allclose(backwards.finish()[name], field, rtol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_a_small_grid_gets_what_a_large_one_has_there(method: str) -> None:
    x, y = convex_quads(ALBERS, 3000, overhang=4)
    rows, columns = slice(7, 31), slice(11, 29)
    whole, part = gridded(ALBERS, x, y, method), gridded(ALBERS.window(rows, columns), x, y, method)
    for name in whole:
        np.testing.assert_allclose(part[name], whole[name][rows, columns], rtol=1e-9, atol=1e-12)


def test_a_footprint_far_larger_than_the_grid_fills_it() -> None:
    x, y = square(-500.0, -500.0, 1000.0)
    np.testing.assert_allclose(dense(CELLS, x, y), 1, rtol=1e-12)
    np.testing.assert_allclose(gridded(CELLS, x, y)["weight"], 1e-6, rtol=1e-12)


@pytest.mark.parametrize("flatness", [1.0, 0.02, 1e-5])
def test_shares_are_overlaps_over_own_area_for_round_and_for_thin_footprints(flatness: float) -> None:
    # Those that fill their window are gridded in one go, thin ones in two: several bands, all borders of the grid.
    grid = Grid("EPSG:5070", 0.0, 140.0, 1.0, 1.0, 140, 60)
    rng = np.random.default_rng(4)
    angle = np.sort(rng.uniform(0, 2 * np.pi, (200, 4)), axis=1)
    turn, size = rng.uniform(0, 2 * np.pi, (200, 1)), rng.uniform(0.2, 60, (200, 1))
    along, across = size * np.cos(angle), flatness * size * np.sin(angle)
    x = rng.uniform(0, 60, (200, 1)) + np.cos(turn) * along - np.sin(turn) * across
    y = rng.uniform(0, 140, (200, 1)) + np.sin(turn) * along + np.cos(turn) * across
    footprint, row, column, area = overlap_areas(grid, x, y)
    own = shapely.area(shapely.polygons(np.stack([x - x[:, :1], y - y[:, :1]], axis=-1)))
    expected, number = np.zeros((2, 140, 60))
    np.add.at(expected, (row, column), area / own[footprint])
    np.add.at(number, (row, column), 1)
    result = gridded(grid, x, y)
    np.testing.assert_allclose(result["weight"], expected, rtol=0, atol=1e-13 / flatness)
    np.testing.assert_array_equal(result["n_soundings"], number)
    inside = (x.min(axis=1) > 0) & (x.max(axis=1) < 60) & (y.min(axis=1) > 0) & (y.max(axis=1) < 140)
    assert inside.sum() > 20
    assert abs(gridded(grid, x[inside], y[inside])["weight"].sum() - inside.sum()) < 1e-12


def test_more_subpixels_come_nearer_to_exact_for_parallelograms() -> None:
    # In others, points that are bilinear between the corners are not of equal area: that error stays.
    x, y = convex_quads(CELLS, 100)
    x[:, 3], y[:, 3] = x[:, 0] + x[:, 2] - x[:, 1], y[:, 0] + y[:, 2] - y[:, 1]
    exact = gridded(CELLS, x, y)["weight"]
    found = [gridded(CELLS, x, y, "subpixel", subpixels=points)["weight"] for points in (5, 20, 200)]
    rms = [np.sqrt(np.mean((weight - exact) ** 2)) for weight in found]
    assert rms[0] > 4 * rms[1] > 16 * rms[2]


def test_the_centre_is_the_centroid_and_not_the_mean_of_the_corners() -> None:
    x, y = np.array([[0.1, 3.9, 0.1, 0.05]]), np.array([[0.1, 0.1, 3.9, 3.95]])
    centroid = shapely.centroid(shapely.polygons(np.stack([x, y], axis=-1)))[0]
    result = gridded(CELLS, x, y, "centre")
    assert result["weight"][9 - int(centroid.y), int(centroid.x)] == 1
    assert int(centroid.y) != int(y.mean())


def test_means_of_a_field_are_weighted_by_area_and_nan_where_anything_is_missing() -> None:
    x, y = convex_quads(CELLS, 400, overhang=0.5)
    field = np.random.default_rng(3).normal(size=(10, 10))
    field[4, 4] = np.nan
    areas = by_shapely(CELLS, x, y)
    own = shapely.area(shapely.polygons(np.stack([x, y], axis=-1)))
    expected = np.nansum(areas * field, axis=(1, 2)) / own
    inside = (x.min(axis=1) >= 0) & (x.max(axis=1) <= 10) & (y.min(axis=1) >= 0) & (y.max(axis=1) <= 10)
    known = inside & (areas[:, 4, 4] == 0)
    means = footprint_means(CELLS, field, x, y)
    assert 50 < known.sum() < inside.sum() < 400
    np.testing.assert_array_equal(np.isfinite(means), known)
    np.testing.assert_allclose(means[known], expected[known], rtol=1e-9)
    x[0, 2] = np.nan
    assert np.isnan(footprint_means(CELLS, np.ones((10, 10)), x, y)[0])


def test_an_unknown_error_is_unknown_only_where_its_footprint_lies() -> None:
    (x0, y0), (x1, y1) = square(2.5, 2.5), square(7.2, 7.2, 0.5)
    sums = FootprintSums(CELLS)
    sums.add(np.concatenate([x0, x1]), np.concatenate([y0, y1]), np.ones(2), np.array([np.nan, 0.3]))
    result = sums.finish()
    assert result["error"][2, 7] == pytest.approx(0.3)
    assert np.isfinite(result["mean"]).sum() == 5
    assert np.isfinite(result["error"]).sum() == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.full((1, 4), np.nan)}, "1 of 1 footprints have a corner that is NaN"),
        ({"y": np.full((1, 4), -np.inf)}, "NaN or infinite"),
        ({"x": np.array([[-2e7, 2e7, 2e7, -2e7]])}, "spans 4e\\+07"),
        ({"x": np.zeros((4, 1))}, "give \\(n, 4\\)"),
        ({"value": np.array([np.nan])}, "value must be finite, found nan at sounding 0"),
        ({"value": np.ones(2)}, "value has shape \\(2,\\) for 1 footprints"),
        ({"error": np.array([-0.1])}, "error must be finite and not negative, or NaN, found -0.1"),
        ({"weight": np.array([0.0])}, "weight must be finite and above 0, found 0.0"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_adds_nothing(change: dict[str, Floats], words: str) -> None:
    x, y = square(3.0, 3.0)
    arguments = {"x": x, "y": y, "value": np.ones(1), "error": np.ones(1), "weight": np.ones(1)} | change
    sums = FootprintSums(CELLS)
    with pytest.raises(ValueError, match=words) as caught:
        sums.add(**arguments)
    assert "\n" not in str(caught.value)
    assert sums.finish()["weight"].sum() == 0


def test_bad_options_and_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown gridding method 'center'; use exact, centre, subpixel"):
        FootprintSums(CELLS, "center")
    with pytest.raises(ValueError, match="at least 1, found 0 and 1"):
        FootprintSums(CELLS, subpixels=0)
    with pytest.raises(ValueError, match="field has shape \\(3, 10\\)"):
        footprint_means(CELLS, np.ones((3, 10)), *square(1.0, 1.0))
    with pytest.raises(ValueError, match="unknown CRS 'EPSG:nowhere'"):
        project_corners(np.zeros((1, 4)), np.zeros((1, 4)), Grid("EPSG:nowhere", 0.0, 0.0, 1.0, 1.0, 1, 1))


def test_projected_corners_are_those_of_pyproj() -> None:
    longitude, latitude = np.array([[-95.0, -94.9, -94.9, -95.0]]), np.array([[45.0, 45.0, 45.1, 45.1]])
    x, y = project_corners(longitude, latitude, ALBERS)
    expected = Transformer.from_crs("EPSG:4326", "EPSG:5070", always_xy=True).transform(longitude, latitude)
    np.testing.assert_array_equal((x, y), expected)
    point = project_corners(np.full((1, 4), -95.0), np.full((1, 4), 45.0), ALBERS)
    assert np.isfinite(point).all()
    # The MODIS grid by its formula, x = R lon cos(lat), y = R lat.
    x, y = project_corners(longitude, latitude, Grid(SINUSOIDAL, 0.0, 0.0, 1.0, 1.0, 1, 1))
    radians = np.deg2rad(latitude)
    np.testing.assert_allclose(x, 6371007.181 * np.deg2rad(longitude) * np.cos(radians), atol=1e-6)
    np.testing.assert_allclose(y, 6371007.181 * radians, atol=1e-6)


@pytest.mark.parametrize(
    ("west", "width", "columns"),
    [
        (170.0, 200, [99, 100]),
        (-190.0, 200, [99, 100]),
        (0.0, 3600, [1799, 1800]),
        (-180.0, 3600, [0]),  # A global grid that begins at the dateline gets one half: nothing is wrapped.
    ],
)
@pytest.mark.parametrize("first", range(4))
def test_a_footprint_across_the_dateline_lies_over_the_grid(
    west: float, width: int, columns: list[int], first: int
) -> None:
    longitude, latitude = np.array([[179.95, -179.95, -179.95, 179.95]]), np.array([[50.02, 50.02, 50.08, 50.08]])
    grid = Grid("EPSG:4326", west, 51.0, 0.1, 0.1, 20, width)
    x, y = project_corners(np.roll(longitude, first, axis=1), np.roll(latitude, first, axis=1), grid)
    assert np.ptp(x) == pytest.approx(0.1)
    weight = gridded(grid, x, y)["weight"]
    assert weight.sum() == pytest.approx(len(columns) / 2)
    if len(columns) == 2:
        assert list(np.flatnonzero(weight.sum(axis=0))) == columns


def test_a_longitude_of_350_degrees_is_one_of_minus_10() -> None:
    grid = Grid("EPSG:4326", -20.0, 10.0, 1.0, 1.0, 20, 30)
    corners, latitude = np.array([[350.1, 350.9, 350.9, 350.1]]), np.array([[1.1, 1.1, 1.9, 1.9]])
    np.testing.assert_allclose(project_corners(corners, latitude, grid)[0], corners - 360)


def test_a_footprint_that_the_projection_tears_apart_is_nan_as_one_with_a_bad_corner() -> None:
    grid = Grid(SINUSOIDAL, -20_015_109.0, 10_007_554.0, 5_000.0, 5_000.0, 4000, 8000)
    for across in (1, 2, 3):
        longitude = np.where(np.arange(4) < across, 179.97, -179.97)[None]
        x, y = project_corners(longitude, np.array([[40.0, 40.05, 40.05, 40.0]]), grid)
        assert np.isnan(x).all() and np.isnan(y).all()
    longitude = np.array([[10.0, 10.1, np.nan, 10.0], [10.0, 10.1, 10.1, 10.0], [10.0, np.inf, 10.1, 10.0]])
    latitude = np.tile([40.0, 40.0, 40.1, 40.1], (3, 1))
    for crs in (SINUSOIDAL, "EPSG:4326"):
        x, y = project_corners(longitude, latitude, Grid(crs, 0.0, 50.0, 1.0, 1.0, 9, 9))
        for found in (x, y):
            np.testing.assert_array_equal(np.isnan(found).all(axis=1), [True, False, True])
            assert np.isfinite(found[1]).all()


def test_a_footprint_over_the_pole_is_whole_in_a_polar_projection() -> None:
    grid = Grid("EPSG:3413", -50_000.0, 50_000.0, 1_000.0, 1_000.0, 100, 100)
    x, y = project_corners(np.array([[0.0, 90.0, 180.0, -90.0]]), np.array([[89.95, 89.97, 89.96, 89.98]]), grid)
    assert gridded(grid, x, y)["weight"].sum() == pytest.approx(1, abs=1e-12)
