"""The observing system simulation experiment (OSSE): files in the true formats, from a truth that is known.

Nothing is downloaded, everything follows from the arguments: `fields` holds the physics of the landscape, `world` the
truth, `swath` and `soundings` what TROPOMI, `modis` what MODIS would make of it. The cube is built from the files by
the readers of real ones.
"""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyproj import CRS

from sifscale.grid import Grid
from sifscale.simulation import mod13_file, troposif_file
from sifscale.simulation.modis import Tile, composite_layers, cut_tile
from sifscale.simulation.soundings import observe_day
from sifscale.simulation.truth_file import truth_name, write_truth
from sifscale.simulation.world import Period, build_world, scenes
from sifscale.sources.sinusoidal import tiles_covering
from sifscale.whole import remove_leftovers, temporary

log = logging.getLogger(__name__)

STAMP = "simulation.json"


def simulate_raw(
    folder: Path,
    *,
    grid: Grid,
    factor: int,
    periods: Sequence[Period],
    seed: int,
    sounding_noise: float,
    cloudiness: float,
    fill_share: float,
    margin_km: float = 30,
    days_per_period: int | None = None,
    stamp: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write simulated granules and their truth into a new folder, which appears when all is written.

    `troposif/TROPOSIF_L2B_YYYY-MM-DD.nc`: the soundings of a day, if there are any; `mod13a2/MOD13A2.A*.hdf`: a
    composite of each tile that the grid needs; `truth/truth_YYYY-MM-DD.nc`: SIF, reflectances and indices without
    noise, and land cover, on `grid.refine(factor)`, by the composite's first day.

    grid: native, of square cells in a CRS in metres; the world reaches `margin_km` beyond it. periods: (first, last)
    days of the composites, both inclusive, in order and apart; SIF is constant within one. sounding_noise: typical
    sd of one sounding, mW m-2 sr-1 nm-1. cloudiness: mean cloud fraction, in [0, 1); at 0.4 two fifths of the
    soundings have less than 0.2. fill_share: of SIF values that are fill. days_per_period: soundings of the first
    days of each period only (None: every day). stamp: written to `simulation.json`, to tell later what the files
    are of. progress: is told of every composite.

    Equal arguments give equal arrays. What processes that were killed left of the same folder is removed.
    ValueError for arguments out of range, and for a folder that exists.
    """
    _check_grid(grid, factor, margin_km)
    _check_periods(periods, days_per_period)
    _check_noise(seed, sounding_noise, cloudiness, fill_share)
    with _new_folder(folder) as partial:
        world = build_world(grid, factor, margin_km, seed)
        tiles = [cut_tile(world, h, v) for h, v in tiles_covering(grid)]
        for number, (period, scene) in enumerate(zip(periods, scenes(world, periods, seed), strict=True), 1):
            write_truth(partial / "truth" / truth_name(period), world, scene, period)
            for tile in tiles:
                layers = composite_layers(tile, world, scene, period, seed=seed, cloudiness=cloudiness)
                path = partial / "mod13a2" / mod13_file.granule_name(tile, period)
                mod13_file.write_mod13(path, tile, period, layers)
            soundings = 0
            for day in _days(period, days_per_period):
                columns = observe_day(
                    day, world, scene,
                    seed=seed, sounding_noise=sounding_noise, cloudiness=cloudiness, fill_share=fill_share,
                )  # fmt: skip
                if columns is not None:
                    troposif_file.write_troposif(partial / "troposif" / troposif_file.granule_name(day), day, columns)
                    soundings += len(columns["delta_time"])
            if progress is not None:
                span = f"{period[0]} to {period[1]}"
                progress(f"composite {number} of {len(periods)}, {span}: {soundings:,} soundings, {_names(tiles)}")
        (partial / STAMP).write_text(json.dumps(dict(stamp or {})))


def _days(period: Period, number: int | None) -> list[datetime.date]:
    count = (period[1] - period[0]).days + 1
    return [period[0] + datetime.timedelta(days=n) for n in range(count if number is None else min(count, number))]


def _names(tiles: Sequence[Tile]) -> str:
    return ", ".join(f"h{tile.h:02d}v{tile.v:02d}" for tile in tiles)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling that takes the folder's name if the block ends without a fault, and goes otherwise."""
    if folder.exists():
        raise ValueError(f"{folder} exists; remove it or choose another folder for the simulated files")
    remove_leftovers(folder)
    partial = temporary(folder)
    try:
        for product in ("troposif", "mod13a2", "truth"):
            (partial / product).mkdir(parents=True)
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_grid(grid: Grid, factor: int, margin_km: float) -> None:
    crs = CRS.from_user_input(grid.crs)
    if not crs.is_projected or crs.axis_info[0].unit_name != "metre":
        raise ValueError(f"grid.crs must be projected in metres, found {grid.crs!r}; use one such as EPSG:5070")
    if not math.isclose(grid.dx, grid.dy):
        raise ValueError(f"cells must be square, found dx={grid.dx}, dy={grid.dy}; give dx equal to dy")
    if factor < 1:
        raise ValueError(f"factor must be at least 1, found {factor}; give a positive whole number")
    # A footprint at the border must find truth on its far side as well.
    if not (math.isfinite(margin_km) and margin_km >= 0):
        raise ValueError(f"margin_km must be 0 or more, found {margin_km}; give about two footprints' length")


def _check_periods(periods: Sequence[Period], days_per_period: int | None) -> None:
    if not periods:
        raise ValueError("periods must not be empty, found 0; give at least one (first day, last day)")
    for first, last in periods:
        if last < first:
            raise ValueError(f"a period must not end before it starts, found {first} to {last}; swap them")
    for (_, last), (first, _) in itertools.pairwise(periods):
        if first <= last:
            raise ValueError(f"periods must be in order and apart, found {first} after {last}; sort them")
    if days_per_period is not None and days_per_period < 1:
        raise ValueError(f"days_per_period must be at least 1, found {days_per_period}; give None for every day")


def _check_noise(seed: int, sounding_noise: float, cloudiness: float, fill_share: float) -> None:
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}; give 0 or more")
    if not (math.isfinite(sounding_noise) and sounding_noise >= 0):
        raise ValueError(f"sounding_noise must be 0 or more, found {sounding_noise}; give a finite sd")
    for name, share in (("cloudiness", cloudiness), ("fill_share", fill_share)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be in [0, 1), found {share}; give a share, not per cent")
