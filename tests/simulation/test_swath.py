"""The swath looks like Sentinel-5P's: pixels that grow and tile, a track that drifts and returns."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import Geod
from shapely import area, polygons, union_all

from sifscale.simulation.swath import Swath, across_track_km, overpasses, view_zenith_deg

DAY = datetime.date(2019, 7, 1)
PLACE = (-94.0, 46.0)
SPHERE = Geod(a=6_371_000, b=6_371_000)


def daylight(day: datetime.date, longitude: float = PLACE[0], latitude: float = PLACE[1]) -> list[Swath]:
    """Overpasses within 300 km on the way up, which is the day side."""
    seen = overpasses(day, longitude, latitude, 300.0)
    return [part for part in seen if part.latitude[-1].mean() > part.latitude[0].mean()]


def sides_km(part: Swath) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Widths across the track (n + 1, m) and lengths along it (n, m + 1), by pyproj's geodesics."""
    lon, lat = part.corner_longitude, part.corner_latitude
    across = SPHERE.inv(lon[:, :-1], lat[:, :-1], lon[:, 1:], lat[:, 1:])[2]
    along = SPHERE.inv(lon[:-1], lat[:-1], lon[1:], lat[1:])[2]
    return across / 1000, along / 1000


def distance_km(part: Swath) -> NDArray[np.float64]:
    """Distance (n, m) of the pixel centres from PLACE, by pyproj's geodesics."""
    longitude, latitude = np.full(part.longitude.shape, PLACE[0]), np.full(part.longitude.shape, PLACE[1])
    return np.asarray(SPHERE.inv(part.longitude, part.latitude, longitude, latitude)[2] / 1000)


def test_the_line_has_450_pixels_of_3_5_to_14_km_in_2600_km() -> None:
    edges = across_track_km(np.arange(451) - 225.0)
    width = np.diff(edges)
    assert abs(edges[-1] - edges[0] - 2600) < 1e-6 and abs(width.min() - 3.5) < 0.01
    assert abs(width[0] - 14) < 0.2 and np.all(np.diff(width[225:]) > 0)
    np.testing.assert_allclose(edges, -edges[::-1], atol=1e-9)


def test_view_zenith_angle_agrees_with_the_triangle_of_earth_and_satellite() -> None:
    across = np.array([0.0, 500.0, -1100.0, 1300.0])
    satellite = np.array([0.0, 6371 + 824.0])
    pixels = 6371 * np.stack([np.sin(across / 6371), np.cos(across / 6371)], axis=1)
    towards = satellite - pixels
    cosine = (towards * pixels).sum(1) / np.linalg.norm(towards, axis=1) / 6371
    np.testing.assert_allclose(view_zenith_deg(across), np.rad2deg(np.arccos(np.minimum(cosine, 1))), atol=1e-5)


def test_ground_pixels_are_as_large_as_stated() -> None:
    for part in daylight(DAY):
        across, along = sides_km(part)
        assert across.min() > 3.49 and across.max() < 14.1
        # The Earth turns below the satellite, and lines converge away from the track.
        assert 5.2 < along.min() and along.max() < 5.8


def test_pixels_tile_the_swath_without_holes_or_overlap() -> None:
    (part, *_) = daylight(DAY)
    lon, lat = part.corner_longitude[:21, :31], part.corner_latitude[:21, :31]
    lattice = np.stack([lon, lat], axis=-1)
    quads = np.stack([lattice[:-1, :-1], lattice[:-1, 1:], lattice[1:, 1:], lattice[1:, :-1]], axis=2).reshape(-1, 4, 2)
    shapes = polygons(quads)
    whole = union_all(shapes)
    assert whole.geom_type == "Polygon" and len(whole.interiors) == 0
    np.testing.assert_allclose(area(shapes).sum(), whole.area, rtol=1e-9)


def test_a_place_at_mid_latitude_is_seen_in_the_early_afternoon_once_or_twice_a_day() -> None:
    counts = []
    for number in range(16):
        count = 0
        for part in daylight(DAY + datetime.timedelta(days=number)):
            distance = distance_km(part)
            row, column = np.unravel_index(np.argmin(distance), distance.shape)
            seen = distance[row, column] < 8 and part.view_zenith_deg[column] <= 60
            count += bool(seen)
            if seen:
                solar_hour = (part.seconds[row] / 3600 + PLACE[0] / 15) % 24
                assert 11.5 < solar_hour < 15.5
        counts.append(count)
    assert set(counts) <= {1, 2} and 1 < np.mean(counts) < 1.6


def test_the_track_drifts_from_day_to_day_and_returns_after_16_days() -> None:
    views = {tuple(part.seconds[0] for part in daylight(DAY + datetime.timedelta(days=n))) for n in range(16)}
    assert len(views) == 16
    first, again = daylight(DAY), daylight(DAY + datetime.timedelta(days=16))
    assert len(first) == len(again) > 0
    for one, two in zip(first, again, strict=True):
        assert two.orbit - one.orbit == 227
        np.testing.assert_allclose(one.corner_longitude, two.corner_longitude, atol=1e-6)
        np.testing.assert_allclose(one.seconds, two.seconds, atol=1e-3)


def test_an_orbit_counts_on_over_midnight() -> None:
    """At 157 W the early afternoon is midnight UTC."""
    days = [DAY + datetime.timedelta(days=n) for n in range(8)]
    late = [part.seconds.max() for day in days for part in daylight(day, -157.0, 55.0)]
    assert max(late) > 86_400


def test_orbits_of_successive_days_neither_repeat_nor_miss() -> None:
    orbits = [
        part.orbit for n in range(3) for part in overpasses(DAY + datetime.timedelta(days=n), 0.0, 89.0, 1500.0)
    ]
    assert sorted(set(orbits)) == list(range(min(orbits), max(orbits) + 1)) and len(set(orbits)) in (42, 43)


def test_what_lies_within_the_radius_is_there() -> None:
    """Against a much larger part of the same orbit, by distance."""
    for part in daylight(DAY):
        (whole,) = (other for other in overpasses(DAY, *PLACE, 1500.0) if other.orbit == part.orbit)
        assert np.sum(distance_km(whole) < 290) == np.sum(distance_km(part) < 290) > 0


@pytest.mark.parametrize("latitude", [89.5, -89.5])
def test_near_the_poles_the_swath_is_finite_and_as_wide_as_elsewhere(latitude: float) -> None:
    for part in overpasses(DAY, 10.0, latitude, 400.0):
        assert np.isfinite(part.longitude).all() and part.view_zenith_deg.max() <= view_zenith_deg(np.array([1300.0]))


def test_the_view_azimuth_points_to_the_track() -> None:
    (part, *_) = daylight(DAY)
    # At nadir there is no direction; on either side it points to the other one.
    east = part.longitude[0] > part.longitude[0][np.argmin(part.view_zenith_deg)]
    oblique = part.view_zenith_deg > 10
    assert np.all(part.view_azimuth_deg[0][east & oblique] < 0)
    assert np.all(part.view_azimuth_deg[0][~east & oblique] > 0)
