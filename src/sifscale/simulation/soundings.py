"""What TROPOMI would measure of the truth on one day: the soundings of a TROPOSIF granule."""

from __future__ import annotations

import datetime
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from sifscale.footprints import footprint_means
from sifscale.grid import FloatArray
from sifscale.simulation.sky import Sky, draw_sky
from sifscale.simulation.sun import cos_solar_zenith, day_length_factor
from sifscale.simulation.swath import EARTH_RADIUS_KM, Swath, overpasses
from sifscale.simulation.world import Scene, World, stream

Columns = dict[str, NDArray[np.generic]]  # by the variables' names in the product; the first axis is the sounding

# What upstream leaves out (Guanter et al. 2021, doi:10.5194/essd-13-5423-2021).
MAX_CLOUD_FRACTION: Final = 0.8
MAX_SOLAR_ZENITH_DEG: Final = 70.0
MAX_VIEW_ZENITH_DEG: Final = 60.0

FILL: Final = np.float32(9.96921e36)  # netCDF's default for floats, which the product does not declare
RATIO_735: Final = 0.75  # of the two fits' SIF; 0.67 and 0.78 in the tables of 2019
ERROR_RATIO_735: Final = 0.9  # the wider window is a little less noisy
ERROR_SPREAD: Final = 0.15  # sd of the log error
ERROR_SOLAR_ZENITH_DEG: Final = 35.0  # where the error is `sounding_noise`; it grows as 1 / sqrt(cos)

WAVELENGTHS_NM: Final = (665.0, 680.0, 712.0, 741.0, 755.0, 773.0, 781.0)
_NIR_SHARE: Final = (0.0, 0.03, 0.45, 0.92, 1.0, 1.0, 1.0)  # along the red edge, between MODIS red and NIR
_CLOUD_REFLECTANCE: Final = 0.6
_IRRADIANCE_743: Final = 1270.0  # mW m-2 nm-1, solar irradiance at 743 nm, top of the atmosphere
# IGBP classes, in the order of COVERS in fields.
_IGBP: Final = np.array([17, 12, 12, 12, 10, 4, 1, 11, 13], np.uint8)


def observe_day(
    day: datetime.date,
    world: World,
    scene: Scene,
    *,
    seed: int,
    sounding_noise: float,
    cloudiness: float,
    fill_share: float,
) -> Columns | None:
    """The soundings of the orbits that start on a UTC day, in order of time, or None if there are none.

    Those whose footprint leaves the world, or that upstream would leave out, are missing. `delta_time` is in ms
    since 00:00 of the day. SIF is the area-weighted mean of the truth over the footprint, plus noise of sd
    SIF_ERROR: lognormal about `sounding_noise` (mW m-2 sr-1 nm-1), larger at low sun. The noise of the two fits
    is independent.
    """
    sky = draw_sky(stream(seed, "sky", day.toordinal()), world.grid, cloudiness)
    to_degrees = Transformer.from_crs(world.grid.crs, "EPSG:4326", always_xy=True)
    to_map = Transformer.from_crs("EPSG:4326", world.grid.crs, always_xy=True)
    parts = [_view(swath, day, world, sky, to_map) for swath in overpasses(day, *_circle(world, to_degrees))]
    parts = [part for part in parts if len(part["delta_time"])]
    if not parts:
        return None
    seen = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    x, y = seen.pop("x"), seen.pop("y")
    bands = {name: scene.reflectance[name] for name in ("red", "nir")}
    means = {name: footprint_means(world.grid, field, x, y) for name, field in {"sif": scene.sif, **bands}.items()}
    rng = stream(seed, "soundings", day.toordinal())
    columns = seen | _radiances(means["red"], means["nir"], seen)
    columns |= _fluorescence(rng, means["sif"], day, seen, sounding_noise, fill_share)
    return columns


def _circle(world: World, to_degrees: Transformer) -> tuple[float, float, float]:
    """Longitude, latitude and radius in km of a circle about the world."""
    grid = world.grid
    x, y = np.linspace(grid.x[0], grid.x[-1], 21), np.linspace(grid.y[0], grid.y[-1], 21)
    border_x = np.concatenate([x, x, np.full(21, x[0]), np.full(21, x[-1])])
    border_y = np.concatenate([np.full(21, y[0]), np.full(21, y[-1]), y, y])
    longitude, latitude = to_degrees.transform((x[0] + x[-1]) / 2, (y[0] + y[-1]) / 2)
    other_longitude, other_latitude = to_degrees.transform(border_x, border_y)
    near, far = np.deg2rad(latitude), np.deg2rad(other_latitude)
    turn = np.deg2rad(other_longitude - longitude)
    cos_angle = np.sin(near) * np.sin(far) + np.cos(near) * np.cos(far) * np.cos(turn)
    radius_km = EARTH_RADIUS_KM * math.acos(float(np.clip(cos_angle.min(), -1, 1)))
    # Room for half a pixel, and for the ellipsoid.
    return float(longitude), float(latitude), 1.005 * radius_km + 2


