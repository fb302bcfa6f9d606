"""Plain gridded rasters (GeoTIFF, NetCDF-4, Zarr): one variable as a north-up float32 field and its grid."""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from sifscale.grid import Grid
from sifscale.sources import SourceError
from sifscale.sources.cf_grid import lattice, spatial_dimension, stated_crs

_TIFF = (".tif", ".tiff")
_CF = (".nc", ".nc4", ".zarr")
# Fill values that no attribute declares, such as the netCDF default of 9.969e36.
_LARGEST_VALUE = 1e30


def read_raster(
    path: Path,
    *,
    variable: str | int | None,
    nodata: float | None,
    crs: str | None,
    scale: float = 1.0,
    time_index: int | None = None,
) -> tuple[xr.DataArray, Grid]:
    """Read one variable as a field (y, x), float32, NaN = missing, y from north to south, with its grid.

    variable: band description or number (from 1) of a GeoTIFF, variable name of NetCDF and Zarr; None where the
    file has only one. nodata: a missing value that the file does not declare, as stored. scale: factor on the
    decoded value (_FillValue, scale_factor and add_offset are honoured first); the file's unit is kept only with a
    scale of 1. crs: counts only where neither file nor longitude and latitude tell one. time_index: which
    layer (from 0) of a third dimension longer than 1.

    Raises SourceError, one line with file, fault and remedy, for whatever cannot be read in this way, and
    ValueError for arguments that no file could satisfy.
    """
    if not (np.isfinite(scale) and scale != 0):
        raise ValueError(f"scale must be a finite factor other than 0, found {scale}")
    if _suffix(path, (*_TIFF, *_CF)) in _TIFF:
        if time_index is not None:
            raise ValueError(f"{path}: time_index={time_index}, but a GeoTIFF has bands; name one by variable")
        values, grid, name, attrs = _read_geotiff(path, variable, nodata, crs)
    else:
        values, grid, name, attrs = _read_dataset(path, variable, nodata, crs, time_index)
    field = to_float32(values, scale)
    if np.isnan(field).all():
        raise SourceError(f"{path}: variable {name} is missing everywhere; check nodata, time_index and the file")
    if scale != 1:
        attrs.pop("units", None)
    return xr.DataArray(field, {"y": grid.y, "x": grid.x}, ("y", "x"), name, attrs), grid


def list_variables(path: Path) -> tuple[str, ...]:
    """What read_raster can be asked for: band descriptions (or numbers), or variables of two dimensions and more.

    Raises SourceError if the file cannot be opened.
    """
    if _suffix(path, (*_TIFF, *_CF)) in _TIFF:
        with _open_geotiff(path) as source:
            return _bands(source)
    with open_dataset(path) as dataset:
        return _fields(dataset)


def open_dataset(path: Path) -> xr.Dataset:
    """Open a NetCDF-4 file or Zarr store lazily and uncached: fills and scales decoded, times left as numbers.

    Raises SourceError for a path that is absent, may not be read, or is no complete file of its kind.
    """
    engine = "zarr" if _suffix(path, _CF) == ".zarr" else "h5netcdf"
    try:
        # Consolidated metadata saves requests to a remote store; a local one may lack it, which xarray warns about.
        options: dict[str, Any] = {"consolidated": False} if engine == "zarr" else {}
        return xr.open_dataset(path, engine=engine, decode_times=False, cache=False, **options)
    # h5py and zarr have no common error of their own; these are what a broken file makes them raise.
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SourceError(f"{path}: cannot be opened by {engine} ({_one_line(error)}); fetch it again") from None


