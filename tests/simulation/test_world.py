"""The simulated truth keeps its physics and the statistics it was calibrated to."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, ndimage

from sifscale.grid import Grid, block_mean
from sifscale.simulation import fields
from sifscale.simulation.sky import CLOUD_SCALES_KM, draw_quantiles, draw_sky
from sifscale.simulation.sun import cos_solar_zenith, day_length_factor, declination_rad
from sifscale.simulation.world import Period, Scene, World, build_world, scenes, stream

GRID = Grid("EPSG:5070", -60_000.0, 2_850_000.0, 4000.0, 4000.0, 96, 128)
FIRST_DAY = datetime.date(2019, 5, 9)
JUNE, MIDSUMMER = (2, 3), 4  # composites; the last is that of 12 to 27 July
CELL_NOISE = 0.4 / np.sqrt(12)  # as of a dozen soundings, mW m-2 sr-1 nm-1


def periods(number: int) -> list[Period]:
    starts = [FIRST_DAY + datetime.timedelta(days=16 * index) for index in range(number)]
    return [(start, start + datetime.timedelta(days=15)) for start in starts]


@pytest.fixture(scope="module")
def window() -> tuple[World, list[Scene]]:
    """The truth of the window that the default config names."""
    world = build_world(GRID, 4, 30.0, 2019)
    return world, list(scenes(world, periods(6), 2019))


def inner(world: World, values: NDArray[Any]) -> NDArray[Any]:
    rows, columns = world.inner
    return values[rows, columns]


def bilinear_r2(sif: NDArray[np.float64], factor: int) -> float:
    """Explained variance of native SIF (sample, y, x) by its block means brought back bilinearly."""
    rows, columns = ((np.arange(n) + 0.5) / factor - 0.5 for n in sif.shape[1:])
    where = np.meshgrid(rows, columns, indexing="ij")
    back = [ndimage.map_coordinates(block_mean(field, factor), where, order=1, mode="nearest") for field in sif]
    return float(1 - np.mean((sif - np.stack(back)) ** 2) / np.var(sif))


def test_statistics_are_those_of_the_2019_tables(window: tuple[World, list[Scene]]) -> None:
    """Late May and June 2019 have r(SIF, EVI) = 0.82 and 0.75, together 0.80; mean SIF 0.69 and 1.08."""
    world, composites = window
    truth = np.stack([block_mean(inner(world, scene.sif), 4) for scene in composites])
    bands = [[inner(world, scene.reflectance[band]) for band in ("red", "nir", "blue")] for scene in composites]
    evi = np.stack([block_mean(fields.evi(*three), 4) for three in bands])
    sif = truth + CELL_NOISE * np.random.default_rng(0).standard_normal(truth.shape)
    assert abs(np.corrcoef(sif[MIDSUMMER].ravel(), evi[MIDSUMMER].ravel())[0, 1] - 0.82) < 0.03
    assert abs(np.corrcoef(sif.ravel(), evi.ravel())[0, 1] - 0.82) < 0.03
    assert 0.75 < bilinear_r2(sif, 4) < 0.88
    assert abs(sif[list(JUNE)].mean() - 0.8) < 0.1
    assert 0.98 < np.mean(sif < 2.5)


def test_water_has_no_sif_and_covers_differ(window: tuple[World, list[Scene]]) -> None:
    world, composites = window
    names = [cover.name for cover in fields.COVERS]
    cover = inner(world, world.land.cover)
    assert set(np.unique(cover)) == set(range(len(names)))
    midsummer = inner(world, composites[MIDSUMMER].sif)
    mean = {name: midsummer[cover == flag].mean() for flag, name in enumerate(names)}
    assert np.all(midsummer[cover == fields.WATER] == 0) and np.all(midsummer >= 0)
    assert mean["corn"] > 1.5 * mean["grassland"] and mean["conifer_forest"] < mean["deciduous_forest"]


def test_the_world_reaches_the_margin_beyond_the_fine_grid(window: tuple[World, list[Scene]]) -> None:
    world, composites = window
    fine = GRID.refine(4)
    np.testing.assert_allclose(world.grid.x[world.inner[1]], fine.x)
    np.testing.assert_allclose(world.grid.y[world.inner[0]], fine.y)
    assert world.margin_px == 30 and composites[0].sif.shape == (96 * 4 + 60, 128 * 4 + 60)
    assert 42 < world.latitude.min() and world.latitude.max() < 49.5


def test_more_periods_leave_the_earlier_truth_as_it_is() -> None:
    world = build_world(Grid("EPSG:5070", 0.0, 2_700_000.0, 4000.0, 4000.0, 6, 6), 2, 5.0, 3)
    short, long = list(scenes(world, periods(1), 3)), list(scenes(world, periods(3), 3))
    np.testing.assert_array_equal(short[0].sif, long[0].sif)
    assert len(long) == 3 and not np.array_equal(long[0].sif, long[1].sif)


def test_truth_is_par_times_nirv_times_yield() -> None:
    shape = (1, 1)
    land = fields.Landscape(np.full(shape, fields.CORN, np.uint8), np.zeros(shape), np.ones(shape), np.ones(shape))
    bands = {"red": np.full(shape, 0.05), "nir": np.full(shape, 0.45)}
    sif = fields.sif_truth(land, bands, np.full(shape, 300.0), np.zeros(shape))
    np.testing.assert_allclose(sif, 300 * (0.8 * 0.45) * 0.01 * fields.COVERS[fields.CORN].yield_)
    stressed = fields.sif_truth(land, bands, np.full(shape, 300.0), np.ones(shape))
    np.testing.assert_allclose(stressed / sif, np.exp(-fields.STRESS_YIELD))


def test_par_follows_the_sun() -> None:
    latitude = np.array([30.0, 46.0, 60.0])
    june, march = fields.par_w_m2(172, latitude), fields.par_w_m2(81, latitude)
    assert np.all(june > march) and np.all(np.diff(june) < 0)
    # Equinox: the sine of the sun's height is cos(latitude) x cos(hour angle), 22.5 degrees at 13:30.
    expected = 1361 * 0.40 * 0.72 * np.cos(np.deg2rad(latitude)) * np.cos(np.deg2rad(22.5))
    np.testing.assert_allclose(march, expected, rtol=1e-6)
    np.testing.assert_array_equal(fields.par_w_m2(355, np.array([85.0])), 0.0)


@pytest.mark.parametrize(("day", "latitude"), [(172, 46.0), (355, 46.0), (172, 80.0), (100, -35.0)])
def test_the_day_length_factor_is_the_daily_mean_over_the_value_at_the_overpass(day: int, latitude: float) -> None:
    hours = np.arange(0, 24, 0.001)
    height = np.maximum(cos_solar_zenith(day, np.array(latitude), hours), 0)
    at_overpass = cos_solar_zenith(day, np.array([latitude]), 13.5)
    expected = integrate.trapezoid(height, hours) / 24 / at_overpass
    np.testing.assert_allclose(day_length_factor(day, np.array([latitude]), at_overpass), expected, rtol=1e-4)


def test_the_sun_declines_between_the_tropics() -> None:
    declinations = [np.rad2deg(declination_rad(day)) for day in range(1, 366)]
    assert abs(max(declinations) - 23.45) < 0.01 and int(np.argmax(declinations)) + 1 in (172, 173)


def test_smooth_field_has_unit_variance_and_its_length() -> None:
    field = fields.smooth_field(np.random.default_rng(0), (400, 500), 4.0)
    assert field.shape == (400, 500)
    assert abs(field.std() - 1) < 0.05
    # White noise under a Gaussian kernel of sd s has the autocorrelation exp(-d^2 / (4 s^2)).
    correlation = np.mean(field[:, 4:] * field[:, :-4]) / field.var()
    assert abs(correlation - np.exp(-0.25)) < 0.03


def test_cloud_fractions_have_the_mean_and_the_skewness_of_the_product() -> None:
    x, y = (axis.ravel() for axis in np.meshgrid(GRID.x, GRID.y))
    skies = [draw_sky(stream(1, "sky", day), GRID, 0.4) for day in range(80)]
    cloud = np.concatenate([sky.cloud_fraction(x, y, np.full(len(x), 70_000.0)) for sky in skies])
    assert cloud.min() >= 0 and cloud.max() <= 1 and abs(cloud.mean() - 0.4) < 0.03
    assert abs(np.mean(cloud[cloud <= 0.8] < 0.2) - 0.4) < 0.05


def test_clouds_drift_with_the_wind_and_a_clear_sky_has_none() -> None:
    sky = draw_sky(stream(1, "sky", 0), GRID, 0.4)
    x, y = np.full(5, 100_000.0), np.linspace(2_600_000.0, 2_800_000.0, 5)
    east, north = sky.wind_m_s
    now, later = sky.cloud_fraction(x, y, np.zeros(5)), np.full(5, 6000.0)
    np.testing.assert_allclose(sky.cloud_fraction(x + 6000 * east, y + 6000 * north, later), now, atol=1e-9)
    assert np.all(draw_sky(stream(1, "sky", 0), GRID, 0.0).cloud_fraction(x, y, later) == 0)


def test_quantiles_are_uniform() -> None:
    drawn = [draw_quantiles(stream(5, "sky", n), GRID, CLOUD_SCALES_KM).values.ravel() for n in range(60)]
    np.testing.assert_allclose(np.quantile(np.concatenate(drawn), [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.04)
