"""Patch sets: bands stay lazy, the target counts where it may, and places that touch share a group."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Geod

from sifscale.sources import SourceError
from sifscale.sources.patches import _chained, _points_m, read_patches

RAW = Path(os.environ.get("SIFSCALE_RAW", Path(__file__).parents[3] / "shared" / "data"))
SHAPE = (5, 4, 3)
VALUES = np.arange(60, dtype=np.float32).reshape(SHAPE)
X_M = np.array([0.0, 100.0, 200.0, 900.0, 0.0])


def patch_set(**changes: Any) -> xr.Dataset:
    dims = ("sample", "y", "x")
    days = np.array("2020-03-01", "datetime64[ns]") + np.arange(5) * np.timedelta64(16, "D")
    variables: dict[str, Any] = {
        "sif": (dims, VALUES, {"units": "K"}),
        "ref_4": (dims, (VALUES + 1).astype(np.int16)),
        "soundings": (dims, np.where(VALUES % 2 == 0, 3, 0).astype(np.int8)),
        "time": ("sample", days),
        "ul_x": ("sample", X_M),
        "ul_y": ("sample", np.zeros(5)),
        "column": ("sample", (X_M / 100).astype(int)),
    }
    return xr.Dataset({name: value for name, value in (variables | changes).items() if value is not None})


def written(path: Path, dataset: xr.Dataset, **encoding: Any) -> Path:
    dataset.to_netcdf(path, engine="h5netcdf", encoding={"sif": encoding})
    return path


def read(path: Path, **changes: Any) -> xr.Dataset:
    arguments: dict[str, Any] = {
        "columns": {"sif": ["sif_740", "sif"], "red": ["ref_4"]},
        "scale": {"red": 1e-4},
        "units": {"red": "1"},
        "valid_range": {},
        "target": "sif",
        "where": None,
        "place": ["column"],
        "pixel_m": 30.0,
        "group_distance": None,
    }
    return read_patches(path, **(arguments | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "a.nc", patch_set())


def test_neighbours_on_a_lattice_share_a_group(tmp_path: Path) -> None:
    dataset = patch_set().assign_coords(
        row=("sample", np.array([0, 1, 2, 5, 3])), column=("sample", np.array([0, 1, 2, 0, 1]))
    )
    patches = read(written(tmp_path / "lattice.nc", dataset), place=["row", "column"], group_lattice=2)
    assert patches["group"].values.tolist() == [
        "row 0, column 0", "row 0, column 0", "row 1, column 1", "row 2, column 0", "row 1, column 0",
    ]  # fmt: skip
    with pytest.raises(SourceError, match="no whole numbers; group by distance instead"):
        read(tmp_path / "lattice.nc", place=["ul_x"], group_lattice=2)
    with pytest.raises(ValueError, match="contradict each other"):
        read(tmp_path / "lattice.nc", group_lattice=2, group_distance=5.0)


def test_bands_places_and_times_come_from_the_file(path: Path) -> None:
    patches = read(path)
    assert patches["sif"].dims == ("sample", "y", "x") and patches["red"].dtype == np.float32
    np.testing.assert_array_equal(patches["sif"], VALUES)
    np.testing.assert_array_equal(patches["red"], ((VALUES.astype(np.float64) + 1) * 1e-4).astype(np.float32))
    assert patches["sif"].attrs["units"] == "K" and patches["red"].attrs["units"] == "1"
    assert patches["place"].values.tolist() == ["column 0", "column 1", "column 2", "column 9", "column 0"]
    np.testing.assert_array_equal(patches["group"], patches["place"])
    np.testing.assert_array_equal(patches["time_start"], patches["time_end"])
    assert patches["time_end"].values[1] == np.datetime64("2020-03-17")
    np.testing.assert_array_equal(patches["y"], [105, 75, 45, 15])
    np.testing.assert_array_equal(patches["x"], [15, 45, 75])
    np.testing.assert_array_equal(patches["ul_x"], X_M)


def test_zarr_stores_are_read_too(path: Path, tmp_path: Path) -> None:
    patch_set().to_zarr(tmp_path / "a.zarr", consolidated=False)
    xr.testing.assert_equal(read(tmp_path / "a.zarr"), read(path))


def test_the_valid_range_counts_after_scaling_and_both_ends_belong_to_it(path: Path) -> None:
    red = read(path, valid_range={"red": (0.0003, 0.0059)})["red"].values
    np.testing.assert_array_equal(np.isnan(red).ravel().nonzero()[0], [0, 1, 59])


def test_conditions_mask_the_target_and_nothing_else(path: Path) -> None:
    patches = read(path, where={"soundings": (1, np.inf), "ref_4": (0, 50)})
    np.testing.assert_array_equal(np.isfinite(patches["sif"]), (VALUES % 2 == 0) & (VALUES < 50))
    assert np.isfinite(patches["red"]).all()


def test_fills_are_missing_whether_declared_or_not(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[0, 0, :2] = -9999, 9.969e36
    path = written(tmp_path / "a.nc", patch_set(sif=(("sample", "y", "x"), values)), _FillValue=-9999)
    assert np.isnan(read(path)["sif"].values[0, 0]).tolist() == [True, True, False]


@given(order=st.permutations(["sample", "y", "x"]), scale=st.sampled_from([1.0, -0.5, 1e-4, 1000.0]))
def test_dimensions_in_any_order_and_any_scale_give_the_same_patches(
    order: list[str], scale: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dataset = patch_set()
    dataset["sif"] = dataset["sif"].transpose(*order)
    sif = read(written(tmp_path_factory.mktemp("order") / "a.nc", dataset), scale={"sif": scale})["sif"]
    np.testing.assert_array_equal(sif, (VALUES.astype(np.float64) * scale).astype(np.float32))


def test_two_bands_may_read_one_variable_in_two_ways(path: Path) -> None:
    patches = read(path, columns={"sif": ["sif"], "kilo": ["sif"]}, scale={"kilo": 1e-3}, units={})
    assert float(patches["sif"].max()) == 59 and float(patches["kilo"].max()) == np.float32(0.059)


@pytest.mark.parametrize(
    ("y", "flipped"),
    [([3.0, 2, 1, 0], False), ([0, 1, 2, 3], False), ([15.0, 45, 75, 105], True), ([90.0, 60, 30, 0], False)],
)
def test_rows_from_south_to_north_are_turned_but_row_numbers_are_not(
    y: list[float], flipped: bool, tmp_path: Path
) -> None:
    patches = read(written(tmp_path / "a.nc", patch_set().assign_coords(y=y)), where={"soundings": (1, 9)})
    expected = np.where(VALUES % 2 == 0, VALUES, np.nan)
    np.testing.assert_array_equal(patches["sif"], expected[:, ::-1] if flipped else expected)
    np.testing.assert_array_equal(patches["y"], [105, 75, 45, 15])


def test_bands_are_lazy_in_blocks_of_samples(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(path, chunk_samples=2)["sif"].chunks == ((2, 2, 1), (4,), (3,))
    assert read(path)["sif"].chunks == ((5,), (4,), (3,))
    monkeypatch.setattr("sifscale.sources.patches._BLOCK_BYTES", 3 * 48)  # three samples of 4 x 3 pixels
    assert read(path)["sif"].chunks == ((3, 2), (4,), (3,))
    stored = written(tmp_path / "b.nc", patch_set(), chunksizes=(2, 4, 3))
    assert read(stored)["sif"].chunks == ((2, 2, 1), (4,), (3,))


def test_opening_reads_only_until_each_band_has_a_value(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    from sifscale.sources import patches as module

    original: Callable[..., NDArray[np.float32]] = module._decode

    def counted(block: NDArray[np.float64], *rest: float) -> NDArray[np.float32]:
        seen.append(len(block))
        return original(block, *rest)

    monkeypatch.setattr(module, "_decode", counted)
    read(path, chunk_samples=1)
    assert sum(seen) == 2  # one sample of each of two bands; Dask's own trials have no samples


def test_groups_are_chains_of_near_places(path: Path) -> None:
    patches = read(path, group_distance=100.0)
    assert patches["group"].values.tolist() == ["column 0"] * 3 + ["column 9"] + ["column 0"]
    assert len(set(read(path, group_distance=99.0)["group"].values)) == 4
    assert len(set(read(path, group_distance=701.0)["group"].values)) == 1


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=25), st.sampled_from([1, 1.5, 2])
)
def test_groups_equal_those_merged_pair_by_pair(points: list[tuple[int, int]], distance: float) -> None:
    xy = np.array(points, np.float64)
    expected = np.arange(len(xy))
    for i in range(len(xy)):
        for j in range(i):
            if np.hypot(*(xy[i] - xy[j])) <= distance:
                expected[expected == expected[i]] = expected[j]
    found = _chained(xy, np.array([str(point) for point in points], object), distance)
    np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)


def test_a_place_stays_in_one_group_though_its_position_drifts(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nc", patch_set(column=("sample", [0, 1, 2, 1, 0])))
    assert read(path, group_distance=1.0)["group"].values.tolist() == [f"column {n}" for n in (0, 1, 2, 1, 0)]


def test_distances_in_degrees_are_those_on_the_ellipsoid_to_half_a_per_cent() -> None:
    longitude, latitude = np.array([-93.3, -93.27, 179.99, -179.99]), np.array([44.9, 44.93, -10.0, -10.0])
    points = _points_m(longitude, latitude, True)
    for i, j in ((0, 1), (2, 3)):
        true = Geod(ellps="WGS84").inv(longitude[i], latitude[i], longitude[j], latitude[j])[2]
        assert np.linalg.norm(points[i] - points[j]) == pytest.approx(true, rel=5e-3)


def test_unusable_files_are_named_in_one_line(path: Path, tmp_path: Path) -> None:
    cube = ("sample", "y", "x")
    faults: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"ref_4": None}, {}, r"no variable for band red \(accepted: ref_4\); found: sif, soundings"),
        ({}, {"where": {"mask": (0, 0)}}, "no variable mask; found: "),
        ({"ref_4": (("sample", "line", "x"), VALUES)}, {}, "ref_4 is float32 with dimensions"),
        ({"ref_4": (cube, np.full(SHAPE, "a", object))}, {}, "patches need numbers"),
        ({"time": None}, {}, "no coordinate time of each sample"),
        ({"time": ("sample", np.arange(5))}, {}, "time has no CF units"),
        ({"time": ("sample", np.arange(5), {"units": "days since nonsense"})}, {}, "time cannot be decoded"),
        ({"time": ("sample", np.array(["2020-01-01"] * 4 + ["NaT"], "M8[ns]"))}, {}, "time is missing in 1 samples"),
        ({"column": ("y", np.arange(4))}, {}, "no coordinate column of each sample with dimensions"),
        ({"ul_x": None}, {"group_distance": 10.0}, "no position to group places by"),
        ({"ul_x": ("sample", X_M * np.nan)}, {}, "ul_x is missing in 5 samples"),
        ({"sif": (cube, VALUES * np.nan)}, {}, "band sif is missing everywhere"),
        ({}, {"where": {"soundings": (10, 20)}}, "band sif is missing everywhere; check scale, valid_range, where"),
        ({}, {"valid_range": {"red": (1, 60)}}, "band red is missing everywhere"),
    ]
    for in_file, in_request, part in faults:
        faulty = written(tmp_path / "b.nc", patch_set(**in_file))
        with pytest.raises(SourceError, match=part) as fault:
            read(faulty, **in_request)
        assert "\n" not in str(fault.value) and str(faulty) in str(fault.value)
    with pytest.raises(SourceError, match="no such file"):
        read(tmp_path / "c.nc")
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(SourceError, match="cannot be opened"):
        read(path)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"scale": {"nir": 1.0}}, "scale names nir, but columns does not"),
        ({"target": "lst"}, "target names lst"),
        ({"valid_range": {"red": (1.0, 0.0)}}, "valid_range of red is 1.0 to 0.0"),
        ({"where": {"soundings": (np.nan, 1.0)}}, "where of soundings is nan"),
        ({"place": []}, "place names no coordinate"),
        ({"pixel_m": 0.0}, "pixel_m must be"),
        ({"group_distance": -1.0}, "group_distance must"),
        ({"chunk_samples": 0}, "chunk_samples must"),
    ],
)
def test_contradicting_arguments_are_value_errors(changes: dict[str, Any], part: str, path: Path) -> None:
    with pytest.raises(ValueError, match=part):
        read(path, **changes)


@pytest.mark.skipif(not (RAW / "cfis_sif_2016.nc").is_file(), reason="real data absent")
def test_real_airborne_tiles_keep_flown_pixels_with_landsat_bands() -> None:
    patches = read(
        RAW / "cfis_sif_2016.nc",
        columns={"sif": ["sif"], "red": ["ref_4"]},
        valid_range={"red": (1e-4, 1.0)},
        where={"soundings": (1, np.inf), "missing_reflectance": (0, 0)},
        place=["lon", "lat"],
        group_distance=10_000.0,
    )
    assert dict(patches.sizes) == {"sample": 174, "y": 100, "x": 100}
    assert int(np.isfinite(patches["sif"]).sum()) == 437_747
    assert len(set(patches["place"].values)) == 174 and len(set(patches["group"].values)) == 74


@pytest.mark.skipif(not (RAW / "modis_lst_h18v04_2020.nc").is_file(), reason="real data absent")
def test_real_land_surface_temperature_is_in_kelvin_at_141_places() -> None:
    patches = read(
        RAW / "modis_lst_h18v04_2020.nc",
        columns={"lst_day": ["lst_day"], "red": ["red"]},
        scale={},
        target="lst_day",
        place=["lattice_row", "lattice_col"],
        pixel_m=926.6254331,
    )
    assert patches["lst_day"].attrs["units"] == "K" and patches.sizes["sample"] == 1254
    first = patches["lst_day"].isel(sample=slice(50)).values
    assert 250 < first.min() and first.max() < 330
    assert len(set(patches["group"].values)) == 141
