"""What other tools read from an export is the cube, value for value, and files are whole or absent."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import rioxarray  # noqa: F401 -- gives xarray its accessor .rio
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyarrow import parquet
from pyproj import Transformer
from rio_cogeo.cogeo import cog_validate

from sifscale import export
from sifscale.cube import Cube, open_cube, write_cube
from sifscale.export import FORMATS, export_cube
from sifscale.grid import Grid

ALBERS = "EPSG:5070"


@pytest.fixture(scope="module")
def cube(tiny_cube_path: Path) -> Cube:
    return open_cube(tiny_cube_path)


def groups(cube: Cube) -> dict[str, xr.Dataset]:
    assert cube.fine is not None
    return {"native": cube.native.compute(), "fine": cube.fine.compute()}


def small_cube(folder: Path, places: tuple[str, ...], bands: dict[str, NDArray[Any]], crs: str = ALBERS) -> Cube:
    height, width = next(iter(bands.values())).shape[1:]
    coords = {
        "time_start": ("sample", np.array(["2019-05-09"] * len(places), "datetime64[ns]")),
        "time_end": ("sample", np.array(["2019-05-24"] * len(places), "datetime64[ns]")),
        "place": ("sample", np.array(places, object)),
    }
    dataset = xr.Dataset({name: (("sample", "y", "x"), values) for name, values in bands.items()}, coords)
    write_cube(folder / "small.zarr", dataset, Grid(crs, 0, 3e6, 1e3, 1e3, height, width), None, None, {})
    return open_cube(folder / "small.zarr")


def expected_table(dataset: xr.Dataset) -> pd.DataFrame:
    """The table by way of xarray and pandas alone."""
    frame = dataset.drop_vars("spatial_ref").to_dataframe(dim_order=["sample", "y", "x"]).reset_index()
    floats = [str(name) for name, band in dataset.data_vars.items() if band.dtype.kind == "f"]
    return frame.dropna(how="all", subset=floats).reset_index(drop=True)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_tables_hold_every_value_of_the_cube(cube: Cube, format: str, tmp_path: Path) -> None:
    files = export_cube(cube, format, tmp_path)
    assert [path.name for path in files] == [f"tiny_native.{format}", f"tiny_fine.{format}"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    for path, dataset in zip(files, groups(cube).values(), strict=True):
        if format == "csv":
            types: Any = {name: band.dtype for name, band in dataset.data_vars.items()}
            frame = pd.read_csv(path, dtype=types, parse_dates=["time_start", "time_end"])
        else:
            frame = pd.read_parquet(path)
        expected = expected_table(dataset)
        first = ["sample", "time_start", "time_end", "place", "x", "y", "longitude", "latitude"]
        assert list(frame) == [*first, *map(str, dataset.data_vars)]
        for name in expected:
            if name == "place":
                assert list(frame[name]) == list(expected[name])
            else:
                np.testing.assert_array_equal(frame[name].to_numpy(), expected[name].to_numpy(), err_msg=name)
            assert name not in dataset.data_vars or frame[name].dtype == dataset[name].dtype
        longitude, latitude = Transformer.from_crs(ALBERS, "EPSG:4326", always_xy=True).transform(
            frame["x"].to_numpy(), frame["y"].to_numpy()
        )
        np.testing.assert_allclose(frame["longitude"], longitude, rtol=0, atol=1e-12)
        np.testing.assert_allclose(frame["latitude"], latitude, rtol=0, atol=1e-12)


def test_parquet_says_units_and_origin(cube: Cube, tmp_path: Path) -> None:
    schema = parquet.read_schema(export_cube(cube, "parquet", tmp_path)[0])
    assert schema.field("sif").metadata[b"units"] == b"mW m-2 sr-1 nm-1"
    assert schema.field("longitude").metadata[b"units"] == b"degrees_east"
    assert schema.field("x").metadata[b"units"] == b"m"
    assert schema.metadata[b"cube_hash"] == cube.hash.encode()


FLOATS = st.floats(width=32, allow_infinity=True, allow_nan=True)


@settings(max_examples=10)  # each writes a cube, so that it holds many values
@given(values=st.lists(FLOATS, min_size=30, max_size=30), counts=st.lists(st.integers(0, 9), min_size=30, max_size=30))
def test_any_float32_survives_a_csv_and_rows_without_a_value_go(
    values: list[float], counts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("floats")
    sif = np.array(values, np.float32).reshape(1, 5, 6)
    count = np.array(counts, np.int16).reshape(1, 5, 6)
    (path,) = export_cube(small_cube(folder, ("a",), {"sif": sif, "count": count}), "csv", folder)
    frame = pd.read_csv(path, dtype={"sif": np.float32, "count": np.int16})
    kept = ~np.isnan(sif.ravel())
    assert frame["sif"].to_numpy().tobytes() == sif.ravel()[kept].tobytes()
    np.testing.assert_array_equal(frame["count"], count.ravel()[kept])


def test_a_value_that_is_missing_beside_others_is_empty(tmp_path: Path) -> None:
    sif = np.array([[[np.nan, 1.5]]], np.float32)
    cube = small_cube(tmp_path, ("Île, d'Or",), {"sif": sif, "ndvi": np.ones_like(sif)})
    (table,) = export_cube(cube, "csv", tmp_path)
    lines = table.read_text().splitlines()
    assert lines[0].endswith('"ndvi","sif"')
    assert [line.rsplit(",", 2)[1:] for line in lines[1:]] == [["1", ""], ["1", "1.5"]]
    assert list(pd.read_csv(table)["place"]) == ["Île, d'Or"] * 2
    (table,) = export_cube(cube, "parquet", tmp_path)
    assert parquet.read_table(table)["sif"].null_count == 1


def test_netcdf_opens_as_cf_with_its_crs(cube: Cube, tmp_path: Path) -> None:
    files = export_cube(cube, "netcdf", tmp_path)
    assert [path.name for path in files] == ["tiny_native.nc", "tiny_fine.nc"]
    for path, dataset in zip(files, groups(cube).values(), strict=True):
        with xr.open_dataset(path) as read:
            assert set(read.variables) == {*dataset.variables, "time_bounds"}
            start, end = read["time_bounds"].values.T
            np.testing.assert_array_equal(start, dataset["time_start"].values)
            np.testing.assert_array_equal(end - dataset["time_end"].values, np.timedelta64(1, "D"))  # a whole last day
            for name in dataset.variables:
                np.testing.assert_array_equal(read[name].values, dataset[name].values)
                assert read[name].dtype.kind == dataset[name].dtype.kind or name == "place"
            for name, band in dataset.data_vars.items():
                assert read[name].dims == ("sample", "y", "x") and read[name].dtype == band.dtype
                assert read[name].attrs["units"] == band.attrs["units"]
                assert read[name].encoding["zlib"] and read[name].encoding["chunksizes"][0] == 1
            assert read.rio.crs.to_epsg() == 5070
            assert read.attrs["Conventions"] == "CF-1.11" and read.attrs["cube_hash"] == cube.hash
    with xr.open_dataset(files[1]) as read:
        assert read["land_cover"].attrs["flag_values"].dtype == read["land_cover"].dtype
    assert cube.fine is not None and cube.fine["land_cover"].attrs["flag_values"] == list(range(9))
    with rasterio.open(f"netcdf:{files[0]}:sif") as raster:
        assert (raster.count, raster.crs.to_epsg()) == (3, 5070)
        np.testing.assert_array_equal(raster.read(), cube.native["sif"].values)


def test_an_attribute_too_long_for_hdf5_refers_to_the_cube(cube: Cube, tmp_path: Path) -> None:
    hashes = json.dumps({f"TROPOSIF_L2B_{day}.nc": "0" * 64 for day in range(2000)})
    path = export_cube(replace(cube, attrs=cube.attrs | {"input_files": hashes}), "netcdf", tmp_path)[0]
    with xr.open_dataset(path) as read:
        assert cube.hash in read.attrs["input_files"]


def test_geotiffs_are_cloud_optimised_and_hold_every_value(cube: Cube, tmp_path: Path) -> None:
    files = export_cube(cube, "cog", tmp_path)
    days = ("2019-05-09", "2019-05-25", "2019-06-10")
    assert [path.name for path in files] == [f"{g}_minnesota_{day}.tif" for g in ("native", "fine") for day in days]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    remaining = iter(files)
    for dataset in groups(cube).values():
        for sample in range(3):
            path = next(remaining)
            valid, errors, found = cog_validate(path, strict=True, quiet=True)
            assert valid, (errors, found)
            with rasterio.open(path) as raster:
                assert raster.descriptions == tuple(dataset.data_vars)
                assert raster.units == tuple(band.attrs["units"] for band in dataset.data_vars.values())
                assert np.isnan(raster.nodata) and set(raster.dtypes) == {"float32"}
                assert raster.crs.to_epsg() == 5070
                assert raster.tags()["time_start"] == f"{days[sample]}T00:00:00"
                structure = raster.tags(ns="IMAGE_STRUCTURE")
                assert structure | {"COMPRESSION": "DEFLATE", "LAYOUT": "COG", "PREDICTOR": "3"} == structure
                for number, band in enumerate(dataset.data_vars.values(), start=1):
                    np.testing.assert_array_equal(raster.read(number), band[sample].values)
            with xr.open_dataset(path, engine="rasterio") as read:
                np.testing.assert_array_equal(read["x"], dataset["x"])
                np.testing.assert_array_equal(read["y"], dataset["y"])


def test_large_geotiffs_have_overviews_in_which_classes_stay_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sif = rng.random((1, 700, 1100), np.float32)
    cover = rng.choice([1, 9], (1, 700, 1100)).astype(np.uint8)
    cube = small_cube(tmp_path, ("a",), {"sif": sif, "cover": cover})
    overviews = {}
    for name in ("mean", "nearest"):
        if name == "nearest":
            cube.native["cover"].attrs["flag_values"] = [1, 9]
        (path,) = export_cube(cube, "cog", tmp_path / name)
        assert cog_validate(path, strict=True, quiet=True)[0]
        with rasterio.open(path) as raster:
            assert raster.overviews(1) == [2, 4] and raster.block_shapes[0] == (512, 512)
            assert raster.descriptions == ("cover", "sif")
            np.testing.assert_array_equal(raster.read(2), sif[0])
        with rasterio.open(path, overview_level=0) as raster:
            overviews[name] = raster.read()
    blocks = sif[0].reshape(350, 2, 550, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(overviews["mean"][1], blocks, atol=1e-6)
    assert set(np.unique(overviews["nearest"][0])) == {1, 9}


def test_samples_of_one_place_and_day_get_names_of_their_own(tmp_path: Path) -> None:
    sif = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    cube = small_cube(tmp_path, ("a/b", "c d", "a b"), {"sif": sif})
    files = export_cube(cube, "cog", tmp_path)
    names = ["native_a-b_2019-05-09_sample0.tif", "native_c-d_2019-05-09.tif", "native_a-b_2019-05-09_sample2.tif"]
    assert [path.name for path in files] == names


def test_whole_numbers_beyond_float32_stay_exact_in_a_geotiff(tmp_path: Path) -> None:
    count = np.array([[[2**24 + 1, 2**31 - 1]]], np.int32)
    (path,) = export_cube(small_cube(tmp_path, ("a",), {"count": count}), "cog", tmp_path)
    with rasterio.open(path) as raster:
        np.testing.assert_array_equal(raster.read(1), count[0])


def without_crs(cube: Cube) -> Cube:
    return replace(cube, native=cube.native.drop_vars("spatial_ref"), fine=None)


def test_a_cube_without_a_crs_has_tables_but_no_geotiff(cube: Cube, tmp_path: Path) -> None:
    # Patch sets have coordinates of their samples beside time and place, and numbers of pixels may be all of x and y.
    patches = without_crs(cube).native.drop_vars(["x", "y"]).assign_coords(group=("sample", [4, 4, 7]))
    sets = replace(cube, native=patches, fine=None)
    with pytest.raises(ValueError, match="has no CRS, so that there is no GeoTIFF"):
        export_cube(sets, "cog", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    frame = pd.read_parquet(export_cube(sets, "parquet", tmp_path)[0])
    assert list(frame)[:7] == ["sample", "time_start", "time_end", "place", "group", "x", "y"]
    assert "longitude" not in frame and set(frame["group"]) == {4, 7} and frame["x"].max() == 47
    with xr.open_dataset(export_cube(sets, "netcdf", tmp_path)[0]) as read:
        np.testing.assert_array_equal(read["group"], [4, 4, 7])


def test_an_unknown_format_and_a_file_as_folder_are_refused(cube: Cube, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown export format 'xlsx'; choose one of csv, parquet, netcdf, cog"):
        export_cube(cube, "xlsx", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is no folder"):
        export_cube(cube, "csv", tmp_path / "file")


@pytest.mark.parametrize("format", FORMATS)
def test_a_fault_leaves_the_older_files_and_nothing_half_written(
    cube: Cube, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_native = replace(cube, fine=None)
    before = {path: path.read_bytes() for path in export_cube(only_native, format, tmp_path)}
    with monkeypatch.context() as patch:
        step = {"csv": "_table", "parquet": "_table", "netcdf": "os.replace", "cog": "copy_raster"}[format]

        def fail(*args: Any, **options: Any) -> None:
            raise OSError("no space left on device")

        patch.setattr(f"sifscale.export.{step}", fail)
        with pytest.raises(OSError, match="no space left"):
            export_cube(only_native, format, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    files = export_cube(only_native, format, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize("format", FORMATS)
def test_memory_does_not_grow_with_the_number_of_samples(format: str, tmp_path: Path) -> None:
    peaks = {}
    for samples in (1, 9):
        bands = {"sif": np.random.default_rng(0).random((samples, 256, 512), np.float32)}
        folder = tmp_path / str(samples)
        many = small_cube(folder, tuple(f"p{i}" for i in range(samples)), bands)
        del bands
        tracemalloc.start()
        export_cube(many, format, folder)
        peaks[samples] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    # Eight more samples are 4 MB of the band alone; what is counted here also holds Dask's graph.
    assert peaks[9] < peaks[1] + 2, peaks


def test_wide_grids_are_read_in_fewer_rows(monkeypatch: pytest.MonkeyPatch, cube: Cube, tmp_path: Path) -> None:
    native = replace(cube, fine=None)
    (whole,) = export_cube(native, "parquet", tmp_path / "whole")
    monkeypatch.setattr(export, "_BLOCK_CELLS", 1000)
    (cut,) = export_cube(native, "parquet", tmp_path / "cut")
    assert [parquet.ParquetFile(path).num_row_groups for path in (whole, cut)] == [3, 9]
    pd.testing.assert_frame_equal(pd.read_parquet(cut), pd.read_parquet(whole))
    with rasterio.open(export_cube(native, "cog", tmp_path)[0]) as raster:
        np.testing.assert_array_equal(raster.read(1), cube.native["blue"][0].values)
