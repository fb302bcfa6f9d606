"""train | validation | test, decided on the map before any crop is cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sifscale.config import BlocksSplit, ConfigError, PlacesSplit, SamplesSplit, TimeSplit

NOWHERE, TRAIN, VALIDATION, TEST = 0, 1, 2, 3
PART_NAMES = {NOWHERE: "guard", TRAIN: "train", VALIDATION: "validation", TEST: "test"}


def block_ids(shape: tuple[int, int], block: tuple[int, int]) -> NDArray[np.int32]:
    """Number of the block of each pixel (y, x), row by row.

    The field is divided into floor(size / block) equal blocks each way (at least one), so no sliver is left
    over and no block is smaller than ``block`` (unless the field is).
    """
    rows, columns = (max(size // edge, 1) for size, edge in zip(shape, block, strict=True))
    row = np.arange(shape[0]) * rows // shape[0]
    column = np.arange(shape[1]) * columns // shape[1]
    return (row[:, None] * columns + column).astype(np.int32)


def block_folds(ids: NDArray[np.int32], folds: int, assignment: str, seed: int) -> NDArray[np.int32]:
    """Fold of each block, shape (blocks,): equal shares along a snake through the map, or at random.

    Every fold has a block; ConfigError where there are fewer blocks than folds.
    """
    count = int(ids.max()) + 1
    if count < folds:
        raise ConfigError(
            [f"split.k: must not exceed the number of blocks in the field, {count} (found {folds})"]
        )
    columns = int(ids[0].max()) + 1
    # Column by column, so that folds become north-south stripes.
    order = np.arange(count).reshape(-1, columns).T.copy()
    order[1::2] = order[1::2, ::-1]
    sequence = order.ravel()
    if assignment == "random":
        sequence = np.random.default_rng(seed).permutation(count)
    fold = np.empty(count, dtype=np.int32)
    fold[sequence] = np.arange(count) * folds // count
    return fold


def split_blocks(split: BlocksSplit, shape: tuple[int, int], seed: int) -> NDArray[np.int8]:
    """Part of each pixel (y, x): fold i is the test, fold i+1 the validation, the rest train.

    A guard band keeps train ``guard_px`` away from validation and test, and validation from test (Chebyshev
    distance); its pixels belong to no part. The test keeps all its pixels, so k folds score each pixel once.
    """
    ids = block_ids(shape, split.block)
    fold = block_folds(ids, split.k, split.assignment, seed)[ids]
    parts = np.full(shape, TRAIN, dtype=np.int8)
    parts[fold == (split.fold + 1) % split.k] = VALIDATION
    parts[fold == split.fold] = TEST
    reach = 2 * split.guard_px + 1
    near_test = ndimage.maximum_filter(parts == TEST, size=reach)
    near_held_out = ndimage.maximum_filter(parts >= VALIDATION, size=reach)
    parts[(parts == TRAIN) & near_held_out] = NOWHERE
    parts[(parts == VALIDATION) & near_test] = NOWHERE
    return parts


def split_samples(
    split: TimeSplit | SamplesSplit, places: Sequence[str], times: NDArray[np.datetime64], seed: int
) -> NDArray[np.int8]:
    """Part of each sample, shape (sample,).

    ``time``: all samples of the last (or the first) moments are the test, of those beside them the validation.
    ``samples``: whole places are drawn, so that no place is in two parts. ConfigError where nothing is left to train
    on.
    """
    if isinstance(split, TimeSplit):
        keys = [str(time) for time in times]
        groups = sorted(set(keys), reverse=split.tested == "last")
    else:
        keys = list(places)
        groups = [str(place) for place in np.random.default_rng(seed).permutation(sorted(set(keys)))]
    test = max(round(split.test_share * len(groups)), 1)
    validation = max(round(split.validation_share * len(groups)), 1) if split.validation_share else 0
    if test + validation >= len(groups):
        what = "moments" if split.name == "time" else "places"
        raise ConfigError(
            [
                f"split.name: {split.name} needs at least {test + validation + 1} {what} for {test} test "
                f"and {validation} validation; take another split or split.validation_share=0 "
                f"(found {len(groups)})"
            ]
        )
    part = dict.fromkeys(groups, TRAIN)
    part.update(dict.fromkeys(groups[:test], TEST))
    part.update(dict.fromkeys(groups[test : test + validation], VALIDATION))
    return np.array([part[key] for key in keys], dtype=np.int8)


def split_places(split: PlacesSplit, places: Sequence[str]) -> NDArray[np.int8]:
    """Part of each sample, shape (sample,): the groups of places in folds with about as many samples each.

    Which fold a place is in depends on the places alone, so that runs of any seed can be paired. ConfigError for
    fewer places than folds.
    """
    names, member, samples = np.unique(np.array(places, str), return_inverse=True, return_counts=True)
    if len(names) < split.k:
        raise ConfigError([f"split.k: must not exceed the number of places, {len(names)} (found {split.k})"])
    fold, load = np.empty(len(names), np.int64), np.zeros(split.k, np.int64)
    # Large groups first, equal ones in a random but fixed order: neighbours in name are often neighbours on the map.
    shuffled = np.random.default_rng(0).permutation(len(names))
    for group in shuffled[np.argsort(-samples[shuffled], kind="stable")]:
        fold[group] = load.argmin()
        load[fold[group]] += samples[group]
    parts = np.full(len(places), TRAIN, np.int8)
    parts[(fold == (split.fold + 1) % split.k)[member]] = VALIDATION
    parts[(fold == split.fold)[member]] = TEST
    return parts


def make_split(
    split: BlocksSplit | PlacesSplit | TimeSplit | SamplesSplit,
    shape: tuple[int, int],
    places: Sequence[str],
    times: NDArray[np.datetime64],
    seed: int,
) -> NDArray[np.int8]:
    """Part of each pixel (sample, y, x), values as in ``PART_NAMES``; blocks are the same in all samples.

    ``shape`` is (y, x). Raises ConfigError where a part would be empty.
    """
    if isinstance(split, BlocksSplit):
        if len(set(places)) > 1:
            found = f"(found {len(set(places))} places)"
            raise ConfigError([f"split.name: blocks needs a window of one place, use places or samples {found}"])
        parts = np.broadcast_to(split_blocks(split, shape, seed), (len(places), *shape))
    else:
        if isinstance(split, PlacesSplit):
            by_sample = split_places(split, places)
        else:
            by_sample = split_samples(split, places, times, seed)
        parts = np.broadcast_to(by_sample[:, None, None], (len(places), *shape))
    no_validation = isinstance(split, TimeSplit | SamplesSplit) and not split.validation_share
    wanted = [TRAIN] if no_validation else [TRAIN, VALIDATION]
    empty = [PART_NAMES[part] for part in wanted if not (parts == part).any()]
    if empty:
        remedy = "use larger blocks, fewer folds or a smaller guard"
        raise ConfigError(
            [
                f"split: leaves no pixel of a field of {shape[0]} x {shape[1]} px for {' and '.join(empty)}; "
                f"{remedy} (found {split!r})"
            ]
        )
    return parts


def padded(parts: NDArray[np.int8], shape: tuple[int, int]) -> NDArray[np.int8]:
    """Parts on a feature cube's grid: the padded lower and right edge belongs to what it continues."""
    lower, right = (wanted - have for wanted, have in zip(shape, parts.shape[-2:], strict=True))
    return np.pad(parts, ((0, 0), (0, lower), (0, right)), mode="edge")
