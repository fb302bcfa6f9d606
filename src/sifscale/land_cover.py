"""Land cover of a cube's pixels, by which errors are told apart; no model reads it."""

from __future__ import annotations

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sifscale.config import ConfigError, Cover

UNKNOWN = -1


def land_cover(bands: xr.Dataset, finer: xr.Dataset | None, cover: Cover) -> da.Array:
    """Number of the class (in ``cover.classes``) of each pixel of ``bands``, int8 (sample, y, x); UNKNOWN = -1.

    Where ``cover.band`` holds class numbers, on this grid or on the ``finer`` one, a pixel is what most of its finer
    pixels are (of several equal ones the first class). Otherwise each class is a band with its share, and the largest
    share counts. Raises ConfigError where a band is missing.
    """
    if cover.band is None:
        shares = [_lazy(_named(bands, name)) for name in cover.classes]
        stacked = da.stack(shares, axis=1)
        return stacked.map_blocks(_largest, drop_axis=1, chunks=shares[0].chunks, dtype=np.int8)
    if cover.band in bands or finer is None:
        classes, factor = _lazy(_named(bands, cover.band)), 1
    else:
        classes = _lazy(_named(finer, cover.band))
        factor = finer.sizes["y"] // bands.sizes["y"]
    chunks = (classes.chunks[0], (bands.sizes["y"],), (bands.sizes["x"],))
    return classes.map_blocks(_majority, factor=factor, classes=len(cover.classes), chunks=chunks, dtype=np.int8)


def _named(bands: xr.Dataset, name: str) -> xr.DataArray:
    if name not in bands:
        found = ", ".join(map(str, bands))
        raise ConfigError([f"window.cover: the cube has no band '{name}'; build the window again (found {found})"])
    return bands[name]


def _lazy(variable: xr.DataArray) -> da.Array:
    return da.asarray(variable.data).rechunk((1, -1, -1))


def _largest(shares: NDArray[np.floating]) -> NDArray[np.int8]:
    known = np.nan_to_num(shares, nan=0.0)
    return np.where(known.max(axis=1) > 0, known.argmax(axis=1), UNKNOWN).astype(np.int8)


def _majority(field: NDArray[np.floating], factor: int, classes: int) -> NDArray[np.int8]:
    samples, height, width = field.shape
    inner = (samples, height // factor, factor, width // factor, factor)
    cover = np.full((samples, height // factor, width // factor), UNKNOWN, np.int8)
    most = np.zeros(cover.shape, np.int32)
    # Class by class: a count needs no sorting, and no counts but the largest are kept.
    for number in range(classes):
        count = (field == number).reshape(inner).sum(axis=(2, 4), dtype=np.int32)
        cover[count > most] = number
        np.maximum(count, most, out=most)
    return cover
