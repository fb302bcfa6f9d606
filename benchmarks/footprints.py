"""Time footprint gridding: exact against 10 x 10 subpixels, both ours, and against overlaps by shapely.

    python benchmarks/footprints.py [--footprints 1000000] [--repeats 5] [--threads 1]

Runs are interleaved, so that a busy machine slows all of them; medians and their ratios are printed. shapely stands
for what a user would pick: an STRtree of the cells, queried with all footprints, then vectorised intersection areas.
It gets a sample, on the grid cut to the sample's surroundings; the time to build the tree is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import shapely
from numpy.typing import NDArray

from sifscale.footprints import FootprintSums
from sifscale.grid import Grid

Floats = NDArray[np.float64]

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


def grid_of(cell_m: float) -> Grid:
    cells = round(_SIDE_M / cell_m)
    return Grid("EPSG:5070", 0.0, _SIDE_M, cell_m, cell_m, cells, cells)


def by_ours(grid: Grid, x: Floats, y: Floats, method: str, threads: int) -> Floats:
    """Sum of shares (height, width)."""
    sums = FootprintSums(grid, method, 10, threads)
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


def seconds(call: Callable[[], Floats]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def sample_of(grid: Grid, x: Floats, y: Floats, number: int) -> tuple[Grid, Floats, Floats]:
    """Neighbouring footprints wholly inside the grid, and the grid cut to them."""
    within = ((x > 0) & (x < _SIDE_M) & (y > 0) & (y < _SIDE_M)).all(axis=1)
    x, y = x[within][:number], y[within][:number]
    rows = slice(int((_SIDE_M - y.max()) // grid.dy), int((_SIDE_M - y.min()) // grid.dy) + 1)
    columns = slice(int(x.min() // grid.dx), int(x.max() // grid.dx) + 1)
    return grid.window(rows, columns), x, y


def compare(cell_m: float, x: Floats, y: Floats, options: argparse.Namespace) -> None:
    """Print times, ratios and differences on a grid."""
    grid = grid_of(cell_m)
    small, x_few, y_few = sample_of(grid, x, y, options.sample)
    # These runs compile, or load what was compiled before.
    exact = by_ours(small, x_few, y_few, "exact", options.threads)
    subpixel = by_ours(small, x_few, y_few, "subpixel", options.threads)
    tree = shapely.STRtree(cells_of(small))
    truth = by_shapely(tree, x_few, y_few).reshape(exact.shape)
    runs: dict[str, Callable[[], Floats]] = {
        "exact": partial(by_ours, grid, x, y, "exact", options.threads),
        "subpixel": partial(by_ours, grid, x, y, "subpixel", options.threads),
        "shapely": partial(by_shapely, tree, x_few, y_few),
    }
    numbers = {"exact": len(x), "subpixel": len(x), "shapely": len(x_few)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            times[name].append(seconds(run) / numbers[name])
    print(f"{cell_m / 1000:g} km cells, {len(x)} footprints, {options.threads} thread(s):")
    for name, taken in times.items():
        ratio = statistics.median(taken) / statistics.median(times["exact"])
        print(f"  {name:9}{1e6 * statistics.median(taken):9.3f} us a footprint {ratio:8.2f} x exact")
    covered = truth > 0
    rms = float(np.sqrt(np.mean((subpixel - truth)[covered] ** 2)) / truth[covered].mean())
    print(f"  from shapely, sum of shares: exact at most {np.abs(exact - truth).max():.0e}, subpixel rms {rms:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--footprints", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=2_000, help="footprints that shapely gets")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    x, y = swath(options.footprints)
    for cell_m in (4_000.0, 1_000.0):
        compare(cell_m, x, y, options)


if __name__ == "__main__":
    main()
