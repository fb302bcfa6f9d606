"""A map against soundings: exact means over footprints, what was planted is found, and what cannot be compared."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
import xarray as xr
import yaml
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from scipy import ndimage

from sifscale import map_file, products
from sifscale.config import PROJECT_ROOT, CompareConfig, ConfigError, SoundingsCheck, validate
from sifscale.cube import write_cube
from sifscale.grid import Grid, block_mean
from sifscale.map_file import open_map
from sifscale.products import Description, publish, unfinished
from sifscale.soundings_check import cell_means, check_map, scores_of
from sifscale.soundings_matching import match, means_over, read_tables
from sifscale.tile_prediction import FLAGS, MappedTile, Residuals
from sifscale.tiles import Tile

RAW = Path(os.environ.get("SIFSCALE_RAW", PROJECT_ROOT.parent / "shared" / "data"))
REAL = RAW / "oco3_footprints" / "oco3_sif_wisconsin_2020-06-17.csv"
CHECK = yaml.safe_load((PROJECT_ROOT / "conf" / "compare.yaml").read_text())["check"]
UNITS = "mW m-2 sr-1 nm-1"
ALBERS = Grid("EPSG:5070", 460_000.0, 2_600_000.0, 1000.0, 1000.0, 96, 96)
DAYS = (date(2020, 6, 9), date(2020, 6, 24))
FOUR = {"level": "fine", "conservation": "additive", "window": {"grid": {"fine_factor": 4}, "factor": 3}}
Floats = NDArray[np.float64]


def smooth(grid: Grid, seed: int = 1, width: float = 5.0) -> Floats:
    """A field (height, width) with mean 1.5 and standard deviation 0.5."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(grid.height, grid.width)), width)
    return np.asarray(1.5 + 0.5 * (field - field.mean()) / field.std())


def write_map(
    path: Path,
    fields: Floats,
    grid: Grid = ALBERS,
    days: tuple[tuple[date, date], ...] = (DAYS,),
    about: dict[str, Any] = FOUR,
    units: str = UNITS,
    quality: int = FLAGS["observed"],
) -> Path:
    """A map of fields (sample, y, x) as predict.py writes it, Zarr or NetCDF by its suffix."""
    first, last = (np.array([day[i] for day in days], dtype="datetime64[ns]") for i in (0, 1))
    coords = {"time_start": ("sample", first), "time_end": ("sample", last), "place": ("sample", ["here"] * len(days))}
    bands = xr.Dataset({"nir": (("sample", "y", "x"), fields.astype(np.float32))}, coords=coords)
    crs, corner = CRS.from_user_input(grid.crs), (grid.west, grid.dx, 0.0, grid.north, 0.0, -grid.dy)
    mapping = crs.to_cf() | {"GeoTransform": " ".join(map(repr, corner))}
    bands = bands.assign_coords(x=grid.x, y=grid.y, spatial_ref=((), np.int32(0), mapping))
    attrs = {products.MARK: "c", "config": json.dumps(about), "run_id": "r"}
    description = Description("sif", units, bands, np.float64, max(fields.shape), attrs)
    whole = (slice(0, grid.height), slice(0, grid.width))
    with unfinished(path, "key", description) as made:
        for sample, field in enumerate(fields):
            flags = np.full(field.shape, quality, np.uint8)
            made.write(sample, Tile(whole, whole), MappedTile(field, flags, Residuals()), "sif")
        residuals = dict.fromkeys(range(len(fields)), Residuals())
        return publish(made, path, "zarr" if path.suffix == ".zarr" else "netcdf", residuals, {}, "hash")


