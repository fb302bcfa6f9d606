"""The known truth: one landscape on the fine grid and a margin around it, one scene a composite."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from pyproj import Transformer

from sifscale.grid import Grid
from sifscale.simulation import fields
from sifscale.simulation.fields import Field, Landscape

Period = tuple[datetime.date, datetime.date]  # first and last day, both inclusive

# One random stream a subject, and below it one a day or composite, so that more periods, other noise or other
# days leave the rest as it is. Positions are part of every simulation: append, never reorder.
_SUBJECTS: Final = ("landscape", "stress", "snow", "sky", "soundings", "haze", "modis")


def stream(seed: int, subject: str, *keys: int) -> np.random.Generator:
    """The random stream of a subject; `keys` (not negative) tell days, composites and tiles apart."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SUBJECTS.index(subject), *keys)))


@dataclass(frozen=True)
class World:
    """The landscape on the fine grid extended by a margin on all sides."""

    grid: Grid  # with the margin; metres
    margin_px: int
    land: Landscape

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the world without its margin."""
        rows, columns = (slice(self.margin_px, n - self.margin_px) for n in (self.grid.height, self.grid.width))
        return rows, columns

    @cached_property
    def latitude(self) -> Field:
        """Latitude of the pixel centres, (y, x) in degrees."""
        to_degrees = Transformer.from_crs(self.grid.crs, "EPSG:4326", always_xy=True)
        x, y = np.meshgrid(self.grid.x, self.grid.y)
        return np.asarray(to_degrees.transform(x, y)[1], dtype=np.float64)


@dataclass(frozen=True)
class Scene:
    """What is true throughout one composite; arrays are (y, x) on the world's grid."""

    sif: Field  # SIF at 743 nm, mW m-2 sr-1 nm-1
    reflectance: dict[str, Field]  # red, nir, blue, mir of the ground without snow, 0..1


def build_world(grid: Grid, factor: int, margin_km: float, seed: int) -> World:
    """Draw the landscape on `grid.refine(factor)` and at least `margin_km` around it; the grid is in metres."""
    fine = grid.refine(factor)
    margin_px = math.ceil(margin_km * 1000 / fine.dx)
    extended = Grid(
        fine.crs, fine.west - margin_px * fine.dx, fine.north + margin_px * fine.dy, fine.dx, fine.dy,
        fine.height + 2 * margin_px, fine.width + 2 * margin_px,
    )  # fmt: skip
    shape = (extended.height, extended.width)
    return World(extended, margin_px, fields.landscape(stream(seed, "landscape"), shape, extended.dx / 1000))


def scenes(world: World, periods: Sequence[Period], seed: int) -> Iterator[Scene]:
    """One scene a period, in order; the season is taken at the middle of the period."""
    stress = fields.stress_fields(stream(seed, "stress"), world.land.cover.shape, world.grid.dx / 1000)
    for period, dryness in zip(periods, stress, strict=False):  # the stress has no end
        day = middle_day_of_year(period)
        reflectance = fields.reflectances(world.land, fields.leaf_area_index(world.land, day, dryness))
        sif = fields.sif_truth(world.land, reflectance, fields.par_w_m2(day, world.latitude), dryness)
        yield Scene(sif, reflectance)


def middle_day_of_year(period: Period) -> float:
    """Day of the year half-way through a period, counted on beyond 365 where it crosses the year's end."""
    return period[0].timetuple().tm_yday + (period[1] - period[0]).days / 2
