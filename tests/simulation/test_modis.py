"""Simulated MODIS composites: noisy truth, indices from reflectances, quality that agrees with itself."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from pyproj import Transformer

from sifscale.sources.sinusoidal import SINUSOIDAL_CRS, tile_grid

if TYPE_CHECKING:
    from conftest import Osse


def test_modis_pixels_are_the_truth_at_their_centres_with_noise(osse: Osse) -> None:
    bands, clean = osse.layers, osse.truth
    row, column = np.nonzero(bands["pixel reliability"] == 0)
    tile = tile_grid(11, 4, 1200)
    back = Transformer.from_crs(SINUSOIDAL_CRS, osse.grid.crs, always_xy=True)
    x, y = back.transform(tile.x[column], tile.y[row])
    places = {"x": xr.DataArray(x, dims="n"), "y": xr.DataArray(y, dims="n")}
    for name, band in (("red", "red"), ("NIR", "nir"), ("MIR", "mir")):
        expected = clean[band].interp(places).values  # xarray's bilinear, NaN beyond the fine grid
        inside = np.isfinite(expected)
        error = bands[f"{name} reflectance"][row, column][inside] / 1e4 - expected[inside]
        spread = np.hypot(0.02 * expected[inside], 0.003)
        assert inside.sum() > 8000 and abs(np.mean(error / spread)) < 0.06 and abs(np.std(error / spread) - 1) < 0.05
        # Neighbours in the file are independent: nothing was smoothed after the noise.
        assert abs(np.corrcoef(error[1:], error[:-1])[0, 1]) < 0.05


def test_indices_follow_from_the_stored_reflectances(osse: Osse) -> None:
    bands = osse.layers
    there = bands["pixel reliability"] >= 0
    red, nir, blue = (bands[f"{name} reflectance"][there] / 1e4 for name in ("red", "NIR", "blue"))
    ndvi, evi = (nir - red) / (nir + red), 2.5 * (nir - red) / (nir + 6 * red - 7.5 * blue + 1)
    np.testing.assert_allclose(bands["NDVI"][there] / 1e4, np.clip(ndvi, -0.2, 1), atol=0.6e-4)
    np.testing.assert_allclose(bands["EVI"][there] / 1e4, np.clip(evi, -0.2, 1), atol=0.6e-4)


def test_quality_bits_agree_with_the_reliability_and_fill_surrounds_the_world(osse: Osse) -> None:
    bands = osse.layers
    reliability, quality = bands["pixel reliability"], bands["VI Quality"]
    outside = reliability == -1
    assert np.all(quality[outside] == 65_535) and np.all(bands["NDVI"][outside] == -3000)
    assert np.all(bands["red reflectance"][outside] == -1000)
    modland, usefulness, surface = quality & 3, quality >> 2 & 15, quality >> 11 & 7
    assert np.all(modland[reliability == 0] == 0) and np.all(modland[reliability == 1] == 1)
    assert np.all(modland[reliability == 3] == 2) and np.all(usefulness[~outside] <= 12)
    assert set(np.unique(surface[~outside])) == {1, 2, 3} and not np.any(reliability == 2)
    cloudy, hazy = (np.mean(reliability[~outside] == rank) for rank in (3, 1))
    assert 0 < cloudy < 0.05 and cloudy < hazy < 0.15
    assert bands["red reflectance"][reliability == 3].mean() > 3 * bands["red reflectance"][reliability == 0].mean()
    days = bands["composite day of the year"][~outside]
    assert (days.min(), days.max()) == (177, 192)


def test_winter_brings_snow_into_the_granules(tmp_path: Path, simulate: Callable[..., Osse]) -> None:
    january = (datetime.date(2019, 1, 17), datetime.date(2019, 2, 1))
    bands = simulate(tmp_path / "raw", periods=[january], days_per_period=1).layers
    snow = bands["pixel reliability"] == 2
    assert snow.sum() > 5000 and np.all(bands["VI Quality"][snow] >> 14 & 1 == 1)
    assert np.median(bands["red reflectance"][snow]) > 7000
