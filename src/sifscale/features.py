"""Named predictors from a cube: lazy, and never a look at the target.

A feature cube is what a feature set makes of a cube: predictors, coarse, target and valid on one grid, padded
at the lower and right edge to a multiple of the coarse block.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sifscale import grid, lbp, texture
from sifscale.config import Coarse, ConfigError, Cover, Features, LbpFeature, LocalStats
from sifscale.cube import Cube
from sifscale.footprint_weights import FOOTPRINT_WEIGHTS
from sifscale.land_cover import land_cover

log = logging.getLogger(__name__)

# Indices that a cube need not hold, and the bands that they are made from; of given coarse bands likewise.
INDICES = {
    f"{prefix}{index}": tuple(f"{prefix}{part}" for part in parts)
    for prefix in ("", "coarse_")
    for index, parts in {"ndvi": ("red", "nir"), "nirv": ("ndvi", "nir")}.items()
}
OBSERVED = "observed_coarse"  # native SIF on the fine grid, where this is the coarse field


@dataclass(frozen=True)
class Channel:
    """One predictor: its name, and whether normalisation scales it (codes and classes stay as they are)."""

    name: str
    scaled: bool


@dataclass(frozen=True)
class FeatureCube:
    """Predictors (sample, channel, y, x); coarse, target, valid, weight (sample, y, x); NaN where nothing is known.

    ``coarse`` is constant on blocks of ``block_px`` (1: a smooth field) and has no NaN. ``weight``, in (0, 1], is what
    a pixel counts in an error-weighted loss, 1 where the error of the target is not known. Arrays are lazy
    (Dask), or NumPy or Zarr arrays once opened from a store. ``shape`` (y, x) is that of the cube, before
    padding. ``cover``, where known: class of each pixel, int8, in ``cover_names``; no model reads it.
    ``footprint_weights`` (sample, y // block_px, x // block_px, ky, kx), where asked for: what each fine pixel counts
    in a native cell, 0 in cells that were not observed; see the room of that name. ``memory_limit_mb``: how much of
    arrays that stay on disk may be held in memory.
    """

    channels: tuple[Channel, ...]
    predictors: Any
    coarse: Any
    target: Any
    valid: Any
    weight: Any
    block_px: int
    shape: tuple[int, int]
    places: tuple[str, ...]
    times: NDArray[np.datetime64]
    cover: Any = None
    cover_names: tuple[str, ...] = ()
    footprint_weights: Any = None
    memory_limit_mb: int = 0

    @property
    def names(self) -> list[str]:
        """Channel names, in order."""
        return [channel.name for channel in self.channels]

    def strips(self, inside: NDArray[np.bool_]) -> Iterator[tuple[int, slice]]:
        """Sample and rows of parts with pixels of ``inside`` (sample, y, x), so small that any may be read at once."""
        for sample, top in np.ndindex(len(inside), -(-inside.shape[1] // texture.TILE_EDGE_PX)):
            rows = slice(top * texture.TILE_EDGE_PX, (top + 1) * texture.TILE_EDGE_PX)
            if inside[sample, rows].any():
                yield sample, rows

    def select(self, names: list[str]) -> FeatureCube:
        """The same cube with only these channels, in this order; reads the predictors unless it changes nothing."""
        if names == self.names:
            return self
        index = [self.names.index(name) for name in names]
        channels = tuple(self.channels[i] for i in index)
        return replace(self, channels=channels, predictors=np.asarray(self.predictors)[:, index])


def build(
    cube: Cube,
    features: Features,
    coarse: Coarse,
    target: str,
    *,
    truth: str | None = None,
    cover: Cover | None = None,
    footprints: bool = False,
) -> FeatureCube:
    """Lazy feature cube; raises ConfigError where the cube lacks a band or a feature reads the target.

    On the native grid, where the target is ``target`` and coarse its block mean; or, with ``truth``, on the fine grid,
    where that band is the target and coarse is native ``target`` (DESIGN, section 4: application). footprints: there,
    with the weights of the footprints.
    """
    samples = _observed_samples(cube.native, target)
    native = cube.native.isel(sample=samples)
    finer = None if cube.fine is None else cube.fine.isel(sample=samples)
    weights = _footprint_weights(native) if footprints else None
    if truth:
        native, finer = _application(native, finer, truth, target, coarse), None
    _check_bands(cube.path, native, features, coarse, target)
    channels, predictors = make_predictors(native, features, coarse, target)
    observed = _lazy(native[target])
    block = coarse.block_px
    pad = partial(_pad, factor=block)
    return FeatureCube(
        channels=channels,
        predictors=pad(predictors),
        coarse=pad(_coarse(native, coarse, target), fill="edge"),
        target=pad(observed),
        valid=pad(da.isfinite(observed), fill=False),
        weight=pad(_weight(native, target), fill="edge"),
        block_px=block,
        shape=(native.sizes["y"], native.sizes["x"]),
        # Places that touch share a group, and a group goes whole into one part.
        places=tuple(str(place) for place in native["group" if "group" in native.coords else "place"].values),
        times=native["time_start"].values,
        cover=pad(land_cover(native, finer, cover), fill="edge") if cover else None,
        cover_names=cover.classes if cover else (),
        footprint_weights=weights,
    )


def make_predictors(
    bands: xr.Dataset, features: Features, coarse: Coarse, target: str, *, origin_px: tuple[int, int] = (0, 0)
) -> tuple[tuple[Channel, ...], da.Array]:
    """Channels and lazy predictors (sample, channel, y, x) from bands on the grid of the target, not padded.

    ``bands`` may hold the coarse field as `OBSERVED`; otherwise it is made of ``target``. origin_px: where they begin
    in the whole field (y, x), which ties of LBP depend on.
    """
    parts: list[tuple[list[Channel], da.Array]] = []
    for name in features.bands:
        parts.append(([Channel(name, True)], _band(bands, name, coarse=coarse, target=target)[:, None]))
    for pattern in features.lbp:
        parts.append(_lbp(_textured(bands, pattern.source, coarse, target), pattern, origin_px))
    if features.local_stats:
        for name in features.local_stats.bands:
            parts.append(_local_stats(_textured(bands, name, coarse, target), name, features.local_stats))
    return tuple(channel for some, _ in parts for channel in some), da.concatenate([a for _, a in parts], axis=1)


def _application(native: xr.Dataset, fine: xr.Dataset | None, truth: str, target: str, coarse: Coarse) -> xr.Dataset:
    """The fine bands, with the truth as target where it was observed natively, and native SIF as coarse field."""
    if fine is None or truth not in fine:
        raise ConfigError([f"window.truth: the cube has no fine band '{truth}'; build the window again"])
    factor = fine.sizes["y"] // native.sizes["y"]
    if coarse.block_px != factor:
        raise ConfigError(
            [
                f"coarse: must be block_mean with factor {factor} on the fine grid (found {coarse.method}, "
                f"{coarse.factor})"
            ]
        )
    spread = partial(_spread, factor=factor, shape=(fine.sizes["y"], fine.sizes["x"]))
    observed = _lazy(native[target])
    filled = spread(observed.map_blocks(grid.fill_nearest, dtype=np.float32))
    known = da.where(da.isfinite(spread(observed)), _lazy(fine[truth]), np.float32(np.nan))
    dims = ("sample", "y", "x")
    coords = {name: native[name].variable for name in ("place", "group", "time_start") if name in native.coords}
    return fine.drop_vars(truth).assign({target: (dims, known), OBSERVED: (dims, filled)}).assign_coords(coords)


def _footprint_weights(native: xr.Dataset) -> da.Array:
    if FOOTPRINT_WEIGHTS not in native:
        raise ConfigError(["window.footprint_weights: the cube has none; build the window again with 2 (found null)"])
    return da.asarray(native[FOOTPRINT_WEIGHTS].data)


def _spread(field: da.Array, factor: int, shape: tuple[int, int]) -> da.Array:
    chunks = (field.chunks[0], (shape[0],), (shape[1],))
    return field.map_blocks(grid.block_repeat, factor, *shape, chunks=chunks, dtype=field.dtype)


def _observed_samples(native: xr.Dataset, target: str) -> NDArray[np.intp]:
    """The samples with any target: in winter a composite may have no sounding, and a patch may be all cloud."""
    observed, samples = np.flatnonzero(native[target].notnull().any(("y", "x")).values), native.sizes["sample"]
    if not len(observed):
        raise ConfigError([f"window: no sample of the cube has any {target} (found {samples} samples)"])
    if len(observed) < samples:
        log.warning("%d of %d samples have no %s and are left out", samples - len(observed), samples, target)
    return observed


def _weight(native: xr.Dataset, target: str) -> da.Array:
    """1 / (1 + (error / median error)^2): the inverse variance of error and misfit, were both alike at the median.

    Without the second term a few precise pixels would outweigh all others. A pixel of unknown error counts as one of
    the median error; where no error is known, all count 1.
    """
    if f"{target}_error" not in native:
        return da.ones_like(_lazy(native[target]))
    error = _lazy(native[f"{target}_error"])
    known = error.compute()
    known = known[np.isfinite(known) & (known > 0)]
    if not known.size:
        return da.ones_like(error)
    weight = 1 / (1 + (error / np.median(known)) ** 2)
    return da.where(da.isfinite(weight), weight, 0.5).astype(np.float32)


def _check_bands(path: Path, native: xr.Dataset, features: Features, coarse: Coarse, target: str) -> None:
    asked = _bands_needed(features)
    faults = (
        [f"features: must not read the target; use 'coarse' (found '{target}')"] if target in asked else []
    )
    needed = dict.fromkeys([target, *([f"coarse_{target}"] if coarse.method == "given" else []), *asked])
    faults += [
        f"features: the cube {path} has no band '{name}'; build the window again"
        for name in needed
        if not _available(native, name, coarse)
    ]
    if faults:
        raise ConfigError(faults)


def bands_read(bands: xr.Dataset, features: Features, coarse: Coarse) -> tuple[list[str], list[str]]:
    """Stored bands that a feature set reads, and what it asks for that is neither stored nor can be made of others."""
    asked = dict.fromkeys(_bands_needed(features))
    read = dict.fromkeys(part for name in asked for part in _parts(bands, name, coarse))
    return list(read), [name for name in asked if not _available(bands, name, coarse)]


def _parts(bands: xr.Dataset, name: str, coarse: Coarse) -> list[str]:
    if name == "coarse":
        return []
    if _stored(bands, name, coarse):
        return [name]
    if coarse.method != "given" and name.startswith("coarse_"):
        return _parts(bands, name.removeprefix("coarse_"), coarse)
    return [stored for part in INDICES.get(name, ()) for stored in _parts(bands, part, coarse)]


def _bands_needed(features: Features) -> list[str]:
    names = [*features.bands, *(pattern.source for pattern in features.lbp)]
    return [*names, *(features.local_stats.bands if features.local_stats else ())]


def _available(native: xr.Dataset, name: str, coarse: Coarse) -> bool:
    if name == "coarse" or _stored(native, name, coarse):
        return True
    if coarse.method != "given" and name.startswith("coarse_"):
        return _available(native, name.removeprefix("coarse_"), coarse)
    return name in INDICES and all(_available(native, part, coarse) for part in INDICES[name])


def _stored(native: xr.Dataset, name: str, coarse: Coarse) -> bool:
    return name in native and (coarse.method == "given" or not name.startswith("coarse_"))


def _lazy(variable: xr.DataArray) -> da.Array:
    """Float32 Dask array, one chunk a sample: features look at neighbours, fields are small beside memory."""
    return da.asarray(variable.data).rechunk((1, -1, -1)).astype(np.float32)


def _band(native: xr.Dataset, name: str, *, coarse: Coarse, target: str) -> da.Array:
    if name == "coarse":
        return _coarse(native, coarse, target)
    if _stored(native, name, coarse):
        return _lazy(native[name])
    if coarse.method != "given" and name.startswith("coarse_"):
        return _coarsen(_band(native, name.removeprefix("coarse_"), coarse=coarse, target=target), coarse)
    first, second = (_band(native, part, coarse=coarse, target=target) for part in INDICES[name])
    if name.endswith("nirv"):  # reflectance of vegetation: Badgley et al. 2017, doi:10.1126/sciadv.1602244
        return first * second
    return (second - first) / (second + first)  # normalised difference: Rouse et al. 1974


def _coarse(native: xr.Dataset, coarse: Coarse, target: str) -> da.Array:
    """The coarse observation on the grid of the target, gaps taken from the nearest coarse cell."""
    if OBSERVED in native:
        return _lazy(native[OBSERVED])
    if coarse.method == "block_mean":
        # Filled before it is spread: the nearest cell of a pixel may differ within a block.
        return _lazy(native[target]).map_blocks(_filled_block_mean, factor=coarse.factor, dtype=np.float32)
    given = coarse.method == "given"
    field = _lazy(native[f"coarse_{target}"]) if given else _coarsen(_lazy(native[target]), coarse)
    return field.map_blocks(grid.fill_nearest, dtype=np.float32)


def _coarsen(field: da.Array, coarse: Coarse) -> da.Array:
    how = _block_mean_on_grid if coarse.method == "block_mean" else grid.moving_mean
    return field.map_blocks(how, factor=coarse.factor, dtype=np.float32)


def _textured(native: xr.Dataset, name: str, coarse: Coarse, target: str) -> da.Array:
    """A band as texture is looked for in it; the coarse field without its steps."""
    if name == "coarse":
        return texture.without_steps(_coarse(native, coarse, target), coarse.block_px)
    return _band(native, name, coarse=coarse, target=target)


def _block_mean_on_grid(field: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    return grid.block_repeat(grid.block_mean(field, factor), factor, *field.shape[-2:])


def _filled_block_mean(field: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    means = grid.fill_nearest(grid.block_mean(field, factor))
    return grid.block_repeat(means, factor, *field.shape[-2:])


def _lbp(source: da.Array, pattern: LbpFeature, origin_px: tuple[int, int]) -> tuple[list[Channel], da.Array]:
    names = lbp.channel_names(pattern.points, pattern.radius, pattern.method, pattern.encoding)
    channels = [Channel(f"{name}({pattern.source})", pattern.encoding == "raw") for name in names]
    return channels, texture.lbp_planes(source, pattern, origin_px)


def _local_stats(source: da.Array, name: str, stats: LocalStats) -> tuple[list[Channel], da.Array]:
    channels = [Channel(f"{kind}{stats.window_px}({name})", True) for kind in texture.LOCAL_STATS]
    return channels, texture.local_stats(source, stats.window_px)


def _pad(field: da.Array, factor: int, fill: Any = np.nan) -> da.Array:
    lower, right = (-size % factor for size in field.shape[-2:])
    if not lower and not right:
        return field
    width = [(0, 0)] * (field.ndim - 2) + [(0, lower), (0, right)]
    wide = da.pad(field, width, mode="edge") if fill == "edge" else da.pad(field, width, constant_values=fill)
    # Dask leaves the padding as chunks of its own; what comes next looks at whole samples, or at tiles.
    size = texture.TILE_EDGE_PX if max(field.numblocks[-2:]) > 1 else -1
    return wide.rechunk({wide.ndim - 2: size, wide.ndim - 1: size})