def quads(number: int, grid: Grid = ALBERS, seed: int = 2) -> Floats:
    """Skewed quadrilaterals (number, 4, 2) of about 2.3 x 1.7 pixels within the grid, in its CRS."""
    rng = np.random.default_rng(seed)
    unit = np.array([[0, 0], [2.2, 0.3], [2.6, 1.9], [0.4, 1.6]]) + rng.uniform(-0.2, 0.2, (number, 4, 2))
    at = rng.uniform(1, [grid.width - 4, grid.height - 4], (number, 2))
    px = at[:, None, :] + unit
    return np.stack([grid.west + px[..., 0] * grid.dx, grid.north - px[..., 1] * grid.dy], axis=-1)


def by_shapely(grid: Grid, field: Floats, corners: Floats) -> Floats:
    """Area-weighted mean of a field over polygons (n, 4, 2) that lie on the grid."""
    row, column = np.indices(field.shape).reshape(2, -1)
    west, north = grid.west + column * grid.dx, grid.north - row * grid.dy
    cells = shapely.box(west, north - grid.dy, west + grid.dx, north)
    polygons = shapely.polygons(corners)
    footprint, cell = shapely.STRtree(cells).query(polygons, predicate="intersects")
    area = shapely.area(shapely.intersection(polygons[footprint], cells[cell]))
    total = np.bincount(footprint, area * field.ravel()[cell], len(corners))
    return np.asarray(total / shapely.area(polygons))


def write_table(path: Path, corners: Floats, sif: Floats, error: float = 0.4, grid: Grid = ALBERS) -> Path:
    """A table of OCO soundings with footprints (n, 4, 2) in the CRS of a grid."""
    lon, lat = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform(corners[..., 0], corners[..., 1])
    frame = pd.DataFrame({"sif740": sif, "sif740_D": 0.4 * sif, "sif740_U": error})
    frame = frame.assign(time="2020-06-17 14:41:03", quality_flag=0, cloud_flag=0)
    for i in range(4):
        frame[f"lon_{i + 1}"], frame[f"lat_{i + 1}"] = lon[:, i], lat[:, i]
    frame.to_csv(path, index=False)
    return path


def edited(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    frame = change(pd.read_csv(path))
    frame.to_csv(path, index=False)
    return path


def checked(**changes: Any) -> SoundingsCheck:
    return validate(CHECK | changes, SoundingsCheck)


def matched(table: Path, path: Path, **changes: Any) -> tuple[pd.DataFrame, dict[str, int]]:
    check = checked(**changes)
    with open_map(path) as opened:
        return match(read_tables([str(table)], check), opened, check.min_cover)


def config(folder: Path, soundings: object, path: Path | None, **check: Any) -> CompareConfig:
    values = {
        "paths": {"raw": "", "data": "", "output": str(folder)}, "study": None, "filter": None, "baseline": None,
        "tables": None, "units": "", "output": None, "readme": None, "soundings": soundings,
        "map": None if path is None else str(path), "check": CHECK | check,
        "tracking": {"uri": "", "experiment": "", "artifacts": ""},
    }  # fmt: skip
    return validate(values, CompareConfig)


@pytest.fixture(scope="module")
def truth() -> Floats:
    return smooth(ALBERS)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, truth: Floats) -> tuple[Path, Path]:
    """1500 soundings of a known truth with an error of 0.4, and a map that is 0.1 + 0.8 truth."""
    folder = tmp_path_factory.mktemp("planted")
    corners = quads(1500)
    noise = np.random.default_rng(5).normal(scale=0.4, size=len(corners))
    table = write_table(folder / "oco.csv", corners, by_shapely(ALBERS, truth, corners) + noise)
    return table, write_map(folder / "map.zarr", 0.1 + 0.8 * truth[None])


# --- means over footprints ------------------------------------------------------------------------


def test_the_mean_over_a_skewed_footprint_is_the_area_weighted_one_of_shapely(truth: Floats) -> None:
    corners = quads(300)
    mean, cover = means_over(ALBERS, truth, corners[..., 0], corners[..., 1])
    np.testing.assert_allclose(mean, by_shapely(ALBERS, truth, corners), rtol=0, atol=1e-9)
    np.testing.assert_allclose(cover, 1, atol=1e-12)


