"""Local Binary Patterns on pure arrays, bit-equal to scikit-image and aware of missing pixels.

Ojala, Pietikäinen & Mäenpää (2002), doi:10.1109/TPAMI.2002.1017623; `nri_uniform`: Ahonen, Hadid &
Pietikäinen (2006), doi:10.1109/TPAMI.2006.244; numerical conventions: scikit-image's `local_binary_pattern`.
"""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numba import config
from numpy.typing import NDArray

from sifscale.lbp_kernels import METHODS, Circle, fill_tiles

ENCODINGS = ("bits", "onehot", "scaled", "raw")
ENCODING_METHODS = {
    "bits": ("default", "ror"),
    "onehot": ("uniform", "nri_uniform"),
    "scaled": ("default", "ror", "uniform", "nri_uniform"),
    "raw": ("var",),
}
MAX_POINTS = 32  # a code is held in a uint32
MAX_RADIUS_PX = 1_000  # far beyond any use; keeps scratch memory, a tile and its halo, small
MAX_ONEHOT_PLANES = 64
TILE_PX = 4096  # about 200 kB of scratch memory
TILE_WIDTH_PX = 256  # at most; the longer the rows, the fewer loops
SHARE = 1 << 17  # a thread's least work, in neighbours: about 40 us, where to wake it takes 15


