"""Fields kept as 16-bit integers: half the bytes of float32, for feature cubes that are larger than memory.

value = code * scale + offset, a pair for each channel, as in the scale_factor and add_offset of the CF conventions
(section 8.1). 65 535 steps from the smallest value of a channel to the largest: no value is off by more than half a
step, 8e-6 of that range, and what is a whole number throughout, as codes and classes are, is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray

from sifscale.crop_kernels import MISSING

Floats = NDArray[np.float32]
LARGEST = 2**15 - 1


@dataclass(frozen=True)
class Quantised:
    """A field (sample, channel, y, x) that reads as float32; indices are whole numbers and slices.

    codes: the field in int16; NumPy, Zarr or Dask. scale, offset (channel,).
    """

    codes: Any
    scale: Floats
    offset: Floats

    @property
    def shape(self) -> tuple[int, ...]:
        """As it reads."""
        return tuple(self.codes.shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """As it reads."""
        return np.dtype(np.float32)

    @property
    def nbytes(self) -> int:
        """As it reads."""
        return 2 * int(self.codes.nbytes)

    def __getitem__(self, key: Any) -> Floats:
        codes = np.asarray(self.codes[key])
        scale, offset = (np.broadcast_to(of[:, None, None], self.shape)[key] for of in (self.scale, self.offset))
        values: Floats = codes.astype(np.float32) * scale + offset
        return np.where(codes == MISSING, np.float32(np.nan), values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.float32, copy=False)


def quantised(field: da.Array) -> Quantised:
    """A lazy float32 field (sample, channel, y, x) as lazy codes; its ranges are computed at once.

    Infinite values take the nearest end of the range.
    """
    finite, axes = da.isfinite(field), (0, 2, 3)
    low = da.where(finite, field, np.inf).min(axis=axes)
    high = da.where(finite, field, -np.inf).max(axis=axes)
    whole = (da.rint(field) == field) | ~finite
    pairs = [_coding(*found) for found in zip(*dask.compute(low, high, whole.all(axis=axes)), strict=True)]
    scale, offset = np.array(pairs, np.float32).reshape(-1, 2).T
    codes = field.rechunk({1: -1}).map_blocks(partial(_encode, scale=scale, offset=offset), dtype=np.int16)
    return Quantised(codes, scale, offset)


def _coding(low: float, high: float, whole: bool) -> tuple[float, float]:
    if low > high or (whole and max(-low, high) <= LARGEST):  # the first: not a single value
        return 1.0, 0.0
    if low == high:
        return 1.0, low
    return (float(high) - float(low)) / (2 * LARGEST), (float(high) + float(low)) / 2


def _encode(field: Floats, scale: Floats, offset: Floats) -> NDArray[np.int16]:
    steps = (field.astype(np.float64) - offset[:, None, None]) / scale[:, None, None]
    codes = np.rint(np.clip(steps, -LARGEST, LARGEST))
    return np.where(np.isnan(codes), MISSING, codes).astype(np.int16)
