"""A target that predictors or coarse SIF hold in another form is found; bands that merely follow it are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.linear_model import LinearRegression

from sifscale import grid
from sifscale.features import Channel, FeatureCube
from sifscale.hidden_target import MIN_WINDOWS, blurred_coarse, derived_predictors

Field = NDArray[Any]
Mask = NDArray[np.bool_]
SHAPE = (3, 48, 48)
FACTOR = 3


def feature_cube(target: Field, predictors: dict[str, Field], coarse: Field | None = None) -> FeatureCube:
    """One place at three dates; coarse is the block mean, or a smooth field that is given."""
    block_px = FACTOR if coarse is None else 1
    if coarse is None:
        coarse = grid.block_repeat(grid.block_mean(target, FACTOR), FACTOR, *target.shape[1:])
    coarse = np.nan_to_num(coarse, nan=float(np.nanmean(coarse))).astype(np.float32)
    channels = {"coarse": coarse, **predictors}
    return FeatureCube(
        tuple(Channel(name, True) for name in channels), np.stack(list(channels.values()), axis=1).astype(np.float32),
        coarse, target.astype(np.float32), np.isfinite(target), np.ones_like(coarse), block_px, SHAPE[1:],
        ("a",) * len(target), np.datetime64("2019-05-25", "ns") + np.arange(len(target)) * np.timedelta64(16, "D"),
    )  # fmt: skip


def smooth(seed: int, scale_px: float = 3) -> Field:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), (0, scale_px, scale_px))
    return np.asarray(field / field.std())


def noise(seed: int) -> Field:
    return np.random.default_rng(seed).normal(size=SHAPE)


def sif(gaps: float = 0.02) -> Field:
    """A smooth truth with the noise of soundings, and gaps."""
    target = 1 + 0.4 * smooth(1) + 0.2 * noise(2)
    target[np.random.default_rng(3).random(SHAPE) < gaps] = np.nan
    return target


def eastern() -> Mask:
    """The tested part."""
    return np.broadcast_to(np.arange(SHAPE[2]) >= 30, SHAPE)


def found(features: FeatureCube, test: Mask | None = None) -> list[str]:
    return derived_predictors(features, features.valid, eastern() if test is None else test)


def stated_r2(sentence: str) -> float:
    match = re.search(r"R2 ([\d.]+)", sentence)
    assert match
    return float(match[1])


LEAKS: dict[str, tuple[Callable[[Field], Field], str]] = {
    "copied": (lambda t: 2 * t + 1e-3 * noise(5), "a linear fit of 'evi' and coarse SIF gives the target"),
    "scaled in windows": (lambda t: t * (1 + np.arange(48) // 16) - np.arange(48) // 16, "in 16 px windows"),
    "shifted by a pixel": (lambda t: np.roll(t, 1, axis=2), "px filter of 'evi' and coarse SIF gives the target"),
    "shifted by two along both axes": (lambda t: np.roll(t, (-2, 2), axis=(1, 2)), "5x5 px filter of 'evi'"),
    "moving mean": (lambda t: grid.moving_mean(t, 3), "a 5x5 px filter of the target and coarse SIF gives 'evi'"),
    "what a blur takes away": (lambda t: t - ndimage.uniform_filter(t, (0, 3, 3)), "5x5 px filter of"),
    "exponential": (lambda t: np.exp(10 * t), "'evi' is a function of the target"),
    "rising and falling": (lambda t: (t - 1) ** 2, "'evi' is a function of the target"),
    "in the test part": (lambda t: np.where(eastern(), t, smooth(6)), "over the whole field in the test part"),
    "of the date before": (lambda t: np.roll(t, 1, axis=0), "the tested target of sample"),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_predictor_made_from_the_target_is_found(name: str) -> None:
    make, says = LEAKS[name]
    target = sif(gaps=0.0 if name == "what a blur takes away" else 0.02)
    (sentence,) = found(feature_cube(target, {"evi": make(target), "ndvi": smooth(1) + smooth(7)}))
    assert says in sentence and stated_r2(sentence) >= 0.99


def test_each_predictor_that_holds_the_target_is_named() -> None:
    target = sif()
    sentences = found(feature_cube(target, {"red": target + 2, "evi": smooth(4), "nir": np.exp(9 * target)}))
    assert len(sentences) == 2 and "'red'" in sentences[0] and "'nir'" in sentences[1]


def test_a_target_split_over_two_bands_is_found_beside_a_band_without_values() -> None:
    target, part = sif(), 3 * noise(4)
    bands = {"red": target + part, "empty": np.full(SHAPE, np.nan), "nir": part}
    (sentence,) = found(feature_cube(target, bands))
    assert sentence.startswith("a linear fit of all predictors together")


@settings(max_examples=10)
@given(st.floats(0.01, 100), st.sampled_from([-1, 1]), st.floats(-3, 3), st.floats(-1000, 1000))
def test_any_combination_of_target_and_coarse_is_found(gain: float, sign: int, of_coarse: float, offset: float) -> None:
    target = sif()[:1]
    features = feature_cube(target, {})
    values = sign * gain * (target + of_coarse * features.coarse) + offset * gain
    features = feature_cube(target, {"evi": values})
    (sentence,) = derived_predictors(features, features.valid, eastern()[:1])
    assert sentence.startswith("a linear fit of 'evi'") and stated_r2(sentence) > 0.9999


@pytest.mark.parametrize("noise_sd", [0.02, 0.035])
def test_the_stated_r2_is_that_of_a_least_squares_fit(noise_sd: float) -> None:
    target = sif()
    features = feature_cube(target, {"evi": target + noise_sd * noise(9)})
    (sentence,) = found(features)
    known = features.valid
    columns = np.column_stack([features.predictors[:, 1][known], features.coarse[known]])
    expected = LinearRegression().fit(columns, target[known]).score(columns, target[known])
    assert stated_r2(sentence) == pytest.approx(expected, abs=1e-5)


def test_a_copy_with_noise_of_its_own_is_left_to_the_noise_floor() -> None:
    target = sif()
    assert found(feature_cube(target, {"evi": target + 0.15 * noise(9)})) == []


def test_bands_that_follow_a_noise_free_target_are_no_finding() -> None:
    # As 1 km temperature: the block mean alone explains 99 %, so that everything beside it seems to.
    target = 290 + 5 * smooth(1, scale_px=12) + 0.2 * smooth(2, scale_px=1)
    features = feature_cube(target, {"mir": 0.3 - 0.02 * smooth(1, scale_px=12) + 0.01 * smooth(8)})
    coarse = features.coarse.ravel()
    assert np.corrcoef(coarse, target.ravel())[0, 1] ** 2 > 0.99
    assert found(features) == []


@pytest.mark.parametrize("scale_px", [2, 4, 8])
def test_functions_of_coarse_sif_are_no_finding(scale_px: float) -> None:
    target = 1 + 0.4 * smooth(1, scale_px)
    coarse = feature_cube(target, {}).coarse
    bands = {
        "mean": ndimage.uniform_filter(coarse, (0, 5, 5)),
        "bent": np.exp(coarse),
        "laplacian": ndimage.laplace(coarse, axes=(1, 2)),
        "interpolated": ndimage.uniform_filter(coarse, (0, FACTOR, FACTOR)),
    }
    assert found(feature_cube(target, bands)) == []


def test_another_composite_that_is_not_tested_may_be_read() -> None:
    target = sif()
    last = np.zeros(SHAPE, dtype=bool)
    last[2] = True
    features = feature_cube(target, {"other composite": np.stack([target[1], target[0], target[1]])})
    assert found(features, last) == []
    (sentence,) = found(replace(features, predictors=features.predictors[[2, 0, 1]][:, [1, 0]]), ~last)
    assert "another composite of its place" in sentence


@pytest.mark.parametrize(
    "target",
    [np.full(SHAPE, np.nan), np.full(SHAPE, 0.7), np.where(np.arange(6912).reshape(SHAPE) == 5, 1.0, np.nan)],
    ids=["empty", "constant", "one pixel"],
)
def test_a_target_that_cannot_be_explained_is_no_finding(target: Field) -> None:
    coarse = smooth(5)
    features = feature_cube(target, {"copy": target, "evi": smooth(4), "constant": np.ones(SHAPE)}, coarse)
    assert found(features) == [] and blurred_coarse(features, features.valid) == []
    assert found(features, np.zeros(SHAPE, dtype=bool)) == []


def test_few_windows_do_not_decide() -> None:
    """A scaling by windows is asked for only where windows are many: the same leak in two of them is chance."""
    target, gain = sif(gaps=0), grid.block_repeat(1 + np.arange(9.0).reshape(3, 3), 16, 48, 48)
    features = feature_cube(target, {"evi": gain * target - gain**2})
    assert "in 16 px windows" in found(features)[0]
    few = np.zeros(SHAPE, dtype=bool)
    few[0, :, :32] = True
    assert few.sum() // 16**2 < MIN_WINDOWS
    assert derived_predictors(features, few, few) == []


@pytest.mark.parametrize("sd_px", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("gaps", [0.0, 0.04])
def test_a_blur_of_the_target_is_no_coarse_field(sd_px: float, gaps: float) -> None:
    target = sif(gaps=0)
    coarse = ndimage.gaussian_filter(target, (0, sd_px, sd_px))
    target[np.random.default_rng(3).random(SHAPE) < gaps] = np.nan
    features = feature_cube(target, {}, coarse)
    (sentence,) = blurred_coarse(features, features.valid)
    assert "px filter of the target on the same grid gives coarse SIF" in sentence and stated_r2(sentence) >= 0.995


@pytest.mark.parametrize("offset", [0, 290])
def test_a_moving_mean_with_another_border_is_found(offset: float) -> None:
    target = sif(gaps=0) + offset
    features = feature_cube(target, {}, ndimage.uniform_filter(target, (0, 5, 5)))
    (sentence,) = blurred_coarse(features, features.valid)
    assert sentence.startswith("coarse SIF is the 5x5 moving mean of the target on the same grid")


def test_a_coarse_field_with_noise_of_its_own_and_block_means_are_no_finding() -> None:
    target = sif()
    coarse = ndimage.uniform_filter(1 + 0.4 * smooth(1), (0, 3, 3)) + 0.05 * noise(6)
    for features in (feature_cube(target, {}, coarse), feature_cube(target, {})):
        assert blurred_coarse(features, features.valid) == []
