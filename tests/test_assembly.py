"""A gridded window's cube as a whole: the same whoever builds it, complete about what it lacks, open to other tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rioxarray  # noqa: F401  # its import adds the accessor `rio`
import xarray as xr
from rasterio.crs import CRS
from rasterio.transform import Affine

from sifscale.cube import Cube, open_cube
from sifscale.sources import SourceError
from sifscale.windows import build_cube

if TYPE_CHECKING:
    from conftest import Workplace

ONE_BAND = ("window.suggested.bands=[coarse]",)
FEWER = ("window.vegetation.bands=[ndvi,nir]", *ONE_BAND)


@pytest.fixture(scope="module")
def raw(tiny_cube_path: Path) -> Path:
    """The simulated files of the tiny cube, only to be read."""
    return tiny_cube_path.parent / "raw" / "tiny"


def built(workplace: Workplace, raw: Path, folder: Path, *words: str) -> Cube:
    """The tiny window's cube in a folder of its own, from the files in `raw` (two of their three composites)."""
    link = folder / "raw" / "minnesota_osse"
    if not link.exists():
        link.parent.mkdir(parents=True)
        link.symlink_to(raw)
    config = workplace.config(f"paths.data={folder}", "dask.scheduler=synchronous", *words)
    return open_cube(build_cube(config).path)


