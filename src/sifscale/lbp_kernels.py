"""LBP codes of stacks of fields, compiled: the inner loops behind `lbp.codes`.

A field is worked on in tiles, copied with their surroundings into scratch memory that the processor's cache holds;
there every neighbour is a constant offset away, and beyond the field lie the zeros that scikit-image reads.

A neighbour between pixels is first interpolated in float32. Where it differs from the centre by less than rounding
could explain, the strip is done again in float64, operation by operation as scikit-image does it, for then the last
bit decides. With u = 2**-24 and M the largest magnitude in the tile, the float32 difference is off by at most
u M each for rounding the corners, the centre, the weights and the products, 3 u M for the sums and 2 u M for the
difference: 9 u M, for which `_ROUNDING` leaves 16. Weights are those of nominal fractions; a fraction that is off by d
changes the value by at most 2 d M, and there are two. `_UNDERFLOW` covers results too small for float32, each off by
less than 2**-149. Beyond `_OVERFLOW` float32 is not tried.

Numba's cache on disk notices changes of this file only: what is compiled may not call compiled code of other files.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sifscale.compiled import compiled

METHODS = ("default", "ror", "uniform", "nri_uniform", "var")
STRIP_PX = 1024  # compared, or done again, in one go

_ROUNDING = 2.0**-20
_UNDERFLOW = 2.0**-120
_OVERFLOW = 2.0**120

_ROR, _UNIFORM, _NRI_UNIFORM, _VAR = range(1, len(METHODS))

Bits: TypeAlias = int | np.unsignedinteger[Any]
Number: TypeAlias = float | np.floating[Any]
Codes: TypeAlias = NDArray[np.uint32]
Offsets: TypeAlias = NDArray[np.int64]
# Plain tuples, for numba's cache on disk cannot be read once a class in a signature is renamed.
# Corners (points, 4) top, bottom, left, right pixel relative to the centre, at most a field's size away; fractions
# (points, y) and (points, x); weights (points, 4) of the corners nw, ne, sw, se by nominal fractions, and how far
# fractions are off those at most; touched (n, 2) pixels that a code rests on, and their top, bottom, left, right end.
Reach: TypeAlias = tuple[int, int, int, int]
Fractions: TypeAlias = NDArray[np.float64]
Circle: TypeAlias = tuple[Offsets, Fractions, Fractions, NDArray[np.float32], float, Offsets, Reach]
# Place of the first pixel in the scratch memory, first row and number of rows, first column and number of columns,
# places from one row to the next.
Strip: TypeAlias = tuple[int, int, int, int, int, int]


# FMA, for results that are checked against a bound of their error.
_fused = partial(compiled, fastmath={"contract"})


@compiled
def _part(values: NDArray[Any], start: int, size: int) -> NDArray[Any]:
    """So many values from a start."""
    return values[start : start + size]


@compiled
def _copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    """Copy (n,); `target[:] = source` takes ten times as long when compiled."""
    for i in range(source.size):
        x = np.uintp(i)  # unsigned, here and below: no wrap-around, so the loop vectorises
        target[x] = source[x]


@compiled
def _load(
    field: NDArray[Any],
    corner: tuple[int, int, int],
    stride: int,
    exact: NDArray[Any],
    rough: NDArray[np.float32],
    gap: NDArray[np.uint8],
) -> tuple[Number, bool]:
    """Copy a tile, as it is, in float32, and where it is not finite; return the largest magnitude, and any gaps."""
    layer, top, left = corner
    exact[:] = 0
    first, last = max(0, -left), min(stride, field.shape[2] - left)
    for row in range(max(0, -top), min(exact.size // stride, field.shape[1] - top)):
        source = field[layer, top + row, left + first : left + last]
        _copy(source, exact[row * stride + first : row * stride + last])
    for i in range(exact.size):
        x = np.uintp(i)
        rough[x] = np.float32(exact[x])
        gap[x] = not abs(exact[x]) < np.inf
    bits, largest, gaps = rough.view(np.uint32), np.uint32(0), np.uint8(0)
    for i in range(bits.size):  # Magnitudes of floats are in the order of their bits, and integers vectorise.
        x = np.uintp(i)
        gaps = np.uint8(gaps | gap[x])
        magnitude = np.uint32(bits[x] & np.uint32(0x7FFFFFFF)) if gap[x] == 0 else np.uint32(0)
        largest = np.uint32(max(largest, magnitude))
    return np.array([largest], np.uint32).view(np.float32)[0], bool(gaps != 0)


@compiled
def _add(value: Number, centre: Number, bit: Bits, x: Bits, sums: tuple[NDArray[Any], ...]) -> None:
    """Set or clear a bit of codes (n,), or add to two moments (n,), at x."""
    if len(sums) == 2:  # Known when numba compiles, so no branch is left inside the loops.
        sums[0][x] += value
        sums[1][x] += value * value
    else:
        sums[0][x] = (sums[0][x] & ~bit) | (bit if value >= centre else np.uint32(0))


@compiled
def _add_pixels(
    exact: NDArray[Any], start: int, size: int, offset: int, bit: Bits, sums: tuple[NDArray[Any], ...]
) -> None:
    """Add a neighbour that lies on a pixel to codes or moments (size,)."""
    centre, there = _part(exact, start, size), _part(exact, start + offset, size)
    for i in range(size):
        x = np.uintp(i)
        _add(np.float64(there[x]), np.float64(centre[x]), bit, x, sums)


@compiled
def _add_between(
    exact: NDArray[Any], strip: Strip, offsets: Offsets, circle: Circle, point: int, sums: tuple[NDArray[Any], ...]
) -> None:
    """Add a neighbour between pixels to codes or moments of a strip, in float64."""
    begin, top, rows, left, width, stride = strip
    bit = np.uint32(1 << point)
    for row in range(rows):
        fy, fraction_x = circle[1][point, top + row], circle[2][point, left : left + width]
        start = begin + row * stride
        centre = _part(exact, start, width)
        nw, ne = _part(exact, start + offsets[0], width), _part(exact, start + offsets[1], width)
        sw, se = _part(exact, start + offsets[2], width), _part(exact, start + offsets[3], width)
        for i in range(width):
            x, here = np.uintp(i), np.uintp(row * stride + i)
            fx = fraction_x[x]
            upper = (1 - fx) * np.float64(nw[x]) + fx * np.float64(ne[x])
            lower = (1 - fx) * np.float64(sw[x]) + fx * np.float64(se[x])
            _add((1 - fy) * upper + fy * lower, np.float64(centre[x]), bit, here, sums)


@_fused
def _add_roughly(
    rough: NDArray[np.float32],
    centre: NDArray[np.float32],
    start: int,
    offsets: Offsets,
    weights: NDArray[np.float32],
    tolerance: Number,
    bit: Bits,
    code: Codes,
) -> bool:
    """Add a neighbour to codes (size,) with centres (size,) by float32; True where one of them is in doubt."""
    nw, ne = _part(rough, start + offsets[0], centre.size), _part(rough, start + offsets[1], centre.size)
    sw, se = _part(rough, start + offsets[2], centre.size), _part(rough, start + offsets[3], centre.size)
    a, b, c, d = weights[0], weights[1], weights[2], weights[3]
    doubt = np.uint32(0)
    for i in range(centre.size):
        x = np.uintp(i)
        gain = a * nw[x] + b * ne[x] + c * sw[x] + d * se[x] - centre[x]
        code[x] |= bit if gain >= 0 else np.uint32(0)
        doubt = np.uint32(doubt | (np.uint32(1) if abs(gain) <= tolerance else np.uint32(0)))
    return bool(doubt != 0)


@compiled
def _codes(
    scratch: tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]],
    strip: Strip,
    circle: Circle,
    offsets: Offsets,
    largest: Number,
    code: Codes,
) -> None:
    """Write the `default` codes of a strip into code (n,)."""
    exact, rough, centre = scratch
    begin, _, rows, _, width, stride = strip
    size = (rows - 1) * stride + width
    tolerance = np.float32((_ROUNDING + 4 * circle[4]) * largest + _UNDERFLOW)
    code[:] = 0
    centre[:] = np.nan  # between the rows of a strip lie their surroundings, where nothing is in doubt
    for row in range(rows):
        _copy(_part(rough, begin + row * stride, width), _part(centre, row * stride, width))
    for point in range(offsets.shape[0]):
        bit = np.uint32(1 << point)
        if offsets[point, 0] == offsets[point, 3]:
            _add_pixels(exact, begin, size, offsets[point, 0], bit, (code,))
        elif largest > _OVERFLOW or _add_roughly(
            rough, centre[:size], begin, offsets[point], circle[3][point], tolerance, bit, code
        ):
            _add_between(exact, strip, offsets[point], circle, point, (code,))


@compiled
def _variances(
    exact: NDArray[Any],
    strip: Strip,
    circle: Circle,
    offsets: Offsets,
    moments: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    """Write the variances of a strip over the first of its moments (n,), NaN for 0."""
    begin, _, rows, _, width, stride = strip
    points, size = offsets.shape[0], (rows - 1) * stride + width
    moments[0][:] = 0
    moments[1][:] = 0
    for point in range(points):
        if offsets[point, 0] == offsets[point, 3]:
            _add_pixels(exact, begin, size, offsets[point, 0], 0, moments)
        else:
            _add_between(exact, strip, offsets[point], circle, point, moments)
    for x in range(size):
        variance = (moments[1][x] - moments[0][x] * moments[0][x] / points) / points
        moments[0][x] = variance if variance != 0 else np.nan


@compiled
def _count_ones(bits: Bits) -> Bits:
    """Set bits of a uint32 by pairwise sums: no branch, no table, so that loops over it vectorise.

    Numba widens every result to 64 bits; brought back to 32, twice as many fit a register.
    """
    pairs = np.uint32(bits - ((bits >> np.uint32(1)) & np.uint32(0x55555555)))
    fours = np.uint32((pairs & np.uint32(0x33333333)) + ((pairs >> np.uint32(2)) & np.uint32(0x33333333)))
    eights = np.uint32((fours + (fours >> np.uint32(4))) & np.uint32(0x0F0F0F0F))
    return np.uint32(np.uint32(eights * np.uint32(0x01010101)) >> np.uint32(24))


@compiled
def _turned(code: Bits, points: int) -> Bits:
    """A code a bit to the right, its last bit in front."""
    return np.uint32((code >> np.uint32(1)) | ((code & np.uint32(1)) << np.uint32(points - 1)))


@compiled
def _classify(code: Codes, points: int, method: int) -> None:
    """Turn `default` codes (n,) into the classes of `method`, in place."""
    if method == _ROR:
        turned = code.copy()
        for _ in range(0, points - 1, 4):  # four turns in a pass save memory traffic; some too many do no harm
            for x in range(code.size):
                once = _turned(turned[x], points)
                twice = _turned(once, points)
                thrice = _turned(twice, points)
                turned[x] = _turned(thrice, points)
                code[x] = min(min(code[x], once), min(twice, thrice), turned[x])
    elif method == _UNIFORM or method == _NRI_UNIFORM:
        for x in range(code.size):
            bits, turned_bits = code[x], _turned(code[x], points)
            ones, uniform = _count_ones(bits), _count_ones(bits ^ turned_bits) <= 2
            if method == _UNIFORM:
                code[x] = ones if uniform else points + 1
            else:  # By number of ones, then by right turns since the run of ones began at the first point.
                before = _count_ones(np.uint32((turned_bits & ~bits) - 1))  # point of the zero before the run
                turns = np.uint32(points - 1 - before) if 0 < ones < points else np.uint32(0)
                rank = np.uint32((ones - 1) * points + 1 + turns) if ones > 0 else np.uint32(0)
                code[x] = rank if uniform else points * (points - 1) + 2


@compiled
def _spread(gap: NDArray[np.uint8], places: Offsets, start: int, size: int, broken: NDArray[np.uint8]) -> None:
    """Mark in broken, on size pixels from start, where one of the places (n,) around a pixel is a gap."""
    target = _part(broken, start, size)
    for place in places:
        reach = _part(gap, start + place, size)
        for i in range(size):
            x = np.uintp(i)
            target[x] |= reach[x]


@compiled
def _write(
    values: NDArray[Any],
    broken: NDArray[np.uint8],
    strip: Strip,
    reach: Reach,
    out: NDArray[Any],
    valid: NDArray[np.bool_],
) -> None:
    """Write a strip of values (n,) into out (y, x), 0 where broken, and into valid (y, x) where they rest on pixels."""
    begin, top, rows, left, width, stride = strip
    first, last = max(0, -left - reach[2]), min(width, out.shape[1] - left - reach[3])
    for row in range(rows):
        y = top + row
        lost, value = _part(broken, begin + row * stride, width), _part(values, row * stride, width)
        made, real = out[y, left : left + width], valid[y, left : left + width]
        for i in range(width):
            x = np.uintp(i)
            made[x] = 0 if lost[x] != 0 else value[x]
            real[x] = False
        for i in range(first, last if 0 <= y + reach[0] and y + reach[1] < out.shape[0] else first):
            x = np.uintp(i)
            real[x] = lost[x] == 0


@compiled
def fill_tiles(
    field: NDArray[Any],
    circle: Circle,
    method: int,
    tiles: tuple[int, int],
    out: NDArray[Any],
    valid: NDArray[np.bool_],
    start: int,
    stop: int,
) -> None:
    """Write codes and mask of tiles start to stop, counted along x, y, layer.

    field, out, valid: (layer, y, x), not empty; tiles: of a layer, along y and x.
    """
    points, touched, reach = len(circle[0]), circle[5], circle[6]
    halo_y, halo_x = max(-reach[0], reach[1]), max(-reach[2], reach[3])
    high, wide = -(-field.shape[1] // tiles[0]), -(-field.shape[2] // tiles[1])
    stride, lines = wide + 2 * halo_x, max(1, STRIP_PX // (wide + 2 * halo_x))
    exact = np.empty((high + 2 * halo_y) * stride, field.dtype)
    rough = np.empty(exact.size, np.float32)
    gap, broken = np.empty(exact.size, np.uint8), np.empty(exact.size, np.uint8)
    code, centre = np.empty(lines * stride, np.uint32), np.empty(lines * stride, np.float32)
    moments = np.empty(lines * stride), np.empty(lines * stride)
    places = touched[:, 0] * stride + touched[:, 1]
    offsets = np.empty((points, 4), np.int64)
    for point in range(points):
        top, bottom, left, right = circle[0][point]
        offsets[point, 0], offsets[point, 1] = top * stride + left, top * stride + right
        offsets[point, 2], offsets[point, 3] = bottom * stride + left, bottom * stride + right
    for tile in range(start, stop):
        layer, index = tile // (tiles[0] * tiles[1]), tile % (tiles[0] * tiles[1])
        top, left = index // tiles[1] * high, index % tiles[1] * wide
        end, width = min(top + high, field.shape[1]), min(wide, field.shape[2] - left)
        corner = halo_y * stride + halo_x
        largest, gaps = _load(field, (layer, top - halo_y, left - halo_x), stride, exact, rough, gap)
        broken[:] = 0
        if gaps:
            _spread(gap, places, corner, (end - top - 1) * stride + width, broken)
        for first in range(top, end, lines):
            strip = corner + (first - top) * stride, first, min(lines, end - first), left, width, stride
            if method == _VAR:
                _variances(exact, strip, circle, offsets, moments)
                _write(moments[0], broken, strip, reach, out[layer], valid[layer])
            else:
                _codes((exact, rough, centre), strip, circle, offsets, largest, code)
                _classify(code, points, method)
                _write(code, broken, strip, reach, out[layer], valid[layer])
