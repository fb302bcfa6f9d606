"""Codes stand for what they were made of within half a step, and read like the array that they stand for."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from sifscale.quantised import Quantised, quantised

SHAPE = (2, 3, 4, 5)


def coded(field: NDArray[np.float32]) -> Quantised:
    """With codes in memory."""
    lazy = quantised(da.from_array(field, chunks=(1, 2, 4, 5)))
    return Quantised(np.asarray(lazy.codes), lazy.scale, lazy.offset)


@settings(max_examples=25)
@given(arrays.arrays(np.float32, SHAPE, elements=st.floats(-1e6, 1e6, width=32) | st.just(np.nan)))
def test_values_are_off_by_half_a_step_at_most_and_gaps_stay(field: NDArray[np.float32]) -> None:
    found = np.asarray(coded(field))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), np.isnan(field))
    for channel in range(SHAPE[1]):
        values = field[:, channel][np.isfinite(field[:, channel])].astype(np.float64)
        if values.size:
            half_a_step = np.ptp(values) / (2 * 65534)
            rounding = 4 * np.finfo(np.float32).eps * np.abs(values).max() + 1e-38
            error = np.abs(found[:, channel] - field[:, channel].astype(np.float64))
            assert np.nanmax(error) <= half_a_step + rounding


@settings(max_examples=20)
@given(arrays.arrays(np.int16, SHAPE, elements=st.integers(-32767, 32767)))
def test_whole_numbers_are_exact(field: NDArray[np.int16]) -> None:
    np.testing.assert_array_equal(np.asarray(coded(field.astype(np.float32))), field)


def test_constant_empty_and_infinite_channels() -> None:
    field = np.full(SHAPE, 0.1, np.float32)
    field[:, 1] = np.nan
    field[:, 2, 0], field[0, 2, 1, 0] = np.inf, 7.5
    found = np.asarray(coded(field))
    np.testing.assert_array_equal(found[:, :2], field[:, :2])
    np.testing.assert_array_equal(found[:, 2, 0], np.full((2, 5), 7.5))


@pytest.mark.parametrize(
    "key",
    [np.s_[:], np.s_[0], np.s_[:, 1], np.s_[1, :, 1:3], np.s_[1, 2, 3, 4], np.s_[..., 2], np.s_[:, ::-1], np.s_[5:]],
    ids=str,
)
def test_it_is_indexed_like_the_array_that_it_stands_for(key: Any) -> None:
    codes = coded(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    np.testing.assert_array_equal(codes[key], np.asarray(codes)[key])
    assert codes.shape == SHAPE and codes.dtype == np.float32 and codes.nbytes == np.asarray(codes).nbytes
