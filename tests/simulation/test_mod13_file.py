"""Simulated MOD13A2 granules: laid out as the true product, found by HDF-EOS, and read by our reader."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pyhdf.HDF import HDF
from pyhdf.SD import SD
from pyhdf.V import V as V  # gives HDF the method vgstart

from sifscale.simulation.mod13_file import LAYERS, write_mod13
from sifscale.simulation.modis import cut_tile
from sifscale.simulation.world import build_world
from sifscale.sources.hdf4 import hdf4_lock
from sifscale.sources.mod13 import check_mod13, inspect_mod13, read_mod13
from sifscale.sources.sinusoidal import tile_grid
from sifscale.sources.vi_quality import VegetationQuality

if TYPE_CHECKING:
    from conftest import Osse

PREFIX = "1 km 16 days "
RAW = Path(os.environ.get("SIFSCALE_RAW", Path(__file__).parents[3] / "shared" / "data"))
REAL = RAW / "mod13a2" / "MOD13A2.A2025001.h18v09.061.2025022080611.hdf"


def test_mod13_granules_have_the_products_layout(osse: Osse) -> None:
    path = osse.granules[0]
    assert path.name == "MOD13A2.A2019177.h11v04.061.2019202000000.hdf"
    file = SD(str(path))
    index, reflectance = (22, -3000, [-2000, 10_000], 1e4), (22, -1000, [0, 10_000], 1e4)
    zenith = (22, -10_000, [0, 18_000], 100)
    expected = {"NDVI": index, "EVI": index, "VI Quality": (23, 65_535, [0, 65_534], None)}
    expected |= {f"{band} reflectance": reflectance for band in ("red", "NIR", "blue", "MIR")}
    expected |= {"view zenith angle": zenith, "sun zenith angle": zenith}
    expected |= {"relative azimuth angle": (22, -4000, [-18_000, 18_000], 100)}
    expected |= {"composite day of the year": (22, -1, [1, 366], None), "pixel reliability": (20, -1, [0, 3], None)}
    try:
        assert list(file.datasets()) == [PREFIX + name for name in expected]
        for name, (kind, fill, valid, divisor) in expected.items():
            dataset = file.select(PREFIX + name)
            attributes = dataset.attributes()
            assert dataset.info()[1:4] == (2, [1200, 1200], kind) and dataset.getcompress() == (4, 5), name
            assert [dataset.dim(n).info()[0] for n in (0, 1)] == [f"{d}Dim:MODIS_Grid_16DAY_1km_VI" for d in "YX"]
            assert (attributes["_FillValue"], attributes["valid_range"]) == (fill, valid), name
            assert attributes.get("scale_factor") == divisor, name
        attributes = file.attributes()
    finally:
        file.end()
    tile = tile_grid(11, 4, 1200)
    assert f"UpperLeftPointMtrs=({tile.west:.6f},{tile.north:.6f})" in attributes["StructMetadata.0"]
    assert "ProjParams=(6371007.181000,0,0" in attributes["StructMetadata.0"]
    for text in ("MOD13A2", "2019-06-26", "2019-07-11", path.name, "51011004"):
        assert f'VALUE = "{text}"' in attributes["CoreMetadata.0"]


@pytest.mark.skipif(not REAL.is_file(), reason="no real granule at hand")
def test_mod13_granules_are_described_as_a_real_one_is(osse: Osse) -> None:
    real, ours = description(REAL), description(osse.granules[0])
    assert ours == real


def description(path: Path) -> dict[str, Any]:
    """What describes the data sets of a granule: types, dimensions and attributes, but for legends."""
    file = SD(str(path))
    try:
        found = {}
        for name in file.datasets():
            dataset = file.select(name)
            attributes = {key: value for key, value in dataset.attributes(full=1).items() if key != "Legend"}
            # Value, type and length of each, whatever its position.
            described = {key: (value[0], *value[2:]) for key, value in attributes.items()}
            found[name] = (dataset.info()[1:4], [dataset.dim(n).info() for n in (0, 1)], described)
        return found
    finally:
        file.end()


def test_the_groups_by_which_hdf_eos_finds_a_grid_are_there(osse: Osse) -> None:
    file = HDF(str(osse.granules[0]))
    groups = file.vgstart()
    try:
        grid, fields = groups.attach(groups.find("MODIS_Grid_16DAY_1km_VI")), groups.attach(groups.find("Data Fields"))
        assert (grid._class, grid._nmembers) == ("GRID", 2)
        assert (fields._class, fields._nmembers) == ("GRID Vgroup", 12)
        grid.detach()
        fields.detach()
    finally:
        groups.end()
        file.close()


def test_the_reader_of_mod13_reads_the_simulated_granules(osse: Osse) -> None:
    found = inspect_mod13(osse.granules[0])
    check_mod13(found)
    assert (found.product, found.tile, found.start, found.end) == ("MOD13A2", (11, 4), *osse.period)
    whole = slice(0, 1200)
    seen, removed = read_mod13(found, ["ndvi", "red"], VegetationQuality(), whole, whole)
    stored = osse.layers
    kept = np.isin(stored["pixel reliability"], (0, 1)) & np.isfinite(seen["ndvi"].values)
    assert kept.sum() > 20_000 and np.isnan(seen["ndvi"].values[~kept]).all() and removed["total"] > 0
    np.testing.assert_allclose(seen["ndvi"].values[kept], stored["NDVI"][kept] / 1e4, atol=1e-6)


def test_a_writer_waits_while_another_thread_uses_the_hdf4_library(tmp_path: Path, osse: Osse) -> None:
    tile = cut_tile(build_world(osse.grid, factor=4, margin_km=0, seed=7), 11, 4)
    layers = {name: np.zeros(tile.inside.shape, layer.dtype) for name, layer in LAYERS.items()}
    path = tmp_path / osse.granules[0].name
    writer = threading.Thread(target=write_mod13, args=(path, tile, osse.period, layers))
    with hdf4_lock:
        writer.start()
        writer.join(0.2)
        assert writer.is_alive() and not path.exists()
    writer.join(30)
    assert inspect_mod13(path).tile == (11, 4) and not hdf4_lock.locked()
