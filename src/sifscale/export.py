"""A cube for other tools: tables (CSV, Parquet), CF netCDF and cloud-optimised GeoTIFF, written piece by piece."""

from __future__ import annotations

import datetime
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import rasterio
import xarray as xr
from pyarrow import csv, parquet
from pyproj import CRS, Transformer
from rasterio.shutil import copy as copy_raster
from rasterio.transform import Affine
from rasterio.windows import Window
from tqdm import tqdm
from tqdm.dask import TqdmCallback

from sifscale.cube import TIME_ENCODING, Cube
from sifscale.whole import written_beside

FORMATS = ("csv", "parquet", "netcdf", "cog")

_SUFFIXES = {"csv": ".csv", "parquet": ".parquet", "netcdf": ".nc"}
# Cells of a sample that are in memory at once: 4 MB a float32 band.
_BLOCK_CELLS = 2**20
_CHUNK_PX = 256
# HDF5 stores no attribute above 64 KiB; the hashes of many input files are longer.
_ATTR_BYTES = 60_000


def export_cube(cube: Cube, format: str, folder: Path) -> list[Path]:
    """Write every group of the cube (native, fine) to `folder` and return the files, sorted by group and sample.

    format: `csv` or `parquet`, a table <window>_<group> with one row a cell: sample, the sample's coordinates
    (time_start, time_end, place, ...), x and y (units of the CRS), longitude and latitude (degrees, WGS 84,
    where the cube has a CRS), bands. A missing value is empty (null); a row without a value in any float band
    is left out, as whole numbers (counts, classes) cannot be missing. `netcdf`: a CF file <window>_<group>.nc
    with dims (sample, y, x). `cog`: a cloud-optimised GeoTIFF <group>_<place>_<first day>.tif a sample, all
    bands in the widest float type among them, NaN where missing.

    Footprint weights, many values a cell, stay in the cube. An older file is replaced when the new one is complete;
    after a fault it is as it was. Raises ValueError for another format, for a `folder` that is a file, and for `cog`
    from a cube without a CRS (patch sets).
    """
    if format not in FORMATS:
        raise ValueError(f"unknown export format {format!r}; choose one of {', '.join(FORMATS)}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder, so that nothing can be exported to it; choose another one")
    groups = {
        name: dataset.drop_vars([name for name, band in dataset.data_vars.items() if band.ndim > 3])
        for name, dataset in (("native", cube.native), ("fine", cube.fine))
        if dataset is not None
    }
    if format == "cog" and any(crs_of(dataset) is None for dataset in groups.values()):
        raise ValueError(f"{cube.path} has no CRS, so that there is no GeoTIFF of it; export csv, parquet or netcdf")
    folder.mkdir(parents=True, exist_ok=True)
    window = cube.attrs.get("window", cube.path.stem)
    files: list[Path] = []
    for group, dataset in groups.items():
        if format == "cog":
            files += write_cogs(dataset, cube, group, folder)
            continue
        path = folder / f"{window}_{group}{_SUFFIXES[format]}"
        with written_beside(path) as partial:
            if format == "netcdf":
                write_netcdf(dataset.assign_attrs(_heading(window, group)), cube, partial, path.name)
            else:
                _write_table(dataset, cube, format, partial, path.name)
            os.replace(partial, path)
        files.append(path)
    return files


