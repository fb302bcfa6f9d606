"""Splits are made on the map: every pixel is tested once, and a guard band keeps the parts apart."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sifscale.config import BlocksSplit, ConfigError, PlacesSplit, SamplesSplit, TimeSplit
from sifscale.splits import NOWHERE, TEST, TRAIN, VALIDATION, block_ids, make_split, padded, split_blocks, split_places

SIDE = st.integers(1, 60)
ASSIGNMENT = st.sampled_from(["contiguous", "random"])
DAYS = np.array(["2019-05-25", "2019-06-10", "2019-06-26", "2019-07-12", "2019-07-28"], "datetime64[ns]")


def blocks(
    block: tuple[int, int] = (6, 7),
    folds: int = 4,
    fold: int = 0,
    guard_px: int = 1,
    assignment: str = "contiguous",
) -> BlocksSplit:
    return BlocksSplit.model_validate(
        {
            "name": "blocks",
            "block": block,
            "k": folds,
            "folds": fold,
            "guard_px": guard_px,
            "assignment": assignment,
        }
    )


def hold_out(
    name: str, test_share: float = 0.2, validation_share: float = 0.2, tested: str = "last"
) -> TimeSplit | SamplesSplit:
    values = {"name": name, "test_share": test_share, "validation_share": validation_share}
    if name == "time":
        return TimeSplit.model_validate(values | {"tested": tested})
    return SamplesSplit.model_validate(values)


def near(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Pixels within a Chebyshev distance of a mask (y, x), pixel by pixel."""
    out = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        out[max(y - distance, 0) : y + distance + 1, max(x - distance, 0) : x + distance + 1] = True
    return out


@given(shape=st.tuples(SIDE, SIDE), block=st.tuples(SIDE, SIDE))
def test_blocks_are_rectangles_of_at_least_the_wanted_size(
    shape: tuple[int, int], block: tuple[int, int]
) -> None:
    ids = block_ids(shape, block)
    assert ids.shape == shape
    np.testing.assert_array_equal(np.unique(ids), np.arange(ids.max() + 1))
    for number in range(ids.max() + 1):
        at = np.argwhere(ids == number)
        edges = at.max(axis=0) - at.min(axis=0) + 1
        assert len(at) == edges.prod()
        for edge, wanted, size in zip(edges, block, shape, strict=True):
            assert min(wanted, size) <= edge < max(2 * wanted, size + 1)


@given(
    shape=st.tuples(st.integers(12, 50), st.integers(12, 50)),
    block=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    folds=st.integers(3, 6),
    guard=st.integers(0, 5),
    assignment=ASSIGNMENT,
    seed=st.integers(0, 100),
)
def test_each_pixel_is_tested_in_one_fold_and_parts_keep_their_distance(
    shape: tuple[int, int], block: tuple[int, int], folds: int, guard: int, assignment: str, seed: int
) -> None:
    ids = block_ids(shape, block)
    assume(ids.max() + 1 >= folds)
    tested = np.zeros(shape, dtype=int)
    for fold in range(folds):
        parts = split_blocks(blocks(block, folds, fold, guard, assignment), shape, seed)
        test = parts == TEST
        tested += test
        # Whole blocks are tested, and what is closer than the guard belongs to nobody.
        assert {bool(test[ids == i].all()) for i in np.unique(ids[test])} == {True}
        assert set(np.unique(parts[near(test, guard) & ~test])) <= {
            NOWHERE,
            *([] if guard else [TRAIN, VALIDATION]),
        }
        held_out = near(parts == VALIDATION, guard) & (parts != VALIDATION)
        assert guard == 0 or TRAIN not in parts[held_out]
    np.testing.assert_array_equal(tested, 1)


def test_guard_of_zero_leaves_no_pixel_out() -> None:
    assert not (split_blocks(blocks(guard_px=0), (24, 28), 0) == NOWHERE).any()


def test_folds_share_the_map_equally_and_the_contiguous_ones_are_regions() -> None:
    from scipy import ndimage

    for fold in range(4):
        parts = split_blocks(blocks((6, 7), 4, fold), (24, 28), 0)
        assert (parts == TEST).sum() == 24 * 28 / 4
        assert ndimage.label(parts == TEST)[1] == 1


