"""A window's cube is built again when its configuration or a raw file changes, and only then."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sifscale import windows
from sifscale.windows import cube_path, open_or_build

if TYPE_CHECKING:
    from conftest import Workplace


SMALL = ("window.period.end=2019-05-24", "window.simulation.days_per_period=2")


def stamp(path: Path) -> int:
    """Changes when the cube is written anew: it is renamed into place as a whole."""
    return path.stat().st_ino


def test_a_simulated_cube_is_built_once(workplace: Workplace, tmp_path: Path) -> None:
    run = workplace.config(f"paths.data={tmp_path}", *SMALL)
    first = open_or_build(run)
    before = stamp(cube_path(run))
    assert open_or_build(run).hash == first.hash and stamp(cube_path(run)) == before
    other = workplace.config(f"paths.data={tmp_path}", *SMALL, "window.simulation.seed=1")
    assert open_or_build(other).hash != first.hash and stamp(cube_path(run)) != before
    # what does not change the window does not build it again
    before = stamp(cube_path(run))
    open_or_build(workplace.config(f"paths.data={tmp_path}", *SMALL, "window.simulation.seed=1", "seed=9"))
    assert stamp(cube_path(run)) == before


def test_a_changed_raw_file_builds_the_cube_again(workplace: Workplace, tables: Path, tmp_path: Path) -> None:
    run = workplace.config(
        "window=minnesota_2019",
        "split=time",
        "crop.size=6",
        "model=bilinear",
        f"paths.data={tmp_path}",
        f"paths.raw={tables}",
    )
    first = open_or_build(run)
    before = stamp(cube_path(run))
    assert open_or_build(run).hash == first.hash and stamp(cube_path(run)) == before
    table = next(tables.rglob("*3.5x7km_25_MAY*.csv"))
    table.write_text(table.read_text().replace(",0.5", ",0.6"))
    assert open_or_build(run).hash != first.hash and stamp(cube_path(run)) != before
    before = stamp(cube_path(run))
    table.unlink()  # a cube from elsewhere, without its raw files
    open_or_build(run)
    assert stamp(cube_path(run)) == before


def test_of_two_jobs_that_start_together_one_builds_the_cube(
    workplace: Workplace, tables: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("window=minnesota_2019", "split=time", "crop.size=6", "model=bilinear")
    run = workplace.config(*words, f"paths.data={tmp_path}", f"paths.raw={tables}")
    caplog.set_level("INFO", "sifscale")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(open_or_build, [run, run])
    assert first.hash == second.hash
    assert caplog.text.count("building the cube of window minnesota_2019") == 1


def test_a_failed_build_leaves_no_cube(workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = workplace.config(f"paths.data={tmp_path}", *SMALL)
    windows.build_raw(run)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("xarray.DataTree.to_zarr", fail)
    with pytest.raises(OSError, match="no space"):
        windows.build_cube(run)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["raw"]
