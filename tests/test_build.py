"""``python build.py``: many files of which some are broken, exit codes, and a build that is killed."""

from __future__ import annotations

import datetime
import json
import os
import re
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import xarray as xr
from pyhdf.SD import SD, SDC

from sifscale.cube import content_hash, open_cube

if TYPE_CHECKING:
    from conftest import Workplace

ROOT = Path(__file__).parents[1]
CUBE = "minnesota_osse.zarr"
CORNERS = "PRODUCT/SUPPORT_DATA/GEOLOCATIONS/longitude_bounds"


@pytest.fixture(scope="module")
def simulated(tiny_cube_path: Path) -> Path:
    """The simulated files of the tiny cube, only to be read."""
    return tiny_cube_path.parent / "raw" / "tiny"


@pytest.fixture(scope="module")
def run_build(workplace: Workplace) -> Callable[..., int]:
    """``python build.py`` of the tiny window in this process, with a folder for its cubes; returns the exit code."""

    def run(folder: Path, *words: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["build.py", *command_line(workplace, folder, *words)])
            try:
                runpy.run_path(str(ROOT / "build.py"), run_name="__main__")
            except SystemExit as end:
                assert isinstance(end.code, int)
                return end.code
        return 0

    return run


def command_line(workplace: Workplace, folder: Path, *words: str) -> list[str]:
    tiny = [word for word in workplace.overrides() if word.startswith(("window.", "paths.output="))]
    return [*tiny, f"paths.data={folder}", "step=cube", "dask.scheduler=synchronous", *words]


def on_another_day(path: Path, folder: Path, day: datetime.date) -> Path:
    """The same soundings as the granule of another day."""
    copy = folder / f"TROPOSIF_L2B_{day}.nc"
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        file["PRODUCT/delta_time"].attrs["units"] = f"milliseconds since {day} 00:00:00"
        file["PRODUCT/time"][...] = (day - datetime.date(2010, 1, 1)).days * 86_400
    return copy


def edited(path: Path, variable: str, edit: Callable[[h5py.Dataset], None] | None) -> None:
    with h5py.File(path, "r+") as file:
        if edit is None:
            del file[variable]
        else:
            edit(file[variable])


def everywhere(number: float) -> Callable[[h5py.Dataset], None]:
    def fill(variable: h5py.Dataset) -> None:
        variable[...] = number

    return fill


def break_in_ten_ways(raw: Path) -> dict[str, str]:
    """Ten more files that cannot be used: {name: what is to be said of it}."""
    good = raw / "troposif" / "TROPOSIF_L2B_2019-05-09.nc"
    image = next((raw / "mod13a2").glob("*.A2019129.h11v04.*"))
    paths = {n: raw / "troposif" / f"TROPOSIF_L2B_2019-05-{n}_bad.nc" for n in range(10, 18)}
    for n in (10, 13, 14, 15, 16):
        shutil.copy(good, paths[n])
    os.truncate(paths[10], 100_000)
    paths[11].touch()
    shutil.copy(image, paths[12])
    edited(paths[13], "PRODUCT/SIF_743", None)
    edited(paths[14], "PRODUCT/SIF_743", everywhere(9.96921e36))
    edited(paths[15], CORNERS, everywhere(np.nan))
    edited(paths[16], "PRODUCT/SIF_743", everywhere(999.0))
    paths[17].mkdir()
    wrong_tile = image.with_name(image.name.replace("h11v04", "h12v04"))
    wrong_grid = image.with_name(image.name.replace(".061.", ".006."))
    for copy in (wrong_tile, wrong_grid):
        shutil.copy(image, copy)
    file = SD(str(wrong_grid), SDC.WRITE)
    structure = file.attributes()["StructMetadata.0"]
    file.attr("StructMetadata.0").set(SDC.CHAR, structure.replace("XDim=1200", "XDim=12000"))
    file.end()
    reasons = {
        paths[10]: "truncated or damaged HDF5",
        paths[11]: r"the file is empty \(0 bytes\)",
        paths[12]: r"looks like HDF4 \(such as MOD13A2\), not TROPOSIF",
        paths[13]: "no variable SIF_743 in group /PRODUCT",
        paths[14]: "SIF_743 is all fill in the",
        paths[15]: "longitude_bounds are all missing in the",
        paths[16]: r"100\.0% of PRODUCT/SIF_743 is beyond",
        paths[17]: "cannot be opened",
        wrong_tile: "wrong tile: the name says h12v04",
        wrong_grid: "12000 x 1200 pixels of 926.625 m do not span the corners",
    }
    return {path.relative_to(raw).as_posix(): reason for path, reason in reasons.items()}