def test_the_random_assignment_follows_the_seed() -> None:
    first, again, other = (split_blocks(blocks(assignment="random"), (40, 40), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("split", "shape", "message"),
    [
        (blocks((20, 20), folds=3), (30, 30), "split.k: .* blocks in the field, 1 .found 3."),
        (blocks((10, 10), folds=3, guard_px=12), (30, 30), "no pixel .* for train and validation"),
        (blocks((4, 4), folds=3, guard_px=4), (4, 12), "for train"),
        (blocks((10, 10), folds=9, guard_px=10, assignment="random"), (30, 30), "for .*validation"),
    ],
)
def test_what_does_not_fit_is_refused(split: BlocksSplit, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_split(split, shape, ["a"], DAYS[:1], 0)


def test_blocks_hold_for_all_samples_of_one_place_only() -> None:
    parts = make_split(blocks(), (24, 28), ["a"] * 3, DAYS[:3], 0)
    assert parts.shape == (3, 24, 28)
    np.testing.assert_array_equal(parts[0], parts[2])
    with pytest.raises(ConfigError, match="one place, use places or samples .found 2 places."):
        make_split(blocks(), (24, 28), ["a", "b"], DAYS[:2], 0)


def test_time_tests_on_the_last_moments_in_all_places() -> None:
    times = np.concatenate([DAYS, DAYS[::-1]])
    parts = make_split(hold_out("time"), (2, 2), ["a"] * 5 + ["b"] * 5, times, 0)
    by_time = {time: set(parts[times == time].ravel()) for time in DAYS}
    assert list(by_time.values()) == [{TRAIN}, {TRAIN}, {TRAIN}, {VALIDATION}, {TEST}]
    parts = make_split(hold_out("time", validation_share=0, tested="first"), (2, 2), ["a"] * 10, times, 0)
    by_time = {time: set(parts[times == time].ravel()) for time in DAYS}
    assert list(by_time.values()) == [{TEST}, *[{TRAIN}] * 4]


@given(
    places=st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=30),
    seed=st.integers(0, 50),
    validation=st.sampled_from([0.0, 0.2, 0.4]),
)
def test_no_place_is_in_two_parts(places: list[str], seed: int, validation: float) -> None:
    try:
        parts = make_split(
            hold_out("samples", 0.3, validation), (1, 1), places, DAYS[:1].repeat(len(places)), seed
        )
    except ConfigError:
        assert len(set(places)) <= (1 if not validation else 3)
        return
    of_place = {
        place: {int(p) for p, q in zip(parts.ravel(), places, strict=True) if q == place} for place in places
    }
    assert all(len(found) == 1 for found in of_place.values())
    assert set(parts.ravel().tolist()) == {TRAIN, TEST, *([VALIDATION] if validation else [])}


@pytest.mark.parametrize("name", ["time", "samples"])
def test_too_few_groups_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} needs at least 3 .* .found 2."):
        make_split(hold_out(name), (2, 2), ["a", "b"], DAYS[:2], 0)


def test_padding_belongs_to_what_it_continues() -> None:
    parts = np.array([[[TRAIN, TEST], [VALIDATION, NOWHERE]]], dtype=np.int8)
    wide = padded(parts, (3, 4))
    np.testing.assert_array_equal(wide[0], [[1, 3, 3, 3], [2, 0, 0, 0], [2, 0, 0, 0]])
    np.testing.assert_array_equal(padded(parts, (2, 2)), parts)


@given(
    counts=st.lists(st.integers(1, 30), min_size=3, max_size=40), folds=st.integers(3, 6), shuffle=st.randoms()
)
def test_folds_of_places_keep_places_whole_and_test_each_sample_once(
    counts: list[int], folds: int, shuffle: random.Random
) -> None:
    places = [f"place {i}" for i, count in enumerate(counts) for _ in range(count)]
    shuffle.shuffle(places)
    if len(counts) < folds:
        with pytest.raises(ConfigError, match="must not exceed the number of places"):
            split_places(PlacesSplit(name="places", k=folds, folds=0), places)
        return
    parts = np.stack([split_places(PlacesSplit(name="places", k=folds, folds=i), places) for i in range(folds)])
    assert ((parts == TEST).sum(axis=0) == 1).all() and ((parts == VALIDATION).sum(axis=0) == 1).all()
    for place in set(places):
        of_place = parts[:, np.array(places) == place]
        assert (of_place == of_place[:, :1]).all()
    # No fold is larger than an even share and one more place.
    assert (parts == TEST).sum(axis=1).max() <= len(places) / folds + max(counts)
    assert (parts == TEST).any(axis=1).all()


def test_folds_of_places_do_not_depend_on_the_order_of_samples() -> None:
    places = [f"place {i % 9}" for i in range(60)]
    split = PlacesSplit(name="places", k=3, folds=1)
    np.testing.assert_array_equal(split_places(split, places)[::-1], split_places(split, places[::-1]))
