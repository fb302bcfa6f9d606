"""Where the instrument looks: ground pixels of a Sentinel-5P-like orbit near a place.

A circular, sun-synchronous orbit over a sphere, whose track repeats after 227 orbits in 16 days; lines of 450 ground
pixels, across the track, that share their corners with their neighbours. Figures: Veefkind et al. 2012,
doi:10.1016/j.rse.2011.09.027; Koehler et al. 2018, doi:10.1029/2018GL079031.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from sifscale.grid import FloatArray
from sifscale.simulation.sun import OVERPASS_SOLAR_HOUR

EARTH_RADIUS_KM: Final = 6371.0
ALTITUDE_KM: Final = 824.0
INCLINATION_DEG: Final = 98.7
REPEAT_ORBITS: Final = 227
REPEAT_DAYS: Final = 16
ORBIT_S: Final = REPEAT_DAYS * 86_400 / REPEAT_ORBITS  # 101.5 minutes
ORBIT_EPOCH: Final = datetime.date(2018, 1, 1)  # an orbit starts at 00:00 UTC of this day

GROUND_PIXELS: Final = 450
SWATH_KM: Final = 2600.0
NADIR_PIXEL_KM: Final = 3.5
EDGE_PIXEL_KM: Final = 14.0
ALONG_TRACK_KM: Final = 5.5
LINE_S: Final = ALONG_TRACK_KM * ORBIT_S / (2 * math.pi * EARTH_RADIUS_KM)  # 0.84 s
LINES: Final = int(ORBIT_S / LINE_S)


@dataclass(frozen=True)
class Swath:
    """A part of one orbit: n lines of m ground pixels; longitudes are in [-180, 180]."""

    orbit: int  # since ORBIT_EPOCH
    seconds: FloatArray  # (n,) since 00:00 UTC of the day in which the orbit starts; may exceed 86 400
    longitude: FloatArray  # (n, m) centres, degrees
    latitude: FloatArray
    corner_longitude: FloatArray  # (n + 1, m + 1): pixel (i, j) lies between corners i, i + 1 and j, j + 1
    corner_latitude: FloatArray
    view_zenith_deg: FloatArray  # (m,)
    view_azimuth_deg: FloatArray  # (n, m) direction from the pixel to the satellite's track, clockwise from north


def across_track_km(index_px: FloatArray) -> FloatArray:
    """Distance on the ground from the track of positions counted in pixels from the middle of the line.

    The pixel is as wide as 3.5 km + 10.5 km * |index / 225|^p; p makes the 450 pixels add up to 2600 km.
    """
    half_px, growth = GROUND_PIXELS / 2, EDGE_PIXEL_KM - NADIR_PIXEL_KM
    power = growth * half_px / (SWATH_KM / 2 - NADIR_PIXEL_KM * half_px)  # p + 1
    widening = growth * half_px / power * np.abs(index_px / half_px) ** power
    return np.asarray(NADIR_PIXEL_KM * index_px + np.sign(index_px) * widening, dtype=np.float64)


def view_zenith_deg(across_km: FloatArray) -> FloatArray:
    """View zenith angle at a distance from the track: law of sines in centre of the Earth, satellite, pixel."""
    angle = np.abs(across_km) / EARTH_RADIUS_KM
    off_nadir = np.arctan2(np.sin(angle), 1 + ALTITUDE_KM / EARTH_RADIUS_KM - np.cos(angle))
    return np.asarray(np.rad2deg(off_nadir + angle), dtype=np.float64)


def overpasses(day: datetime.date, longitude: float, latitude: float, radius_km: float) -> Iterator[Swath]:
    """What the orbits that start on a UTC day see within `radius_km` of a place, by day and by night, in order."""
    days = (day - ORBIT_EPOCH).days
    first, stop = (math.ceil(d * REPEAT_ORBITS / REPEAT_DAYS) for d in (days, days + 1))
    place = _unit_vector(np.array(longitude), np.array(latitude))
    for orbit in range(first, stop):
        start_s = orbit * ORBIT_S - days * 86_400
        lines = start_s + np.arange(LINES + 1) * LINE_S
        below, left = _track(lines, start_s)
        # Cosines of the angle between the place and the track, and the place and the plane's normal.
        along, aside = below @ place, left @ place
        reach = radius_km / EARTH_RADIUS_KM
        near = np.flatnonzero(along >= math.cos(min(math.pi, reach + SWATH_KM / 2 / EARTH_RADIUS_KM)))
        # Near the poles an orbit passes a place on its way up and on its way down.
        for run in np.split(near, np.flatnonzero(np.diff(near) > 1) + 1):
            if len(run) > 1 and (part := _within(along[run], aside[run], math.cos(min(math.pi, reach)))):
                rows, pixels = part
                yield _swath(orbit, start_s, lines[run][rows], pixels)


def _within(along: FloatArray, aside: FloatArray, cos_reach: float) -> tuple[slice, slice] | None:
    """Rows (corner lines) and pixel edges of the smallest part of the swath that holds all near the place."""
    angle = across_track_km(np.arange(GROUND_PIXELS + 1) - GROUND_PIXELS / 2) / EARTH_RADIUS_KM
    near = along[:, None] * np.cos(angle) + aside[:, None] * np.sin(angle) >= cos_reach
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    if len(rows) < 2 or len(columns) < 2:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _swath(orbit: int, start_s: float, edge_s: FloatArray, edges: slice) -> Swath:
    index_px = np.arange(GROUND_PIXELS + 1)[edges] - GROUND_PIXELS / 2
    middle_s, middle_px = (edge_s[1:] + edge_s[:-1]) / 2, index_px[:-1] + 0.5
    across_km = across_track_km(middle_px)
    below, left = _track(middle_s, start_s)
    points = _across(below, left, across_km)
    longitude, latitude = _degrees(points)
    corner_longitude, corner_latitude = _degrees(_across(*_track(edge_s, start_s), across_track_km(index_px)))
    # The satellite lies over the track: look along the line, towards it.
    towards = below[:, None] - (points * below[:, None]).sum(axis=-1, keepdims=True) * points
    east = np.stack([-points[..., 1], points[..., 0], np.zeros(points.shape[:2])], axis=-1)
    azimuth = np.rad2deg(np.arctan2((towards * east).sum(axis=-1), towards[..., 2]))
    return Swath(
        orbit, middle_s, longitude, latitude, corner_longitude, corner_latitude, view_zenith_deg(across_km), azimuth
    )


def _track(seconds: FloatArray, start_s: float) -> tuple[FloatArray, FloatArray]:
    """Unit vectors (n, 3), fixed to the Earth: the point below the satellite, and the normal left of its way.

    The orbit starts at its southernmost point. Its plane turns with the mean sun, so that the longitude of the
    ascending node is where the local solar time is that of the overpass.
    """
    phase = 2 * np.pi * (seconds - start_s) / ORBIT_S - np.pi / 2
    node = np.deg2rad(15 * (OVERPASS_SOLAR_HOUR - seconds / 3600))
    tilt = math.radians(INCLINATION_DEG)
    up, out = np.sin(phase), np.cos(phase)
    below = [
        np.cos(node) * out - np.sin(node) * up * math.cos(tilt),
        np.sin(node) * out + np.cos(node) * up * math.cos(tilt),
        up * math.sin(tilt),
    ]
    normal = [np.sin(node) * math.sin(tilt), -np.cos(node) * math.sin(tilt), np.full(len(seconds), math.cos(tilt))]
    return np.stack(below, axis=-1), np.stack(normal, axis=-1)


def _across(below: FloatArray, left: FloatArray, across_km: FloatArray) -> FloatArray:
    """Unit vectors (n, m, 3) of points across the track, to its left if the distance is above 0."""
    angle = (across_km / EARTH_RADIUS_KM)[:, None]
    points: FloatArray = below[:, None] * np.cos(angle) + left[:, None] * np.sin(angle)
    return points


def _unit_vector(longitude: FloatArray, latitude: FloatArray) -> FloatArray:
    x, y = np.deg2rad(longitude), np.deg2rad(latitude)
    return np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], axis=-1)


def _degrees(points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Longitude and latitude of unit vectors (..., 3)."""
    longitude = np.rad2deg(np.arctan2(points[..., 1], points[..., 0]))
    return longitude, np.rad2deg(np.arctan2(points[..., 2], np.hypot(points[..., 0], points[..., 1])))
