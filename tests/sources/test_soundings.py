"""What the readers of soundings share, tried on values made here and on files of many kinds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as st

from sifscale.sources import SourceError
from sifscale.sources.granule import (
    Selection,
    decode_times,
    file_kind,
    find_variable,
    open_hdf5,
    read_floats,
    time_span,
)
from sifscale.sources.soundings import Area, Quality, filter_soundings, soundings_dataset

PATH = Path("granule.nc")
FILTERS = ["missing", "range", "cloud_fraction", "solar_zenith", "view_zenith", "error"]


def dataset(number: int = 3, without: tuple[str, ...] = (), **values: Any) -> xr.Dataset:
    """A valid dataset of `number` soundings with some variables replaced or left out."""
    square = np.array([-0.03, 0.03, 0.03, -0.03]), np.array([-0.03, -0.03, 0.03, 0.03])
    fields = {
        "sif": np.ones(number),
        "sif_error": np.full(number, 0.4),
        "longitude": np.full(number, -95.0),
        "latitude": np.full(number, 45.0),
        "longitude_bounds": np.tile(-95 + square[0], (number, 1)),
        "latitude_bounds": np.tile(45 + square[1], (number, 1)),
        "cloud_fraction": np.full(number, 0.1),
        "solar_zenith": np.full(number, 30.0),
        "view_zenith": np.full(number, 20.0),
    }
    time = values.pop("time", np.full(number, "2019-06-01", "datetime64[ns]"))
    fields |= {name: np.asarray(value, np.float64) for name, value in values.items()}
    kept = {name: field for name, field in fields.items() if name not in without}
    return soundings_dataset(PATH, "TEST", "SIF", kept, time)


# Area


@pytest.mark.parametrize(
    ("area", "longitude", "inside"),
    [
        ((-100, 40, -90, 50), [-100, -95, -90, -100.1, -89.9, 265], [1, 1, 1, 0, 0, 1]),
        ((170, 40, -170, 50), [170, 180, -180, -170, 190, 169.9, -169.9, 0], [1, 1, 1, 1, 1, 0, 0, 0]),
        ((170, 40, 190, 50), [175, -175, 185, -165], [1, 1, 1, 0]),
        ((-180, 40, 180, 50), [-180, 0, 180, 359.9], [1, 1, 1, 1]),
        ((350, 40, 10, 50), [355, -5, 5, 20], [1, 1, 1, 0]),
    ],
)
def test_an_area_holds_its_longitudes_however_they_are_counted(
    area: tuple[float, ...], longitude: list[float], inside: list[int]
) -> None:
    points = np.array(longitude, np.float64)
    assert Area(*area).contains(points, np.full(len(points), 45.0)).tolist() == [bool(value) for value in inside]


def test_the_margin_widens_the_area_on_all_sides() -> None:
    area = Area(179, 40, -179, 50)
    longitude = np.array([178.6, -178.6, 180, 180, 178.4, 180, np.nan])
    latitude = np.array([45, 45, 39.6, 50.4, 45, 50.6, 45])
    assert area.contains(longitude, latitude, 0.5).tolist() == [True, True, True, True, False, False, False]
    assert area.contains(longitude, latitude).sum() == 0


@given(st.floats(-180, 180), st.floats(0.5, 359), st.floats(-180, 180), st.floats(0, 3), st.integers(-1, 1))
def test_an_area_agrees_with_longitudes_laid_out_on_three_turns(
    west: float, width: float, longitude: float, margin: float, turns: int
) -> None:
    east = west + width if west + width <= 360 else west + width - 360
    copies = [longitude + 360 * turn for turn in range(-3, 4)]
    distances = [abs(copy - edge) for copy in copies for edge in (west - margin, west + width + margin)]
    assume(min(distances) > 1e-6)  # an edge is no matter of the last digit
    expected = any(west - margin <= copy <= west + width + margin for copy in copies)
    found = Area(west, -10, east, 10).contains(np.array([longitude + 360 * turns]), np.zeros(1), margin)
    assert found.tolist() == [expected]


@pytest.mark.parametrize(
    "box", [(0, 10, 5, 10), (0, 10, 5, 5), (3, 0, 3, 5), (0, 0, 5, 91), (np.nan, 0, 5, 5), (-181, 0, 5, 5)]
)
def test_an_area_that_is_none_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="is no area; give south < north"):
        Area(*box)


# Dataset


def test_the_dataset_has_the_contract_of_all_readers() -> None:
    found = dataset()
    assert dict(found.sizes) == {"sounding": 3, "corner": 4}
    assert found.attrs["product"] == "TEST"
    assert found["time"].dtype == "datetime64[ns]"
    assert {name: str(found[name].dtype) for name in ("sif", "sif_error", "cloud_fraction", "view_zenith")} == {
        name: "float32" for name in ("sif", "sif_error", "cloud_fraction", "view_zenith")
    }
    assert found["longitude_bounds"].dims == ("sounding", "corner")
    assert found["longitude_bounds"].dtype == found["latitude"].dtype == np.float64
    assert found["sif"].attrs["units"] == found["sif_error"].attrs["units"] == "mW m-2 sr-1 nm-1"
    assert all("long_name" in variable.attrs for variable in found.values())


def test_fills_and_impossible_values_are_missing() -> None:
    found = dataset(
        4,
        sif=[1, 9.969e36, -1e30, np.inf],
        sif_error=[0.4, -999, 9.969e36, 0],
        cloud_fraction=[0, 1, -1, 1.5],
        view_zenith=[0, -999, 90, 91],
        longitude_bounds=np.array([[-180.1] * 4, [-999] * 4, [180.1] * 4, [9.969e36] * 4]),
    )
    for name, present in (
        ("sif", [1, 0, 0, 0]),
        ("sif_error", [1, 0, 0, 1]),
        ("cloud_fraction", [1, 1, 0, 0]),
        ("view_zenith", [1, 0, 1, 0]),
    ):
        assert np.isfinite(found[name].values).tolist() == [bool(value) for value in present], name
    assert np.isfinite(found["longitude_bounds"].values).all(axis=1).tolist() == [True, False, True, False]


def test_a_product_without_error_has_a_missing_one() -> None:
    found = dataset(without=("sif_error", "cloud_fraction"))
    assert np.isnan(found["sif_error"].values).all()
    assert "cloud_fraction" not in found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sif": np.full(200, np.nan)}, "SIF is all fill in the 200 soundings read"),
        ({"latitude_bounds": np.full((200, 4), 9.97e36)}, "latitude_bounds are all missing in the 200 soundings"),
        ({"sif": np.r_[np.ones(197), -999, 31, 31]}, "1.5% of SIF is beyond .*such as -999; check its units"),
    ],
)
def test_values_that_cannot_be_used_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=f"^granule.nc: .*{message}"):
        dataset(200, **values)


def test_one_per_cent_of_outliers_is_left_to_the_filter() -> None:
    found, removed = filter_soundings(dataset(200, sif=np.r_[np.ones(198), 40, -40]), Quality(valid_range=(-10, 10)))
    assert found.sizes["sounding"] == 198
    assert removed["range"] == 2


def test_a_few_soundings_in_the_area_condemn_no_granule() -> None:
    found = dataset(3, sif=np.full(3, 9.97e36))
    assert found["sif"].isnull().all() and found.sizes["sounding"] == 3


def test_a_selection_without_soundings_is_no_fault() -> None:
    found, removed = filter_soundings(dataset(0), Quality(max_error=1.0))
    assert found.sizes["sounding"] == 0
    assert removed == dict.fromkeys(FILTERS, 0)


# Filter


def test_each_sounding_counts_for_the_first_filter_that_removes_it() -> None:
    bounds = np.full((9, 4), 45.0)
    bounds[1, 2] = np.nan
    time = np.full(9, "2019-06-01", "datetime64[ns]")
    time[2] = np.datetime64("NaT")
    found, removed = filter_soundings(
        dataset(
            9,
            sif=[np.nan, 1, 1, 11, 1, 1, 1, 1, 10],
            latitude_bounds=bounds,
            time=time,
            cloud_fraction=[0.9, 0.9, 0.9, 0.9, 0.21, np.nan, 0.2, 0.2, 0.2],
            solar_zenith=[80, 80, 80, 80, 80, 80, 71, 70, 70],
            view_zenith=[80, 80, 80, 80, 80, 80, 80, 60, 60],
            sif_error=[9, 9, 9, 9, 9, 9, 9, np.nan, 0.5],
        ),
        Quality(0.2, 70, 60, 0.5, (-10, 10)),
    )
    assert list(removed) == FILTERS
    assert list(removed.values()) == [3, 1, 2, 1, 0, 1]
    assert found["sif"].values.tolist() == [10]


@pytest.mark.parametrize(
    ("without", "quality"),
    [
        ("cloud_fraction", Quality(max_cloud_fraction=0.2)),
        ("solar_zenith", Quality(max_solar_zenith_deg=70)),
        ("view_zenith", Quality(max_view_zenith_deg=60)),
        ("sif_error", Quality(max_error=1)),
    ],
)
def test_a_limit_on_what_the_product_does_not_have_is_refused(without: str, quality: Quality) -> None:
    with pytest.raises(ValueError, match=f"^product TEST has no {without}; take its limit .* away$"):
        filter_soundings(dataset(without=(without,)), quality)
    assert filter_soundings(dataset(), quality)[0].sizes["sounding"] == 3


@pytest.mark.parametrize("arguments", [{"max_error": -1.0}, {"max_cloud_fraction": np.nan}, {"valid_range": (1, 1)}])
def test_limits_that_nothing_can_pass_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))} must"):
        Quality(**arguments)


MAYBE = st.one_of(st.just(np.nan), st.floats(-2, 2, width=32))
LIMIT = st.none() | st.floats(0, 2)


@given(
    st.lists(st.tuples(MAYBE, MAYBE, MAYBE, MAYBE, MAYBE, MAYBE, st.booleans()), max_size=12),
    st.tuples(LIMIT, LIMIT, LIMIT, LIMIT),
    st.tuples(st.floats(-2, 0), st.floats(0.1, 2)),
)
def test_filters_count_every_sounding_once_and_change_nothing_when_repeated(
    rows: list[tuple[float, ...]],
    limits: tuple[float | None, float | None, float | None, float | None],
    valid_range: tuple[float, float],
) -> None:
    soundings = dataset(len(rows))
    columns = np.array(rows, np.float64).reshape(-1, 7)
    for name, column in zip(
        ("sif", "cloud_fraction", "solar_zenith", "view_zenith", "sif_error"), columns.T, strict=False
    ):
        soundings[name].values[:] = column
    soundings["longitude_bounds"].values[:, 3] = columns[:, 5]
    soundings["time"].values[columns[:, 6] == 1] = np.datetime64("NaT")
    quality = Quality(*limits, valid_range)
    before = soundings.copy(deep=True)
    found, removed = filter_soundings(soundings, quality)
    assert found.sizes["sounding"] + sum(removed.values()) == len(rows)
    again, removed_again = filter_soundings(found, quality)
    xr.testing.assert_identical(again, found)
    assert removed_again == dict.fromkeys(FILTERS, 0)
    xr.testing.assert_identical(soundings, before)
    for name, limit in zip(("cloud_fraction", "solar_zenith", "view_zenith", "sif_error"), limits, strict=True):
        assert limit is None or (found[name].values <= limit).all()


# Times


@pytest.mark.parametrize(
    ("value", "units", "expected"),
    [
        (86_400_001.0, "milliseconds since 2019-06-01 00:00:00", "2019-06-02T00:00:00.001"),
        (-1.0, "ms since 2019-06-01", "2019-05-31T23:59:59.999"),
        (1559347200.25, "seconds since 1970-1-1 0:0:0", "2019-06-01T00:00:00.25"),
        (0.0, "seconds since 2019-06-01T02:00:00+02:00", "2019-06-01T00:00:00"),
        (1.0, "days since 2019-05-31 00:00:00.0 UTC", "2019-06-01T00:00:00"),
        (24.0, " Hours since 2019-05-31T00:00:00Z ", "2019-06-01T00:00:00"),
    ],
)
def test_times_are_decoded_as_their_units_say(value: float, units: str, expected: str) -> None:
    found = decode_times(PATH, "time", np.array([value, np.nan]), units)
    assert found[0] == np.datetime64(expected, "us")
    assert np.isnat(found[1])


@pytest.mark.parametrize(
    "units", ["", "seconds", "fortnights since 2019-06-01", "seconds since now", "s since 2019-13-45"]
)
def test_units_of_time_that_cannot_be_read_are_refused(units: str) -> None:
    with pytest.raises(SourceError, match=f'^granule.nc: time has units "{units}"; "seconds since'):
        decode_times(PATH, "time", np.zeros(1), units)


@pytest.mark.parametrize("value", [0.0, 1e18, -1e18])
def test_times_before_or_after_any_such_satellite_are_refused(value: float) -> None:
    with pytest.raises(SourceError, match=r'^granule.nc: time .* "seconds since 1970-01-01" is not in 1995-2100'):
        decode_times(PATH, "time", np.array([1.6e9, value]), "seconds since 1970-01-01")


def test_a_granule_without_any_time_is_refused() -> None:
    with pytest.raises(SourceError, match="no sounding has a time"):
        time_span(PATH, "TEST", np.array(["NaT"], "datetime64[ns]"))


# Files


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x89HDF\r\n\x1a\n123", "HDF5"),
        (b"\x0e\x03\x13\x01123", "HDF4 (such as MOD13A2)"),
        (b"CDF\x01", "NetCDF-3"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"\n<!DOCTYPE html><title>Login", "an HTML page (of a login or an error)"),
        (b"\x00\x01", "binary data of an unknown kind"),
        (b"a,b\n1,2\n", "text"),
    ],
)
def test_a_file_is_known_by_its_first_bytes(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert file_kind(path) == kind
    with pytest.raises(SourceError, match=r"truncated or damaged HDF5|looks like .*, not TEST; check the kind"):
        with open_hdf5(path, "TEST"):
            pass


def test_files_that_cannot_be_opened_say_why(tmp_path: Path) -> None:
    (tmp_path / "empty.nc").touch()
    for name, message in (
        ("absent.nc", "no such file"),
        ("", r"cannot be opened \(Is a directory\)"),
        ("empty.nc", r"is empty \(0 bytes\)"),
        ("a" * 300, "File name too long"),
    ):
        with pytest.raises(SourceError, match=message) as caught:
            file_kind(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "granule.nc"
    path.write_bytes(b"a")
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # permissions do not hold for root
        with pytest.raises(SourceError, match="no permission to read it"):
            file_kind(path)
    finally:
        os.seteuid(user)


def test_numbers_are_read_without_fills_and_unpacked(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "file.nc", "w") as file:
        file["float"] = np.array([1, -999.9, 9.969e36, np.inf, np.nan], np.float32)
        file["float"].attrs["_FillValue"] = -999.9
        file["packed"] = np.array([0, 100, -1], np.int16)
        file["packed"].attrs.update({"missing_value": np.int16(-1), "scale_factor": 0.01, "add_offset": [1.0]})
        file["default_fill"] = np.array([5, -2147483647], np.int32)
        file["text"] = np.array([b"a"])
        np.testing.assert_array_equal(read_floats(file["float"], slice(None)), [1] + 4 * [np.nan])
        np.testing.assert_array_equal(read_floats(file["packed"], slice(None)), [1, 2, np.nan])
        np.testing.assert_array_equal(read_floats(file["packed"], slice(1, 2)), [2])
        np.testing.assert_array_equal(read_floats(file["default_fill"], slice(None)), [5, np.nan])
        with pytest.raises(SourceError, match="file.nc: /text holds .*, not numbers"):
            read_floats(file["text"], slice(None))
        with pytest.raises(SourceError, match=r"no variable b in group /a \(no such group\)"):
            find_variable(file, "a/b")


@pytest.mark.parametrize("number", [1, 4, 7])
def test_corners_are_found_in_either_order_of_the_axes(tmp_path: Path, number: int) -> None:
    corners = np.arange(number * 4, dtype=np.float64).reshape(number, 4)
    with h5py.File(tmp_path / "file.nc", "w") as file:
        degrees = np.linspace(50, -50, number)
        file["lon"], file["lat"] = degrees, degrees
        file["by_sounding"], file["by_corner"] = corners, corners.T
        everything = Selection.of_centres(file, "lon", "lat", None)
        northern = Selection.of_centres(file, "lon", "lat", Area(-60, 0.6, 60, 60))
        assert northern.rows == slice(0, (degrees > 0).sum())
        for selection, expected in ((everything, corners), (northern, corners[degrees > 0])):
            np.testing.assert_array_equal(selection.corners("by_sounding", 1), expected)
            np.testing.assert_array_equal(selection.corners("by_corner", 0), expected)
