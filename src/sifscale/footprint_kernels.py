"""Overlap of quadrilaterals with the cells of a grid, compiled: the inner loops behind `footprints`.

Coordinates are in cells: u from the west border to the east, v from the north border to the south. A window (first
row, end row, first column, end column) holds the cells that the bounding box of a footprint meets.
"""

from __future__ import annotations

from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sifscale.compiled import compiled

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Four: TypeAlias = tuple[float, float, float, float]
# Corners (n, 8): u0..u3, v0..v3 in order around the footprint; area (n,) in cells, 0 if it is a line or a point;
# windows (n, 4), all 0 where the footprint does not meet the grid.
Quads: TypeAlias = tuple[Floats, Floats, Integers]

EXACT, CENTRE, SUBPIXEL = range(3)
MAX_CELLS = 10_000_000
BAND_PX = 64  # rows; a constant, so that compiled code divides by it in a cycle

# Corners this near a cell border lie on it: rounding of coordinates must not make slivers of overlap.
_SNAP_CELLS = 1e-9
# A footprint this thin, as area over squared extent, is a line or a point.
_LINE = 1e-9
# Prefix sums leave this much, per column and row of the window, in cells that the footprint does not meet.
_ROUNDING = 1e-15
# The overlaps of a footprint that covers more than this part of its window sum to its area within 1e-13 of it; those
# of a thin one only to the digits that cancel in its corners, and have to be summed.
_COVERED = 0.05

# A call that passes arrays on counts references to them, by atomic instructions: a sixth of the time on 4 km cells.
_inlined = partial(compiled, forceinline=True)


@_inlined
def _range(a: Four) -> tuple[float, float]:
    return min(a[0], a[1], a[2], a[3]), max(a[0], a[1], a[2], a[3])


@_inlined
def _four(table: Floats, i: int, first: int) -> Four:
    """Four numbers of a row as a tuple: compiled, it stays in registers, which a view of the row would not."""
    return table[i, first], table[i, first + 1], table[i, first + 2], table[i, first + 3]


@_inlined
def _turn(u: Four, v: Four, a: int, b: int, c: int) -> float:
    """Twice the signed area of a triangle of three corners."""
    return (u[b] - u[a]) * (v[c] - v[a]) - (u[c] - u[a]) * (v[b] - v[a])


@_inlined
def _opposite(a: float, b: float) -> bool:
    return a < 0 < b or b < 0 < a


@_inlined
def _in_order(u: Four, v: Four) -> tuple[Four, Four, float]:
    """The corners in an order in which their area, in cells, is not negative; and that area."""
    t0, t1, t2, t3 = _turn(u, v, 0, 1, 2), _turn(u, v, 1, 2, 3), _turn(u, v, 2, 3, 0), _turn(u, v, 3, 0, 1)
    # Where two edges cross, they are the diagonals of a convex quadrilateral: the order by angle about the mean.
    if _opposite(t0, t3) and _opposite(t1, t2):
        u, v = (u[0], u[2], u[1], u[3]), (v[0], v[2], v[1], v[3])
    elif _opposite(t0, t1) and _opposite(t2, t3):
        u, v = (u[0], u[1], u[3], u[2]), (v[0], v[1], v[3], v[2])
    area = 0.5 * ((u[2] - u[0]) * (v[3] - v[1]) - (u[3] - u[1]) * (v[2] - v[0]))
    if area < 0:
        u, v = (u[0], u[3], u[2], u[1]), (v[0], v[3], v[2], v[1])
    return u, v, abs(area)


@_inlined
def _in_cells(position: Four, origin: float, per_step: float) -> Four:
    a, b = (position[0] - origin) * per_step, (position[1] - origin) * per_step
    c, d = (position[2] - origin) * per_step, (position[3] - origin) * per_step
    return _snapped(a), _snapped(b), _snapped(c), _snapped(d)


@_inlined
def _snapped(position: float) -> float:
    nearest: float = np.rint(position)
    return nearest if abs(position - nearest) < _SNAP_CELLS else position


