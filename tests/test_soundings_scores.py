"""Scores against soundings: equal to those of scipy and of plain arithmetic, with intervals that hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from numpy.typing import NDArray
from scipy import stats

from sifscale.soundings_figures import agreement, differences
from sifscale.soundings_scores import LABELS, LEAST_BLOCKS, difference, score, sums_by_block

Floats = NDArray[np.float64]


def soundings(number: int, error: float = 0.4, seed: int = 0) -> tuple[Floats, Floats, Floats, list[str]]:
    """Map 0.1 + 0.8 truth, soundings with an error, that error, and blocks of ten soundings each."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(1.5, 0.5, number)
    names = [f"{i // 10}" for i in range(number)]
    return 0.1 + 0.8 * truth, truth + rng.normal(scale=error, size=number), np.full(number, error), names


@given(st.integers(3, 60), st.integers(0, 1000), st.floats(-2, 2), st.floats(0.1, 3))
def test_scores_are_those_of_scipy_and_of_plain_arithmetic(number: int, seed: int, shift: float, scale: float) -> None:
    predicted, sounding, error, names = soundings(number, seed=seed)
    predicted = shift + scale * predicted + np.random.default_rng(seed).normal(scale=0.2, size=number)
    found = score(predicted, sounding, error, names).values
    line = stats.linregress(sounding, predicted)
    assert found["slope_ols"] == pytest.approx(line.slope, rel=1e-6, abs=1e-9)
    assert found["intercept_ols"] == pytest.approx(line.intercept, rel=1e-6, abs=1e-6)
    assert found["correlation"] == pytest.approx(stats.pearsonr(sounding, predicted).statistic, rel=1e-6, abs=1e-9)
    assert found["bias"] == pytest.approx(np.mean(predicted - sounding), abs=1e-9)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((predicted - sounding) ** 2)))
    assert found["sounding_error"] == pytest.approx(0.4)
    assert tuple(found) == tuple(LABELS) and found["n"] == number
    covariance = np.cov(sounding, predicted)
    if covariance[0, 0] > 0.16 + 1e-6:
        assert found["slope"] == pytest.approx(covariance[0, 1] / (covariance[0, 0] - 0.16), rel=1e-6, abs=1e-9)
        assert found["intercept"] == pytest.approx(predicted.mean() - found["slope"] * sounding.mean(), abs=1e-6)
        assert abs(found["slope"]) >= abs(found["slope_ols"])
    else:
        assert np.isnan(found["slope"])


def test_without_errors_of_soundings_both_lines_are_one() -> None:
    predicted, sounding, _, names = soundings(50)
    found = score(predicted, sounding, np.zeros(50), names).values
    assert found["slope"] == pytest.approx(found["slope_ols"])
    assert found["correlation_of_perfect_map"] == 1 and found["rmse_beyond_error"] == found["rmse"]


def test_intervals_hold_what_was_planted_in_most_cases() -> None:
    held = {"slope": 0, "intercept": 0, "bias": 0}
    for seed in range(40):
        predicted, sounding, error, names = soundings(600, seed=seed)
        found = score(predicted, sounding, error, names)
        for name, planted in {"slope": 0.8, "intercept": 0.1, "bias": 0.1 - 0.2 * 1.5}.items():
            low, high = found.intervals[name]
            held[name] += low < planted < high
    assert all(34 <= number <= 40 for number in held.values()), held


def test_few_blocks_have_no_interval_and_constant_soundings_no_line() -> None:
    predicted, sounding, error, names = soundings(10 * (LEAST_BLOCKS - 1))
    found = score(predicted, sounding, error, names)
    assert found.blocks == LEAST_BLOCKS - 1 and not found.intervals and "[" not in found.text("rmse")
    ours, theirs = (sums_by_block(values, sounding, names) for values in (predicted, sounding))
    gain = difference(ours, theirs)
    assert np.isnan(gain.low) and gain.difference == pytest.approx(found.values["rmse"])
    flat = score(predicted, np.full(len(predicted), 1.1), error, names)
    assert flat.text("slope") == flat.text("slope_ols") == flat.text("correlation") == "-"
    assert np.isnan(flat.to_json()["slope"]) and flat.to_json()["intervals_95"] == {}
    one = score(predicted[:1], sounding[:1], error[:1], names[:1])
    assert one.text("n") == "1" and one.text("slope_ols") == "-" and one.values["bias"] == predicted[0] - sounding[0]
    with pytest.raises(ValueError, match="no sounding to score"):
        score(predicted[:0], sounding[:0], error[:0], [])


@pytest.mark.parametrize("number", [40, 3000])
def test_a_figure_shows_each_prediction_with_both_lines(number: int) -> None:
    predicted, sounding, error, names = soundings(number)
    scores = {name: score(predicted, sounding, error, names).values for name in ("map", "native")}
    coarse = np.where(np.arange(number) % 2, predicted, np.nan)
    figure = agreement(sounding, {"map": predicted, "native": coarse}, scores, units="mW m-2 sr-1 nm-1")
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_xlabel().startswith("soundings")]
    assert len(panels) == 2 and "map" in panels[0].get_ylabel()
    for axes in panels:
        legend = axes.get_legend()
        assert legend is not None
        texts = [text.get_text() for text in legend.get_texts()]
        assert texts[0] == "1:1" and len(texts) == 3 and texts[2].startswith("error of soundings out: 0.")
    with pytest.raises(ValueError, match="no finite pair"):
        agreement(sounding, {"map": np.full(number, np.nan)}, scores, units="1")


def test_a_figure_shows_every_footprint_where_it_lies() -> None:
    predicted, sounding, _, _ = soundings(30)
    corners: Floats = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]) + np.arange(30.0)[:, None, None]
    figure = differences(corners, sounding, predicted, units="1", axis_units="km")
    figure.draw_without_rendering()
    shown = [item for axes in figure.axes for item in axes.collections if isinstance(item, PolyCollection)]
    footprints = [item for item in shown if len(item.get_paths()) == 30]
    np.testing.assert_allclose(np.asarray(footprints[2].get_array()), predicted - sounding)
    np.testing.assert_array_equal(np.asarray(footprints[0].get_paths()[7].vertices)[:4], corners[7])
    low, high = footprints[2].get_clim()
    assert low == -high and footprints[0].get_clim() == footprints[1].get_clim()
    differences(corners[:1], np.ones(1), np.ones(1), units="1", axis_units="km").draw_without_rendering()
    with pytest.raises(ValueError, match="no footprint"):
        differences(corners[:0], sounding[:0], predicted[:0], units="1", axis_units="km")
