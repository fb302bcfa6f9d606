"""Writes TROPOSIF L2B daily granules (NetCDF-4), in the layout of the S5P-PAL archive.

Groups, variables, types and units as public readers of the product use them (Guanter et al. 2021,
doi:10.5194/essd-13-5423-2021). Not known, and thus chosen here: the names of the dimensions of corners and
wavelengths, and the classes of LC_MASK (IGBP).
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Final

import h5netcdf
import numpy as np
from numpy.typing import NDArray

from sifscale.simulation.soundings import (
    MAX_CLOUD_FRACTION,
    MAX_SOLAR_ZENITH_DEG,
    MAX_VIEW_ZENITH_DEG,
    WAVELENGTHS_NM,
    Columns,
)

_SIF_UNITS: Final = "mW m-2 sr-1 nm-1"
_GEOLOCATIONS: Final = "PRODUCT/SUPPORT_DATA/GEOLOCATIONS"
_RESULTS: Final = "PRODUCT/SUPPORT_DATA/DETAILED_RESULTS"
_INPUT: Final = "PRODUCT/SUPPORT_DATA/INPUT_DATA"
_EPOCH: Final = datetime.date(2010, 1, 1)

# name: (group, type, second dimension or "", units, long name)
VARIABLES: Final = {
    "latitude": ("PRODUCT", "f4", "", "degrees_north", "latitude of the ground pixel's centre"),
    "longitude": ("PRODUCT", "f4", "", "degrees_east", "longitude of the ground pixel's centre"),
    **{
        f"{name}_{window_nm}": ("PRODUCT", "f4", "", _SIF_UNITS, f"{text}, fit window 743 or 735 to 758 nm")
        for window_nm in (743, 735)
        for name, text in (
            ("SIF", "sun-induced fluorescence at 740 nm"),
            ("SIF_Corr", "daily mean of sun-induced fluorescence at 740 nm, day-length corrected"),
            ("SIF_ERROR", "1-sigma error of sun-induced fluorescence at 740 nm"),
        )
    },
    "latitude_bounds": (_GEOLOCATIONS, "f4", "ncorner", "degrees_north", "latitude of the ground pixel's corners"),
    "longitude_bounds": (_GEOLOCATIONS, "f4", "ncorner", "degrees_east", "longitude of the ground pixel's corners"),
    "solar_zenith_angle": (_GEOLOCATIONS, "f4", "", "degree", "solar zenith angle"),
    "viewing_zenith_angle": (_GEOLOCATIONS, "f4", "", "degree", "viewing zenith angle"),
    "relative_azimuth_angle": (_GEOLOCATIONS, "f4", "", "degree", "azimuth of view less azimuth of the sun"),
    "Mean_TOA_RAD_743": (_RESULTS, "f4", "", _SIF_UNITS, "mean radiance in the fit window, top of the atmosphere"),
    "TOA_RFL": (_RESULTS, "f4", "nwvl", "1", "reflectance, top of the atmosphere"),
    "cloud_fraction_L2": (_INPUT, "f4", "", "1", "cloud fraction"),
    "LC_MASK": (_INPUT, "u1", "", "1", "land cover class (IGBP)"),
}


def granule_name(day: datetime.date) -> str:
    """Name of the granule of a UTC day."""
    return f"TROPOSIF_L2B_{day:%Y-%m-%d}.nc"


def write_troposif(path: Path, day: datetime.date, columns: Columns) -> None:
    """Write one granule; `columns` as from `observe_day`. Fill values are stored, but not declared, as upstream."""
    with h5netcdf.File(path, "w") as file:
        file.attrs["title"] = "TROPOSIF L2B daily granule: simulated (OSSE), not observed"
        product = file.create_group("PRODUCT")
        # HDF5 dimensions of the group are seen in all groups below it.
        number = len(columns["delta_time"])
        product.dimensions = {"n_elem": number, "time": 1, "ncorner": 4, "nwvl": len(WAVELENGTHS_NM)}
        for group in (_GEOLOCATIONS, _RESULTS, _INPUT):
            file.create_group(group)
        seconds = np.array([(day - _EPOCH).days * 86_400], np.int32)
        _put(product, "time", ("time",), seconds, f"seconds since {_EPOCH} 00:00:00", "reference time of the day")
        milliseconds = np.asarray(columns["delta_time"], np.int32)
        _put(product, "delta_time", ("n_elem",), milliseconds, f"milliseconds since {day} 00:00:00", "time of sounding")
        for name, (group, kind, second, units, text) in VARIABLES.items():
            dims = ("n_elem", second) if second else ("n_elem",)
            _put(file[group], name, dims, columns[name].astype(kind), units, text)
        wavelengths = np.array(WAVELENGTHS_NM, np.float32)
        _put(file[_RESULTS], "WVL_RFL", ("nwvl",), wavelengths, "nm", "wavelengths of TOA_RFL")
        file.create_group("METADATA/ALGORITHM_SETTINGS").attrs.update(
            {
                "Cloud fraction threshold": MAX_CLOUD_FRACTION,
                "SZA threshold": MAX_SOLAR_ZENITH_DEG,
                "VZA threshold": MAX_VIEW_ZENITH_DEG,
                "Quality level threshold": 80.0,
                "SIF reference wavelength (nm)": 740.0,
            }
        )


def _put(
    group: h5netcdf.Group, name: str, dims: tuple[str, ...], values: NDArray[np.generic], units: str, text: str
) -> None:
    variable = group.create_variable(
        name, dims, values.dtype, data=values, compression="gzip", compression_opts=4, shuffle=True
    )
    variable.attrs["units"] = units
    variable.attrs["long_name"] = text
