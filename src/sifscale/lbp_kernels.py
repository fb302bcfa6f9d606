"""LBP codes of stacks of fields, compiled: the inner loops behind `lbp.codes`.

A field is worked on in tiles, copied with their surroundings into scratch memory that the processor's cache holds;
there every neighbour is a constant offset away, and beyond the field lie the zeros that scikit-image reads.

A neighbour between pixels is first interpolated in float32: its two rows are blended into one, which the point across
shares, then two pixels of that. Where it differs from the centre by less than rounding could explain, the tile is
done again in float64, operation by operation as scikit-image does it, for then the last bit decides. With u = 2**-24
and M the largest magnitude in the tile, the float32 difference is off by at most u M each for rounding the corners and
the centre, 3 u M for weights, products and sum of the blend, 2 u M for weights and products along it, and 2 u M each
for taking off the centre and for the last sum: 11 u M, for which `_ROUNDING` leaves 16. Weights are those of nominal
fractions; a fraction that is off by d changes the value by at most 2 d M, and there are two. `_UNDERFLOW` covers
results too small for float32, each off by less than 2**-149. Beyond `_OVERFLOW` float32 is not tried.

Numba's cache on disk notices changes of this file only: what is compiled may not call compiled code of other files.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sifscale.compiled import compiled

METHODS = ("default", "ror", "uniform", "nri_uniform", "var")

_ROUNDING = 2.0**-20
_UNDERFLOW = 2.0**-120
_OVERFLOW = 2.0**120

_MAGNITUDE, _INFINITE = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)  # bits of a float32

_ROR, _UNIFORM, _NRI_UNIFORM, _VAR = range(1, len(METHODS))

Bits: TypeAlias = int | np.unsignedinteger[Any]
Number: TypeAlias = float | np.floating[Any]
Codes: TypeAlias = NDArray[np.uint32]
Offsets: TypeAlias = NDArray[np.int64]
Points: TypeAlias = NDArray[np.int64]
# Plain tuples, for numba's cache on disk cannot be read once a class in a signature is renamed.
# Corners (points, 4) top, bottom, left, right pixel relative to the centre, at most a field's size away; fractions
# (points, y) and (points, x); weights (points, 4) of the top, bottom, left, right pixels by nominal fractions, and how
# far fractions are off those at most; touched (n, 2) pixels that a code rests on, and their top, bottom, left, right
# end; fours (n, 4) of points on pixels and pairs (n, 2) of points between pixels of the same rows, some repeated.
Reach: TypeAlias = tuple[int, int, int, int]
Fractions: TypeAlias = NDArray[np.float64]
Circle: TypeAlias = tuple[Offsets, Fractions, Fractions, NDArray[np.float32], float, Offsets, Reach, Points, Points]
# Place of a tile's first pixel in the scratch memory, first row and number of rows, first column and number of columns,
# places from one row to the next.
Tile: TypeAlias = tuple[int, int, int, int, int, int]


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
    """Copy a tile as it is and in float32; return the largest magnitude, and whether gaps were found and marked."""
    layer, top, left = corner
    begin, end = max(0, -top), min(exact.size // stride, field.shape[1] - top)
    first, last = max(0, -left), min(stride, field.shape[2] - left)
    if (end - begin) * (last - first) < exact.size:
        exact[:] = 0
    for row in range(begin, end):
        source = field[layer, top + row, left + first : left + last]
        _copy(source, exact[row * stride + first : row * stride + last])
    for i in range(exact.size):
        x = np.uintp(i)
        rough[x] = np.float32(exact[x])
    bits, largest, gaps = rough.view(np.uint32), np.uint32(0), np.uint8(0)
    for i in range(bits.size):  # Magnitudes of floats are in the order of their bits, and integers vectorise.
        x = np.uintp(i)
        largest = np.uint32(max(largest, np.uint32(bits[x] & _MAGNITUDE)))
    if largest >= _INFINITE:
        largest = np.uint32(0)
        for i in range(exact.size):
            x = np.uintp(i)
            gap[x] = not abs(exact[x]) < np.inf
            gaps = np.uint8(gaps | gap[x])
            magnitude = np.uint32(bits[x] & _MAGNITUDE) if gap[x] == 0 else np.uint32(0)
            largest = np.uint32(max(largest, magnitude))
    return np.array([largest], np.uint32).view(np.float32)[0], bool(gaps != 0)


@compiled
def _bit(is_set: bool | np.bool_, bit: Bits) -> Bits:
    """The bit, or 0."""
    return bit if is_set else np.uint32(0)


@compiled
def _add(value: Number, centre: Number, bit: Bits, x: Bits, sums: tuple[NDArray[Any], ...]) -> None:
    """Set or clear a bit of codes (n,), or add to two moments (n,), at x."""
    if len(sums) == 2:  # Known when numba compiles, so no branch is left inside the loops.
        sums[0][x] += value
        sums[1][x] += value * value
    else:
        sums[0][x] = (sums[0][x] & ~bit) | _bit(value >= centre, bit)


@compiled
def _add_pixels(exact: NDArray[Any], start: int, size: int, moments: tuple[NDArray[Any], ...]) -> None:
    """Add the pixels from start, neighbours of others, to moments (size,)."""
    there = _part(exact, start, size)
    for i in range(size):
        x = np.uintp(i)
        _add(np.float64(there[x]), 0.0, 0, x, moments)


@compiled
def _add_between(
    exact: NDArray[Any], tile: Tile, offsets: Offsets, circle: Circle, point: int, sums: tuple[NDArray[Any], ...]
) -> None:
    """Add a neighbour between pixels to codes or moments of a tile, in float64."""
    begin, top, rows, left, width, stride = tile
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


@compiled
def _compare_pixels(
    exact: NDArray[Any], start: int, size: int, offsets: Offsets, points: Points, code: Codes
) -> None:
    """Add four neighbours that lie on pixels to codes (size,)."""
    p, q, r, s = points
    centre = _part(exact, start, size)
    at_p, at_q = _part(exact, start + offsets[p, 0], size), _part(exact, start + offsets[q, 0], size)
    at_r, at_s = _part(exact, start + offsets[r, 0], size), _part(exact, start + offsets[s, 0], size)
    bit_p, bit_q, bit_r, bit_s = np.uint32(1 << p), np.uint32(1 << q), np.uint32(1 << r), np.uint32(1 << s)
    for i in range(size):
        x = np.uintp(i)
        here = centre[x]
        first_two = _bit(at_p[x] >= here, bit_p) | _bit(at_q[x] >= here, bit_q)
        code[x] |= first_two | _bit(at_r[x] >= here, bit_r) | _bit(at_s[x] >= here, bit_s)


@_fused
def _compare_roughly(
    scratch: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    start: int,
    offsets: Offsets,
    weights: NDArray[np.float32],
    points: Points,
    tolerance: Number,
    code: Codes,
) -> bool:
    """Add two neighbours in the same rows to codes (size,) by float32; True where one of them is in doubt."""
    rough, centre, blend = scratch
    size, (p, q) = centre.size, points
    left = min(offsets[p, 0], offsets[q, 0])
    wide = size + max(offsets[p, 1], offsets[q, 1]) - left
    upper, lower = _part(rough, start + left, wide), _part(rough, start + left + offsets[p, 2] - offsets[p, 0], wide)
    top, bottom = weights[p, 0], weights[p, 1]
    for i in range(wide):
        x = np.uintp(i)
        blend[x] = top * upper[x] + bottom * lower[x]
    west_p, east_p = _part(blend, offsets[p, 0] - left, size), _part(blend, offsets[p, 1] - left, size)
    west_q, east_q = _part(blend, offsets[q, 0] - left, size), _part(blend, offsets[q, 1] - left, size)
    a, b, c, d = weights[p, 2], weights[p, 3], weights[q, 2], weights[q, 3]
    bit_p, bit_q, doubt = np.uint32(1 << p), np.uint32(1 << q), np.uint32(0)
    for i in range(size):
        x = np.uintp(i)
        gain_p = a * west_p[x] + (b * east_p[x] - centre[x])
        gain_q = c * west_q[x] + (d * east_q[x] - centre[x])
        code[x] |= _bit(gain_p >= 0, bit_p) | _bit(gain_q >= 0, bit_q)
        doubt = np.uint32(doubt | _bit(min(abs(gain_p), abs(gain_q)) <= tolerance, bit_p))
    return bool(doubt != 0)


@compiled
def _codes(
    scratch: tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    tile: Tile,
    circle: Circle,
    offsets: Offsets,
    largest: Number,
    code: Codes,
) -> None:
    """Write the `default` codes of a tile into code (n,)."""
    exact, rough, centre, blend = scratch
    begin, _, rows, _, width, stride = tile
    size = (rows - 1) * stride + width
    tolerance = np.float32((_ROUNDING + 4 * circle[4]) * largest + _UNDERFLOW)
    code[:] = 0
    centre[:] = np.nan  # between the rows of a tile lie their surroundings, where nothing is in doubt
    for row in range(rows):
        _copy(_part(rough, begin + row * stride, width), _part(centre, row * stride, width))
    for four in circle[7]:
        _compare_pixels(exact, begin, size, offsets, four, code)
    for pair in circle[8]:
        if largest > _OVERFLOW or _compare_roughly(
            (rough, centre[:size], blend), begin, offsets, circle[3], pair, tolerance, code
        ):
            for point in pair:
                _add_between(exact, tile, offsets[point], circle, point, (code,))


@compiled
def _variances(
    exact: NDArray[Any],
    tile: Tile,
    circle: Circle,
    offsets: Offsets,
    moments: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    """Write the variances of a tile over the first of its moments (n,), NaN for 0."""
    begin, _, rows, _, width, stride = tile
    points, size = offsets.shape[0], (rows - 1) * stride + width
    moments[0][:] = 0
    moments[1][:] = 0
    for point in range(points):
        if offsets[point, 0] == offsets[point, 3]:
            _add_pixels(exact, begin + offsets[point, 0], size, moments)
        else:
            _add_between(exact, tile, offsets[point], circle, point, moments)
    share, is_exact = 1 / points, points & (points - 1) == 0  # by a power of two: products are quotients, and faster
    for i in range(size):
        x = np.uintp(i)
        square = moments[0][x] * moments[0][x]
        if is_exact:
            variance = (moments[1][x] - square * share) * share
        else:
            variance = (moments[1][x] - square / points) / points
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
def _turned(code: Bits, by: Bits, points: Bits) -> Bits:
    """A code so many bits to the right, the bits that leave in front."""
    # Shifts by less than 32, and the compiler knows: else it does them in 64 bits, which takes three times as long.
    right, left = np.uint32(by & np.uint32(31)), np.uint32(np.uint32(points - by) & np.uint32(31))
    kept = np.uint32(np.uint32(0xFFFFFFFF) >> np.uint32(np.uint32(32 - points) & np.uint32(31)))
    return np.uint32(np.uint32(code >> right) | np.uint32(np.uint32(code << left) & kept))


@compiled
def _least(one: Bits, other: Bits) -> Bits:
    """The lesser of two uint32, as one."""
    return np.uint32(one) if one < other else np.uint32(other)


@compiled
def _classify(code: Codes, n_points: int, method: int) -> None:
    """Turn `default` codes (n,) into the classes of `method`, in place."""
    points, last, one = np.uint32(n_points), np.uint32(n_points - 1), np.uint32(1)
    if method == _ROR:
        start = code.copy()
        for first in range(1, n_points, 4):  # four turns in a pass save memory traffic; a repeated one does no harm
            second, third, fourth = _least(first + 1, last), _least(first + 2, last), _least(first + 3, last)
            for i in range(code.size):
                x = np.uintp(i)
                a, b = _turned(start[x], np.uint32(first), points), _turned(start[x], second, points)
                c, d = _turned(start[x], third, points), _turned(start[x], fourth, points)
                code[x] = _least(code[x], _least(_least(a, b), _least(c, d)))
    elif method == _UNIFORM:
        other = np.uint32(points + one)
        for i in range(code.size):
            x = np.uintp(i)
            changes = _count_ones(np.uint32(code[x] ^ _turned(code[x], one, points)))
            code[x] = _count_ones(code[x]) if changes <= np.uint32(2) else other
    elif method == _NRI_UNIFORM:
        # By number of ones, then by right turns since the run of ones began at the first point.
        other = np.uint32(n_points * (n_points - 1) + 2)
        for i in range(code.size):
            x = np.uintp(i)
            bits, turned = code[x], _turned(code[x], one, points)
            ones = _count_ones(bits)
            before = _count_ones(np.uint32(np.uint32(turned & ~bits) - one))  # point of the zero before the run
            turns = np.uint32(last - before) if ones < points else np.uint32(0)
            runs = np.uint32(np.uint32(ones - one) * points)
            rank = np.uint32(runs + np.uint32(one + turns)) if ones > np.uint32(0) else np.uint32(0)
            code[x] = rank if _count_ones(np.uint32(bits ^ turned)) <= np.uint32(2) else other


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
def _write(values: NDArray[Any], tile: Tile, reach: Reach, out: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Write values (n,) of a tile into out (y, x), and into valid (y, x) where they rest on pixels of the field."""
    _, top, rows, left, width, stride = tile
    first, last = max(0, -left - reach[2]), min(width, out.shape[1] - left - reach[3])
    for row in range(rows):
        y = top + row
        value = _part(values, row * stride, width)
        made, real = out[y, left : left + width], valid[y, left : left + width]
        inside = np.uint32(max(0, last - first)) if 0 <= y + reach[0] and y + reach[1] < out.shape[0] else np.uint32(0)
        for i in range(width):
            x = np.uintp(i)
            made[x] = value[x]
        for i in range(width):
            x = np.uintp(i)
            real[x] = np.uint32(np.uint32(x) - np.uint32(first)) < inside


