"""The cube: composites on grids as a CF Zarr v3 store, written whole or not at all, and opened lazily."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from pyproj import CRS
from zarr.errors import ZarrUserWarning

from sifscale.grid import Grid

# Offered here too, because who writes a cube names its input files by hash.
from sifscale.sources import file_sha256 as file_sha256

_DIMS = ("sample", "y", "x")
_CHUNK_PX = 256
_TIME_ENCODING = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian", "dtype": "int64"}


@dataclass(frozen=True)
class Cube:
    """An open cube: lazy datasets with dims (sample, y, x), the content hash and the root attributes."""

    path: Path
    native: xr.Dataset
    fine: xr.Dataset | None
    hash: str
    attrs: dict[str, str]


def write_cube(
    path: Path,
    native: xr.Dataset,
    grid: Grid,
    fine: xr.Dataset | None,
    fine_grid: Grid | None,
    attrs: Mapping[str, str],
) -> str:
    """Write a cube at `path` (Zarr v3, CF 1.11) and return its content hash, also root attribute `cube_hash`.

    native, fine: variables (sample, y, x) on `grid` and on `fine_grid`, an integer refinement of it; NumPy or
    Dask. attrs: root attributes, e.g. `input_files` (JSON of {file name: sha256}). A cube already at
    `path` is replaced only when the new one is complete; after a fault it is as it was.
    Raises ValueError for variables that are not on the grid and for a `path` taken by something else.
    """
    groups = {"/native": _with_cf_metadata(native, grid, "native")}
    if fine is not None and fine_grid is not None:
        _check_refinement(grid, fine_grid)
        groups["/fine"] = _with_cf_metadata(fine, fine_grid, "fine")
    elif fine is not None or fine_grid is not None:
        raise ValueError("a fine group needs both its dataset and its grid; give both or neither")
    if path.exists() and "cube_hash" not in _root_attrs(path):
        raise ValueError(f"{path} exists and is no cube, thus not replaced; choose another path")
    root = xr.Dataset(attrs={"Conventions": "CF-1.11", **attrs})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        xr.DataTree.from_dict({"/": root, **groups}).to_zarr(
            partial,
            mode="w-",
            zarr_format=3,
            consolidated=False,
            encoding={name: _encoding(dataset) for name, dataset in groups.items()},
        )
        # What is on disk is hashed, so that a cube can be checked against its own name later.
        digest = content_hash(xr.open_datatree(partial, engine="zarr", consolidated=False, chunks=None))
        zarr.open_group(partial, mode="r+").attrs["cube_hash"] = digest
        _consolidate(partial)
        _move_into_place(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digest


def open_cube(path: Path) -> Cube:
    """Open a cube lazily, on Dask chunks as stored. ValueError if there is no complete cube at `path`."""
    attrs = _root_attrs(path)
    if "cube_hash" not in attrs:
        found = "is no cube" if path.exists() else "does not exist"
        raise ValueError(f"{path} {found} (a group with attribute cube_hash); build it with build.py")
    tree = xr.open_datatree(path, engine="zarr", chunks={})
    fine = tree["fine"].to_dataset() if "fine" in tree.children else None
    return Cube(path, tree["native"].to_dataset(), fine, attrs["cube_hash"], attrs)


def content_hash(tree: xr.DataTree) -> str:
    """SHA-256 over names, dims, shapes, dtypes, values and attributes of all groups, whatever the chunks.

    The root attribute `cube_hash` is left out; the order of variables, of attributes and of groups does not
    matter, every NaN is the same NaN. Values are read one sample at a time.
    """
    digest = hashlib.sha256()
    for node in sorted(tree.subtree, key=lambda node: node.path):
        attrs = {key: value for key, value in node.attrs.items() if key != "cube_hash"}
        digest.update(_canonical([node.path, attrs]))
        for name in sorted(map(str, node.variables)):
            variable = node.variables[name]
            kind = "text" if variable.dtype.kind in "OUT" else variable.dtype.str.lstrip("<>|=")
            digest.update(_canonical([name, variable.dims, variable.shape, kind, dict(variable.attrs)]))
            parts = variable if variable.ndim > 1 else [variable]
            for part in parts:
                digest.update(_canonical_bytes(np.asarray(part)))
    return digest.hexdigest()


def _with_cf_metadata(dataset: xr.Dataset, grid: Grid, group: str) -> xr.Dataset:
    """The dataset with the grid's coordinates, its grid mapping and chunks; attributes of bands are kept."""
    dataset = dataset.drop_encoding()
    for name, band in dataset.data_vars.items():
        if band.dims != _DIMS or band.shape[1:] != (grid.height, grid.width):
            raise ValueError(
                f"{group} variable {name} has dims {dict(band.sizes)} but the grid is y={grid.height}, "
                f"x={grid.width}; give (sample, y, x) on the grid"
            )
    for axis, centres, step in (("x", grid.x, grid.dx), ("y", grid.y, grid.dy)):
        if axis in dataset.coords and not np.allclose(dataset[axis], centres, rtol=0, atol=0.01 * step):
            raise ValueError(f"{group} coordinate {axis} is not that of the grid; build both from one Grid")
    dataset = dataset.assign_coords(
        x=("x", grid.x, _axis_attrs(grid.crs, "x")),
        y=("y", grid.y, _axis_attrs(grid.crs, "y")),
        spatial_ref=((), np.int32(0), _grid_mapping(grid)),
    )
    for name, coordinate in dataset.coords.items():
        # Zarr v3 specifies variable-length text only.
        kept = coordinate.astype(object) if coordinate.dtype.kind == "U" else coordinate
        dataset = dataset.assign_coords({name: kept.compute()})
    chunks = _chunks(dataset)
    bands = {}
    for name, band in dataset.data_vars.items():
        variable = band.variable.copy(deep=False)
        variable.attrs = band.attrs | {"grid_mapping": "spatial_ref"}
        # Dask blocks must be those of the store, or two tasks would write into one chunk.
        bands[name] = variable if variable.chunks is None else variable.chunk(chunks)
    return dataset.assign(bands)


