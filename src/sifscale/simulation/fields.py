"""The physics of the OSSE: land cover, phenology, reflectances, light and fluorescence, as pure arrays.

All fields are (y, x) on the fine grid, y from north to south, lengths in km. The numbers describe a landscape
*like* Minnesota: they are calibrated so that SIF and its relation to EVI look as in the TROPOMI and MODIS
tables of 2019 (tests/simulation/test_world.py holds them to it); they are not fitted to any place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.fft
import scipy.spatial
from numpy.typing import NDArray

from sifscale.simulation.sun import OVERPASS_SOLAR_HOUR, cos_solar_zenith

Field = NDArray[np.float64]

REFLECTANCE_BANDS: Final = ("red", "nir", "blue", "mir")  # order of every reflectance tuple below
EXTINCTION: Final = (0.55, 0.35, 0.55, 0.50)  # per unit LAI (Beer's law): NIR saturates later

SOLAR_CONSTANT_W_M2: Final = 1361.0  # total solar irradiance, Kopp & Lean 2011
PAR_FRACTION: Final = 0.40  # share of the solar constant within 400-700 nm
CLEAR_SKY_TRANSMITTANCE: Final = 0.72  # summer, low altitude, the clearer scenes

FIELD_SPACING_KM: Final = 1.6  # square root of the mean field area (one section): fields of about 0.8-3 km
GREENUP_DELAY_DAYS_PER_KM: Final = 0.027  # 3 days per degree of latitude northwards
SHIFT_SD_DAYS: Final = (4.0, 5.0)  # spread of dates: over 40 km (weather), per field (sowing)
LAI_SPREAD: Final = (0.10, 0.16)  # sd of log LAI: per field (management), per km pixel (gaps, roads)
SOIL_SPREAD: Final = 0.10  # sd of log ground reflectance, from soil types (15 km) and fields alike

STRESS_LENGTH_KM: Final = 25.0  # sd of the smoothing kernel: dry and wet patches of tens of km
STRESS_MEMORY: Final = 0.7  # correlation of soil moisture anomalies between 16-day composites
STRESS_YIELD: Final = 0.19  # log loss of yield per sd of stress: stomata close days before leaves are shed
STRESS_LAI: Final = 0.02  # log loss of LAI per sd of stress: all that the indices get to see of it


@dataclass(frozen=True)
class Cover:
    """One land cover; on its days of the year half the LAI has come or gone in the window's middle."""

    name: str
    lai_min: float
    lai_max: float
    greenup_day: float
    greenup_days: float  # time scale of the logistic rise
    senescence_day: float
    senescence_days: float
    canopy: tuple[float, float, float, float]  # reflectance of a closed canopy: red, nir, blue, mir
    ground: tuple[float, float, float, float]  # reflectance at LAI 0: soil, litter or water
    yield_: float  # sif per (PAR x NIRv): 1e-2 (mW m-2 sr-1 nm-1) / (W m-2)


