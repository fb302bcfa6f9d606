"""The cube: composites on grids as a CF Zarr v3 store, written whole or not at all, and opened lazily."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from sifscale.whole import remove_leftovers, take_name, temporary

_DIMS = ("sample", "y", "x")
_CHUNK_PX = 256
_DEEP_CHUNK_PX = 32  # of a band that holds many values a pixel
_SHARD_PX = 1024
TIME_ENCODING = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian", "dtype": "int64"}


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
    grid: Grid | None,
    fine: xr.Dataset | None,
    fine_grid: Grid | None,
    attrs: Mapping[str, str],
) -> str:
    """Write a cube at `path` (Zarr v3, CF 1.11) and return its content hash, also root attribute `cube_hash`.

    native, fine: variables (sample, y, x) on `grid` and on `fine_grid`, an integer refinement of it, perhaps with
    more dims after these; NumPy or Dask. grid None: patches of many places, which have no common map coordinates.
    attrs: root attributes, e.g. `input_files` (JSON of {file name: sha256}). A cube already at `path` is replaced
    only when the new one is complete; after a fault it is as it was.
    Raises ValueError for variables that are not on the grid and for a `path` taken by something else.
    """
    with new_cube(path, native, grid, fine, fine_grid, attrs) as partial:
        pass
    return partial.hash


@dataclass
class PartialCube:
    """A cube being written, under a temporary name; ``hash`` is known when it is complete."""

    path: Path
    hash: str = ""

    def write(
        self, group: str, sample: int, rows: slice, columns: slice, bands: Mapping[str, NDArray[np.generic]]
    ) -> None:
        """Put `bands` (y, x) of one sample at `rows`, `columns`, which must be whole chunks of the store.

        Any process may do so that sees the path; parts must not share chunks.
        """
        store = zarr.open_group(self.path, mode="r+", path=group)
        for name, values in bands.items():
            array = store[name]
            assert isinstance(array, zarr.Array)
            array[sample, rows, columns] = values

    def describe(self, attrs: Mapping[str, str]) -> None:
        """Add root attributes that are known only now, such as what was left out."""
        zarr.open_group(self.path, mode="r+").attrs.update(dict(attrs))


@contextmanager
def new_cube(
    path: Path,
    native: xr.Dataset,
    grid: Grid | None,
    fine: xr.Dataset | None,
    fine_grid: Grid | None,
    attrs: Mapping[str, str],
    part_px: int | None = None,
) -> Iterator[PartialCube]:
    """Lay out a cube with what `native` and `fine` hold, to be filled part by part; see `write_cube`.

    Dask arrays made of fill values cost nothing here: empty chunks are not written. part_px: edge of the parts of
    the finest group; chunks and shards are laid out such that no two parts share one. The cube gets its name and
    hash when the block ends without a fault; otherwise nothing remains of it.
    """
    ratio = 1 if fine_grid is None or grid is None else max(1, fine_grid.width // grid.width)
    native_part = None if part_px is None else part_px // ratio
    groups = {"/native": (_with_cf_metadata(native, grid, "native", native_part), native_part)}
    if fine is not None and fine_grid is not None and grid is not None:
        _check_refinement(grid, fine_grid)
        groups["/fine"] = (_with_cf_metadata(fine, fine_grid, "fine", part_px), part_px)
    elif fine is not None or fine_grid is not None:
        raise ValueError("a fine group needs its dataset, its grid and the native grid; give all or none")
    if path.exists() and "cube_hash" not in _root_attrs(path):
        raise ValueError(f"{path} exists and is no cube, thus not replaced; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    partial = PartialCube(temporary(path))
    try:
        root = xr.Dataset(attrs={"Conventions": "CF-1.11", **attrs})
        xr.DataTree.from_dict({"/": root, **{name: dataset for name, (dataset, _) in groups.items()}}).to_zarr(
            partial.path,
            mode="w-",
            zarr_format=3,
            consolidated=False,
            encoding={name: _encoding(dataset, part) for name, (dataset, part) in groups.items()},
        )
        yield partial
        # What is on disk is hashed, so that a cube can be checked against its own name later.
        partial.hash = content_hash(xr.open_datatree(partial.path, engine="zarr", consolidated=False, chunks=None))
        zarr.open_group(partial.path, mode="r+").attrs["cube_hash"] = partial.hash
        consolidate(partial.path)
        take_name(partial.path, path)
    finally:
        shutil.rmtree(partial.path, ignore_errors=True)


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


def _with_cf_metadata(dataset: xr.Dataset, grid: Grid | None, group: str, part_px: int | None) -> xr.Dataset:
    """The dataset with the grid's coordinates, its grid mapping and chunks; attributes of bands are kept."""
    dataset = dataset.drop_encoding()
    if grid is not None:
        dataset = _on_grid(dataset, grid, group)
    for name, coordinate in dataset.coords.items():
        # Zarr v3 specifies variable-length text only.
        kept = coordinate.astype(object) if coordinate.dtype.kind == "U" else coordinate
        dataset = dataset.assign_coords({name: kept.compute()})
    _, stored = _chunks(dataset, part_px)
    bands = {}
    for name, band in dataset.data_vars.items():
        if band.dims[:3] != _DIMS:
            raise ValueError(f"{group} variable {name} has dims {band.dims}; give {_DIMS}")
        variable = band.variable.copy(deep=False)
        variable.attrs = band.attrs | ({"grid_mapping": "spatial_ref"} if grid is not None else {})
        # Dask blocks must be those of the store, or two tasks would write into one chunk.
        bands[name] = variable if variable.chunks is None else variable.chunk(stored)
    return dataset.assign(bands)