def _axis_attrs(crs: str, axis: str) -> dict[str, str]:
    """CF attributes of a horizontal coordinate; ValueError if the CRS is neither geographic nor projected."""
    parsed = CRS.from_user_input(crs)
    if parsed.is_geographic:
        name, units = ("longitude", "degrees_east") if axis == "x" else ("latitude", "degrees_north")
    elif parsed.is_projected:
        unit = parsed.axis_info[0].unit_name
        name, units = f"projection_{axis}_coordinate", "m" if unit == "metre" else unit
    else:
        raise ValueError(f"CRS {crs!r} is neither geographic nor projected; give one such as EPSG:4326")
    return {"standard_name": name, "long_name": name.replace("_", " "), "units": units, "axis": axis.upper()}


def _grid_mapping(grid: Grid) -> dict[str, Any]:
    mapping: dict[str, Any] = CRS.from_user_input(grid.crs).to_cf()
    corner = (grid.west, grid.dx, 0.0, grid.north, 0.0, -grid.dy)
    # GDAL reads spatial_ref and GeoTransform, CF readers crs_wkt and the coordinates.
    return mapping | {"spatial_ref": mapping["crs_wkt"], "GeoTransform": " ".join(map(repr, corner))}


def _chunks(dataset: xr.Dataset) -> dict[str, int]:
    return {"sample": 1} | {axis: min(_CHUNK_PX, dataset.sizes[axis]) for axis in ("y", "x")}


def _encoding(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    chunks = tuple(_chunks(dataset).values())
    encoding: dict[str, dict[str, Any]] = {str(name): {"chunks": chunks} for name in dataset.data_vars}
    for name, coordinate in dataset.coords.items():
        if coordinate.dtype.kind == "M":
            encoding[str(name)] = dict(_TIME_ENCODING)
    # CF allows no missing values in coordinate variables.
    return encoding | {axis: {"_FillValue": None} for axis in ("y", "x")}


def _check_refinement(grid: Grid, fine_grid: Grid) -> None:
    factor = max(1, fine_grid.width // grid.width)
    expected = grid.refine(factor)
    same_shape = (expected.height, expected.width) == (fine_grid.height, fine_grid.width)
    # The outer edges must agree to 1 % of a fine cell, or blocks of fine pixels would not be native cells.
    edges_px = np.array(
        [
            (fine_grid.west - grid.west) / expected.dx,
            (fine_grid.north - grid.north) / expected.dy,
            (fine_grid.dx / expected.dx - 1) * expected.width,
            (fine_grid.dy / expected.dy - 1) * expected.height,
        ]
    )
    if not same_shape or fine_grid.crs != grid.crs or (np.abs(edges_px) > 0.01).any():
        raise ValueError(f"fine grid {fine_grid} is no integer refinement of {grid}; use Grid.refine")


def _root_attrs(path: Path) -> dict[str, str]:
    """Root attributes of the Zarr group at `path`; empty if there is none."""
    metadata = path / "zarr.json"
    if not metadata.is_file():
        return {}
    attrs: dict[str, str] = json.loads(metadata.read_text()).get("attributes", {})
    return attrs


def _consolidate(path: Path) -> None:
    """Copy all metadata to the root, which opens faster and is what xarray looks for first."""
    with warnings.catch_warnings():
        # Readers that do not know this extension of Zarr v3 ignore it, so its warning helps nobody.
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", ZarrUserWarning)
        zarr.consolidate_metadata(path)


def _canonical(description: list[Any]) -> bytes:
    return json.dumps(description, sort_keys=True, default=lambda value: np.asarray(value).tolist()).encode()


def _canonical_bytes(values: NDArray[Any]) -> bytes:
    if values.dtype.kind in "OUT":
        return _canonical([[str(value) for value in values.ravel()]])
    if values.dtype.kind == "M":
        values = values.astype("datetime64[ns]").astype(np.int64)
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), values.dtype.type(np.nan), values)
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def _move_into_place(partial: Path, path: Path) -> None:
    """Rename a complete cube to its final name; an old one steps aside, as directories cannot be replaced."""
    if not path.exists():
        os.replace(partial, path)
        return
    retired = path.with_name(f".{path.name}.{uuid.uuid4().hex}.replaced")
    os.replace(path, retired)
    try:
        os.replace(partial, path)
    except BaseException:
        os.replace(retired, path)
        raise
    shutil.rmtree(retired)