@pytest.fixture(scope="module")
def cube(workplace: Workplace, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return built(workplace, raw, tmp_path_factory.mktemp("plain"), *FEWER)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_whoever_builds_it_the_cube_is_the_same(
    scheduler: str, workplace: Workplace, raw: Path, cube: Cube, tmp_path: Path
) -> None:
    words = (f"dask.scheduler={scheduler}", "dask.workers=2")
    assert built(workplace, raw, tmp_path, *FEWER, *words).hash == cube.hash


def test_many_small_parts_make_the_same_cube(workplace: Workplace, raw: Path, cube: Cube, tmp_path: Path) -> None:
    tiled = built(workplace, raw, tmp_path, *FEWER, "window.tile_px=100")
    assert tiled.attrs | {"cube_hash": ""} == cube.attrs | {"cube_hash": ""}
    for one, other in ((tiled.native, cube.native), (tiled.fine, cube.fine)):
        assert one is not None and other is not None
        # Positions count from the corner of a part: the last bit of a mean may differ.
        xr.testing.assert_allclose(one.load(), other.load(), rtol=2e-7, atol=0)
    assert np.array_equal(tiled.native["n_soundings"], cube.native["n_soundings"])


def test_attributes_name_the_input_and_count_it(raw: Path, cube: Cube) -> None:
    files = {path.relative_to(raw).as_posix() for path in raw.rglob("*.*") if path.suffix in (".nc", ".hdf")}
    # The window's patterns name the granules of the third composite, too; its truth belongs to no composite.
    assert set(json.loads(cube.attrs["input_files"])) == files - {"truth/truth_2019-06-10.nc"}
    assert cube.attrs["excluded_files"] == "{}" and cube.attrs["missing_tiles"] == "[]"
    soundings, pixels = (json.loads(cube.attrs[name]) for name in ("soundings", "modis_pixels"))
    assert soundings["kept"] > soundings["cloud_fraction"] > soundings["missing"] > 0
    assert pixels["read"] > pixels["total"] >= pixels["no_quality"] + pixels["reliability"] > 0


def test_a_composite_without_granules_is_empty_and_named(
    workplace: Workplace, raw: Path, cube: Cube, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = tmp_path / "some"
    shutil.copytree(raw, some)
    for path in (*some.glob("troposif/*05-2*.nc"), *some.glob("*/*A2019145*"), some / "truth/truth_2019-05-25.nc"):
        path.unlink()
    caplog.set_level("INFO", "sifscale")
    found = built(workplace, some, tmp_path / "data", *FEWER)
    assert json.loads(found.attrs["missing_tiles"]) == ["h11v04 of 2019-05-25"]
    assert list(json.loads(found.attrs["excluded_files"])) == ["truth/truth_2019-05-25.nc"]
    assert "no MODIS granule for tile h11v04 of 2019-05-25" in caplog.text and "soundings: " in caplog.text
    assert found.fine is not None and cube.fine is not None
    for one, whole in ((found.native, cube.native), (found.fine, cube.fine)):
        xr.testing.assert_equal(one.isel(sample=0), whole.isel(sample=0))
        for name, band in one.isel(sample=1).data_vars.items():
            empty = 0 if name in ("n_soundings", "sounding_weight") else np.nan
            assert np.array_equal(band, np.full(band.shape, empty), equal_nan=True), name
    with pytest.raises(SourceError, match=r"^composite 2019-05-25: no MODIS granule for tile h11v04; .*nan$"):
        built(workplace, some, tmp_path / "other", *FEWER, "window.vegetation.missing_tile=stop")
    assert not list((tmp_path / "other").glob("*.zarr"))


def test_a_damaged_layer_is_left_out_and_the_next_one_describes_the_band(
    workplace: Workplace, raw: Path, tmp_path: Path
) -> None:
    some = tmp_path / "some"
    shutil.copytree(raw, some)
    (some / "truth" / "truth_2019-05-09.nc").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    found = built(workplace, some, tmp_path / "data", "window.vegetation=null", *ONE_BAND)
    assert list(json.loads(found.attrs["excluded_files"])) == ["truth/truth_2019-05-09.nc"]
    assert found.fine is not None and "flag_meanings" in found.fine["land_cover"].attrs
    assert found.fine["sif_truth"].isnull().all(("y", "x")).values.tolist() == [True, False]


def test_without_a_finer_grid_everything_is_native(
    workplace: Workplace, raw: Path, cube: Cube, tmp_path: Path
) -> None:
    found = built(workplace, raw, tmp_path, *FEWER, "window.grid.fine_factor=1")
    assert found.fine is None and {"ndvi", "sif_truth", "sif"} <= set(found.native.data_vars)
    for name in ("sif", "n_soundings"):
        assert np.array_equal(found.native[name], cube.native[name], equal_nan=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("window.grid.bounds=[1000000.0,2658000.0,1192000.0,2850000.0]",),
            r"no cell has a value of sif \(12 usable files, soundings .*: none\); check window\.grid\.bounds",
        ),
        (
            ("window.soundings.quality.max_cloud_fraction=0.0",),
            r"no cell has a value of sif \(12 usable files, soundings .*cloud_fraction \d",
        ),
        (
            ("window=spain_2023",),
            r"no cell has a value of sif \(\S+low.nc: no such file; .*\); check .* and window\.native_layers$",
        ),
    ],
)
def test_a_window_without_any_target_is_refused_in_one_line(
    words: tuple[str, ...], message: str, workplace: Workplace, raw: Path, tmp_path: Path
) -> None:
    if words != ("window=spain_2023",):
        words = ("window.vegetation=null", "window.fine_layers=[]", *ONE_BAND, *words)
    with pytest.raises(SourceError, match=message) as refused:
        built(workplace, raw, tmp_path, f"paths.raw={raw}", *words)
    assert "\n" not in str(refused.value) and not list(tmp_path.glob("*.zarr"))


def test_other_tools_read_crs_and_transform_without_hints(tiny_cube_path: Path) -> None:
    tree = xr.open_datatree(tiny_cube_path, engine="zarr")
    assert {"native", "fine"} == set(tree.children)
    for group, step in (("native", 4000.0), ("fine", 1000.0)):
        transform = Affine(step, 0, -60_000, 0, -step, 2_850_000)
        dataset = xr.open_dataset(tiny_cube_path, engine="zarr", group=group, decode_coords="all")
        assert dataset["ndvi"].rio.crs.to_epsg() == 5070 and dataset["ndvi"].rio.transform() == transform
        # What GDAL takes; the one of rasterio 1.4 has a Zarr driver, but cannot read shards yet.
        mapping = tree[group][tree[group]["ndvi"].attrs["grid_mapping"]].attrs
        assert CRS.from_wkt(mapping["spatial_ref"]).to_epsg() == 5070
        assert Affine.from_gdal(*map(float, mapping["GeoTransform"].split())) == transform
