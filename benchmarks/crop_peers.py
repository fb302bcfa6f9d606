"""How a user would read crops: slices in memory, xarray, xbatcher, TensorStore, windows of a GeoTIFF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from benchmarks.measure import Way
from sifscale.features import FeatureCube

CROP_PX, BATCH = 64, 32
FIELDS = ("predictors", "coarse", "target", "weight", "valid")  # what a training batch is made of

Fields = Mapping[str, NDArray[Any]]
Cut = Callable[[int, int], list[Any]]  # the fields of a crop, by its upper-left pixel


def batches(cut: Cut, size: int, crops: int) -> Callable[[], None]:
    """Crops at random places, each cut on its own, stacked to batches."""
    random = np.random.default_rng(1)

    def run() -> None:
        for _ in range(crops // BATCH):
            found = [cut(int(y), int(x)) for y, x in random.integers(0, size - CROP_PX + 1, (BATCH, 2))]
            for fields in zip(*found, strict=True):
                np.stack(fields)

    return run


def copied(features: FeatureCube, order: Literal["C", "K"]) -> Fields:
    """Arrays of their own: C, channel by channel, as `.values` of xarray; K, laid out as ours."""
    return {name: np.array(getattr(features, name), order=order) for name in FIELDS}


def from_memory(fields: Fields) -> Cut:
    """Slices of arrays."""

    def cut(y: int, x: int) -> list[Any]:
        return [fields[name][0, ..., y : y + CROP_PX, x : x + CROP_PX] for name in FIELDS]

    return cut


def from_xarray(dataset: xr.Dataset) -> Cut:
    """``isel`` and ``load``."""

    def cut(y: int, x: int) -> list[Any]:
        crop = dataset.isel(sample=0, y=slice(y, y + CROP_PX), x=slice(x, x + CROP_PX)).load()
        return [crop[name].values for name in FIELDS]

    return cut


def from_tensorstore(path: Path) -> Cut:
    """A read a field, all under way at once."""
    import tensorstore

    driver = {"driver": "zarr3", "open": True}
    arrays = [
        tensorstore.open(driver | {"kvstore": {"driver": "file", "path": f"{path / name}/"}}).result()
        for name in FIELDS
    ]

    def cut(y: int, x: int) -> list[Any]:
        reads = [array[0, ..., y : y + CROP_PX, x : x + CROP_PX].read() for array in arrays]
        return [read.result() for read in reads]

    return cut


def from_geotiff(path: Path, features: FeatureCube, limit_mb: int) -> Cut:
    """Windows of a file in tiles of 256 px that holds all fields as bands, opened once, as torchgeo reads it.

    GDAL keeps tiles that it has read, up to the limit.
    """
    import rasterio
    from rasterio.windows import Window

    bands = [*features.predictors[0], *(getattr(features, name)[0] for name in FIELDS[1:])]
    height, width = bands[0].shape
    layout: dict[str, Any] = {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "pixel"}
    about = {"driver": "GTiff", "height": height, "width": width, "count": len(bands), "dtype": "float32"}
    # Nothing asks where on earth the noise is.
    transform = rasterio.Affine(1000.0, 0.0, 0.0, 0.0, -1000.0, 0.0)
    cached = rasterio.Env(GDAL_CACHEMAX=limit_mb)
    with cached, rasterio.open(path, "w", crs="EPSG:5070", transform=transform, **about, **layout) as file:
        for number, band in enumerate(bands, 1):
            file.write(band.astype(np.float32), number)
    opened = rasterio.open(path)
    predictors = len(features.channels)

    def cut(y: int, x: int) -> list[Any]:
        with cached:
            crop = opened.read(window=Window(x, y, CROP_PX, CROP_PX))
        return [crop[:predictors], *crop[predictors:]]

    return cut


def by_xbatcher(dataset: xr.Dataset, crops: int) -> Callable[[], None]:
    """Crops in random order, side by side: it knows no others."""
    import xbatcher

    generator = xbatcher.BatchGenerator(dataset, {"sample": 1, "y": CROP_PX, "x": CROP_PX}, preload_batch=False)
    random = np.random.default_rng(2)

    def run() -> None:
        for number in random.integers(0, len(generator), crops):
            crop = generator[int(number)]
            for name in crop:
                crop[name].values  # noqa: B018  # which reads it

    return run


def from_disk(path: Path, features: FeatureCube, crops: int, limit_mb: int) -> list[Way]:
    """Every way to read so many crops from a store that holds these features."""
    size = features.shape[0]
    dataset = xr.open_zarr(path, chunks={}, consolidated=False)[list(FIELDS)]
    lazy = xr.open_zarr(path, chunks=None, consolidated=False)[list(FIELDS)]
    found = [Way("xbatcher", None), Way("xbatcher without Dask", None)]
    with suppress(ModuleNotFoundError):
        ways = by_xbatcher(dataset, crops), by_xbatcher(lazy, crops)
        found = [Way(way.name, run, crops) for way, run in zip(found, ways, strict=True)]
    found.append(Way("xarray + Dask, crop by crop", batches(from_xarray(dataset), size, crops), crops))
    found.append(Way("TensorStore, crop by crop", batches(from_tensorstore(path), size, crops), crops))
    windows = batches(from_geotiff(path.with_suffix(".tif"), features, limit_mb), size, crops)
    found.append(Way("windows of a GeoTIFF (rasterio)", windows, crops))
    return found