_CROP_SOIL = (0.130, 0.185, 0.068, 0.270)  # dark prairie soil with residue
_SOD = (0.110, 0.190, 0.058, 0.240)
_LITTER = (0.065, 0.130, 0.038, 0.165)
_PEAT = (0.060, 0.110, 0.038, 0.110)
_PAVEMENT = (0.125, 0.195, 0.090, 0.210)
_LAKE = (0.030, 0.020, 0.035, 0.008)
# Flag values are positions in this tuple. Crops yield more than C3 grass and forest (Guanter et al. 2014,
# doi:10.1073/pnas.1320008111), conifers less than broadleaves; all tuned to the scatter of the tables.
COVERS: Final = (
    Cover("water", 0.0, 0.0, 140, 10, 265, 10, _LAKE, _LAKE, 0.0),
    Cover("corn", 0.05, 5.0, 174, 8, 256, 8, (0.036, 0.460, 0.024, 0.105), _CROP_SOIL, 1.40),
    Cover("soybean", 0.05, 4.8, 180, 8, 252, 7, (0.034, 0.500, 0.024, 0.110), _CROP_SOIL, 1.25),
    Cover("small_grains", 0.10, 4.0, 153, 8, 212, 7, (0.042, 0.430, 0.027, 0.135), _CROP_SOIL, 1.25),
    Cover("grassland", 0.40, 2.3, 136, 10, 262, 14, (0.045, 0.350, 0.028, 0.150), _SOD, 0.85),
    Cover("deciduous_forest", 0.40, 4.6, 140, 5, 271, 7, (0.030, 0.330, 0.019, 0.100), _LITTER, 1.05),
    Cover("conifer_forest", 2.60, 3.6, 140, 14, 272, 14, (0.027, 0.230, 0.018, 0.070), _LITTER, 0.85),
    Cover("wetland", 0.40, 3.0, 146, 10, 260, 11, (0.038, 0.300, 0.024, 0.090), _PEAT, 0.85),
    Cover("urban", 0.30, 1.5, 132, 9, 272, 10, (0.045, 0.360, 0.030, 0.160), _PAVEMENT, 0.80),
)
WATER, CORN, SOYBEAN, SMALL_GRAINS, GRASSLAND, DECIDUOUS, CONIFER, WETLAND, URBAN = range(len(COVERS))


@dataclass(frozen=True)
class Landscape:
    """What does not change within a season; every array is (y, x)."""

    cover: NDArray[np.uint8]
    shift_days: Field  # phenology earlier (-) or later (+) than the cover's dates
    lai_factor: Field
    soil_factor: Field


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], length_px: float) -> Field:
    """White noise under a Gaussian kernel of sd `length_px`: mean 0, expected variance 1, shape (y, x).

    The kernel, not the sample, sets the variance, so that a small window varies as part of a large one.
    """
    # Padding keeps the periodic transform from tying opposite edges together.
    height, width = (scipy.fft.next_fast_len(n + int(np.ceil(6 * length_px)), real=True) for n in shape)
    return periodic_field(rng, (height, width), length_px)[: shape[0], : shape[1]]