@compiled
def first_faulty(x: Floats, y: Floats, origin: Four, shape: tuple[int, int]) -> int:
    """Index of the first footprint that is not finite, or meets the grid and spans more than MAX_CELLS; or -1."""
    west, north, dx, dy = origin
    for i in range(len(x)):
        a, b = _four(x, i, 0), _four(y, i, 0)
        if not np.isfinite(a[0] + a[1] + a[2] + a[3] + b[0] + b[1] + b[2] + b[3]):
            return i
        x_min, x_max = _range(a)
        y_min, y_max = _range(b)
        # A cell of margin: what meets the grid after rounding must not escape this check.
        beside = x_max < west - dx or x_min > west + (shape[1] + 1) * dx
        beside = beside or y_min > north + dy or y_max < north - (shape[0] + 1) * dy
        if not beside and ((x_max - x_min) / dx + 1) * ((y_max - y_min) / dy + 1) > MAX_CELLS:
            return i
    return -1


@compiled
def prepare(x: Floats, y: Floats, origin: Four, shape: tuple[int, int], quads: Quads) -> None:
    """Fill `quads` from corners x, y (n, 4) of footprints that are not too large; origin: west, north, dx, dy."""
    west, north, dx, dy = origin
    height, width = shape
    corners, areas, windows = quads
    per_dx, per_dy = 1 / dx, -1 / dy
    for i in range(len(x)):
        u, v = _in_cells(_four(x, i, 0), west, per_dx), _in_cells(_four(y, i, 0), north, per_dy)
        u_min, u_max = _range(u)
        v_min, v_max = _range(v)
        areas[i], windows[i, :] = 0, 0
        if u_max < 0 or u_min >= width or v_max < 0 or v_min >= height:
            continue
        u, v, area = _in_order(u, v)
        corners[i, 0], corners[i, 1], corners[i, 2], corners[i, 3] = u
        corners[i, 4], corners[i, 5], corners[i, 6], corners[i, 7] = v
        if area > _LINE * ((u_max - u_min) ** 2 + (v_max - v_min) ** 2):
            areas[i] = area
        windows[i, 0], windows[i, 1] = int(np.floor(v_min)), int(np.floor(v_max)) + 1
        windows[i, 2], windows[i, 3] = int(np.floor(u_min)), int(np.floor(u_max)) + 1


@_inlined
def _add_edge(u0: float, v0: float, u1: float, v1: float, stride: int, cells: Floats) -> None:
    """Add what an edge changes from column to column in the cover of each row, walking from border to border."""
    column, row = int(u0), int(v0)
    step_u, step_v = 1 if u1 > u0 else -1, 1 if v1 > v0 else -1
    border_u, border_v = float(column + (u1 > u0)), float(row + (v1 > v0))
    # Borders are counted, not found by comparison, so that rounding never leads out of the window.
    left_u, left_v = abs(int(u1) - column), abs(int(v1) - row)
    inverse_u, inverse_v = 1 / (u1 - u0), 1 / (v1 - v0)
    t_u = (border_u - u0) * inverse_u if left_u > 0 else np.inf
    t_v = (border_v - v0) * inverse_v if left_v > 0 else np.inf
    u, v = u0, v0
    for _ in range(left_u + left_v):
        k, from_u, from_v = row * stride + column, u - column, v
        if t_u < t_v:
            u, v = border_u, v0 + (v1 - v0) * t_u
            share = 0.5 * (from_u + (u - column))
            column, border_u, left_u = column + step_u, border_u + step_u, left_u - 1
            t_u = (border_u - u0) * inverse_u if left_u > 0 else np.inf
        else:
            u, v = u0 + (u1 - u0) * t_v, border_v
            share = 0.5 * (from_u + (u - column))
            row, border_v, left_v = row + step_v, border_v + step_v, left_v - 1
            t_v = (border_v - v0) * inverse_v if left_v > 0 else np.inf
        cells[k] += (from_v - v) * (1 - share)
        cells[k + 1] += (from_v - v) * share
    share, k = 0.5 * (u + u1) - column, row * stride + column
    cells[k] += (v - v1) * (1 - share)
    cells[k + 1] += (v - v1) * share


