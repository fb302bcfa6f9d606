"""Permutation importance: how much worse a model is when what it reads of one place comes from another.

Breiman 2001 (doi:10.1023/A:1010933404324) exchanges single values; here whole crops exchange a channel, so that it
keeps its texture and loses only its link with the place and the day. Predictors that go together stand in for one
another, and exchanging one of them makes pairs that do not occur (Hooker et al. 2021, doi:10.1007/s11222-021-10057-z):
groups of predictors tell more than single ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sifscale.config import FOOTPRINT_SIF
from sifscale.crops import CropPlan
from sifscale.datamodule import Batch, BatchOrder, CropBatches
from sifscale.features import FeatureCube
from sifscale.metrics import Sums
from sifscale.models.ratio import CHANNEL as FOOTPRINT_RATIO
from sifscale.splits import TEST
from sifscale.task import DownscalingTask

Channels = tuple[int, ...]  # numbers of channels that are exchanged together

GROUPS = {
    "coarse": ("coarse", FOOTPRINT_SIF, FOOTPRINT_RATIO),  # the coarse field, and what is made of it
    "indices": ("ndvi", "evi", "nirv"),
    "reflectances": ("red", "nir", "blue", "green", "swir", "mir"),
}
TEXTURE, OTHERS = "texture", "others"
NO_CLASS = "no class"


def group_of(channel: str) -> str:
    """Group that a predictor belongs to: one of ``GROUPS``, texture (LBP, local statistics, of any band), others.

    A band that is read as its coarse mean ("coarse_ndvi") belongs to the group of the band.
    """
    if channel.endswith(")"):  # lbp_uniform_p8_r1px_class0(evi), sd3(evi)
        return TEXTURE
    return next((group for group, names in GROUPS.items() if channel.removeprefix("coarse_") in names), OTHERS)


def channel_groups(channels: Sequence[str]) -> dict[str, Channels]:
    """Numbers of the channels of each group that has any, in the order of ``GROUPS``, then texture, others."""
    found = {group: tuple(i for i, c in enumerate(channels) if group_of(c) == group)
             for group in (*GROUPS, TEXTURE, OTHERS)}  # fmt: skip
    return {group: numbers for group, numbers in found.items() if numbers}


def crops_tested(
    features: FeatureCube, plan: CropPlan, parts: NDArray[np.int8], most: int | None, seed: int
) -> CropPlan:
    """The test crops that have a scored pixel, or ``most`` of them drawn at random; ValueError for fewer than two."""
    scored = np.asarray(features.valid) & (parts == TEST)
    seen = [i for i, (s, _, _, y0, x0, y1, x1) in enumerate(plan.table.tolist()) if scored[s, y0:y1, x0:x1].any()]
    if len(seen) < 2:
        raise ValueError(f"test part: must hold 2 crops or more, to exchange predictors between (found {len(seen)})")
    index = np.array(seen)
    if most is not None and most < len(index):
        index = np.sort(np.random.default_rng(seed).choice(index, most, replace=False))
    return plan.take(index)


def cyclic_order(count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Where each of ``count`` things comes from: one cycle, each equally likely, so that none stays where it is."""
    order = rng.permutation(count)
    donor = np.empty(count, dtype=np.intp)
    donor[order] = np.roll(order, 1)
    return donor


@dataclass(frozen=True)
class Exchanged:
    """Sums (8, classes) by land cover of the unchanged model, and by channels exchanged for each repeat.

    classes: names of the columns, the last one of pixels of no class.
    """

    classes: tuple[str, ...]
    before: Sums
    after: Mapping[Channels, tuple[Sums, ...]]


@dataclass(frozen=True)
class Importance:
    """What an exchange of channels costs: means over repeats and their standard deviations (NaN for one repeat).

    rmse: increase of the RMSE, in units of the target. squared_error: increase of the mean squared error as a share of
    what it was; NaN where the model was exact.
    """

    rmse: float
    rmse_sd: float
    squared_error: float
    squared_error_sd: float

    @classmethod
    def of(cls, before: Sums, after: Sequence[Sums]) -> Importance:
        """From sums before, and after each exchange; ValueError where nothing was scored."""
        reference = before.finish()["rmse"]
        rmse = np.array([sums.finish()["rmse"] for sums in after])
        share = (rmse / reference) ** 2 - 1 if reference > 0 else np.full_like(rmse, np.nan)
        return cls(*_mean_sd(rmse - reference), *_mean_sd(share))


def by_cover(exchanged: Exchanged, channels: Channels) -> dict[str, Importance]:
    """Importance by class of land cover; classes without a scored pixel are left out."""
    columns = zip(exchanged.classes, exchanged.before.values.T, range(len(exchanged.classes)), strict=True)
    return {
        name: Importance.of(Sums(before), [Sums(sums.values[:, i]) for sums in exchanged.after[channels]])
        for name, before, i in columns
        if before[0] > 0
    }


@torch.no_grad()
def exchange(
    task: DownscalingTask,
    features: FeatureCube,
    plan: CropPlan,
    parts: NDArray[np.int8],
    sets: Iterable[Channels],
    *,
    repeats: int,
    seed: int,
    batch_size: int,
    progress: bool = False,
) -> Exchanged:
    """Test a model ``repeats`` times for each set of channels, with these taken from other crops of the plan.

    The coarse field that the prediction is anchored to (and conserves, where the run does) stays; of the channel
    ``coarse`` only what the model reads of it as a predictor is exchanged. All sets see the same exchanges, so that
    they can be compared. parts (sample, y, x): only pixels of the test part are scored.
    """
    task.eval()
    crops = CropBatches(features, plan, parts)
    classes = (*(name.replace("_", " ") for name in features.cover_names), NO_CLASS)
    rng = np.random.default_rng(seed)
    donors = [cyclic_order(len(plan), rng) for _ in range(repeats)]
    before = Sums.zero(len(classes))
    after = {channels: [Sums.zero(len(classes))] * repeats for channels in sets}
    with tqdm(total=len(plan) * (1 + repeats * len(after)), desc="exchanging predictors", unit="crop",
              disable=None if progress else True) as bar:  # fmt: skip

        def score(predictors: Tensor, batch: Batch, cover: Tensor) -> Sums:
            prediction = task(predictors, batch["coarse"], batch["valid"])
            bar.update(len(predictors))
            return Sums.by_block(prediction, batch["target"], batch["scored"], cover, len(classes))

        for numbers in BatchOrder(len(plan), batch_size, None):
            batch, cover = crops[numbers], _cover(features, plan, numbers, len(classes) - 1)
            before += score(batch["predictors"], batch, cover)
            for repeat, donor in enumerate(donors):
                other = crops[donor[numbers].tolist()]["predictors"]
                for channels, sums in after.items():
                    mixed = batch["predictors"].clone()
                    mixed[:, list(channels)] = other[:, list(channels)]
                    sums[repeat] += score(mixed, batch, cover)
    return Exchanged(classes, before, {channels: tuple(sums) for channels, sums in after.items()})


def _cover(features: FeatureCube, plan: CropPlan, numbers: list[int], unknown: int) -> Tensor:
    """Column of each pixel (B, 1, size, size) int64 of these crops; ``unknown`` where the class is."""
    size = plan.size
    if features.cover is None:
        return torch.full((len(numbers), 1, size, size), unknown)
    cut = [features.cover[s, y : y + size, x : x + size] for s, y, x in plan.table[numbers, :3].tolist()]
    found = torch.from_numpy(np.stack(cut).astype(np.int64))[:, None]
    return torch.where(found < 0, unknown, found)


def _mean_sd(values: NDArray[np.floating[Any]]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")
