"""A map's store: whole tiles in a file, every tile in its place, whatever the sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from sifscale.products import Description, publish, unfinished
from sifscale.receptive_field import Reach
from sifscale.tile_prediction import MappedTile, Residuals
from sifscale.tiles import make_tiles, padded_shape


def bands(height: int, width: int, samples: int = 2) -> xr.Dataset:
    days = np.datetime64("2019-06-10", "ns") + np.arange(samples) * np.timedelta64(16, "D")
    field = np.zeros((samples, height, width), np.float32)
    coords = {"time_start": ("sample", days), "time_end": ("sample", days), "place": ("sample", ["here"] * samples)}
    return xr.Dataset({"nir": (("sample", "y", "x"), field)}, coords=coords)


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