@pytest.fixture(scope="module")
def fifty(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder for cubes with 50 granules, of which 10 are broken, below its raw/; and what is wrong with them."""
    folder = tmp_path_factory.mktemp("fifty")
    raw = folder / "raw" / "minnesota_osse"
    shutil.copytree(simulated / "truth", raw / "truth")
    for product in ("troposif", "mod13a2"):
        (raw / product).mkdir()
    days = [datetime.date(2019, 5, 9) + datetime.timedelta(days=n) for n in range(38)]  # some beyond the period
    swaths = sorted((simulated / "troposif").iterdir())
    for n, day in enumerate(days):
        on_another_day(swaths[n % 4], raw / "troposif", day)
    for composite in ("A2019129", "A2019145"):
        shutil.copy(next((simulated / "mod13a2").glob(f"*.{composite}.*")), raw / "mod13a2")
    reasons = break_in_ten_ways(raw)
    assert len(list(raw.glob("troposif/*"))) + len(list(raw.glob("mod13a2/*"))) == 50
    return folder, reasons


def test_ten_broken_granules_of_fifty_are_named_and_the_others_built(
    fifty: tuple[Path, dict[str, str]], run_build: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, reasons = fifty
    assert run_build(folder) == 3
    *lines, last = capsys.readouterr().err.splitlines()
    assert last == "10 files left out; the cube is built from the others" and len(lines) == 10
    cube = open_cube(folder / CUBE)
    excluded = json.loads(cube.attrs["excluded_files"])
    assert set(excluded) == set(reasons)
    for name, reason in reasons.items():
        [line] = [line for line in lines if f"/{name}: " in line]
        assert line == f"left out: {excluded[name]}" and re.search(reason, line)
    used = set(json.loads(cube.attrs["input_files"])) - set(excluded)
    assert len([name for name in used if not name.startswith("truth/")]) == 40
    alone = folder / "alone"
    left_out = shutil.ignore_patterns(*(Path(name).name for name in reasons))
    shutil.copytree(folder / "raw", alone / "raw", ignore=left_out)
    assert run_build(alone) == 0 and capsys.readouterr().err == ""
    without = open_cube(alone / CUBE)
    assert without.fine is not None and cube.fine is not None
    xr.testing.assert_identical(without.native.load(), cube.native.load())
    xr.testing.assert_identical(without.fine.load(), cube.fine.load())


@pytest.mark.parametrize("only", ["05-10_bad", "05-14_bad"])  # found when it is inspected, and when it is read
def test_strict_stops_at_the_first_bad_file_in_one_line(
    only: str,
    fifty: tuple[Path, dict[str, str]],
    run_build: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    folder, reasons = fifty
    left_out = [name for name in (Path(name).name for name in reasons) if only not in name]
    shutil.copytree(folder / "raw", tmp_path / "raw", ignore=shutil.ignore_patterns(*left_out))
    assert run_build(tmp_path, "window.strict=true") == 1
    assert re.fullmatch(rf"error: \S+{only}\.nc: .*\n", capsys.readouterr().err)
    assert not list(tmp_path.glob("*.zarr")) and not list(tmp_path.glob(".*.partial"))


def test_a_killed_build_leaves_the_older_cube_and_the_next_one_cleans_up(
    workplace: Workplace, simulated: Path, run_build: Callable[..., int], tmp_path: Path
) -> None:
    raw = tmp_path / "raw" / "minnesota_osse"
    raw.parent.mkdir()
    raw.symlink_to(simulated)
    older = ["window.vegetation=null", "window.fine_layers=[]"]
    assert run_build(tmp_path, *older) == 0
    digest = open_cube(tmp_path / CUBE).hash
    words = command_line(workplace, tmp_path, "window.tile_px=48")  # many parts: it takes long
    process = workplace.start_script(ROOT / "build.py", *words)
    end = time.monotonic() + 60
    while not (leftovers := list(tmp_path.glob(f".{CUBE}.*.partial/fine/ndvi/c"))) and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and leftovers
    assert list(tmp_path.glob(f".{CUBE}.*.partial"))
    assert open_cube(tmp_path / CUBE).hash == digest
    assert content_hash(xr.open_datatree(tmp_path / CUBE, engine="zarr")) == digest
    assert run_build(tmp_path) == 0
    assert not list(tmp_path.glob(".*.partial")) and open_cube(tmp_path / CUBE).hash != digest


def test_a_first_build_that_is_killed_leaves_no_cube(simulated: Path, workplace: Workplace, tmp_path: Path) -> None:
    """The same kill without an older cube: nothing has the final name, whenever it comes."""
    raw = tmp_path / "raw" / "minnesota_osse"
    raw.parent.mkdir()
    raw.symlink_to(simulated)
    script = (
        "import os, signal, sys, runpy, zarr\n"
        "consolidate = zarr.consolidate_metadata\n"
        "def die(*args, **kwargs):\n"
        "    consolidate(*args, **kwargs)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "zarr.consolidate_metadata = die\n"  # the last step before the cube gets its name
        f"sys.argv[0] = {str(ROOT / 'build.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = command_line(workplace, tmp_path, "window.vegetation=null", "window.fine_layers=[]")
    (tmp_path / "die.py").write_text(script)
    process = workplace.start_script(tmp_path / "die.py", *words)
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob(f".{CUBE}.*.partial")) and not (tmp_path / CUBE).exists()
