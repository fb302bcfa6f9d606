"""The plan of a gridded window: its grids, its composites, what goes into the cube, and the pieces of the work."""

from __future__ import annotations

import datetime
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import Transformer

from sifscale.config import GriddedWindow, GridSection, Layer, PeriodSection
from sifscale.grid import Grid
from sifscale.inventory import relative_name
from sifscale.sources import SourceError, file_sha256
from sifscale.sources.mod13 import Granule
from sifscale.sources.raster import read_raster
from sifscale.sources.soundings import GranuleInfo

ANGLES = ("view_zenith", "sun_zenith", "relative_azimuth")
LONG_NAMES = {
    "sif": "sun-induced chlorophyll fluorescence, mean of the soundings of a composite",
    "sif_truth": "true sun-induced chlorophyll fluorescence",
    "ndvi": "normalised difference vegetation index",
    "evi": "enhanced vegetation index",
    "red": "surface reflectance, red (MODIS band 1)",
    "nir": "surface reflectance, near infrared (MODIS band 2)",
    "blue": "surface reflectance, blue (MODIS band 3)",
    "mir": "surface reflectance, mid infrared (MODIS band 7)",
}


@dataclass(frozen=True)
class Period:
    """The first and the last day of a composite, both included."""

    start: datetime.date
    end: datetime.date

    def contains(self, times: NDArray[np.datetime64]) -> NDArray[np.bool_]:
        """Which times (n,) lie in the composite, UTC."""
        first, after = (np.datetime64(day, "ns") for day in (self.start, self.end + datetime.timedelta(days=1)))
        inside: NDArray[np.bool_] = (times >= first) & (times < after)
        return inside


@dataclass(frozen=True)
class Part:
    """A piece of work: one composite on one tile; ``rows``, ``columns`` are those of the native tile in its grid."""

    sample: int
    period: Period
    native: Grid
    fine: Grid
    rows: slice
    columns: slice
    window: GriddedWindow
    raw: Path
    soundings: tuple[GranuleInfo, ...]
    granules: tuple[Granule, ...]


@dataclass
class Tally:
    """What became of the input of a part: counts add up over parts; faults are {file: reason}."""

    soundings: Counter[str] = field(default_factory=Counter)  # "kept" and why others were left out
    pixels: Counter[str] = field(default_factory=Counter)  # MODIS pixels read, and why some were left out
    faults: dict[str, str] = field(default_factory=dict)
    missing_tiles: set[str] = field(default_factory=set)
    files: int = 0  # read
    target_cells: int = 0  # with a value
    lost_share: float = 0.0  # of their footprints, beyond the footprint weights; the sum over target_cells

    def add(self, other: Tally) -> None:
        """Take in what another part counted."""
        self.soundings += other.soundings
        self.pixels += other.pixels
        self.faults |= other.faults
        self.missing_tiles |= other.missing_tiles
        self.files += other.files
        self.target_cells += other.target_cells
        self.lost_share += other.lost_share


def periods(section: PeriodSection) -> list[Period]:
    """The composites that touch the days from ``start`` to ``end``, in order and without gaps.

    They begin on ``first_day`` of each year and every ``days`` days after it; the last one of a year is cut short by
    the next (for MOD13, 16 days from day 1: the 23rd has 13 or 14 days).
    """
    anew = [
        datetime.date(year, 1, 1) + datetime.timedelta(days=section.first_day - 1)
        for year in range(section.start.year - 1, section.end.year + 3)
    ]
    starts = [
        first + datetime.timedelta(days=day)
        for first, following in itertools.pairwise(anew)
        for day in range(0, (following - first).days, section.days)
    ]
    day_before = [start - datetime.timedelta(days=1) for start in starts[1:]]
    found = [Period(start, end) for start, end in zip(starts[:-1], day_before, strict=True)]
    return [period for period in found if period.end >= section.start and period.start <= section.end]


def grids(section: GridSection) -> tuple[Grid, Grid]:
    """The native and the fine grid of a window; ValueError where bounds and cells do not fit or a CRS is unknown."""
    crs = section.crs if section.crs != "auto" else _equal_area(section)
    west, south, east, north = section.bounds
    px = section.pixel
    if crs == section.bounds_crs:
        height, width = (north - south) / px, (east - west) / px
        if abs(height - round(height)) > 1e-6 or abs(width - round(width)) > 1e-6:
            raise ValueError(
                f"window.grid.bounds: must hold whole cells of {px} (found {width:.6g} x {height:.6g} cells); "
                "widen them or give them in another CRS, which rounds outwards"
            )
    else:
        transformer = Transformer.from_crs(section.bounds_crs, crs, always_xy=True)
        west, south, east, north = transformer.transform_bounds(west, south, east, north, densify_pts=101)
        if not all(map(math.isfinite, (west, south, east, north))):
            raise ValueError(f"window.grid.bounds: cannot be projected to {crs} (found {list(section.bounds)})")
        # Whole multiples of the cell, so that windows of one CRS and cell size lie on one lattice.
        west, north = math.floor(west / px) * px, math.ceil(north / px) * px
        height, width = math.ceil((north - south) / px), math.ceil((east - west) / px)
    native = Grid(crs, west, north, px, px, round(height), round(width))
    return native, native.refine(section.fine_factor)


