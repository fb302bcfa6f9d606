"""LBP codes of rows of pixels, compiled: the inner loops behind `lbp.codes`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

METHODS = ("default", "ror", "uniform", "nri_uniform", "var")
BAND_PX = 1 << 17  # a thread's least share: about 0.5 ms of work

_ROR, _UNIFORM, _NRI_UNIFORM, _VAR = range(1, len(METHODS))

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def _compiled(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Compile on first call. No fastmath: FMA or reordering would flip codes at ties.

    GIL released and threads from Python instead of `parallel=True`: numba's pool dies in forked workers
    (OpenMP) or under Dask's threads (workqueue).
    """
    return cast("Callable[_Args, _Result]", njit(cache=True, nogil=True, error_model="numpy")(function))


# A plain tuple, for numba's cache on disk cannot be read once a class in a signature is renamed:
# (points, 4) top, bottom, left, right pixel relative to the centre; (points, y) and (points, x) fractions.
Circle: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


def circle_of(points: int, radius: float, shape: tuple[int, int], origin_px: tuple[int, int]) -> Circle:
    """Where the neighbours of each pixel lie, for a field of `shape` (y, x) whose first pixel is at `origin_px`."""
    # scikit-image (0.26; it held the radius as a C float in older releases) rounds offsets to 5 decimals.
    angle = 2 * np.pi * np.arange(points, dtype=np.float64) / points
    dy, dx = np.round(-radius * np.sin(angle), 5), np.round(radius * np.cos(angle), 5)
    corners = np.stack([np.floor(dy), np.ceil(dy), np.floor(dx), np.ceil(dx)], axis=1).astype(np.int64)
    # The fraction is taken at the absolute position, so its last bits vary along a row: ties depend on them.
    y = np.arange(origin_px[0], origin_px[0] + shape[0]) + dy[:, None]
    x = np.arange(origin_px[1], origin_px[1] + shape[1]) + dx[:, None]
    return corners, y - np.floor(y), x - np.floor(x)


@_compiled
def _corner(field: NDArray[np.float64], layer: int, y: int, x: int) -> float:
    value: float = 0.0
    if 0 <= y < field.shape[1] and 0 <= x < field.shape[2]:
        value = field[layer, y, x]
    return value


@_compiled
def _blend(above: tuple[float, float], below: tuple[float, float], fy: float, fx: float) -> float:
    upper = (1 - fx) * above[0] + fx * above[1]
    lower = (1 - fx) * below[0] + fx * below[1]
    return (1 - fy) * upper + fy * lower


@_compiled
def _add(value: float, centre: float, bit: int, x: int | np.uintp, sums: NDArray[Any]) -> None:
    if sums.ndim == 2:  # Known when numba compiles, so no branch is left inside the loops.
        sums[0, x] += value
        sums[1, x] += value * value
    else:
        sums[x] += bit if value - centre >= 0 else 0


@_compiled
def _add_neighbour(
    field: NDArray[np.float64], layer: int, row: int, point: int, circle: Circle, sums: NDArray[Any]
) -> None:
    """Add one neighbour of all pixels of a row to their codes (x,) or moments (2, x); zeros lie outside."""
    rows, columns = field.shape[1:]
    corners, fraction_y, fraction_x = circle
    top, bottom = row + corners[point, 0], row + corners[point, 1]
    left, right = corners[point, 2], corners[point, 3]
    fy, bit = fraction_y[point, row], 1 << point
    first = min(max(0, -left), columns)
    last = max(first, min(columns, columns - right))
    if top < 0 or bottom >= rows:
        last = first
    elif top == bottom and left == right:  # On a pixel: its value as it is.
        for x in range(first, last):
            here, there = np.uintp(x), np.uintp(x + left)  # unsigned: no wrap-around, so the loop vectorises
            _add(field[layer, top, there], field[layer, row, here], bit, here, sums)
    else:
        for x in range(first, last):
            here, west, east = np.uintp(x), np.uintp(x + left), np.uintp(x + right)
            above = field[layer, top, west], field[layer, top, east]
            below = field[layer, bottom, west], field[layer, bottom, east]
            value = _blend(above, below, fy, fraction_x[point, here])
            _add(value, field[layer, row, here], bit, here, sums)
    for start, stop in ((0, first), (last, columns)):
        for x in range(start, stop):
            above = _corner(field, layer, top, x + left), _corner(field, layer, top, x + right)
            below = _corner(field, layer, bottom, x + left), _corner(field, layer, bottom, x + right)
            _add(_blend(above, below, fy, fraction_x[point, x]), field[layer, row, x], bit, x, sums)


