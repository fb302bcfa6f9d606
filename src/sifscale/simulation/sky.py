"""Clouds: where they stand in the way of TROPOMI on a day, and where a MODIS composite found no clear view."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from sifscale.grid import FloatArray, Grid
from sifscale.simulation.fields import Field, periodic_field

CLOUD_SCALES_KM: Final = (40.0, 10.0)  # kernel sd of weather systems and of cloud fields
HAZE_SCALES_KM: Final = (12.0, 2.0)  # what is left of them in the clearest views of 16 days
WIND_M_S: Final = (8.0, 6.0)  # mean towards the east, sd of either component
_CELL_KM: Final = {CLOUD_SCALES_KM: 5.0, HAZE_SCALES_KM: 1.0}  # half a kernel's sd at most


@dataclass(frozen=True)
class Quantiles:
    """A smooth random field, uniform in 0..1, over a place; it goes on beyond its edges periodically."""

    west: float
    north: float
    cell_m: float
    values: Field  # (y, x)

    def at(self, x: FloatArray, y: FloatArray) -> NDArray[np.float64]:
        """Values at map coordinates in metres, bilinear; arrays of one shape, which is the result's."""
        where = (self.north - y) / self.cell_m, (x - self.west) / self.cell_m
        found = ndimage.map_coordinates(self.values, np.stack(where), order=1, mode="grid-wrap")
        return np.asarray(found, dtype=np.float64)


def draw_quantiles(rng: np.random.Generator, grid: Grid, scales_km: tuple[float, float]) -> Quantiles:
    """Draw such a field over a grid in metres; `scales_km` is one of the two above."""
    cell_m = 1000 * _CELL_KM[scales_km]
    # Beyond the grid lies room enough for opposite edges to differ.
    room_m = 2000 * max(scales_km)
    shape = (math.ceil((grid.height * grid.dy + room_m) / cell_m), math.ceil((grid.width * grid.dx + room_m) / cell_m))
    large, small = (periodic_field(rng, shape, 1000 * scale / cell_m) for scale in scales_km)
    quantiles = special.ndtr((large + small) / math.sqrt(2))
    return Quantiles(grid.west, grid.north, cell_m, np.asarray(quantiles, dtype=np.float64))


@dataclass(frozen=True)
class Sky:
    """The clouds of one day, which drift with the wind."""

    quantiles: Quantiles
    wind_m_s: tuple[float, float]  # towards east and north
    cloudiness: float

    def cloud_fraction(self, x: FloatArray, y: FloatArray, seconds: FloatArray) -> Field:
        """Cloud fraction 0..1 at map coordinates (n,) in metres and seconds (n,) of the day.

        A quantile q of the field becomes q ** (1 / cloudiness - 1), whose mean is the cloudiness. At 0.4, two
        fifths of the soundings up to 0.8 are below 0.2, as in TROPOSIF.
        """
        if self.cloudiness == 0:
            return np.zeros(len(x))
        east, north = self.wind_m_s
        quantile = self.quantiles.at(x - east * seconds, y - north * seconds)
        return np.asarray(quantile ** (1 / self.cloudiness - 1), dtype=np.float64)


def draw_sky(rng: np.random.Generator, grid: Grid, cloudiness: float) -> Sky:
    """Draw the clouds of a day over a grid in metres; `cloudiness`: mean cloud fraction, in [0, 1)."""
    east, north = rng.normal((WIND_M_S[0], 0.0), WIND_M_S[1])
    return Sky(draw_quantiles(rng, grid, CLOUD_SCALES_KM), (float(east), float(north)), cloudiness)
