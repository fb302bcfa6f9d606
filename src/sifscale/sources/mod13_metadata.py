"""What the metadata of a MOD13/MYD13 granule state: product, days of the composite, grid and tile.

StructMetadata is that of HDF-EOS2, CoreMetadata that of ECS, both in the Object Description Language; layout as of
real v6 and v6.1 granules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from sifscale.grid import Grid
from sifscale.sources import SourceError
from sifscale.sources.sinusoidal import (
    CORNER_TOLERANCE_M,
    SINUSOIDAL_CRS,
    SPHERE_RADIUS_M,
    TILE_M,
    X_MIN_M,
    Y_MAX_M,
    tile_grid,
    tile_of_upper_left,
)


class Layout(NamedTuple):
    """How a product is laid out: name of its grid, start of its SDS names, pixels along a side of a tile."""

    grid_name: str
    sds_prefix: str
    pixels: int


class Metadata(NamedTuple):
    """What the metadata of a granule state.

    tile is (h, v), or None for a subset; start and end are the first and last day of the composite;
    lattice_offset_px is how far the grid lies off the sinusoidal pixel lattice, along the worse axis.
    """

    product: str
    tile: tuple[int, int] | None
    start: date
    end: date
    grid: Grid
    lattice_offset_px: float


LAYOUTS: Final = {  # by the last two letters of the product
    "A2": Layout("MODIS_Grid_16DAY_1km_VI", "1 km 16 days ", 1200),
    "A1": Layout("MODIS_Grid_16DAY_500m_VI", "500m 16 days ", 2400),
    "Q1": Layout("MODIS_Grid_16DAY_250m_500m_VI", "250m 16 days ", 4800),
}
_PERIOD_DAYS: Final = 16


def read_metadata(path: Path, attributes: Mapping[str, Any]) -> Metadata:
    """What the global attributes of a granule state; `path` gives what they lack, and must not contradict them.

    Raises SourceError, one line, for another product, StructMetadata that are absent, broken, off the sinusoidal
    grid or of another tile than the file name, and for days that are not known.
    """
    structure = _grid_structure(path, attributes)
    core = str(attributes.get("CoreMetadata.0", ""))
    product = _product(path, core, structure)
    pixels = LAYOUTS[product[-2:]].pixels
    grid, tile, offset_px = _grid(path, structure, pixels, moved="OldStructMetadata.0" in attributes)
    _check_tile_of_name(path, grid, tile)
    start, end = _period(path, core)
    return Metadata(product, tile, start, end, grid, offset_px)


def _grid_structure(path: Path, attributes: Mapping[str, Any]) -> dict[str, str]:
    """The entries of the first grid of StructMetadata, which is cut into attributes of 32000 characters."""
    parts = (str(attributes.get(f"StructMetadata.{number}", "")) for number in range(10))
    grid = re.search(r"GROUP=GRID_1\s(.*?)GROUP=Dimension", "".join(parts), re.DOTALL)
    if grid is None:
        raise SourceError(f"{path}: no StructMetadata of a grid, so no HDF4-EOS granule; fetch the original file")
    return dict(re.findall(r"(\w+)=(.*?)\s*\n", grid[1]))


def _product(path: Path, core: str, structure: Mapping[str, str]) -> str:
    product = _core_value(core, "SHORTNAME") or path.name.split(".")[0]
    if re.fullmatch("M[OY]D13(A1|A2|Q1)", product) is None:
        raise SourceError(f"{path}: product {product!r} is not MOD13 or MYD13 A1, A2 or Q1; give such a granule")
    expected, found = LAYOUTS[product[-2:]].grid_name, structure.get("GridName", "").strip('"')
    if found != expected:
        raise SourceError(f"{path}: grid {found!r} is not that of {product}, {expected!r}; fetch the original file")
    return product


def _core_value(core: str, key: str) -> str | None:
    entry = re.search(rf'OBJECT\s*=\s*{key}\s(?:(?!END_OBJECT).)*?VALUE\s*=\s*"([^"]*)"', core, re.DOTALL)
    return entry[1] if entry else None


def _grid(
    path: Path, structure: Mapping[str, str], pixels: int, moved: bool
) -> tuple[Grid, tuple[int, int] | None, float]:
    """The grid that StructMetadata states, its tile if it is a whole one, and its distance from the lattice in pixels.

    moved: the file may lie off the pixel lattice. HEG, which keeps the old StructMetadata beside the new, resamples
    to the corner that was asked for; such a grid is taken as stated, which may be up to half a pixel from the truth.
    """
    pixel_m = TILE_M / pixels
    west, north, height, width = _stated_corner(path, structure, pixel_m)
    column, row = (west - X_MIN_M) / pixel_m, (Y_MAX_M - north) / pixel_m
    offset_px = max(abs(column - round(column)), abs(row - round(row)))
    if offset_px * pixel_m > CORNER_TOLERANCE_M:
        if not moved:
            raise SourceError(
                f"{path}: the corner ({west}, {north}) m is {offset_px:.3f} pixels off the sinusoidal pixel lattice; "
                "fetch the original file"
            )
        return Grid(SINUSOIDAL_CRS, west, north, pixel_m, pixel_m, height, width), None, offset_px
    # Exact lattice corners, so that neighbouring tiles join without a gap of the file's rounding.
    west, north = X_MIN_M + round(column) * pixel_m, Y_MAX_M - round(row) * pixel_m
    if (height, width) != (pixels, pixels):
        return Grid(SINUSOIDAL_CRS, west, north, pixel_m, pixel_m, height, width), None, 0.0
    try:
        tile = tile_of_upper_left(west, north)
    except ValueError as error:
        raise SourceError(f"{path}: not a tile: {error}; fetch the original file") from None
    return tile_grid(*tile, pixels), tile, 0.0


def _stated_corner(path: Path, structure: Mapping[str, str], pixel_m: float) -> tuple[float, float, int, int]:
    """West and north edge (m), height and width (pixels) as StructMetadata states them, which must fit together."""
    try:
        width, height = int(structure["XDim"]), int(structure["YDim"])
        west, north = _numbers(structure["UpperLeftPointMtrs"])
        east, south = _numbers(structure["LowerRightMtrs"])
        radius, *others = _numbers(structure["ProjParams"])
        projection = structure["Projection"]
    except (KeyError, ValueError) as error:
        raise SourceError(f"{path}: StructMetadata is broken ({error}); fetch the original file") from None
    if projection != "GCTP_SNSOID" or abs(radius - SPHERE_RADIUS_M) > 0.01 or any(others):
        raise SourceError(
            f"{path}: projection {projection} {structure['ProjParams']} is not the MODIS sinusoidal one "
            f"(GCTP_SNSOID, sphere {SPHERE_RADIUS_M} m); fetch the original file"
        )
    # Negated, so that a NaN among the corners is refused.
    if not max(abs(east - west - width * pixel_m), abs(north - south - height * pixel_m)) <= CORNER_TOLERANCE_M:
        raise SourceError(
            f"{path}: {width} x {height} pixels of {pixel_m:.3f} m do not span the corners ({west}, {north}) and "
            f"({east}, {south}) of StructMetadata; fetch the original file"
        )
    return west, north, height, width


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.strip("()").split(",")]


def _check_tile_of_name(path: Path, grid: Grid, tile: tuple[int, int] | None) -> None:
    """A whole tile must be the one that the file name says, a subset must overlap it (HEG joins tiles)."""
    name = re.search(r"\.h(\d\d)v(\d\d)\.", path.name)
    if name is None:
        return
    named = (int(name[1]), int(name[2]))
    west, north = X_MIN_M + named[0] * TILE_M, Y_MAX_M - named[1] * TILE_M
    apart_m = max(
        grid.west - (west + TILE_M), west - (grid.west + grid.width * grid.dx),
        (north - TILE_M) - grid.north, (grid.north - grid.height * grid.dy) - north,
    )  # fmt: skip
    if (tile is not None and tile != named) or apart_m > -CORNER_TOLERANCE_M:
        holds = "other ground" if tile is None else f"h{tile[0]:02d}v{tile[1]:02d}"
        raise SourceError(
            f"{path}: wrong tile: the name says h{name[1]}v{name[2]}, StructMetadata {holds}, corner "
            f"({grid.west:.3f}, {grid.north:.3f}) m; correct the name or fetch the granule again"
        )


def _period(path: Path, core: str) -> tuple[date, date]:
    """First and last day of the composite, from CoreMetadata, or else from AYYYYDDD of the file name."""
    first, last = _core_value(core, "RANGEBEGINNINGDATE"), _core_value(core, "RANGEENDINGDATE")
    try:
        if first and last:
            start, end = date.fromisoformat(first), date.fromisoformat(last)
        elif name := re.search(r"\.A(\d{7})\.", path.name):
            start = datetime.strptime(name[1], "%Y%j").date()
            if f"{start:%Y%j}" != name[1]:  # strptime takes day 366 of a common year for 1 January
                raise ValueError(f"A{name[1]} is no day")
            end = min(start + timedelta(days=_PERIOD_DAYS - 1), date(start.year, 12, 31))
        else:
            raise ValueError("no RANGEBEGINNINGDATE and no AYYYYDDD in the name")
        if end < start:
            raise ValueError(f"it ends on {end}, before {start}")
    except ValueError as error:
        raise SourceError(f"{path}: the days of the composite are not known ({error}); restore the file name") from None
    return start, end
