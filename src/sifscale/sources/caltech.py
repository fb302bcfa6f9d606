"""Caltech's ungridded TROPOMI SIF: daily NetCDF-4 granules with all variables in the root group.

Layout: 1-D variables over the soundings, corners (4, sounding), TIME in seconds since 1970, SIF at 740 nm.
Köhler et al. 2018, https://doi.org/10.1029/2018GL079031; granules: CaltechDATA 8hm1f-w5492.
"""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from sifscale.sources.granule import Selection, decode_times, open_hdf5, text_attribute, time_span
from sifscale.sources.soundings import Area, GranuleInfo, TimeArray, soundings_dataset

PRODUCT = "Caltech TROPOMI SIF"
_FACTOR = "daily_correction_factor"
# redSIF granules, for instance, have fewer variables than those of far-red SIF.
_OPTIONAL = {"sif_error": "sif_err", "cloud_fraction": "cloud_fraction", "solar_zenith": "sza", "view_zenith": "vza"}


def read_caltech(path: Path, *, day_length_corrected: bool = False, area: Area | None = None) -> xr.Dataset:
    """Soundings (sounding, corner = 4) of one granule, those whose centre lies in the area or 0.5 deg around it.

    day_length_corrected: dcSIF, the daily mean, instead of sif; the file's error is that of sif, and is scaled by
    daily_correction_factor. Raises SourceError for a granule that cannot be used.
    """
    name = "dcSIF" if day_length_corrected else "sif"
    with open_hdf5(path, PRODUCT) as file:
        selected = Selection.of_centres(file, "lon", "lat", area)
        values = {
            "sif": selected.values(name),
            "longitude": selected.values("lon"),
            "latitude": selected.values("lat"),
            "longitude_bounds": selected.corners("lon_bnds", corner_axis=0),
            "latitude_bounds": selected.corners("lat_bnds", corner_axis=0),
            **selected.present(_OPTIONAL),
        }
        if day_length_corrected and "sif_error" in values:
            values["sif_error"] *= selected.values(_FACTOR)
        time = _times(path, selected)
    return soundings_dataset(path, PRODUCT, name, values, time)


def inspect_caltech(path: Path) -> GranuleInfo:
    """Number of soundings and first and last time; reads only the times. Raises SourceError as read_caltech."""
    with open_hdf5(path, PRODUCT) as file:
        time = _times(path, Selection.of_centres(file, "lon", "lat", None))
    return time_span(path, PRODUCT, time)


def _times(path: Path, selected: Selection) -> TimeArray:
    units = text_attribute(selected.file, "TIME", "units")
    if "since" not in units:
        units = "seconds since 1970-01-01"
    return decode_times(path, "TIME", selected.values("TIME"), units)
