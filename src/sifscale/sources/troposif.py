"""TROPOSIF: the daily L2B granules of TROPOMI SIF (NetCDF-4), by whatever name, of S5P-PAL or the older archive.

Layout: group PRODUCT with 1-D variables over the soundings of a day (the orbits one after the other), and below
it SUPPORT_DATA with corners, angles and cloud fraction. Soundings carry no quality flag: the product has dropped
those beyond its own thresholds. Guanter et al. 2021, https://doi.org/10.5194/essd-13-5423-2021.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import xarray as xr

from sifscale.sources import SourceError
from sifscale.sources.granule import (
    Selection,
    decode_times,
    find_variable,
    open_hdf5,
    read_floats,
    text_attribute,
    time_span,
)
from sifscale.sources.soundings import Area, GranuleInfo, TimeArray, day_length_factor, soundings_dataset

PRODUCT = "TROPOSIF"
_LONGITUDE, _LATITUDE = "PRODUCT/longitude", "PRODUCT/latitude"
_TIME, _DELTA_TIME = "PRODUCT/time", "PRODUCT/delta_time"
_GEOLOCATIONS = "PRODUCT/SUPPORT_DATA/GEOLOCATIONS"
_OPTIONAL = {
    "cloud_fraction": "PRODUCT/SUPPORT_DATA/INPUT_DATA/cloud_fraction_L2",
    "solar_zenith": f"{_GEOLOCATIONS}/solar_zenith_angle",
    "view_zenith": f"{_GEOLOCATIONS}/viewing_zenith_angle",
}
_BANDS_NM = (743, 735)


def read_troposif(
    path: Path, *, band: int = 743, day_length_corrected: bool = False, area: Area | None = None
) -> xr.Dataset:
    """Soundings (sounding, corner = 4) of one granule, those whose centre lies in the area or 0.5 deg around it.

    band: the retrieval window, 743 or 735 (both give SIF at 740 nm). day_length_corrected: SIF_Corr, the daily
    mean, instead of SIF; the file's error is that of SIF, and is scaled by SIF_Corr / SIF. Raises SourceError for a
    granule that cannot be used, ValueError for another band.
    """
    if band not in _BANDS_NM:
        raise ValueError(f"TROPOSIF has the bands 743 and 735, found {band}; use one of them")
    plain, corrected = f"PRODUCT/SIF_{band}", f"PRODUCT/SIF_Corr_{band}"
    name = corrected if day_length_corrected else plain
    with open_hdf5(path, PRODUCT) as file:
        selected = Selection.of_centres(file, _LONGITUDE, _LATITUDE, area)
        values = {
            "sif": selected.values(name),
            "sif_error": selected.values(f"PRODUCT/SIF_ERROR_{band}"),
            "longitude": selected.values(_LONGITUDE),
            "latitude": selected.values(_LATITUDE),
            "longitude_bounds": selected.corners(f"{_GEOLOCATIONS}/longitude_bounds", corner_axis=1),
            "latitude_bounds": selected.corners(f"{_GEOLOCATIONS}/latitude_bounds", corner_axis=1),
            **selected.present(_OPTIONAL),
        }
        if day_length_corrected:
            values["sif_error"] *= day_length_factor(values["sif"], selected.values(plain))
        time = _times(path, selected)
    return soundings_dataset(path, PRODUCT, name, values, time)


def inspect_troposif(path: Path) -> GranuleInfo:
    """Number of soundings and first and last time; reads only the times. Raises SourceError as read_troposif."""
    with open_hdf5(path, PRODUCT) as file:
        time = _times(path, Selection.of_centres(file, _LONGITUDE, _LATITUDE, None))
    return time_span(path, PRODUCT, time)


def _times(path: Path, selected: Selection) -> TimeArray:
    """Time of each selected sounding. delta_time counts on over midnight, so that it may exceed a day."""
    units = text_attribute(selected.file, _DELTA_TIME, "units")
    if "since" not in units:
        units = f"{units or 'milliseconds'} since {_first_day(path, selected.file)}"
    return decode_times(path, _DELTA_TIME, selected.values(_DELTA_TIME), units)


def _first_day(path: Path, file: h5py.File) -> str:
    """The day whose 00:00 delta_time counts from, out of the variable time (one value), as YYYY-MM-DD."""
    units = text_attribute(file, _TIME, "units")
    if "since" not in units:
        units = "seconds since 2010-01-01"
    value = np.ravel(read_floats(find_variable(file, _TIME), ()))[:1]
    day = decode_times(path, _TIME, value, units).astype("datetime64[D]")
    if np.isnat(day).any() or not len(day):
        raise SourceError(f"{path}: {_TIME} holds no time, and {_DELTA_TIME} no epoch; fetch it again")
    return str(day[0])