def to_float32(values: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Numbers of any shape times scale, as float32; NaN for infinite values and fills of 1e30 and more."""
    # Multiplied in float64, so that an integer of the file becomes the float32 nearest to its true value.
    numbers = np.asarray(values, np.float64)
    present = np.abs(numbers) < _LARGEST_VALUE
    return np.where(present, np.where(present, numbers, 0) * scale, np.nan).astype(np.float32)


def _suffix(path: Path, kinds: tuple[str, ...]) -> str:
    """The suffix of a readable file of one of these kinds; SourceError for any other."""
    if not path.exists():
        raise SourceError(f"{path}: no such file; check paths.raw and the window's file names")
    if not os.access(path, os.R_OK):
        raise SourceError(f"{path}: no permission to read it; change its mode or owner")
    if path.suffix.lower() not in kinds:
        raise SourceError(f"{path}: unknown kind of file {path.suffix!r}; give {', '.join(kinds)}")
    return path.suffix.lower()


def _open_geotiff(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # Whether a file without a georeference can be used is decided, and said, by _read_geotiff.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path)
    except RasterioError as error:
        raise SourceError(f"{path}: cannot be read as GeoTIFF ({_one_line(error)}); fetch it again") from None


def _bands(source: Any) -> tuple[str, ...]:
    return tuple(name or str(number) for number, name in enumerate(source.descriptions, 1))


def _read_geotiff(
    path: Path, variable: str | int | None, nodata: float | None, crs: str | None
) -> tuple[NDArray[np.float64], Grid, str, dict[str, Any]]:
    with _open_geotiff(path) as source:
        names, to_map = _bands(source), source.transform
        number = variable if isinstance(variable, int) else names.index(_chosen(path, variable, names)) + 1
        if not 1 <= number <= source.count:
            raise SourceError(f"{path}: no band {number}; found: 1 to {source.count} ({', '.join(names)})")
        if to_map.is_identity:
            raise SourceError(f"{path}: the file has no georeference; give it one with gdal_edit or gdalwarp")
        if to_map.b or to_map.d:
            raise SourceError(f"{path}: the grid is rotated, {tuple(to_map)[:6]}; warp it north-up with gdalwarp")
        try:
            stored = source.read(number, masked=True)
        except RasterioError as error:
            raise SourceError(f"{path}: band {number} cannot be read ({_one_line(error)}); fetch it again") from None
        missing = np.ma.getmaskarray(stored) | _equals(stored.data, nodata)
        decoded = stored.data.astype(np.float64) * source.scales[number - 1] + source.offsets[number - 1]
        name = _crs_name(path, CRS.from_user_input(source.crs) if source.crs else None, crs)
        unit = source.units[number - 1]
        height, width = stored.shape
    west, north = min(to_map.c, to_map.c + width * to_map.a), max(to_map.f, to_map.f + height * to_map.e)
    grid = Grid(name, west, north, abs(to_map.a), abs(to_map.e), height, width)
    values = np.where(missing, np.nan, decoded)[:: 1 if to_map.e < 0 else -1, :: 1 if to_map.a > 0 else -1]
    return values, grid, names[number - 1], {"units": unit} if unit else {}


def _read_dataset(
    path: Path, variable: str | int | None, nodata: float | None, crs: str | None, time_index: int | None
) -> tuple[NDArray[np.float64], Grid, str, dict[str, Any]]:
    if isinstance(variable, int):
        raise ValueError(f"{path}: variable {variable} is a number; name a variable of NetCDF and Zarr")
    with open_dataset(path) as dataset:
        name = _chosen(path, variable, _fields(dataset))
        field = dataset[name]
        y, x = (spatial_dimension(path, field, axis) for axis in ("y", "x"))
        field = _one_layer(path, field, (y, x), time_index)
        try:
            values = field.transpose(y, x).values
        except (OSError, RuntimeError, ValueError) as error:
            raise SourceError(f"{path}: {name} cannot be read ({_one_line(error)}); fetch it again") from None
        west, dx, step_x = lattice(path, dataset[x])
        south, dy, step_y = lattice(path, dataset[y])
        crs_name = _crs_name(path, stated_crs(path, dataset, field, x, y), crs)
    packing = field.encoding
    if nodata is not None:
        nodata = nodata * packing.get("scale_factor", 1) + packing.get("add_offset", 0)
    # xarray may unpack in float32; a hundredth of a packed step is more than its rounding, and no other number.
    within = 0.01 * abs(packing.get("scale_factor", 0))
    values = np.where(_equals(values, nodata, within), np.nan, values)[::-step_y, ::step_x]
    height, width = values.shape
    grid = Grid(crs_name, west, south + height * dy, dx, dy, height, width)
    attrs = {key: field.attrs[key] for key in ("units", "long_name", "flag_meanings") if field.attrs.get(key)}
    if "flag_values" in field.attrs:
        attrs["flag_values"] = np.ravel(field.attrs["flag_values"]).tolist()
    return values, grid, name, attrs


def _chosen(path: Path, variable: str | None, names: tuple[str, ...]) -> str:
    wanted = names[0] if variable is None and len(names) == 1 else variable
    if wanted is None or names.count(wanted) != 1:
        fault = "several variables, name one" if wanted is None or wanted in names else f"no variable {wanted}"
        raise SourceError(f"{path}: {fault}; found: {', '.join(names) or 'none'}")
    return wanted


def _fields(dataset: xr.Dataset) -> tuple[str, ...]:
    return tuple(str(name) for name, field in dataset.data_vars.items() if field.ndim > 1 and field.dtype.kind in "iuf")


def _one_layer(
    path: Path, field: xr.DataArray, spatial: tuple[Hashable, Hashable], time_index: int | None
) -> xr.DataArray:
    others = [dimension for dimension in field.dims if dimension not in spatial]
    long = [dimension for dimension in others if field.sizes[dimension] > 1]
    layers = field.sizes[long[0]] if long else 1
    if len(long) > 1 or (long and time_index is None) or not 0 <= (time_index or 0) < layers:
        raise SourceError(
            f"{path}: {field.name} has dimensions {dict(field.sizes)}, asked for time_index={time_index}; "
            f"give 0 to {layers - 1} along one dimension besides {spatial[0]} and {spatial[1]}"
        )
    return field.isel({dimension: (time_index or 0) if dimension in long else 0 for dimension in others})


def _crs_name(path: Path, stated: CRS | None, given: str | None) -> str:
    """EPSG code where there is one, so that equal systems have equal names; WKT otherwise."""
    if stated is None and given is None:
        raise SourceError(f"{path}: the file states no CRS; give it as crs")
    try:
        crs = stated or CRS.from_user_input(given)
    except CRSError as error:
        raise ValueError(f"crs {given!r} is no CRS ({_one_line(error)}); give one such as EPSG:4326") from None
    # Coordinates are x before y whatever the CRS says, so the same datum in either axis order is the same.
    code = 4326 if crs.to_authority() == ("OGC", "CRS84") else crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt())


def _equals(values: NDArray[Any], nodata: float | None, within: float = 0.0) -> NDArray[np.bool_]:
    """Where values are nodata, to the precision of float32 (the field is returned in it anyway) or `within`."""
    if nodata is None:
        return np.zeros(values.shape, np.bool_)
    with np.errstate(over="ignore"):  # nodata such as -1.8e308 becomes -inf, and so does the pixel
        same = values.astype(np.float32) == np.float32(nodata)
    return np.asarray(same | (np.abs(values - np.float64(nodata)) <= within))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
