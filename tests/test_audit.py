"""Each way to leak is found; an honest run has no finding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from sifscale import grid
from sifscale.audit import Finding, audit, guard_distance_px, scored_pixels
from sifscale.config import BlocksSplit, LegacyFeatures, LegacySplit, Normalisation, RandomCrop
from sifscale.crops import CropPlan, Plans, make_plans
from sifscale.datamodule import training_pixels
from sifscale.features import Channel, FeatureCube
from sifscale.legacy import extend
from sifscale.splits import make_split, padded

SHAPE = (2, 60, 72)
RANDOM = RandomCrop(name="random", size=12, number=40, min_valid=0.3, augment=False)
BLOCKS = BlocksSplit.model_validate(
    {"name": "blocks", "block": (20, 24), "k": 4, "folds": 1, "guard_px": 3, "assignment": "contiguous"}
)


def make_features(coarse: str = "block_mean", noise: float = 0.25, seed: int = 0) -> FeatureCube:
    """Smooth truth with the sounding noise of the Minnesota tables, and two bands that follow it."""
    rng = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(rng.normal(size=SHAPE), (0, 4, 4))
    truth = 1 + 0.4 * truth / truth.std()
    target = (truth + noise * rng.normal(size=SHAPE)).astype(np.float32)
    target[rng.random(SHAPE) < 0.05] = np.nan
    if coarse == "block_mean":
        field = grid.block_repeat(grid.block_mean(target, 3), 3, *SHAPE[1:])
    else:
        field = grid.moving_mean(target, int(coarse))
    field = grid.fill_nearest(field).astype(np.float32)
    evi = (0.3 * truth + 0.05 * rng.normal(size=SHAPE)).astype(np.float32)
    codes = rng.integers(0, 9, SHAPE).astype(np.float32)
    channels = (Channel("coarse", True), Channel("evi", True), Channel("lbp", False))
    days = np.array(["2019-05-25", "2019-06-10"], "datetime64[ns]")
    block_px = 3 if coarse == "block_mean" else 1
    predictors = np.stack([field, evi, codes], axis=1)
    return FeatureCube(
        channels, predictors, field, target, np.isfinite(target), np.ones_like(target), block_px, SHAPE[1:],
        ("a", "a"), days,
    )  # fmt: skip


def with_channel(features: FeatureCube, name: str, values: NDArray[Any]) -> FeatureCube:
    predictors = np.concatenate([features.predictors, values[:, None].astype(np.float32)], axis=1)
    return replace(features, channels=(*features.channels, Channel(name, True)), predictors=predictors)


def honest_plans(features: FeatureCube) -> Plans:
    parts = make_split(BLOCKS, features.shape, features.places, features.times, 0)
    return make_plans(RANDOM, padded(parts, SHAPE[1:]), features.valid, features.block_px, 0)


def findings(features: FeatureCube, plans: Plans | None = None, fit: str = "train") -> list[Finding]:
    plans = plans or honest_plans(features)
    normalisation = Normalisation.model_validate({"method": "zscore", "fit": fit})
    return audit(features, plans, training_pixels(plans, features, normalisation))


def codes(found: list[Finding]) -> list[str]:
    return [finding.code for finding in found]


@pytest.mark.parametrize("seed", range(3))
def test_an_honest_run_has_no_finding(seed: int) -> None:
    features = make_features(seed=seed)
    assert findings(features) == []
    plans = honest_plans(features)
    assert guard_distance_px(plans, SHAPE) > BLOCKS.guard_px


def test_a_difference_channel_is_found() -> None:
    features = make_features()
    leaky = with_channel(features, "difference", features.target - features.coarse)
    (finding,) = findings(leaky)
    assert finding.code == "target_derived_predictor"
    assert str(finding).startswith("target_derived_predictor: a linear fit of 'difference' and coarse SIF")
    assert "R2 1.000000 over the whole field" in finding.text


@pytest.mark.parametrize("scaling", ["sample", "place to place", "target itself"])
def test_a_scaled_target_is_found(scaling: str) -> None:
    features = make_features()
    difference = features.target - features.coarse
    if scaling == "sample":
        difference[0] = (difference[0] - 5) * 40
    elif scaling == "place to place":
        difference = difference * (1 + np.arange(72) // 16)[None, None]
    else:
        difference = 3 * features.target - 7
    (finding,) = findings(with_channel(features, "derived", difference))
    assert finding.code == "target_derived_predictor" and "derived" in finding.text
    assert scaling == "target itself" or "in 16 px windows" in finding.text


def test_a_band_that_explains_most_of_the_target_is_no_finding() -> None:
    features = make_features()
    rng = np.random.default_rng(1)
    noisy = features.target + 0.1 * rng.normal(size=SHAPE)  # R2 about 0.95
    assert findings(with_channel(features, "good band", noisy)) == []


def test_a_channel_without_values_is_no_finding() -> None:
    features = make_features()
    assert findings(with_channel(features, "empty", np.full(SHAPE, np.nan))) == []


def test_random_crops_split_at_random_are_found() -> None:
    features = make_features()
    plans = make_plans(RANDOM, LegacySplit(name="legacy", test_share=0.2), features.valid, 3, 0)
    found = findings(features, plans)
    assert codes(found) == ["overlap", "scaler"]  # the scaler saw the training crops
    seen = plans.train.covered(SHAPE) & plans.test.covered(SHAPE)
    assert f"{seen.sum() / plans.test.covered(SHAPE).sum():.1%} of the test pixels" in found[0].text
    assert guard_distance_px(plans, SHAPE) == 0


def test_a_validation_crop_over_the_test_part_is_found() -> None:
    features = make_features()
    plans = honest_plans(features)
    at = np.argwhere(scored_pixels(plans, SHAPE))[0]
    corner = np.minimum(at[1:], (48, 60))
    table = np.array([[at[0], *corner, *corner, *(corner + 12)]], dtype=np.int32)
    leaky = replace(plans, validation=CropPlan(table, np.ones(1, np.float32), 12))
    (finding,) = findings(features, leaky)
    assert finding.code == "overlap" and "validation crop" in finding.text


def test_a_scaler_that_saw_everything_is_found() -> None:
    (finding,) = findings(make_features(), fit="everything")
    assert finding.code == "scaler" and "100.0% of the test pixels" in finding.text


@pytest.mark.parametrize("factor", [3, 5, 7])
def test_a_moving_mean_is_found(factor: int) -> None:
    (finding,) = findings(make_features(coarse=str(factor)))
    assert finding.code == "moving_mean_coarse" and f"{factor}x{factor} moving mean" in finding.text


def test_a_smooth_coarse_field_of_another_origin_is_no_finding() -> None:
    features = make_features(coarse="3")
    rng = np.random.default_rng(0)
    other = features.coarse + rng.normal(0, 0.05, SHAPE).astype(np.float32)
    features.predictors[:, 0] = other
    assert findings(replace(features, coarse=other)) == []


def four_samples(places: tuple[str, ...], days: list[str]) -> tuple[FeatureCube, list[bool]]:
    one = make_features()
    double: dict[str, Any] = {
        name: np.concatenate([getattr(one, name)] * 2) for name in ("predictors", "coarse", "target", "valid")
    }
    features = replace(one, **double, places=places, times=np.array(days, "datetime64[ns]"))
    return features, [False, True, False, True]


@pytest.mark.parametrize(
    ("places", "days", "found"),
    [
        (("a", "b", "c", "d"), ["2019-05-25"] * 4, []),
        (("a", "a", "b", "b"), ["2019-05-25"] * 4, ["shared_place"]),
        (("a", "b", "c", "a"), ["2019-06-10", "2019-05-25", "2019-05-25", "2019-05-25"], ["shared_place"]),
        # A split by time: each place is in both parts, but the test is all later.
        (("a", "a", "b", "b"), ["2019-05-25", "2019-06-10"] * 2, []),
    ],
)
def test_one_place_in_two_parts_is_found(places: tuple[str, ...], days: list[str], found: list[str]) -> None:
    features, tested = four_samples(places, days)
    shape = features.coarse.shape
    parts = np.broadcast_to(np.where(tested, 3, 1).astype(np.int8)[:, None, None], shape)
    plans = make_plans(RANDOM, parts, features.valid, features.block_px, 0)
    got = findings(features, plans)
    assert codes(got) == found
    assert not found or "1 places are in train and test, e.g. a" in got[0].text or "2 places" in got[0].text


def test_a_tested_sample_that_is_trained_on_under_another_name_is_found() -> None:
    features, _ = four_samples(("a", "b", "c", "d"), ["2019-05-25"] * 4)
    features.target[1] = np.nan  # samples without a target are alike, and no twins
    features.target[3] = np.nan
    features = replace(features, valid=np.isfinite(features.target))
    parts = np.broadcast_to(np.array([1, 1, 3, 3], np.int8)[:, None, None], features.coarse.shape)
    (finding,) = findings(features, make_plans(RANDOM, parts, features.valid, features.block_px, 0))
    assert str(finding) == "shared_place: 1 tested samples are trained on under another name, e.g. sample 2 as 0"


def test_the_notebooks_features_are_found_though_gaps_are_zeros() -> None:
    features = make_features(coarse="3")
    features.target[:, 20:35, 10:30] = np.nan  # a hole
    target = features.target
    coarse = grid.fill_nearest(grid.moving_mean(target, 3)).astype(np.float32)
    names = {
        "predictors": features.predictors,
        "coarse": coarse,
        "target": target,
        "valid": np.isfinite(target),
    }
    lazy = {name: da.from_array(array, chunks=(1, *array.shape[1:])) for name, array in names.items()}
    legacy = LegacyFeatures(difference=True, lbp=True, lbp_source="coarse", minmax_everything=True, zero_gaps=True)
    extended = extend(replace(features, **lazy), legacy)
    opened = replace(extended, **{name: getattr(extended, name).compute() for name in names})
    plans = make_plans(RANDOM, LegacySplit(name="legacy", test_share=0.2), opened.valid, 1, 0)
    found = audit(opened, plans, np.ones(SHAPE, dtype=bool))
    assert codes(found) == ["overlap", "scaler", "target_derived_predictor", "moving_mean_coarse"]
    assert "'target - coarse'" in found[2].text and "100.0%" in found[1].text


@pytest.mark.parametrize("gap_px", [1, 4, 9])
def test_guard_distance_is_the_smallest_chebyshev_distance(gap_px: int) -> None:
    train = CropPlan(np.array([[0, 0, 0, 0, 0, 12, 12]], dtype=np.int32), np.ones(1, np.float32), 12)
    at = 11 + gap_px
    test = CropPlan(np.array([[0, 9, at, 9, at, 21, at + 12]], dtype=np.int32), np.ones(1, np.float32), 12)
    assert guard_distance_px(Plans(train, None, test, None), SHAPE) == gap_px
    other = CropPlan(test.table + np.array([1, 0, 0, 0, 0, 0, 0], np.int32), test.valid_fraction, 12)
    assert guard_distance_px(Plans(train, None, other, None), SHAPE) == np.inf
