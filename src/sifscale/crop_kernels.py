"""Crops cut out of fields in one pass over memory, compiled: the inner loops behind `crop_batches`.

Time goes into waiting for memory, where the rows of a crop lie far apart. So rows are long, all channels of a pixel
side by side, and those that come next are fetched while the last ones are copied.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sifscale.compiled import compiled

Floats: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.intp]
Mask: TypeAlias = NDArray[np.bool_]
Flat: TypeAlias = tuple[Floats, Floats, Floats, Mask]  # coarse, target, weight, valid

MISSING = -(2**15)  # code of NaN
_AHEAD = 2  # rows that are fetched early: more, and the first are gone again


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
    scale: Floats,
    offset: Floats,
    flat: Flat,
    corner: Integers,
    place: Integers,
    into_pixels: Floats,
    into_flat: Flat,
) -> float:
    """Copy crops of fields into a batch.

    pixels (sample, y, x * channel): float32, or int16 codes of float32 where scale and offset (x * channel of a crop)
    are not empty: see `quantised`. flat (sample, y, x). corner (n, 3): sample, y and x of each crop; place (n,): its
    number in the batch. into_pixels (crop, y, x * channel), into_flat (crop, y, x). What is returned means nothing.
    """
    size = into_flat[0].shape[1]
    values = into_pixels.shape[2]
    channels = values // size
    fetched = np.float32(0)
    for i in range(len(corner)):
        sample, y, x = corner[i, 0], corner[i, 1], corner[i, 2]
        for row in range(size):
            if row + _AHEAD < size:
                fetched += _fetch(pixels[sample, y + row + _AHEAD], x * channels, values)
                fetched += _fetch(flat[0][sample, y + row + _AHEAD], x, size)
                fetched += _fetch(flat[1][sample, y + row + _AHEAD], x, size)
                fetched += _fetch(flat[2][sample, y + row + _AHEAD], x, size)
            found = pixels[sample, y + row][x * channels : x * channels + values]
            if len(scale):
                _decode(found, scale, offset, into_pixels[place[i], row])
            else:
                _copy(found, into_pixels[place[i], row])
            _copy(flat[0][sample, y + row][x : x + size], into_flat[0][place[i], row])
            _copy(flat[1][sample, y + row][x : x + size], into_flat[1][place[i], row])
            _copy(flat[2][sample, y + row][x : x + size], into_flat[2][place[i], row])
            _copy(flat[3][sample, y + row][x : x + size], into_flat[3][place[i], row])
    return float(fetched)


@compiled
def _fetch(row: NDArray[Any], start: int, values: int) -> Any:
    """Read at the start and in the middle, from where the processor goes on by itself."""
    return row[start] + row[start + values // 2]


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
