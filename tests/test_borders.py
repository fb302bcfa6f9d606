"""Coastlines and borders: against shapely's clipping, and where projections bend, cut or end them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from sifscale.borders import Bounds, border_lines

ALBERS = CRS("EPSG:5070")
GEOGRAPHIC = CRS("EPSG:4326")
MODIS = CRS("+proj=sinu +R=6371007.181")
CASES = [
    (GEOGRAPHIC, (-180.0, -90.0, 180.0, 90.0)),
    (ALBERS, (-2.4e6, 2e5, 2.3e6, 3.2e6)),
    (MODIS, (-20015109.0, -10007555.0, 20015109.0, 10007555.0)),
    (CRS("EPSG:3995"), (-3e6, -3e6, 3e6, 3e6)),  # about the north pole
]


@cache
def stored() -> list[NDArray[np.float64]]:
    """All lines as they are stored, in degrees, put together one by one."""
    with files("sifscale").joinpath("borders.npz").open("rb") as file, np.load(file) as held:
        steps, step_deg, found, place = held["steps"].T, float(held["step_deg"]), [], 0
        for start, points in zip(held["start"], held["lengths"], strict=True):
            found.append(np.cumsum([start, *steps[place : place + points - 1]], axis=0) * step_deg)
            place += points - 1
        assert place == len(steps) and "public domain" in str(held["source"])
    return found


def length(lines: list[NDArray[np.float64]]) -> float:
    return float(sum(np.hypot(*np.diff(line, axis=0).T).sum() for line in lines))


@pytest.mark.parametrize(
    "bounds", [(0.0, 40.0, 20.0, 55.0), (-98.0, 43.0, -89.0, 49.5), (170.0, -25.0, 190.0, -10.0), (-7, 37, -1, 40)]
)
def test_lines_are_clipped_as_shapely_clips_them(bounds: Bounds) -> None:
    turned = [line + (turn, 0.0) for line in stored() for turn in (-360.0, 0.0, 360.0)]
    expected = shapely.length(shapely.clip_by_rect([shapely.LineString(line) for line in turned], *bounds)).sum()
    found = border_lines(bounds, GEOGRAPHIC)
    assert expected > 1 and length(found.outlines + found.states) == pytest.approx(expected, rel=1e-9)


def test_a_parallel_bends_in_a_conic_projection() -> None:
    bounds = (-1.8e6, 2.6e6, 0.0, 3.2e6)
    to_degrees = Transformer.from_crs(ALBERS, GEOGRAPHIC, always_xy=True)
    covered = 0.0
    for line in border_lines(bounds, ALBERS).outlines:
        ends = np.column_stack(to_degrees.transform(*line.T))
        middles = np.column_stack(to_degrees.transform(*(line[1:] + line[:-1]).T / 2))
        parallel = (np.abs(ends[1:, 1] - 49) < 0.01) & (np.abs(ends[:-1, 1] - 49) < 0.01)  # of the US with Canada
        assert np.abs(middles[parallel, 1] - 49).max(initial=0) < 0.01, "between points too"
        covered += np.abs(np.diff(ends[:, 0]))[parallel].sum()
    assert covered > 20, "degrees of longitude"


@pytest.mark.parametrize(("crs", "bounds"), CASES)
def test_no_line_runs_across_the_map_where_the_world_is_cut(crs: CRS, bounds: Bounds) -> None:
    lines = border_lines(bounds, crs).outlines
    longest = max(np.abs(np.diff(line, axis=0)).max() for line in lines)
    assert len(lines) > 100 and longest < 0.1 * max(bounds[2] - bounds[0], bounds[3] - bounds[1])


@given(
    case=st.sampled_from(CASES),
    corner=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)),
    size=st.tuples(st.floats(0.001, 0.3), st.floats(0.001, 0.3)),
)
def test_lines_never_leave_the_map(
    case: tuple[CRS, Bounds], corner: tuple[float, float], size: tuple[float, float]
) -> None:
    crs, (west, south, east, north) = case
    low = np.array([west, south]) + np.array(corner) * (east - west, north - south)
    high = low + np.array(size) * (east - west, north - south)
    found = border_lines((low[0], low[1], high[0], high[1]), crs)
    for line in found.outlines + found.states:
        assert len(line) > 1 and (line >= low).all() and (line <= high).all()


def test_states_are_told_from_countries() -> None:
    dakotas = border_lines((-103.0, 45.0, -98.0, 47.0), GEOGRAPHIC)
    assert not dakotas.outlines
    assert any(np.abs(line[:, 1] - 45.95).max() < 0.06 for line in dakotas.states), "between the two"


def test_an_ocean_has_no_lines() -> None:
    found = border_lines((-40.0, 25.0, -35.0, 30.0), GEOGRAPHIC)
    assert found.outlines == found.states == []


@pytest.mark.parametrize("bounds", [(1.0, 0.0, 1.0, 2.0), (0.0, 2.0, 1.0, 1.0), (0.0, 0.0, float("nan"), 1.0)])
def test_bounds_without_an_area_are_refused(bounds: Bounds) -> None:
    with pytest.raises(ValueError, match="enclose an area"):
        border_lines(bounds, GEOGRAPHIC)


def test_the_file_stays_small() -> None:
    assert len(files("sifscale").joinpath("borders.npz").read_bytes()) < 400_000
