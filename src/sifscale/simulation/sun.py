"""Where the sun stands, by day of the year, latitude and local solar time; the equation of time is left out."""

from __future__ import annotations

from typing import Final

import numpy as np

from sifscale.grid import FloatArray

OVERPASS_SOLAR_HOUR: Final = 13.5  # local solar time at which Sentinel-5P ascends across the equator


def declination_rad(day_of_year: float) -> float:
    """Solar declination: Cooper 1969, doi:10.1016/0038-092X(69)90047-4."""
    return float(np.deg2rad(23.45) * np.sin(2 * np.pi * (284 + day_of_year) / 365))


def cos_solar_zenith(day_of_year: float, latitude_deg: FloatArray, solar_hour: FloatArray | float) -> FloatArray:
    """Cosine of the solar zenith angle, negative at night; arrays of one shape, or such as broadcast."""
    declination, latitude = declination_rad(day_of_year), np.deg2rad(latitude_deg)
    hour_angle = np.deg2rad(15 * (np.asarray(solar_hour) - 12))
    noon = np.cos(latitude) * np.cos(declination)
    return np.asarray(np.sin(latitude) * np.sin(declination) + noon * np.cos(hour_angle), dtype=np.float64)


def day_length_factor(day_of_year: float, latitude_deg: FloatArray, cos_zenith: FloatArray) -> FloatArray:
    """Daily mean over instantaneous SIF, if SIF follows the cosine of the solar zenith angle: arrays (n,).

    The mean over 24 h of max(cos zenith, 0), here in closed form, over `cos_zenith` at the overpass:
    Frankenberg et al. 2011, doi:10.1029/2011GL048738; Koehler et al. 2018, doi:10.1029/2018GL079031.
    """
    declination, latitude = declination_rad(day_of_year), np.deg2rad(latitude_deg)
    # Beyond the polar circles the sun does not set (pi) or does not rise (0).
    sunset = np.arccos(np.clip(-np.tan(latitude) * np.tan(declination), -1, 1))
    mean = (
        sunset * np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.sin(sunset)
    ) / np.pi
    return np.asarray(mean / cos_zenith, dtype=np.float64)