def _heading(window: str, group: str) -> dict[str, str]:
    """What CF wants a file to say of itself, beside the attributes of the cube."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"title": f"window {window}, {group} grid", "history": f"{now} exported from a cube of sifscale"}


def crs_of(dataset: xr.Dataset) -> CRS | None:
    """The CRS of the grid mapping; None where there is none, or one that is nowhere on the Earth."""
    mapping = dataset.coords["spatial_ref"].attrs if "spatial_ref" in dataset.coords else {}
    wkt = mapping.get("crs_wkt")
    crs = CRS.from_wkt(wkt) if wkt else None
    return crs if crs is not None and (crs.is_geographic or crs.is_projected) else None


def _sample_coords(dataset: xr.Dataset) -> list[str]:
    """Coordinates of a sample, time and place first."""
    first = ["time_start", "time_end", "place"]
    found = [str(name) for name, coordinate in dataset.coords.items() if coordinate.dims == ("sample",)]
    return [name for name in first if name in found] + sorted(set(found) - {*first, "sample"})


def _row_blocks(dataset: xr.Dataset) -> list[slice]:
    """Rows of a sample that are read together: a row of the cube's chunks, less where the grid is very wide."""
    height, width = dataset.sizes["y"], dataset.sizes["x"]
    step = max(1, min(_CHUNK_PX, _BLOCK_CELLS // width))
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def _write_table(dataset: xr.Dataset, cube: Cube, format: str, partial: Path, name: str) -> None:
    crs = crs_of(dataset)
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True) if crs is not None else None
    coords = {name: _as_arrow(dataset[name]) for name in _sample_coords(dataset)}
    schema = _schema(dataset, coords, to_degrees is not None)
    blocks = _row_blocks(dataset)
    # The writers of Arrow differ in the name of the method only.
    writer: Any
    write: Callable[[pa.Table], None]
    if format == "csv":
        writer = csv.CSVWriter(partial, schema)
        write = writer.write
    else:
        schema = schema.with_metadata({"cube_hash": cube.hash} | ({"crs_wkt": crs.to_wkt()} if crs else {}))
        writer = parquet.ParquetWriter(partial, schema, compression="zstd")
        write = writer.write_table
    total = dataset.sizes["sample"] * len(blocks)
    with writer, tqdm(total=total, desc=name, unit="block", disable=None) as bar:
        for sample in range(dataset.sizes["sample"]):
            for rows in blocks:
                block = dataset.isel(sample=sample, y=rows).load()
                write(_table(block, sample, coords, to_degrees, schema))
                bar.update()


def _as_arrow(coordinate: xr.DataArray) -> pa.Array:
    """A coordinate (sample,) as Arrow array; cubes hold whole seconds."""
    if coordinate.dtype.kind == "M":
        return pa.array(coordinate.values.astype("datetime64[s]"))
    if coordinate.dtype.kind in "OTU":
        return pa.array([str(value) for value in coordinate.values], pa.string())
    return pa.array(coordinate.values, from_pandas=True)


def _schema(dataset: xr.Dataset, coords: dict[str, pa.Array], has_degrees: bool) -> pa.Schema:
    degrees = [
        pa.field("longitude", pa.float64(), metadata={"units": "degrees_east"}),
        pa.field("latitude", pa.float64(), metadata={"units": "degrees_north"}),
    ]
    return pa.schema(
        [
            pa.field("sample", pa.int32()),
            *(pa.field(name, values.type, metadata=_text(dataset[name].attrs)) for name, values in coords.items()),
            *(pa.field(axis, pa.float64(), metadata=_text(dataset[axis].attrs)) for axis in ("x", "y")),
            *(degrees if has_degrees else []),
            *(
                pa.field(str(name), pa.from_numpy_dtype(band.dtype), metadata=_text(band.attrs))
                for name, band in dataset.data_vars.items()
            ),
        ]
    )


def _text(attrs: dict[Any, Any]) -> dict[str, str]:
    """What a column or band of another format says of itself."""
    names = ("units", "long_name", "flag_values", "flag_masks", "flag_meanings", "interval_level", "comment")
    return {key: str(attrs[key]) for key in names if key in attrs}


def _table(
    block: xr.Dataset, sample: int, coords: dict[str, pa.Array], to_degrees: Transformer | None, schema: pa.Schema
) -> pa.Table:
    """The rows of a block (y, x), in raster order."""
    bands = {str(name): band.values.ravel() for name, band in block.data_vars.items()}
    floats = [values for values in bands.values() if values.dtype.kind == "f"]
    kept = np.ones(block.sizes["y"] * block.sizes["x"], bool)
    if floats:
        kept = np.logical_or.reduce([~np.isnan(values) for values in floats])
    x, y = (values.ravel()[kept] for values in np.meshgrid(block["x"].values, block["y"].values))
    columns: dict[str, Any] = {"sample": pa.repeat(pa.scalar(sample, pa.int32()), len(x))}
    columns |= {name: pa.repeat(values[sample], len(x)) for name, values in coords.items()}
    columns |= {"x": pa.array(x, pa.float64()), "y": pa.array(y, pa.float64())}
    if to_degrees is not None:
        for name, degrees in zip(("longitude", "latitude"), to_degrees.transform(x, y), strict=True):
            # Cells outside the projection (corners of a sinusoidal grid) have no position.
            columns[name] = pa.array(np.where(np.isfinite(degrees), degrees, np.nan), from_pandas=True)
    columns |= {name: pa.array(values[kept], from_pandas=True) for name, values in bands.items()}
    return pa.table(columns, schema=schema)


def write_netcdf(dataset: xr.Dataset, cube: Cube, partial: Path, name: str) -> None:
    """Write a dataset of bands (sample, y, x) as CF netCDF, with its attributes and the cube's; name: on the bar."""
    attrs = cube.attrs | dataset.attrs
    for key, value in attrs.items():
        if len(str(value).encode()) > _ATTR_BYTES:
            attrs[key] = f"too long for an attribute, see the cube with cube_hash {cube.hash}"
    prepared = _with_periods(dataset.drop_encoding().assign_attrs(attrs))
    encoding: dict[str, dict[str, Any]] = {axis: {"_FillValue": None} for axis in ("x", "y") if axis in dataset.coords}
    for key, coordinate in prepared.coords.items():
        if coordinate.dtype.kind == "M":
            encoding[str(key)] = dict(TIME_ENCODING)
        elif coordinate.dtype.kind in "TU":
            prepared = prepared.assign_coords({key: coordinate.astype(object).compute()})
    chunks = (1, *(min(_CHUNK_PX, dataset.sizes[axis]) for axis in ("y", "x")))
    for key, band in prepared.data_vars.items():
        if band.ndim == len(chunks):
            encoding[str(key)] = {"zlib": True, "complevel": 4, "shuffle": True, "chunksizes": chunks}
        for flags in {"flag_values", "flag_masks"} & set(band.attrs):
            # CF wants the type of the variable; the cube's JSON has plain integers.
            band.attrs[flags] = np.asarray(band.attrs[flags], band.dtype)
    # HDF5 takes one chunk at a time, and the bar hears of local schedulers only, not of a cluster.
    with dask.config.set(scheduler="threads"), TqdmCallback(tqdm_class=tqdm, desc=name, disable=None):
        prepared.to_netcdf(partial, engine="h5netcdf", encoding=encoding)


def _with_periods(dataset: xr.Dataset) -> xr.Dataset:
    """With the period of each sample as CF has it, bounds of a time, and a name for the grid mapping."""
    coords, bounds = dataset.coords, {}
    if {"time_start", "time_end"} <= set(coords):
        start, last_day = (coords[name].values for name in ("time_start", "time_end"))
        ends = np.stack([start, last_day + np.timedelta64(1, "D")], axis=1)
        bounds["time_bounds"] = xr.Variable(("sample", "bound"), ends)
        # NumPy's times know no leap seconds
        attrs = {"standard_name": "time", "bounds": "time_bounds", "units_metadata": "leap_seconds: none"}
        attrs = coords["time_start"].attrs | attrs
        dataset = dataset.assign_coords(time_start=("sample", start, attrs))
    if "spatial_ref" in coords:
        attrs = {"long_name": "coordinate reference system"} | coords["spatial_ref"].attrs
        dataset = dataset.assign_coords(spatial_ref=((), coords["spatial_ref"].values, attrs))
    return dataset.assign(bounds)


def write_cogs(dataset: xr.Dataset, cube: Cube, group: str, folder: Path) -> list[Path]:
    """Write bands (sample, y, x), attributes of the dataset as tags, as <group>_<place>_<first day>.tif a sample."""
    paths = [folder / name for name in _cog_names(dataset, group)]
    # The mean of two classes is a third one.
    classes = any({"flag_values", "flag_masks"} & set(band.attrs) for band in dataset.data_vars.values())
    for sample, path in enumerate(tqdm(paths, desc=f"{group} cog", unit="file", disable=None)):
        with written_beside(path) as plain, written_beside(path) as partial:
            _write_geotiff(dataset.isel(sample=sample), cube, plain)
            # GDAL makes a COG, whose overviews come first, only by copying; straight from memory would need it all.
            copy_raster(
                plain,
                partial,
                driver="COG",
                compress="DEFLATE",
                predictor="FLOATING_POINT",
                overview_resampling="NEAREST" if classes else "AVERAGE",
                bigtiff="IF_SAFER",
            )
            os.replace(partial, path)
    return paths


def _cog_names(dataset: xr.Dataset, group: str) -> list[str]:
    """<group>_<place>_<first day>.tif; samples that share place and day have their number in it, too."""
    days = np.datetime_as_string(dataset["time_start"].values, unit="D")
    places = [re.sub(r"[^\w.-]+", "-", str(place)) for place in dataset["place"].values]
    stems = [f"{group}_{place}_{day}" for place, day in zip(places, days, strict=True)]
    count = Counter(stems)
    return [f"{stem}_sample{i}.tif" if count[stem] > 1 else f"{stem}.tif" for i, stem in enumerate(stems)]


def _write_geotiff(sample: xr.Dataset, cube: Cube, path: Path) -> None:
    """One sample (y, x) as tiled GeoTIFF without overviews, block by block."""
    mapping = sample["spatial_ref"].attrs
    bands = list(sample.data_vars.values())
    # A GeoTIFF has one type for all bands; float32 is exact for counts and classes below 2**24.
    wide = [b.dtype for b in bands if b.dtype.kind == "f" or (b.dtype.itemsize > 2 and np.abs(b.values).max() >= 2**24)]
    dtype = np.result_type(np.float32, *wide)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=sample.sizes["y"],
        width=sample.sizes["x"],
        count=len(bands),
        dtype=dtype,
        crs=mapping["crs_wkt"],
        transform=Affine.from_gdal(*map(float, mapping["GeoTransform"].split())),
        nodata=np.nan,
        tiled=True,
        interleave="band",
        bigtiff="IF_SAFER",
    ) as raster:
        times = {name: np.datetime_as_string(sample[name].values, "s") for name in ("time_start", "time_end")}
        about = {str(key): str(value) for key, value in sample.attrs.items()}
        raster.update_tags(**about | {"place": str(sample["place"].values), "cube_hash": cube.hash} | times)
        for number, band in enumerate(bands, start=1):
            raster.set_band_description(number, str(band.name))
            raster.set_band_unit(number, str(band.attrs.get("units", "")))
            raster.update_tags(number, **_text(band.attrs))
            for rows in _row_blocks(sample):
                window = Window(0, rows.start, sample.sizes["x"], rows.stop - rows.start)
                raster.write(band.isel(y=rows).values.astype(dtype), number, window=window)