def _on_grid(dataset: xr.Dataset, grid: Grid, group: str) -> xr.Dataset:
    for name, band in dataset.data_vars.items():
        if band.dims[:3] != _DIMS or band.shape[1:3] != (grid.height, grid.width):
            raise ValueError(
                f"{group} variable {name} has dims {dict(band.sizes)} but the grid is y={grid.height}, "
                f"x={grid.width}; give (sample, y, x) on the grid"
            )
    for axis, centres, step in (("x", grid.x, grid.dx), ("y", grid.y, grid.dy)):
        if axis in dataset.coords and not np.allclose(dataset[axis], centres, rtol=0, atol=0.01 * step):
            raise ValueError(f"{group} coordinate {axis} is not that of the grid; build both from one Grid")
    return dataset.assign_coords(
        x=("x", grid.x, _axis_attrs(grid.crs, "x")),
        y=("y", grid.y, _axis_attrs(grid.crs, "y")),
        spatial_ref=((), np.int32(0), _grid_mapping(grid)),
    )


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


def _chunks(dataset: xr.Dataset, part_px: int | None) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of what is read at once (chunk) and of what lies in one file (shard: few files, whole parts)."""
    chunk, shard = {"sample": 1}, {"sample": 1}
    for axis in ("y", "x"):
        size = dataset.sizes[axis]
        if part_px is None or part_px >= size:
            chunk[axis] = min(_CHUNK_PX, size)
            shard[axis] = -(-size // chunk[axis]) * chunk[axis]
        else:
            # the largest divisor of a part that is a handy chunk
            chunk[axis] = next(px for px in range(min(_CHUNK_PX, part_px), 0, -1) if part_px % px == 0)
            shard[axis] = part_px
        if part_px is None:
            shard[axis] = min(shard[axis], max(1, _SHARD_PX // chunk[axis]) * chunk[axis])
    if "spatial_ref" not in dataset.coords:
        # Patches are small: as many of them together as make a chunk of a map.
        patch_px = chunk["y"] * chunk["x"]
        chunk["sample"] = max(1, min(dataset.sizes["sample"], _CHUNK_PX**2 // patch_px))
        shard["sample"] = chunk["sample"] * max(1, _SHARD_PX**2 // (chunk["sample"] * patch_px))
    return chunk, shard


def _encoding(dataset: xr.Dataset, part_px: int | None) -> dict[str, dict[str, Any]]:
    chunk, shard = (tuple(sizes.values()) for sizes in _chunks(dataset, part_px))
    encoding: dict[str, dict[str, Any]] = {}
    for name, band in dataset.data_vars.items():
        deep = band.shape[3:]
        small = tuple(_deep_chunk(size, whole) for size, whole in zip(chunk, shard, strict=True)) if deep else chunk
        encoding[str(name)] = {"chunks": (*small, *deep), "shards": (*shard, *deep)}
        if band.dtype.kind == "f":
            # A chunk without any value is not stored; NaN as Zarr's own fill makes it read as missing.
            encoding[str(name)]["fill_value"] = np.nan
    for name, coordinate in dataset.coords.items():
        if coordinate.dtype.kind == "M":
            encoding[str(name)] = dict(TIME_ENCODING)
    # CF allows no missing values in coordinate variables.
    return encoding | {axis: {"_FillValue": None} for axis in ("y", "x") if axis in dataset.coords}


def _deep_chunk(chunk: int, shard: int) -> int:
    """The largest divisor of a shard, up to `_DEEP_CHUNK_PX`: shards hold whole chunks."""
    return next(px for px in range(min(_DEEP_CHUNK_PX, chunk), 0, -1) if shard % px == 0)


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


def consolidate(path: Path) -> None:
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