def periodic_field(rng: np.random.Generator, shape: tuple[int, int], length_px: float) -> Field:
    """As `smooth_field`, but one that goes on over its edges at the opposite ones."""
    gain_y, gain_x = (np.exp(-2 * (np.pi * length_px * np.fft.fftfreq(n)) ** 2) for n in shape)
    spectrum = scipy.fft.rfft2(rng.standard_normal(shape)) * gain_y[:, None] * gain_x[: shape[1] // 2 + 1]
    field = scipy.fft.irfft2(spectrum, s=shape)
    return np.asarray(field / np.sqrt(np.mean(gain_y**2) * np.mean(gain_x**2)), dtype=np.float64)


def stress_fields(rng: np.random.Generator, shape: tuple[int, int], pixel_km: float) -> Iterator[Field]:
    """Water stress (y, x) of successive composites, in sd, without end: an AR(1) chain of smooth fields."""
    stress = smooth_field(rng, shape, STRESS_LENGTH_KM / pixel_km)
    while True:
        yield stress
        fresh = smooth_field(rng, shape, STRESS_LENGTH_KM / pixel_km)
        stress = STRESS_MEMORY * stress + np.sqrt(1 - STRESS_MEMORY**2) * fresh


def field_numbers(rng: np.random.Generator, shape: tuple[int, int], pixel_km: float) -> NDArray[np.intp]:
    """Number of the field (Voronoi cell of random seeds) that each pixel centre lies in, shape (y, x)."""
    extent = np.array(shape) * pixel_km
    count = max(1, round(float(extent.prod()) / FIELD_SPACING_KM**2))
    seeds = rng.uniform(0.0, 1.0, (count, 2)) * extent
    centres = (np.indices(shape).reshape(2, -1).T + 0.5) * pixel_km
    _, nearest = scipy.spatial.cKDTree(seeds).query(centres)
    return np.asarray(nearest, dtype=np.intp).reshape(shape)


def _land_cover(
    rng: np.random.Generator, shape: tuple[int, int], pixel_km: float, fields: NDArray[np.intp]
) -> NDArray[np.uint8]:
    """Land cover flags (y, x): forest north-east, small grains north-west, corn and soy south, lakes."""
    north = 1 - (np.arange(shape[0])[:, None] + 0.5) / shape[0]
    east = (np.arange(shape[1])[None, :] + 0.5) / shape[1]

    def noise(length_km: float) -> Field:
        return smooth_field(rng, shape, length_km / pixel_km)

    def rough(length_km: float) -> Field:
        return noise(length_km) + 0.35 * noise(1.5)  # ragged edges between covers

    forest = 3.0 * (north + east - 1) + 0.6 * noise(25.0)
    scores = {
        CORN: 0.35 - 1.4 * forest + 0.7 * rough(15.0),  # cropland; the crop is drawn per field below
        GRASSLAND: -0.45 + 0.8 * rough(13.0),
        DECIDUOUS: 0.10 + 1.1 * forest + 0.7 * rough(13.0),
        CONIFER: -0.60 + 1.4 * forest + 0.8 * rough(13.0),
        WETLAND: -0.95 + 0.4 * forest + 0.9 * noise(2.5),
        URBAN: -3.2 + 1.5 * noise(5.0),
    }
    covers = np.array(list(scores), dtype=np.uint8)
    cover = covers[np.argmax(np.stack(list(scores.values())), axis=0)]

    draw = rng.uniform(size=int(fields.max()) + 1)[fields]
    grains = 1 / (1 + np.exp(-4 * (north - east - 0.25)))
    crop = np.where(draw < 0.54, CORN, SOYBEAN)
    crop = np.where(draw > 1 - 0.75 * grains, SMALL_GRAINS, crop)
    crop = np.where((draw > 0.44) & (draw < 0.54), GRASSLAND, crop)  # hay and pasture among the crops
    cover = np.where(cover == CORN, crop, cover).astype(np.uint8)

    # Large lakes whose shores are frayed by finer noise, and ponds of a pixel or a few; more in forest.
    wetness = 0.25 * np.clip(forest, -1, 1)
    lakes = 0.9 * noise(4.0) + 0.45 * noise(1.2) + wetness > 2.0
    ponds = noise(0.9) + wetness > 2.35
    cover[lakes | ponds] = WATER
    return cover


def landscape(rng: np.random.Generator, shape: tuple[int, int], pixel_km: float) -> Landscape:
    """Draw the mosaic for a fine grid of `shape` (y, x): covers, shifts of dates, LAI and soil factors."""
    fields = field_numbers(rng, shape, pixel_km)
    cover = _land_cover(rng, shape, pixel_km, fields)

    def per_field() -> Field:
        return np.asarray(rng.standard_normal(int(fields.max()) + 1)[fields], dtype=np.float64)

    def noise(length_km: float) -> Field:
        return smooth_field(rng, shape, length_km / pixel_km)

    north_km = (shape[0] / 2 - np.arange(shape[0])[:, None] - 0.5) * pixel_km
    weather, sowing = SHIFT_SD_DAYS[0] * noise(40.0), SHIFT_SD_DAYS[1] * per_field()
    shift = GREENUP_DELAY_DAYS_PER_KM * north_km + weather + sowing
    # A coarser fine pixel averages over more gaps and roads.
    pixel_spread = LAI_SPREAD[1] / max(1.0, pixel_km)
    lai_factor = np.exp(LAI_SPREAD[0] * per_field() + pixel_spread * rng.standard_normal(shape))
    soil_factor = np.exp(SOIL_SPREAD * (noise(15.0) + per_field()) / np.sqrt(2))
    return Landscape(cover, shift, lai_factor, soil_factor)


def leaf_area_index(land: Landscape, day_of_year: float, stress: Field) -> Field:
    """LAI (y, x) in m2 m-2: a logistic rise and fall by cover and field, as in Zhang et al. 2003.

    doi:10.1016/S0034-4257(02)00135-9. `stress` is (y, x) in standard deviations.
    """
    lai_min, lai_max, up, up_days, down, down_days = np.array(
        [
            (c.lai_min, c.lai_max, c.greenup_day, c.greenup_days, c.senescence_day, c.senescence_days)
            for c in COVERS
        ]
    ).T[:, land.cover]
    rise = 1 / (1 + np.exp(-(day_of_year - up - land.shift_days) / up_days))
    # Late starts end later too, but only by half: frost and day length end the season for all.
    fall = 1 / (1 + np.exp((day_of_year - down - 0.5 * land.shift_days) / down_days))
    season = lai_min + (lai_max - lai_min) * rise * fall
    return np.asarray(season * land.lai_factor * np.exp(-STRESS_LAI * stress), dtype=np.float64)


def reflectances(land: Landscape, lai: Field) -> dict[str, Field]:
    """Surface reflectance (y, x) by band: closed canopy and ground mixed by the gap fraction exp(-k LAI)."""
    canopy = np.array([c.canopy for c in COVERS])
    ground = np.array([c.ground for c in COVERS])
    soil = np.where(land.cover == WATER, 1.0, land.soil_factor)
    bands: dict[str, Field] = {}
    for index, band in enumerate(REFLECTANCE_BANDS):
        gap = np.exp(-EXTINCTION[index] * lai)
        bands[band] = canopy[land.cover, index] * (1 - gap) + ground[land.cover, index] * soil * gap
    return bands


def ndvi(red: Field, nir: Field) -> Field:
    """Normalised difference vegetation index, (nir - red) / (nir + red); reflectances 0-1, any shape."""
    return (nir - red) / (nir + red)


def evi(red: Field, nir: Field, blue: Field) -> Field:
    """Enhanced vegetation index, Huete et al. 2002: 2.5 (nir - red) / (nir + 6 red - 7.5 blue + 1).

    Infinite where the denominator is 0, as bright clouds can make it.
    """
    denominator = nir + 6 * red - 7.5 * blue + 1
    index = np.full(denominator.shape, np.inf)
    np.divide(2.5 * (nir - red), denominator, out=index, where=denominator != 0)
    return index


def par_w_m2(day_of_year: float, latitude_deg: Field) -> Field:
    """Clear-sky photosynthetically active radiation at the overpass, W m-2, in the shape of the latitude."""
    cos_zenith = cos_solar_zenith(day_of_year, latitude_deg, OVERPASS_SOLAR_HOUR)
    par = SOLAR_CONSTANT_W_M2 * PAR_FRACTION * CLEAR_SKY_TRANSMITTANCE * np.maximum(cos_zenith, 0)
    return np.asarray(par, dtype=np.float64)


def sif_truth(land: Landscape, bands: dict[str, Field], par: Field, stress: Field) -> Field:
    """SIF (y, x) in mW m-2 sr-1 nm-1: PAR x NIRv x yield(cover, stress); exactly 0 over water.

    NIRv = NDVI x NIR (Badgley et al. 2017, doi:10.1126/sciadv.1602244). `par` in W m-2.
    """
    nirv = ndvi(bands["red"], bands["nir"]) * bands["nir"]
    yield_ = 1e-2 * np.array([c.yield_ for c in COVERS])[land.cover] * np.exp(-STRESS_YIELD * stress)
    # Where NDVI is below 0 nothing green absorbs light, and nothing fluoresces.
    return np.where(land.cover == WATER, 0.0, par * np.maximum(nirv, 0) * yield_)