def _equal_area(section: GridSection) -> str:
    west, south, east, north = Transformer.from_crs(section.bounds_crs, "EPSG:4326", always_xy=True).transform_bounds(
        *section.bounds
    )
    east += 360 if east < west else 0  # across the dateline
    return f"+proj=laea +lat_0={(south + north) / 2:.0f} +lon_0={(west + east) / 2:.0f} +datum=WGS84 +units=m +no_defs"


def parts(
    window: GriddedWindow, raw: Path, soundings: Sequence[GranuleInfo], granules: Sequence[Granule]
) -> list[Part]:
    """Everything there is to do for a window, each piece with just the files it needs."""
    native, _ = grids(window.grid)
    step = window.tile_px // window.grid.fine_factor
    result = []
    for sample, period in enumerate(periods(window.period)):
        first, after = np.datetime64(period.start), np.datetime64(period.end + datetime.timedelta(days=1))
        swaths = tuple(info for info in soundings if info.start < after and info.end >= first)
        images = tuple(image for image in granules if image.start == period.start)
        for row in range(0, native.height, step):
            for column in range(0, native.width, step):
                rows = slice(row, min(row + step, native.height))
                columns = slice(column, min(column + step, native.width))
                tile = native.window(rows, columns)
                fine = tile.refine(window.grid.fine_factor)
                result.append(Part(sample, period, tile, fine, rows, columns, window, raw, swaths, images))
    return result


BandSpec = tuple[str, dict[str, object]]  # dtype and attributes


def native_bands(window: GriddedWindow, raw: Path) -> dict[str, BandSpec]:
    """{band: (dtype, attributes)} of the native group."""
    target = window.target
    units = window.units.get(target, "1")
    bands = {band: spec for band, spec in fine_bands(window, raw).items() if in_native(band, window)}
    bands |= {layer.band: _layer_spec(layer, window, raw) for layer in window.native_layers}
    if window.soundings:
        bands |= {
            target: _spec(target, window),
            f"{target}_error": ("float32", {"units": units, "long_name": f"1-sigma error of {target}"}),
            "n_soundings": (
                "int32",
                {"units": "1", "long_name": "number of soundings whose footprint touches the cell"},
            ),
            "sounding_weight": (
                "float32",
                {"units": "1", "long_name": "sum of the footprint shares in the cell"},
            ),
        }
    return bands


def in_native(band: str, window: GriddedWindow) -> bool:
    """Whether the native group has a fine band: all that models read, and everything where there is no fine group."""
    return band in window.bands or window.grid.fine_factor == 1


def fine_bands(window: GriddedWindow, raw: Path) -> dict[str, BandSpec]:
    """{band: (dtype, attributes)} of the fine group."""
    bands = {str(band): _spec(band, window) for band in (window.vegetation.bands if window.vegetation else ())}
    return bands | {layer.band: _layer_spec(layer, window, raw) for layer in window.fine_layers}


def _spec(band: str, window: GriddedWindow) -> BandSpec:
    units = window.units.get(band, "degree" if band in ANGLES else "1")
    return "float32", {"units": units, "long_name": LONG_NAMES.get(band, band.replace("_", " "))}


def _layer_spec(layer: Layer, window: GriddedWindow, raw: Path) -> BandSpec:
    """As the first usable file of the layer has it (classes keep their names); ``window.units`` wins."""
    dtype, attrs = _spec(layer.band, window)
    for period in periods(window.period):
        try:
            attrs |= read_layer(layer, layer_path(layer, period, raw))[0].attrs
        except SourceError:
            continue  # said where its composite is computed
        break
    return dtype, attrs | ({"units": window.units[layer.band]} if layer.band in window.units else {})


def layer_path(layer: Layer, period: Period, raw: Path) -> Path:
    """The file of a layer for one composite."""
    return raw / layer.path.format(start=period.start, end=period.end)


def read_layer(layer: Layer, path: Path) -> tuple[xr.DataArray, Grid]:
    """One file of a layer, whole, with its grid; SourceError where it cannot be used."""
    return read_raster(path, variable=layer.variable, nodata=layer.nodata, crs=layer.crs, scale=layer.scale)


def layer_hashes(window: GriddedWindow, raw: Path) -> dict[str, str]:
    """{file: SHA-256} of the rasters that are there; an absent one is named when its composite is computed."""
    layers = (*window.native_layers, *window.fine_layers)
    paths = {layer_path(layer, period, raw) for layer in layers for period in periods(window.period)}
    return {relative_name(path, raw): file_sha256(path) for path in sorted(paths) if path.is_file()}
