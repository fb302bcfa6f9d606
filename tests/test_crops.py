"""No training crop ever touches the test part or its guard band; test cores cover each test pixel once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sifscale.config import BlocksSplit, ConfigError, LegacySplit, RandomCrop, SlidingCrop
from sifscale.crops import (
    COLUMNS,
    CropPlan,
    Plans,
    covering_crops,
    legacy_crops,
    make_plans,
    training_crops,
    window_sums,
)
from sifscale.splits import TEST, TRAIN, VALIDATION, block_folds, block_ids, make_split, padded

DAYS = np.array(["2019-05-25", "2019-06-10"], "datetime64[ns]")
Crop = RandomCrop | SlidingCrop


def random_crop(size: int, number: int = 20, min_valid: float = 0.0) -> RandomCrop:
    return RandomCrop(name="random", size=size, number=number, min_valid=min_valid, augment=False)


def sliding_crop(size: int, stride: int, min_valid: float = 0.0) -> SlidingCrop:
    return SlidingCrop(name="sliding", size=size, stride=stride, min_valid=min_valid, augment=False)


def pixels(plan: CropPlan, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """How many crops hold each pixel, crop by crop."""
    count = np.zeros(shape, dtype=int)
    for sample, y, x in plan.table[:, :3]:
        count[sample, y : y + plan.size, x : x + plan.size] += 1
    return count


def core_pixels(plan: CropPlan, shape: tuple[int, ...]) -> NDArray[np.int64]:
    count = np.zeros(shape, dtype=int)
    for sample, _, _, y0, x0, y1, x1 in plan.table:
        count[sample, y0:y1, x0:x1] += 1
    return count


def as_split(values: dict[str, Any]) -> BlocksSplit:
    return BlocksSplit.model_validate({"name": "blocks", **values})


@st.composite
def studies(draw: st.DrawFn) -> dict[str, Any]:
    """A field, a split and crops, mostly such that crops fit."""
    factor = draw(st.integers(1, 4))
    size = factor * draw(st.integers(1, 3))
    block = tuple(draw(st.integers(size, 3 * size + 5)) for _ in range(2))
    folds = draw(st.integers(3, 5))
    shape = tuple(edge * draw(st.integers(2, 4)) + draw(st.integers(0, 5)) for edge in block)
    guard = draw(st.integers(0, size))
    assignment = draw(st.sampled_from(["contiguous", "random"]))
    sliding = draw(st.booleans())
    stride = factor * draw(st.integers(1, 3))
    return {
        "factor": factor,
        "size": size,
        "shape": shape,
        "guard": guard,
        "seed": draw(st.integers(0, 99)),
        "crop": sliding_crop(size, stride) if sliding else random_crop(size, draw(st.integers(1, 40))),
        "split": as_split(
            {
                "block": block,
                "k": folds,
                "folds": draw(st.integers(0, folds - 1)),
                "guard_px": guard,
                "assignment": assignment,
            }
        ),
    }


@settings(max_examples=150)
@given(study=studies())
def test_no_pixel_of_a_test_block_or_its_guard_is_ever_trained_on(study: dict[str, Any]) -> None:
    shape, split, seed, size = study["shape"], study["split"], study["seed"], study["size"]
    wide = tuple(-(-edge // study["factor"]) * study["factor"] for edge in shape)
    valid = np.random.default_rng(seed).random((2, *wide)) < 0.8
    try:
        parts = padded(make_split(split, shape, ["a", "a"], DAYS, seed), (wide[0], wide[1]))
        plans = make_plans(study["crop"], parts, valid, study["factor"], seed)
    except ConfigError:
        event("nothing fits")
        return
    event("fits")
    # The test blocks are found anew from block numbers; distances are taken from each crop's rectangle.
    ids = block_ids(shape, split.block)
    tested = block_folds(ids, split.k, split.assignment, seed)[ids] == split.folds
    at_y, at_x = np.nonzero(tested)
    assert plans.validation is not None
    for plan in (plans.train, plans.validation):
        for y0, x0 in plan.table[:, 1:3]:
            far_y = np.maximum(y0 - at_y, at_y - (y0 + size - 1))
            far_x = np.maximum(x0 - at_x, at_x - (x0 + size - 1))
            assert np.maximum(far_y, far_x).min() > split.guard_px
    check_plans(plans, tested, wide, study)


def check_plans(
    plans: Plans, tested: NDArray[np.bool_], wide: tuple[int, ...], study: dict[str, Any]
) -> None:
    """Inside the field, on the coarse grid, train apart from validation, and each test pixel in one core."""
    factor, size, shape = study["factor"], study["size"], (2, *wide)
    assert plans.validation is not None
    for plan in (plans.train, plans.validation, plans.test):
        assert not (plan.table[:, 1:] % factor).any()
        assert (plan.table[:, 1:3] >= 0).all() and (plan.table[:, 1:3] + size <= wide).all()
        core = plan.table[:, 3:].reshape(-1, 2, 2)
        assert (core[:, 0] >= plan.table[:, 1:3]).all() and (core[:, 1] <= plan.table[:, 1:3] + size).all()
    both = pixels(plans.train, shape) * pixels(plans.validation, shape)
    assert not both.any()
    for sample in core_pixels(plans.test, shape):
        assert sample.max() == 1
        assert (sample[: tested.shape[0], : tested.shape[1]][tested] == 1).all()


def test_most_drawn_studies_fit() -> None:
    """The property above would prove nothing if hardly a crop fitted."""
    fits = []

    @settings(max_examples=60, derandomize=True, database=None)
    @given(study=studies())
    def count(study: dict[str, Any]) -> None:
        wide = tuple(-(-edge // study["factor"]) * study["factor"] for edge in study["shape"])
        try:
            parts = make_split(study["split"], study["shape"], ["a"], DAYS[:1], study["seed"])
            make_plans(
                study["crop"],
                padded(parts, (wide[0], wide[1])),
                np.ones((1, *wide), dtype=bool),
                study["factor"],
                study["seed"],
            )
            fits.append(True)
        except ConfigError:
            fits.append(False)

    count()
    assert np.mean(fits) > 0.5


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    size=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_window_sums_and_covered_against_brute_force(
    shape: tuple[int, int, int], size: int, seed: int
) -> None:
    size = min(size, *shape[1:])
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.6
    expected = np.array(
        [
            [
                [layer[y : y + size, x : x + size].sum() for x in range(shape[2] - size + 1)]
                for y in range(shape[1] - size + 1)
            ]
            for layer in mask
        ]
    )
    for step in (1, 2, 5):
        np.testing.assert_array_equal(window_sums(mask, size, step), expected[:, ::step, ::step])
    corners = np.argwhere(rng.random(expected.shape) < 0.2)
    table = np.column_stack([corners, corners[:, 1:], corners[:, 1:] + size]).astype(np.int32)
    plan = CropPlan(table, np.zeros(len(table), np.float32), size)
    np.testing.assert_array_equal(plan.covered(shape), pixels(plan, shape) > 0)


@given(
    factor=st.integers(1, 4),
    cells=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    edge=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_cores_cover_any_part_exactly_once(factor: int, cells: tuple[int, int], edge: int, seed: int) -> None:
    size = factor * min(edge, *cells)
    shape = (2, cells[0] * factor, cells[1] * factor)
    rng = np.random.default_rng(seed)
    part = np.zeros(shape, dtype=bool)
    part[0, rng.integers(shape[1]) :, : rng.integers(1, shape[2] + 1)] = True
    plan = covering_crops(part, np.ones(shape, dtype=bool), size, factor)
    count = core_pixels(plan, shape)
    assert count.max() == 1 and (count[part] == 1).all()
    assert not (plan.table[:, 1:] % factor).any()
    assert (plan.table[:, 1:3] >= 0).all() and (plan.table[:, 1:3] + size <= shape[1:]).all()
    np.testing.assert_array_equal(plan.valid_fraction, 1)
    assert (plan.table[:, 0] == 0).all()  # nothing is tested in the other sample


def test_inner_cores_have_a_halo_of_a_quarter() -> None:
    part = np.ones((1, 48, 48), dtype=bool)
    table = covering_crops(part, part, 16, 2).table
    inner = table[(table[:, 3] > 0) & (table[:, 3] < 40)]
    assert set(inner[:, 3] - inner[:, 1]) == {4} and set(inner[:, 5] - inner[:, 3]) == {8}


@pytest.mark.parametrize("crop", [random_crop(6, 9, 0.5), sliding_crop(6, 4, 0.5)])
def test_training_crops_have_enough_valid_pixels_and_do_not_repeat(crop: Crop) -> None:
    rng = np.random.default_rng(0)
    valid = rng.random((3, 30, 30)) < np.linspace(0, 1, 30)
    plan = training_crops(crop, np.ones_like(valid), valid, 2, 0, "train")
    corners = [tuple(row) for row in plan.table[:, :3].tolist()]
    assert len(set(corners)) == len(corners)
    for (sample, y, x), fraction in zip(corners, plan.valid_fraction, strict=True):
        assert fraction == pytest.approx(valid[sample, y : y + 6, x : x + 6].mean())
        assert fraction >= 0.5
    if isinstance(crop, RandomCrop):
        assert np.bincount(plan.table[:, 0]).tolist() == [9, 9, 9]
    else:
        assert not (plan.table[:, 1:3] % 4).any()


def test_random_takes_all_places_where_there_are_fewer() -> None:
    inside = np.ones((1, 8, 10), dtype=bool)
    plan = training_crops(random_crop(4, 1000), inside, inside, 2, 0, "train")
    assert len(plan) == 3 * 4


def test_the_plan_depends_on_the_seed_alone() -> None:
    inside = np.ones((2, 40, 40), dtype=bool)
    first, again, other = (
        training_crops(random_crop(8), inside, inside, 1, seed, "train") for seed in (1, 1, 2)
    )
    assert first.hash == again.hash != other.hash
    assert first.hash != CropPlan(first.table, first.valid_fraction, 4).hash
    assert len(first.hash) == 16


def test_a_saved_plan_reads_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    valid = rng.random((2, 20, 20)) < 0.7
    plan = covering_crops(np.ones_like(valid), valid, 8, 2)
    plan.save(tmp_path / "crops.csv")
    frame = pd.read_csv(tmp_path / "crops.csv")
    fraction = frame["valid_fraction"].to_numpy(np.float32)
    back = CropPlan(frame[list(COLUMNS)].to_numpy(np.int32), fraction, int(frame["size"][0]))
    assert back.hash == plan.hash
    np.testing.assert_array_equal(back.valid_fraction, plan.valid_fraction)


@pytest.mark.parametrize("crop", [random_crop(12), sliding_crop(12, 4)])
def test_crops_that_do_not_fit_are_refused(crop: Crop) -> None:
    inside = np.zeros((1, 30, 30), dtype=bool)
    inside[:, :, ::10] = True
    with pytest.raises(ConfigError, match="no crop fits wholly into the train part of the 30 x 30 px field"):
        training_crops(crop, inside, inside, 1, 0, "train")
    with pytest.raises(ConfigError, match="must not exceed the sample of 8 x 30 px .found 12."):
        training_crops(crop, inside[:, :8], inside[:, :8], 1, 0, "train")


def test_validation_crops_are_dense_where_a_quarter_step_misses() -> None:
    parts = np.full((1, 40, 40), TRAIN, dtype=np.int8)
    parts[:, :, 21:29] = VALIDATION  # holds crops at x0 = 21 only, which is no multiple of 2
    parts[:, :, 33:] = TEST
    plans = make_plans(random_crop(8), parts, np.ones_like(parts, dtype=bool), 1, 0)
    assert plans.validation is not None and set(plans.validation.table[:, 2]) == {21}


def test_without_validation_there_is_no_plan_for_it() -> None:
    parts = np.full((2, 16, 16), TRAIN, dtype=np.int8)
    parts[1] = TEST
    plans = make_plans(sliding_crop(8, 8), parts, np.ones_like(parts, dtype=bool), 2, 0)
    assert plans.validation is None and len(plans.train) == 4


@pytest.mark.parametrize("crop", [random_crop(8, 30), sliding_crop(8, 4)])
@pytest.mark.parametrize("block_px", [1, 4])
def test_legacy_crops_are_split_at_random_wherever_they_are(crop: Crop, block_px: int) -> None:
    valid = np.ones((2, 24, 32), dtype=bool)
    split = LegacySplit(name="legacy", test_share=0.2)
    train, test = legacy_crops(crop, split, valid, block_px, 0)
    total = 60 if isinstance(crop, RandomCrop) else 2 * 5 * 7
    assert (len(train), len(test)) == (total * 4 // 5, total // 5)
    assert not (train.table[:, 1:3] % block_px).any()
    overlap = (train.covered(valid.shape) & test.covered(valid.shape)).sum() / test.covered(valid.shape).sum()
    assert overlap > 0.6
    again = make_plans(crop, split, valid, block_px, 0)
    assert (again.train.hash, again.test.hash) == (train.hash, test.hash)
    assert again.validation is None and again.parts is None


@pytest.mark.parametrize("block_px", [1, 4])
def test_legacy_crops_reach_every_corner_of_each_sample(block_px: int) -> None:
    valid = np.ones((2, 16, 20), dtype=bool)
    train, test = legacy_crops(
        random_crop(8, 3000), LegacySplit(name="legacy", test_share=0.5), valid, block_px, 0
    )
    found = {tuple(row) for row in np.concatenate([train.table, test.table])[:, :3].tolist()}
    assert found == {
        (s, y, x) for s in range(2) for y in range(0, 9, block_px) for x in range(0, 13, block_px)
    }


def test_legacy_shares_do_not_suffer_from_rounding() -> None:
    valid = np.ones((1, 9, 9), dtype=bool)
    for share, tested in ((0.9, 9), (0.1, 1), (0.3, 3), (0.25, 3)):
        split = LegacySplit(name="legacy", test_share=share)
        train, test = legacy_crops(random_crop(3, 10), split, valid, 1, 0)
        assert (len(train), len(test)) == (10 - tested, tested)
    with pytest.raises(ConfigError, match="split.test_share: must leave crops for train and test, of 1"):
        legacy_crops(random_crop(3, 1), LegacySplit(name="legacy", test_share=0.5), valid, 1, 0)
