"""Crops of a feature cube that stays on disk: whole chunks, read ahead into a pool that a memory limit bounds.

A window is a square of chunks with the border that its crops reach into: each crop lies wholly in one window,
wherever it is. See docs/decisions/0013.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray

from sifscale.buffers import Buffers
from sifscale.config import ConfigError
from sifscale.crop_kernels import side_by_side
from sifscale.crops import CropPlan
from sifscale.features import FeatureCube
from sifscale.quantised import Quantised
from sifscale.stored_arrays import StoredArray, rows_of_chunks

log = logging.getLogger(__name__)

Integers: TypeAlias = NDArray[np.intp]

SLOTS = 5  # windows that a training batch is mixed from at least, where the limit allows: they are made that small
AHEAD = 1  # windows that are read before they are needed
DECODING = 0.3  # as much of a window again for its chunks that are read but not decoded
BATCHES = 2  # that are alive at a time: one in use, one being filled
BESIDE_MB = 105  # what else a process grows by, whatever the size of windows: LLVM's library alone takes 50
FIELDS = ("predictors", "coarse", "target", "valid", "weight", "footprint_weights")


def on_disk(features: FeatureCube) -> bool:
    """Whether the cube was too large for memory."""
    return isinstance(features.coarse, zarr.Array)


class ChunkPool:
    """At most ``slots + AHEAD`` windows in memory, read by a thread in the order in which they are needed.

    Together with batches of ``batch_size`` crops and what the libraries need they stay within the memory limit.
    home (crop,): number of each crop's window. boxes (window, 5): sample, y0, x0, y1, x1: what its crops reach, in px.
    mixed: for crops in a mixed order rather than in that of the plan; ConfigError where the limit is too small.
    """

    def __init__(self, features: FeatureCube, plan: CropPlan, *, mixed: bool, batch_size: int = 1) -> None:
        self.features, self.plan = features, plan
        self._fields = _read_fields(features)
        self.edge_px, self.slots = _layout(features, plan.size, mixed, batch_size)
        self.home, self.boxes = _windows(plan, self.edge_px)
        self._held: dict[int, Future[FeatureCube]] = {}
        self._reader: ThreadPoolExecutor | None = None
        self._memory = self._empty()
        self.follow(np.arange(len(plan)))

    def follow(self, order: Integers) -> None:
        """The crops that will be asked for, in this order; each once."""
        turns, first = np.unique(self.home[order], return_index=True)
        _, before_end = np.unique(self.home[order[::-1]], return_index=True)
        by_first = np.argsort(first)
        self._turns, self._last = turns[by_first], len(order) - 1 - before_end[by_first]
        self._place = np.zeros(len(self.plan), np.intp)
        self._place[order] = np.arange(len(order))

    def prepare(self, place: int) -> None:
        """Start reading what the crop at this place of the order and those after it need, and forget all else."""
        held = self.slots + AHEAD if self.slots else 0
        wanted = self._turns[self._last >= place][:held].tolist()
        for window in self._held.keys() - set(wanted):
            self._held.pop(window).cancel()
        for window in wanted:
            if window not in self._held:
                self._reader = self._reader or ThreadPoolExecutor(1, "chunks")
                self._held[window] = self._reader.submit(self._read, *self.boxes[window].tolist())

    def crops(self, numbers: list[int]) -> Iterator[tuple[FeatureCube, Integers, Integers]]:
        """Cubes in memory that hold these crops, each to be read before the next is asked for.

        With each, which of ``numbers`` it holds, (n,), and their sample, y0 and x0 in it, (n, 3).
        """
        self.prepare(self._place[numbers[0]])
        home, corner = self.home[numbers], self.plan.table[numbers, :3].astype(np.intp)
        for window in dict.fromkeys(home.tolist()):
            place = np.flatnonzero(home == window)
            if window not in self._held:
                self.prepare(self._place[numbers[place[0]]])
            if window in self._held:
                yield self._held[window].result(), place, corner[place] - self.boxes[window, :3]
                continue
            for one in place:  # more are in use than there are slots
                sample, y, x = corner[one].tolist()
                read = self._read(sample, y, x, y + self.plan.size, x + self.plan.size)
                yield read, np.array([one]), np.zeros((1, 3), np.intp)

    def read_on(self, numbers: list[int]) -> None:
        """Start reading what comes after these crops, once nobody holds the cubes that they were in."""
        self.prepare(self._place[numbers].max() + 1)

    def release(self) -> None:
        """Give the memory back, until a crop is asked for."""
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)
        self._reader = None
        self._held.clear()
        self._memory = self._empty()

    def _empty(self) -> dict[str, Buffers]:
        """Memory for windows of one size, of which none is taken."""
        pixels = int(np.prod(self.boxes[:, 3:] - self.boxes[:, 1:3], axis=1).max(initial=0))
        all_px = self.features.coarse.size
        return {name: Buffers(pixels * field.nbytes // all_px) for name, field in self._fields.items()}

    def _read(self, sample: int, y0: int, x0: int, y1: int, x1: int) -> FeatureCube:
        """A part of one sample, in memory: all fields at once."""
        parts: dict[str, Any] = {"cover": None}
        for name, field in self._fields.items():
            where, last = self._where(name, sample, y0, x0, y1, x1), name == "predictors"
            if name in self._stores:
                shape = (*(along.stop - along.start for along in where), *field.shape[len(where) :])
                parts[name] = self._memory[name].take(shape, field.dtype, channels_last=last)
            else:  # made in memory
                parts[name] = side_by_side(field[where]) if last else np.ascontiguousarray(field[where])
        for top, bottom in rows_of_chunks(y0, y1, self.features.coarse.chunks[1]):
            waiting = []
            for name, store in self._stores.items():
                into = parts[name][self._where(name, 0, top - y0, 0, bottom - y0, x1 - x0)]
                waiting.append(store.read(self._where(name, sample, top, x0, bottom, x1), into))
            for written in waiting:
                written.result()
        if isinstance(coded := self.features.predictors, Quantised):
            parts["predictors"] = replace(coded, codes=parts["predictors"])
        return replace(self.features, **parts)

    def _where(self, name: str, sample: int, y0: int, x0: int, y1: int, x1: int) -> tuple[slice, ...]:
        """Where pixels of a sample lie in a field; all channels, and cells that hold any of them."""
        per = self.features.block_px if name == "footprint_weights" else 1
        channels = (slice(0, len(self.features.channels)),) if name == "predictors" else ()
        cells = slice(y0 // per, -(-y1 // per)), slice(x0 // per, -(-x1 // per))
        return slice(sample, sample + 1), *channels, *cells

    @cached_property
    def _stores(self) -> dict[str, StoredArray]:
        return {name: StoredArray(field) for name, field in self._fields.items() if isinstance(field, zarr.Array)}


def _read_fields(features: FeatureCube) -> dict[str, Any]:
    """What is read of a cube: codes instead of what they stand for, as twice as many of them fit the limit."""
    fields = {name: field for name in FIELDS if (field := getattr(features, name)) is not None}
    return {name: field.codes if isinstance(field, Quantised) else field for name, field in fields.items()}


def _layout(features: FeatureCube, size: int, mixed: bool, batch_size: int) -> tuple[tuple[int, int], int]:
    """Edges (y, x) of a window without its border, in px, and how many fit; as large as leaves enough of them.

    Enough is SLOTS for crops in a mixed order, and else a row of windows, so that each is read once.
    """
    shape = features.coarse.shape[1:]
    fields = _read_fields(features)
    stored = sum(field.nbytes for field in fields.values() if isinstance(field, zarr.Array))
    bytes_per_px: float = stored / features.coarse.size
    in_batch: float = sum(getattr(features, name).nbytes for name in fields) / features.coarse.size
    beside = BESIDE_MB * 1e6 + BATCHES * batch_size * size**2 * (in_batch + 1)  # one byte: what is scored
    limit, chunk = features.memory_limit_mb * 1e6 - beside, features.coarse.chunks[1:]

    def bytes_of(chunks: int) -> float:
        y, x = (int(min(chunks * along + size, n)) for along, n in zip(chunk, shape, strict=True))
        return y * x * bytes_per_px

    chunks = 1
    while chunks * min(chunk) < max(shape):
        enough = SLOTS if mixed else -(-shape[1] // ((chunks + 1) * chunk[1])) + 1
        if (enough + AHEAD + DECODING) * bytes_of(chunks + 1) > limit:
            break
        chunks += 1
    slots = max(int(limit / bytes_of(chunks) - AHEAD - DECODING), 0)
    if not slots:
        needed = int(((1 + AHEAD + DECODING) * bytes_of(1) + beside) / 1e6) + 1
        fault = (
            f"trainer.memory_limit_mb: must be at least {needed} for batches of {batch_size} crops of {size} px from "
            f"chunks of {chunk[0]} x {chunk[1]} px (found {features.memory_limit_mb})"
        )
        if mixed:
            raise ConfigError([fault])
        log.warning("%s; until then they are read one by one, which is slow", fault)
    return (chunks * chunk[0], chunks * chunk[1]), slots


def _windows(plan: CropPlan, edge_px: tuple[int, int]) -> tuple[Integers, Integers]:
    """Number of the window of each crop (crop,), by its upper-left pixel; and the windows' boxes (window, 5)."""
    corner = plan.table[:, :3].astype(np.intp)
    square = corner // (1, *edge_px)
    key = np.ravel_multi_index(tuple(square.T), tuple(square.max(0, initial=0) + 1))
    found, first, home = np.unique(key, return_index=True, return_inverse=True)
    lower, upper = np.full((len(found), 2), np.iinfo(np.intp).max), np.zeros((len(found), 2), np.intp)
    np.minimum.at(lower, home, corner[:, 1:])
    np.maximum.at(upper, home, corner[:, 1:] + plan.size)
    return home, np.column_stack([square[first, 0], lower, upper])
