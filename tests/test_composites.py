"""The plan of a gridded window: MODIS composites of a year, grids from bounds, and parts that cover everything once."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Transformer

from sifscale.composites import Period, grids, parts, periods
from sifscale.config import GriddedWindow, GridSection, PeriodSection
from sifscale.sources.soundings import GranuleInfo

if TYPE_CHECKING:
    from conftest import Workplace

DAY = datetime.timedelta(days=1)


def section(start: datetime.date, end: datetime.date, days: int = 16, first_day: int = 1) -> PeriodSection:
    return PeriodSection(start=start.isoformat(), end=end.isoformat(), days=days, first_day=first_day)


def test_a_year_has_23_composites_and_the_last_is_short() -> None:
    found = periods(section(datetime.date(2019, 1, 1), datetime.date(2019, 12, 31)))
    assert len(found) == 23
    assert [period.start.timetuple().tm_yday for period in found] == list(range(1, 354, 16))
    assert (found[-1].end - found[-1].start).days + 1 == 13
    leap = periods(section(datetime.date(2020, 1, 1), datetime.date(2020, 12, 31)))
    assert (leap[-1].end - leap[-1].start).days + 1 == 14


def test_the_composites_of_the_original_study_are_those_of_mod13() -> None:
    found = periods(section(datetime.date(2019, 5, 25), datetime.date(2019, 6, 25)))
    assert found == [
        Period(datetime.date(2019, 5, 25), datetime.date(2019, 6, 9)),
        Period(datetime.date(2019, 6, 10), datetime.date(2019, 6, 25)),
    ]


def test_aqua_composites_run_over_new_year() -> None:
    found = periods(section(datetime.date(2019, 12, 30), datetime.date(2020, 1, 12), first_day=9))
    assert found == [
        Period(datetime.date(2019, 12, 27), datetime.date(2020, 1, 8)),
        Period(datetime.date(2020, 1, 9), datetime.date(2020, 1, 24)),
    ]


@given(
    start=st.dates(datetime.date(2018, 1, 1), datetime.date(2024, 12, 31)),
    length=st.integers(0, 800),
    days=st.integers(1, 40),
    first_day=st.integers(1, 40),
)
def test_composites_cover_the_days_once(start: datetime.date, length: int, days: int, first_day: int) -> None:
    end = start + length * DAY
    found = periods(section(start, end, days, first_day))
    assert found[0].start <= start <= found[0].end and found[-1].start <= end <= found[-1].end
    for one, following in zip(found, found[1:], strict=False):
        assert one.end + DAY == following.start
    assert all(1 <= (period.end - period.start).days + 1 <= days for period in found)


def test_a_day_belongs_to_one_composite_to_the_nanosecond() -> None:
    period = Period(datetime.date(2019, 5, 25), datetime.date(2019, 6, 9))
    times = np.array(
        ["2019-05-24T23:59:59.999999999", "2019-05-25", "2019-06-09T23:59:59.999999999", "2019-06-10", "NaT"],
        "datetime64[ns]",
    )
    assert period.contains(times).tolist() == [False, True, True, False, False]


def grid_section(crs: str, bounds: tuple[float, ...], bounds_crs: str, pixel: float) -> GridSection:
    return GridSection(crs=crs, pixel=pixel, bounds=list(bounds), bounds_crs=bounds_crs, fine_factor=4)


def test_bounds_in_the_crs_of_the_grid_are_kept() -> None:
    native, fine = grids(grid_section("EPSG:5070", (-60e3, 2466e3, 452e3, 2850e3), "EPSG:5070", 4000.0))
    assert (native.height, native.width, native.west, native.north) == (96, 128, -60e3, 2850e3)
    assert fine == native.refine(4)


def test_bounds_that_cut_cells_are_refused() -> None:
    with pytest.raises(ValueError, match=r"window.grid.bounds: must hold whole cells of 4000.0 \(found 128.25 x 96"):
        grids(grid_section("EPSG:5070", (-60e3, 2466e3, 453e3, 2850e3), "EPSG:5070", 4000.0))


@pytest.mark.parametrize("crs", ["EPSG:5070", "auto"])
def test_bounds_in_degrees_are_projected_and_rounded_outwards(crs: str) -> None:
    west, south, east, north = -97.2, 43.5, -89.5, 49.4
    native, _ = grids(grid_section(crs, (west, south, east, north), "EPSG:4326", 4000.0))
    edge = np.linspace(0, 1, 201)
    x, y = np.meshgrid(west + edge * (east - west), south + edge * (north - south))
    px, py = Transformer.from_crs("EPSG:4326", native.crs, always_xy=True).transform(x, y)
    column, row = (px - native.west) / native.dx, (native.north - py) / native.dy
    assert column.min() >= 0 and column.max() <= native.width and row.min() >= 0 and row.max() <= native.height
    assert column.min() < 2 and column.max() > native.width - 2 and row.min() < 2 and row.max() > native.height - 2
    assert native.west % 4000 == native.north % 4000 == 0
    if crs == "auto":
        assert CRS.from_user_input(native.crs).to_dict()["proj"] == "laea"


def test_parts_cover_every_cell_of_every_composite_once(workplace: Workplace) -> None:
    window = workplace.config("window.tile_px=80").window
    assert isinstance(window, GriddedWindow)
    native, _ = grids(window.grid)
    noon = np.datetime64("2019-05-20T12", "ns")
    swath = GranuleInfo(Path("a.nc"), "TROPOSIF", noon, noon + np.timedelta64(1, "h"), 3)
    found = parts(window, Path("raw"), [swath], [])
    count = np.zeros((len(periods(window.period)), native.height, native.width), int)
    for part in found:
        count[part.sample, part.rows, part.columns] += 1
        assert part.native == native.window(part.rows, part.columns)
        assert part.fine == part.native.refine(4)
        assert bool(part.soundings) == (part.period.start <= datetime.date(2019, 5, 20) <= part.period.end)
    assert (count == 1).all() and len(found) > len(count)
