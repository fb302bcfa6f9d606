"""Test sums by block of the map, which the paired block bootstrap draws from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from sifscale.crops import CropPlan
from sifscale.features import FeatureCube
from sifscale.metrics import Sums
from sifscale.splits import block_ids


@dataclass(frozen=True)
class BlockMap:
    """Which block a pixel belongs to: ``names`` by number, the number being inside[y, x] + first[sample]."""

    names: tuple[str, ...]
    inside: NDArray[np.int64]
    first: NDArray[np.int64]

    def cut(self, plan: CropPlan, crops: list[int]) -> Tensor:
        """Numbers (B, 1, size, size) int64 of the blocks under these crops of a plan."""
        found = [
            self.inside[y : y + plan.size, x : x + plan.size] + self.first[sample]
            for sample, y, x in plan.table[crops, :3].tolist()
        ]
        return torch.from_numpy(np.stack(found))[:, None]


def block_map(features: FeatureCube, block_px: tuple[int, int]) -> BlockMap:
    """Blocks of about ``block_px`` (y, x) of the only place, or, where there are many places, each of them whole.

    The composites of a place share its blocks, since what a model does not know about a place stays from one to
    the next. Padding continues the last block.
    """
    places = sorted(set(features.places))
    inside = block_ids(features.shape, block_px if len(places) == 1 else features.shape)
    lower, right = (wanted - have for wanted, have in zip(features.coarse.shape[1:], inside.shape, strict=True))
    count = int(inside.max()) + 1
    number = {place: i * count for i, place in enumerate(places)}
    return BlockMap(
        names=tuple(f"{place}:{i}" for place in places for i in range(count)),
        inside=np.pad(inside, ((0, lower), (0, right)), mode="edge").astype(np.int64),
        first=np.array([number[place] for place in features.places], dtype=np.int64),
    )


class BlockTally(pl.Callback):
    """Adds up, while a task is tested, the sums of each of its predictions by block; on the CPU, over all processes."""

    def __init__(self, blocks: BlockMap, plan: CropPlan) -> None:
        self.blocks, self.plan = blocks, plan
        self.sums: dict[str, Sums] = {}

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch; ``outputs`` are the predictions (B, 1, H, W) by name that ``test_step`` returns."""
        block = self.blocks.cut(self.plan, batch["crop"].tolist())
        target, scored = batch["target"].cpu(), batch["scored"].cpu()
        for name, prediction in outputs.items():
            sums = Sums.by_block(prediction.cpu(), target, scored, block, len(self.blocks.names))
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add those of the other processes."""
        for name, sums in self.sums.items():
            values = trainer.strategy.reduce(sums.values.to(pl_module.device), reduce_op="sum")
            self.sums[name] = Sums(values.cpu())

    def by_name(self) -> dict[str, dict[str, Sums]]:
        """Sums (8,) by prediction and block; blocks without a scored pixel are left out."""
        return {
            name: {
                block: Sums(values)
                for block, values in zip(self.blocks.names, sums.values.T, strict=True)
                if values[0] > 0
            }
            for name, sums in self.sums.items()
        }
