"""Soundings: what their readers share: the area, the dataset and its checks, the quality filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sifscale.sources import SourceError

FloatArray = NDArray[np.float64]
TimeArray = NDArray[np.datetime64]

SIF_UNITS = "mW m-2 sr-1 nm-1"
# A footprint whose centre is this far outside still reaches in: TROPOMI's are at most 15 km wide.
MARGIN_DEG = 0.5
# netCDF's default fill is 9.97e36; TROPOSIF has it in SIF_735 without declaring it.
FILL_FROM = 1e30
_ABSURD_SIF, _ABSURD_SHARE = 30.0, 0.01
_JUDGED_FROM = 10  # fewer soundings in the area say nothing about their granule
# {variable: (dimensions, dtype, units, long name, least and greatest possible value)}; what lies beyond is a fill.
# Corners beyond the dateline may count on past -180 or 180.
_ONE, _CORNERS = ("sounding",), ("sounding", "corner")
_VARIABLES: dict[str, tuple[tuple[str, ...], Any, str, str, float, float]] = {
    "sif": (_ONE, np.float32, SIF_UNITS, "sun-induced chlorophyll fluorescence", -np.inf, np.inf),
    "sif_error": (_ONE, np.float32, SIF_UNITS, "1-sigma error of sif", 0, np.inf),
    "longitude": (_ONE, np.float64, "degrees_east", "longitude of the footprint's centre", -360, 360),
    "latitude": (_ONE, np.float64, "degrees_north", "latitude of the footprint's centre", -90, 90),
    "longitude_bounds": (_CORNERS, np.float64, "degrees_east", "longitude of the footprint's corners", -360, 360),
    "latitude_bounds": (_CORNERS, np.float64, "degrees_north", "latitude of the footprint's corners", -90, 90),
    "cloud_fraction": (_ONE, np.float32, "1", "cloud fraction", 0, 1),
    "solar_zenith": (_ONE, np.float32, "degree", "solar zenith angle", 0, 180),
    "view_zenith": (_ONE, np.float32, "degree", "viewing zenith angle", 0, 90),
}


@dataclass(frozen=True)
class Area:
    """A box of longitude (-180..360) and latitude in degrees; west > east means across the dateline."""

    west: float
    south: float
    east: float
    north: float

    def __post_init__(self) -> None:
        inside = all(-180 <= value <= 360 for value in (self.west, self.east)) and self.west != self.east
        if not (inside and -90 <= self.south < self.north <= 90):
            raise ValueError(f"{self} is no area; give south < north in -90..90, west and east apart in -180..360")

    def contains(self, longitude: FloatArray, latitude: FloatArray, margin_deg: float = 0.0) -> NDArray[np.bool_]:
        """Which points (degrees, any shape) lie in the area widened by margin_deg; NaN lies nowhere.

        Longitudes may count from -180 or from 0: only their difference modulo 360 matters.
        """
        width_deg = self.east - self.west + (360 if self.west > self.east else 0)
        eastward_deg = (longitude - self.west + margin_deg) % 360
        within = eastward_deg <= width_deg + 2 * margin_deg
        return within & (latitude >= self.south - margin_deg) & (latitude <= self.north + margin_deg)


@dataclass(frozen=True)
class GranuleInfo:
    """What a granule holds: its product, first and last time (UTC) and number of soundings."""

    path: Path
    product: str
    start: np.datetime64
    end: np.datetime64
    soundings: int


@dataclass(frozen=True)
class Quality:
    """Which soundings to keep, limits included: SIF and its error in mW m-2 sr-1 nm-1; None is no limit."""

    max_cloud_fraction: float | None = None
    max_solar_zenith_deg: float | None = None
    max_view_zenith_deg: float | None = None
    max_error: float | None = None
    valid_range: tuple[float, float] = (-np.inf, np.inf)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.startswith("max_") and value is not None and not value >= 0:
                raise ValueError(f"{name} must be at least 0, found {value}; use None for no limit")
        if not self.valid_range[0] < self.valid_range[1]:
            raise ValueError(f"valid_range must rise, found {self.valid_range}; give (least, greatest) SIF")


def filter_soundings(soundings: xr.Dataset, quality: Quality) -> tuple[xr.Dataset, dict[str, int]]:
    """The soundings (dimension sounding) that pass, and how many each filter removed, in the order of the filters.

    A sounding counts for the first filter that removes it: missing (sif, a bound or the time), range,
    cloud_fraction, solar_zenith, view_zenith, error. NaN fails a filter that has a limit. Raises ValueError for
    a limit on what the product does not have.
    """
    limits = {
        "cloud_fraction": ("cloud_fraction", quality.max_cloud_fraction),
        "solar_zenith": ("solar_zenith", quality.max_solar_zenith_deg),
        "view_zenith": ("view_zenith", quality.max_view_zenith_deg),
        "error": ("sif_error", quality.max_error),
    }
    sif = soundings["sif"].values
    present = np.isfinite(sif) & ~np.isnat(soundings["time"].values)
    for name in ("longitude_bounds", "latitude_bounds"):
        present &= np.isfinite(soundings[name].values).all(axis=1)
    passes = {"missing": present, "range": (sif >= quality.valid_range[0]) & (sif <= quality.valid_range[1])}
    for rule, (name, limit) in limits.items():
        if limit is None:
            passes[rule] = np.ones(len(sif), np.bool_)
        elif name not in soundings or soundings[name].attrs.get("absent"):
            raise ValueError(f"product {soundings.attrs['product']} has no {name}; take its limit {limit:g} away")
        else:
            passes[rule] = soundings[name].values <= limit
    kept, removed = np.ones(len(sif), np.bool_), {}
    for rule, passing in passes.items():
        removed[rule] = int((kept & ~passing).sum())
        kept &= passing
    return soundings.isel(sounding=np.flatnonzero(kept)), removed


def soundings_dataset(
    path: Path, product: str, variable: str, values: Mapping[str, FloatArray], time: TimeArray
) -> xr.Dataset:
    """The dataset of all readers: dimensions sounding and corner, NaN where a value is missing or impossible.

    variable: the file's name of what becomes sif. values: {name: (sounding,) or (sounding, 4)} in the units of
    the contract; without sif_error, it is NaN and marked absent. time: (sounding,). Raises SourceError if all SIF or
    all bounds of ten or more soundings are missing, or if more than 1 % of SIF is beyond +-30 mW m-2 sr-1 nm-1.
    """
    data: dict[str, Any] = {"time": (_ONE, time.astype("datetime64[ns]"), {"long_name": "time of the sounding, UTC"})}
    for name, (dims, dtype, units, long_name, least, greatest) in _VARIABLES.items():
        attrs: dict[str, Any] = {"units": units, "long_name": long_name}
        field = values.get(name)
        if field is None and name == "sif_error":
            field, attrs["absent"] = np.full(len(time), np.nan), 1
        if field is not None:
            possible = (field >= least) & (field <= greatest) & (np.abs(field) < FILL_FROM)
            data[name] = (dims, np.where(possible, field, np.nan).astype(dtype), attrs)
    soundings = xr.Dataset(data, attrs={"product": product})
    soundings["sif"].attrs["source_variable"] = variable
    if len(time) >= _JUDGED_FROM:
        _check_values(path, variable, soundings)
    return soundings


def day_length_factor(corrected: FloatArray, plain: FloatArray) -> FloatArray:
    """Factor from the SIF of a moment to its daily mean, (sounding,); NaN where SIF is 0 or missing."""
    factor = np.full(len(plain), np.nan)
    np.divide(corrected, plain, out=factor, where=plain != 0)
    return factor


def _check_values(path: Path, variable: str, soundings: xr.Dataset) -> None:
    sif = soundings["sif"].values
    finite = sif[np.isfinite(sif)]
    if not len(finite):
        raise SourceError(f"{path}: {variable} is all fill in the {len(sif)} soundings read; leave the granule out")
    for name in ("longitude_bounds", "latitude_bounds"):
        if np.isnan(soundings[name].values).all():
            raise SourceError(f"{path}: {name} are all missing in the {len(sif)} soundings read; fetch it again")
    absurd = np.abs(finite) > _ABSURD_SIF
    if absurd.mean() > _ABSURD_SHARE:
        raise SourceError(
            f"{path}: {absurd.mean():.1%} of {variable} is beyond +-{_ABSURD_SIF:g} {SIF_UNITS}, such as "
            f"{finite[absurd][0]:g}; check its units and fill value"
        )