@_inlined
def _add_edges(u: Four, v: Four, columns: int, cells: Floats) -> float:
    """Add all edges; a prefix sum of `cells` along a row that is above what is returned is an overlap."""
    for a, b in ((0, 1), (1, 2), (2, 3), (3, 0)):
        _add_edge(u[a], v[a], u[b], v[b], columns + 1, cells)
    v_min, v_max = _range(v)
    return _ROUNDING * (columns + 1) * min(1.0, v_max - v_min)


@_inlined
def _cover_exact(u: Four, v: Four, rows: int, columns: int, cells: Floats) -> float:
    """Overlap of a footprint with the cells of its window, by signed areas along edges, as font rasterisers do."""
    least = _add_edges(u, v, columns, cells)
    total = 0.0
    for row in range(rows):
        cover, in_row, first = 0.0, 0.0, row * (columns + 1)
        for k in range(first, first + columns):
            cover += cells[k]
            cells[k] = cover if cover > least else 0.0
            in_row += cells[k]
        cells[first + columns] = 0.0
        total += in_row
    return total


@_inlined
def _centroid(along: Four, a: float, b: float) -> float:
    """One coordinate of the centroid; a, b: areas of the triangles beside the diagonal, both 0 for a line."""
    lowest, highest = _range(along)
    centre = 0.25 * (along[0] + along[1] + along[2] + along[3])
    if a + b > 0:
        # Seen from an end of the diagonal, so that no digits cancel.
        mixed = a * (along[1] - along[0]) + (a + b) * (along[2] - along[0]) + b * (along[3] - along[0])
        centre = along[0] + mixed / (3 * (a + b))
    return min(max(centre, lowest), highest)  # A thin one's may be rounded out of its window.


@_inlined
def _cover_centre(u: Four, v: Four, area: float, rows: int, columns: int, cells: Floats) -> None:
    """1 in the cell of the centroid; of the mean of the corners where there is no area."""
    a, b = (_turn(u, v, 0, 1, 2), _turn(u, v, 0, 2, 3)) if area > 0 else (0.0, 0.0)
    row, column = int(np.floor(_centroid(v, a, b))), int(np.floor(_centroid(u, a, b)))
    if 0 <= row < rows and 0 <= column < columns:
        cells[row * (columns + 1) + column] = 1.0


@_inlined
def _cover_subpixel(u: Four, v: Four, points: int, rows: int, columns: int, cells: Floats) -> None:
    """Add up in each cell how many of points x points points, bilinear between the corners, it holds."""
    step = 1 / points
    for i in range(points):
        t = (i + 0.5) * step
        u0, v0 = u[0] + (u[3] - u[0]) * t, v[0] + (v[3] - v[0]) * t
        u1, v1 = u[1] + (u[2] - u[1]) * t, v[1] + (v[2] - v[1]) * t
        for j in range(points):
            s = (j + 0.5) * step
            column, row = u0 + (u1 - u0) * s, v0 + (v1 - v0) * s
            if 0 <= column < columns and 0 <= row < rows:
                cells[np.uintp(int(row) * (columns + 1) + int(column))] += 1.0


@_inlined
def _in_window(quads: Quads, i: int) -> tuple[Four, Four]:
    """Corners from the corner of the window: differences of near numbers are exact, so that every digit is kept."""
    row0, column0 = quads[2][i, 0], quads[2][i, 2]
    u, v = _four(quads[0], i, 0), _four(quads[0], i, 4)
    u = (u[0] - column0, u[1] - column0, u[2] - column0, u[3] - column0)
    return u, (v[0] - row0, v[1] - row0, v[2] - row0, v[3] - row0)


