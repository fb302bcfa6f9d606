"""The MODIS sinusoidal grid: its constants, its tiles, and the tiles that a target grid needs.

Sources: MODIS Land tile calculator (modis-land.gsfc.nasa.gov) and the StructMetadata of MOD13A2 v6.1 granules
(GCTP_SNSOID, sphere 6371007.181 m; corners agree with the tile formula to 0.002 m). On the sphere, in radians,
x = R longitude cos(latitude) and y = R latitude, where the geodetic latitude is used as it is.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from sifscale.grid import Grid

SPHERE_RADIUS_M: Final = 6371007.181  # ProjParams of StructMetadata
TILE_M: Final = 1111950.5197665  # side of a tile: pi R / 18
X_MIN_M: Final = -20015109.3557974  # western edge of h00
Y_MAX_M: Final = 10007554.6778987  # northern edge of v00
TILES_X: Final = 36
TILES_Y: Final = 18
SINUSOIDAL_CRS: Final = f"+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R={SPHERE_RADIUS_M} +units=m +no_defs"
CORNER_TOLERANCE_M: Final = 1.0  # files round corners to 1e-6 m and the tile to 1e-4 m; a pixel has 231 m or more

# Points lie this far inside the grid, so that a tile that only touches the grid's edge is not asked for.
_INSET_CELLS = 1e-3
_BORDER_POINTS = (2_000, 20_000)  # fewest and most along one edge; four a cell in between
_INTERIOR_POINTS = 500  # along each axis: finds tiles, and tips of tiles at 180 degrees, inside the grid


def tile_grid(h: int, v: int, pixels: int) -> Grid:
    """The grid of tile (h, v) with pixels x pixels cells (1200: 1 km, 2400: 500 m, 4800: 250 m), in metres.

    h: 0 to 35, west to east; v: 0 to 17, north to south. Raises ValueError for other tiles and for pixels < 1.
    """
    if not (0 <= h < TILES_X and 0 <= v < TILES_Y):
        raise ValueError(f"no tile is h{h:02d}v{v:02d}; give h from 0 to {TILES_X - 1}, v from 0 to {TILES_Y - 1}")
    if pixels < 1:
        raise ValueError(f"a tile needs at least 1 pixel a side, found {pixels}; 1200 make the 1 km product")
    pixel_m = TILE_M / pixels
    return Grid(SINUSOIDAL_CRS, X_MIN_M + h * TILE_M, Y_MAX_M - v * TILE_M, pixel_m, pixel_m, pixels, pixels)


def tile_of_upper_left(x_m: float, y_m: float) -> tuple[int, int]:
    """The tile (h, v) whose upper-left corner is (x_m, y_m), to 1 m.

    Raises ValueError when the point is no such corner or the tile is not one of the 36 x 18.
    """
    h, v = round((x_m - X_MIN_M) / TILE_M), round((Y_MAX_M - y_m) / TILE_M)
    tile = tile_grid(h, v, 1)
    if max(abs(x_m - tile.west), abs(y_m - tile.north)) > CORNER_TOLERANCE_M:
        raise ValueError(
            f"({x_m:.3f}, {y_m:.3f}) m is not the upper-left corner of a tile; the nearest is that of "
            f"h{h:02d}v{v:02d}, ({tile.west:.3f}, {tile.north:.3f}) m"
        )
    return h, v


def tiles_covering(grid: Grid) -> list[tuple[int, int]]:
    """All tiles (h, v) that any part of `grid`, in any CRS known to pyproj, needs, sorted by v and h.

    A tile that reaches into the grid either crosses its border, which is sampled every quarter of a cell (but 2,000
    to 20,000 points an edge), or lies wholly inside, which 500 x 500 points find. Parts that the projection cannot
    place are left out. Raises ValueError when that is all of the grid.
    """
    x, y = _sample(grid)
    # always_xy: longitude first, whatever the authority says about the CRS.
    x_m, y_m = Transformer.from_crs(grid.crs, SINUSOIDAL_CRS, always_xy=True).transform(x, y)
    placed = np.isfinite(x_m) & np.isfinite(y_m)
    if not placed.any():
        raise ValueError(
            f"no point of the grid at ({grid.west}, {grid.north}) is on the globe; check its corner and CRS {grid.crs}"
        )
    # The poles and longitude 180 lie on the outer edge, which belongs to the last tile.
    h = np.clip(np.floor((x_m[placed] - X_MIN_M) / TILE_M), 0, TILES_X - 1).astype(np.int64)
    v = np.clip(np.floor((Y_MAX_M - y_m[placed]) / TILE_M), 0, TILES_Y - 1).astype(np.int64)
    return [(int(index % TILES_X), int(index // TILES_X)) for index in np.unique(v * TILES_X + h)]


def _sample(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y (points,) of a mesh inside the grid and of points along its four edges."""
    inside_x = grid.west + grid.dx * _positions(grid.width, _INTERIOR_POINTS)
    inside_y = grid.north - grid.dy * _positions(grid.height, _INTERIOR_POINTS)
    along_x = grid.west + grid.dx * _positions(grid.width, int(np.clip(4 * grid.width, *_BORDER_POINTS)))
    along_y = grid.north - grid.dy * _positions(grid.height, int(np.clip(4 * grid.height, *_BORDER_POINTS)))
    meshes = [
        np.meshgrid(inside_x, inside_y),
        np.meshgrid(along_x, inside_y[[0, -1]]),
        np.meshgrid(inside_x[[0, -1]], along_y),
    ]
    return np.concatenate([x.ravel() for x, _ in meshes]), np.concatenate([y.ravel() for _, y in meshes])


def _positions(cells: int, points: int) -> NDArray[np.float64]:
    """Positions (points,) from one edge of an axis to the other, in cells from the first edge."""
    return np.linspace(_INSET_CELLS, cells - _INSET_CELLS, points)