@pytest.mark.skipif(not REAL.is_file(), reason="the real OCO-3 table is not at hand")
def test_means_over_the_real_footprints_are_those_of_shapely(tmp_path: Path) -> None:
    grid = Grid("EPSG:5070", 320_000.0, 2_760_000.0, 1000.0, 1000.0, 280, 280)
    field = smooth(grid)
    rows, left_out = matched(REAL, write_map(tmp_path / "map.zarr", field[None], grid))
    assert len(rows) == 1445 and not any(left_out.values())
    frame = pd.read_csv(REAL)
    lon, lat = (frame[[f"{name}_{i}" for i in range(1, 5)]].to_numpy() for name in ("lon", "lat"))
    corners = np.stack(Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True).transform(lon, lat), axis=-1)
    np.testing.assert_allclose(rows["map"], by_shapely(grid, field, corners), rtol=0, atol=1e-9)
    cells = block_mean(field, 4).astype(np.float64).repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_allclose(rows["coarse"].to_numpy(), by_shapely(grid, cells, corners), rtol=0, atol=1e-9)
    np.testing.assert_allclose(rows["sounding"], frame["sif740"], rtol=1e-6)


def test_what_is_missing_has_no_weight_and_shortens_the_cover() -> None:
    grid = Grid("EPSG:5070", 0.0, 2.0, 1.0, 1.0, 2, 2)
    field = np.array([[1.0, np.nan], [3.0, 5.0]])
    x = np.array([[0.5, 1.5, 1.5, 0.5], [1.2, 1.8, 1.8, 1.2], [1.5, 2.5, 2.5, 1.5], [0.5, 0.5, 0.5, 0.5]])
    y = np.array([[1.5, 1.5, 0.5, 0.5], [1.2, 1.2, 1.8, 1.8], [0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    mean, cover = means_over(grid, field, x, y)
    np.testing.assert_allclose(mean, [3, np.nan, 5, np.nan])
    np.testing.assert_allclose(cover, [0.75, 0, 0.5, 0])
    mean, cover = means_over(grid, np.full((2, 2), np.nan), x, y)
    assert np.isnan(mean).all() and not cover.any()


@pytest.mark.parametrize("first_deg", [-180, 0])
def test_footprints_across_the_dateline_lie_on_a_map_that_reaches_over_it(tmp_path: Path, first_deg: int) -> None:
    grid = Grid("EPSG:4326", 179.0, 1.0, 0.05, 0.05, 40, 40)
    field = smooth(grid)
    corners = np.array([[[179.95, 0.0], [180.05, 0.01], [180.06, 0.1], [179.96, 0.11]]])
    expected = by_shapely(grid, field, corners)
    corners[..., 0] = (corners[..., 0] - first_deg) % 360 + first_deg
    table = write_table(tmp_path / "oco.csv", corners, np.ones(1), grid=grid)
    rows, _ = matched(table, write_map(tmp_path / "map.zarr", field[None], grid))
    np.testing.assert_allclose(rows["map"], expected, atol=1e-9)


# --- matching -------------------------------------------------------------------------------------


def test_each_sounding_counts_once_in_the_first_sample_of_its_day_that_covers_it(tmp_path: Path) -> None:
    fields = np.stack([np.full((96, 96), value) for value in (1.0, 2.0, 3.0, 4.0)])
    fields[1, :48] = np.nan
    june = [date(2020, 6, day) for day in (1, 16, 17, 30)]
    days = ((june[0], june[1]), (june[2], june[2]), (june[2], june[3]), (june[0], june[3]))
    corners = quads(400)
    path = write_map(tmp_path / "map.zarr", fields, days=days)
    rows, left_out = matched(write_table(tmp_path / "oco.csv", corners, np.ones(400)), path)
    centre_row = (ALBERS.north - corners[..., 1].mean(axis=1)) / 1000
    north, south = centre_row < 46, centre_row > 50
    assert len(rows) == 400 and not any(left_out.values())
    assert (rows["sample"][north] == 2).all() and (rows["sample"][south] == 1).all()
    np.testing.assert_allclose(rows["map"], rows["sample"] + 1.0)


def test_a_footprint_counts_from_the_share_of_its_area_on(tmp_path: Path, truth: Floats) -> None:
    field = np.where(np.arange(96) < 48, truth, np.nan)
    path = write_map(tmp_path / "map.zarr", field[None])
    table = write_table(tmp_path / "oco.csv", quads(600), np.ones(600))
    whole, left_out = matched(table, path)
    half, _ = matched(table, path, min_cover=0.5)
    assert 0 < len(whole) < len(half) and (whole["cover"] > 1 - 1e-9).all() and half["cover"].min() >= 0.5
    assert left_out["less than 100% on pixels with a value"] == 600 - len(whole)


def test_rows_are_counted_by_the_reason_for_which_they_are_left_out(tmp_path: Path, truth: Floats) -> None:
    table = write_table(tmp_path / "oco.csv", quads(12), np.ones(12))

    def spoil(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[0, "quality_flag"], frame.loc[1, "cloud_flag"], frame.loc[2, "sif740"] = 2, 1, -999999
        frame.loc[3, "sif740_U"], frame.loc[4, "lon_2"], frame.loc[5, "time"] = np.nan, np.nan, np.nan
        frame.loc[6, "time"] = "2019-06-17 14:41:03"
        frame.loc[7, [f"lat_{i}" for i in range(1, 5)]] -= 10
        frame.loc[8, "lat_3"] = 0
        return pd.concat([frame, frame.iloc[[11]]])

    path = write_map(tmp_path / "map.zarr", truth[None])
    read = read_tables([str(edited(table, spoil))], checked(cloud_flags=[0]))
    assert read.left_out == {
        "quality or cloud flag": 2,
        "value, error, time or corner missing (oco.csv line 4, oco.csv line 5, oco.csv line 6, ...)": 4,
        "corners more than 0.5 degrees apart (oco.csv line 10)": 1,
        "repeated (oco.csv line 14)": 1,
    }
    with open_map(path) as opened:
        rows, left_out = match(read, opened, 1.0)
    assert list(left_out.values()) == [1, 1, 0] and rows["line"].tolist() == [11, 12, 13]


def test_several_tables_and_patterns_are_read_once_each(tmp_path: Path, truth: Floats) -> None:
    for number in range(3):
        write_table(tmp_path / f"oco{number}.csv", quads(5, seed=number), np.ones(5))
    read = read_tables([str(tmp_path / "oco*.csv"), str(tmp_path / "oco1.csv")], checked())
    assert (read.rows, len(read.files), read.soundings.sizes["sounding"]) == (15, 3, 15)
    assert [Path(name).name for name in read.soundings["file"].values[::5]] == ["oco0.csv", "oco1.csv", "oco2.csv"]


def test_the_daily_mean_comes_with_an_error_of_its_own_scale(tmp_path: Path) -> None:
    table = write_table(tmp_path / "oco.csv", quads(5), np.ones(5))
    found = read_tables([str(table)], checked(column="sif740_D")).soundings
    np.testing.assert_allclose(found["sif"], 0.4, rtol=1e-6)
    np.testing.assert_allclose(found["sif_error"], 0.16, rtol=1e-6)


def test_netcdf_and_zarr_give_the_same_and_parts_of_a_map_do_too(
    tmp_path: Path, planted: tuple[Path, Path], truth: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, path = planted
    expected, _ = matched(table, path)
    found, _ = matched(table, write_map(tmp_path / "map.nc", 0.1 + 0.8 * truth[None]))
    pd.testing.assert_frame_equal(found, expected)
    monkeypatch.setattr("sifscale.soundings_matching._PART_PX", 10)
    found, _ = matched(table, path)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)


def test_native_sif_is_known_only_in_cells_that_were_observed(tmp_path: Path, truth: Floats) -> None:
    table = write_table(tmp_path / "oco.csv", quads(50), np.ones(50))
    gaps = FLAGS["no_observation"] | FLAGS["gap_filled"]
    rows, _ = matched(table, write_map(tmp_path / "a.zarr", truth[None], quality=gaps))
    assert len(rows) == 50 and rows["coarse"].isna().all()
    rows, _ = matched(table, write_map(tmp_path / "b.zarr", truth[None], about=FOUR | {"conservation": "none"}))
    assert rows["coarse"].isna().all()
    rows, _ = matched(table, write_map(tmp_path / "c.zarr", truth[None], about=FOUR | {"level": "native"}))
    thirds = block_mean(truth, 3).astype(np.float64).repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_allclose(rows["coarse"].to_numpy(), by_shapely(ALBERS, thirds, quads(50)), atol=1e-6)


# --- scores ---------------------------------------------------------------------------------------


def test_bias_and_slope_that_were_planted_are_found(planted: tuple[Path, Path], truth: Floats) -> None:
    rows, _ = matched(*planted)
    scored, gain = scores_of(rows, checked(block_px=16), 4)
    found = scored["map"]
    seen = by_shapely(ALBERS, truth, quads(1500))
    assert found.blocks == 36 and found.values["n"] == 1500
    for name, planted_value in {"slope": 0.8, "intercept": 0.1, "bias": float(np.mean(0.1 - 0.2 * seen))}.items():
        low, high = found.intervals[name]
        assert low < planted_value < high and high - low < 0.4
    assert found.values["slope_ols"] < 0.6, "the error of soundings flattens the line of least squares"
    rmse = np.sqrt(np.mean((0.1 - 0.2 * seen) ** 2))
    assert found.values["rmse_beyond_error"] == pytest.approx(rmse, abs=0.05)
    assert found.values["rmse"] == pytest.approx(np.hypot(rmse, 0.4), abs=0.02)
    perfect = np.corrcoef(rows["sounding"], seen)[0, 1]
    assert found.values["correlation_of_perfect_map"] == pytest.approx(perfect, abs=0.03)
    assert found.values["correlation"] == pytest.approx(perfect, abs=1e-3), "the map is linear in the truth"
    assert gain is not None and gain.blocks == 36


def test_a_fine_map_is_told_from_the_coarse_field_that_it_was_made_from(tmp_path: Path) -> None:
    truth = smooth(ALBERS, width=1.5)
    corners = quads(1500)
    noise = np.random.default_rng(6).normal(scale=0.2, size=1500)
    table = write_table(tmp_path / "oco.csv", corners, by_shapely(ALBERS, truth, corners) + noise, error=0.2)
    rows, _ = matched(table, write_map(tmp_path / "map.zarr", truth[None]))
    scored, gain = scores_of(rows, checked(block_px=16), 4)
    assert gain is not None and gain.high < 0
    native = scored["native SIF, not made finer"].values
    assert gain.difference == pytest.approx(scored["map"].values["rmse"] - native["rmse"])


def test_means_over_cells_are_those_of_a_loop(planted: tuple[Path, Path]) -> None:
    rows, _ = matched(*planted)
    means = cell_means(rows, 4, 4).set_index(["row", "column"])
    expected = {}
    for _, group in rows.groupby([rows["row"] // 4, rows["column"] // 4]):
        if len(group) >= 4:
            error = np.sqrt((group["sounding_error"] ** 2).sum()) / len(group)
            cell = tuple(4 * (group[axis].iloc[0] // 4) for axis in ("row", "column"))
            expected[cell] = (group["map"].mean(), group["sounding"].mean(), error)
    assert len(means) == len(expected) > 10
    for cell, values in expected.items():
        np.testing.assert_allclose(means.loc[cell, ["map", "sounding", "sounding_error"]].to_numpy(float), values)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_scores_and_writes_tables_and_figures(
    planted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, path = planted
    words = [f"soundings={table}", f"map={path}", f"paths.output={tmp_path}", "check.block_px=16"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *words, "check.min_per_cell=4"])
    runpy.run_path(str(PROJECT_ROOT / "compare.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for text in ("slope, error of the soundings taken out", "one sounding has an error of 0.400", "left for the map",
                 "assumed: sif and sif740", "1,500 of 1,500 soundings", "less that of native SIF"):  # fmt: skip
        assert text in printed
    folder = tmp_path / "soundings" / "map"
    assert {file.name for file in folder.iterdir()} == {
        "scores.json", "soundings.csv", "scatter.png", "differences.png"
    }  # fmt: skip
    frame, content = pd.read_csv(folder / "soundings.csv"), json.loads((folder / "scores.json").read_text())
    assert len(frame) == content["scores"]["map"]["n"] == 1500
    np.testing.assert_allclose(frame["difference"], frame["map"] - frame["sounding"])
    assert set(frame["sample_start"]) == {"2020-06-09"} and set(frame["sample_end"]) == {"2020-06-24"}
    assert content["scores"]["map"]["rmse"] == pytest.approx(np.sqrt((frame["difference"] ** 2).mean()))
    assert content["map"]["run_id"] == "r" and len(content["soundings"][str(table)]) == 64


def test_one_sounding_is_enough_for_a_report_without_intervals(
    tmp_path: Path, truth: Floats, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "oco.csv", quads(1), np.ones(1))
    path = write_map(tmp_path / "map.zarr", truth[None], about={})
    check_map(config(tmp_path, str(table), path))
    printed = capsys.readouterr().out
    assert "no intervals" in printed and "no comparison with native SIF" in printed
    scores = json.loads((tmp_path / "soundings" / "map" / "scores.json").read_text())["scores"]
    assert scores["map"]["slope"] is None and scores["rmse_map_less_native"] is None


def test_daily_means_against_values_of_a_moment_are_pointed_out(
    tmp_path: Path, truth: Floats, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "oco.csv", quads(5), np.ones(5))
    about = {"window": {"soundings": {"day_length_corrected": True}}}
    check_map(config(tmp_path, str(table), write_map(tmp_path / "map.zarr", truth[None], about=about)))
    assert "take check.column=sif740_D" in capsys.readouterr().out


# --- refusals -------------------------------------------------------------------------------------


def test_nothing_in_common_is_refused_with_both_extents(tmp_path: Path, truth: Floats) -> None:
    path = write_map(tmp_path / "map.zarr", truth[None], days=((date(2019, 5, 25), date(2019, 6, 9)),))
    table = write_table(tmp_path / "oco.csv", quads(7), np.ones(7))
    with pytest.raises(ValueError, match="outside the days of the map: 7") as caught:
        check_map(config(tmp_path, str(table), path))
    assert "on 2020-06-17..2020-06-17, the map in" in str(caught.value)
    assert "on 2019-05-25..2019-06-09" in str(caught.value) and "\n" not in str(caught.value)
    far = edited(table, lambda frame: frame.assign(**{f"lat_{i}": frame[f"lat_{i}"] - 20 for i in range(1, 5)}))
    with pytest.raises(ValueError, match="outside the map: 7"):
        check_map(config(tmp_path, str(far), write_map(tmp_path / "other.zarr", truth[None])))
    empty = write_map(tmp_path / "empty.zarr", np.full((1, 96, 96), np.nan))
    with pytest.raises(ValueError, match="less than 100% on pixels with a value: 5"):
        check_map(config(tmp_path, str(write_table(tmp_path / "b.csv", quads(5), np.ones(5))), empty))
    assert not (tmp_path / "soundings").exists()


def test_what_is_no_map_is_refused_in_one_line(tmp_path: Path, truth: Floats) -> None:
    path = write_map(tmp_path / "map.zarr", truth[None])
    table = str(write_table(tmp_path / "oco.csv", quads(7), np.ones(7)))
    (tmp_path / "map.txt").write_text("map")
    cube = tmp_path / "cube.zarr"
    write_cube(cube, xr.Dataset({"sif": (("sample", "y", "x"), truth[None])}), ALBERS, None, None, {})
    patches = tmp_path / "patches.nc"
    xr.Dataset({"sif": (("sample", "y", "x"), truth[None])}, attrs={products.MARK: "c"}).to_netcdf(patches)
    whole = write_map(tmp_path / "whole.nc", truth[None]).read_bytes()
    (tmp_path / "cut.nc").write_bytes(whole[: len(whole) // 2])
    kelvin = write_map(tmp_path / "kelvin.zarr", truth[None], units="K")
    cases = {
        tmp_path / "absent.zarr": "map: no such file",
        tmp_path / "map.txt": "is neither Zarr nor NetCDF",
        tmp_path: "is neither Zarr nor NetCDF",
        patches: "has no place on the Earth",
        tmp_path / "cut.nc": "is damaged or incomplete",
        cube: "is no map that predict.py wrote",
        kelvin: r"map: sif must be in mW m-2 sr-1 nm-1, as the soundings, .* \(found K\)",
    }
    for wrong, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            check_map(config(tmp_path, table, wrong))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="check.variable: must be one of quality, sif"):
        check_map(config(tmp_path, table, path, variable="ndvi"))


def test_tables_that_hold_nothing_are_refused(tmp_path: Path, truth: Floats) -> None:
    path = write_map(tmp_path / "map.zarr", truth[None])
    table = write_table(tmp_path / "oco.csv", quads(7), np.ones(7))
    with pytest.raises(ValueError, match="no file .*none.csv"):
        check_map(config(tmp_path, str(tmp_path / "none.csv"), path))
    with pytest.raises(ValueError, match="none of 7 is left .quality or cloud flag: 7"):
        check_map(config(tmp_path, str(table), path, quality_flags=[2]))
    with pytest.raises(ValueError, match="no column sif757, sif757_U"):
        check_map(config(tmp_path, str(table), path, column="sif757"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"soundings": None, "path": Path("map.nc")}, "map: must come with soundings"),
        ({"soundings": "oco.csv", "path": None}, "map: must be given with soundings"),
        ({"soundings": [], "path": Path("map.nc")}, "soundings: must hold 1 or more values"),
        ({"min_cover": 0.0}, "check.min_cover: must be greater than 0"),
        ({"column": "sif743"}, "check.column: must be 'sif740'"),
        ({"quality_flags": []}, "check.quality_flags: must hold 1 or more values"),
    ],
)
def test_a_faulty_configuration_is_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    given: dict[str, Any] = {"soundings": "oco.csv", "path": Path("map.nc")} | changes
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, given.pop("soundings"), given.pop("path"), **given)
    assert caught.value.faults[0].startswith(fault) and len(caught.value.faults) == 1


def test_soundings_and_runs_are_not_compared_at_once(tmp_path: Path) -> None:
    both = config(tmp_path, "oco.csv", Path("map.nc")).model_dump() | {"study": "tried"}
    with pytest.raises(ConfigError) as caught:
        validate(both, CompareConfig)
    assert caught.value.faults[0].startswith("soundings: must come without study, which compare runs")


def test_maps_are_known_by_the_same_attribute_here_and_where_they_are_made() -> None:
    assert map_file._MARK == products.MARK


def test_a_sounding_at_the_pole_counts_as_outside(tmp_path: Path, truth: Floats) -> None:
    table = write_table(tmp_path / "oco.csv", quads(3), np.ones(3))
    names = [f"lat_{i}" for i in range(1, 5)]
    edited(table, lambda frame: frame.assign(**{name: frame[name].where(frame.index != 1, -90) for name in names}))
    rows, left_out = matched(table, write_map(tmp_path / "map.zarr", truth[None]))
    assert len(rows) == 2 and left_out["outside the map"] == 1
