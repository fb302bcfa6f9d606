"""Coastlines and borders for map figures, of public-domain data that comes with the package (tools/make_borders.py)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer

CREDIT = "Natural Earth and US Census Bureau, both in the public domain."
_BENDS = 100  # straight pieces that a line across the whole map is made of, at least
_EDGE_POINTS = 21  # on each side of a map whose place on the Earth is sought
_JUMP = 0.5  # share of the map: a longer piece joins the two ends of the projected world and is no line

Line = NDArray[np.float64]
Bounds = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Borders:
    """Lines (n, 2) as x and y of a map: coasts and borders of countries, and those between states of the US."""

    outlines: list[Line]
    states: list[Line]


def border_lines(bounds: Bounds, crs: CRS) -> Borders:
    """Coasts and borders within a map, bent as its projection bends them, clipped to it.

    bounds: west, south, east and north edge in units of ``crs``, geographic or projected. True to about 2 km. Empty for
    a map on which nothing lies. Raises ValueError for bounds that enclose no area.
    """
    west, south, east, north = bounds
    if not (west < east and south < north):
        raise ValueError(f"bounds must be west, south, east, north that enclose an area, found {bounds}")
    box = _degrees(bounds, crs)
    to_map = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    span_deg = max(box[2] - box[0], box[3] - box[1])
    found: list[list[Line]] = []
    for starts, ends in _pieces():
        starts, ends = _near(starts, ends, box)
        points, piece = _densified(starts, ends, span_deg / _BENDS)
        x, y = to_map.transform(points[:, 0], points[:, 1], errcheck=False)
        placed = np.column_stack([x, y])
        joined = piece[1:] == piece[:-1]  # not the last point of a piece with the first one of the next
        starts, ends = placed[:-1][joined], placed[1:][joined]
        whole = np.isfinite(starts).all(axis=1) & np.isfinite(ends).all(axis=1)
        with np.errstate(invalid="ignore"):  # of points beyond the projection, left out here
            whole &= (np.abs(ends - starts) < _JUMP * np.array([east - west, north - south])).all(axis=1)
        found.append(_chained(*_clipped(starts[whole], ends[whole], bounds)))
    return Borders(*found)


@cache
def _pieces() -> tuple[tuple[Line, Line], tuple[Line, Line]]:
    """First and last points (n, 2), in degrees, of all straight pieces: of outlines, and of borders between states."""
    with files("sifscale").joinpath("borders.npz").open("rb") as file, np.load(file) as stored:
        lengths, start, step_deg = stored["lengths"], stored["start"], float(stored["step_deg"])
        steps, states = stored["steps"].T.astype(np.int64), int(stored["states"])
    line = np.repeat(np.arange(len(lengths)), lengths - 1)  # of each piece
    total = np.cumsum(steps, axis=0)
    first = np.concatenate([[0], np.cumsum(lengths - 1)[:-1]])
    ends = start[line] + total - (total[first] - steps[first])[line]
    starts, ends = (ends - steps) * step_deg, ends * step_deg
    inner = line >= len(lengths) - states
    return (starts[~inner], ends[~inner]), (starts[inner], ends[inner])


def _degrees(bounds: Bounds, crs: CRS) -> Bounds:
    """The least box of longitude and latitude that holds a map; east may exceed 180, so that it is beyond west."""
    if crs.is_geographic:
        return bounds
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    west, south, east, north = to_degrees.transform_bounds(*bounds, densify_pts=_EDGE_POINTS, errcheck=False)
    if not np.isfinite([west, south, east, north]).all():  # its edges lie beyond the projection: of the whole Earth
        return -180.0, -90.0, 180.0, 90.0
    return west, south, east + 360.0 * (east < west), north


def _near(starts: Line, ends: Line, box: Bounds) -> tuple[Line, Line]:
    """The pieces whose own boxes meet ``box``, at those longitudes that are nearest to it."""
    west, south, east, north = box
    middle = (starts[:, 0] + ends[:, 0]) / 2
    turn = np.round(((west + east) / 2 - middle) / 360) * 360
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    meets = (high[:, 0] + turn >= west) & (low[:, 0] + turn <= east) & (high[:, 1] >= south) & (low[:, 1] <= north)
    shift = np.column_stack([turn, np.zeros_like(turn)])[meets]
    return starts[meets] + shift, ends[meets] + shift


def _densified(starts: Line, ends: Line, step_deg: float) -> tuple[Line, NDArray[np.int64]]:
    """Points (n, 2) along pieces, at most ``step_deg`` apart, ends included, and the number of the piece of each.

    Straight in longitude and latitude: most borders that run straight for long follow a parallel or a meridian.
    """
    parts = np.maximum(1, np.ceil(np.abs(ends - starts).max(axis=1) / step_deg)).astype(np.int64)
    piece = np.repeat(np.arange(len(parts)), parts + 1)
    place = np.arange(len(piece)) - np.repeat(np.cumsum(parts + 1) - parts - 1, parts + 1)
    share = (place / parts[piece])[:, None]
    return starts[piece] * (1 - share) + ends[piece] * share, piece


def _clipped(starts: Line, ends: Line, bounds: Bounds) -> tuple[Line, Line]:
    """What of straight pieces lies within bounds (Liang & Barsky 1984, doi:10.1145/357332.357333)."""
    low, high = np.array(bounds[:2]), np.array(bounds[2:])
    along = ends - starts
    with np.errstate(divide="ignore", invalid="ignore"):  # parallel to an edge: enters at -inf or never
        to_low, to_high = (low - starts) / along, (high - starts) / along
    inside = (starts >= low) & (starts <= high)
    enters = np.where(along == 0, np.where(inside, -np.inf, np.inf), np.minimum(to_low, to_high)).max(axis=1)
    leaves = np.where(along == 0, np.inf, np.maximum(to_low, to_high)).min(axis=1)
    enters, leaves = np.maximum(enters, 0), np.minimum(leaves, 1)
    kept = enters < leaves
    first = starts[kept] + enters[kept, None] * along[kept]
    last = np.where(leaves[kept, None] < 1, starts[kept] + leaves[kept, None] * along[kept], ends[kept])
    return np.clip(first, low, high), np.clip(last, low, high)  # rounding may lead a hair out


def _chained(starts: Line, ends: Line) -> list[Line]:
    """Lines of pieces of which each begins where the one before it ended."""
    if not len(starts):
        return []
    breaks = np.flatnonzero((starts[1:] != ends[:-1]).any(axis=1)) + 1
    return [
        np.concatenate([first[:1], last])
        for first, last in zip(np.split(starts, breaks), np.split(ends, breaks), strict=True)
    ]