@_inlined
def _cover(quads: Quads, i: int, method: int, points: int, cells: Floats) -> float:
    """Fill `cells`, zero before, (rows of the window, columns + 1) flattened; returns what stands for all of it."""
    areas, windows = quads[1], quads[2]
    rows, columns = windows[i, 1] - windows[i, 0], windows[i, 3] - windows[i, 2]
    u, v = _in_window(quads, i)
    if method == SUBPIXEL:
        _cover_subpixel(u, v, points, rows, columns, cells)
        return float(points**2)
    if method == CENTRE or areas[i] == 0:
        _cover_centre(u, v, areas[i], rows, columns, cells)
        return 1.0
    return _cover_exact(u, v, rows, columns, cells)


@_inlined
def _bands(windows: Integers, i: int, height: int) -> tuple[int, int]:
    """First and end band of a footprint, the same one if it does not meet the grid."""
    row0, row1 = max(windows[i, 0], 0), min(windows[i, 1], height)
    return (row0 // BAND_PX, (row1 - 1) // BAND_PX + 1) if row0 < row1 else (0, 0)


@compiled
def largest(windows: Integers) -> int:
    """Cells of the largest window, with a column to spare; at least 1."""
    size = 1
    for i in range(len(windows)):
        size = max(size, (windows[i, 1] - windows[i, 0]) * (windows[i, 3] - windows[i, 2] + 1))
    return size


@compiled
def list_bands(windows: Integers, height: int, starts: Integers) -> Integers:
    """Footprints that touch each band of BAND_PX rows, in input order; band b has those at starts[b]..starts[b + 1]."""
    for i in range(len(windows)):
        first, last = _bands(windows, i, height)
        for band in range(first, last):
            starts[band + 1] += 1
    for band in range(1, len(starts)):
        starts[band] += starts[band - 1]
    members, free = np.empty(starts[-1], np.int64), starts.copy()
    for i in range(len(windows)):
        first, last = _bands(windows, i, height)
        for band in range(first, last):
            members[free[band]] = i
            free[band] += 1
    return members


@_inlined
def _add_to_cell(w: float, value: float, error: float, first: int, sums: Floats) -> None:
    """Add a sounding to the four sums from `first` on; zeros where w is 0: a branch often mispredicted costs more."""
    met = w > 0
    # Unsigned, or numba asks of each index whether it counts from the end.
    sums[np.uintp(first)] += w
    sums[np.uintp(first + 1)] += w * value
    sums[np.uintp(first + 2)] += (w * error) ** 2 if met else 0.0
    sums[np.uintp(first + 3)] += 1.0 if met else 0.0


@compiled
def add_band(
    quads: Quads, members: Integers, data: Floats, kind: tuple[int, int], band: tuple[int, int], size: int, sums: Floats
) -> None:
    """Add footprints `members` to the rows of a band of sums (height, width, 4); data: value, error, weight."""
    areas, windows, cells = quads[1], quads[2], np.zeros(size)
    width, flat = sums.shape[1], sums.reshape(-1)
    for i in members:
        row0, row1, column0, column1 = windows[i, 0], windows[i, 1], windows[i, 2], windows[i, 3]
        value, error, weight = data[i, 0], data[i, 1], data[i, 2]
        columns, begin, end = column1 - column0, max(column0, 0), min(column1, width)
        # Where their sum is known beforehand, overlaps are found and added to the grid in one go.
        in_one_go = kind[0] == EXACT and areas[i] > _COVERED * (row1 - row0) * columns
        least, whole = 0.0, areas[i]
        if in_one_go:
            u, v = _in_window(quads, i)
            least = _add_edges(u, v, columns, cells)
        else:
            whole = _cover(quads, i, kind[0], kind[1], cells)
        scale = weight / whole
        for row in range(max(row0, band[0]), min(row1, band[1])):
            cover, first = 0.0, (row - row0) * (columns + 1) - column0
            if in_one_go:
                for column in range(column0, begin):  # west of the grid
                    cover += cells[np.uintp(first + column)]
                for column in range(begin, end):
                    cover += cells[np.uintp(first + column)]
                    w = cover * scale if cover > least else 0.0
                    _add_to_cell(w, value, error, 4 * (row * width + column), flat)
            else:
                for column in range(begin, end):
                    w = cells[np.uintp(first + column)] * scale
                    _add_to_cell(w, value, error, 4 * (row * width + column), flat)
        cells[: (row1 - row0) * (columns + 1)] = 0.0


@compiled
def add_weights_band(
    native: Quads,
    fine: Quads,
    members: Integers,
    weight: Floats,
    kind: tuple[int, int],
    band: tuple[int, int],
    sizes: tuple[int, int],
    factor: int,
    sums: Floats,
    total: Floats,
) -> None:
    """Add footprints `members`, prepared on both grids, to the rows of a band of sums (height, width, k, k).

    Each adds weight x share x (share of its area in each fine pixel) to the pixels about every native cell that it
    meets; total (height, width) gets weight x share alone, so that it says what lies beyond the k x k pixels.
    """
    cells, pixels, support = np.zeros(sizes[0]), np.zeros(sizes[1]), sums.shape[2]
    margin = (support - factor) // 2
    for i in members:
        row0, row1, column0, column1 = native[2][i, 0], native[2][i, 1], native[2][i, 2], native[2][i, 3]
        first_y, end_y, first_x, end_x = fine[2][i, 0], fine[2][i, 1], fine[2][i, 2], fine[2][i, 3]
        if first_y == end_y:
            continue  # a point on the outer border, of no fine pixel
        scale = weight[i] / _cover(native, i, kind[0], kind[1], cells)
        whole = _cover(fine, i, EXACT, 0, pixels)
        stride, stride_px = column1 - column0 + 1, end_x - first_x + 1
        for row in range(max(row0, band[0]), min(row1, band[1])):
            top = row * factor - margin
            for column in range(max(column0, 0), min(column1, sums.shape[1])):
                w = cells[(row - row0) * stride + column - column0] * scale
                if w == 0:
                    continue
                total[row, column] += w
                left = column * factor - margin
                for y in range(max(first_y, top), min(end_y, top + support)):
                    first = (y - first_y) * stride_px - first_x
                    for x in range(max(first_x, left), min(end_x, left + support)):
                        sums[row, column, y - top, x - left] += w * pixels[first + x] / whole
        cells[: (row1 - row0) * stride] = 0.0
        pixels[: (end_y - first_y) * stride_px] = 0.0


@compiled
def list_overlaps(quads: Quads, shape: tuple[int, int], size: int, index: Integers, areas: Floats) -> int:
    """Number of overlaps; where there is room for them, index (3, number) footprint, row, column, and areas."""
    windows, cells, found = quads[2], np.zeros(size), 0
    for i in range(len(windows)):
        if quads[1][i] == 0:
            continue
        row0, row1, column0, column1 = windows[i, 0], windows[i, 1], windows[i, 2], windows[i, 3]
        _cover(quads, i, EXACT, 0, cells)
        stride = column1 - column0 + 1
        for row in range(max(row0, 0), min(row1, shape[0])):
            first = (row - row0) * stride - column0
            for column in range(max(column0, 0), min(column1, shape[1])):
                if cells[first + column] > 0:
                    if found < len(areas):
                        index[0, found], index[1, found], index[2, found] = i, row, column
                        areas[found] = cells[first + column]
                    found += 1
        cells[: (row1 - row0) * stride] = 0.0
    return found


@compiled
def means(quads: Quads, size: int, field: Floats) -> Floats:
    """Mean (n,) of `field` over each footprint; NaN where it leaves the grid."""
    windows, cells = quads[2], np.zeros(size)
    height, width = field.shape
    result = np.full(len(windows), np.nan)
    for i in range(len(windows)):
        row0, row1, column0, column1 = windows[i, 0], windows[i, 1], windows[i, 2], windows[i, 3]
        if row0 == row1:
            continue
        whole = _cover(quads, i, EXACT, 0, cells)
        stride, total = column1 - column0 + 1, 0.0
        for row in range(row0, row1):
            first = (row - row0) * stride - column0
            for column in range(column0, column1):
                if cells[first + column] > 0:
                    known = 0 <= row < height and 0 <= column < width
                    total += cells[first + column] * field[row, column] if known else np.nan
        cells[: (row1 - row0) * stride] = 0.0
        result[i] = total / whole
    return result
