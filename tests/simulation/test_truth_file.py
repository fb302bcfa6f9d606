"""The truth file: complete, on the fine grid, with CF metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from conftest import Osse


def test_the_truth_is_on_the_fine_grid_with_cf_metadata(osse: Osse) -> None:
    dataset, fine = osse.truth, osse.grid.refine(4)
    np.testing.assert_allclose(dataset["x"], fine.x)
    np.testing.assert_allclose(dataset["y"], fine.y)
    for name in ("sif_truth", "ndvi", "evi", "red", "nir", "blue", "mir"):
        assert dataset[name].dtype == np.float32 and dataset[name].shape == (96, 96)
        assert dataset[name].attrs["grid_mapping"] == "spatial_ref" and np.isfinite(dataset[name]).all()
    cover = dataset["land_cover"]
    assert cover.dtype == np.uint8 and len(cover.attrs["flag_meanings"].split()) == len(cover.attrs["flag_values"]) == 9
    assert dataset["time_end"].values == np.datetime64("2019-07-11") and "crs_wkt" in dataset["spatial_ref"].attrs