def _groups(dy: NDArray[np.float64], on_pixel: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Points on pixels in fours (n, 4), the others in pairs (n, 2) that share rows; the last of a group repeated."""
    rows: dict[float, list[int]] = {}
    for point in np.flatnonzero(~on_pixel):
        rows.setdefault(float(dy[point]), []).append(int(point))
    pairs = [point for shared in rows.values() for point in [*shared, *shared[-1:] * (len(shared) % 2)]]
    fours = np.flatnonzero(on_pixel)
    fours = np.pad(fours, (0, -fours.size % 4), "edge") if fours.size else fours
    return fours.reshape(-1, 4), np.array(pairs, np.int64).reshape(-1, 2)


def neighbourhood(
    points: int, radius: float, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Where neighbours lie, dy and dx (points,), and the pixels top, bottom, left, right of each (points, 4), in px."""
    # scikit-image (0.26; it held the radius as a C float in older releases) rounds offsets to 5 decimals.
    angle = 2 * np.pi * np.arange(points, dtype=np.float64) / points
    dy, dx = np.round(-radius * np.sin(angle), 5), np.round(radius * np.cos(angle), 5)
    corners = np.stack([np.floor(dy), np.ceil(dy), np.floor(dx), np.ceil(dx)], axis=1).astype(np.int64)
    # A field's size (y, x) away is outside; nothing farther, so that the halo of a tile does not outgrow the field.
    return dy, dx, corners.clip(-np.repeat(shape, 2), np.repeat(shape, 2))


@lru_cache(maxsize=16)
def _circle(points: int, radius: float, shape: tuple[int, int], origin_px: tuple[int, int]) -> Circle:
    """Where the neighbours of each pixel lie, for a field of `shape` (y, x) whose first pixel is at `origin_px`."""
    dy, dx, corners = neighbourhood(points, radius, shape)
    touched = np.concatenate([np.zeros((1, 2), np.int64), *(corners[:, [y, x]] for y in (0, 1) for x in (2, 3))])
    # The fraction is taken at the absolute position, so its last bits vary along a row: ties depend on them.
    y = np.arange(origin_px[0], origin_px[0] + shape[0]) + dy[:, None]
    x = np.arange(origin_px[1], origin_px[1] + shape[1]) + dx[:, None]
    fraction_y, fraction_x = y - np.floor(y), x - np.floor(x)
    fy, fx = dy - np.floor(dy), dx - np.floor(dx)
    weights = np.stack([1 - fy, fy, 1 - fx, fx], axis=1).astype(np.float32)
    off = max(np.abs(fraction_y - fy[:, None]).max(), np.abs(fraction_x - fx[:, None]).max())
    reach = (touched[:, 0].min(), touched[:, 0].max(), touched[:, 1].min(), touched[:, 1].max())
    touched = np.unique(touched, axis=0)
    on, between = _groups(dy, (corners[:, 0] == corners[:, 1]) & (corners[:, 2] == corners[:, 3]))
    return corners, fraction_y, fraction_x, weights, float(off), touched, reach, on, between


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that are kept, for to start one takes as long as a small field; a forked process needs its own."""
    return ThreadPoolExecutor(threads - 1, f"lbp-{process}")


def _fill(layers: NDArray[Any], circle: Circle, method: int, out: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Run the kernel on shares of the tiles side by side."""
    top, bottom = circle[6][:2]
    across = -(-layers.shape[2] // TILE_WIDTH_PX)
    rows = max(1, TILE_PX // -(-layers.shape[2] // across), bottom - top)  # not lower than its surroundings
    tiles = -(-layers.shape[1] // rows), across
    total = layers.shape[0] * tiles[0] * tiles[1]
    fill = partial(fill_tiles, layers, circle, method, tiles, out, valid)
    most: int = vars(config)["NUMBA_NUM_THREADS"]  # this process's cores, or what the environment says
    threads = min(most, layers.size * len(circle[0]) // SHARE, total)
    # Inside a worker thread (Dask's, say) the pool above already keeps the cores busy.
    if threads <= 1 or threading.current_thread() is not threading.main_thread():
        fill(0, total)
        return
    # Several shares a thread, taken as each gets to them, for a thread may start late or be held up.
    count = min(4 * threads, total)
    shares = iter([(total * share // count, total * (share + 1) // count) for share in range(count)])

    def work() -> None:
        for share in shares:
            fill(*share)

    others = [_pool(os.getpid(), most).submit(work) for _ in range(threads - 1)]  # this thread does its share too
    work()
    for other in others:
        other.result()


def largest_code(points: int, method: str) -> int:
    """The largest code of a method other than `var`."""
    if method == "uniform":
        return points + 1
    return points * (points - 1) + 2 if method == "nri_uniform" else (1 << points) - 1


def check(points: int, radius: float, method: str, encoding: str | None = None) -> None:
    """Refuse, as a ValueError, an argument that is out of range or an encoding that does not go with the method."""
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
    if encoding == "onehot" and largest_code(points, method) >= MAX_ONEHOT_PLANES:
        planes = largest_code(points, method) + 1
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
    check(points, radius, method)
    field = np.asarray(field)
    if field.dtype.kind not in "iuf":
        raise ValueError(f"LBP needs integer or float pixels, found dtype {field.dtype}: convert the field")
    if field.ndim < 2:
        raise ValueError(f"LBP needs dimensions (..., y, x), found shape {field.shape}: add the missing ones")
    shape = field.shape
    # float32 where it holds every value, else float64, and one rank: the kernels compile for these two only,
    # whatever the caller's dtype and batch axes.
    exact = np.float32 if np.can_cast(field.dtype, np.float32) else np.float64
    layers = np.ascontiguousarray(field, exact).reshape(math.prod(shape[:-2]), *shape[-2:])
    dtype = np.dtype(np.float64) if method == "var" else np.min_scalar_type(largest_code(points, method))
    out, valid = np.empty(layers.shape, dtype), np.empty(layers.shape, np.bool_)
    if layers.size:
        circle = _circle(points, float(radius), layers.shape[1:], (int(origin_px[0]), int(origin_px[1])))
        _fill(layers, circle, METHODS.index(method), out, valid)
    return out.reshape(shape), valid.reshape(shape)


def channel_names(points: int, radius: float, method: str, encoding: str) -> list[str]:
    """Names of the planes that `encode` yields, in order, e.g. `lbp_uniform_p8_r1px_class0`.

    Raises:
        ValueError: an argument is out of range, or the encoding does not go with the method.
    """
    check(points, radius, method, encoding)
    stem = f"lbp_{method}_p{points}_r{float(radius):g}px"
    if encoding == "bits":
        return [f"{stem}_bit{bit}" for bit in range(points)]
    if encoding == "onehot":
        return [f"{stem}_class{code}" for code in range(largest_code(points, method) + 1)]
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
    check(points, 1.0, method, encoding)
    if codes.shape != valid.shape or codes.ndim < 2:
        raise ValueError(
            f"LBP codes and mask must share one shape (..., y, x), found {codes.shape} and {valid.shape}: "
            "pass both as codes() returns them"
        )
    largest = largest_code(points, method)
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
