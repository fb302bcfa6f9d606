"""The cube is CF, whole or absent, lazy, and named by what it contains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from pyproj import CRS

from sifscale.cube import content_hash, file_sha256, new_cube, open_cube, write_cube
from sifscale.grid import Grid

GEOGRAPHIC = Grid("EPSG:4326", -101.0, 50.0, 0.05, 0.06, 5, 7)
UTM = Grid("EPSG:32615", 5e5, 5.3e6, 926.6, 926.6, 5, 7)
ATTRS = {"input_files": json.dumps({"a.csv": "00"}), "window": "test"}


def dataset(grid: Grid, bands: tuple[str, ...] = ("sif", "ndvi"), samples: int = 2) -> xr.Dataset:
    rng = np.random.default_rng(0)
    shape = (samples, grid.height, grid.width)
    variables = {band: (("sample", "y", "x"), rng.random(shape, np.float32)) for band in bands}
    variables[bands[0]][1][0, 1, 2] = np.nan
    days = np.array(["2019-05-25", "2019-06-10", "2019-06-26"], "datetime64[ns]")[:samples]
    coords = {
        "time_start": ("sample", days),
        "time_end": ("sample", days + np.timedelta64(15, "D")),
        "place": ("sample", ["minnesota", "Übersee", "iowa"][:samples]),
    }
    result = xr.Dataset(variables, coords)
    result[bands[0]].attrs = {"units": "mW m-2 sr-1 nm-1", "long_name": bands[0]}
    return result


def write(path: Path, native: xr.Dataset | None = None, grid: Grid = GEOGRAPHIC, **attrs: str) -> str:
    return write_cube(path, dataset(grid) if native is None else native, grid, None, None, ATTRS | attrs)


def test_round_trip_with_a_fine_group(tmp_path: Path) -> None:
    native, fine_grid = dataset(GEOGRAPHIC), GEOGRAPHIC.refine(3)
    native["n_soundings"] = native["sif"].fillna(3).astype(np.int16)
    native["valid"] = native["sif"].notnull()
    fine = dataset(fine_grid, ("ndvi",))
    path = tmp_path / "new" / "test.zarr"
    digest = write_cube(path, native, GEOGRAPHIC, fine, fine_grid, ATTRS)
    cube = open_cube(path)

    assert (cube.path, cube.hash) == (path, digest)
    assert cube.attrs == ATTRS | {"Conventions": "CF-1.11", "cube_hash": digest}
    assert cube.fine is not None
    for name, band in native.variables.items():
        np.testing.assert_array_equal(cube.native[name].values, band.values)
        assert cube.native[name].dtype.kind == band.dtype.kind or name == "place"
    np.testing.assert_array_equal(cube.fine["ndvi"].values, fine["ndvi"].values)
    np.testing.assert_allclose(cube.fine["x"], fine_grid.x)
    assert cube.native["time_start"].dtype == "datetime64[ns]"
    assert cube.native["sif"].chunks is not None and cube.native["sif"].attrs["units"] == "mW m-2 sr-1 nm-1"
    assert [child.name for child in tmp_path.joinpath("new").iterdir()] == ["test.zarr"]


def test_the_caller_s_dataset_is_left_alone(tmp_path: Path) -> None:
    native = dataset(GEOGRAPHIC)
    before = native.copy(deep=True)
    write(tmp_path / "a.zarr", native)
    assert native.identical(before)


@pytest.mark.parametrize(
    ("grid", "x_attrs", "y_units", "mapping_name"),
    [
        (GEOGRAPHIC, ("longitude", "degrees_east"), "degrees_north", "latitude_longitude"),
        (UTM, ("projection_x_coordinate", "m"), "m", "transverse_mercator"),
    ],
)
def test_cf_metadata(
    tmp_path: Path, grid: Grid, x_attrs: tuple[str, str], y_units: str, mapping_name: str
) -> None:
    write(tmp_path / "a.zarr", grid=grid)
    native = xr.open_datatree(tmp_path / "a.zarr", engine="zarr")["native"].to_dataset()
    assert (native["x"].attrs["standard_name"], native["x"].attrs["units"]) == x_attrs
    assert native["x"].attrs["axis"] == "X"
    assert native["y"].attrs["units"] == y_units
    assert (np.diff(native["y"]) < 0).all()
    mapping = native["spatial_ref"].attrs
    assert mapping["grid_mapping_name"] == mapping_name and CRS.from_wkt(mapping["crs_wkt"]) == CRS(grid.crs)
    corner = [grid.west, grid.dx, 0, grid.north, 0, -grid.dy]
    assert [float(number) for number in mapping["GeoTransform"].split()] == corner
    assert all(native[name].attrs["grid_mapping"] == "spatial_ref" for name in native.data_vars)
    assert zarr.open_group(tmp_path / "a.zarr").metadata.zarr_format == 3


@pytest.mark.parametrize("grid", [GEOGRAPHIC, UTM])
@pytest.mark.parametrize("decode_coords", [True, "all"])
def test_rioxarray_reads_crs_and_transform(tmp_path: Path, grid: Grid, decode_coords: Any) -> None:
    pytest.importorskip("rioxarray")
    write(tmp_path / "a.zarr", grid=grid)
    tree = xr.open_datatree(tmp_path / "a.zarr", engine="zarr", decode_coords=decode_coords)
    sif = tree["native"]["sif"]
    assert sif.rio.crs.to_epsg() == int(grid.crs.split(":")[1])
    transform = sif.rio.transform()
    assert (transform.c, transform.a, transform.f, transform.e) == (grid.west, grid.dx, grid.north, -grid.dy)


def test_chunks_on_disk_and_when_opened(tmp_path: Path) -> None:
    grid = Grid("EPSG:4326", 0, 10, 0.01, 0.01, 300, 40)
    write(tmp_path / "a.zarr", grid=grid)
    assert zarr.open_array(tmp_path / "a.zarr" / "native" / "sif").chunks == (1, 256, 40)
    assert open_cube(tmp_path / "a.zarr").native["sif"].chunks == ((1, 1), (256, 44), (40,))


def test_hash_is_stable(tmp_path: Path) -> None:
    native = dataset(GEOGRAPHIC)
    digest = write(tmp_path / "a.zarr", native)
    lazy = native.chunk({"sample": 2, "y": 2, "x": 3})
    reordered = native[["ndvi", "sif"]]
    assert digest == write(tmp_path / "b.zarr", lazy) == write(tmp_path / "c.zarr", reordered)
    again = open_cube(tmp_path / "a.zarr")
    assert digest == write(tmp_path / "d.zarr", again.native)
    assert digest == content_hash(xr.open_datatree(tmp_path / "a.zarr", engine="zarr", chunks={}))


def other_value(native: xr.Dataset) -> xr.Dataset:
    native["sif"][1, 0, 0] += 1e-6
    return native


CHANGES: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "a value": other_value,
    "a missing pixel": lambda ds: ds.assign(sif=ds["sif"].where(ds["x"] > ds["x"].min())),
    "a dtype": lambda ds: ds.assign(sif=ds["sif"].astype(np.float64)),
    "a band name": lambda ds: ds.rename(ndvi="evi"),
    "an attribute": lambda ds: ds.assign(sif=ds["sif"].assign_attrs(units="1")),
    "a time": lambda ds: ds.assign_coords(time_end=ds["time_end"] + np.timedelta64(1, "s")),
    "a place": lambda ds: ds.assign_coords(place=("sample", ["minnesota", "ohio"])),
    "the sample order": lambda ds: ds.isel(sample=[1, 0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_hash_sees(change: str, tmp_path: Path) -> None:
    native = dataset(GEOGRAPHIC).assign_coords(x=GEOGRAPHIC.x, y=GEOGRAPHIC.y)
    digest = write(tmp_path / "a.zarr", native)
    assert digest != write(tmp_path / "b.zarr", CHANGES[change](native.copy(deep=True)))


def test_hash_sees_grid_and_root_attributes(tmp_path: Path) -> None:
    native = dataset(GEOGRAPHIC)
    moved = Grid("EPSG:4326", -101.1, 50.0, 0.05, 0.06, 5, 7)
    hashes = [write(tmp_path / "a", native), write(tmp_path / "b", native, moved)]
    hashes.append(write(tmp_path / "c", native, window="other"))
    hashes.append(write_cube(tmp_path / "d", native, GEOGRAPHIC, native, GEOGRAPHIC.refine(1), ATTRS))
    assert len(set(hashes)) == 4


@pytest.mark.parametrize("old", [False, True])
def test_a_crash_leaves_no_half_cube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    path = tmp_path / "a.zarr"
    digest = write(path) if old else None
    complete = xr.DataTree.to_zarr

    def crash(self: xr.DataTree, *args: Any, **kwargs: Any) -> None:
        complete(self, *args, **kwargs)
        raise OSError("disk full")

    monkeypatch.setattr(xr.DataTree, "to_zarr", crash)
    with pytest.raises(OSError, match="disk full"):
        write(path, dataset(GEOGRAPHIC, ("sif", "evi")))
    assert [child.name for child in tmp_path.iterdir()] == (["a.zarr"] if old else [])
    if old:
        assert open_cube(path).hash == digest == content_hash(xr.open_datatree(path, engine="zarr"))


def test_a_crash_while_renaming_restores_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    digest = write(path)
    rename = os.replace

    def crash(source: Path, target: Path) -> None:
        if source.suffix == ".partial":
            raise OSError("no rename")
        rename(source, target)

    monkeypatch.setattr("sifscale.whole.os.replace", crash)
    with pytest.raises(OSError, match="no rename"):
        write(path, dataset(GEOGRAPHIC, ("sif", "evi")))
    assert [child.name for child in tmp_path.iterdir()] == ["a.zarr"]
    assert open_cube(path).hash == digest


def test_replacing_a_cube(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", dataset(GEOGRAPHIC, ("sif", "evi")))
    digest = write(tmp_path / "a.zarr")
    assert set(open_cube(tmp_path / "a.zarr").native.data_vars) == {"sif", "ndvi"}
    assert open_cube(tmp_path / "a.zarr").hash == digest
    assert [child.name for child in tmp_path.iterdir()] == ["a.zarr"]


def test_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(ValueError, match="exists and is no cube"):
        write(tmp_path / "notes")
    assert (tmp_path / "notes" / "diary.txt").read_text() == "dear diary"


def test_open_cube_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.zarr does not exist .* build it with build\.py"):
        open_cube(tmp_path / "a.zarr")
    zarr.open_group(tmp_path / "b.zarr", mode="w")
    with pytest.raises(ValueError, match=r"b\.zarr is no cube"):
        open_cube(tmp_path / "b.zarr")


def test_bad_input_is_refused(tmp_path: Path) -> None:
    path, native = tmp_path / "a.zarr", dataset(GEOGRAPHIC)
    with pytest.raises(ValueError, match="native variable sif has dims"):
        write(path, native.isel(x=slice(3)))
    with pytest.raises(ValueError, match="native variable sif has dims"):
        write(path, native.transpose("y", "x", "sample"))
    with pytest.raises(ValueError, match="coordinate x is not that of the grid"):
        write(path, native.assign_coords(x=GEOGRAPHIC.x + 1))
    with pytest.raises(ValueError, match="give all or none"):
        write_cube(path, native, GEOGRAPHIC, native, None, ATTRS)
    off = Grid("EPSG:4326", -101.0, 50.01, 0.025, 0.03, 10, 14)
    with pytest.raises(ValueError, match="no integer refinement"):
        write_cube(path, native, GEOGRAPHIC, dataset(off), off, ATTRS)
    with pytest.raises(ValueError, match="neither geographic nor projected"):
        write(path, native, Grid("EPSG:4978", 0, 0, 1, 1, 5, 7))
    assert list(tmp_path.iterdir()) == []


def test_file_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(ValueError, match="no such file"):
        file_sha256(tmp_path / "absent")


def test_what_a_killed_process_left_goes_and_a_retired_cube_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "cube.zarr"
    first = write(path)
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    os.rename(path, tmp_path / f".cube.zarr.{gone.pid}.{32 * 'a'}.replaced")
    (tmp_path / f".cube.zarr.{gone.pid}.{32 * 'b'}.partial").mkdir()
    (tmp_path / f".cube.zarr.{os.getpid()}.{32 * 'c'}.partial").mkdir()
    with pytest.raises(RuntimeError), new_cube(path, dataset(UTM), UTM, None, None, ATTRS):
        raise RuntimeError("the new one fails")
    assert open_cube(path).hash == first
    alive = f".cube.zarr.{os.getpid()}.{32 * 'c'}.partial"
    assert sorted(found.name for found in tmp_path.iterdir()) == [alive, "cube.zarr"]


@pytest.mark.parametrize("part_px", [4, 8, 64])
def test_a_cube_written_in_parts_is_the_cube_written_at_once(tmp_path: Path, part_px: int) -> None:
    grid = Grid("EPSG:5070", 0.0, 9000.0, 1000.0, 1000.0, 9, 11)
    native, fine = dataset(grid), dataset(grid.refine(2), ("ndvi",))
    whole = write_cube(tmp_path / "whole.zarr", native, grid, fine, grid.refine(2), ATTRS)
    empty = [xr.full_like(part.chunk(), np.nan) for part in (native, fine)]
    path = tmp_path / "parts.zarr"
    with new_cube(path, empty[0], grid, empty[1], grid.refine(2), {}, part_px) as partial:
        partial.describe(ATTRS)
        for sample in range(2):
            for group, source, step in (("native", native, part_px // 2), ("fine", fine, part_px)):
                for row in range(0, source.sizes["y"], step):
                    for column in range(0, source.sizes["x"], step):
                        rows = slice(row, min(row + step, source.sizes["y"]))
                        columns = slice(column, min(column + step, source.sizes["x"]))
                        part = source.isel(sample=sample, y=rows, x=columns)
                        partial.write(group, sample, rows, columns, {k: v.values for k, v in part.data_vars.items()})
    assert open_cube(path).hash == partial.hash == whole
    stored = zarr.open_array(path / "fine" / "ndvi")
    assert stored.shards is not None and all(a % b == 0 for a, b in zip(stored.shards, stored.chunks, strict=True))
    assert part_px == 64 or stored.shards[1:] == (part_px, part_px)


def test_patches_of_many_places_have_no_crs_and_share_chunks(tmp_path: Path) -> None:
    shape = (50, 16, 16)
    values = np.random.default_rng(0).random(shape, np.float32)
    patches = xr.Dataset(
        {"sif": (("sample", "y", "x"), values)}, {"place": ("sample", [f"p{i}" for i in range(50)])}
    )
    path = tmp_path / "patches.zarr"
    write_cube(path, patches, None, None, None, ATTRS)
    cube = open_cube(path)
    np.testing.assert_array_equal(cube.native["sif"], values)
    assert "spatial_ref" not in cube.native.variables and "grid_mapping" not in cube.native["sif"].attrs
    assert len([file for file in (path / "native" / "sif").rglob("*") if file.is_file()]) == 2
