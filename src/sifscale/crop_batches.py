"""Batches of crops: one gather a batch, from a feature cube in memory or through a pool of its chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
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
from sifscale.crop_kernels import Coding, Flat, cut, rows_of, score, side_by_side
from sifscale.crops import CropPlan
from sifscale.features import FeatureCube
from sifscale.quantised import Quantised
from sifscale.splits import TEST

Batch = dict[str, Tensor]
FLAT = ("coarse", "target", "weight", "valid")
_NO_PARTS = np.empty((0, 0, 0), np.int8)  # for the kernel, which wants arrays of one type


class CropBatches(Dataset[Batch]):
    """A batch for a list of crop numbers: one gather a batch, no work a crop in Python workers.

    A feature cube on disk is read through a pool of chunks; mixed: in a mixed order instead of that of the plan;
    batch_size: crops for which its memory limit leaves room.
    """

    def __init__(
        self,
        features: FeatureCube,
        plan: CropPlan,
        parts: NDArray[np.int8] | None,
        part: int = TEST,
        mixed: bool = False,
        batch_size: int = 1,
    ) -> None:
        stays = on_disk(features)
        self.pool = ChunkPool(features, plan, mixed=mixed, batch_size=batch_size) if stays else None
        self.features = features if stays else _in_rows(features)
        self.plan, self.parts, self.part = plan, parts, part
        self._memory: defaultdict[str, Buffers] = defaultdict(Buffers)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, numbers: list[int]) -> Batch:
        """predictors (B, C, H, W); coarse, target, weight (B, 1, H, W) float32; valid, scored (B, 1, H, W) bool.

        valid: target observed. scored: valid, in the core of the crop and, where parts are given, in ``part``.
        crop (B,): the numbers. footprint_weights (B, H / block, W / block, k, k) float32, where the feature cube has
        them. Values are physical, gaps NaN: the task normalises and fills them. In memory all channels of a pixel lie
        side by side, PyTorch's channels_last, wherever the crops come from.
        """
        batch = self._room(len(numbers))
        self._fill(batch, numbers)
        if self.pool is not None:  # while this batch is being used
            self.pool.read_on(numbers)
        table, parts = self.plan.table[numbers], self.parts if self.parts is not None else _NO_PARTS
        score(batch["valid"][:, 0], table, parts, self.part, batch["scored"][:, 0])
        batch["crop"] = np.array(numbers, np.int64)
        return {name: torch.from_numpy(field) for name, field in batch.items()}

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
        kinds = {name: ((1, size, size), getattr(features, name).dtype) for name in FLAT}
        kinds["scored"] = (1, size, size), np.dtype(bool)
        kinds["predictors"] = (len(features.channels), size, size), features.predictors.dtype
        if (weights := features.footprint_weights) is not None:
            kinds["footprint_weights"] = (*(2 * [size // features.block_px]), *weights.shape[3:]), weights.dtype
        return {
            name: self._memory[name].take((crops, *shape), dtype, channels_last=name == "predictors")
            for name, (shape, dtype) in kinds.items()
        }

    def _fill(self, batch: dict[str, NDArray[Any]], numbers: list[int]) -> None:
        """Copy the crops into the batch."""
        corners = self.plan.table[numbers, :3].astype(np.intp)
        in_memory = [(self.features, np.arange(len(numbers)), corners)]
        cells, block = self.plan.size // self.features.block_px, self.features.block_px
        into = rows_of(batch["predictors"]), _flat({name: batch[name][:, 0] for name in FLAT})
        for source, place, corner in in_memory if self.pool is None else self.pool.crops(numbers):
            cut(*_coded(source.predictors, self.plan.size), _flat(vars(source)), corner, place, *into)
            if source.footprint_weights is not None:  # of the native cells that make up a crop, which never cuts one
                for number, (sample, y, x) in zip(place, corner // (1, block, block), strict=True):
                    found = source.footprint_weights[sample, y : y + cells, x : x + cells]
                    batch["footprint_weights"][number] = found


def _in_rows(features: FeatureCube) -> FeatureCube:
    """The same cube in memory as crops are cut from it fastest; nothing is copied that lies so."""
    flat: dict[str, Any] = {name: np.ascontiguousarray(getattr(features, name)) for name in FLAT}
    return replace(features, predictors=side_by_side(np.asarray(features.predictors)), **flat)


def _flat(fields: Mapping[str, Any]) -> Flat:
    coarse, target, weight, valid = (fields[name] for name in FLAT)
    return coarse, target, weight, valid


def _coded(predictors: Any, size: int) -> tuple[NDArray[Any], Coding | None]:
    """Rows of the predictors, and how each value in a row of a crop is coded, None where they are no codes."""
    if isinstance(predictors, Quantised):
        return rows_of(predictors.codes), (np.tile(predictors.scale, size), np.tile(predictors.offset, size))
    return rows_of(predictors), None


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
