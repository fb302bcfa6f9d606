"""Training crops of 7 x 64 x 64 and the fields beside them, beside what a user would pick instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import dask.array as da
import numpy as np
import psutil

from benchmarks.crop_peers import BATCH, CROP_PX, FIELDS, batches, copied, from_disk, from_memory
from benchmarks.measure import Row, Setting, Way, compare, fresh
from sifscale.crops import CropPlan, Plans
from sifscale.datamodule import CropDataModule
from sifscale.feature_store import materialise, open_features
from sifscale.features import Channel, FeatureCube

CHANNELS, CHUNK_PX = 7, 256
SIZE_PX, LIMIT_MB = 4096, 300
QUICK_SIZE_PX, QUICK_LIMIT_MB = 1792, 128  # of a cube of 132 MB: less would not do
BARS = {16: 40.0, 64: 150.0}  # beside xbatcher, by crops a chunk
MEMORY_BAR = 1.5  # beside np.stack
ALL_MEMORY_MB = 10**6


def write_example(folder: Path, size: int) -> Path:
    """A store of one sample of noise, in the product's layout."""
    random = da.random.default_rng(0)
    bands = random.normal(size=(1, CHANNELS, size, size), chunks=(1, CHANNELS, CHUNK_PX, CHUNK_PX)).astype(np.float32)
    days = np.array(["2019-06-10"], "datetime64[ns]")
    names = tuple(Channel(f"band{i}", True) for i in range(CHANNELS))
    fields = bands[:, 0], bands[:, 1], bands[:, 2] > -1, bands[:, 3]
    return materialise(FeatureCube(names, bands, *fields, 1, (size, size), ("here",), days), folder, size)


def loader(path: Path, limit_mb: int, per_chunk: int) -> CropDataModule:
    """The product's own batches, of so many crops a chunk, anywhere."""
    features = open_features(path, limit_mb)
    size, random = features.shape[0], np.random.default_rng(per_chunk)
    corner = random.integers(0, size - CROP_PX + 1, (per_chunk * (size // CHUNK_PX) ** 2, 2), np.int32)
    table = np.column_stack([np.zeros(len(corner), np.int32), corner, corner, corner + CROP_PX])
    plan = CropPlan(table, np.ones(len(table), np.float32), CROP_PX)
    return CropDataModule(features, Plans(plan, None, plan, None), batch_size=BATCH, seed=0, augment=False)


def epoch(data: CropDataModule) -> Way:
    """Train on nothing for an epoch, each time another one."""
    loaded = data.train_dataloader()

    def run() -> None:
        loaded.sampler.set_epoch(loaded.sampler.epoch + 1)
        for _ in loaded:
            pass

    return Way("ours", run, len(data.plans.train))


def is_equal(data: CropDataModule, features: FeatureCube) -> bool:
    """Whether the pixels of a batch are those of the cube."""
    batch = next(iter(data.train_dataloader()))
    cut = from_memory({name: getattr(features, name) for name in FIELDS})
    for i, number in enumerate(batch["crop"].tolist()):
        y, x = data.plans.train.table[number, 1:3].tolist()
        for name, field in zip(FIELDS, cut(y, x), strict=True):
            if not np.array_equal(batch[name][i].numpy().reshape(field.shape), field, equal_nan=True):
                return False
    return True


def rows(setting: Setting) -> Iterator[Row]:
    """In memory, then through the pool of a limit that the cube does not fit, and what the pool needs."""
    size, limit_mb = (QUICK_SIZE_PX, QUICK_LIMIT_MB) if setting.quick else (SIZE_PX, LIMIT_MB)
    path = write_example(setting.scratch, size)
    memory = loader(path, ALL_MEMORY_MB, 16)
    features, ours = memory.features, epoch(memory)
    about = f"{CHANNELS} x {CROP_PX} x {CROP_PX}, batches of {BATCH}"
    checked = replace(ours, agrees=is_equal(memory, features), note="the cube's pixels")
    held = features.predictors[0, :, :CROP_PX, : CROP_PX * BATCH].copy()  # as many numbers as a batch of predictors
    copy = Way("copy of the predictors", held.copy, held.shape[-1] / CROP_PX)
    peers = memory_peers(features, (4 if setting.quick else 40) * BATCH)
    yield from compare("crops", f"{about}, in memory", "crops/s", checked, peers, setting, copy)
    bars = {16: BARS[16]} if setting.quick else BARS
    others = from_disk(path, features, BATCH if setting.quick else 2 * BATCH, limit_mb)
    for per_chunk, bar in bars.items():
        pool = loader(path, limit_mb, per_chunk)
        checked = replace(epoch(pool), agrees=is_equal(pool, features), note="the cube's pixels")
        peers = [replace(way, bar=bar) if way.name == "xbatcher" else way for way in others]
        case = f"{about}, pool of {limit_mb} MB, {per_chunk} crops a chunk"
        yield from compare("crops", case, "crops/s", checked, peers, setting, replace(ours, name="ours, in memory"))
    for per_chunk in bars:
        added, peak = fresh(added_mb, path, limit_mb, per_chunk)
        case = f"memory of an epoch through the pool, {per_chunk} crops a chunk"
        yield Row("crops", case, added, "MB", at_most=limit_mb, peak_mb=peak, note="beside what the process had before")


def memory_peers(features: FeatureCube, crops: int) -> list[Way]:
    """So many slices, stacked.

    Who loads a cube with xarray has it channel by channel. Slices of our own layout have longer rows, from which
    np.stack gains too, as it keeps the order in memory: what remains between us is the way of copying.
    """
    plain, alike = (batches(from_memory(copied(features, of)), features.shape[0], crops) for of in ("C", "K"))
    return [
        Way("np.stack of slices", plain, crops, MEMORY_BAR),
        Way("np.stack of slices of our layout", alike, crops),
    ]


def added_mb(path: Path, limit_mb: int, per_chunk: int) -> float:
    """What an epoch through the pool adds to this process, which is to be a fresh one."""
    import_module("tensorstore")  # or its code would count
    loaded, process = loader(path, limit_mb, per_chunk).train_dataloader(), psutil.Process()
    before = process.memory_info().rss
    return max(process.memory_info().rss - before for _ in loaded) / 1e6
