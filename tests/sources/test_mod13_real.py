"""The MOD13 reader on granules of the LP DAAC: two whole tiles and a subset of the HEG tool."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from sifscale.sources.mod13 import check_mod13, inspect_mod13, read_mod13
from sifscale.sources.sinusoidal import tile_grid
from sifscale.sources.vi_quality import VegetationQuality

RAW = Path(os.environ.get("SIFSCALE_RAW", Path(__file__).parents[3] / "shared" / "data")) / "mod13a2"
SUBSET = RAW / "MOD13A2.A2016145.h18v04.006.2016166145124.hdf"
TILES = ("MOD13A2.A2025001.h18v09.061.2025022080611.hdf", "MOD13A2.A2025033.h18v09.061.2025050175427.hdf")
ALL = slice(None)
pytestmark = pytest.mark.skipif(not RAW.is_dir(), reason="the real granules are not on this machine")


@pytest.mark.parametrize("name", TILES)
def test_a_real_tile_has_all_bands_and_plausible_values(name: str) -> None:
    granule = inspect_mod13(RAW / name)
    assert granule.tile == (18, 9) and granule.grid == tile_grid(18, 9, 1200)
    assert len(granule.sds) == 12
    assert (granule.end - granule.start).days == 15
    check_mod13(granule)
    read, removed = read_mod13(granule, list(granule.sds), VegetationQuality(reliability=(0,)), ALL, ALL)
    ndvi, red, nir = (read[band].to_numpy() for band in ("ndvi", "red", "nir"))
    good = np.isfinite(ndvi)
    assert good.sum() > 100
    assert removed["total"] == 1200 * 1200 - good.sum()
    assert ndvi[good].min() >= -0.2 and ndvi[good].max() <= 1
    # The product computes NDVI before it rounds the reflectances.
    assert np.mean(np.abs((nir - red) / (nir + red) - ndvi)[good] < 0.01) >= 0.99
    assert set(np.unique(read["day_of_year"].to_numpy()[good]) - granule.start.timetuple().tm_yday) <= set(range(16))


def test_the_real_subset_is_read_as_what_it_is() -> None:
    granule = inspect_mod13(SUBSET)
    assert (granule.tile, granule.grid.height, granule.grid.width) == (None, 185, 219)
    assert (granule.start, granule.end) == (date(2016, 5, 24), date(2016, 6, 8))
    assert granule.lattice_offset_px == pytest.approx(0.181, abs=1e-3)
    assert set(granule.sds) == {"ndvi", "vi_quality", "pixel_reliability"}
    read, _ = read_mod13(granule, ["ndvi"], VegetationQuality(), ALL, ALL)
    assert 0.9 < float(np.isfinite(read["ndvi"]).mean()) < 1
