"""What a test is scored on beside all of its pixels: cells, groups of pixels, and the structure of whole fields."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from scipy import ndimage

from sifscale.audit import observed_pixels
from sifscale.block_sums import BlockMap
from sifscale.crops import CropPlan
from sifscale.features import FeatureCube
from sifscale.metrics import Sums, on_cells
from sifscale.splits import TEST, TRAIN
from sifscale.structure import Structure

Field = NDArray[np.float32]
Fields = dict[str, Field]  # (sample, y, x) by name of the prediction, NaN where not scored
BlockScores = dict[str, dict[str, Sums]]  # by prediction and block
GroupSums = dict[str, dict[str, dict[str, Sums]]]  # by kind of group, group and prediction
Structures = dict[str, dict[str, Structure]]  # by prediction and block

SIF_LEVELS = 5
DISTANCES_PX = (0, 4, 8, 16, 32)  # lower edges of the groups


class FieldCollector(pl.Callback):
    """Puts the predictions of a test together into fields; each scored pixel comes from one crop."""

    def __init__(self, plan: CropPlan, shape: tuple[int, int, int]) -> None:
        self.plan, self.shape = plan, shape
        self.fields: Fields = {}

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Put a batch in its place; ``outputs`` are the predictions (B, 1, H, W) by name that ``test_step`` returns."""
        size, scored = self.plan.size, batch["scored"][:, 0].cpu().numpy()
        corners = self.plan.table[batch["crop"].tolist(), :3].tolist()
        for name, prediction in outputs.items():
            field = self.fields.setdefault(name, np.full(self.shape, np.nan, dtype=np.float32))
            for (sample, y, x), crop, inside in zip(corners, prediction[:, 0].cpu().numpy(), scored, strict=True):
                field[sample, y : y + size, x : x + size][inside] = crop[inside]

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take what other processes predicted from them."""
        if trainer.world_size == 1:
            return
        for name, field in self.fields.items():
            known = torch.from_numpy(np.isfinite(field)).to(pl_module.device, torch.float32)
            values = torch.from_numpy(np.nan_to_num(field)).to(pl_module.device)
            known, values = (trainer.strategy.reduce(part, reduce_op="sum") for part in (known, values))
            self.fields[name] = torch.where(known > 0, values / known, torch.nan).cpu().numpy()


def by_cell(fields: Fields, target: Field, blocks: BlockMap, cell_px: int, min_valid: float) -> BlockScores:
    """Sums by prediction and block of means over cells (``metrics.on_cells``); empty where no cell is filled enough."""
    names = np.array(blocks.names)
    found: BlockScores = {}
    for name, field in fields.items():
        total = Sums.zero(len(names))
        for sample, fields_here in enumerate(zip(field, target, strict=True)):
            prediction, wanted = (torch.from_numpy(np.ascontiguousarray(part))[None, None] for part in fields_here)
            cells = on_cells(prediction, wanted, prediction.isfinite(), cell_px, min_valid)
            number = torch.from_numpy(blocks.inside[::cell_px, ::cell_px] + blocks.first[sample])[None, None]
            total += Sums.by_block(*cells, number, len(names))
        columns = zip(names, total.values.T, strict=True)
        found[name] = {str(block): Sums(values) for block, values in columns if values[0] > 0}
    return found if any(found.values()) else {}


def groups(features: FeatureCube, parts: NDArray[np.int8]) -> Iterator[tuple[str, tuple[str, ...], NDArray[np.int64]]]:
    """Kinds of groups of pixels: title, names of the groups, and the group's number of each pixel (sample, y, x).

    By land cover where it is known; by level of the target, in fifths of the whole window, so that folds can be pooled;
    by distance to the nearest training pixel of the same sample (Euclidean, px) where there is one. -1: in no group.
    """
    if features.cover is not None:
        covers = tuple(name.replace("_", " ") for name in features.cover_names)
        yield "land cover", covers, np.asarray(features.cover).astype(np.int64)
    target, observed = np.asarray(features.target), observed_pixels(features)
    edges = np.unique(np.quantile(target[observed], np.linspace(0, 1, SIF_LEVELS + 1)[1:-1]))
    between = [f"{a:.3g} to {b:.3g}" for a, b in pairwise(edges)]
    names = [f"below {edges[0]:.3g}", *between, f"above {edges[-1]:.3g}"]
    yield "level of the target", tuple(names), np.where(observed, np.digitize(target, edges), -1)
    near = np.array([(part == TRAIN).any() and (part == TEST).any() for part in parts])
    if near.any():
        distance = np.stack([ndimage.distance_transform_edt(part != TRAIN) for part in parts])
        number = np.where(near[:, None, None], np.digitize(distance, DISTANCES_PX) - 1, -1)
        labels = [f"{a} to {b} px" for a, b in pairwise(DISTANCES_PX)]
        yield "distance to training pixels", (*labels, f"{DISTANCES_PX[-1]} px and more"), number


def errors_by(fields: Fields, features: FeatureCube, parts: NDArray[np.int8]) -> GroupSums:
    """Sums by kind, group and prediction, of the groups that have scored pixels."""
    target = torch.from_numpy(np.ascontiguousarray(features.target))[:, None]
    found: GroupSums = {}
    for kind, names, number in groups(features, parts):
        group, known = (torch.from_numpy(part)[:, None] for part in (np.maximum(number, 0), number >= 0))
        for prediction, field in fields.items():
            values = torch.from_numpy(field)[:, None]
            sums = Sums.by_block(values, target, known & values.isfinite(), group, len(names))
            for name, column in zip(names, sums.values.T, strict=True):
                if column[0] > 0:
                    found.setdefault(kind, {}).setdefault(name, {})[prediction] = Sums(column)
    return found


def structures(
    fields: Fields, features: FeatureCube, parts: NDArray[np.int8], blocks: BlockMap, tile_px: int
) -> Structures:
    """Structure over the test part, by prediction and block; the range of values is that of the whole target."""
    target, inside = np.asarray(features.target), parts == TEST
    data_range = float(np.ptp(target[observed_pixels(features)])) or 1.0
    number = blocks.inside + blocks.first[:, None, None]
    return {
        name: Structure.by_block(
            field, target, np.isfinite(field), inside, number, blocks.names, tile_px=tile_px, data_range=data_range
        )
        for name, field in fields.items()
    }
