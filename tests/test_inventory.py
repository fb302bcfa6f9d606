"""Which files are found and used, and when new, changed or repaired ones make a cube anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sifscale.config import GriddedWindow
from sifscale.inventory import Inventory, find_files, relative_name, take_stock
from sifscale.sources import SourceError, file_sha256
from sifscale.windows import cube_path, open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

    from sifscale.config import RunConfig

# The composites of the tiny cube, whose files are thus not simulated again.
THREE_COMPOSITES = ("window.period.end=2019-06-25", "window.suggested.bands=[coarse]", "dask.scheduler=synchronous")
SWATH = "troposif/TROPOSIF_L2B_2019-05-{:02}.nc"


@pytest.fixture
def raw(tiny_cube_path: Path, tmp_path: Path) -> Path:
    """Raw files of the tiny cube, to be changed: four days of swaths and two granules."""
    folder = tmp_path / "data" / "raw" / "minnesota_osse"
    source = tiny_cube_path.parent / "raw" / "tiny"
    for name in ("troposif/TROPOSIF_L2B_2019-05-[01]*.nc", "mod13a2/MOD13A2.A20191[24]*.hdf"):
        for path in source.glob(name):
            (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.parent.name)
    shutil.copy(source / "simulation.json", folder)
    return folder


@pytest.fixture
def run(workplace: Workplace, tmp_path: Path, raw: Path) -> RunConfig:
    """Soundings only, which makes a cube in half a second."""
    words = ("window.vegetation=null", "window.fine_layers=[]")
    return workplace.config(f"paths.data={tmp_path / 'data'}", *THREE_COMPOSITES, *words)


def stock_of(workplace: Workplace, raw: Path, *words: str) -> Inventory:
    config = workplace.config("dask.scheduler=synchronous", *words)
    assert isinstance(config.window, GriddedWindow)
    return take_stock(config.window, raw, config.dask)


def test_usable_files_are_listed_with_their_hashes_and_bad_ones_with_a_reason(workplace: Workplace, raw: Path) -> None:
    bad = raw / SWATH.format(10)
    bad.write_bytes(b"")
    stock = stock_of(workplace, raw)
    assert [info.path.name for info in stock.soundings] == [Path(SWATH.format(day)).name for day in (9, 11, 12)]
    assert [image.tile for image in stock.granules] == [(11, 4), (11, 4)]
    assert stock.faults == {SWATH.format(10): f"{bad}: the file is empty (0 bytes); fetch it again"}
    assert len(stock.hashes) == 5 and all(file_sha256(raw / name) == sha for name, sha in stock.hashes.items())
    with pytest.raises(SourceError, match=r"05-10.nc: the file is empty"):
        stock_of(workplace, raw, "window.strict=true")


def test_a_pattern_that_finds_nothing_says_which_key_holds_it(workplace: Workplace, raw: Path) -> None:
    with pytest.raises(SourceError, match=r"tropomi/\*\.nc: no such file; check paths\.raw and window\.soundings\.fil"):
        stock_of(workplace, raw, "window.soundings.files=[troposif/*.nc,tropomi/*.nc]")
    with pytest.raises(SourceError, match=r"\*\.h5: no such file; check paths\.raw and window\.vegetation\.files"):
        stock_of(workplace, raw, "window.vegetation.files=[mod13a2/*.h5]")


def test_files_are_found_once_and_hidden_ones_never(raw: Path) -> None:
    (raw / "troposif" / ".TROPOSIF_L2B_2019-05-13.nc").write_bytes(b"a download under way")
    found = find_files(raw, ["troposif/*.nc", "**/*05-09.nc"], "files")
    assert [path.relative_to(raw).as_posix() for path in found] == [SWATH.format(day) for day in range(9, 13)]


def test_a_pattern_may_be_absolute(raw: Path) -> None:
    elsewhere = raw.parent / "other"
    found = find_files(elsewhere, [f"{raw}/troposif/*.nc"], "files")
    assert len(found) == 4 and relative_name(found[0], elsewhere) == found[0].as_posix()
    assert relative_name(found[0], raw) == SWATH.format(9)


def test_only_a_new_or_changed_or_repaired_file_builds_a_cube_again(run: RunConfig, raw: Path) -> None:
    first, last = raw / SWATH.format(9), raw / SWATH.format(12)
    good = last.read_bytes()
    last.write_bytes(good[:1000])
    hashes = [open_or_build(run).hash]

    def builds_again() -> bool:
        before = cube_path(run).stat().st_ino
        hashes.append(open_or_build(run).hash)
        return cube_path(run).stat().st_ino != before

    assert not builds_again()
    (raw / "troposif" / ".hidden.nc").write_bytes(b"a download under way")
    (raw / "troposif" / "notes.txt").write_text("matches no pattern")
    assert not builds_again()
    first.touch()  # another time, the same bytes
    assert not builds_again() and len(set(hashes)) == 1
    last.write_bytes(good)  # fetched again
    assert builds_again() and hashes[-1] != hashes[0]
    (raw / SWATH.format(13)).write_bytes(good)
    assert builds_again() and len(set(hashes)) == 3
    first.write_bytes(good)
    assert builds_again() and len(set(hashes)) == 4
    first.unlink()  # such as raw files moved to an archive
    assert not builds_again()


def test_a_layer_that_was_missing_builds_the_cube_again_when_it_comes(
    workplace: Workplace, run: RunConfig, raw: Path, tiny_cube_path: Path
) -> None:
    run = workplace.config(f"paths.data={run.paths.data}", *THREE_COMPOSITES, "window.vegetation=null")
    before = open_or_build(run)
    assert "truth/truth_2019-05-09.nc" in before.attrs["excluded_files"]
    shutil.copytree(tiny_cube_path.parent / "raw" / "tiny" / "truth", raw / "truth")
    after = open_or_build(run)
    assert after.attrs["excluded_files"] == "{}" and after.hash != before.hash