def _view(swath: Swath, day: datetime.date, world: World, sky: Sky, to_map: Transformer) -> Columns:
    """Geometry and clouds of the soundings of one overpass that are in the product and in the world."""
    hour = swath.seconds[:, None] / 3600 + swath.longitude / 15
    cos_zenith = cos_solar_zenith(day.timetuple().tm_yday, swath.latitude, hour)
    lit = (cos_zenith >= math.cos(math.radians(MAX_SOLAR_ZENITH_DEG))) & (
        swath.view_zenith_deg <= MAX_VIEW_ZENITH_DEG
    )
    if not lit.any():
        return {"delta_time": np.empty(0, np.int32)}
    grid = world.grid
    x, y = (_corners(a) for a in to_map.transform(swath.corner_longitude, swath.corner_latitude))
    inside_x = (x >= grid.west) & (x <= grid.west + grid.width * grid.dx)
    inside_y = (y >= grid.north - grid.height * grid.dy) & (y <= grid.north)
    kept = lit & inside_x.all(axis=-1) & inside_y.all(axis=-1)
    seconds = np.broadcast_to(swath.seconds[:, None], kept.shape)[kept]
    cloud = sky.cloud_fraction(x[kept].mean(axis=-1), y[kept].mean(axis=-1), seconds)
    clear = cloud <= MAX_CLOUD_FRACTION
    kept[kept] = clear
    row = ((grid.north - y[kept].mean(axis=-1)) / grid.dy).astype(np.int64)
    column = ((x[kept].mean(axis=-1) - grid.west) / grid.dx).astype(np.int64)
    solar_azimuth = _solar_azimuth_deg(day, swath.latitude[kept], hour[kept])
    return {
        "delta_time": np.rint(1000 * seconds[clear]).astype(np.int32),
        "longitude": swath.longitude[kept],
        "latitude": swath.latitude[kept],
        "longitude_bounds": _corners(swath.corner_longitude)[kept],
        "latitude_bounds": _corners(swath.corner_latitude)[kept],
        "solar_zenith_angle": np.rad2deg(np.arccos(np.minimum(cos_zenith[kept], 1))),
        "viewing_zenith_angle": np.broadcast_to(swath.view_zenith_deg, kept.shape)[kept],
        "relative_azimuth_angle": (swath.view_azimuth_deg[kept] - solar_azimuth + 180) % 360 - 180,
        "cloud_fraction_L2": cloud[clear],
        "LC_MASK": _IGBP[world.land.cover[row, column]],
        "x": x[kept],
        "y": y[kept],
    }


def _corners(lattice: FloatArray) -> FloatArray:
    """Corners around each pixel, in order along its edge: (n + 1, m + 1) -> (n, m, 4)."""
    return np.stack([lattice[:-1, :-1], lattice[:-1, 1:], lattice[1:, 1:], lattice[1:, :-1]], axis=-1)


def _solar_azimuth_deg(day: datetime.date, latitude_deg: FloatArray, solar_hour: FloatArray) -> FloatArray:
    """Direction of the sun, clockwise from north; where its rays come from."""
    # The height's derivatives along the meridian and in time point to the sun.
    day_of_year, step = day.timetuple().tm_yday, 0.01
    north = cos_solar_zenith(day_of_year, latitude_deg + step, solar_hour)
    north -= cos_solar_zenith(day_of_year, latitude_deg - step, solar_hour)
    east = cos_solar_zenith(day_of_year, latitude_deg, solar_hour + step / 15)
    east -= cos_solar_zenith(day_of_year, latitude_deg, solar_hour - step / 15)
    return np.asarray(np.rad2deg(np.arctan2(east / np.cos(np.deg2rad(latitude_deg)), north)), dtype=np.float64)


def _radiances(red: FloatArray, nir: FloatArray, seen: Columns) -> Columns:
    """Reflectance (n, 7) and radiance (n,) at the top of the atmosphere: ground and cloud side by side."""
    share = np.array(_NIR_SHARE)
    ground = red[:, None] * (1 - share) + nir[:, None] * share
    cloud = seen["cloud_fraction_L2"].astype(np.float64)
    reflectance = (1 - cloud[:, None]) * ground + cloud[:, None] * _CLOUD_REFLECTANCE
    light = np.cos(np.deg2rad(seen["solar_zenith_angle"].astype(np.float64))) * _IRRADIANCE_743 / np.pi
    return {"TOA_RFL": reflectance, "Mean_TOA_RAD_743": reflectance[:, 3] * light}


def _fluorescence(
    rng: np.random.Generator,
    truth: FloatArray,
    day: datetime.date,
    seen: Columns,
    sounding_noise: float,
    fill_share: float,
) -> Columns:
    """SIF, its daily mean and its error for the two fits; a share of the values is fill."""
    cos_zenith = np.cos(np.deg2rad(seen["solar_zenith_angle"].astype(np.float64)))
    low_sun = np.sqrt(math.cos(math.radians(ERROR_SOLAR_ZENITH_DEG)) / cos_zenith)
    factor = day_length_factor(day.timetuple().tm_yday, seen["latitude"].astype(np.float64), cos_zenith)
    columns: Columns = {}
    for window_nm, ratio, error_ratio in ((743, 1.0, 1.0), (735, RATIO_735, ERROR_RATIO_735)):
        spread, noise = rng.standard_normal((2, len(truth)))
        error = error_ratio * sounding_noise * low_sun * np.exp(ERROR_SPREAD * spread)
        sif = ratio * truth + error * noise
        missing = rng.uniform(size=len(truth)) < fill_share
        columns[f"SIF_{window_nm}"] = np.where(missing, FILL, sif)
        columns[f"SIF_Corr_{window_nm}"] = np.where(missing, FILL, sif * factor)
        columns[f"SIF_ERROR_{window_nm}"] = error
    return columns
