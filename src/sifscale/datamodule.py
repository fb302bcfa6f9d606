"""Crop plan + feature cube -> batches; normalisation fitted on the training part only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

# Offered here too: what reads batches needs no other room.
from sifscale.batch_order import BatchOrder as BatchOrder
from sifscale.config import ConfigError, Normalisation
from sifscale.crop_batches import Batch as Batch
from sifscale.crop_batches import CropBatches as CropBatches
from sifscale.crop_batches import CropLoader
from sifscale.crops import CropPlan, Plans, covering_crops
from sifscale.features import FeatureCube
from sifscale.splits import NOWHERE, TRAIN


@dataclass(frozen=True)
class Scaler:
    """x -> (x - offset) / scale: a pair for each predictor channel, one for coarse and target SIF alike."""

    offset: tuple[float, ...]
    scale: tuple[float, ...]
    target_offset: float
    target_scale: float


def fit_scaler(features: FeatureCube, inside: NDArray[np.bool_], method: str) -> Scaler:
    """Scaler from the finite pixels of ``inside`` (sample, y, x); codes and classes stay as they are.

    zscore: mean and standard deviation; minmax: minimum and range; none: everything as it is. A channel that
    is constant there is only shifted.
    """
    if method == "none":
        channels = len(features.channels)
        return Scaler((0.0,) * channels, (1.0,) * channels, 0.0, 1.0)
    *pairs, target = (moments.offset_scale(method) for moments in _moments(features, inside))
    return Scaler(tuple(o for o, _ in pairs), tuple(s for _, s in pairs), *target)


def channel_ranges(features: FeatureCube, inside: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Smallest and largest finite value of each channel on ``inside`` (sample, y, x); infinite for codes and classes.

    A channel without any value there has the empty range (inf, -inf).
    """
    found = _moments(features, inside)[:-1]
    return tuple(
        (moments.low, moments.high) if channel.scaled else (-np.inf, np.inf)
        for channel, moments in zip(features.channels, found, strict=True)
    )


@dataclass
class _Moments:
    """Of values that come part by part: how many, their mean, squares about it, smallest and largest."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Further values; how parts are put together: Chan et al. 1983, doi:10.1080/00031305.1983.10483115."""
        known = values[np.isfinite(values)].astype(np.float64)
        if not len(known):
            return
        total, apart = self.count + len(known), known.mean() - self.mean
        self.squares += float(((known - known.mean()) ** 2).sum() + apart**2 * self.count * len(known) / total)
        self.mean += float(apart * len(known) / total)
        self.count, self.low, self.high = total, min(self.low, float(known.min())), max(self.high, float(known.max()))

    def offset_scale(self, method: str) -> tuple[float, float]:
        """As in `Scaler`, by "zscore" or "minmax"."""
        if not self.count:
            return 0.0, 1.0
        if self.low == self.high:  # asked first: rounding makes the standard deviation of a constant positive
            return self.low, 1.0
        if method == "zscore":
            return self.mean, (self.squares / self.count) ** 0.5
        return self.low, self.high - self.low


def _moments(features: FeatureCube, inside: NDArray[np.bool_]) -> list[_Moments]:
    """Of each scaled channel and of the target over ``inside``, of others none; a cube on disk is read once."""
    found = [_Moments() for _ in range(len(features.channels) + 1)]
    wanted = [channel.scaled for channel in features.channels] + [True]
    for part in features.strips(inside):
        fields = *np.asarray(features.predictors[part[0], :, part[1]]), np.asarray(features.target[part])
        for moments, field in itertools.compress(zip(found, fields, strict=True), wanted):
            moments.add(field[inside[part]])
    return found


def training_pixels(plans: Plans, features: FeatureCube, normalisation: Normalisation) -> NDArray[np.bool_]:
    """Pixels (sample, y, x) that normalisation may look at: the train part, or all if so configured."""
    shape = features.coarse.shape
    if normalisation.fit == "everything":
        return np.ones(shape, dtype=bool)
    return plans.train.covered(shape) if plans.parts is None else plans.parts == TRAIN


