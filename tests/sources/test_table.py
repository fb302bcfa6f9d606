"""Tables onto grids: a round trip, every fault with its line, and the original study's own files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sifscale.cube import file_sha256, open_cube, write_cube
from sifscale.grid import Grid, moving_mean
from sifscale.sources import SourceError
from sifscale.sources.table import TableFile, read_tables

COLUMNS = {"sif": ["sif_mean_743"], "ndvi": ["NDVI_mean"], "quality": ["VIQ_mean", "VIQ"]}
GRID = Grid("EPSG:4326", -101.0, 50.0, 0.046, 0.063, 4, 5)
DAYS = (date(2019, 5, 25), date(2019, 6, 9))
RAW = Path(os.environ.get("SIFSCALE_RAW", Path(__file__).parents[3] / "shared" / "data"))
STUDY = RAW / "sif_modis_minnesota_2019"


def read(*files: TableFile, **options: Any) -> tuple[xr.Dataset, Grid, dict[str, str]]:
    defaults = {"scale": {"ndvi": 1e-4}, "units": {"sif": "mW m-2 sr-1 nm-1"}, "columns": COLUMNS}
    request: dict[str, Any] = defaults | options
    return read_tables(
        files, **request, longitude="longitude", latitude="latitude", crs="EPSG:4326", place="minnesota"
    )


def table(grid: Grid = GRID, quality: str = "VIQ") -> pd.DataFrame:
    """One row a cell, from north-west to south-east, with raw NDVI 5000, 5001, ..."""
    x, y = np.meshgrid(grid.x, grid.y)
    number = np.arange(x.size)
    bands = {"sif_mean_743": number / 10, "NDVI_mean": 5000 + number, quality: number, "Window": "May"}
    return pd.DataFrame({"longitude": x.ravel(), "latitude": y.ravel()} | bands)


def save(frame: pd.DataFrame, path: Path) -> TableFile:
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return TableFile(path, *DAYS, None)


def test_two_composites_with_other_column_names_and_formats(tmp_path: Path) -> None:
    may = save(table(quality="VIQ_mean").drop(index=[7, 8]), tmp_path / "may.csv")
    june = replace(save(table().drop(index=[0]), tmp_path / "june.parquet"), end=date(2019, 6, 25))
    coarse = save(table(), tmp_path / "coarse.csv")
    dataset, grid, hashes = read(
        replace(may, coarse_path=coarse.path), replace(june, coarse_path=coarse.path)
    )

    assert (grid.height, grid.width, grid.crs) == (4, 5, "EPSG:4326")
    assert (grid.west, grid.north, grid.dx, grid.dy) == pytest.approx((-101, 50, 0.046, 0.063))
    assert set(dataset.data_vars) == {p + band for band in COLUMNS for p in ("", "coarse_")}
    expected = np.arange(20, dtype=np.float32).reshape(4, 5)
    for sample, missing in ((0, [7, 8]), (1, [0])):
        raw = expected.copy()
        raw.ravel()[missing] = np.nan
        np.testing.assert_array_equal(dataset["quality"][sample], raw)
        np.testing.assert_allclose(dataset["ndvi"][sample], 0.5 + raw * 1e-4, rtol=1e-6)
        np.testing.assert_array_equal(dataset["coarse_quality"][sample], expected)
    assert dataset["sif"].dims == ("sample", "y", "x") and dataset["sif"].dtype == np.float32
    assert dataset["sif"].attrs == {"units": "mW m-2 sr-1 nm-1", "long_name": "sif"}
    assert dataset["coarse_sif"].attrs["long_name"] == "coarse sif" and dataset["ndvi"].attrs["units"] == "1"
    assert (np.diff(dataset["y"]) < 0).all() and (np.diff(dataset["x"]) > 0).all()
    assert dataset["time_start"].dtype == "datetime64[ns]"
    assert dataset["time_end"].values.astype("datetime64[D]").tolist() == [DAYS[1], date(2019, 6, 25)]
    assert dataset["place"].values.tolist() == ["minnesota"] * 2
    paths = [tmp_path / name for name in ("may.csv", "june.parquet", "coarse.csv")]
    assert hashes == {path.name: file_sha256(path) for path in paths}


def test_files_complete_each_other(tmp_path: Path) -> None:
    frame = table()
    west = save(frame[frame["longitude"] < GRID.x[3]], tmp_path / "west.csv")
    south = save(frame[frame["latitude"] < GRID.y[1]], tmp_path / "south.csv")
    dataset, grid, _ = read(west, south)
    assert (grid.height, grid.width) == (4, 5)
    assert dataset["sif"].notnull().sum(("y", "x")).values.tolist() == [12, 10]
    assert grid.west == pytest.approx(-101) and grid.north == pytest.approx(50)


def test_first_accepted_column_wins_and_a_band_in_no_file_is_left_out(tmp_path: Path) -> None:
    file = save(table().assign(VIQ_mean=7.0), tmp_path / "a.csv")
    dataset, _, _ = read(file, columns=COLUMNS | {"evi": ["EVI"]})
    assert (dataset["quality"] == 7).all() and "evi" not in dataset


@given(data=st.data(), suffix=st.sampled_from([".csv", ".parquet"]))
@settings(max_examples=25, deadline=None)
def test_any_order_and_any_gaps_give_the_same_grid_and_values(data: st.DataObject, suffix: str) -> None:
    height, width = data.draw(st.integers(2, 7)), data.draw(st.integers(2, 7))
    grid = Grid("EPSG:4326", -100.5, 49.7, 0.0458603, 0.0628817, height, width)
    keep = data.draw(hnp.arrays(np.bool_, (grid.height, grid.width)))
    # One whole row and column: enough to know the step and the extent.
    keep[data.draw(st.integers(0, grid.height - 1))] = True
    keep[:, data.draw(st.integers(0, grid.width - 1))] = True
    values = data.draw(hnp.arrays(np.float32, keep.shape, elements=st.floats(-5, 5, width=32)))
    frame = table(grid).assign(sif_mean_743=values.ravel().astype(np.float64))[keep.ravel()]
    frame = frame.iloc[data.draw(st.permutations(range(len(frame))))]
    with TemporaryDirectory() as folder:
        dataset, found, _ = read(save(frame, Path(folder) / f"a{suffix}"))
    assert (found.height, found.width) == (grid.height, grid.width)
    np.testing.assert_allclose(found.x, grid.x, atol=1e-9)
    np.testing.assert_allclose(found.y, grid.y, atol=1e-9)
    np.testing.assert_array_equal(dataset["sif"][0], np.where(keep, values, np.nan))


def put(row: int, column: str, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        # One text in a Parquet column makes the whole column text.
        frame[column] = frame[column].astype(str if isinstance(value, str) else object)
        frame.loc[row, column] = value
        return frame

    return change


# Row 5 of a table stands in line 7 of its file.
FAULTS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "off grid": (put(5, "longitude", -100.9), r"1 of 20 cell .* off .* 0\.046 x 0\.063, line 7; correct"),
    "half a cell off": (put(5, "latitude", GRID.north - GRID.dy), r"1 of 20 cell centres are off .* line 7;"),
    "duplicates": (lambda f: pd.concat([f, f.iloc[[5]]]), r"2 rows share a cell .* lines 7, 22; keep one"),
    "many duplicates": (lambda f: pd.concat([f, f]), r"40 rows .* lines 2, 3, 4, 5, 6 and 35 more;"),
    "text": (put(5, "NDVI_mean", "cloud"), r"column NDVI_mean holds 'cloud', not a finite number, line 7;"),
    "infinite": (put(5, "sif_mean_743", np.inf), r"column sif_mean_743 holds 'inf', .* line 7;"),
    "text in a coordinate": (put(5, "longitude", "west"), r"column longitude holds 'west'.* line 7;"),
    "no coordinate": (put(5, "latitude", None), r"no latitude in line 7; add it or drop the row"),
    "no column": (lambda f: f.drop(columns="longitude"), r"no column longitude; columns found: latitude,"),
    "no rows": (lambda f: f.iloc[:0], r"a header but no rows; fetch it again"),
    "no grid": (lambda f: f.iloc[:1], r"no regular step along x"),
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_table_is_refused_in_one_line(fault: str, suffix: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    with pytest.raises(SourceError, match=message) as error:
        read(save(change(table()), tmp_path / f"faulty{suffix}"))
    assert str(error.value).startswith(str(tmp_path / f"faulty{suffix}")) and "\n" not in str(error.value)


def test_a_band_missing_from_one_file(tmp_path: Path) -> None:
    files = save(table(), tmp_path / "a.csv"), save(table().drop(columns="VIQ"), tmp_path / "b.csv")
    message = r"b\.csv: no column for band quality \(accepted: VIQ_mean, VIQ\); found: .*Window; add"
    with pytest.raises(SourceError, match=message):
        read(*files)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    contents = {
        "empty.csv": (b"", "the file is empty"),
        "long_row.csv": (b"longitude,latitude\n1,2\n3,4,5\n", "cannot be read as a table .*line 3"),
        "long_rows.csv": (b"longitude,latitude\n1,2,3\n3,4,5\n", "cannot be read as a table"),
        "latin.csv": (b"longitude,latitude\n1,\xfc\n", "cannot be read as a table"),
        "empty.parquet": (b"", "cannot be read as a table"),
        "other.xlsx": (b"x", r"unknown kind of table '\.xlsx'; give \.csv or \.parquet"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=rf"{name}: .*{message}"):
            read(TableFile(tmp_path / name, *DAYS, None))
    with pytest.raises(SourceError, match=r"absent\.csv: no such file; check paths\.raw"):
        read(TableFile(tmp_path / "absent.csv", *DAYS, None))


def test_blank_lines_do_not_shift_line_numbers(tmp_path: Path) -> None:
    lines = table().to_csv(index=False).splitlines()
    (tmp_path / "a.csv").write_text("\n".join([*lines[:3], "", *lines[3:], "", ""]))
    assert read(TableFile(tmp_path / "a.csv", *DAYS, None))[0]["sif"].notnull().all()
    (tmp_path / "a.csv").write_text("\n".join([*lines[:3], "", *lines[3:], lines[1]]))
    with pytest.raises(SourceError, match="lines 2, 23;"):
        read(TableFile(tmp_path / "a.csv", *DAYS, None))


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    file = save(table(), tmp_path / "a.csv")
    with pytest.raises(SourceError, match=r"a\.csv: end 2019-05-25 is before start 2019-06-09; swap"):
        read(TableFile(file.path, DAYS[1], DAYS[0], None))
    with pytest.raises(SourceError, match="names no table"):
        read()
    with pytest.raises(SourceError, match="scale names ndiv, but columns does not"):
        read(file, scale={"ndiv": 1e-4})
    with pytest.raises(SourceError, match="no coarse table, others have one"):
        read(file, replace(file, coarse_path=file.path))
    (tmp_path / "other").mkdir()
    namesake = save(table().drop(index=3), tmp_path / "other" / "a.csv")
    with pytest.raises(SourceError, match="another file of the window has this name"):
        read(file, namesake)


def test_tables_on_different_grids(tmp_path: Path) -> None:
    file = save(table(), tmp_path / "a.csv")
    shifted = save(table(replace(GRID, west=GRID.west + GRID.dx / 2)), tmp_path / "shifted.csv")
    with pytest.raises(SourceError, match=r"shifted\.csv: 20 of 20 cell centres are off the window's grid"):
        read(file, shifted)
    with pytest.raises(SourceError, match=r"shifted\.csv: 20 of 20 cell centres are off"):
        read(replace(file, coarse_path=shifted.path))
    larger = save(table(replace(GRID, width=6)), tmp_path / "larger.csv")
    with pytest.raises(SourceError, match=r"larger\.csv: 4 cells lie outside .* lines 7, 13, 19, 25;"):
        read(replace(file, coarse_path=larger.path))


@pytest.mark.skipif(not STUDY.is_dir(), reason=f"no tables of the original study in {STUDY}")
def test_the_original_study(tmp_path: Path) -> None:
    windows = {"25_MAY_09_JUNE": DAYS, "10_JUNE_25_JUNE": (date(2019, 6, 10), date(2019, 6, 25))}
    names = "SIF_MODIS_Integrated_3.5x7km_{}.csv", "SIF_MODIS_Integrated_7x14km_{}.csv"
    files = [
        TableFile(STUDY / names[0].format(window), *days, STUDY / names[1].format(window))
        for window, days in windows.items()
    ]
    dataset, grid, hashes = read(*files)
    assert dataset["sif"].shape == (2, 97, 173) and len(hashes) == 4
    assert dataset["sif"].isnull().sum(("y", "x")).values.tolist() == [178, 195]
    assert (grid.dx, grid.dy) == pytest.approx((0.04586, 0.06288), abs=1e-5)
    assert 0.1 < float(dataset["ndvi"].mean()) < 0.9
    # Their "7x14km" SIF is a 3 x 3 moving mean printed with six decimals, here stored as float32.
    difference = moving_mean(dataset["sif"].values, 3) - dataset["coarse_sif"].values
    assert np.nanmax(np.abs(difference)) < 5e-7 + np.spacing(np.float32(4))
    np.testing.assert_array_equal(dataset["sif"].isnull(), dataset["coarse_sif"].isnull())
    digest = write_cube(tmp_path / "minnesota_2019.zarr", dataset, grid, None, None, {})
    assert open_cube(tmp_path / "minnesota_2019.zarr").hash == digest
