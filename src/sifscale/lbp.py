"""Local Binary Patterns on pure arrays, bit-equal to scikit-image and aware of missing pixels.

Ojala, Pietikäinen & Mäenpää (2002), doi:10.1109/TPAMI.2002.1017623; `nri_uniform`: Ahonen, Hadid &
Pietikäinen (2006), doi:10.1109/TPAMI.2006.244; numerical conventions: scikit-image's `local_binary_pattern`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sifscale.lbp_kernels import METHODS, Circle, circle_of, fill

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

def _touched(circle: Circle) -> NDArray[np.int64]:
    """Offsets (n, 2) of the pixels that a code rests on."""
    touched = {(0, 0)}
    for top, bottom, left, right in circle[0].tolist():
        touched |= {(top, left), (top, right), (bottom, left), (bottom, right)}
    return np.array(sorted(touched))


def _inside(circle: Circle, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(y, x) True where every touched pixel lies inside the field."""
    inside = np.zeros(shape, np.bool_)
    touched = _touched(circle)
    first, last = -touched.min(axis=0), np.maximum(0, shape - touched.max(axis=0))
    inside[first[0] : last[0], first[1] : last[1]] = True
    return inside


def _broken(field: NDArray[np.float64], circle: Circle) -> NDArray[np.bool_]:
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
    circle = circle_of(points, radius, layers.shape[1:], origin_px)
    dtype = np.dtype(np.float64) if method == "var" else np.min_scalar_type(_largest(points, method))
    out = np.empty(layers.shape, dtype)
    valid = np.empty(layers.shape, np.bool_)
    valid[:] = _inside(circle, layers.shape[1:])
    if fill(layers, circle, METHODS.index(method), out):
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
