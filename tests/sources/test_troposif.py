"""TROPOSIF granules written in the layout of the product, whole and broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import pytest

from sifscale.sources import SourceError
from sifscale.sources.soundings import Area
from sifscale.sources.troposif import inspect_troposif, read_troposif

GEOLOCATIONS = "PRODUCT/SUPPORT_DATA/GEOLOCATIONS"
FILL = np.float32(9.969209968386869e36)
NUMBER = 50
FACTOR = 0.4


def write_troposif(
    path: Path, change: dict[str, Any] | None = None, number: int = NUMBER, corner: str = "ncorner"
) -> Path:
    """A granule with soundings along a line; `change`: {variable path: values, or None to leave it out}."""
    rng = np.random.default_rng(1)
    centre = np.linspace(-110, -80, number), np.linspace(30, 60, number)
    square = 0.03 * np.array([[-1, 1, 1, -1], [-1, -1, 1, 1]])
    sif = rng.normal(1, 0.5, number).astype(np.float32)
    variables: dict[str, Any] = {
        "PRODUCT/time": np.array([297129600], np.int32),  # 2019-06-02
        "PRODUCT/delta_time": np.linspace(0, 86_400_000 + 600_000, number).astype(np.int32),
        "PRODUCT/longitude": centre[0].astype(np.float32),
        "PRODUCT/latitude": centre[1].astype(np.float32),
        f"{GEOLOCATIONS}/longitude_bounds": (centre[0][:, None] + square[0]).astype(np.float32),
        f"{GEOLOCATIONS}/latitude_bounds": (centre[1][:, None] + square[1]).astype(np.float32),
        f"{GEOLOCATIONS}/solar_zenith_angle": np.linspace(20, 69, number, dtype=np.float32),
        f"{GEOLOCATIONS}/viewing_zenith_angle": np.linspace(0, 59, number, dtype=np.float32),
        "PRODUCT/SUPPORT_DATA/INPUT_DATA/cloud_fraction_L2": np.linspace(0, 0.8, number, dtype=np.float32),
    }
    for band, added in ((743, 0), (735, 0.1)):
        variables[f"PRODUCT/SIF_{band}"] = sif + np.float32(added)
        variables[f"PRODUCT/SIF_Corr_{band}"] = (sif + np.float32(added)) * np.float32(FACTOR)
        variables[f"PRODUCT/SIF_ERROR_{band}"] = rng.uniform(0.3, 0.6, number).astype(np.float32)
    variables |= change or {}
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"n_elem": number, corner: 4, "one": 1}
        for name, values in variables.items():
            if values is None:
                continue
            dims = ("one",) if name == "PRODUCT/time" else ("n_elem", corner)[: np.ndim(values)]
            if np.shape(values) != tuple(file.dimensions[dim].size for dim in dims):
                dims = tuple(f"{name.rpartition('/')[2]}_{axis}" for axis in range(np.ndim(values)))
                file.dimensions.update(dict(zip(dims, np.shape(values), strict=True)))
            file.create_variable(f"/{name}", dims, data=values, chunks=None)
        times = {"time": "seconds since 2010-01-01 00:00:00", "delta_time": "milliseconds since 2019-06-02 00:00:00"}
        for name, units in times.items():
            if variables[f"PRODUCT/{name}"] is not None:
                file[f"PRODUCT/{name}"].attrs["units"] = units
    return path


def set_units(path: Path, **units: str | None) -> Path:
    """Change or take away the units of variables in PRODUCT."""
    with h5py.File(path, "r+") as file:
        for name, text in units.items():
            del file["PRODUCT"][name].attrs["units"]
            if text is not None:
                file["PRODUCT"][name].attrs["units"] = text
    return path


@pytest.fixture
def granule(tmp_path: Path) -> Path:
    return write_troposif(tmp_path / "TROPOSIF_L2B_2019-06-02.nc")


def test_a_granule_is_read_value_by_value(granule: Path) -> None:
    found = read_troposif(granule)
    assert found.attrs["product"] == "TROPOSIF"
    assert dict(found.sizes) == {"sounding": NUMBER, "corner": 4}
    with h5py.File(granule) as file:
        for name, source in {
            "sif": "PRODUCT/SIF_743",
            "sif_error": "PRODUCT/SIF_ERROR_743",
            "longitude": "PRODUCT/longitude",
            "latitude_bounds": f"{GEOLOCATIONS}/latitude_bounds",
            "longitude_bounds": f"{GEOLOCATIONS}/longitude_bounds",
            "cloud_fraction": "PRODUCT/SUPPORT_DATA/INPUT_DATA/cloud_fraction_L2",
            "solar_zenith": f"{GEOLOCATIONS}/solar_zenith_angle",
            "view_zenith": f"{GEOLOCATIONS}/viewing_zenith_angle",
        }.items():
            np.testing.assert_array_equal(found[name].values, file[source][()], err_msg=name)


def test_bands_and_the_daily_mean_are_told_apart(granule: Path) -> None:
    plain, other = read_troposif(granule), read_troposif(granule, band=735)
    np.testing.assert_allclose(other["sif"], plain["sif"] + 0.1, rtol=1e-5)
    daily = read_troposif(granule, band=735, day_length_corrected=True)
    assert daily["sif"].attrs["source_variable"] == "PRODUCT/SIF_Corr_735"
    np.testing.assert_allclose(daily["sif"], other["sif"] * FACTOR, rtol=1e-6)
    np.testing.assert_allclose(daily["sif_error"], other["sif_error"] * FACTOR, rtol=1e-5)
    with pytest.raises(ValueError, match="bands 743 and 735, found 740"):
        read_troposif(granule, band=740)


@pytest.mark.parametrize("name", ["S5P_PAL__L2B_SIF____20190602T000000.nc", "any name"])
def test_names_of_files_and_dimensions_do_not_matter(tmp_path: Path, name: str) -> None:
    assert read_troposif(write_troposif(tmp_path / name, corner="four")).sizes["sounding"] == NUMBER


@pytest.mark.parametrize(
    ("delta_units", "time_units"),
    [
        ("milliseconds since 2019-06-02 00:00:00", None),
        ("milliseconds", "seconds since 2010-01-01 00:00:00"),
        (None, None),
        ("ms since 2019-06-02T00:00:00Z", "nonsense"),
    ],
)
def test_times_run_over_midnight_whichever_variable_tells_the_day(
    granule: Path, delta_units: str | None, time_units: str | None
) -> None:
    set_units(granule, delta_time=delta_units, time=time_units)
    time = read_troposif(granule)["time"].values
    assert time[0] == np.datetime64("2019-06-02T00:00:00")
    assert time[-1] == np.datetime64("2019-06-03T00:10:00")
    info = inspect_troposif(granule)
    assert (info.path, info.product, info.soundings) == (granule, "TROPOSIF", NUMBER)
    assert (info.start, info.end) == (time[0], time[-1])


def test_delta_time_counts_from_midnight_even_if_time_is_later(tmp_path: Path) -> None:
    path = write_troposif(tmp_path / "a.nc", {"PRODUCT/time": np.array([297129600 + 5000], np.int32)})
    set_units(path, delta_time="milliseconds")
    assert read_troposif(path)["time"].values[0] == np.datetime64("2019-06-02")


def test_undeclared_fills_are_missing(tmp_path: Path) -> None:
    sif = np.linspace(0, 2, NUMBER, dtype=np.float32)
    sif[[3, 7]] = FILL
    bounds = np.tile(np.linspace(30, 60, NUMBER, dtype=np.float32)[:, None], 4)
    bounds[5, 2] = FILL
    delta_time = np.arange(NUMBER, dtype=np.int32)
    delta_time[9] = -2147483647
    change = {"PRODUCT/SIF_735": sif, f"{GEOLOCATIONS}/latitude_bounds": bounds, "PRODUCT/delta_time": delta_time}
    found = read_troposif(write_troposif(tmp_path / "a.nc", change), band=735)
    assert np.flatnonzero(np.isnan(found["sif"].values)).tolist() == [3, 7]
    assert np.argwhere(np.isnan(found["latitude_bounds"].values)).tolist() == [[5, 2]]
    assert np.flatnonzero(np.isnat(found["time"].values)).tolist() == [9]


def test_only_the_area_and_half_a_degree_around_it_is_read(granule: Path) -> None:
    everything = read_troposif(granule)
    area = Area(-100, 41, -95, 44)
    expected = everything.isel(
        sounding=np.flatnonzero(
            (abs(everything["longitude"] + 97.5) <= 3.0) & (abs(everything["latitude"] - 42.5) <= 2.0)
        )
    )
    assert 0 < expected.sizes["sounding"] < NUMBER
    assert read_troposif(granule, area=area).identical(expected)
    assert read_troposif(granule, area=Area(10, 41, 20, 44)).sizes["sounding"] == 0


def test_an_area_across_the_dateline_takes_both_sides(tmp_path: Path) -> None:
    longitude = np.linspace(160, 200, NUMBER, dtype=np.float32)
    longitude[longitude > 180] -= 360
    path = write_troposif(tmp_path / "a.nc", {"PRODUCT/longitude": longitude})
    found = read_troposif(path, area=Area(175, 0, -175, 90))["longitude"].values
    np.testing.assert_array_equal(found, longitude[np.abs(longitude) >= 174.5])
    assert (found > 0).any() and (found < 0).any()


def test_faults_outside_the_area_do_not_matter(tmp_path: Path) -> None:
    sif = np.ones(NUMBER, np.float32)
    sif[25:] = FILL
    path = write_troposif(tmp_path / "a.nc", {"PRODUCT/SIF_743": sif})
    assert np.isfinite(read_troposif(path, area=Area(-110, 30, -100, 40))["sif"].values).all()
    with pytest.raises(SourceError, match="PRODUCT/SIF_743 is all fill in the 11 soundings read"):
        read_troposif(path, area=Area(-87, 30, -81.5, 70))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"PRODUCT/SIF_743": None}, r"no variable SIF_743 in group /PRODUCT \(.*SIF_735"),
        ({"PRODUCT/delta_time": None}, "no variable delta_time in group /PRODUCT"),
        ({f"{GEOLOCATIONS}/latitude_bounds": None}, f"no variable latitude_bounds in group /{GEOLOCATIONS}"),
        ({"PRODUCT/SIF_743": np.full(NUMBER, FILL)}, "SIF_743 is all fill"),
        ({f"{GEOLOCATIONS}/longitude_bounds": np.full((NUMBER, 4), np.nan)}, "longitude_bounds are all missing"),
        ({"PRODUCT/SIF_743": np.full(NUMBER, 1200.0)}, r"100.0% of PRODUCT/SIF_743 is beyond \+-30 .*1200"),
        ({"PRODUCT/SIF_743": np.ones(NUMBER - 1)}, r"SIF_743 has shape \(49,\), but there are 50 soundings"),
        ({f"{GEOLOCATIONS}/latitude_bounds": np.ones((NUMBER, 5))}, r"latitude_bounds has shape \(50, 5\)"),
        ({"PRODUCT/latitude": np.ones((5, 10))}, "looks like per-orbit TROPOSIF L2"),
    ],
)
def test_broken_granules_name_file_fault_and_remedy(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_troposif(tmp_path / "broken.nc", change)
    with pytest.raises(SourceError, match=message) as caught:
        read_troposif(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "; " in text and "\n" not in text


def test_a_granule_without_soundings_is_refused(tmp_path: Path) -> None:
    path = write_troposif(tmp_path / "none.nc", number=0)
    for read in (read_troposif, inspect_troposif):
        with pytest.raises(SourceError, match="no soundings in it"):
            read(path)


def test_missing_coordinates_are_a_fault_and_not_an_empty_area(tmp_path: Path) -> None:
    path = write_troposif(tmp_path / "a.nc", {"PRODUCT/longitude": np.full(NUMBER, FILL)})
    with pytest.raises(SourceError, match="PRODUCT/longitude, PRODUCT/latitude are all missing"):
        read_troposif(path, area=Area(-110, 30, -100, 40))


@pytest.mark.parametrize(
    ("delta_units", "message"),
    [("weeks since 2019-06-02", "has units"), ("days since 2019-06-02", "is not in 1995-2100")],
)
def test_times_that_cannot_be_told_are_refused(granule: Path, delta_units: str, message: str) -> None:
    set_units(granule, delta_time=delta_units)
    for read in (read_troposif, inspect_troposif):
        with pytest.raises(SourceError, match=message):
            read(granule)


def test_a_granule_without_any_epoch_is_refused(tmp_path: Path) -> None:
    path = set_units(write_troposif(tmp_path / "a.nc", {"PRODUCT/time": None}), delta_time="milliseconds")
    with pytest.raises(SourceError, match="no variable time in group /PRODUCT"):
        read_troposif(path)
    path = set_units(write_troposif(tmp_path / "b.nc", {"PRODUCT/time": np.array([FILL])}), delta_time=None)
    with pytest.raises(SourceError, match="PRODUCT/time holds no time"):
        read_troposif(path)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_a_chunk(path: Path) -> None:
    """A checksum that does not fit: what a disk or a transfer does to a few bytes."""
    with h5py.File(path, "r+") as file:
        del file["PRODUCT/SIF_743"]
        variable = file.create_dataset(
            "PRODUCT/SIF_743", data=np.ones(NUMBER, np.float32), chunks=(NUMBER,), fletcher32=True
        )
        offset = variable.id.get_chunk_info(0).byte_offset
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"spoilt")


@pytest.mark.parametrize("spoil", [cut_in_half, spoil_a_chunk])
def test_damaged_granules_are_refused_in_one_line(granule: Path, spoil: Callable[[Path], None]) -> None:
    spoil(granule)
    with pytest.raises(SourceError, match=r"truncated or damaged HDF5 \(.+\); fetch it again") as caught:
        read_troposif(granule)
    assert "\n" not in str(caught.value)


def test_other_products_are_named(tmp_path: Path) -> None:
    for name, variables, kind in (
        ("caltech", ["sif", "TIME", "lat_bnds"], "Caltech TROPOMI SIF, not TROPOSIF"),
        ("no2", ["PRODUCT/nitrogendioxide_tropospheric_column"], "another Sentinel-5P product .*nitrogendioxide"),
        ("orbit", ["PRODUCT/SIF_743", "PRODUCT/scanline"], "per-orbit TROPOSIF L2"),
        ("oco", ["SIF_740nm", "Daily_SIF_740nm"], "OCO SIF Lite in NetCDF"),
        ("other", ["a", "b"], "HDF5 with a, b, not TROPOSIF"),
        ("nothing", [], "HDF5 with nothing in it"),
    ):
        with h5py.File(tmp_path / name, "w") as file:
            for variable in variables:
                file[variable] = np.zeros(3)
        with pytest.raises(SourceError, match=f"looks like {kind}"):
            read_troposif(tmp_path / name)
    (tmp_path / "MOD13A2.hdf").write_bytes(b"\x0e\x03\x13\x01")
    with pytest.raises(SourceError, match=r"looks like HDF4 \(such as MOD13A2\), not TROPOSIF"):
        read_troposif(tmp_path / "MOD13A2.hdf")
