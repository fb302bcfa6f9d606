"""Simulated TROPOSIF granules: laid out as the true product, and read by our reader and by others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py
import numpy as np
import xarray as xr

from sifscale.sources.troposif import read_troposif

if TYPE_CHECKING:
    from conftest import Osse


def test_troposif_granules_have_the_products_layout(osse: Osse) -> None:
    names = [path.name for path in osse.swaths]
    assert len(names) >= 7 and names[0].startswith("TROPOSIF_L2B_2019-06-2") and names[0].endswith(".nc")
    geolocations, results = "SUPPORT_DATA/GEOLOCATIONS", "SUPPORT_DATA/DETAILED_RESULTS"
    with h5py.File(osse.swaths[0]) as file:
        product, number = file["PRODUCT"], len(file["PRODUCT/latitude"])
        sif = [f"{kind}_{window}" for kind in ("SIF", "SIF_Corr", "SIF_ERROR") for window in (743, 735)]
        for name in sif + [f"{results}/Mean_TOA_RAD_743"]:
            assert product[name].attrs["units"] == "mW m-2 sr-1 nm-1"
        angles = [f"{geolocations}/{kind}_angle" for kind in ("solar_zenith", "viewing_zenith", "relative_azimuth")]
        single = ["latitude", "longitude", *angles, *sif, "SUPPORT_DATA/INPUT_DATA/cloud_fraction_L2"]
        shapes: dict[str, tuple[int, ...]] = {name: (number,) for name in single}
        shapes |= {f"{geolocations}/{kind}_bounds": (number, 4) for kind in ("latitude", "longitude")}
        shapes[f"{results}/TOA_RFL"] = (number, 7)
        for name, shape in shapes.items():
            variable = product[name]
            assert variable.dtype == np.float32 and variable.shape == shape and variable.compression == "gzip", name
            assert "_FillValue" not in variable.attrs
        assert product["delta_time"].dtype == np.int32 and product["SUPPORT_DATA/INPUT_DATA/LC_MASK"].dtype == np.uint8
        day = names[0][len("TROPOSIF_L2B_") : -3]
        assert product["delta_time"].attrs["units"] == f"milliseconds since {day} 00:00:00"
        since = np.datetime64("2010-01-01") + np.timedelta64(int(product["time"][0]), "s")
        assert since == np.datetime64(day)
        settings = file["METADATA/ALGORITHM_SETTINGS"].attrs
        assert (settings["Cloud fraction threshold"], settings["SZA threshold"]) == (0.8, 70)
        assert (settings["VZA threshold"], settings["Quality level threshold"]) == (60, 80)


def test_netcdf_readers_open_a_troposif_granule(osse: Osse) -> None:
    path = osse.swaths[0]
    with xr.open_dataset(path, group="PRODUCT", engine="h5netcdf") as product:
        assert product["SIF_743"].dims == ("n_elem",)
        assert str(product["delta_time"].dtype).startswith(("timedelta", "datetime"))


def test_the_reader_of_troposif_reads_the_simulated_granules(osse: Osse) -> None:
    path = osse.swaths[0]
    seen, stored = read_troposif(path), osse.variables(path)
    good = stored["SIF_743"] < 1e30
    np.testing.assert_array_equal(np.isfinite(seen["sif"]), good)
    np.testing.assert_array_equal(seen["sif"].values[good], stored["SIF_743"][good])
    np.testing.assert_allclose(seen["longitude_bounds"], stored["longitude_bounds"])
    assert np.all(seen["time"].values.astype("datetime64[D]") == np.datetime64(path.stem[-10:]))