@_compiled
def _count_ones(code: int) -> int:
    """Set bits of a 32-bit number by pairwise sums: no branch, no table, so that loops over it vectorise."""
    code -= (code >> 1) & 0x55555555
    code = (code & 0x33333333) + ((code >> 2) & 0x33333333)
    code = (code + (code >> 4)) & 0x0F0F0F0F
    return ((code * 0x01010101) >> 24) & 0xFF


@_compiled
def _classify(code: NDArray[np.uint32], points: int, method: int) -> None:
    """Turn the `default` codes of a row into the classes of `method`, in place."""
    if method == _ROR:
        turned = code.copy()
        for _ in range(points - 1):
            for x in range(code.size):
                turned[x] = (turned[x] >> 1) | ((turned[x] & 1) << (points - 1))
                code[x] = min(code[x], turned[x])
    elif method == _UNIFORM or method == _NRI_UNIFORM:
        for x in range(code.size):
            bits = code[x]
            ones = _count_ones(bits)
            changes = _count_ones(bits ^ ((bits >> 1) | ((bits & 1) << (points - 1))))
            if method == _UNIFORM:
                code[x] = ones if changes <= 2 else points + 1
            elif changes > 2:
                code[x] = points * (points - 1) + 2
            elif ones == 0 or ones == points:
                code[x] = 0 if ones == 0 else points * (points - 1) + 1
            else:  # Right turns since the run of ones ended at the last point.
                run = _count_ones(bits ^ (bits + 1)) - 1 if bits & 1 else _count_ones((bits & -bits) - 1)
                turns = ones - run if bits & 1 else points - run
                code[x] = 1 + (ones - 1) * points + turns


@_compiled
def fill_rows(
    field: NDArray[np.float64], circle: Circle, method: int, out: NDArray[Any], start: int, stop: int
) -> int:
    """Write the codes of rows start to stop of all layers; return how many of their pixels are not finite."""
    layers, _, columns = field.shape
    points = circle[0].shape[0]
    code, moments = np.empty(columns, np.uint32), np.empty((2, columns))
    gaps = 0
    for layer in range(layers):
        for row in range(start, stop):
            if method == _VAR:
                moments[:] = 0
                for point in range(points):
                    _add_neighbour(field, layer, row, point, circle, moments)
                for x in range(columns):
                    variance = (moments[1, x] - moments[0, x] * moments[0, x] / points) / points
                    out[layer, row, x] = variance if variance != 0 else np.nan
            else:
                code[:] = 0
                for point in range(points):
                    _add_neighbour(field, layer, row, point, circle, code)
                _classify(code, points, method)
                for x in range(columns):
                    out[layer, row, x] = code[x]
            for x in range(columns):
                gaps += 0 if np.isfinite(field[layer, row, x]) else 1
    return gaps


def fill(field: NDArray[np.float64], circle: Circle, method: int, out: NDArray[Any]) -> int:
    """Run the kernel on bands of rows side by side; return how many pixels are not finite."""
    rows = field.shape[1]
    bands = min(os.cpu_count() or 1, field.size // BAND_PX, rows)
    # Inside a worker thread (Dask's, say) the pool above already keeps the cores busy.
    if bands <= 1 or threading.current_thread() is not threading.main_thread():
        return fill_rows(field, circle, method, out, 0, rows)
    edges = [rows * band // bands for band in range(bands + 1)]
    with ThreadPoolExecutor(bands) as pool:
        kernel = partial(fill_rows, field, circle, method, out)
        return sum(pool.map(kernel, edges[:-1], edges[1:]))
