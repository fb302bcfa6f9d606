"""Writes the truth behind the simulated granules: one CF NetCDF-4 file a composite, on the fine grid."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from pyproj import CRS

from sifscale.simulation import fields
from sifscale.simulation.fields import COVERS
from sifscale.simulation.world import Period, Scene, World

LONG_NAMES: Final = {
    "sif_truth": "true sun-induced chlorophyll fluorescence at 743 nm",
    "ndvi": "normalised difference vegetation index, without noise",
    "evi": "enhanced vegetation index, without noise",
    "red": "surface reflectance, red (MODIS band 1), without noise",
    "nir": "surface reflectance, near infrared (MODIS band 2), without noise",
    "blue": "surface reflectance, blue (MODIS band 3), without noise",
    "mir": "surface reflectance, mid infrared (MODIS band 7), without noise",
}


def truth_name(period: Period) -> str:
    """Name of the truth of a composite, by its first day."""
    return f"truth_{period[0]:%Y-%m-%d}.nc"


def write_truth(path: Path, world: World, scene: Scene, period: Period) -> None:
    """Write what is true in one composite, without the world's margin: (y, x), float32, and land cover as flags."""
    rows, columns = world.inner
    red, nir, blue = (scene.reflectance[band] for band in ("red", "nir", "blue"))
    layers = {"sif_truth": scene.sif, "ndvi": fields.ndvi(red, nir), "evi": fields.evi(red, nir, blue)}
    layers |= scene.reflectance
    bands = {
        name: (
            ("y", "x"),
            values[rows, columns].astype(np.float32),
            {
                "units": "mW m-2 sr-1 nm-1" if name == "sif_truth" else "1",
                "long_name": LONG_NAMES[name],
                "grid_mapping": "spatial_ref",
            },
        )
        for name, values in layers.items()
    }
    flags = {
        "long_name": "land cover",
        "flag_values": np.arange(len(COVERS), dtype=np.uint8),
        "flag_meanings": " ".join(cover.name for cover in COVERS),
        "grid_mapping": "spatial_ref",
    }
    grid = world.grid
    axes = {
        name: (name, centres, {"units": "m", "standard_name": f"projection_{name}_coordinate", "axis": name.upper()})
        for name, centres in (("y", grid.y[rows]), ("x", grid.x[columns]))
    }
    first, last = (np.datetime64(day, "ns") for day in period)
    coordinates = {
        **axes,
        "time_start": ((), first, {"long_name": "first day of the composite"}),
        "time_end": ((), last, {"long_name": "last day of the composite"}),
        "spatial_ref": ((), np.int32(0), CRS.from_user_input(grid.crs).to_cf()),
    }
    attrs = {"Conventions": "CF-1.11", "title": "Truth of a simulation (OSSE): synthetic, not observed"}
    cover = (("y", "x"), world.land.cover[rows, columns], flags)
    dataset = xr.Dataset({**bands, "land_cover": cover}, coordinates, attrs)
    packed: dict[str, object] = {"zlib": True, "complevel": 4, "shuffle": True}
    encoding: dict[Hashable, dict[str, object]] = {name: packed for name in dataset.data_vars}
    for time in ("time_start", "time_end"):
        encoding[time] = {"units": "days since 1970-01-01", "dtype": "int32"}
    dataset.to_netcdf(path, engine="h5netcdf", encoding=encoding)
