"""A map's store: whole tiles in a file, every tile in its place, whatever the sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from rio_cogeo.cogeo import cog_validate

from sifscale.cube import Cube, open_cube, write_cube
from sifscale.export import export_cube
from sifscale.grid import Grid
from sifscale.products import Description, publish, unfinished
from sifscale.receptive_field import Reach
from sifscale.tile_prediction import MappedTile, Residuals
from sifscale.tiles import make_tiles, padded_shape


def bands(height: int, width: int, samples: int = 2) -> xr.Dataset:
    days = np.datetime64("2019-06-10", "ns") + np.arange(samples) * np.timedelta64(16, "D")
    field = np.zeros((samples, height, width), np.float32)
    coords = {"time_start": ("sample", days), "time_end": ("sample", days), "place": ("sample", ["here"] * samples)}
    return xr.Dataset({"nir": (("sample", "y", "x"), field)}, coords=coords)


@pytest.fixture(scope="module", params=["EPSG:5070", "EPSG:4326"])
def cube(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """12 x 9 native cells of 4 x 4 fine ones, two composites, the last without SIF."""
    projected = request.param == "EPSG:5070"
    corner = (0.0, 2.6e6, 4e3, 4e3) if projected else (-7.0, 40.0, 0.1, 0.1)
    grid = Grid(request.param, *corner, height=12, width=9)
    random = np.random.default_rng(0)

    def on(grid: Grid, names: tuple[str, ...]) -> xr.Dataset:
        fields = {name: random.random((2, grid.height, grid.width)).astype(np.float32) for name in names}
        coords = bands(1, 1).coords
        attrs = {"units": "mW m-2 sr-1 nm-1", "long_name": "a band"}
        dataset = xr.Dataset({n: (("sample", "y", "x"), field, attrs) for n, field in fields.items()}, coords=coords)
        dataset["time_end"].attrs["long_name"] = "last day"
        return dataset

    path = tmp_path_factory.mktemp("cube") / "here.zarr"
    write_cube(path, on(grid, ("sif",)), grid, on(grid.refine(4), ("nir",)), grid.refine(4), {"window": "here"})
    return open_cube(path)


def with_error_bars(cube: Cube, path: Path, format: str) -> Path:
    """A map of the cube's fine grid in two tiles; nothing is known of the second sample."""
    assert cube.fine is not None
    attrs = {"checkpoint_hash": "c", "title": "a map", "history": "today", "source": "random numbers"}
    about = {"interval_level": 0.9, "comment": "of a test"}
    description = Description("sif", "mW m-2 sr-1 nm-1", cube.fine, np.float64, 32, attrs, about)
    random = np.random.default_rng(1)
    with unfinished(path, "key", description) as made:
        for tile in make_tiles((48, 36), 32, Reach(0, 0, 0, 0), 4):
            values = random.random([part.stop - part.start for part in tile.core])
            bars = np.stack([values / 9, values - 0.1, values + 0.1]).astype(np.float32)
            flags = np.ones(values.shape, np.uint8)
            made.write(0, tile, MappedTile(values, flags, Residuals(1, 4.0, 2.0), bars), "sif")
        return publish(made, path, format, {0: Residuals(4, 16.0, 3.0), 1: Residuals()}, {}, cube.hash)


