"""OCO tables: small ones in the columns of the real one, and the real one where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from sifscale.sources import SourceError
from sifscale.sources.oco import inspect_oco, read_oco
from sifscale.sources.soundings import Area, Quality, filter_soundings

RAW = Path(os.environ.get("SIFSCALE_RAW", Path(__file__).parents[3] / "shared" / "data"))
REAL = RAW / "oco3_footprints" / "oco3_sif_wisconsin_2020-06-17.csv"
real_data = pytest.mark.skipif(not REAL.is_file(), reason="the real OCO-3 table is not at hand")


def table(number: int = 6) -> pd.DataFrame:
    """Soundings 1 degree apart to the east of -92 E, 46 N."""
    east = np.arange(number)
    columns = {
        "cloud_flag": east % 2,
        "quality_flag": east % 3,
        "time": [f"2020-06-17 14:41:0{second}" for second in east],
        "sif740_D": 0.4 * (1 + east),
        "sif740": 1.0 + east,
        "sif740_U": np.full(number, 0.5),
    }
    columns |= {f"lon_{i + 1}": -92.0 + east + offset for i, offset in enumerate((0, 0.02, 0.02, 0))}
    columns |= {f"lat_{i + 1}": np.full(number, 46 + offset) for i, offset in enumerate((0, 0, 0.02, 0.02))}
    return pd.DataFrame(columns | {"sza": np.full(number, 30.0), "vza": np.full(number, 10.0), "mode": 3})


def write(path: Path, frame: pd.DataFrame) -> Path:
    frame.to_csv(path, index=False)
    return path


def test_a_table_is_read_value_by_value(tmp_path: Path) -> None:
    frame = table()
    found = read_oco(write(tmp_path / "a.csv", frame), quality_flags=(0, 1, 2))
    assert found.attrs["product"] == "OCO SIF"
    np.testing.assert_allclose(found["sif"], frame["sif740"])
    np.testing.assert_allclose(found["sif_error"], 0.5)
    np.testing.assert_array_equal(found["longitude_bounds"][:, 1], frame["lon_2"])
    np.testing.assert_array_equal(found["latitude_bounds"][:, 2], frame["lat_3"])
    np.testing.assert_allclose(found["longitude"], frame["lon_1"] + 0.01)
    np.testing.assert_allclose(found["latitude"], 46.01)
    assert found["time"].values[3] == np.datetime64("2020-06-17T14:41:03")
    assert "cloud_fraction" not in found
    info = inspect_oco(tmp_path / "a.csv")
    assert (info.start, info.end, info.soundings) == (found["time"].values[0], found["time"].values[-1], 6)


def test_flags_decide_which_soundings_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", table())
    assert read_oco(path)["sif"].values.tolist() == [1, 2, 4, 5]
    assert read_oco(path, quality_flags=[0])["sif"].values.tolist() == [1, 4]
    assert read_oco(path, cloud_flags=[0])["sif"].values.tolist() == [1, 5]
    assert read_oco(path, quality_flags=[7]).sizes["sounding"] == 0


def test_the_daily_mean_has_an_error_of_its_own_scale(tmp_path: Path) -> None:
    found = read_oco(write(tmp_path / "a.csv", table()), day_length_corrected=True)
    np.testing.assert_allclose(found["sif"], [0.4, 0.8, 1.6, 2.0], rtol=1e-6)
    np.testing.assert_allclose(found["sif_error"], 0.2, rtol=1e-6)


def test_the_area_is_widened_by_half_a_degree(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", table())
    assert read_oco(path, area=Area(-90.6, 40, -89.5, 50), quality_flags=(0, 1, 2))["sif"].values.tolist() == [2, 3]
    assert read_oco(path, area=Area(10, 40, 20, 50)).sizes["sounding"] == 0


def test_the_centre_of_a_footprint_on_the_dateline_lies_on_it(tmp_path: Path) -> None:
    frame = table(1)
    frame[[f"lon_{i}" for i in range(1, 5)]] = [179.98, -179.98, -179.96, -180.0]
    found = read_oco(write(tmp_path / "a.csv", frame), area=Area(179.9, 40, -179.9, 50))
    np.testing.assert_allclose(np.abs(found["longitude"]), 179.99)


def test_fills_and_empty_fields_are_missing(tmp_path: Path) -> None:
    frame = table().assign(quality_flag=0)
    frame.loc[1, "sif740"] = -999999.0
    frame.loc[2, "lon_3"] = np.nan
    frame.loc[3, "time"] = np.nan
    found, removed = filter_soundings(read_oco(write(tmp_path / "a.csv", frame)), Quality(max_view_zenith_deg=50))
    assert removed["missing"] == 3
    assert found["sif"].values.tolist() == [1, 5, 6]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("sif740", "high", "line 4, column sif740 holds 'high', not a number"),
        ("time", "yesterday", "line 4, column time holds 'yesterday', not a time"),
        ("time", "17.06.2020", "line 4, column time holds '17.06.2020', not a time"),
    ],
)
def test_a_field_that_cannot_be_read_is_named_by_its_line(
    tmp_path: Path, column: str, value: str, message: str
) -> None:
    frame = table().astype({column: object})
    frame.loc[2, column] = value
    with pytest.raises(SourceError, match=message):
        read_oco(write(tmp_path / "a.csv", frame))


def test_a_column_of_other_times_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="line 2, column time holds '1592404863.0', not a time"):
        inspect_oco(write(tmp_path / "a.csv", table().assign(time=1592404863.0)))
    with pytest.raises(SourceError, match="no sounding has a time"):
        inspect_oco(write(tmp_path / "b.csv", table().assign(time=np.nan)))


def test_tables_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    frame = table()
    with pytest.raises(SourceError, match=r"no column lat_2, quality_flag \(found cloud_flag, time"):
        read_oco(write(tmp_path / "a.csv", frame.drop(columns=["lat_2", "quality_flag"])))
    with pytest.raises(SourceError, match="no soundings in it"):
        read_oco(write(tmp_path / "b.csv", frame.iloc[:0]))
    with pytest.raises(SourceError, match="sif740 is all fill in the 12 soundings"):
        read_oco(write(tmp_path / "c.csv", pd.concat([frame] * 3).assign(sif740=-999999)))
    (tmp_path / "d.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(SourceError, match="cannot be read as a table"):
        read_oco(tmp_path / "d.csv")
    header, *rows = (tmp_path / "c.csv").read_text().splitlines()
    (tmp_path / "g.csv").write_text("\n".join([header, *(f"{row},1" for row in rows)]))
    with pytest.raises(SourceError, match="rows have more fields than its header"):
        read_oco(tmp_path / "g.csv")
    (tmp_path / "e.csv").write_bytes(b"time,\xff\xfe\n1,2\n")
    with pytest.raises(SourceError, match="cannot be read as a table"):
        read_oco(tmp_path / "e.csv")
    with h5py.File(tmp_path / "f.nc", "w") as file:
        file["SIF_740nm"] = np.zeros(3)
    with pytest.raises(SourceError, match="looks like HDF5, not OCO SIF in a CSV table"):
        read_oco(tmp_path / "f.nc")
    with pytest.raises(SourceError, match="no such file"):
        inspect_oco(tmp_path / "absent.csv")


@real_data
def test_the_real_table_is_read_whole() -> None:
    found, removed = filter_soundings(read_oco(REAL), Quality(None, 70, 60, 1.0, (-10, 10)))
    assert found.sizes["sounding"] == 1445
    assert sum(removed.values()) == 0
    frame = pd.read_csv(REAL)
    np.testing.assert_allclose(found["sif"], frame["sif740"], rtol=1e-6)
    assert found["time"].values.min() == np.datetime64("2020-06-17T14:41:03")
    # Published footprints are about 2.3 x 1.7 km; a wrong order of corners would make bow ties of half the area.
    x = np.deg2rad(found["longitude_bounds"].values) * 6371 * np.cos(np.deg2rad(found["latitude"].values))[:, None]
    y = np.deg2rad(found["latitude_bounds"].values) * 6371
    area_km2 = np.abs((x * np.roll(y, -1, axis=1) - np.roll(x, -1, axis=1) * y).sum(axis=1)) / 2
    assert 2 < np.median(area_km2) < 5


@real_data
def test_the_daily_mean_of_the_real_table_is_less_and_so_is_its_error() -> None:
    plain, daily = read_oco(REAL), read_oco(REAL, day_length_corrected=True)
    factor = daily["sif_error"] / plain["sif_error"]
    assert 0.41 < float(factor.min()) < float(factor.max()) < 0.54
