"""Where the cells of a CF dataset lie: which dimensions are x and y, their lattice, and the CRS that is stated."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import numpy as np
import xarray as xr
from pyproj import CRS
from pyproj.exceptions import CRSError

from sifscale.sources import SourceError

_TOLERANCE_CELLS = 0.01
_ANGLES = {
    "x": ("longitude", "lon", "degrees_east", "degree_east"),
    "y": ("latitude", "lat", "degrees_north", "degree_north"),
}
_CRS_ATTRIBUTES = ("crs_wkt", "spatial_ref", "grid_mapping_name")
_AXIS_NAMES = {"x": ("projection_x_coordinate", "x"), "y": ("projection_y_coordinate", "y")}


def spatial_dimension(path: Path, field: xr.DataArray, axis: str) -> Hashable:
    """The dimension of a field that runs along `axis` (x or y); SourceError if none does."""
    for name, coordinate in field.coords.items():
        stated = coordinate.attrs.get("standard_name") in _AXIS_NAMES[axis] or _is_angle(coordinate, axis)
        if coordinate.dims == (name,) and (stated or str(name).lower() in _AXIS_NAMES[axis]):
            return name
    raise SourceError(
        f"{path}: {field.name} has no coordinate along {axis}; dimensions {dict(field.sizes)}, coordinates "
        f"{', '.join(map(str, field.coords)) or 'none'}; a swath must be gridded first"
    )


def _is_angle(coordinate: xr.DataArray, axis: str) -> bool:
    """Whether this is longitude (axis x) or latitude (y), by standard name, unit or name."""
    words = (coordinate.attrs.get("standard_name"), coordinate.attrs.get("units"), str(coordinate.name).lower())
    return any(word in _ANGLES[axis] for word in words)


def lattice(path: Path, coordinate: xr.DataArray) -> tuple[float, float, int]:
    """Lower outer edge, step and direction (1 rising, -1 falling) of regular cell centres (n,), in their unit.

    Raises SourceError for fewer than two centres and for steps that differ by more than 1 % of a cell.
    """
    centres = np.asarray(coordinate.values, np.float64)
    if len(centres) < 2:
        raise SourceError(f"{path}: coordinate {coordinate.name} has {len(centres)} value; the cell size needs two")
    step = (centres[-1] - centres[0]) / (len(centres) - 1)
    off_cells = np.abs(centres - (centres[0] + step * np.arange(len(centres)))).max() / abs(step) if step else np.nan
    if not off_cells <= _TOLERANCE_CELLS:  # also where a centre is NaN
        raise SourceError(
            f"{path}: coordinate {coordinate.name} is not regular to {_TOLERANCE_CELLS:.0%} of a cell (found "
            f"{off_cells:.3g} cells at a step of {step:.6g}); regrid the file first"
        )
    return float(min(centres[0], centres[-1]) - abs(step) / 2), float(abs(step)), 1 if step > 0 else -1


def stated_crs(path: Path, dataset: xr.Dataset, field: xr.DataArray, x: Hashable, y: Hashable) -> CRS | None:
    """The CRS that a CF file states (grid mapping, or longitude and latitude as coordinates), or None.

    Raises SourceError for a grid mapping that is no CRS. Source: CF conventions, section 5.6.
    """
    # CF also allows "mapping: coordinates"; many writers set no attribute but use one of the two usual names.
    mapping = str(field.attrs.get("grid_mapping", field.encoding.get("grid_mapping", ""))).split(":")[0]
    for name in (mapping, "spatial_ref", "crs"):
        if name in dataset.variables and any(key in dataset[name].attrs for key in _CRS_ATTRIBUTES):
            try:
                return CRS.from_cf(dataset[name].attrs)
            except CRSError as error:
                detail = " ".join(str(error).split())
                raise SourceError(f"{path}: grid mapping {name} is no CRS ({detail}); repair it") from None
    return CRS("EPSG:4326") if _is_angle(dataset[x], "x") and _is_angle(dataset[y], "y") else None
