"""Persistence reads the nearest composite of the train part, and never the sample itself or a held-out one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from sifscale.config import ConfigError
from sifscale.datamodule import Scaler
from sifscale.features import FeatureCube
from sifscale.models.persistence import CHANNEL, Persistence, with_other_composite
from sifscale.splits import TEST, TRAIN, VALIDATION
from sifscale.training import prepare_features
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

DAYS = [0, 16, 32, 48]


def cube(places: str = "aaaa") -> FeatureCube:
    """Four composites of 2 x 2 px: the target is the number of the sample, coarse its negative, with one gap each."""
    number = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((4, 2, 2), dtype=np.float32)
    valid = np.ones((4, 2, 2), dtype=bool)
    valid[1, 0, 0] = valid[0, 0, 0] = valid[0, 1, 1] = False
    times = np.datetime64("2019-05-25", "ns") + np.array(DAYS) * np.timedelta64(1, "D")
    target = np.where(valid, number, np.nan).astype(np.float32)
    predictors, weight = np.zeros((4, 0, 2, 2), np.float32), np.ones_like(target)
    return FeatureCube((), predictors, -number, target, valid, weight, 2, (2, 2), tuple(places), times)


def parts(*each: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    return np.array(each, dtype=np.int8)[:, None, None] * np.ones((4, 2, 2), dtype=np.int8)


def test_the_nearest_composite_of_the_train_part_is_read_and_gaps_come_from_the_next() -> None:
    extended = with_other_composite(cube(), parts(TRAIN, TRAIN, VALIDATION, TEST))
    assert extended.names == [CHANNEL] and not extended.channels[0].scaled
    other = extended.predictors[:, 0]
    assert other[3].tolist() == [[-3, 1], [1, 1]], "a gap in both is taken from the coarse field of the sample"
    assert other[2].tolist() == [[-2, 1], [1, 1]]
    assert other[0].tolist() == [[0, 1], [1, 1]], "never the sample itself"
    assert other[1].tolist() == [[-1, 0], [0, -1]]


def test_another_place_is_not_read() -> None:
    other = with_other_composite(cube("abab"), parts(TRAIN, TRAIN, VALIDATION, TEST)).predictors[:, 0]
    assert other[3].tolist() == [[-3, 1], [1, 1]] and other[2].tolist() == [[-2, 0], [0, -2]]
    with pytest.raises(ConfigError, match="must leave composites of the tested places"):
        with_other_composite(cube("aabb"), parts(TRAIN, TRAIN, VALIDATION, TEST))


def test_held_out_values_change_nothing(workplace: Workplace) -> None:
    run = workplace.config("split=time", "window.period.end=2019-06-25", "window.name=tiny")
    features = prepare_features(run, open_or_build(run))
    split = np.array([TRAIN, VALIDATION, TEST], dtype=np.int8)[:, None, None]
    found = with_other_composite(features, split).predictors
    held_out = np.where(split == TRAIN, features.target, 99)
    np.testing.assert_array_equal(with_other_composite(replace(features, target=held_out), split).predictors, found)


def test_the_model_returns_the_channel_in_the_units_of_the_target() -> None:
    scaler = Scaler((5.0, 0.0), (2.0, 1.0), 0.7, 0.4)
    model = Persistence(in_channels=2, factor=3, channels=("evi", CHANNEL), scaler=scaler)
    predictors = torch.randn(2, 2, 4, 5)
    torch.testing.assert_close(model(predictors, torch.zeros(2, 1, 4, 5)) * 0.4 + 0.7, predictors[:, 1:])
    with pytest.raises(ValueError, match="needs the channel 'other composite'"):
        Persistence(in_channels=1, factor=3, channels=("evi",), scaler=scaler)
