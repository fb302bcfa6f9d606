"""Crop plans: where crops are cut, as a table without pixels; saved, hashed and logged with a run."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sifscale.config import ConfigError, LegacySplit, RandomCrop, SlidingCrop
from sifscale.splits import TEST, TRAIN, VALIDATION

Mask = NDArray[np.bool_]
COLUMNS = ("sample", "y0", "x0", "core_y0", "core_x0", "core_y1", "core_x1")


@dataclass(frozen=True)
class CropPlan:
    """Crops of ``size`` x ``size`` px: an int32 table (n, 7) with the columns of ``COLUMNS``.

    y0, x0: upper-left pixel in the field. core_*: the part of the crop that counts, in pixels of the field,
    half open; the rest is halo. valid_fraction (n,): share of the crop's pixels with an observed target.
    """

    table: NDArray[np.int32]
    valid_fraction: NDArray[np.float32]
    size: int

    def __len__(self) -> int:
        return len(self.table)

    @property
    def hash(self) -> str:
        """Hash of the table, 16 hexadecimal digits."""
        table = np.ascontiguousarray(self.table).tobytes()
        return hashlib.sha256(table + str(self.size).encode()).hexdigest()[:16]

    def take(self, index: NDArray[np.intp]) -> CropPlan:
        """The crops with these numbers."""
        return CropPlan(self.table[index], self.valid_fraction[index], self.size)

    def covered(self, shape: tuple[int, int, int]) -> Mask:
        """Pixels (sample, y, x) that lie in any crop, halo included."""
        inside = np.zeros(shape, dtype=bool)
        for sample in np.unique(self.table[:, 0]):
            edges = np.zeros((shape[1] + 1, shape[2] + 1), dtype=np.int32)
            y0, x0 = self.table[self.table[:, 0] == sample, 1:3].T
            y1, x1 = y0 + self.size, x0 + self.size
            for y, x, sign in ((y0, x0, 1), (y1, x0, -1), (y0, x1, -1), (y1, x1, 1)):
                np.add.at(edges, (y, x), sign)
            inside[sample] = edges.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
        return inside

    def save(self, path: Path) -> None:
        """Write the plan as CSV, one crop a line."""
        frame = pd.DataFrame(self.table, columns=list(COLUMNS))
        frame["size"], frame["valid_fraction"] = self.size, self.valid_fraction
        frame.to_csv(path, index=False)


@dataclass(frozen=True)
class Plans:
    """Crop plans of a run; ``parts`` (sample, y, x) says which pixels a test crop may be scored on."""

    train: CropPlan
    validation: CropPlan | None
    test: CropPlan
    parts: NDArray[np.int8] | None  # None: crops were split, not pixels (legacy)


def window_sums(mask: Mask, size: int, step: int) -> NDArray[np.int32]:
    """How many pixels of a mask (sample, Y, X) are True in each size x size window, one every ``step`` px.

    Shape (sample, rows, columns): a window stands at its upper-left pixel, the first one at that of the field.
    """
    samples, height, width = mask.shape
    places = samples, len(range(0, height - size + 1, step)), len(range(0, width - size + 1, step))
    sums, total = np.empty(places, np.int32), np.zeros((height + 1, width + 1), np.int32)
    for layer, found in zip(mask, sums, strict=True):
        layer.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, out=total[1:, 1:])
        upper, lower = total[:-size:step], total[size::step]
        found[...] = lower[:, size::step] - upper[:, size::step] - lower[:, :-size:step] + upper[:, :-size:step]
    return sums


def training_crops(
    crop: RandomCrop | SlidingCrop, inside: Mask, valid: Mask, block_px: int, seed: int, part: str
) -> CropPlan:
    """Crops wholly in ``inside`` (sample, y, x), with enough valid pixels, aligned with coarse blocks.

    random: ``number`` places a sample, drawn without repetition (all there are, if fewer). sliding: every
    ``stride`` px. ConfigError where none fits.
    """
    _check_size(crop.size, inside.shape)
    step = crop.stride if isinstance(crop, SlidingCrop) else block_px
    fits = window_sums(inside, crop.size, step) == crop.size**2
    fraction = window_sums(valid, crop.size, step) / crop.size**2
    found = np.argwhere(fits & (fraction >= crop.min_valid))
    if isinstance(crop, RandomCrop):
        rng = np.random.default_rng(seed)
        drawn = []
        for sample in range(inside.shape[0]):
            here = np.flatnonzero(found[:, 0] == sample)
            drawn.append(rng.permutation(here)[: crop.number])
        found = found[np.sort(np.concatenate(drawn))]
    if not len(found):
        raise ConfigError(
            [
                f"crop.size: no crop fits wholly into the {part} part of the {inside.shape[1]} x "
                f"{inside.shape[2]} px field with crop.min_valid = {crop.min_valid}; use smaller crops, "
                f"larger blocks or a smaller guard (found {crop.size})"
            ]
        )
    return _plan(found * (1, step, step), fraction[tuple(found.T)], crop.size)


def validation_crops(crop: RandomCrop | SlidingCrop, inside: Mask, valid: Mask, block_px: int) -> CropPlan:
    """Crops wholly in the validation part, every quarter of their size (every coarse block if none fits)."""
    quarter = max(crop.size // 4 // block_px * block_px, block_px)
    sliding = SlidingCrop(
        name="sliding", size=crop.size, stride=quarter, min_valid=crop.min_valid, augment=False
    )
    try:
        return training_crops(sliding, inside, valid, block_px, 0, "validation")
    except ConfigError:
        everywhere = sliding.model_copy(update={"stride": block_px})
        return training_crops(everywhere, inside, valid, block_px, 0, "validation")


def covering_crops(part: Mask, valid: Mask, size: int, block_px: int) -> CropPlan:
    """Crops whose cores cover each pixel of ``part`` exactly once, with a halo of about a quarter of size.

    Crops stay inside the field, so the halo is thinner at its border; cores and crops are aligned with coarse
    blocks, of which the field and the size are multiples.
    """
    _check_size(size, part.shape)
    # A quarter of the crop, and the two coarse cells that bicubic interpolation reaches, as far as the size allows.
    halo = min(max(size // 4, 2 * block_px), (size - block_px) // 2) // block_px * block_px
    core = size - 2 * halo
    rows, columns = part.shape[1:]
    found = []
    for y in range(0, rows, core):
        for x in range(0, columns, core):
            y0, x0 = min(max(y - halo, 0), rows - size), min(max(x - halo, 0), columns - size)
            y1, x1 = min(y + core, rows), min(x + core, columns)
            samples = np.flatnonzero(part[:, y:y1, x:x1].any(axis=(1, 2)))
            found += [(int(sample), y0, x0, y, x, y1, x1) for sample in samples]
    table = np.array(sorted(found), dtype=np.int32).reshape(-1, len(COLUMNS))
    places = table[:, :3] // (1, block_px, block_px)
    fraction = window_sums(valid, size, block_px)[tuple(places.T)] / size**2
    return CropPlan(table, fraction.astype(np.float32), size)


def legacy_crops(
    crop: RandomCrop | SlidingCrop, split: LegacySplit, valid: Mask, block_px: int, seed: int
) -> tuple[CropPlan, CropPlan]:
    """Train and test crops as the notebooks made them: anywhere, repetitions allowed, split at random.

    Aligned with coarse blocks, which the notebooks did not have (``block_px`` 1). ConfigError where either
    part would be empty.
    """
    _check_size(crop.size, valid.shape)
    rng = np.random.default_rng(seed)
    step = crop.stride if isinstance(crop, SlidingCrop) else block_px
    fraction = window_sums(valid, crop.size, step) / crop.size**2
    found = np.argwhere(np.ones(fraction.shape, dtype=bool))
    if isinstance(crop, RandomCrop):
        places = len(found) // valid.shape[0]  # as many in each sample
        drawn = rng.integers(0, places, size=(valid.shape[0], crop.number))
        found = found[(drawn + np.arange(valid.shape[0])[:, None] * places).ravel()]
    plan = _plan(found * (1, step, step), fraction[tuple(found.T)], crop.size)
    # Rounded first: 0.1 * 30 is 3.0000000000000004, of which the ceiling is 4.
    test = math.ceil(round(split.test_share * len(plan), 6))
    if not 0 < test < len(plan):
        raise ConfigError(
            [
                f"split.test_share: must leave crops for train and test, of {len(plan)} in all; cut more "
                f"crops (found {split.test_share})"
            ]
        )
    order = rng.permutation(len(plan))
    return plan.take(np.sort(order[test:])), plan.take(np.sort(order[:test]))


def make_plans(
    crop: RandomCrop | SlidingCrop,
    split: LegacySplit | NDArray[np.int8],
    valid: Mask,
    block_px: int,
    seed: int,
) -> Plans:
    """All crop plans of a run: from the parts of the map (sample, y, x), or, legacy, by splitting crops.

    ``valid`` (sample, y, x): where the target was observed.
    """
    if isinstance(split, LegacySplit):
        train, test = legacy_crops(crop, split, valid, block_px, seed)
        return Plans(train, None, test, None)
    parts = split
    has_validation = bool((parts == VALIDATION).any())
    return Plans(
        train=training_crops(crop, parts == TRAIN, valid, block_px, seed, "train"),
        validation=validation_crops(crop, parts == VALIDATION, valid, block_px) if has_validation else None,
        test=covering_crops(parts == TEST, valid, crop.size, block_px),
        parts=parts,
    )


def _plan(found: NDArray[np.intp], fraction: NDArray[np.float64], size: int) -> CropPlan:
    corner = found.astype(np.int32)
    table = np.column_stack([corner, corner[:, 1:], corner[:, 1:] + size]).astype(np.int32)
    return CropPlan(table, fraction.astype(np.float32), size)


def _check_size(size: int, shape: tuple[int, ...]) -> None:
    if size > min(shape[1:]):
        raise ConfigError(
            [f"crop.size: must not exceed the sample of {shape[1]} x {shape[2]} px (found {size})"]
        )
