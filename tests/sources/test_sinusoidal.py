"""The sinusoidal tiles agree with pyproj, with published shares of tiles and with shapely."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from shapely import Polygon, box

from sifscale.grid import Grid
from sifscale.sources.sinusoidal import (
    SINUSOIDAL_CRS,
    SPHERE_RADIUS_M,
    TILE_M,
    X_MIN_M,
    Y_MAX_M,
    tile_grid,
    tile_of_upper_left,
    tiles_covering,
)

LATLON = "EPSG:4326"
# (west, south, east, north) in degrees, cells of 0.01 degrees, and the share of each tile in %.
PLACES = {
    "study area": ((-101, 43.5, -93, 49.8), {(11, 4): 87.5, (10, 4): 12.5}),
    "Minnesota": ((-97.24, 43.49, -89.48, 49.39), {(11, 4): 95.4, (12, 4): 4.2, (10, 4): 0.4}),
    "Minnesota and the Dakotas": ((-104.06, 42.48, -89.48, 49.39), {(11, 4): 72.5, (10, 4): 25.6, (12, 4): 1.9}),
}


def latlon(west: float, south: float, east: float, north: float, step: float) -> Grid:
    return Grid(LATLON, west, north, step, step, round((north - south) / step), round((east - west) / step))


def formula(longitude_deg: np.ndarray, latitude_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sinusoidal projection on the sphere, written out."""
    latitude = np.radians(latitude_deg)
    return SPHERE_RADIUS_M * np.radians(longitude_deg) * np.cos(latitude), SPHERE_RADIUS_M * latitude


def test_the_constants_follow_from_the_sphere() -> None:
    assert pytest.approx(np.pi * SPHERE_RADIUS_M / 18, abs=1e-6) == TILE_M
    assert pytest.approx(-np.pi * SPHERE_RADIUS_M, abs=1e-6) == X_MIN_M
    assert pytest.approx(np.pi * SPHERE_RADIUS_M / 2, abs=1e-6) == Y_MAX_M


@given(longitude=st.floats(-179.9, 179.9), latitude=st.floats(-89.9, 89.9))
def test_the_crs_is_the_formula_with_geodetic_latitude(longitude: float, latitude: float) -> None:
    projected = Transformer.from_crs(LATLON, SINUSOIDAL_CRS, always_xy=True).transform(longitude, latitude)
    np.testing.assert_allclose(projected, formula(np.array(longitude), np.array(latitude)), atol=1e-3)


def test_rasterio_reads_the_crs_as_pyproj_does() -> None:
    from rasterio.crs import CRS
    from rasterio.warp import transform

    (x_m,), (y_m,) = transform(CRS.from_string(LATLON), CRS.from_string(SINUSOIDAL_CRS), [-95.0], [46.0])
    np.testing.assert_allclose((x_m, y_m), formula(np.array(-95.0), np.array(46.0)), atol=1e-3)


@pytest.mark.parametrize(
    ("h", "v", "west", "north"),
    [(10, 4, -8895604.158, 5559752.599), (11, 4, -7783653.638, 5559752.599), (12, 4, -6671703.119, 5559752.599)],
)
def test_upper_left_corners_are_the_published_ones(h: int, v: int, west: float, north: float) -> None:
    grid = tile_grid(h, v, 1200)
    assert (grid.west, grid.north) == pytest.approx((west, north), abs=1e-3)
    assert grid.dx == pytest.approx(926.6254331, abs=1e-7)
    assert tile_of_upper_left(west, north) == (h, v)


@given(h=st.integers(0, 35), v=st.integers(0, 17), pixels=st.sampled_from([1200, 2400, 4800]))
def test_a_tile_is_known_by_its_corner_and_ends_where_the_next_begins(h: int, v: int, pixels: int) -> None:
    grid = tile_grid(h, v, pixels)
    assert tile_of_upper_left(grid.west, grid.north) == (h, v)
    east, south = grid.west + grid.width * grid.dx, grid.north - grid.height * grid.dy
    assert (east, south) == pytest.approx((X_MIN_M + (h + 1) * TILE_M, Y_MAX_M - (v + 1) * TILE_M), abs=1e-6)


@pytest.mark.parametrize(("h", "v", "pixels"), [(36, 4, 1200), (-1, 4, 1200), (11, 18, 1200), (11, 4, 0)])
def test_a_tile_that_does_not_exist_is_refused(h: int, v: int, pixels: int) -> None:
    with pytest.raises(ValueError, match="no tile is h|at least 1 pixel"):
        tile_grid(h, v, pixels)


