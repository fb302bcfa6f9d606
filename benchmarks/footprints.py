"""Footprints onto a grid: exact areas beside 10 x 10 subpixels (ours too), shapely and exactextract."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from benchmarks.measure import Row, Run, Setting, Way, compare
from sifscale.footprints import FootprintSums
from sifscale.grid import Grid

Floats = NDArray[np.float64]

NUMBER, SAMPLE = 1_000_000, 2_000  # footprints; those that the slow ones get
QUICK_NUMBER, QUICK_SAMPLE = 60_000, 50
CELLS_M = (4_000.0, 1_000.0)
BAR = 2.5  # beside 10 x 10 subpixels
FINE = {1_000.0: 40}  # points along an edge that are as dense in the cells as 10 are on 4 km
FINE_PART = 16  # of the footprints, the first of so many parts get them
CLOSE = {"shapely": 1e-9, "exactextract": 1e-6}  # sums of shares; the latter says in float32 what it covers
_SIDE_M = 1_200_000.0
_ACROSS = 200


def swath(number: int) -> tuple[Floats, Floats]:
    """Corners x, y (number, 4) in m of TROPOMI-like footprints, 5.5 km along track and 3.5 to 14 km across.

    Scan lines of 200 soundings (1230 km) lie one behind another along a track that is 12 degrees off north; the next
    overpass begins where one has left the grid, with a little offset.
    """
    scan, pixel = np.divmod(np.arange(number), _ACROSS)
    growth = np.linspace(-1, 1, _ACROSS + 1)
    edge = 300_000 * growth + 315_000 * growth**3
    track, passed = scan % 240 * 5_500.0, scan // 240
    east = np.stack([edge[pixel], edge[pixel + 1], edge[pixel + 1], edge[pixel]], axis=1)
    north = track[:, None] + np.array([0.0, 0.0, 5_500.0, 5_500.0]) - _SIDE_M / 2
    turn = np.deg2rad(12)
    x = np.cos(turn) * east - np.sin(turn) * north + _SIDE_M / 2 + passed[:, None] * 1_234.5
    y = np.sin(turn) * east + np.cos(turn) * north + _SIDE_M / 2 + passed[:, None] * 987.6
    return x, y


def by_ours(grid: Grid, x: Floats, y: Floats, method: str, subpixels: int = 10) -> Floats:
    """Sum of shares (height, width), by one thread."""
    sums = FootprintSums(grid, method, subpixels, 1)
    sums.add(x, y, x[:, 0], np.ones(len(x)))
    weight: Floats = sums.finish()["weight"].astype(np.float64)
    return weight


def cells_of(grid: Grid) -> NDArray[np.object_]:
    """Every cell (height * width,) as a polygon."""
    row, column = np.divmod(np.arange(grid.height * grid.width), grid.width)
    west, north = grid.west + column * grid.dx, grid.north - row * grid.dy
    cells: NDArray[np.object_] = shapely.box(west, north - grid.dy, west + grid.dx, north)
    return cells


def by_shapely(tree: shapely.STRtree, x: Floats, y: Floats) -> Floats:
    """Sum of shares in each cell of the tree."""
    polygons = shapely.polygons(np.stack([x, y], axis=-1))
    footprint, cell = tree.query(polygons, predicate="intersects")
    area = shapely.area(shapely.intersection(polygons[footprint], tree.geometries[cell]))
    shares = area / shapely.area(polygons)[footprint]
    return np.bincount(cell, shares, len(tree.geometries)).astype(np.float64)


def by_exactextract(grid: Grid, x: Floats, y: Floats) -> Floats:
    """Sum of shares in each cell (height * width,), from the part of each cell that each footprint covers."""
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource

    box = (grid.west, grid.north - grid.height * grid.dy, grid.west + grid.width * grid.dx, grid.north)
    raster = NumPyRasterSource(np.zeros((grid.height, grid.width)), *box)
    rings = np.stack([x, y], axis=-1)[:, [0, 1, 2, 3, 0]].tolist()
    features = [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}} for ring in rings]
    area = shapely.area(shapely.polygons(np.stack([x, y], axis=-1)))
    total = np.zeros(grid.height * grid.width)
    for found, size in zip(exact_extract(raster, features, ["cell_id", "coverage"]), area, strict=True):
        parts: dict[str, Any] = found["properties"]
        total[parts["cell_id"]] += parts["coverage"] * (grid.dx * grid.dy / size)
    return total


def sample_of(grid: Grid, x: Floats, y: Floats, number: int) -> tuple[Grid, Floats, Floats]:
    """Neighbouring footprints wholly inside the grid, and the grid cut to them."""
    within = ((x > 0) & (x < _SIDE_M) & (y > 0) & (y < _SIDE_M)).all(axis=1)
    x, y = x[within][:number], y[within][:number]
    rows = slice(int((_SIDE_M - y.max()) // grid.dy), int((_SIDE_M - y.min()) // grid.dy) + 1)
    columns = slice(int(x.min() // grid.dx), int(x.max() // grid.dx) + 1)
    return grid.window(rows, columns), x, y


def error_of(subpixels: int, grid: Grid, x: Floats, y: Floats, truth: Floats) -> str:
    """What to say of the sums of shares by subpixels: root mean square error over their mean, where there are any."""
    found, met = by_ours(grid, x, y, "subpixel", subpixels).ravel(), truth > 0
    return f"off by {np.sqrt(np.mean((found - truth)[met] ** 2)) / truth[met].mean():.1%}"


def difference(name: str, exact: Floats, other: Floats) -> tuple[bool, str]:
    """Whether another exact way finds the same sums of shares, and what to say of it."""
    most = float(np.abs(exact.ravel() - other.ravel()).max())
    return most <= CLOSE[name], f"sums of shares differ from {name}'s by {most:.0e} at most"


def rows(setting: Setting) -> Iterator[Row]:
    """Cells of both sizes. shapely's tree of cells is made before, and not counted."""
    number, few = (QUICK_NUMBER, QUICK_SAMPLE) if setting.quick else (NUMBER, SAMPLE)
    x, y = swath(number)
    for cell_m in CELLS_M:
        cells = round(_SIDE_M / cell_m)
        grid = Grid("EPSG:5070", 0.0, _SIDE_M, cell_m, cell_m, cells, cells)
        small, x_few, y_few = sample_of(grid, x, y, few)
        exact, tree = by_ours(small, x_few, y_few, "exact"), shapely.STRtree(cells_of(small))
        truth = by_shapely(tree, x_few, y_few)
        run: Run = partial(by_ours, grid, x, y, "subpixel")
        note = error_of(10, small, x_few, y_few, truth)
        peers = [Way("10 x 10 subpixels", run, number, BAR, note=note)]
        if points := FINE.get(cell_m):
            part = slice(number // FINE_PART)
            run = partial(by_ours, grid, x[part], y[part], "subpixel", points)
            note = error_of(points, small, x_few, y_few, truth)
            peers.append(Way(f"{points} x {points} subpixels", run, number // FINE_PART, note=note))
        agrees, note = difference("shapely", exact, truth)
        run = partial(by_shapely, tree, x_few, y_few)
        peers.append(Way("shapely", run, len(x_few), agrees=agrees, note=note))
        other = Way("exactextract", None)
        if find_spec("exactextract"):
            run = partial(by_exactextract, small, x_few, y_few)
            agrees, note = difference("exactextract", exact, run())
            other = Way("exactextract", run, len(x_few), agrees=agrees, note=note)
        peers.append(other)
        ours = Way("ours", partial(by_ours, grid, x, y, "exact"), number)
        limit = Way("copy of the corners", lambda: (x.copy(), y.copy()), number)
        case = f"{cell_m / 1000:g} km cells, {number:,} footprints, one thread"
        yield from compare("gridding", case, "footprints/s", ours, peers, setting, limit)
