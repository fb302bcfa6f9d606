"""Local Binary Patterns on pure arrays, bit-equal to scikit-image and aware of missing pixels.

Ojala, Pietikäinen & Mäenpää (2002), doi:10.1109/TPAMI.2002.1017623; `nri_uniform`: Ahonen, Hadid &
Pietikäinen (2006), doi:10.1109/TPAMI.2006.244; numerical conventions: scikit-image's `local_binary_pattern`.
"""

from __future__ import annotations

import math
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
ENCODINGS = ("bits", "onehot", "scaled", "raw")
ENCODING_METHODS = {
    "bits": ("default", "ror"),
    "onehot": ("uniform", "nri_uniform"),
    "scaled": ("default", "ror", "uniform", "nri_uniform"),
    "raw": ("var",),
}
MAX_POINTS = 32  # a code is held in a uint32
MAX_RADIUS_PX = 10_000  # far beyond any use; keeps pixel offsets well inside int64
MAX_ONEHOT_PLANES = 64
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
_Circle: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


def _circle(points: int, radius: float, shape: tuple[int, int], origin_px: tuple[int, int]) -> _Circle:
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
    field: NDArray[np.float64], layer: int, row: int, point: int, circle: _Circle, sums: NDArray[Any]
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
def _fill_rows(
    field: NDArray[np.float64], circle: _Circle, method: int, out: NDArray[Any], start: int, stop: int
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


def _fill(field: NDArray[np.float64], circle: _Circle, method: int, out: NDArray[Any]) -> int:
    """Run the kernel on bands of rows side by side; return how many pixels are not finite."""
    rows = field.shape[1]
    bands = min(os.cpu_count() or 1, field.size // BAND_PX, rows)
    # Inside a worker thread (Dask's, say) the pool above already keeps the cores busy.
    if bands <= 1 or threading.current_thread() is not threading.main_thread():
        return _fill_rows(field, circle, method, out, 0, rows)
    edges = [rows * band // bands for band in range(bands + 1)]
    with ThreadPoolExecutor(bands) as pool:
        kernel = partial(_fill_rows, field, circle, method, out)
        return sum(pool.map(kernel, edges[:-1], edges[1:]))


def _touched(circle: _Circle) -> NDArray[np.int64]:
    """Offsets (n, 2) of the pixels that a code rests on."""
    touched = {(0, 0)}
    for top, bottom, left, right in circle[0].tolist():
        touched |= {(top, left), (top, right), (bottom, left), (bottom, right)}
    return np.array(sorted(touched))


def _inside(circle: _Circle, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(y, x) True where every touched pixel lies inside the field."""
    inside = np.zeros(shape, np.bool_)
    touched = _touched(circle)
    first, last = -touched.min(axis=0), np.maximum(0, shape - touched.max(axis=0))
    inside[first[0] : last[0], first[1] : last[1]] = True
    return inside


def _broken(field: NDArray[np.float64], circle: _Circle) -> NDArray[np.bool_]:
    """(layer, y, x) True where a touched pixel is not finite."""
    gap = ~np.isfinite(field)
    rows, columns = field.shape[1:]
    broken = np.zeros_like(gap)
    for y, x in _touched(circle):
        if abs(y) < rows and abs(x) < columns:
            seen = gap[:, max(0, y) : rows + min(0, y), max(0, x) : columns + min(0, x)]
            broken[:, max(0, -y) : rows - max(0, y), max(0, -x) : columns - max(0, x)] |= seen
    return broken


def _largest(points: int, method: str) -> int:
    if method == "uniform":
        return points + 1
    return points * (points - 1) + 2 if method == "nri_uniform" else (1 << points) - 1


def _check(points: int, radius: float, method: str, encoding: str | None = None) -> None:
    if not 1 <= points <= MAX_POINTS:
        raise ValueError(f"LBP points must be 1 to {MAX_POINTS}, found {points}: choose e.g. 8, 16 or 24")
    if not 0 < radius <= MAX_RADIUS_PX:
        raise ValueError(
            f"LBP radius must be above 0 and at most {MAX_RADIUS_PX} px, found {radius}: choose e.g. 1"
        )
    if method not in METHODS:
        raise ValueError(f"unknown LBP method, found {method!r}: choose one of {', '.join(METHODS)}")
    if encoding is None:
        return
    if encoding not in ENCODINGS:
        raise ValueError(f"unknown LBP encoding, found {encoding!r}: choose one of {', '.join(ENCODINGS)}")
    if method not in ENCODING_METHODS[encoding]:
        fitting = " or ".join(name for name in ENCODINGS if method in ENCODING_METHODS[name])
        raise ValueError(f"LBP encoding {encoding!r} does not go with method {method!r}: choose {fitting}")
    if encoding == "onehot" and _largest(points, method) >= MAX_ONEHOT_PLANES:
        planes = _largest(points, method) + 1
        raise ValueError(
            f"LBP one-hot of {method!r} has at most {MAX_ONEHOT_PLANES} planes, found {planes} "
            f"with {points} points: take fewer points or encoding 'scaled'"
        )


def codes(
    field: NDArray[np.floating[Any] | np.integer[Any]],
    points: int,
    radius: float,
    method: str,
    *,
    origin_px: tuple[int, int] = (0, 0),
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """LBP codes of a field and the mask of where they rest on real pixels only.

    Args:
        field: (..., y, x); NaN or infinite where missing.
        points: neighbours on the circle (P), 1 to 32.
        radius: of the circle (R), in px.
        method: one of METHODS.
        origin_px: (y, x) position of the field's first pixel in the whole grid, for a caller that works in
            chunks. The last bits of the interpolation weights depend on it, and they decide ties; with it,
            chunks cut with `halo_px` give the whole field's codes exactly.

    Returns:
        Codes (..., y, x) in the smallest unsigned integer that holds them (`var`: float64, NaN where the
        variance is 0), equal to scikit-image's on finite fields (but for 32 points: its codes overflow); and
        a mask (..., y, x), True where the centre and every pixel that the bilinear neighbourhood touches
        are inside the field and finite. Where a touched pixel is not finite the code is 0; beyond the border
        the codes read zeros, as scikit-image's do, and the mask is False.

    Raises:
        ValueError: the field is not real or has no (y, x), or an argument is out of range.
    """
    _check(points, radius, method)
    field = np.asarray(field)
    if field.dtype.kind not in "iuf":
        raise ValueError(f"LBP needs integer or float pixels, found dtype {field.dtype}: convert the field")
    if field.ndim < 2:
        raise ValueError(f"LBP needs dimensions (..., y, x), found shape {field.shape}: add the missing ones")
    shape = field.shape
    # One type and rank for the kernels: they compile once, whatever the caller's dtype and batch axes.
    layers = np.ascontiguousarray(field, np.float64).reshape(math.prod(shape[:-2]), *shape[-2:])
    circle = _circle(points, radius, layers.shape[1:], origin_px)
    dtype = np.dtype(np.float64) if method == "var" else np.min_scalar_type(_largest(points, method))
    out = np.empty(layers.shape, dtype)
    valid = np.empty(layers.shape, np.bool_)
    valid[:] = _inside(circle, layers.shape[1:])
    if _fill(layers, circle, METHODS.index(method), out):
        broken = _broken(layers, circle)
        out[broken] = 0
        valid[broken] = False
    return out.reshape(shape), valid.reshape(shape)


def channel_names(points: int, radius: float, method: str, encoding: str) -> list[str]:
    """Names of the planes that `encode` yields, in order, e.g. `lbp_uniform_p8_r1px_class0`.

    Raises:
        ValueError: an argument is out of range, or the encoding does not go with the method.
    """
    _check(points, radius, method, encoding)
    stem = f"lbp_{method}_p{points}_r{float(radius):g}px"
    if encoding == "bits":
        return [f"{stem}_bit{bit}" for bit in range(points)]
    if encoding == "onehot":
        return [f"{stem}_class{code}" for code in range(_largest(points, method) + 1)]
    return [f"{stem}_{encoding}"]


def encode(
    codes: NDArray[Any], valid: NDArray[np.bool_], points: int, method: str, encoding: str
) -> NDArray[np.float32]:
    """Turn codes into channels that a network can read.

    Codes are categories (127 and 128 have nothing in common), hence `bits`, one plane a neighbour, and
    `onehot`, one plane a class; `scaled` is the code over its largest value, in [0, 1]; `raw` is `var`
    itself, in squared units of the field.

    Args:
        codes, valid: (..., y, x), as `codes` returns them.
        points, method: as given to `codes`.
        encoding: one of ENCODINGS.

    Returns:
        (..., channel, y, x), NaN where not valid (and, under `raw`, where a zero variance has no code).

    Raises:
        ValueError: the shapes differ, or the encoding does not go with the method.
    """
    _check(points, 1.0, method, encoding)
    if codes.shape != valid.shape or codes.ndim < 2:
        raise ValueError(
            f"LBP codes and mask must share one shape (..., y, x), found {codes.shape} and {valid.shape}: "
            "pass both as codes() returns them"
        )
    largest = _largest(points, method)
    planes = {"bits": points, "onehot": largest + 1}.get(encoding, 1)
    out = np.empty((*codes.shape[:-2], planes, *codes.shape[-2:]), np.float32)
    for plane in range(planes):
        channel = out[..., plane, :, :]
        if encoding == "bits":
            channel[...] = (codes >> plane) & 1
        elif encoding == "onehot":
            channel[...] = codes == plane
        else:
            channel[...] = codes / largest if encoding == "scaled" else codes
        channel[~valid] = np.nan
    return out


def halo_px(radius: float) -> int:
    """Pixels that a chunk needs beyond each side so that its own codes are those of the whole field."""
    return math.ceil(radius)
