"""Simulated soundings: thresholds and footprints of the product, SIF from the truth beneath each footprint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from shapely import area, box, intersection, polygons

from sifscale.grid import Grid

if TYPE_CHECKING:
    from conftest import Osse

Array = NDArray[Any]


def corners_m(osse: Osse) -> tuple[Array, Array]:
    """x and y of the corners (sounding, corner) in the CRS of the grid."""
    to_map = Transformer.from_crs("EPSG:4326", osse.grid.crs, always_xy=True)
    seen = osse.soundings
    x, y = to_map.transform(seen["longitude_bounds"].astype(float), seen["latitude_bounds"].astype(float))
    return x, y


def within(grid: Grid, x: Array, y: Array) -> Array:
    """Which footprints lie wholly in the grid."""
    east, south = grid.west + grid.width * grid.dx, grid.north - grid.height * grid.dy
    return np.asarray(((x > grid.west) & (x < east) & (y > south) & (y < grid.north)).all(axis=1))


def test_soundings_keep_the_products_thresholds(osse: Osse) -> None:
    seen = osse.soundings
    assert seen["cloud_fraction_L2"].max() <= 0.8 and seen["cloud_fraction_L2"].min() >= 0
    assert seen["viewing_zenith_angle"].max() <= 60 and 20 < seen["solar_zenith_angle"].min()
    assert seen["solar_zenith_angle"].max() < 50
    assert set(np.unique(seen["LC_MASK"])) <= {1, 4, 10, 11, 12, 13, 17}
    assert np.all((seen["TOA_RFL"] > 0) & (seen["TOA_RFL"] < 1))
    local_hour = seen["delta_time"] / 3.6e6 + seen["longitude"] / 15
    assert 11.5 < local_hour.min() and local_hour.max() < 15.5


def test_footprints_are_of_tropomis_size_and_grow_with_the_view_angle(osse: Osse) -> None:
    x, y = corners_m(osse)
    size_km = np.sqrt(area(polygons(np.stack([x, y], axis=-1)))) / 1000
    assert 4.5 < np.median(size_km) < 5.3 and size_km.min() > 4.2 and size_km.max() < 8.6
    view = osse.soundings["viewing_zenith_angle"]
    assert size_km[view > 55].mean() > 1.4 * size_km[view < 15].mean()


def test_a_share_of_sif_is_undeclared_fill(osse: Osse) -> None:
    seen = osse.soundings
    for window in (743, 735):
        filled = seen[f"SIF_{window}"] >= 1e30
        np.testing.assert_array_equal(filled, seen[f"SIF_Corr_{window}"] >= 1e30)
        assert np.all(seen[f"SIF_{window}"][filled] == np.float32(9.96921e36))
        assert abs(filled.mean() - 0.02) < 4 * np.sqrt(0.02 / len(filled))
        assert np.all(seen[f"SIF_ERROR_{window}"] < 2)


def test_sif_is_the_footprints_mean_of_the_truth_plus_the_stated_noise(osse: Osse) -> None:
    """Against 16 x 16 points a footprint in the truth as written."""
    seen, grid = osse.soundings, osse.grid
    x, y = corners_m(osse)
    kept = within(grid, x, y) & (seen["SIF_743"] < 1e30)
    u, v = (axis.ravel() for axis in np.meshgrid((np.arange(16) + 0.5) / 16, (np.arange(16) + 0.5) / 16))
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v])
    column = ((x[kept] @ weights - grid.west) // 1000).astype(int)
    row = ((grid.north - y[kept] @ weights) // 1000).astype(int)
    expected = osse.truth["sif_truth"].values[row, column].mean(axis=1)
    sif, error = seen["SIF_743"][kept], seen["SIF_ERROR_743"][kept]
    residual = (sif - expected) / error
    assert len(residual) > 700
    assert abs(residual.mean()) < 4 / np.sqrt(len(residual)) and abs(residual.std() - 1) < 0.06
    assert sif.min() < 0 and 0.36 < np.median(error) < 0.44 and error.std() > 0.03


def test_noise_free_sif_is_the_area_weighted_mean_as_by_shapely(tmp_path: Path, simulate: Callable[..., Osse]) -> None:
    clean = simulate(tmp_path / "raw", sounding_noise=0.0, cloudiness=0.0, fill_share=0.0, days_per_period=1)
    sif, values = clean.soundings["SIF_743"], clean.truth["sif_truth"].values
    x, y = corners_m(clean)
    fine = clean.grid.refine(4)
    inside = np.flatnonzero(within(clean.grid, x, y))[::40]
    assert len(inside) > 3
    for index in inside:
        quad = polygons(np.stack([x[index], y[index]], axis=-1))
        west, south, east, north = quad.bounds
        columns = np.arange((west - fine.west) // 1000, (east - fine.west) // 1000 + 1).astype(int)
        rows = np.arange((fine.north - north) // 1000, (fine.north - south) // 1000 + 1).astype(int)
        j, i = np.meshgrid(columns, rows)
        left, top = fine.west + 1000 * j, fine.north - 1000 * i
        cells = box(left, top - 1000, left + 1000, top)
        expected = np.average(values[i, j], weights=area(intersection(quad, cells)))
        assert abs(sif[index] - expected) < 2e-3  # corners are stored to half a metre


def test_sif_735_and_the_daily_mean_follow_sif_743(osse: Osse) -> None:
    seen = osse.soundings
    good = (seen["SIF_743"] < 1e30) & (seen["SIF_735"] < 1e30)
    assert 0.6 < seen["SIF_735"][good].mean() / seen["SIF_743"][good].mean() < 0.85
    factor = seen["SIF_Corr_743"][good] / seen["SIF_743"][good]
    # Mid-latitude summer: some 16 h of light.
    assert 0.35 < factor.min() and factor.max() < 0.45
