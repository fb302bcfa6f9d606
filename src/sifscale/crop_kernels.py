"""Crops cut out of fields in one pass over memory, compiled: the inner loops behind `crop_batches`.

Time goes into waiting for memory, where the rows of a crop lie far apart. So rows are long, all channels of a pixel
side by side, and those that come next are on their way to the processor while the last ones are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from sifscale.compiled import compiled

Floats: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.intp]
Mask: TypeAlias = NDArray[np.bool_]
Coding: TypeAlias = tuple[Floats, Floats]  # scale, offset
Flat: TypeAlias = tuple[Floats, Floats, Floats, Mask]  # coarse, target, weight, valid

MISSING = -(2**15)  # code of NaN
_AHEAD = 4  # rows that are fetched early: 2 to 16 made no difference
_LINE = 64  # bytes that memory gives at a time, on x86 and most of ARM


def side_by_side(field: NDArray[Any]) -> NDArray[Any]:
    """The same field (sample, channel, y, x), with all channels of a pixel side by side in memory; copied if not so."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(field, 1, -1)), -1, 1)


def rows_of(field: NDArray[Any]) -> NDArray[Any]:
    """Rows (sample, y, x * channel) of a field (sample, channel, y, x), which shares its memory if `side_by_side`."""
    samples, channels, y, x = field.shape
    return np.moveaxis(field, 1, -1).reshape(samples, y, x * channels)


@compiled
def cut(
    pixels: NDArray[Any],
    coding: Coding | None,
    flat: Flat,
    corner: Integers,
    place: Integers,
    into_pixels: Floats,
    into_flat: Flat,
) -> None:
    """Copy crops of fields into a batch.

    pixels (sample, y, x * channel): float32, or int16 codes of float32 where their coding (x * channel of a crop) is
    given: see `quantised`. flat (sample, y, x). corner (n, 3): sample, y and x of each crop; place (n,): its number in
    the batch. into_pixels (crop, y, x * channel), into_flat (crop, y, x).
    """
    size, values = into_flat[0].shape[1], into_pixels.shape[2]
    channels = values // size
    for i in range(len(corner)):
        sample, y, x = corner[i, 0], corner[i, 1], corner[i, 2]
        crop = place[i]
        for row in range(size):
            soon = i + (row + _AHEAD) // size
            if soon < len(corner):
                sample_, y_, x_ = corner[soon, 0], corner[soon, 1] + (row + _AHEAD) % size, corner[soon, 2]
                _fetch(pixels[sample_, y_], x_ * channels, values)
                _fetch(flat[0][sample_, y_], x_, size)
                _fetch(flat[1][sample_, y_], x_, size)
                _fetch(flat[2][sample_, y_], x_, size)
                _fetch(flat[3][sample_, y_], x_, size)
            found = pixels[sample, y + row][x * channels : x * channels + values]
            if coding is None:  # known when this is compiled: asked in the loop, it cost a quarter of the rate
                _copy(found, into_pixels[crop, row])
            else:
                _decode(found, coding[0], coding[1], into_pixels[crop, row])
            _copy(flat[0][sample, y + row][x : x + size], into_flat[0][crop, row])
            _copy(flat[1][sample, y + row][x : x + size], into_flat[1][crop, row])
            _copy(flat[2][sample, y + row][x : x + size], into_flat[2][crop, row])
            _copy(flat[3][sample, y + row][x : x + size], into_flat[3][crop, row])


@compiled
def _fetch(row: NDArray[Any], start: int, values: int) -> None:
    """Ask for a part of a row, without waiting for it."""
    for line in range(values * row.itemsize // _LINE + 1):
        _prefetch(row, start, line)


def _asking(context: Any, row: Any, start: Any, line: Any) -> Any:
    """Numba's intrinsic for LLVM's: ask for a line of memory, counted from ``row[start]``.

    A plain read would hold up those that follow it. See https://llvm.org/docs/LangRef.html#llvm-prefetch-intrinsic.
    What lies outside of the row is asked for without harm.
    """

    def build(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = target.make_array(signature.args[0])(target, builder, arguments[0]).data
        whole, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        first = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        where = builder.gep(first, [builder.mul(arguments[2], target.get_constant(types.intp, _LINE))])
        asked = ir.FunctionType(ir.VoidType(), [byte, whole, whole, whole])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], asked)
        # To read (0); into the second cache (2), which waits for more lines at a time than the first (3); data (1).
        builder.call(prefetch, [where, whole(0), whole(2), whole(1)])
        return target.get_dummy_value()

    return types.void(row, types.intp, types.intp), build


_prefetch = cast("Callable[[NDArray[Any], int, int], None]", intrinsic(_asking))


@compiled
def _copy(source: NDArray[Any], into: NDArray[Any]) -> None:
    for i in range(len(into)):
        into[i] = source[i]


@compiled
def _decode(codes: NDArray[Any], scale: Floats, offset: Floats, into: Floats) -> None:
    for i in range(len(into)):
        value = np.float32(codes[i]) * scale[i] + offset[i]
        into[i] = value if codes[i] != MISSING else np.float32(np.nan)


@compiled
def score(valid: Mask, table: NDArray[np.int32], parts: NDArray[np.int8], part: int, scored: Mask) -> None:
    """Valid pixels in the core of each crop and, unless ``parts`` (sample, y, x) is empty, in that part.

    valid, scored (crop, y, x). table (crop, 7): see `crops.CropPlan`.
    """
    size = valid.shape[1]
    for i in range(len(table)):
        sample, y0, x0 = table[i, 0], table[i, 1], table[i, 2]
        for y in range(size):
            inside = table[i, 3] <= y0 + y < table[i, 5]
            for x in range(size):
                scored[i, y, x] = inside and table[i, 4] <= x0 + x < table[i, 6] and valid[i, y, x]
            if parts.size:
                for x in range(size):
                    scored[i, y, x] = scored[i, y, x] and parts[sample, y0 + y, x0 + x] == part


def load_kernels() -> None:
    """Have the loops for batches of float32 compiled, or loaded from the cache, before the first batch."""
    field, mask, corner = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), bool), np.zeros((1, 3), np.intp)
    flat = field, field, field, mask
    cut(field, None, flat, corner, corner[0, :1], field, flat)
    score(mask, np.zeros((1, 7), np.int32), np.zeros((1, 1, 1), np.int8), 0, mask)
