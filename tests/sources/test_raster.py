"""Plain rasters: GeoTIFF, NetCDF and Zarr give the same field and grid, and unusable files one clear line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.transform import Affine

from sifscale.grid import Grid
from sifscale.sources import SourceError
from sifscale.sources.raster import list_variables, open_dataset, read_raster

RAW = Path(os.environ.get("SIFSCALE_RAW", Path(__file__).parents[3] / "shared" / "data"))
SPAIN = RAW / "tropomi_sif_spain_2023"
GRID = Grid("EPSG:4326", -7.0, 40.0, 0.25, 0.5, 3, 4)
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def read(path: Path, **changes: Any) -> tuple[xr.DataArray, Grid]:
    return read_raster(path, **({"variable": None, "nodata": None, "crs": None} | changes))


def geotiff(path: Path, layers: NDArray[Any], names: tuple[str, ...] = (), **profile: Any) -> Path:
    layers = layers.reshape(-1, *layers.shape[-2:])
    placed = {"crs": "EPSG:4326", "transform": Affine(0.25, 0, -7, 0, -0.5, 40)} | profile
    shape = {"count": len(layers), "height": layers.shape[1], "width": layers.shape[2], "dtype": layers.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **placed) as target:
        target.write(layers)
        for number, name in enumerate(names, 1):
            target.set_band_description(number, name)
    return path


def field(values: NDArray[Any] = VALUES, dims: tuple[str, ...] = ("lat", "lon"), **coords: Any) -> xr.Dataset:
    centres = {"lat": GRID.y, "lon": GRID.x} | coords
    return xr.Dataset({"sif": (dims, values)}, {name: centres[name] for name in dims if name in centres})


def netcdf(path: Path, dataset: xr.Dataset, **encoding: Any) -> Path:
    dataset.to_netcdf(path, engine="h5netcdf", encoding={"sif": encoding})
    return path


@pytest.mark.parametrize("kind", ["tif", "nc", "zarr"])
def test_all_kinds_of_file_give_the_same_field_and_grid(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "tif":
        geotiff(path, VALUES, ("sif",))
    elif kind == "nc":
        netcdf(path, field())
    else:
        field().to_zarr(path, consolidated=False)
    sif, grid = read(path, variable="sif")
    np.testing.assert_array_equal(sif, VALUES)
    assert sif.dtype == np.float32 and sif.dims == ("y", "x") and sif.name == "sif"
    assert grid == GRID
    np.testing.assert_allclose(sif["y"], GRID.y)
    assert list_variables(path) == ("sif",)


@given(
    south_up=st.booleans(),
    mirrored=st.booleans(),
    kind=st.sampled_from(["tif", "nc"]),
    scale=st.sampled_from([0.5, 1.0, -2.0, 1e-4]),
)
def test_a_field_stored_in_any_direction_and_scaled_comes_back_north_up(
    south_up: bool, mirrored: bool, kind: str, scale: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("flip") / f"a.{kind}"
    rows, columns = slice(None, None, -1 if south_up else 1), slice(None, None, -1 if mirrored else 1)
    stored = VALUES[rows, columns].copy()
    if kind == "tif":
        west, dx = (-6.0, -0.25) if mirrored else (-7.0, 0.25)
        north, dy = (38.5, 0.5) if south_up else (40.0, -0.5)
        geotiff(path, stored, transform=Affine(dx, 0, west, 0, dy, north))
    else:
        netcdf(path, field(stored, lat=GRID.y[rows], lon=GRID.x[columns]))
    sif, grid = read(path, scale=scale)
    np.testing.assert_array_equal(sif, (VALUES.astype(np.float64) * scale).astype(np.float32))
    assert grid == GRID


@pytest.mark.parametrize("kind", ["tif", "nc"])
def test_declared_and_further_missing_values_become_nan(kind: str, tmp_path: Path) -> None:
    stored = VALUES.astype(np.int16).copy()
    stored[0, :2] = -9999, -3
    path = tmp_path / f"a.{kind}"
    if kind == "tif":
        with rasterio.open(geotiff(path, stored, nodata=-9999), "r+") as target:
            target.scales, target.offsets = (0.5,), (1.0,)
    else:
        decoded = np.where(stored == -9999, np.nan, stored * 0.5 + 1.0)
        netcdf(path, field(decoded), dtype="int16", scale_factor=0.5, add_offset=1.0, _FillValue=-9999)
    sif, _ = read(path, nodata=-3)
    assert np.isnan(sif.values[0, :2]).all()
    np.testing.assert_array_equal(sif.values.ravel()[2:], 0.5 * np.arange(2, 12) + 1)


def test_nodata_is_found_among_values_unpacked_in_float32(tmp_path: Path) -> None:
    stored = np.arange(12, dtype=np.int16).reshape(3, 4) * 1000 - 5000
    for nodata in (-5000, 3000):
        dataset = field(stored)
        dataset["sif"].attrs = {"scale_factor": np.float32(0.01), "add_offset": np.float32(273.15)}
        sif, _ = read(netcdf(tmp_path / "a.nc", dataset), nodata=nodata)
        np.testing.assert_array_equal(np.isnan(sif), stored == nodata)


@pytest.mark.parametrize("fill", [9.969209968386869e36, np.inf, -np.inf, 1e30])
def test_fills_that_nobody_declared_are_missing(fill: float, tmp_path: Path) -> None:
    values = VALUES.copy()
    values[1, 1] = fill
    sif, _ = read(netcdf(tmp_path / "a.nc", field(values), _FillValue=None), scale=1e-3)
    assert np.isnan(sif.values[1, 1]) and np.isfinite(sif.values).sum() == 11


def test_nodata_outside_an_integer_type_hits_no_pixel(tmp_path: Path) -> None:
    values = VALUES.astype(np.uint8)
    values[0, 0] = np.array(-9999).astype(np.uint8)
    assert np.isfinite(read(geotiff(tmp_path / "a.tif", values), nodata=-9999)[0]).all()


def test_bands_are_chosen_by_description_or_number(tmp_path: Path) -> None:
    path = geotiff(tmp_path / "a.tif", np.stack([VALUES, VALUES + 50]), ("red", "nir"))
    for chosen in ("nir", 2):
        nir, _ = read(path, variable=chosen)
        assert nir.name == "nir" and nir.values[0, 0] == 50
    for variable, part in ((None, "name one; found: red, nir"), ("mir", "no variable mir; found: red, nir")):
        with pytest.raises(SourceError, match=part):
            read(path, variable=variable)
    with pytest.raises(SourceError, match="no band 3; found: 1 to 2"):
        read(path, variable=3)


def test_a_third_dimension_is_squeezed_or_needs_an_index(tmp_path: Path) -> None:
    two = np.stack([VALUES, VALUES + 50])
    single = netcdf(tmp_path / "one.nc", field(two[:1], ("t", "lat", "lon")))
    assert read(single)[0].shape == (3, 4)
    path = netcdf(tmp_path / "two.nc", field(two.transpose(1, 2, 0), ("lat", "lon", "t")))
    assert read(path, time_index=1)[0].values[0, 0] == 50
    for index in (None, 2, -1):
        with pytest.raises(SourceError, match=f"time_index={index}; give 0 to 1"):
            read(path, time_index=index)


def test_the_crs_of_the_file_counts_before_the_argument(tmp_path: Path) -> None:
    projected = field(dims=("y", "x"), y=4000.0 - np.arange(3) * 1000, x=np.arange(4) * 1000.0)
    with pytest.raises(SourceError, match="states no CRS; give it as crs"):
        read(netcdf(tmp_path / "none.nc", projected))
    assert read(tmp_path / "none.nc", crs="EPSG:5070")[1].crs == "EPSG:5070"
    for attrs in (CRS(5070).to_cf(), {"spatial_ref": CRS(5070).to_wkt("WKT1_GDAL")}):
        mapped = projected.assign_coords(albers=((), 0, attrs))
        mapped["sif"].attrs["grid_mapping"] = "albers"
        assert read(netcdf(tmp_path / "cf.nc", mapped), crs="EPSG:4326")[1].crs == "EPSG:5070"
    empty = netcdf(tmp_path / "empty.nc", field().assign(crs=((), 0, {"long_name": "no mapping at all"})))
    assert read(empty, variable="sif")[1].crs == "EPSG:4326"
    with pytest.raises(ValueError, match="crs 'EPSG:nonsense' is no CRS"):
        read(tmp_path / "none.nc", crs="EPSG:nonsense")


def test_a_sinusoidal_crs_without_a_code_is_kept_as_wkt(tmp_path: Path) -> None:
    sinusoidal = CRS("+proj=sinu +lon_0=0 +R=6371007.181 +units=m")
    path = geotiff(tmp_path / "a.tif", VALUES, crs=sinusoidal.to_wkt(), transform=Affine(926.6, 0, 0, 0, -926.6, 5e6))
    grid = read(path)[1]
    assert CRS(grid.crs).to_cf()["grid_mapping_name"] == "sinusoidal" and grid.dx == 926.6


def test_units_of_the_file_hold_only_without_a_scale(tmp_path: Path) -> None:
    dataset = field()
    dataset["sif"].attrs = {"units": "K", "long_name": "temperature"}
    path = netcdf(tmp_path / "a.nc", dataset)
    assert read(path)[0].attrs == {"units": "K", "long_name": "temperature"}
    assert read(path, scale=0.1)[0].attrs == {"long_name": "temperature"}


@pytest.mark.parametrize("jitter_cells", [0.005, -0.05])
def test_coordinates_must_be_regular_to_one_per_cent(jitter_cells: float, tmp_path: Path) -> None:
    x = GRID.x.copy()
    x[1] += jitter_cells * GRID.dx
    path = netcdf(tmp_path / "a.nc", field(lon=x))
    if abs(jitter_cells) < 0.01:
        assert read(path)[1] == GRID
    else:
        with pytest.raises(SourceError, match="coordinate lon is not regular to 1%.*0.05 cells"):
            read(path)


def test_unusable_netcdf_files_are_named_in_one_line(tmp_path: Path) -> None:
    path = netcdf(tmp_path / "a.nc", field(np.full((3, 4), np.nan)))
    with pytest.raises(SourceError, match="missing everywhere"):
        read(path)
    with pytest.raises(SourceError, match="no variable lst; found: sif"):
        read(path, variable="lst")
    with pytest.raises(SourceError, match="no coordinate along y.*swath"):
        read(netcdf(tmp_path / "swath.nc", field(dims=("line", "pixel"))))
    with pytest.raises(SourceError, match="lat has 1 value"):
        read(netcdf(tmp_path / "row.nc", field(VALUES[:1], lat=GRID.y[:1])))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(SourceError, match="cannot be opened by h5netcdf .*fetch it again") as fault:
        read(path)
    assert "\n" not in str(fault.value) and str(path) in str(fault.value)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(SourceError, match="cannot be opened by zarr"):
        open_dataset(tmp_path / "empty.zarr")


def test_unusable_geotiffs_are_named_in_one_line(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).random((200, 200)).astype(np.float32)
    path = geotiff(tmp_path / "a.tif", noise)
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(SourceError, match="band 1 cannot be read .*fetch it again"):
        read(path)
    path.write_bytes(b"no tiff")
    with pytest.raises(SourceError, match="cannot be read as GeoTIFF"):
        read(path)
    with pytest.raises(SourceError, match="rotated"):
        read(geotiff(path, VALUES, transform=Affine(1, 0.1, 0, 0, -1, 0)))
    with pytest.raises(SourceError, match="states no CRS"):
        read(geotiff(path, VALUES, crs=None))
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):  # by the writer: such a file is what we want
        geotiff(path, VALUES, crs=None, transform=Affine.identity())
    with pytest.raises(SourceError, match="no georeference"):
        read(path, crs="EPSG:4326")


def test_a_missing_forbidden_or_unknown_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read(tmp_path / "a.tif")
    (tmp_path / "a.png").touch()
    with pytest.raises(SourceError, match="unknown kind of file '.png'; give .tif, .tiff, .nc, .nc4, .zarr"):
        list_variables(tmp_path / "a.png")
    path = geotiff(tmp_path / "a.tif", VALUES)
    # The tests may run as root, who may read everything.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SourceError, match="no permission"):
        read(path)


def test_arguments_that_no_file_could_satisfy_are_value_errors(tmp_path: Path) -> None:
    path = geotiff(tmp_path / "a.tif", VALUES)
    faults: list[tuple[dict[str, Any], str]] = [
        ({"scale": 0.0}, "scale must be"),
        ({"scale": np.nan}, "scale must be"),
        ({"time_index": 0}, "a GeoTIFF has bands"),
    ]
    for changes, part in faults:
        with pytest.raises(ValueError, match=part):
            read(path, **changes)
    with pytest.raises(ValueError, match="variable 1 is a number"):
        read(netcdf(tmp_path / "a.nc", field()), variable=1)


@pytest.mark.skipif(not SPAIN.is_dir(), reason="real data absent")
def test_the_real_cube_is_the_same_as_geotiff_and_as_netcdf() -> None:
    sif, grid = read(SPAIN / "cube_SIF_median.tif", variable="SIF")
    again, same = read(SPAIN / "sif_predictors_cube_low.nc", variable="SIF")
    np.testing.assert_array_equal(sif, again)
    assert grid.crs == same.crs == "EPSG:4326" and (grid.height, grid.width) == (30, 60)
    np.testing.assert_allclose((grid.west, grid.north, grid.dx, grid.dy), (same.west, same.north, same.dx, same.dy))
    assert float(sif.isnull().mean()) == pytest.approx(0.2)
    _, fine = read(SPAIN / "cube_nirv_1km_mask.tif")
    assert (fine.height, fine.width) == (336, 672) and grid.dx / fine.dx == pytest.approx(11.2)