def test_a_map_with_error_bars_is_the_same_in_every_format(cube: Cube, tmp_path: Path) -> None:
    stored = with_error_bars(cube, tmp_path / "map.zarr", "zarr")
    names = ("sif", "sif_standard_error", "sif_lower", "sif_upper", "quality")
    with xr.open_zarr(stored) as expected:
        assert expected["sif"].attrs["ancillary_variables"] == "quality sif_standard_error sif_lower sif_upper"
        assert expected["sif_lower"].attrs["interval_level"] == 0.9
        assert expected["sif_lower"].attrs["long_name"].startswith("lower end of the 90 % interval of ")
        assert expected["sif_standard_error"].attrs["standard_name"].endswith("_fluorescence standard_error")
        np.testing.assert_allclose(expected["sif_standard_error"][0], expected["sif"][0] / 9, rtol=1e-6)
        np.testing.assert_allclose(expected["sif_upper"][0] - expected["sif_lower"][0], 0.2, rtol=1e-5)
        with xr.open_dataset(with_error_bars(cube, tmp_path / "map.nc", "netcdf")) as found:
            for name in names:
                np.testing.assert_array_equal(found[name].values, expected[name].values)
        folder = with_error_bars(cube, tmp_path / "map", "cog")
        assert len(list(folder.glob("*.tif"))) == 2 * len(names)
        for name in names:
            with rasterio.open(folder / f"{name}_here_2019-06-10.tif") as raster:
                np.testing.assert_array_equal(raster.read(1), expected[name].values[0])
                assert raster.units == (expected[name].attrs.get("units"),)
                if name in names[1:4]:
                    assert raster.tags(1)["interval_level"] == "0.9"
            assert cog_validate(folder / f"{name}_here_2019-06-10.tif", strict=True)[0]


def test_netcdf_files_follow_the_cf_conventions(cube: Cube, tmp_path: Path) -> None:
    pytest.importorskip("compliance_checker", reason="compliance-checker is not installed; it comes with .[dev]")
    from compliance_checker.runner import CheckSuite, ComplianceChecker

    CheckSuite.load_all_available_checkers()
    files = [with_error_bars(cube, tmp_path / "map.nc", "netcdf"), *export_cube(cube, "netcdf", tmp_path / "exported")]
    assert len(files) == 3
    for file in files:
        report = file.with_suffix(".txt")
        passed, broken = ComplianceChecker.run_checker(str(file), ["cf:1.11"], 0, "strict", output_filename=str(report))
        assert passed and not broken, report.read_text()


@pytest.mark.parametrize(
    ("height", "width", "tile_px"), [(600, 700, 512), (300, 1100, 512), (97, 173, 40), (9, 1030, 1024), (5, 5, 64)]
)
def test_every_tile_lands_in_its_place_and_no_two_share_a_file(
    tmp_path: Path, height: int, width: int, tile_px: int
) -> None:
    step = 8
    whole = padded_shape((height, width), step)
    tiles = make_tiles(whole, tile_px, Reach(8, 8, 8, 8), step)
    values = np.arange(whole[0] * whole[1], dtype=np.float64).reshape(whole)
    description = Description("sif", "1", bands(height, width), np.float64, tile_px, {"checkpoint_hash": "c"})
    with unfinished(tmp_path / "map.zarr", "key", description) as made:
        for sample in range(2):
            for tile in tiles:
                part = values[tile.core] + sample
                made.write(sample, tile, MappedTile(part, part.astype(np.uint8), Residuals(1, 4.0, 2.0)), "sif")
        assert len(made.done()) == 2 * len(tiles)
        by_sample = {0: Residuals(4, 16.0, 3.0), 1: Residuals()}
        path = publish(made, tmp_path / "map.zarr", "zarr", by_sample, {}, "hash")
    with xr.open_zarr(path) as found:
        for sample in range(2):
            np.testing.assert_array_equal(found["sif"].values[sample], values[:height, :width] + sample)
            flags = (values[:height, :width] + sample).astype(np.uint8)
            np.testing.assert_array_equal(found["quality"].values[sample], flags)
        np.testing.assert_array_equal(found["residual_rmse"], [2.0, np.nan])
        np.testing.assert_array_equal(found["cells"], [4, 0])
    array = zarr.open_group(path)["sif"]
    assert isinstance(array, zarr.Array) and array.shards is not None
    for shard, size in zip(array.shards[1:], (height, width), strict=True):
        assert tile_px % shard == 0 or shard >= size
    assert [child.name for child in tmp_path.iterdir() if child.is_dir()] == ["map.zarr"]
