"""What MODIS would deliver of the truth in one composite: the layers of a MOD13A2 granule, as stored."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from scipy import ndimage

from sifscale.grid import FloatArray, Grid
from sifscale.simulation import fields
from sifscale.simulation.fields import REFLECTANCE_BANDS, WATER, Field
from sifscale.simulation.sky import CLOUD_SCALES_KM, HAZE_SCALES_KM, draw_quantiles
from sifscale.simulation.sun import cos_solar_zenith
from sifscale.simulation.world import Period, Scene, World, middle_day_of_year, stream
from sifscale.sources.sinusoidal import SINUSOIDAL_CRS, SPHERE_RADIUS_M, tile_grid

Layers = dict[str, NDArray[np.generic]]  # by the short names of LAYERS in mod13_file

TILE_PX: Final = 1200
NOISE: Final = (0.02, 0.003)  # sd of a reflectance: relative (view angle), absolute (atmosphere)
REFLECTANCE_FLOOR: Final = 0.001  # MOD13 reflectances are hardly ever 0
OVERPASS_SOLAR_HOUR: Final = 10.5  # Terra

# A pixel keeps clouds in its clearest view with this share of the cloudiness, or haze with that one.
CLOUDY_SHARE: Final = 0.04
HAZY_SHARE: Final = 0.12
CLOUD_FROM: Final = 0.2  # share of cloud within a pixel that makes it cloudy; haze is 0.02 to 0.05
_CLOUD: Final = {"red": 0.55, "nir": 0.58, "blue": 0.55, "mir": 0.30}
_LAYER: Final = {
    "red": "red reflectance", "nir": "NIR reflectance", "blue": "blue reflectance", "mir": "MIR reflectance"
}  # fmt: skip
_SNOW: Final = {"red": 0.80, "nir": 0.70, "blue": 0.82, "mir": 0.08}

GOOD, MARGINAL, SNOW, CLOUDY = 0, 1, 2, 3  # pixel reliability
_MODLAND: Final = np.array([0, 1, 1, 2])  # by pixel reliability, as are the next two
_USEFULNESS: Final = np.array([0, 1, 3, 4])  # the better of two neighbouring ranks
_AEROSOL: Final = np.array([1, 2, 1, 3])
_LAND, _COAST, _INLAND_WATER = 1, 2, 3


@dataclass(frozen=True)
class Tile:
    """The part of a MODIS tile that the simulated world covers."""

    h: int
    v: int
    grid: Grid  # of the whole tile
    rows: slice  # of the part
    columns: slice
    x: FloatArray  # (y, x) map coordinates of the part's pixel centres, in the world's CRS
    y: FloatArray
    row_px: FloatArray  # (y, x) where they lie on the world's grid, 0 = centre of its first row
    column_px: FloatArray
    inside: NDArray[np.bool_]  # (y, x) between centres of the world's pixels

    def sample(self, field: Field) -> Field:
        """Bilinear values (y, x) of a field on the world's grid at the part's pixel centres."""
        where = np.stack([self.row_px, self.column_px])
        return np.asarray(ndimage.map_coordinates(field, where, order=1, mode="nearest"), dtype=np.float64)


def cut_tile(world: World, h: int, v: int) -> Tile:
    """Find what the world covers of a tile, once for all composites. ValueError if it is nothing."""
    grid, whole = world.grid, tile_grid(h, v, TILE_PX)
    forth = Transformer.from_crs(grid.crs, SINUSOIDAL_CRS, always_xy=True)
    back = Transformer.from_crs(SINUSOIDAL_CRS, grid.crs, always_xy=True)
    some_x, some_y = np.linspace(grid.x[0], grid.x[-1], 50), np.linspace(grid.y[0], grid.y[-1], 50)
    x, y = forth.transform(*np.meshgrid(some_x, some_y))
    rows = _clipped((whole.north - y.max()) / whole.dy, (whole.north - y.min()) / whole.dy)
    columns = _clipped((x.min() - whole.west) / whole.dx, (x.max() - whole.west) / whole.dx)
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise ValueError(f"tile h{h:02d}v{v:02d} lies outside the simulated world; leave it out")
    x, y = back.transform(*np.meshgrid(whole.x[columns], whole.y[rows]))
    # What is beyond the edge of the sinusoidal map has no place; a corner outside all centres stands for it.
    placed = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(placed, x, grid.west), np.where(placed, y, grid.north)
    row_px, column_px = (grid.y[0] - y) / grid.dy, (x - grid.x[0]) / grid.dx
    inside = (row_px >= 0) & (row_px <= grid.height - 1) & (column_px >= 0) & (column_px <= grid.width - 1)
    return Tile(h, v, whole, rows, columns, x, y, row_px, column_px, inside)


def _clipped(first: float, last: float) -> slice:
    """Pixels of a tile between two positions, and two more on either side for what lies between the samples."""
    return slice(max(0, math.floor(first) - 2), min(TILE_PX, math.ceil(last) + 2))


def composite_layers(
    tile: Tile, world: World, scene: Scene, period: Period, *, seed: int, cloudiness: float
) -> Layers:
    """The 12 layers (y, x) of a tile's part in the product's integers, to be used where `tile.inside`.

    Reflectances are the bilinear truth, under snow in winter, with the noise of each pixel; clouds and haze brighten
    some of them. NDVI and EVI follow from the stored reflectances, cut to their valid range.
    """
    key = period[0].toordinal()
    rng = stream(seed, "modis", key, tile.h, tile.v)
    snow = _snow(tile, world, period, seed)
    cloud = _cloud_share(rng, tile, world, seed, key, cloudiness)
    reliability = np.where(cloud >= CLOUD_FROM, CLOUDY, np.where(snow, SNOW, np.where(cloud > 0, MARGINAL, GOOD)))
    layers: Layers = {"pixel reliability": reliability.astype(np.int8)}
    for band in REFLECTANCE_BANDS:
        clean = np.where(snow, _SNOW[band], tile.sample(scene.reflectance[band]))
        factor, offset = rng.standard_normal((2, *clean.shape))
        noisy = np.maximum(clean * (1 + NOISE[0] * factor) + NOISE[1] * offset, REFLECTANCE_FLOOR)
        layers[_LAYER[band]] = _stored(noisy * (1 - cloud) + _CLOUD[band] * cloud, 0, 10_000)
    red, nir, blue = (layers[_LAYER[band]].astype(np.float64) / 10_000 for band in ("red", "nir", "blue"))
    layers["NDVI"] = _stored(fields.ndvi(red, nir), -2000, 10_000)
    layers["EVI"] = _stored(fields.evi(red, nir, blue), -2000, 10_000)
    water = tile.sample((world.land.cover == WATER).astype(np.float64))
    layers["VI Quality"] = _vi_quality(rng, reliability, cloud, water)
    return layers | _views(rng, tile, period)


def _stored(values: Field, low: int, high: int) -> NDArray[np.int16]:
    return np.clip(np.rint(10_000 * values), low, high).astype(np.int16)


def _cloud_share(
    rng: np.random.Generator, tile: Tile, world: World, seed: int, key: int, cloudiness: float
) -> Field:
    """Share of cloud or haze in each pixel of the composite: 0 in most, up to 0.05 as haze, from 0.2 as cloud."""
    haze = draw_quantiles(stream(seed, "haze", key), world.grid, HAZE_SCALES_KM)
    quantile = haze.at(tile.x, tile.y)
    depth = rng.uniform(size=quantile.shape)
    cloudy, hazy = CLOUDY_SHARE * cloudiness, (CLOUDY_SHARE + HAZY_SHARE) * cloudiness
    share = np.where(quantile > 1 - hazy, 0.02 + 0.03 * depth, 0.0)
    return np.where(quantile > 1 - cloudy, CLOUD_FROM + 0.6 * depth, share)


def _snow(tile: Tile, world: World, period: Period, seed: int) -> NDArray[np.bool_]:
    """Where snow lies: where a temperature by latitude and season, with 4 K of weather, is below -2 degrees C.

    Mean and half the yearly range grow with latitude as between 30 and 60 degrees in continents: 7 and 17.5 K
    at 46 degrees. The true reflectances and SIF do not know of the snow.
    """
    latitude = tile.sample(world.latitude)
    season = np.cos(2 * np.pi * (middle_day_of_year(period) - 20) / 365) * np.sign(latitude)
    mean_c = 30 - 0.5 * np.abs(latitude) - 0.38 * np.abs(latitude) * season
    if (mean_c > 2).all():
        return np.zeros(latitude.shape, bool)
    weather = draw_quantiles(stream(seed, "snow", period[0].toordinal()), world.grid, CLOUD_SCALES_KM)
    return np.asarray(mean_c + 8 * (weather.at(tile.x, tile.y) - 0.5) < -2)


def _vi_quality(
    rng: np.random.Generator, reliability: NDArray[np.int64], cloud: Field, water: Field
) -> NDArray[np.uint16]:
    """Bit fields of MOD13 (user's guide, table 5): rank and cause of quality, land or water, snow."""
    cloudy = reliability == CLOUDY
    adjacent = ndimage.binary_dilation(cloudy, iterations=2) & ~cloudy
    surface = np.where(water > 0.5, _INLAND_WATER, np.where(water > 0, _COAST, _LAND))
    usefulness = _USEFULNESS[reliability] + rng.integers(0, 2, reliability.shape)
    bits = (
        _MODLAND[reliability]
        | usefulness << 2
        | _AEROSOL[reliability] << 6
        | adjacent.astype(np.int64) << 8
        | (cloudy & (cloud < 0.5)).astype(np.int64) << 10
        | surface << 11
        | (reliability == SNOW).astype(np.int64) << 14
    )
    return np.asarray(bits, dtype=np.uint16)


def _views(rng: np.random.Generator, tile: Tile, period: Period) -> Layers:
    """Day of the year and angles (hundredths of a degree) of the view that the composite chose."""
    days = (period[1] - period[0]).days + 1
    of_year = np.array([(period[0] + datetime.timedelta(days=n)).timetuple().tm_yday for n in range(days)], np.int16)
    shape = tile.inside.shape
    latitude = np.rad2deg(tile.grid.y[tile.rows] / SPHERE_RADIUS_M)[:, None]
    cos_zenith = cos_solar_zenith(middle_day_of_year(period), latitude, OVERPASS_SOLAR_HOUR)
    sun = np.rad2deg(np.arccos(np.clip(cos_zenith, -1, 1))) + rng.normal(0, 1.5, shape)
    # Compositing prefers views near nadir; MODIS sees up to 65 degrees.
    view = np.minimum(np.abs(rng.normal(0, 22, shape)), 65)
    azimuth = rng.choice([-60.0, 120.0], shape) + rng.normal(0, 15, shape)
    return {
        "composite day of the year": of_year[rng.integers(0, days, shape)],
        "view zenith angle": np.rint(100 * view).astype(np.int16),
        "sun zenith angle": np.rint(100 * np.clip(sun, 0, 180)).astype(np.int16),
        "relative azimuth angle": np.rint(100 * np.clip(azimuth, -180, 180)).astype(np.int16),
    }
