"""The pictures that ``predict.py`` draws beside a map: which there are, of what, and how large maps are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from sifscale import map_fields, prediction
from sifscale.config import PredictConfig, load
from sifscale.grid import block_mean
from sifscale.map_fields import MapFields, pooled, spread
from sifscale.map_pictures import draw_pictures, pictures_folder

if TYPE_CHECKING:
    from conftest import Workplace

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run_folder(workplace: Workplace) -> Path:
    options = ("model=bilinear", "evaluation.details=false", "evaluation.ridge=null")
    return workplace.train(workplace.folder / "bilinear_for_pictures", *options)


def predicted(workplace: Workplace, run: Path, name: str, *more: str) -> Path:
    from hydra import compose, initialize_config_dir

    window = [word for word in workplace.overrides() if word.startswith("window.")]
    words = [*window, *workplace.places, f"run={run}", f"output={workplace.folder / name}", "progress=false", *more]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return prediction.predict(load(compose("predict", words), PredictConfig))


# --- predict.py -----------------------------------------------------------------------------------


def test_a_map_comes_with_its_pictures(workplace: Workplace, run_folder: Path) -> None:
    path = predicted(workplace, run_folder, "pictured.nc", "format=netcdf")
    folder = pictures_folder(path)
    days = ("2019-05-09", "2019-05-25")
    figures = [f"{sample:04d}_Minnesota_{day}.png" for sample, day in enumerate(days)]
    assert sorted(file.name for file in folder.iterdir()) == [*figures, "map.html", "season.gif", "spectrum.png"]
    with Image.open(folder / "season.gif") as season:
        frames = [frame.info["duration"] for frame in ImageSequence.Iterator(season)]
        assert frames == [700, 2000] and season.info["loop"] == 0
    text = (folder / "map.html").read_text(encoding="utf-8")
    assert re.findall(r"<option value=\"\d\">([^<]+)<", text) == ["2019-05-09 – 2019-05-24", "2019-05-25 – 2019-06-09"]
    layers = re.findall(r'alt="(\w+), 2019-05-09[^"]+"', text)
    assert layers == ["coarse", "map", "truth"] and "(mW m⁻² sr⁻¹ nm⁻¹)" in text
    with xr.open_dataset(path) as found:
        assert found.attrs["run_id"] in text and found.attrs["cube_hash"] in text and "public domain" in text
    assert not list(folder.parent.glob(f".{folder.name}.*"))


def test_pictures_at_the_native_level_show_what_was_observed(workplace: Workplace, run_folder: Path) -> None:
    path = predicted(workplace, run_folder, "native.zarr", "level=native", "conservation=none")
    text = (pictures_folder(path) / "map.html").read_text(encoding="utf-8")
    assert set(re.findall(r'data-layer="(\w+)"', text)) == {"coarse", "map", "observed"}


def test_pictures_are_left_out_and_what_is_none_is_not_replaced(workplace: Workplace, run_folder: Path) -> None:
    path = predicted(workplace, run_folder, "bare.zarr", "pictures=false")
    folder = pictures_folder(path)
    assert not folder.exists()
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no pictures of a map"):
        predicted(workplace, run_folder, "bare.zarr", "conservation=additive")
    assert (folder / "thesis.txt").read_text() == "mine"


# --- what is shown --------------------------------------------------------------------------------


class Source:
    """Stands for a `FieldSource` without a model's predictors: native cells (sample, y, x) of 2 x 2 map pixels."""

    target, fine, block_px = "lst_day", True, 2

    def __init__(self, cells: NDArray[np.float32]) -> None:
        self.native, self.samples = cells, len(cells)
        self.shape = cells.shape[1] * 2, cells.shape[2] * 2

    def cells(self, sample: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        known = np.isfinite(self.native[sample])
        return (np.nan_to_num(self.native[sample], nan=9.0), known) if known.any() else None


def shown(fine: NDArray[np.float32], cells: NDArray[np.float32], places: list[str], **more: Any) -> MapFields:
    """Fields of a patch set: nowhere on a map, and in kelvin."""
    count = len(fine)
    days = ("sample", np.datetime64("2020-01-01", "ns") + np.arange(count) * np.timedelta64(8, "D"))
    variables = {
        "lst_day": (("sample", "y", "x"), fine, {"units": "K"}),
        "quality": (("sample", "y", "x"), np.zeros(fine.shape, np.uint8)),
        **{name: (("sample", "y", "x"), values) for name, values in more.pop("bands", {}).items()},
    }
    coords = {"place": ("sample", np.array(places, dtype=object)), "time_start": days, "time_end": days}
    source: Any = Source(cells)
    return MapFields(xr.Dataset(variables, coords=coords), source, **{"truth": None, **more})


def test_patches_of_many_places_are_sampled_and_not_animated(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    fine = rng.normal(size=(20, 16, 16)).astype(np.float32)
    draw_pictures(
        shown(fine, fine[:, ::2, ::2], [f"p_{n}" for n in range(20)]), tmp_path / "x_pictures", progress=False
    )
    names = sorted(file.name for file in (tmp_path / "x_pictures").iterdir())
    assert sum(name.endswith(".png") and name != "spectrum.png" for name in names) == 6
    assert names[0] == "0000_P-0_2020-01-01.png" and "season.gif" not in names
    text = (tmp_path / "x_pictures" / "map.html").read_text(encoding="utf-8")
    assert "P 19, 2020-06-01" in text and "20 places" in text and "LST DAY (K)" in text


def test_empty_composites_are_passed_over_and_a_map_without_values_has_no_pictures(tmp_path: Path) -> None:
    fine = np.ones((3, 4, 4), np.float32)
    cells = fine[:, ::2, ::2].copy()
    cells[1] = np.nan
    fine[2] = np.nan
    draw_pictures(shown(fine, cells, ["here"] * 3), tmp_path / "one", progress=False)
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == ["0000_Here_2020-01-01.png", "map.html"]
    draw_pictures(shown(fine * np.nan, cells, ["here"] * 3), tmp_path / "none", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_composite_holds_error_standard_error_and_gaps_as_they_are() -> None:
    rng = np.random.default_rng(6)
    fine, truth = rng.normal(size=(2, 1, 8, 8)).astype(np.float32)
    cells = fine[:, ::2, ::2].copy()
    cells[0, 1] = np.nan
    fields = shown(fine, cells, ["here"], bands={"lst_day_standard_error": fine**2}, truth=None)
    fields.map["quality"][0, 2:4] = 34  # not observed, gap filled
    found = fields.composite(0, "")
    assert found is not None and found.truth is None and found.error is None
    np.testing.assert_array_equal(found.coarse, cells[0])
    np.testing.assert_array_equal(found.standard_error, fine[0] ** 2)
    np.testing.assert_array_equal(np.flatnonzero(found.filled.all(axis=1)), [2, 3])
    known = MapFields(fields.map, fields.source, xr.DataArray(truth, dims=("sample", "y", "x")))
    found = known.composite(0, "")
    assert found is not None
    np.testing.assert_array_equal(found.error, fine[0] - truth[0])
    part = known.middle(0, 6)
    assert part is not None and {field.shape for field in part.values()} == {(6, 6)}
    np.testing.assert_array_equal(part["map"], fine[0, :6, :6])
    np.testing.assert_array_equal(part["coarse"][::2, ::2], cells[0, :3, :3])


# --- large fields ---------------------------------------------------------------------------------


@pytest.fixture
def few_px(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_fields, "_SHOWN_PX", 16)
    monkeypatch.setattr(map_fields, "_READ_CELLS", 200)


def test_a_large_field_is_read_by_parts_and_averaged_block_by_block(few_px: None) -> None:
    field = np.random.default_rng(7).normal(size=(48, 64))
    field[:9, :20] = np.nan
    rows: list[slice] = []

    def read(part: slice) -> NDArray[np.float64]:
        rows.append(part)
        return field[part]

    np.testing.assert_allclose(pooled(read, (48, 64)), block_mean(field, 4), rtol=1e-6)
    assert len(rows) > 5 and max(part.stop - part.start for part in rows) * 64 <= 4 * 64
    assert [part.start for part in rows[1:]] == [part.stop for part in rows[:-1]] and rows[-1].stop == 48


@given(shape=st.tuples(st.integers(1, 90), st.integers(1, 90)), seed=st.integers(0, 99))
def test_each_part_is_the_mean_of_its_pixels(shape: tuple[int, int], seed: int) -> None:
    field = np.random.default_rng(seed).normal(size=shape)
    field[field > 1] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_fields, "_SHOWN_PX", 16)
        patch.setattr(map_fields, "_READ_CELLS", 200)
        found = pooled(field.__getitem__, shape)
    assert max(found.shape) == min(16, max(shape))
    sizes = zip(shape, found.shape, strict=True)
    edges = [np.linspace(0, size, count + 1).round().astype(int) for size, count in sizes]
    for (row, column), value in np.ndenumerate(found):
        part = field[edges[0][row] : edges[0][row + 1], edges[1][column] : edges[1][column + 1]]
        known = part[np.isfinite(part)]
        assert np.isnan(value) if not known.size else value == pytest.approx(known.mean(), rel=1e-5, abs=1e-6)


@given(number=st.integers(1, 200), most=st.integers(1, 30))
def test_a_spread_is_even_and_holds_the_ends(number: int, most: int) -> None:
    found = spread(range(number), most)
    assert len(found) == min(number, most) and found == sorted(set(found)) and found[0] == 0
    assert most == 1 or found[-1] == number - 1
    assert len(found) < 3 or np.ptp(np.diff(found)) <= 1
