"""The embedded window `minnesota_osse`: plausible SIF and MODIS fields whose fine truth is known.

An observing system simulation experiment: nothing is downloaded, everything follows from the arguments, and
`sif_truth` on the fine grid says how well a downscaling did. The physics lies in `osse_fields`.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sifscale.grid import Grid, block_mean
from sifscale.sources import osse_fields
from sifscale.sources.osse_fields import COVERS, Field, Landscape

CENTRE_LATITUDE_DEG: Final = 46.3  # the middle of Minnesota; sets the light only, whatever the CRS
M_PER_DEGREE: Final = 111_195.0  # length of a degree of latitude on the MODIS sphere
MODIS_NOISE: Final = (0.02, 0.003)  # sd of a reflectance: relative (view angle), absolute (atmosphere)
REFLECTANCE_FLOOR: Final = 0.001  # MOD13 reflectances are not negative
CLOUD_SCALES_KM: Final = (40.0, 10.0)  # kernel sd of weather systems and of cloud fields
CLOUD_SPREAD: Final = 0.25  # sd of the log expected number of soundings

SIF_UNITS: Final = "mW m-2 sr-1 nm-1"
LONG_NAMES: Final = {
    "sif": "sun-induced chlorophyll fluorescence at 743 nm, mean of the soundings of a composite",
    "sif_error": "1-sigma error of the mean sun-induced chlorophyll fluorescence of the cell",
    "n_soundings": "number of soundings in the cell",
    "sif_truth": "true sun-induced chlorophyll fluorescence at 743 nm",
    "ndvi": "normalised difference vegetation index",
    "evi": "enhanced vegetation index",
    "red": "surface reflectance, red (MODIS band 1)",
    "nir": "surface reflectance, near infrared (MODIS band 2)",
    "blue": "surface reflectance, blue (MODIS band 3)",
    "mir": "surface reflectance, mid infrared (MODIS band 7)",
    "land_cover": "land cover",
}

Period = tuple[datetime.date, datetime.date]
Bands = dict[str, NDArray[np.float32]]

_MAX_SOUNDINGS_PER_CELL: Final = 5_000  # keeps the Poisson draws of clear cells well inside int16


def simulate(
    *,
    height_px: int,
    width_px: int,
    pixel_m: float,
    fine_factor: int,
    periods: Sequence[Period],
    seed: int,
    sounding_noise: float,
    soundings_per_cell: float,
    missing_share: float,
    west_m: float,
    north_m: float,
    crs: str,
    place: str,
) -> tuple[xr.Dataset, xr.Dataset]:
    """Simulate the composites of a window; return (native, fine).

    native: (sample, y, x) = (len(periods), height_px, width_px), cells of `pixel_m`, float32: `sif` and
    `sif_error` in mW m-2 sr-1 nm-1, NaN where `n_soundings` (int16) is 0; `ndvi evi red nir blue mir`.
    fine: the same bands on cells of `pixel_m / fine_factor`, `sif_truth`, `land_cover` (y, x) with CF flags.

    `sif` is the block mean of `sif_truth` plus noise of sd `sif_error` = `sounding_noise` / sqrt(n); it can
    be negative. `sif_truth` comes from reflectances before MODIS noise; fine `ndvi` and `evi` follow exactly
    from the noisy ones. Native bands, indices included, are block means of the fine ones, as in an
    aggregation of the 1 km product: a native index is not quite the formula of the native reflectances.

    `periods` are (first, last) days, both inclusive, in order and apart; (`west_m`, `north_m`) is the outer
    corner of the north-western cell in `crs`. Besides cells that happen to get no sounding, the cloudiest
    `missing_share` of every composite is empty. Equal arguments give equal arrays. ValueError for arguments
    out of range.
    """
    _check_window(height_px, width_px, pixel_m, fine_factor, west_m, north_m, crs, place)
    _check_periods(periods)
    _check_noise(seed, sounding_noise, soundings_per_cell, missing_share)
    grid = Grid(crs, west_m, north_m, pixel_m, pixel_m, height_px, width_px)
    fine_grid = grid.refine(fine_factor)
    # One stream a subject: more periods or other noise leave the landscape as it is.
    land_rng, stress_rng, modis_rng, sounding_rng = np.random.default_rng(seed).spawn(4)
    land = osse_fields.landscape(land_rng, (fine_grid.height, fine_grid.width), fine_grid.dx / 1000)
    stress = osse_fields.stress_fields(stress_rng, land.cover.shape, fine_grid.dx / 1000, len(periods))

    native, fine = [], []
    for period, dryness in zip(periods, stress, strict=True):
        truth, bands = _fine_composite(modis_rng, land, dryness, period, fine_grid)
        cell_truth = block_mean(truth.astype(np.float64), fine_factor)
        soundings = _sound(
            sounding_rng, cell_truth, pixel_m / 1000, sounding_noise, soundings_per_cell, missing_share
        )
        native.append(soundings | {name: block_mean(values, fine_factor) for name, values in bands.items()})
        fine.append({"sif_truth": truth} | bands)

    flags = {
        "units": "1",
        "long_name": LONG_NAMES["land_cover"],
        "flag_values": np.arange(len(COVERS), dtype=np.uint8),
        "flag_meanings": " ".join(cover.name for cover in COVERS),
    }
    fine_set = _dataset(fine, periods, fine_grid, place).assign(land_cover=(("y", "x"), land.cover, flags))
    return _dataset(native, periods, grid, place), fine_set


def _fine_composite(
    rng: np.random.Generator, land: Landscape, stress: Field, period: Period, grid: Grid
) -> tuple[NDArray[np.float32], Bands]:
    """True SIF and MODIS bands (y, x) of one composite, with the season taken at the middle of the period."""
    day = period[0].timetuple().tm_yday + (period[1] - period[0]).days / 2
    middle_y = grid.north - grid.height * grid.dy / 2
    latitude = CENTRE_LATITUDE_DEG + (grid.y[:, None].astype(np.float64) - middle_y) / M_PER_DEGREE
    clean = osse_fields.reflectances(land, osse_fields.leaf_area_index(land, day, stress))
    truth = osse_fields.sif_truth(land, clean, osse_fields.par_w_m2(day, latitude), stress)
    relative, absolute = MODIS_NOISE
    bands: Bands = {}
    for band, values in clean.items():
        factor, offset = rng.standard_normal((2, *values.shape))
        noisy = values * (1 + relative * factor) + absolute * offset
        bands[band] = np.maximum(noisy, REFLECTANCE_FLOOR).astype(np.float32)
    # Indices follow from the stored float32 reflectances, so that a user finds the formula to hold.
    red, nir, blue = (bands[band].astype(np.float64) for band in ("red", "nir", "blue"))
    bands["ndvi"] = osse_fields.ndvi(red, nir).astype(np.float32)
    bands["evi"] = osse_fields.evi(red, nir, blue).astype(np.float32)
    return truth.astype(np.float32), bands


def _sound(
    rng: np.random.Generator,
    truth: NDArray[np.floating[Any]],
    pixel_km: float,
    sounding_noise: float,
    soundings_per_cell: float,
    missing_share: float,
) -> dict[str, NDArray[np.generic]]:
    """What the instrument sees of the cells' truth (y, x): mean SIF, its error, the number of soundings.

    The number is Poisson: fewer under cloud, none in the cloudiest cells, where SIF and error are NaN.
    """
    shape = (truth.shape[0], truth.shape[1])
    large, small = (osse_fields.smooth_field(rng, shape, length / pixel_km) for length in CLOUD_SCALES_KM)
    cloud = (large + small) / math.sqrt(2)
    count = rng.poisson(soundings_per_cell * np.exp(-CLOUD_SPREAD * cloud - CLOUD_SPREAD**2 / 2))
    cloudiest = np.argsort(-cloud, axis=None)[: round(missing_share * cloud.size)]
    count.flat[cloudiest] = 0
    error = np.where(count > 0, sounding_noise / np.sqrt(np.maximum(count, 1)), np.nan)
    return {
        "sif": (truth + error * rng.standard_normal(shape)).astype(np.float32),
        "sif_error": error.astype(np.float32),
        "n_soundings": count.astype(np.int16),
    }


def _dataset(
    composites: Sequence[Mapping[str, NDArray[np.generic]]], periods: Sequence[Period], grid: Grid, place: str
) -> xr.Dataset:
    """Stack the composites (sample, y, x) and name their coordinates, units and meaning."""
    variables = {}
    for name in composites[0]:
        units = SIF_UNITS if name.startswith("sif") else "1"
        values = np.stack([composite[name] for composite in composites])
        variables[name] = (("sample", "y", "x"), values, {"units": units, "long_name": LONG_NAMES[name]})
    starts, ends = (np.array([period[end] for period in periods], dtype="datetime64[ns]") for end in (0, 1))
    coordinates = {
        "y": ("y", grid.y, _axis("y")),
        "x": ("x", grid.x, _axis("x")),
        "time_start": ("sample", starts, {"long_name": "first day of the composite"}),
        "time_end": ("sample", ends, {"long_name": "last day of the composite"}),
        "place": ("sample", np.array([place] * len(periods)), {"long_name": "place"}),
    }
    title = "Simulated SIF and MODIS composites (OSSE): synthetic, not observed"
    return xr.Dataset(variables, coordinates, {"crs": grid.crs, "title": title})


def _axis(name: str) -> dict[str, str]:
    standard_name = f"projection_{name}_coordinate"
    return {"units": "m", "standard_name": standard_name, "long_name": f"{name} of the cell centre"}


def _check_window(
    height_px: int,
    width_px: int,
    pixel_m: float,
    fine_factor: int,
    west_m: float,
    north_m: float,
    crs: str,
    place: str,
) -> None:
    for name, count in (("height_px", height_px), ("width_px", width_px), ("fine_factor", fine_factor)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, found {count}; give a positive whole number")
    if not (math.isfinite(pixel_m) and pixel_m > 0):
        raise ValueError(f"pixel_m must be above 0, found {pixel_m}; give the native cell size in metres")
    for name, edge in (("west_m", west_m), ("north_m", north_m)):
        if not math.isfinite(edge):
            raise ValueError(f"{name} must be finite, found {edge}; give the window's outer edge in metres")
    for name, text in (("crs", crs), ("place", place)):
        if not text.strip():
            raise ValueError(f"{name} must not be empty, found {text!r}; give a name")


def _check_periods(periods: Sequence[Period]) -> None:
    if not periods:
        raise ValueError("periods must not be empty, found 0; give at least one (first day, last day)")
    for first, last in periods:
        if last < first:
            raise ValueError(f"a period must not end before it starts, found {first} to {last}; swap them")
    for (_, last), (first, _) in itertools.pairwise(periods):
        if first <= last:
            raise ValueError(f"periods must be in order and apart, found {first} after {last}; sort them")


def _check_noise(seed: int, sounding_noise: float, soundings_per_cell: float, missing_share: float) -> None:
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}; give 0 or more")
    if not (math.isfinite(sounding_noise) and sounding_noise >= 0):
        raise ValueError(f"sounding_noise must be 0 or more, found {sounding_noise}; give a finite sd")
    if not 0 < soundings_per_cell <= _MAX_SOUNDINGS_PER_CELL:
        raise ValueError(
            f"soundings_per_cell must be in (0, {_MAX_SOUNDINGS_PER_CELL}], found {soundings_per_cell}; "
            "give the expected number"
        )
    if not 0 <= missing_share < 1:
        raise ValueError(
            f"missing_share must be in [0, 1), found {missing_share}; give a share, not per cent"
        )
