"""Training crops of 7 x 64 x 64 from a feature cube on disk, beside what a user would pick instead.

    python benchmarks/crops.py [--size 4096] [--limit-mb 300] [--rounds 5] [--json PATH]

The cube is random numbers in the layout of our store, in the page cache of the machine; crops lie anywhere. Rates are
medians over interleaved rounds, ratios medians of ratios within a round. Ours are whole batches of the training loader
(predictors, coarse, target, weight, valid, scored); all others read the five stored fields too, but where it says
"predictors" only these. Needs xbatcher (pip install xbatcher), or leaves it out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil
import xarray as xr
import zarr
from numpy.typing import NDArray

from sifscale.crops import CropPlan, Plans
from sifscale.datamodule import CropDataModule
from sifscale.feature_store import materialise, open_features
from sifscale.features import Channel, FeatureCube

CHANNELS, CROP_PX, CHUNK_PX, BATCH = 7, 64, 256, 32
FIELDS = ("predictors", "coarse", "target", "weight", "valid")
READ_BY_OTHERS = 2 * BATCH  # crops a round: they are slow
Way = Callable[[], int]  # reads some crops and says how many


def write_example(folder: Path, size: int) -> Path:
    """A store of one sample of noise."""
    random = da.random.default_rng(0)
    bands = random.normal(size=(1, CHANNELS, size, size), chunks=(1, CHANNELS, CHUNK_PX, CHUNK_PX)).astype(np.float32)
    days = np.array(["2019-06-10"], "datetime64[ns]")
    names = tuple(Channel(f"band{i}", True) for i in range(CHANNELS))
    fields = bands[:, 0], bands[:, 1], bands[:, 2] > -1, bands[:, 3]
    return materialise(FeatureCube(names, bands, *fields, 1, (size, size), ("here",), days), folder, size)


def loader(path: Path, limit_mb: int, per_chunk: int) -> CropDataModule:
    """The product's own batches, of so many crops a chunk."""
    features = open_features(path, limit_mb)
    size, random = features.shape[0], np.random.default_rng(per_chunk)
    corner = random.integers(0, size - CROP_PX + 1, (per_chunk * (size // CHUNK_PX) ** 2, 2), np.int32)
    table = np.column_stack([np.zeros(len(corner), np.int32), corner, corner, corner + CROP_PX])
    plan = CropPlan(table, np.ones(len(table), np.float32), CROP_PX)
    return CropDataModule(features, Plans(plan, None, plan, None), batch_size=BATCH, seed=0, augment=False)


def epoch(data: CropDataModule) -> Way:
    """Train on nothing for an epoch, each time another one."""
    batches = data.train_dataloader()

    def run() -> int:
        batches.sampler.set_epoch(batches.sampler.epoch + 1)
        return sum(len(batch["crop"]) for batch in batches)

    return run


def one_by_one(cut: Callable[[int, int], Any], size: int, crops: int) -> Way:
    """Crops at random places, each read on its own, stacked to batches."""
    random = np.random.default_rng(1)

    def run() -> int:
        for _ in range(crops // BATCH):
            found = [cut(int(y), int(x)) for y, x in random.integers(0, size - CROP_PX + 1, (BATCH, 2))]
            for fields in zip(*found, strict=True):
                np.stack(fields)
        return crops

    return run


def others(path: Path, features: FeatureCube) -> Iterator[tuple[str, Way]]:
    """What a user would write."""
    size, store = features.shape[0], zarr.open_group(path, mode="r")

    def from_zarr(y: int, x: int) -> list[NDArray[Any]]:
        return [np.asarray(store[name][0, ..., y : y + CROP_PX, x : x + CROP_PX]) for name in FIELDS]  # type: ignore[index]  # arrays

    dataset = xr.open_zarr(path, chunks={}, consolidated=False)[list(FIELDS)]

    def from_xarray(y: int, x: int) -> list[NDArray[Any]]:
        crop = dataset.isel(sample=0, y=slice(y, y + CROP_PX), x=slice(x, x + CROP_PX)).load()
        return [crop[name].values for name in FIELDS]

    def from_memory(y: int, x: int) -> list[NDArray[Any]]:
        return [getattr(features, name)[0, ..., y : y + CROP_PX, x : x + CROP_PX] for name in FIELDS]

    yield "np.stack of slices, in memory", one_by_one(from_memory, size, 40 * BATCH)
    yield "zarr, crop by crop", one_by_one(from_zarr, size, READ_BY_OTHERS)
    yield "xarray + Dask, crop by crop", one_by_one(from_xarray, size, READ_BY_OTHERS)
    if find_spec("xbatcher"):
        lazy = xr.open_zarr(path, chunks=None, consolidated=False)[list(FIELDS)]
        yield "xbatcher", by_xbatcher(dataset)
        yield "xbatcher, predictors", by_xbatcher(dataset[["predictors"]])
        yield "xbatcher without Dask", by_xbatcher(lazy)
        yield "xbatcher without Dask, predictors", by_xbatcher(lazy[["predictors"]])


def by_xbatcher(dataset: xr.Dataset) -> Way:
    """Crops in random order, side by side: it knows no others."""
    import xbatcher

    crops = xbatcher.BatchGenerator(dataset, {"sample": 1, "y": CROP_PX, "x": CROP_PX}, preload_batch=False)
    random = np.random.default_rng(2)

    def run() -> int:
        for number in random.integers(0, len(crops), READ_BY_OTHERS):
            crop = crops[int(number)]
            for name in crop:
                crop[name].values  # noqa: B018  # which reads it
        return READ_BY_OTHERS

    return run


def peak_mb(path: Path, limit_mb: int, per_chunk: int) -> float:
    """What an epoch through the pool needs beside what the process had before, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_added_mb, path, limit_mb, per_chunk).result()


def _added_mb(path: Path, limit_mb: int, per_chunk: int) -> float:
    import_module("tensorstore")  # or its code would count
    batches, process = loader(path, limit_mb, per_chunk).train_dataloader(), psutil.Process()
    before = process.memory_info().rss
    return max(process.memory_info().rss - before for _ in batches) / 1e6


def measure(path: Path, limit_mb: int, rounds: int) -> dict[str, dict[str, float]]:
    """Rates of all ways, crops a second: {way: {rate, times_xbatcher, ...}}."""
    memory = loader(path, 10**6, 16)
    ways = dict(others(path, memory.features))
    ways |= {"ours, in memory": epoch(memory)}
    ways |= {f"ours, pool, {n} crops a chunk": epoch(loader(path, limit_mb, n)) for n in (16, 64)}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            crops = run()
            if number:  # the first is for caches
                rates[name].append(crops / (time.perf_counter() - start))
    beside = [name for name in ways if not name.startswith("ours, pool")]
    return {
        name: {"crops_per_s": statistics.median(found)}
        | {other: statistics.median(a / b for a, b in zip(found, rates[other], strict=True)) for other in beside}
        for name, found in rates.items()
    }


def show(found: dict[str, dict[str, float]]) -> None:
    """A line a way; columns are ratios to the others."""
    columns = [name for name in next(iter(found.values())) if name in found and not name.startswith("ours, pool")]
    print(f"{'':36}{'crops/s':>9}" + "".join(f"{f'/ {i}':>9}" for i in range(1, len(columns) + 1)))
    for name, row in found.items():
        ratios = "".join(f"{row[column]:9.2f}" for column in columns)
        label = f"{columns.index(name) + 1} {name}" if name in columns else f"  {name}"
        print(f"{label:36}{row['crops_per_s']:9.0f}{ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="edge of the cube, px; a multiple of 256")
    parser.add_argument("--limit-mb", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_example(Path(folder), options.size)
        found = measure(path, options.limit_mb, options.rounds)
        for per_chunk in (16, 64):
            name = f"ours, pool, {per_chunk} crops a chunk"
            found[name]["peak_mb"] = peak_mb(path, options.limit_mb, per_chunk)
    show(found)
    for name, row in found.items():
        if "peak_mb" in row:
            print(f"{name}: {row['peak_mb']:.0f} MB beside what the process had before, of {options.limit_mb}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
