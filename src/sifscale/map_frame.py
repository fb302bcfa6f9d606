"""Where a map lies: its edges, proportions and pixel size, and what helps to read it (borders, degrees, scale bar)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from sifscale.borders import Borders, Bounds, border_lines
from sifscale.export import crs_of

_EDGE_POINTS = 201  # where meridians are sought along an edge
_MOST_TICKS = 5
_BAR_SHARE = 0.3  # of the map's width, at most
_FLATTEST = 0.05  # of a degree of longitude beside one of latitude: maps end at a pole

Ticks = list[tuple[float, str]]


@dataclass(frozen=True, eq=False)
class Frame:
    """bounds: west, south, east, north in units of the CRS, or in cells where a field has none.

    aspect: height of one unit of y in a picture beside the width of one of x. pixel_km: side of a pixel in the middle.
    scale_bar: length in units of x, true in the middle of the map, and its label. ticks: places and labels on the lower
    and on the left edge.
    """

    bounds: Bounds
    aspect: float
    pixel_km: float | None
    borders: Borders
    scale_bar: tuple[float, str] | None
    x_ticks: Ticks
    y_ticks: Ticks

    @property
    def height_to_width(self) -> float:
        """Of the map in a picture."""
        west, south, east, north = self.bounds
        return (north - south) * self.aspect / (east - west)


def frame_of(dataset: xr.Dataset) -> Frame:
    """The frame of bands with dims y and x, and a grid mapping with GDAL's GeoTransform where they have a place."""
    height, width = dataset.sizes["y"], dataset.sizes["x"]
    crs = crs_of(dataset)
    if crs is None:
        return Frame((0.0, 0.0, float(width), float(height)), 1.0, None, Borders([], []), None, [], [])
    west, dx, _, north, _, dy = map(float, dataset["spatial_ref"].attrs["GeoTransform"].split())
    bounds = west, north + dy * height, west + dx * width, north
    x_km, y_km = _unit_km(bounds, crs)
    aspect = y_km / x_km if crs.is_geographic and x_km > 0 else 1.0
    pixel_km = math.sqrt(dx * x_km * -dy * y_km)
    return Frame(
        bounds,
        min(aspect, 1 / _FLATTEST),
        pixel_km if math.isfinite(pixel_km) else None,
        border_lines(bounds, crs),
        _scale_bar(bounds, x_km),
        *_degree_ticks(bounds, crs),
    )


def _unit_km(bounds: Bounds, crs: CRS) -> tuple[float, float]:
    """Geodesic length of a unit of x and of y in the middle of a map, taken over a hundredth of it."""
    west, south, east, north = bounds
    x, y, half = (west + east) / 2, (south + north) / 2, np.array([-0.005, 0.005])
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    geod = crs.get_geod()
    assert geod is not None  # of every geographic and projected CRS
    across = to_degrees.transform(x + half * (east - west), np.full(2, y))
    along = to_degrees.transform(np.full(2, x), y + half * (north - south))
    lengths_km = [geod.line_length(*line) / 1000 for line in (across, along)]
    return lengths_km[0] / (0.01 * (east - west)), lengths_km[1] / (0.01 * (north - south))


def _scale_bar(bounds: Bounds, x_km: float) -> tuple[float, str] | None:
    widest_km = _BAR_SHARE * (bounds[2] - bounds[0]) * x_km
    if not (math.isfinite(widest_km) and widest_km > 0):
        return None
    length_km = _round_below(widest_km)
    return length_km / x_km, f"{length_km:g} km" if length_km >= 1 else f"{length_km * 1000:g} m"


def _round_below(value: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is no more than ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(step for step in (power, 2 * power, 5 * power) if step <= value * (1 + 1e-9))


def _degree_ticks(bounds: Bounds, crs: CRS) -> tuple[Ticks, Ticks]:
    """Where whole degrees of longitude meet the lower edge, and those of latitude the left one."""
    west, south, east, north = bounds
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    x, y = np.linspace(west, east, _EDGE_POINTS), np.linspace(south, north, _EDGE_POINTS)
    longitude, _ = to_degrees.transform(x, np.full_like(x, south), errcheck=False)
    _, latitude = to_degrees.transform(np.full_like(y, west), y, errcheck=False)
    return _ticks(x, np.unwrap(longitude, period=360), "EW"), _ticks(y, latitude, "NS")


def _ticks(places: NDArray[np.float64], degrees: NDArray[np.float64], sides: str) -> Ticks:
    """Places of round degrees, rising along the edge or falling; none where they do neither."""
    if not np.isfinite(degrees).all() or not ((np.diff(degrees) > 0).all() or (np.diff(degrees) < 0).all()):
        return []
    if degrees[0] > degrees[-1]:
        places, degrees = places[::-1], degrees[::-1]
    span = degrees[-1] - degrees[0]
    step = next((s for s in _steps() if span / s <= _MOST_TICKS), 90.0)
    rounds = np.arange(math.ceil(degrees[0] / step - 1e-9), math.floor(degrees[-1] / step + 1e-9) + 1) * step
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    labels = [_label(value, sides, decimals) for value in rounds]
    return list(zip(np.interp(rounds, degrees, places).tolist(), labels, strict=True))


def _steps() -> list[float]:
    small = [digit * 10.0**power for power in range(-6, 1) for digit in (1, 2, 5)]
    return [*small, 10.0, 15.0, 30.0, 60.0, 90.0]


def _label(degrees: float, sides: str, decimals: int) -> str:
    """As "93.5°W"; degrees of longitude may count on beyond 180."""
    turned = (degrees + 180) % 360 - 180 if sides == "EW" else degrees
    if round(abs(turned), decimals) in (0, 180):
        return f"{abs(turned):.0f}°"
    return f"{abs(turned):.{decimals}f}°{sides[0] if turned > 0 else sides[1]}"
