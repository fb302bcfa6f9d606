"""Regridding, against GDAL, SciPy, shapely and block means."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject
from scipy import ndimage
from shapely.geometry import Polygon, box

from sifscale.grid import Grid, block_mean
from sifscale.regrid import METHODS, Resampler, source_window

SINUSOIDAL = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
ALBERS, ALASKA, LONLAT = "EPSG:5070", "EPSG:3338", "EPSG:4326"
PIXEL_M = 926.6254331
# A part of tile h11v04 around 46.2 N, 95.5 W, and 1 km cells inside it.
MODIS = Grid(SINUSOIDAL, -7783653.638 + 350e3, 5559752.599 - 400e3, PIXEL_M, PIXEL_M, 130, 150)
INSIDE = Grid(ALBERS, 10e3, 2590e3, 1000.0, 1000.0, 40, 44)
DEGREES = Grid(LONLAT, -97.0, 47.0, 0.05, 0.04, 60, 70)
# The Aleutian arc, on both sides of the dateline.
DATELINE = Grid(ALASKA, -2200e3, 700e3, 50e3, 50e3, 12, 14)
EAST_WEST = Grid(LONLAT, -180.0, 90.0, 1.0, 1.0, 180, 360)
# Without these scales GDAL widens the bilinear kernel where the target is coarser.
GDAL = {"num_threads": 1, "warp_mem_limit": 64, "XSCALE": 1, "YSCALE": 1}

LAYERS = hnp.arrays(
    np.float64, (2, 9, 11), elements=st.one_of(st.just(np.nan), st.floats(-10, 10, allow_subnormal=False))
)


def noise(grid: Grid, *lead: int, missing: float = 0.0) -> NDArray[np.float64]:
    generator = np.random.default_rng(7)
    layers = generator.normal(size=(*lead, grid.height, grid.width))
    layers[generator.random(layers.shape) < missing] = np.nan
    return layers


def by_gdal(source: Grid, target: Grid, layer: NDArray[Any], resampling: Resampling) -> NDArray[Any]:
    """The layer on the target, in strips of four columns: GDAL interpolates positions only in rows longer than five."""
    strips = []
    for first in range(0, target.width, 4):
        strip = np.full((target.height, 4), np.nan)
        reproject(
            layer,
            strip,
            src_transform=from_origin(source.west, source.north, source.dx, source.dy),
            src_crs=source.crs,
            src_nodata=np.nan,
            dst_transform=from_origin(target.west + first * target.dx, target.north, target.dx, target.dy),
            dst_crs=target.crs,
            dst_nodata=np.nan,
            resampling=resampling,
            **GDAL,
        )
        strips.append(strip)
    return np.concatenate(strips, axis=1)


def by_shapely(source: Grid, target: Grid, layer: NDArray[Any], min_valid: float) -> NDArray[np.float64]:
    """Area means by the intersection of every pixel with every cell."""
    to_target = Transformer.from_crs(source.crs, target.crs, always_xy=True)
    total, area = np.zeros((2, target.height, target.width))
    cells = {
        (i, j): box(
            target.west + j * target.dx,
            target.north - (i + 1) * target.dy,
            target.west + (j + 1) * target.dx,
            target.north - i * target.dy,
        )
        for i, j in np.ndindex(target.height, target.width)
    }
    for i, j in np.argwhere(~np.isnan(layer)):
        x, y = to_target.transform(
            source.west + source.dx * (j + np.array([0, 1, 1, 0])),
            source.north - source.dy * (i + np.array([0, 0, 1, 1])),
        )
        pixel = Polygon(list(zip(x, y, strict=True)))
        for cell, square in cells.items():
            if pixel.intersects(square):
                overlap = pixel.intersection(square).area
                total[cell] += overlap * layer[i, j]
                area[cell] += overlap
    known = area >= min_valid * target.dx * target.dy
    means: NDArray[np.float64] = np.full(total.shape, np.nan)
    return np.divide(total, area, out=means, where=known & (area > 0))


@pytest.mark.parametrize("source", [MODIS, DEGREES], ids=["sinusoidal", "degrees"])
def test_nearest_takes_the_pixels_that_gdal_takes(source: Grid) -> None:
    numbers = np.arange(source.height * source.width, dtype=np.float64).reshape(source.height, source.width)
    ours = Resampler(source, INSIDE, "nearest").apply(numbers)
    assert np.isfinite(ours).all()
    np.testing.assert_array_equal(ours, by_gdal(source, INSIDE, numbers, Resampling.nearest))


@pytest.mark.parametrize("source", [MODIS, DEGREES], ids=["sinusoidal", "degrees"])
def test_bilinear_agrees_with_gdal_and_with_scipy(source: Grid) -> None:
    layer = noise(source)
    ours = Resampler(source, INSIDE, "bilinear").apply(layer)
    np.testing.assert_allclose(ours, by_gdal(source, INSIDE, layer, Resampling.bilinear), atol=1e-9)
    x, y = Transformer.from_crs(ALBERS, source.crs, always_xy=True).transform(*np.meshgrid(INSIDE.x, INSIDE.y))
    positions = [(source.north - y) / source.dy - 0.5, (x - source.west) / source.dx - 0.5]
    np.testing.assert_allclose(ours, ndimage.map_coordinates(layer, positions, order=1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("min_valid", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (replace(MODIS, height=14, width=16), replace(INSIDE, west=-75e3, north=2603e3, dx=2100, height=6, width=7)),
        (replace(DEGREES, height=9, width=10), Grid(ALBERS, -80e3, 2673e3, 5e3, 6e3, 8, 10)),
        (replace(INSIDE, height=9, width=10), Grid(LONLAT, -95.88, 46.31, 0.02, 0.015, 8, 9)),
    ],
    ids=["sinusoidal", "degrees", "to degrees"],
)
def test_area_means_are_those_of_shapely(source: Grid, target: Grid, min_valid: float) -> None:
    layer = noise(source, missing=0.3)
    expected = by_shapely(source, target, layer, min_valid)
    assert 0 < np.isfinite(expected).mean() < 1, "the case must have cells inside and outside the source"
    ours = Resampler(source, target, "area", min_valid).apply(layer)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


@settings(max_examples=30)
@given(layers=LAYERS, factor=st.integers(1, 4), crs=st.sampled_from([ALBERS, LONLAT]))
def test_area_on_a_coarser_lattice_is_the_block_mean(layers: NDArray[Any], factor: int, crs: str) -> None:
    grid = Grid(crs, -96.3, 46.1, 0.1, 0.3, 9, 11)
    coarse = replace(grid, dx=0.1 * factor, dy=0.3 * factor, height=-(-9 // factor), width=-(-11 // factor))
    ours = Resampler(grid, coarse, "area", min_valid=0).apply(layers)
    np.testing.assert_allclose(ours, block_mean(layers, factor), rtol=1e-12, atol=1e-12)


@settings(max_examples=30)
@given(layers=LAYERS)
def test_nothing_changes_on_the_same_grid(layers: NDArray[Any]) -> None:
    grid = Grid(LONLAT, -96.3, 46.1, 0.1, 0.3, 9, 11)
    for method in METHODS:
        np.testing.assert_allclose(Resampler(grid, grid, method).apply(layers), layers, rtol=1e-15, atol=0)


# Cells that lie wholly inside a small source.
SMALL = Grid(SINUSOIDAL, -7351100.0, 5133500.0, PIXEL_M * 1.5, PIXEL_M * 1.5, 9, 11)
CELLS = Grid(ALBERS, 53.3e3, 2572.5e3, 1700.0, 1300.0, 4, 3)
PLANS = {method: Resampler(SMALL, CELLS, method) for method in METHODS}


@given(layers=LAYERS, method=st.sampled_from(METHODS))
def test_values_stay_in_the_range_of_the_valid_pixels(layers: NDArray[Any], method: str) -> None:
    for layer, result in zip(layers, PLANS[method].apply(layers), strict=True):
        known = result[~np.isnan(result)]
        if known.size:
            assert known.min() >= np.nanmin(layer) - 1e-12
            assert known.max() <= np.nanmax(layer) + 1e-12


@given(value=st.floats(-1e6, 1e6, width=32), missing=hnp.arrays(np.bool_, (9, 11)), method=st.sampled_from(METHODS))
def test_a_constant_stays_and_missing_pixels_reach_as_far_as_the_rule_says(
    value: float, missing: NDArray[np.bool_], method: str
) -> None:
    result = PLANS[method].apply(np.where(missing, np.nan, value).astype(np.float32))
    assert result.dtype == np.float32
    known = ~np.isnan(result)
    np.testing.assert_array_equal(result[known], np.float32(value))
    # The mean of 1 for valid and 0 for missing pixels is the valid share of the weight.
    share = PLANS[method].apply(np.where(missing, 0.0, 1.0))
    np.testing.assert_array_equal(known | (np.abs(share - 0.5) < 1e-6), (share >= 0.5) | (np.abs(share - 0.5) < 1e-6))


def test_a_missing_pixel_without_weight_does_no_harm() -> None:
    grid = Grid(ALBERS, 0.0, 0.0, 1.0, 1.0, 1, 3)
    layer = np.array([[np.nan, 2.0, np.nan]])
    shifted = replace(grid, west=0.5, width=2)
    for method in ("bilinear", "area"):
        np.testing.assert_array_equal(Resampler(grid, grid, method, min_valid=1).apply(layer), layer)
        np.testing.assert_array_equal(Resampler(grid, shifted, method).apply(layer), [[2.0, 2.0]])
        assert np.isnan(Resampler(grid, shifted, method, min_valid=0.6).apply(layer)).all()


def test_a_cell_needs_enough_of_its_area_inside_the_source() -> None:
    grid = Grid(ALBERS, 0.0, 0.0, 1.0, 1.0, 4, 4)
    # The source covers 0, 1/4, 3/4, 1 and 1/4 of the cells of each row.
    target = Grid(ALBERS, -1.75, 0.0, 1.0, 4.0, 1, 6)
    for min_valid, known in ((0.0, 5), (0.25, 5), (0.5, 4), (1.0, 3)):
        means = Resampler(grid, target, "area", min_valid).apply(np.ones((4, 4)))
        assert np.isfinite(means).sum() == known, min_valid
    outside = replace(target, west=100.0)
    for method in METHODS:
        assert np.isnan(Resampler(grid, outside, method).apply(np.ones((2, 4, 4)))).all()


def test_between_the_outermost_centres_and_the_border_bilinear_takes_the_border_pixels() -> None:
    grid = Grid(ALBERS, 0.0, 0.0, 1.0, 1.0, 2, 2)
    target = Grid(ALBERS, -0.25, 0.25, 0.5, 0.5, 5, 5)
    means = Resampler(grid, target, "bilinear").apply(np.array([[0.0, 1.0], [2.0, 3.0]]))
    expected = np.array([0, 0, 0.5, 1, 1]) + 2 * np.array([0, 0, 0.5, 1, 1])[:, None]
    np.testing.assert_allclose(means, expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_seam_of_a_global_source_is_not_seen(method: str) -> None:
    field = np.cos(np.deg2rad(EAST_WEST.x)) * np.arange(180)[:, None]
    here = Resampler(EAST_WEST, DATELINE, method, min_valid=1).apply(field)
    assert np.isfinite(here).all()
    eastern = Resampler(replace(EAST_WEST, west=0.0), DATELINE, method, min_valid=1).apply(np.roll(field, 180, axis=1))
    np.testing.assert_allclose(here, eastern, rtol=1e-12)


def test_bilinear_joins_the_last_column_to_the_first() -> None:
    field = np.broadcast_to(np.arange(360.0), (180, 360))
    target = Grid(LONLAT, 179.5, 10.0, 1.0, 1.0, 1, 1)
    assert Resampler(EAST_WEST, target, "bilinear").apply(field).item() == pytest.approx(359 / 2)


@pytest.mark.parametrize("west", [175.0, -185.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_target_in_degrees_may_cross_the_dateline(method: str, west: float) -> None:
    source = Grid(ALASKA, -2600e3, 900e3, 20e3, 20e3, 60, 90)
    target = Grid(LONLAT, west, 52.0, 0.5, 0.5, 4, 20)
    layer = noise(source)
    sides = [replace(target, west=west, width=10) for west in (175.0, -180.0)]
    expected = [Resampler(source, side, method, min_valid=1).apply(layer) for side in sides]
    assert np.isfinite(expected).all()
    ours = Resampler(source, target, method, min_valid=1).apply(layer)
    np.testing.assert_allclose(ours, np.concatenate(expected, axis=1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("west", [-180.0, 0.0, -100.0, 180.0])
def test_the_whole_globe_may_start_anywhere(method: str, west: float) -> None:
    field = noise(EAST_WEST)
    target = Grid(LONLAT, west, 90.0, 4.0, 4.0, 45, 90)
    rolled = np.roll(field, -round(west + 180), axis=1)
    ours = Resampler(EAST_WEST, target, method, min_valid=1).apply(field)
    blocks = rolled.reshape(45, 4, 90, 4)
    middle = blocks[:, 1:3, :, 1:3].mean(axis=(1, 3))
    expected = {"nearest": blocks[:, 2, :, 2], "bilinear": middle, "area": block_mean(rolled, 4)}
    np.testing.assert_allclose(ours, expected[method], rtol=0, atol=1e-9)


def test_a_pixel_torn_by_the_seam_of_the_target_is_left_out() -> None:
    source = Grid(LONLAT, 0.5, 90.0, 1.0, 1.0, 180, 359)  # a pixel on the 180th meridian, torn by lon_0 = 0
    target = Grid(SINUSOIDAL, 1000e3, 3000e3, 100e3, 100e3, 5, 5)
    field = np.zeros((180, 359))
    field[:, 179] = 1000.0
    np.testing.assert_array_equal(Resampler(source, target, "area", min_valid=1).apply(field), np.zeros((5, 5)))


@pytest.mark.parametrize(
    ("source", "target"),
    [(MODIS, INSIDE), (DEGREES, INSIDE), (MODIS, replace(INSIDE, west=-90e3)), (EAST_WEST, DATELINE), (MODIS, DEGREES)],
    ids=["sinusoidal", "degrees", "reaching out", "dateline", "larger target"],
)
def test_the_window_is_all_that_a_target_needs(source: Grid, target: Grid) -> None:
    window = source_window(source, target)
    assert window is not None
    rows, columns = window
    part = source.spanning(np.array([rows.start, rows.stop - 1]), np.array([columns.start, columns.stop - 1]))[0]
    layer = noise(source)
    for method in METHODS:
        whole = Resampler(source, target, method).apply(layer)
        cut = Resampler(part, target, method).apply(layer[rows, columns])
        np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-9)


def test_the_window_is_no_larger_than_it_need_be() -> None:
    inner = replace(DEGREES, west=-96.0, north=46.0, height=5, width=6)
    assert source_window(DEGREES, inner, margin_px=1) == (slice(24, 31), slice(19, 27))
    assert source_window(DEGREES, inner, margin_px=1000) == (slice(0, 60), slice(0, 70))
    assert source_window(EAST_WEST, DATELINE) == (slice(34, 46), slice(0, 360))
    assert source_window(MODIS, replace(INSIDE, west=500e3)) is None
    assert source_window(MODIS, Grid(LONLAT, 100.0, -20.0, 0.1, 0.1, 5, 5)) is None


def test_categories_keep_their_type_and_are_filled_outside() -> None:
    grid = Grid(ALBERS, 0.0, 0.0, 1.0, 1.0, 2, 2)
    target = replace(grid, west=-1.0, width=3)
    plan = Resampler(grid, target, "nearest")
    for dtype, fill in ((np.uint8, 255), (np.int16, -3000), (np.bool_, False), (np.uint16, 65535)):
        result = plan.apply(np.ones((2, 2), dtype), fill=fill)
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, np.array([[fill, 1, 1]] * 2, dtype))


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", ">f8", "f2"])
@pytest.mark.parametrize("method", METHODS)
def test_any_float_dtype_layout_and_number_of_layers_will_do(method: str, dtype: str) -> None:
    plan = PLANS[method]
    layers = noise(SMALL, 2, 3, missing=0.2).astype(dtype)
    result = plan.apply(layers)
    assert result.dtype == np.dtype(dtype)
    assert result.shape == (2, 3, 4, 3)
    for i, j in itertools.product(range(2), range(3)):
        np.testing.assert_array_equal(plan.apply(layers[i, j]), result[i, j])
    np.testing.assert_array_equal(plan.apply(np.asfortranarray(layers)), result)
    assert plan.apply(layers[:0]).shape == (0, 3, 4, 3)


def test_faults_are_told_in_one_line() -> None:
    floats, plan = np.ones((9, 11)), PLANS["nearest"]
    bytes_ = floats.astype(np.uint8)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: Resampler(SMALL, CELLS, "cubic"), "unknown regridding method 'cubic'; use nearest, bilinear, area"),
        (lambda: Resampler(SMALL, CELLS, "area", min_valid=50), r"min_valid must lie in 0\.\.1, found 50"),
        (lambda: Resampler(SMALL, CELLS, "area", min_valid=np.nan), "found nan"),
        (lambda: Resampler(replace(SMALL, crs="EPSG:0"), CELLS, "area"), "unknown CRS 'EPSG:0'"),
        (lambda: source_window(SMALL, CELLS, margin_px=-1), "margin_px must not be negative, found -1"),
        (lambda: plan.apply(floats[:3]), r"shape \(3, 11\), the source grid is 9 x 11"),
        (lambda: plan.apply(floats, fill=0), "mark missing cells by NaN, found fill=0"),
        (lambda: plan.apply(bytes_), r"uint8 layers need a fill in 0\.\.255 .* found None"),
        (lambda: plan.apply(bytes_, fill=-1), "found -1"),
        (lambda: PLANS["area"].apply(bytes_, fill=0), "area cannot regrid uint8 layers"),
        (lambda: plan.apply(floats.astype(complex)), "nearest cannot regrid complex128 layers"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