class CropDataModule(pl.LightningDataModule):
    """Batches of a run's crop plans, with flips and quarter turns of training crops where asked for."""

    def __init__(
        self, features: FeatureCube, plans: Plans, *, batch_size: int, seed: int, augment: bool
    ) -> None:
        super().__init__()
        if augment and features.footprint_weights is not None:
            raise ConfigError(["crop.augment: must be false with footprint weights, which are not turned (found True)"])
        self.features, self.plans, self.batch_size, self.seed = features, plans, batch_size, seed
        self._turn = _Dihedral() if augment else None

    def train_dataloader(self) -> CropLoader:
        """Shuffled anew each epoch."""
        return self._loader(self.plans.train, None, self.seed)

    def val_dataloader(self) -> CropLoader | list[Any]:
        """Validation crops in order; empty where the split has none."""
        return self._loader(self.plans.validation, None, None) if self.plans.validation else []

    def test_dataloader(self) -> CropLoader:
        """Test crops in order; each pixel of the test part is scored once."""
        return self._loader(self.plans.test, self.plans.parts, None)

    def each_pixel_once(self, part: int) -> Iterator[Batch]:
        """Batches in which each valid pixel of ``part`` (TRAIN, VALIDATION, ...) is scored exactly once, in order.

        As in a test, crops reach beyond the part, so that a pixel at its edge has the surroundings that it has in
        the map; only their coarse field and bands are to be read. In every process all of them.
        """
        plans, valid = self.plans, np.asarray(self.features.valid)
        parts = plans.parts
        if parts is None:  # crops were split, not pixels
            parts = np.where(plans.train.covered(valid.shape), TRAIN, NOWHERE).astype(np.int8)
        plan = covering_crops(parts == part, valid, plans.train.size, self.features.block_px)
        crops = CropBatches(self.features, plan, parts, part, batch_size=self.batch_size)
        return iter(CropLoader(crops, BatchOrder(len(crops), self.batch_size, None)))

    def _loader(self, plan: CropPlan, parts: NDArray[np.int8] | None, seed: int | None) -> CropLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        self._check_processes(world)
        crops = CropBatches(self.features, plan, parts, mixed=seed is not None, batch_size=self.batch_size)
        return CropLoader(crops, BatchOrder(len(plan), self.batch_size, seed, rank, world, crops.pool))

    def _check_processes(self, world: int) -> None:
        """All must have crops of each part: for the scores of one that has none the others would wait for ever."""
        plans = {"training": self.plans.train, "validation": self.plans.validation, "test": self.plans.test}
        for part, plan in plans.items():
            if plan is not None and len(plan) < world > 1:
                raise ConfigError(
                    [f"trainer.devices: must not exceed the number of {part} crops, {len(plan)} (found {world})"]
                )

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Random numbers of a training batch (turns, dropout) depend on (seed, epoch, batch) only.

        A resumed run thus draws the same as an unbroken one; a seed an epoch would not do, since Lightning leaves out
        ``on_train_epoch_start`` of the first epoch after a checkpoint, and loaders draw too.
        """
        if self.trainer is not None and self.trainer.training:
            seed = hash((self.seed, self.trainer.current_epoch, int(batch["crop"][0]))) % 2**31
            if self.trainer.strategy.root_device.type == "cpu":
                torch.default_generator.manual_seed(seed)
            else:  # of all devices, which where there are none takes a millisecond
                torch.manual_seed(seed)
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn a training batch, on the device it is on; all fields of a crop alike."""
        if self._turn is None or self.trainer is None or not self.trainer.training:
            return batch
        names = ("coarse", "target", "weight", "valid", "scored")
        channels = batch["predictors"].shape[1]
        turned = self._turn(torch.cat([batch["predictors"], *(batch[name].float() for name in names)], dim=1))
        fields = dict(zip(names, turned[:, channels:].split(1, dim=1), strict=True))
        masks = {name: fields[name] > 0.5 for name in ("valid", "scored")}
        return batch | {"predictors": turned[:, :channels]} | fields | masks


class _Dihedral(torch.nn.Module):
    """The eight symmetries of the square, each equally likely for each crop; exact, no value is interpolated.

    Kornia's quarter turns resample, which spreads NaN; its flips and a transposition do not.
    """

    def __init__(self) -> None:
        super().__init__()
        from kornia import augmentation

        # Kornia's own AugmentationSequential takes twice the time, for masks and boxes that are not here.
        self.flips = torch.nn.Sequential(
            augmentation.RandomHorizontalFlip(p=0.5), augmentation.RandomVerticalFlip(p=0.5)
        )

    def forward(self, crops: Tensor) -> Tensor:
        """(B, C, M, M) -> the same crops, turned."""
        flipped: Tensor = self.flips(crops)
        transpose = torch.rand(len(crops), device=crops.device) < 0.5
        return torch.where(transpose[:, None, None, None], flipped.mT, flipped)
