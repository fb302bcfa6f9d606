"""The whole simulation: reproducible, anywhere on the Earth, all or nothing, and clear about bad arguments."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sifscale.grid import Grid
from sifscale.simulation.world import Period

if TYPE_CHECKING:
    from conftest import Osse

PERIOD = (datetime.date(2019, 6, 26), datetime.date(2019, 7, 11))
SMALL = Grid("EPSG:5070", 0.0, 2_700_000.0, 4000.0, 4000.0, 8, 8)
Simulate = Callable[..., "Osse"]


def test_equal_arguments_give_equal_files_and_seeds_differ(tmp_path: Path, simulate: Simulate) -> None:
    first, again, other = (
        simulate(tmp_path / name, seed=seed, grid=SMALL, days_per_period=1)
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    )
    files = [path.relative_to(first.folder) for path in first.folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        assert (first.folder / path).read_bytes() == (again.folder / path).read_bytes(), path
    assert not np.array_equal(first.truth["sif_truth"], other.truth["sif_truth"])


def test_more_periods_and_days_leave_the_earlier_files_as_they_are(tmp_path: Path, simulate: Simulate) -> None:
    later = tuple(day + datetime.timedelta(days=16) for day in PERIOD)
    said: list[str] = []
    short = simulate(tmp_path / "short", grid=SMALL, days_per_period=1)
    long = simulate(tmp_path / "long", grid=SMALL, days_per_period=2, periods=[PERIOD, later], progress=said.append)
    for path in short.swaths:
        for name, values in short.variables(path).items():
            np.testing.assert_array_equal(values, long.variables(long.folder / "troposif" / path.name)[name])
    assert short.granules[0].name == long.granules[0].name
    for name, values in short.layers.items():
        np.testing.assert_array_equal(values, long.layers[name])
    assert len(said) == 2 and said[0].startswith("composite 1 of 2, 2019-06-26 to 2019-07-11: ")


def test_a_world_across_the_date_line_is_seen_and_tiled(tmp_path: Path, simulate: Simulate) -> None:
    """Wrangel Island: tiles at either edge of the sinusoidal map, partly beyond it; midnight UTC is near."""
    grid = Grid("EPSG:3571", -100_000.0, -2_050_000.0, 4000.0, 4000.0, 12, 50)  # polar, about 180 E
    osse = simulate(tmp_path / "raw", grid=grid, factor=2, days_per_period=1)
    assert len(osse.granules) >= 2
    covered = [np.mean(osse.layers_of(path)["pixel reliability"] >= 0) for path in osse.granules]
    assert 0 < sum(covered) < 0.2
    seen = osse.soundings
    assert seen["longitude"].min() < -170 and seen["longitude"].max() > 170
    assert np.isfinite(seen["SIF_743"]).all()


def test_a_night_long_winter_writes_no_day_file(tmp_path: Path, simulate: Simulate) -> None:
    north = Grid("EPSG:3413", -2_000_000.0, -2_000_000.0, 4000.0, 4000.0, 4, 4)  # about 66 N, 90 W
    december = (datetime.date(2019, 12, 19), datetime.date(2019, 12, 31))
    osse = simulate(tmp_path / "raw", grid=north, periods=[december], days_per_period=2)
    assert not osse.swaths and osse.granules


class _Stopped(Exception):
    """Ends a simulation after its first composite."""


def _stop(_: str) -> None:
    raise _Stopped


def test_an_existing_folder_is_refused_and_a_fault_leaves_nothing(tmp_path: Path, simulate: Simulate) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(ValueError, match="exists; remove it"):
        simulate(tmp_path / "raw")
    with pytest.raises(_Stopped):
        simulate(tmp_path / "new", grid=SMALL, days_per_period=1, progress=_stop)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_only_leftovers_of_killed_processes_and_of_the_same_folder_go(tmp_path: Path, simulate: Simulate) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mark = uuid.uuid4().hex
    killed = tmp_path / f".raw.{ended.pid}.{mark}.partial"
    kept = [
        tmp_path / name
        for name in (
            f".raw.{os.getpid()}.{mark}.partial",  # of a living process
            f".raw.{ended.pid}.{os.getpid()}.{mark}.partial",  # of a folder raw.<number>
            f".other.{ended.pid}.{mark}.partial",
            f".raw.{ended.pid}.notes.partial",
        )
    ]
    for folder in (killed, *kept):
        (folder / "truth").mkdir(parents=True)
    with pytest.raises(_Stopped):
        simulate(tmp_path / "raw", grid=SMALL, days_per_period=1, progress=_stop)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def reversed_period(period: Period) -> Period:
    return period[1], period[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": Grid("EPSG:4326", -97.0, 49.0, 0.05, 0.05, 9, 9)}, "must be projected in metres"),
        ({"grid": Grid("EPSG:5070", 0.0, 0.0, 4000.0, 2000.0, 9, 9)}, "dx=4000.0, dy=2000.0"),
        ({"factor": 0}, "factor must be at least 1, found 0"),
        ({"margin_km": -1.0}, "margin_km must be 0 or more, found -1.0"),
        ({"periods": []}, "periods must not be empty"),
        ({"periods": [reversed_period(PERIOD)]}, "found 2019-07-11 to 2019-06-26"),
        ({"periods": [PERIOD, PERIOD]}, "in order and apart, found 2019-06-26 after 2019-07-11"),
        ({"days_per_period": 0}, "days_per_period must be at least 1, found 0"),
        ({"seed": -1}, "seed must not be negative, found -1"),
        ({"sounding_noise": -0.1}, "sounding_noise must be 0 or more, found -0.1"),
        ({"cloudiness": 1.0}, r"cloudiness must be in \[0, 1\), found 1.0"),
        ({"fill_share": -0.1}, r"fill_share must be in \[0, 1\), found -0.1"),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_line(
    tmp_path: Path, simulate: Simulate, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        simulate(tmp_path / "raw", **changes)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
