"""Feature cubes on disk: materialised once, under a name made from the hashes of what they depend on.

Every run of a sweep with the same cube and feature options reads the same store.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, TransposeCodec

from sifscale.config import digest
from sifscale.crop_kernels import MISSING
from sifscale.features import Channel, FeatureCube
from sifscale.quantised import Quantised, quantised
from sifscale.stored_arrays import StoredArray, rows_of_chunks
from sifscale.texture import TILE_EDGE_PX
from sifscale.whole import remove_leftovers, temporary

log = logging.getLogger(__name__)

FEATURES_VERSION = 3  # raise when the same config makes other numbers: old feature cubes are then left alone
FIELDS = ("coarse", "target", "valid", "weight")  # (sample, y, x), as in FeatureCube
WEIGHT_DIMS = ("sample", "cell_y", "cell_x")  # of footprint weights, before those of the pixels around a cell
CHUNK_CELLS = 16  # of footprint weights along an edge, about what a crop needs
# Little smaller than raw numbers and little slower to read, but codes, classes and masks become small.
COMPRESSOR = BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle")
SIDE_BY_SIDE = TransposeCodec(order=(0, 2, 3, 1))  # within chunks all channels of a pixel, as crops are cut


def materialise(
    features: FeatureCube, folder: Path, *key: Any, stored_as: Literal["float32", "int16"] = "float32"
) -> Path:
    """Write the feature cube once below ``folder`` under a name made from ``key``; returns its path.

    stored_as: int16 keeps predictors as codes, of which no value is off by more than 8e-6 of its channel's range, see
    `quantised`; coarse, target and weight stay as they are. For other tools: predictors * scale + offset, channel by
    channel. Concurrent jobs may write the same one: each writes its own temporary folder, the first rename wins.
    """
    code = [] if stored_as == "float32" else [stored_as]
    path = folder / f"features_{digest(FEATURES_VERSION, *key, *code)}.zarr"
    if path.exists():
        return path
    chunks = (1, len(features.channels), *(min(TILE_EDGE_PX, size) for size in features.coarse.shape[1:]))
    flat = (chunks[0], *chunks[2:])
    dims = ("sample", "y", "x")
    fields = FIELDS if features.cover is None else (*FIELDS, "cover")
    weights = features.footprint_weights
    cells = {} if weights is None else {"footprint_weights": ((*WEIGHT_DIMS, "ky", "kx"), _by_cells(weights))}
    predictors = features.predictors.rechunk(chunks)
    codes = quantised(predictors) if stored_as == "int16" else None
    pairs = {} if codes is None else {name: ("channel", getattr(codes, name)) for name in ("scale", "offset")}
    dataset = xr.Dataset(
        {"predictors": (("sample", "channel", "y", "x"), codes.codes if codes else predictors)}
        | pairs
        | {name: (dims, getattr(features, name).rechunk(flat)) for name in fields}
        | cells,
        attrs={
            "channels": features.names,
            "scaled": [int(channel.scaled) for channel in features.channels],
            "block_px": features.block_px,
            "shape": list(features.shape),
            "places": list(features.places),
            "times": [str(time) for time in features.times],
            "cover_names": list(features.cover_names),
        },
    )
    encoding: dict[Any, dict[str, Any]] = {name: {"compressors": COMPRESSOR} for name in dataset.data_vars}
    encoding["predictors"]["filters"] = SIDE_BY_SIDE
    if codes:
        encoding["predictors"]["_FillValue"] = MISSING
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    partial = temporary(path)
    try:
        dataset.to_zarr(partial, mode="w-", zarr_format=3, consolidated=False, encoding=encoding)
        partial.rename(path)
    except OSError:
        if not path.exists():  # else another job was first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _by_cells(weights: Any) -> Any:
    return weights.rechunk((1, *(min(CHUNK_CELLS, size) for size in weights.shape[1:3]), -1, -1))


def open_features(path: Path, memory_limit_mb: int) -> FeatureCube:
    """A materialised feature cube: in memory where it fits the limit, else Zarr arrays; says so in the log."""
    group = zarr.open_group(path, mode="r")
    names = ("predictors", *FIELDS, "cover", "footprint_weights")
    arrays: dict[str, Any] = {name: group[name] for name in names if name in group}
    if "scale" in group:
        scale, offset = (np.asarray(group[name][:]) for name in ("scale", "offset"))  # type: ignore[index]  # arrays
        arrays["predictors"] = Quantised(arrays["predictors"], scale, offset)
    size_mb = sum(array.nbytes for array in arrays.values()) / 1e6
    fits = size_mb <= memory_limit_mb
    how = "kept in memory" if fits else "stays on disk, crops are cut from chunks read ahead"
    log.info("feature cube of %.1f MB: %s (trainer.memory_limit_mb = %d)", size_mb, how, memory_limit_mb)
    if fits:
        arrays = {name: _in_memory(array, side_by_side=name == "predictors") for name, array in arrays.items()}
    attrs: dict[str, Any] = dict(group.attrs)
    return FeatureCube(
        channels=tuple(Channel(n, bool(s)) for n, s in zip(attrs["channels"], attrs["scaled"], strict=True)),
        block_px=int(attrs["block_px"]),
        shape=(int(attrs["shape"][0]), int(attrs["shape"][1])),
        places=tuple(attrs["places"]),
        times=np.array(attrs["times"], dtype="datetime64[ns]"),
        cover_names=tuple(attrs["cover_names"]),
        memory_limit_mb=memory_limit_mb,
        **arrays,
    )


def _in_memory(field: Any, *, side_by_side: bool) -> NDArray[Any]:
    """The whole field; side_by_side: all channels of a pixel, the second dimension, lie so."""
    coded = field.codes if isinstance(field, Quantised) else None
    stored = StoredArray(field if coded is None else coded)
    whole, axis = _room(stored.shape, field.dtype, side_by_side), 2 if side_by_side else 1
    for sample in range(stored.shape[0]):
        for top, bottom in rows_of_chunks(0, stored.shape[axis], stored.chunks[axis]):
            part = [slice(0, size) for size in stored.shape]
            part[0], part[axis] = slice(sample, sample + 1), slice(top, bottom)
            into = whole[tuple(part)]
            if coded is None:
                stored.read(tuple(part), into).result()
            else:
                codes = _room(into.shape, coded.dtype, side_by_side)
                stored.read(tuple(part), codes).result()
                into[...] = replace(field, codes=codes)[:]
    return whole


def _room(shape: tuple[int, ...], dtype: Any, side_by_side: bool) -> NDArray[Any]:
    if not side_by_side:
        return np.empty(shape, dtype)
    samples, channels, y, x = shape
    return np.moveaxis(np.empty((samples, y, x, channels), dtype), -1, 1)
