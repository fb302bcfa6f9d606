"""Batches of crops: one gather a batch, from a feature cube in memory or through a pool of its chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sifscale.batch_order import BatchOrder
from sifscale.buffers import Buffers
from sifscale.chunk_pool import ChunkPool, on_disk
from sifscale.config import ConfigError, digest
from sifscale.crops import CropPlan
from sifscale.features import FeatureCube
from sifscale.splits import TEST

Batch = dict[str, Tensor]


class CropBatches(Dataset[Batch]):
    """A batch for a list of crop numbers: one gather a batch, no work a crop in Python workers.

    A feature cube on disk is read through a pool of chunks; mixed: in a mixed order instead of that of the plan.
    """

    def __init__(
        self,
        features: FeatureCube,
        plan: CropPlan,
        parts: NDArray[np.int8] | None,
        part: int = TEST,
        mixed: bool = False,
    ) -> None:
        self.features, self.plan, self.parts, self.part = features, plan, parts, part
        self.pool = ChunkPool(features, plan, mixed=mixed) if on_disk(features) else None
        self._memory: defaultdict[str, Buffers] = defaultdict(Buffers)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, numbers: list[int]) -> Batch:
        """predictors (B, C, H, W); coarse, target, weight (B, 1, H, W) float32; valid, scored (B, 1, H, W) bool.

        valid: target observed. scored: valid, in the core of the crop and, where parts are given, in ``part``.
        crop (B,): the numbers. footprint_weights (B, H / block, W / block, k, k) float32, where the feature cube has
        them. Values are physical, gaps NaN: the task normalises and fills them.
        """
        rows = self.plan.table[numbers]
        batch = self._room(len(numbers))
        if self.pool is not None:
            self.pool.prepare(numbers[0])
        self._fill(batch, numbers)
        scored = batch["valid"][:, 0] & self._cores(rows)
        if self.parts is not None:
            size = self.plan.size
            for i, (s, y, x) in enumerate(rows[:, :3].tolist()):
                scored[i] &= self.parts[s, y : y + size, x : x + size] == self.part
        batch["scored"] = scored[:, None]
        return {name: torch.from_numpy(field) for name, field in batch.items()} | {"crop": torch.tensor(numbers)}

    def follow(self, batches: list[list[int]]) -> None:
        """Say which batches will be asked for, in this order, so that they can be read ahead."""
        if self.pool is not None:
            self.pool.follow(np.array([number for batch in batches for number in batch], np.intp))

    def release(self) -> None:
        """Give the memory of the pool back, until the next batch."""
        if self.pool is not None:
            self.pool.release()

    def _room(self, crops: int) -> dict[str, NDArray[Any]]:
        """Arrays for so many crops: memory of earlier batches, if nobody has these any more."""
        size, features = self.plan.size, self.features
        shapes = dict.fromkeys(("coarse", "target", "weight", "valid"), (1, size, size))
        shapes["predictors"] = (len(features.channels), size, size)
        if features.footprint_weights is not None:
            cells = size // features.block_px
            shapes["footprint_weights"] = (cells, cells, *features.footprint_weights.shape[3:])
        return {
            name: self._memory[name].take((crops, *shape), getattr(features, name).dtype)
            for name, shape in shapes.items()
        }

    def _fill(self, batch: dict[str, NDArray[Any]], numbers: list[int]) -> None:
        """Copy the crops into the batch."""
        size, block = self.plan.size, self.features.block_px
        flat = [(batch[name], name) for name in ("coarse", "target", "weight", "valid")]
        predictors, weights = batch["predictors"], batch.get("footprint_weights")
        for i, number in enumerate(numbers):
            if self.pool is None:
                source, (sample, y, x) = self.features, self.plan.table[number, :3].tolist()
            else:
                source, sample, y, x = self.pool.crop(number)
            rows, columns = slice(y, y + size), slice(x, x + size)
            predictors[i] = source.predictors[sample, :, rows, columns]
            for field, name in flat:
                field[i, 0] = getattr(source, name)[sample, rows, columns]
            if weights is not None:  # of the native cells that make up the crop; crops never cut a cell
                cells = slice(y // block, (y + size) // block), slice(x // block, (x + size) // block)
                weights[i] = source.footprint_weights[sample, *cells]

    def _cores(self, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        at = np.arange(self.plan.size)
        y, x = rows[:, 1, None] + at, rows[:, 2, None] + at
        in_y = (y >= rows[:, 3, None]) & (y < rows[:, 5, None])
        in_x = (x >= rows[:, 4, None]) & (x < rows[:, 6, None])
        return in_y[:, :, None] & in_x[:, None, :]


class CropLoader:
    """Batches of crops in an order, as Lightning wants them: with a length, a sampler and a state.

    Lightning keeps the state in checkpoints: a run that was stopped within an epoch goes on with the rest of it.
    """

    batch_sampler = None  # Lightning looks for one beside a sampler

    def __init__(self, crops: CropBatches, order: BatchOrder) -> None:
        self.crops, self.sampler = crops, order
        self._done, self._resumed = (0, 0), (0, 0)  # epoch, and batches of it

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        batches, epoch = list(self.sampler), self.sampler.epoch
        start = self._resumed[1] if self._resumed[0] == epoch else 0
        self._resumed = (0, 0)
        self.crops.follow(batches[start:])
        try:
            for number, batch in enumerate(batches[start:], start + 1):
                self._done = (epoch, number)
                yield self.crops[batch]
        finally:
            self.crops.release()

    def state_dict(self) -> dict[str, Any]:
        """How far this epoch has come, and what its order depends on."""
        return {"epoch": self._done[0], "batches": self._done[1], "order": self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last batch; ConfigError where that would not be the same epoch's rest."""
        epoch, batches = int(state_dict["epoch"]), int(state_dict["batches"])
        if batches < len(self) and state_dict["order"] != self._order():
            raise ConfigError(
                [
                    "resume: a run that was stopped within an epoch goes on with the same crops, seed, "
                    "trainer.batch_size, trainer.devices and, where the feature cube stays on disk, "
                    "trainer.memory_limit_mb (found another order of crops)"
                ]
            )
        self._done, self._resumed = (epoch, batches), (epoch, batches % len(self))

    def _order(self) -> str:
        order, pool = self.sampler, self.crops.pool
        layout = None if pool is None else [*pool.edge_px, pool.slots]
        return digest(self.crops.plan.hash, order.seed, order.batch_size, order.world, layout)
