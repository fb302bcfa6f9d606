"""Noise of a known size is found, whatever lies beneath it; the floor is what an ideal model reaches."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from sifscale import grid
from sifscale.audit import below_noise_floor
from sifscale.config import PROJECT_ROOT
from sifscale.noise_floor import describe, estimate, nugget, semivariances
from sifscale.training import judge_score, prepare_features
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

RAW = Path(os.environ.get("SIFSCALE_RAW", PROJECT_ROOT.parent / "shared" / "data"))
Floats = NDArray[np.float64]


def walk(rng: np.random.Generator, shape: tuple[int, int], step: float) -> Floats:
    """A field whose semivariogram is exactly linear: a random walk along y plus one along x; step**2 / 2 a px."""
    rows, columns = (np.cumsum(rng.normal(0, step, n)) for n in shape)
    return rows[:, None] + columns[None, :]


def smooth(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    field: Floats = ndimage.gaussian_filter(rng.normal(size=shape), 8)
    return np.asarray(field * (0.5 / field.std()))


@given(seed=st.integers(0, 1000), missing=st.floats(0, 0.9), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_semivariances_are_those_of_all_pairs_without_a_gap(
    seed: int, missing: float, rows: int, columns: int
) -> None:
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(2, rows, columns))
    field[rng.random(field.shape) < missing] = np.nan
    gamma, pairs = semivariances(field, lags=3)
    for direction, (step_y, step_x) in enumerate(((1, 0), (0, 1))):
        for lag in (1, 2, 3):
            squares = [
                (field[s, y + lag * step_y, x + lag * step_x] - field[s, y, x]) ** 2
                for s in range(2)
                for y in range(rows - lag * step_y)
                for x in range(columns - lag * step_x)
            ]
            squares = [square for square in squares if square == square]
            assert pairs[direction, lag - 1] == len(squares)
            expected = np.mean(squares) / 2 if squares else np.nan
            assert gamma[direction, lag - 1] == pytest.approx(expected, nan_ok=True)


@given(
    noise=st.floats(0.001, 10),
    slope_y=st.floats(0, 5),
    slope_x=st.floats(0, 5),
    exponent=st.sampled_from([1.0, 1.5, 2.0]),
    seed=st.integers(0, 100),
)
def test_a_semivariogram_of_the_model_gives_its_nugget_exactly(
    noise: float, slope_y: float, slope_x: float, exponent: float, seed: int
) -> None:
    lag = np.arange(1.0, 5) ** exponent
    pairs = np.random.default_rng(seed).integers(1, 1000, (2, 4))
    assert nugget(np.stack([noise + slope_y * lag, noise + slope_x * lag]), pairs) == pytest.approx(noise, rel=1e-6)


def test_a_nugget_is_never_negative_and_needs_pairs() -> None:
    many = np.full((2, 3), 100)
    assert nugget(np.array([[1.0, 8, 27], [1, 8, 27]]), many) == 0, "too smooth: the curve would start below 0"
    assert nugget(np.zeros((2, 3)), many) == 0, "constant"
    gamma, pairs = semivariances(np.full((1, 8, 8), np.nan))
    assert np.isnan(nugget(gamma, pairs))
    gamma, pairs = semivariances(np.random.default_rng(0).normal(size=(1, 1, 20)))
    assert np.isnan(nugget(gamma, pairs)), "one row has no pairs along y"


@pytest.mark.parametrize("sd", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("beneath", [smooth, lambda rng, shape: walk(rng, shape, 0.1), lambda rng, shape: 0.7])
def test_known_noise_is_found_beneath_gaps(sd: float, beneath: Any) -> None:
    rng = np.random.default_rng(7)
    shape = (150, 180)
    fields = np.stack([beneath(rng, shape) + rng.normal(0, scale, shape) for scale in (sd, 2 * sd)])
    observed = ndimage.gaussian_filter(rng.normal(size=fields.shape), (0, 3, 3)) < 0.08
    fields[~observed] = 1e9  # must not be read
    for sample, scale in enumerate((sd, 2 * sd)):
        scored = observed & (np.arange(2) == sample)[:, None, None]
        found = estimate(fields, observed, scored, 3, together=False)
        assert found is not None and found.noise_sd == pytest.approx(scale, rel=0.05)
    both = estimate(fields, observed, observed, 3, together=True)
    apart = estimate(fields, observed, observed, 3, together=False)
    assert both is not None and apart is not None
    assert both.noise_sd == pytest.approx(apart.noise_sd, rel=0.05)
    assert both.noise_sd == pytest.approx(sd * np.sqrt(2.5), rel=0.05)


@pytest.mark.parametrize("factor", [2, 3])
def test_the_floor_is_the_rmse_of_a_model_that_knows_all_but_the_noise(factor: int) -> None:
    rng = np.random.default_rng(11)
    truth = smooth(rng, (180, 240))
    target = np.where(rng.random(truth.shape) < 0.8, truth + rng.normal(0, 0.2, truth.shape), np.nan)
    coarse = grid.block_repeat(grid.block_mean(target, factor), factor, *target.shape)
    known = grid.block_repeat(
        grid.block_mean(np.where(np.isnan(target), np.nan, truth), factor), factor, *target.shape
    )
    best = truth + coarse - known  # the truth, moved so that it conserves
    observed = np.isfinite(target)
    found = estimate(target[None], observed[None], observed[None], factor, together=False)
    rmse = float(np.sqrt(np.mean((best - target)[observed] ** 2)))
    assert found is not None and found.rmse == pytest.approx(rmse, rel=0.03)
    assert not below_noise_floor(rmse, found.rmse)


def test_without_blocks_there_is_noise_but_no_floor() -> None:
    field = np.random.default_rng(0).normal(0, 0.3, (1, 60, 60))
    everywhere = np.ones(field.shape, dtype=bool)
    found = estimate(field, everywhere, everywhere, 1, together=False)
    assert found is not None and found.noise_sd == pytest.approx(0.3, rel=0.1) and np.isnan(found.rmse)
    assert "no floor" in describe(found.noise_sd, None, 1.0, "K")


def test_what_cannot_be_estimated_is_none_and_wrong_shapes_are_refused() -> None:
    field = np.zeros((1, 6, 6))
    yes, no = np.ones(field.shape, dtype=bool), np.zeros(field.shape, dtype=bool)
    assert estimate(field, yes, no, 3, together=False) is None
    assert estimate(field, no, no, 3, together=False) is None
    with pytest.raises(ValueError, match="whole blocks of 4 px"):
        estimate(field, yes, yes, 4, together=False)
    with pytest.raises(ValueError, match="one shape"):
        estimate(field, yes, yes[:, :3], 3, together=False)


def test_samples_without_a_nugget_take_no_part() -> None:
    rng = np.random.default_rng(1)
    fields = rng.normal(0, 0.3, (2, 60, 60))
    observed = np.ones(fields.shape, dtype=bool)
    observed[1] = False
    observed[1, 0, :2] = True
    with_it = estimate(fields, observed, observed, 3, together=False)
    without = estimate(fields[:1], observed[:1], observed[:1], 3, together=False)
    assert with_it == without is not None


def test_a_score_below_the_floor_is_a_finding() -> None:
    assert not below_noise_floor(0.181, 0.2) and not below_noise_floor(0.1, 0.0)
    (finding,) = below_noise_floor(0.179, 0.2)
    assert finding.code == "below_noise_floor" and "0.179" in finding.text and "0.2" in finding.text


@pytest.mark.parametrize(
    ("protocol", "rmse", "called"), [("honest", 0.1, True), ("honest", 0.19, False), ("legacy", 0.1, False)]
)
def test_an_honest_run_below_the_floor_is_called_out_not_stopped(
    protocol: str, rmse: float, called: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tags: dict[str, str] = {}
    run, tracker = SimpleNamespace(protocol=protocol), SimpleNamespace(tags=tags.update)
    with caplog.at_level(logging.WARNING):
        judge_score(cast(Any, run), {"test/rmse": rmse, "test/noise_floor_rmse": 0.2}, cast(Any, tracker))
        judge_score(cast(Any, run), {"test/rmse": rmse}, cast(Any, tracker))
    assert len(caplog.records) == called == ("below_noise_floor" in tags.get("audit", ""))


def test_the_line_below_a_table_names_noise_floor_and_suspect_r2() -> None:
    line = describe(0.22, 0.207, 0.53, "mW m-2 sr-1 nm-1")
    assert all(part in line for part in ("0.220 mW m-2 sr-1 nm-1", "0.207", "R2 above 0.88")) and "\n" not in line


@pytest.mark.skipif(not (RAW / "sif_modis_minnesota_2019").is_dir(), reason="no raw data here")
def test_the_minnesota_tables_have_the_noise_that_the_design_quotes(workplace: Workplace) -> None:
    run = workplace.config("window=minnesota_2019", "split=blocks", "crop.size=24", f"paths.raw={RAW}")
    features = prepare_features(run, open_or_build(run))
    target, observed = np.asarray(features.target), np.asarray(features.valid)
    found = [nugget(*semivariances(np.where(o, t, np.nan)[None])) for t, o in zip(target, observed, strict=True)]
    assert found == pytest.approx([0.027, 0.069], rel=0.1)
    floor = estimate(target, observed, observed, features.block_px, together=False)
    assert floor is not None
    assert floor.noise_sd == pytest.approx(0.22, rel=0.1) and floor.rmse == pytest.approx(0.207, rel=0.1)

    # the table itself, without our reader
    table = pd.read_csv(RAW / "sif_modis_minnesota_2019" / "SIF_MODIS_Integrated_3.5x7km_25_MAY_09_JUNE.csv")
    field = table.pivot(index="latitude", columns="longitude", values="sif_mean_743").to_numpy(dtype=np.float64)
    assert nugget(*semivariances(field[None])) == pytest.approx(found[0], rel=1e-3)


def test_where_no_noise_is_seen_no_alarm_level_is_named() -> None:
    line = describe(0.001, 0.0009, 5.0, "K")
    assert line == "no noise of the target to be seen (nugget of its semivariogram below 0.05 K)"