def test_a_corner_more_than_a_metre_off_is_refused_with_the_nearest_tile() -> None:
    corner = tile_grid(11, 4, 1200)
    assert tile_of_upper_left(corner.west + 0.9, corner.north - 0.9) == (11, 4)
    with pytest.raises(ValueError, match="nearest is that of h11v04"):
        tile_of_upper_left(corner.west + 1.1, corner.north)


@pytest.mark.parametrize("place", PLACES)
def test_the_tiles_of_a_place_have_the_published_shares(place: str) -> None:
    bounds, published = PLACES[place]
    grid = latlon(*bounds, 0.01)
    x_m, y_m = formula(*np.meshgrid(grid.x, grid.y))
    h, v = np.floor((x_m - X_MIN_M) / TILE_M), np.floor((Y_MAX_M - y_m) / TILE_M)
    assert set(tiles_covering(grid)) == set(published)
    # The shares are of the area, and the cells of a lat/lon grid shrink with the cosine of latitude.
    area = np.cos(np.radians(np.meshgrid(grid.x, grid.y)[1]))
    for (tile_h, tile_v), share in published.items():
        assert 100 * area[(h == tile_h) & (v == tile_v)].sum() / area.sum() == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("cells", [1, 3, 1000])
def test_the_tiles_do_not_depend_on_the_size_of_the_cells(cells: int) -> None:
    west, south, east, north = PLACES["Minnesota"][0]
    grid = Grid(LATLON, west, north, (east - west) / cells, (north - south) / cells, cells, cells)
    assert set(tiles_covering(grid)) == {(10, 4), (11, 4), (12, 4)}


@given(h=st.integers(0, 35), v=st.integers(4, 13), pixels=st.sampled_from([1, 1200, 4800]))
def test_a_tile_needs_itself_and_no_neighbour_it_only_touches(h: int, v: int, pixels: int) -> None:
    if 9 <= h < 27:  # tiles further out are partly off the globe, where PROJ has no inverse
        assert tiles_covering(tile_grid(h, v, pixels)) == [(h, v)]


def test_the_whole_globe_needs_the_460_tiles_that_are_on_it() -> None:
    assert len(tiles_covering(latlon(-180, -90, 180, 90, 0.5))) == 460


def test_a_grid_across_the_antimeridian_needs_the_tiles_of_both_sides() -> None:
    tiles = set(tiles_covering(latlon(175, -5, 185, 5, 0.1)))
    assert tiles == {(35, 8), (35, 9), (0, 8), (0, 9)}


@given(
    west=st.floats(-160, 140), south=st.floats(-80, 60), width=st.floats(0.5, 20), height=st.floats(0.5, 20)
)
def test_the_tiles_of_a_rectangle_are_those_that_shapely_finds(
    west: float, south: float, width: float, height: float
) -> None:
    grid = Grid(LATLON, west, south + height, width / 40, height / 30, 30, 40)
    x, y = np.linspace(west, west + width, 2001), np.linspace(south, south + height, 2001)
    ring_x = np.concatenate([x, np.full(2001, x[-1]), x[::-1], np.full(2001, x[0])])
    ring_y = np.concatenate([np.full(2001, y[0]), y, np.full(2001, y[-1]), y[::-1]])
    area = Polygon(np.column_stack(formula(ring_x, ring_y)))
    overlaps = {
        (h, v): box(
            X_MIN_M + h * TILE_M, Y_MAX_M - (v + 1) * TILE_M, X_MIN_M + (h + 1) * TILE_M, Y_MAX_M - v * TILE_M
        ).intersection(area)
        for h in range(36)
        for v in range(18)
    }
    found = set(tiles_covering(grid))
    # A sliver narrower than a pixel, and a tip between two points of the border, may be missed.
    assert found >= {tile for tile, overlap in overlaps.items() if not overlap.buffer(-463).is_empty}
    assert found <= {tile for tile, overlap in overlaps.items() if overlap.area > 0}


def test_a_projected_grid_needs_the_tiles_of_all_its_cells() -> None:
    grid = Grid("EPSG:5070", -400_000, 2_900_000, 4_000, 4_000, 200, 200)
    x, y = np.meshgrid(grid.x, grid.y)
    x_m, y_m = formula(*Transformer.from_crs("EPSG:5070", LATLON, always_xy=True).transform(x, y))
    centres = zip(np.floor((x_m - X_MIN_M) / TILE_M).flat, np.floor((Y_MAX_M - y_m) / TILE_M).flat, strict=True)
    assert set(tiles_covering(grid)) == {(int(h), int(v)) for h, v in centres}


def test_a_grid_off_the_globe_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="is on the globe") as refusal:
        tiles_covering(Grid("EPSG:5070", 1e12, 1e12, 1, 1, 2, 2))
    assert "\n" not in str(refusal.value)
