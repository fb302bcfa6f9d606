"""Footprints on a grid: running sums of soundings, overlap areas, and means of a field over footprints.

A footprint is a quadrilateral of four corners in the CRS of the grid, with edges that are straight there. Corners may
run clockwise or anticlockwise; where two edges cross ("bowtie"), the corners are put in order around their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from sifscale import footprint_kernels as kernels
from sifscale.footprint_kernels import Floats, Integers, Quads
from sifscale.grid import Grid

METHODS = ("exact", "centre", "subpixel")

# What is prepared at once stays below 30 MB, however large the granule.
CHUNK = 1 << 18
# Distance of the mean of projected corners from the projected mean, over the extent of the footprint: about 0.001
# for one of 7 km, at least 1/3 for one with a corner on the other side of the map.
_TORN = 0.2

_Item = TypeVar("_Item")


def project_corners(longitude: ArrayLike, latitude: ArrayLike, grid: Grid) -> tuple[Floats, Floats]:
    """Corners of footprints, degrees (n, 4), as x, y (n, 4) in the CRS of the grid.

    On a geographic grid a footprint across the dateline is made contiguous and then shifted by a multiple of 360
    degrees to where it is nearest to the middle of the grid; what reaches beyond a border is not wrapped. A footprint
    is NaN as a whole where a corner is not finite or has no place in the CRS, and where the CRS tears it apart (a
    projection's own dateline). Raises ValueError for other shapes and a CRS that PROJ does not know.
    """
    longitude, latitude = np.array(longitude, np.float64), np.array(latitude, np.float64)
    check_corners(longitude, latitude)
    try:
        crs = CRS.from_user_input(grid.crs)
    except CRSError as error:
        raise ValueError(f"unknown CRS {grid.crs!r} of the grid ({' '.join(str(error).split())})") from None
    to_grid = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_grid.transform(longitude, latitude)
    lost = ~(np.isfinite(x) & np.isfinite(y)).all(axis=1)
    x[lost] = y[lost] = np.nan
    if crs.is_geographic:
        x -= 360 * np.rint((x - x[:, :1]) / 360)
        x += 360 * np.rint((grid.west + grid.width * grid.dx / 2 - x.mean(axis=1, keepdims=True)) / 360)
    else:
        longitude[lost] = latitude[lost] = np.nan
        centre_x, centre_y = to_grid.transform(*_centres(longitude, latitude))
        extent = np.hypot(np.ptp(x, axis=1), np.ptp(y, axis=1))
        # A cell more for footprints that are points. A centre that has no place in the CRS is never near.
        near = np.hypot(x.mean(axis=1) - centre_x, y.mean(axis=1) - centre_y) <= _TORN * extent + grid.dx
        x[~near] = y[~near] = np.nan
    return x, y


def _centres(longitude: Floats, latitude: Floats) -> tuple[Floats, Floats]:
    """Longitude and latitude (n,) of the mean of the corners on the sphere, which knows neither dateline nor pole."""
    rad_lon, rad_lat = np.deg2rad(longitude), np.deg2rad(latitude)
    to_x = (np.cos(rad_lat) * np.cos(rad_lon)).sum(axis=1)
    to_y = (np.cos(rad_lat) * np.sin(rad_lon)).sum(axis=1)
    to_z = np.sin(rad_lat).sum(axis=1)
    return np.rad2deg(np.arctan2(to_y, to_x)), np.rad2deg(np.arctan2(to_z, np.hypot(to_x, to_y)))


class FootprintSums:
    """Running sums of soundings on a grid; add granule by granule, then finish.

    A sounding weighs w = share x weight in a cell. With `exact`, share is the part of the footprint's own area that
    lies inside the cell (all of it in the cell of its centre if it has no area); with `centre`, 1 in the cell of its
    centroid; with `subpixel`, the part of subpixels x subpixels points, bilinear between the corners, that lies in
    the cell: however many points there are, they are denser at the narrow end of a footprint. What lies outside the
    grid is dropped; the shares of a footprint inside it sum to 1. Results are the same to the last bit for any number
    of threads and any division into granules. Raises ValueError for an unknown method and for numbers below 1.
    """

    def __init__(self, grid: Grid, method: str = "exact", subpixels: int = 10, threads: int = 1) -> None:
        self._grid, self._kind, self._threads = grid, kind_of(method, subpixels, threads), threads
        # One cell's sums side by side: sum w, sum w v, sum (w e)^2, number. They share a cache line.
        self._sums = np.zeros((grid.height, grid.width, 4))

    def add(
        self, x: ArrayLike, y: ArrayLike, value: ArrayLike, error: ArrayLike, weight: ArrayLike | None = None
    ) -> None:
        """Add soundings: corners x, y (n, 4) in units of the CRS, value, error (1 sigma) and weight (n,).

        weight: any positive number, such as 1 / error^2; 1 for all by default. An unknown error may be NaN: then the
        error of the cells that the footprint meets is NaN. Raises ValueError, and adds nothing, for other NaN or
        infinite input, a negative error, a weight that is not positive, other shapes, and a footprint whose bounding
        box spans more than 1e7 cells.
        """
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        check_corners(x, y)
        data = _sounding_data(len(x), value, error, weight)
        check_footprints(self._grid, x, y)
        for first in range(0, len(x), CHUNK):
            chunk = slice(first, first + CHUNK)
            self._add_chunk(x[chunk], y[chunk], data[chunk])

    def _add_chunk(self, x: Floats, y: Floats, data: Floats) -> None:
        quads = prepare(self._grid, x, y, self._threads)
        size = buffer_size(quads)

        def add_band(rows: tuple[int, int], members: Integers) -> None:
            kernels.add_band(quads, members, data, self._kind, rows, size, self._sums)

        for_each_band(add_band, quads, self._grid.height, self._threads)

    def finish(self) -> dict[str, NDArray[np.float64] | NDArray[np.int32]]:
        """Fields (height, width): mean = sum(w v) / sum(w), error = sqrt(sum((w e)^2)) / sum(w), weight = sum(w),
        and n_soundings (int32), the soundings with a share. Without any, mean and error are NaN, weight is 0.

        The error is that of a weighted mean of independent soundings. weight is the sum of shares unless weights
        were given. More soundings may be added afterwards.
        """
        weight, weighted, squares, number = np.moveaxis(self._sums, 2, 0)
        # No weight: 0 / NaN rather than a division by zero.
        divisor = np.where(number > 0, weight, np.nan)
        return {
            "mean": weighted / divisor,
            "error": np.sqrt(squares) / divisor,
            "n_soundings": number.astype(np.int32),
            "weight": weight.copy(),
        }


def kind_of(method: str, subpixels: int, threads: int) -> tuple[int, int]:
    """Method and subpixels as the kernels want them; ValueError for an unknown method and for numbers below 1."""
    if method not in METHODS:
        raise ValueError(f"unknown gridding method {method!r}; use {', '.join(METHODS)}")
    if subpixels < 1 or threads < 1:
        raise ValueError(f"subpixels and threads must be at least 1, found {subpixels} and {threads}")
    return {"exact": kernels.EXACT, "centre": kernels.CENTRE, "subpixel": kernels.SUBPIXEL}[method], subpixels


def overlap_areas(grid: Grid, x: ArrayLike, y: ArrayLike) -> tuple[Integers, Integers, Integers, Floats]:
    """Footprint, row, column and area, each (overlaps,), of every overlap of a footprint with a cell of the grid.

    x, y: corners (n, 4) in units of the CRS; areas in these units squared, by footprint, then row, then column. A
    footprint without an area has no overlap. Raises ValueError as `FootprintSums.add` does.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    check_corners(x, y)
    check_footprints(grid, x, y)
    quads = prepare(grid, x, y)
    size, shape = buffer_size(quads), (grid.height, grid.width)
    number = kernels.list_overlaps(quads, shape, size, np.empty((3, 0), np.int64), np.empty(0))
    index, areas = np.empty((3, number), np.int64), np.empty(number)
    kernels.list_overlaps(quads, shape, size, index, areas)
    return index[0], index[1], index[2], areas * (grid.dx * grid.dy)


def footprint_means(grid: Grid, field: ArrayLike, x: ArrayLike, y: ArrayLike) -> Floats:
    """Area-weighted mean (n,) of a field (height, width) over each footprint, corners x, y (n, 4) in the CRS.

    NaN where a footprint leaves the grid, meets a cell without a value, or has a corner that is NaN; the value of its
    cell for one without an area. Raises ValueError for other shapes and for a footprint of more than 1e7 cells.
    """
    field = np.ascontiguousarray(field, np.float64)
    if field.shape != (grid.height, grid.width):
        raise ValueError(f"the field has shape {field.shape}, the grid {(grid.height, grid.width)}; give both alike")
    all_x, all_y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    check_corners(all_x, all_y)
    known = (np.isfinite(all_x) & np.isfinite(all_y)).all(axis=1)
    known_x, known_y = all_x[known], all_y[known]
    check_footprints(grid, known_x, known_y)
    quads = prepare(grid, known_x, known_y)
    result = np.full(len(all_x), np.nan)
    result[known] = kernels.means(quads, buffer_size(quads), field)
    return result


def prepare(grid: Grid, x: Floats, y: Floats, threads: int = 1) -> Quads:
    """Checked corners (n, 4) as the kernels want them, by `threads` threads."""
    quads = (np.empty((len(x), 8)), np.empty(len(x)), np.empty((len(x), 4), np.int64))

    def prepare_part(part: slice) -> None:
        kernels.prepare(x[part], y[part], *_geometry(grid), (quads[0][part], quads[1][part], quads[2][part]))

    step = max(1, -(-len(x) // threads))
    for_each(prepare_part, [slice(first, first + step) for first in range(0, len(x), step)], threads)
    return quads


def _geometry(grid: Grid) -> tuple[kernels.Four, tuple[int, int]]:
    """Origin and shape, always of the same types, or every other mix of int and float is compiled again."""
    return (float(grid.west), float(grid.north), float(grid.dx), float(grid.dy)), (grid.height, grid.width)


def buffer_size(quads: Quads) -> int:
    """Cells of the largest window, with a column to spare."""
    return kernels.largest(quads[2])


def for_each(function: Callable[[_Item], None], items: Sequence[_Item], threads: int) -> None:
    """Call `function` with each item, in `threads` threads; raises what it raises."""
    if threads == 1:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, items))  # The list raises what a thread raised.


def for_each_band(
    function: Callable[[tuple[int, int], Integers], None], quads: Quads, height: int, threads: int
) -> None:
    """Call `function` with first and end row of each band of rows and the footprints that touch it, in input order.

    Who writes to the rows of its band alone adds the same numbers in the same order in any number of threads.
    """
    band_px = kernels.BAND_PX
    starts = np.zeros(-(-height // band_px) + 1, np.int64)
    members = kernels.list_bands(quads[2], height, starts)

    def call(band: int) -> None:
        rows = (band * band_px, min((band + 1) * band_px, height))
        function(rows, members[starts[band] : starts[band + 1]])

    for_each(call, np.flatnonzero(np.diff(starts)).tolist(), threads)


def _sounding_data(number: int, value: ArrayLike, error: ArrayLike, weight: ArrayLike | None) -> Floats:
    """Value, error and weight side by side (number, 3), checked."""
    columns = {"value": value, "error": error, "weight": np.ones(number) if weight is None else weight}
    data = np.empty((number, 3))
    for k, (name, column) in enumerate(columns.items()):
        if np.shape(column) != (number,):
            raise ValueError(f"{name} has shape {np.shape(column)} for {number} footprints; give one number for each")
        data[:, k] = column
    good_error = np.isnan(data[:, 1]) | ((data[:, 1] >= 0) & (data[:, 1] < np.inf))
    rules = {
        "value": (np.isfinite(data[:, 0]), "finite"),
        "error": (good_error, "finite and not negative, or NaN"),
        "weight": ((data[:, 2] > 0) & (data[:, 2] < np.inf), "finite and above 0"),
    }
    for k, (name, (good, rule)) in enumerate(rules.items()):
        if not good.all():
            first = int(np.argmin(good))
            raise ValueError(
                f"{name} must be {rule}, found {data[first, k]} at sounding {first} ({int((~good).sum())} of {number} "
                "are not); leave these soundings out"
            )
    return data


def check_corners(first: Floats, second: Floats) -> None:
    """Raise ValueError unless both coordinates have shape (n, 4)."""
    if first.ndim != 2 or first.shape[1] != 4 or first.shape != second.shape:
        raise ValueError(f"corners have shapes {first.shape} and {second.shape}; give (n, 4) for both coordinates")


def check_footprints(grid: Grid, x: Floats, y: Floats) -> None:
    """Raise ValueError for the first footprint that is not finite or spans too many cells."""
    i = kernels.first_faulty(x, y, *_geometry(grid))
    if i < 0:
        return
    if not (np.isfinite(x[i]).all() and np.isfinite(y[i]).all()):
        number = int((~(np.isfinite(x) & np.isfinite(y)).all(axis=1)).sum())
        raise ValueError(
            f"{number} of {len(x)} footprints have a corner that is NaN or infinite, the first of them footprint {i} "
            f"with x={x[i].tolist()}, y={y[i].tolist()}; leave them out"
        )
    raise ValueError(
        f"footprint {i} spans {np.ptp(x[i]):.6g} x {np.ptp(y[i]):.6g} in units of the CRS, more than "
        f"{kernels.MAX_CELLS} cells of {grid.dx:.6g} x {grid.dy:.6g}; check its corners (dateline? degrees for "
        "metres?) or take larger cells"
    )
