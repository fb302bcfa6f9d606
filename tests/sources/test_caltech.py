"""Caltech's ungridded granules written in the layout of the product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import pytest

from sifscale.sources import SourceError
from sifscale.sources.caltech import inspect_caltech, read_caltech
from sifscale.sources.soundings import Area, Quality, filter_soundings

NUMBER = 40
START_S = 1_559_347_200.0  # 2019-06-01 00:00 UTC


def write_caltech(path: Path, change: dict[str, Any] | None = None, number: int = NUMBER) -> Path:
    """A granule with soundings along a line; `change`: {variable: values, or None to leave it out}."""
    rng = np.random.default_rng(2)
    longitude, latitude = np.linspace(-110, -80, number), np.linspace(30, 60, number)
    sif, factor = rng.normal(1, 0.5, number), rng.uniform(0.3, 0.5, number)
    variables: dict[str, Any] = {
        "lon": longitude,
        "lat": latitude,
        "lon_bnds": longitude + 0.03 * np.array([-1, 1, 1, -1])[:, None],
        "lat_bnds": latitude + 0.03 * np.array([-1, -1, 1, 1])[:, None],
        "TIME": START_S + np.linspace(0, 90_000, number),
        "sif": sif,
        "dcSIF": sif * factor,
        "sif_err": rng.uniform(0.3, 0.6, number),
        "daily_correction_factor": factor,
        "cloud_fraction": np.linspace(0, 0.8, number),
        "sza": np.linspace(20, 69, number),
        "vza": np.linspace(0, 59, number),
    }
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"n": number, "c": 4}
        for name, values in (variables | (change or {})).items():
            if values is not None:
                dtype = np.float64 if name == "TIME" else np.float32
                dims = ("c", "n")[-np.ndim(values) :]
                if np.shape(values) != tuple(file.dimensions[dim].size for dim in dims):
                    dims = tuple(f"{name}_{axis}" for axis in range(np.ndim(values)))
                    file.dimensions.update(dict(zip(dims, np.shape(values), strict=True)))
                file.create_variable(name, dims, data=np.asarray(values, dtype))
    return path


@pytest.fixture
def granule(tmp_path: Path) -> Path:
    return write_caltech(tmp_path / "TROPO_SIF_2019-06-01_ungridded.nc")


def test_a_granule_is_read_value_by_value(granule: Path) -> None:
    found = read_caltech(granule)
    assert found.attrs["product"] == "Caltech TROPOMI SIF"
    with h5py.File(granule) as file:
        for name, source in {
            "sif": "sif",
            "sif_error": "sif_err",
            "longitude": "lon",
            "latitude": "lat",
            "cloud_fraction": "cloud_fraction",
            "solar_zenith": "sza",
            "view_zenith": "vza",
        }.items():
            np.testing.assert_array_equal(found[name].values, file[source][()], err_msg=name)
        for name, source in {"longitude_bounds": "lon_bnds", "latitude_bounds": "lat_bnds"}.items():
            np.testing.assert_array_equal(found[name].values, file[source][()].T, err_msg=name)
    assert found["time"].values[0] == np.datetime64("2019-06-01")


def test_the_daily_mean_has_an_error_of_its_own_scale(granule: Path) -> None:
    plain, daily = read_caltech(granule), read_caltech(granule, day_length_corrected=True)
    with h5py.File(granule) as file:
        factor = file["daily_correction_factor"][()]
    np.testing.assert_allclose(daily["sif"], plain["sif"] * factor, rtol=1e-6)
    np.testing.assert_allclose(daily["sif_error"], plain["sif_error"] * factor, rtol=1e-6)


def test_the_summary_agrees_with_the_soundings(granule: Path) -> None:
    info, time = inspect_caltech(granule), read_caltech(granule)["time"].values
    assert (info.start, info.end, info.soundings) == (time[0], time[-1], NUMBER)
    assert info.end == np.datetime64("2019-06-02T01:00:00")


def test_corners_of_four_soundings_are_not_mistaken_for_soundings(tmp_path: Path) -> None:
    path = write_caltech(tmp_path / "four.nc", number=4)
    found = read_caltech(path)
    np.testing.assert_allclose(found["longitude_bounds"].mean("corner"), found["longitude"], atol=1e-5)


def test_only_the_area_and_half_a_degree_around_it_is_read(granule: Path) -> None:
    everything = read_caltech(granule)
    kept = np.flatnonzero((everything["longitude"] >= -100.5) & (everything["longitude"] <= -94.5))
    found = read_caltech(granule, area=Area(-100, 30, -95, 60))
    assert found.identical(everything.isel(sounding=kept))
    assert 0 < found.sizes["sounding"] < NUMBER


def test_a_granule_with_fewer_variables_has_no_error_and_no_angles(tmp_path: Path) -> None:
    change = dict.fromkeys(["sif_err", "cloud_fraction", "sza", "vza"])
    found = read_caltech(write_caltech(tmp_path / "red.nc", change), day_length_corrected=True)
    assert np.isnan(found["sif_error"].values).all()
    assert "solar_zenith" not in found
    assert filter_soundings(found, Quality())[0].sizes["sounding"] == NUMBER
    with pytest.raises(ValueError, match="product Caltech TROPOMI SIF has no sif_error"):
        filter_soundings(found, Quality(max_error=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dcSIF": None, "sif": None}, r"no variable sif in group / \("),
        ({"lat": None}, "no variable lat in group /"),
        ({"TIME": np.full(NUMBER, 737577.0)}, 'TIME 737577 "seconds since 1970-01-01" is not in 1995-2100'),
        ({"TIME": np.full(NUMBER - 1, START_S)}, r"TIME has shape \(39,\), but there are 40 soundings"),
        ({"lat_bnds": np.ones((2, NUMBER))}, r"lat_bnds has shape \(2, 40\)"),
        ({"sif": np.full(NUMBER, -9999.0)}, "100.0% of sif is beyond .*-9999; check its units and fill value"),
    ],
)
def test_broken_granules_name_file_and_fault(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_caltech(tmp_path / "broken.nc", change)
    with pytest.raises(SourceError, match=message) as caught:
        read_caltech(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_granule_of_troposif_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["PRODUCT/SIF_743"] = np.zeros(3)
    with pytest.raises(SourceError, match="looks like TROPOSIF, not Caltech TROPOMI SIF"):
        inspect_caltech(tmp_path / "a.nc")