@compiled
def _clear(broken: NDArray[np.uint8], tile: Tile, out: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Take codes of a tile out of out (y, x) and valid (y, x) where broken."""
    begin, top, rows, left, width, stride = tile
    for row in range(rows):
        lost = _part(broken, begin + row * stride, width)
        made, real = out[top + row, left : left + width], valid[top + row, left : left + width]
        for i in range(width):
            x = np.uintp(i)
            made[x] = 0 if lost[x] != 0 else made[x]
            real[x] = real[x] if lost[x] == 0 else False


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
    stride = wide + 2 * halo_x
    corner = halo_y * stride + halo_x
    exact = np.empty((high + 2 * halo_y) * stride, field.dtype)
    gap, broken = np.empty(exact.size, np.uint8), np.empty(exact.size, np.uint8)
    rough, centre = np.empty(exact.size, np.float32), np.empty(high * stride, np.float32)
    blend, code = np.empty(centre.size + 2 * halo_x, np.float32), np.empty(centre.size, np.uint32)
    moments = np.empty(centre.size), np.empty(centre.size)
    places = touched[:, 0] * stride + touched[:, 1]
    offsets = np.empty((points, 4), np.int64)
    for point in range(points):
        top, bottom, left, right = circle[0][point]
        offsets[point, 0], offsets[point, 1] = top * stride + left, top * stride + right
        offsets[point, 2], offsets[point, 3] = bottom * stride + left, bottom * stride + right
    for index in range(start, stop):
        layer, rest = index // (tiles[0] * tiles[1]), index % (tiles[0] * tiles[1])
        top, left = rest // tiles[1] * high, rest % tiles[1] * wide
        rows, width = min(high, field.shape[1] - top), min(wide, field.shape[2] - left)
        tile = corner, top, rows, left, width, stride
        largest, gaps = _load(field, (layer, top - halo_y, left - halo_x), stride, exact, rough, gap)
        if method == _VAR:
            _variances(exact, tile, circle, offsets, moments)
            _write(moments[0], tile, reach, out[layer], valid[layer])
        else:
            _codes((exact, rough, centre, blend), tile, circle, offsets, largest, code)
            _classify(code, points, method)
            _write(code, tile, reach, out[layer], valid[layer])
        if gaps:
            broken[:] = 0
            _spread(gap, places, corner, (rows - 1) * stride + width, broken)
            _clear(broken, tile, out[layer], valid[layer])
