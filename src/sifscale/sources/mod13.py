"""MODIS vegetation indices, 16-day composites in HDF4-EOS: MOD13/MYD13 A2 (1 km), A1 (500 m) and Q1 (250 m).

Layout: real v6 and v6.1 granules and the MOD13 user guide. `scale_factor` of these files is a DIVISOR: value =
(stored - add_offset) / scale_factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyhdf.SD import SD

from sifscale.grid import Grid
from sifscale.sources import SourceError
from sifscale.sources.hdf4 import open_hdf4
from sifscale.sources.mod13_metadata import LAYOUTS, read_metadata
from sifscale.sources.vi_quality import VegetationQuality


class _Band(NamedTuple):
    sds_suffix: str
    divisor: float | None  # None: stored as it is
    units: str
    long_name: str


_BANDS: Final = {
    "ndvi": _Band("NDVI", 1e4, "1", "normalised difference vegetation index"),
    "evi": _Band("EVI", 1e4, "1", "enhanced vegetation index"),
    "red": _Band("red reflectance", 1e4, "1", "surface reflectance, red (MODIS band 1)"),
    "nir": _Band("NIR reflectance", 1e4, "1", "surface reflectance, near infrared (MODIS band 2)"),
    "blue": _Band("blue reflectance", 1e4, "1", "surface reflectance, blue (MODIS band 3)"),
    "mir": _Band("MIR reflectance", 1e4, "1", "surface reflectance, mid infrared (MODIS band 7)"),
    "view_zenith": _Band("view zenith angle", 1e2, "degree", "view zenith angle"),
    "sun_zenith": _Band("sun zenith angle", 1e2, "degree", "solar zenith angle"),
    "relative_azimuth": _Band("relative azimuth angle", 1e2, "degree", "relative azimuth angle"),
    "day_of_year": _Band("composite day of the year", None, "1", "day of the year of the observation"),
    "vi_quality": _Band("VI Quality", None, "1", "vegetation index quality, bit field"),
    "pixel_reliability": _Band("pixel reliability", None, "1", "0 good, 1 marginal, 2 snow or ice, 3 cloudy"),
}
_ABSURD_SHARE: Final = 0.01
_Window = tuple[tuple[int, int], tuple[int, int]]  # first index and number, of rows and of columns


@dataclass(frozen=True)
class Granule:
    """What a MOD13 file holds, found without reading its bands.

    tile is (h, v), or None for a subset; start and end are the first and last day of the composite; sds has the SDS
    name of each band in the file. lattice_offset_px is how far the grid lies off the sinusoidal pixel lattice, along
    the worse axis: 0, except for subsets that the HEG tool cut and moved to the asked-for corner.
    """

    path: Path
    product: str
    tile: tuple[int, int] | None
    start: date
    end: date
    grid: Grid
    sds: Mapping[str, str] = field(hash=False)
    lattice_offset_px: float


def inspect_mod13(path: Path) -> Granule:
    """Product, tile, days, grid and bands of a MOD13/MYD13 A1, A2 or Q1 granule, from its metadata.

    Raises SourceError, one line, for a file that is absent, unreadable, empty, truncated, not HDF4, another product,
    or whose StructMetadata is absent or contradicts the SDS, the sinusoidal grid or the tile of the file name.
    """
    with open_hdf4(path) as sd:
        attributes, shapes = sd.attributes(), {name: tuple(entry[1]) for name, entry in sd.datasets().items()}
    metadata = read_metadata(path, attributes)
    product, grid = metadata.product, metadata.grid
    names = {band: _sds_name(product, band) for band in _BANDS}
    sds = {band: name for band, name in names.items() if name in shapes}
    if not sds:
        raise SourceError(f"{path}: no SDS {names['ndvi']!r} or other band of {product}; fetch it again")
    for name in sds.values():
        if shapes[name] != (grid.height, grid.width):
            raise SourceError(
                f"{path}: SDS {name!r} has shape {shapes[name]}, StructMetadata says {(grid.height, grid.width)}; "
                "fetch the granule again"
            )
    return Granule(path, product, metadata.tile, metadata.start, metadata.end, grid, sds, metadata.lattice_offset_px)


def read_mod13(
    granule: Granule, bands: Sequence[str], quality: VegetationQuality | None, rows: slice, columns: slice
) -> tuple[xr.Dataset, dict[str, int]]:
    """Read a window of a granule: (dataset (y, x) float32, pixels removed by each rule of `quality`).

    rows and columns count from the north-western corner, as Grid does, without step. Values outside valid_range and
    fills are NaN; reflectances and indices have unit 1, angles degrees. With quality None nothing else is removed.
    Pixels that break a rule are NaN in all bands. They are counted once for each rule they break; "no_quality" counts
    pixels without the quality that the rules ask for (fill, so sea for the most part), "total" all that are removed.

    Raises ValueError for unknown bands and windows that are empty or not inside, SourceError for a band or quality
    that the file has not, and for attributes or data that cannot be used.
    """
    if unknown := sorted(set(bands) - set(_BANDS)):
        raise ValueError(f"MOD13 has no band {unknown[0]!r}; known: {', '.join(_BANDS)}")
    window = (_extent(rows, granule.grid.height, "rows"), _extent(columns, granule.grid.width, "columns"))
    with open_hdf4(granule.path) as sd:
        fields = {band: _scaled(granule, sd, band, window) for band in bands}
        kept, removed = _keep(granule, sd, quality, window)
    variables = {}
    for band, values in fields.items():
        values[~kept] = np.nan
        attrs = {"units": _BANDS[band].units, "long_name": _BANDS[band].long_name}
        variables[band] = (("y", "x"), values, attrs)
    (row, height), (column, width) = window
    coords = {"y": granule.grid.y[row : row + height], "x": granule.grid.x[column : column + width]}
    return xr.Dataset(variables, coords, {"product": granule.product}), removed


def check_mod13(granule: Granule, band: str = "ndvi") -> None:
    """Read one whole band and raise SourceError if it is all fill, or if more than 1 % of the other values are
    outside its valid_range. Raises ValueError for an unknown band.
    """
    if band not in _BANDS:
        raise ValueError(f"MOD13 has no band {band!r}; known: {', '.join(_BANDS)}")
    with open_hdf4(granule.path) as sd:
        stored, attributes = _stored(granule, sd, band, ((0, granule.grid.height), (0, granule.grid.width)))
    filled = stored == attributes["_FillValue"]
    if filled.all():
        raise SourceError(f"{granule.path}: all of {granule.sds[band]!r} is fill; take this granule off the list")
    lowest, highest = attributes["valid_range"]
    absurd = ~filled & ((stored < lowest) | (stored > highest))
    if absurd.sum() > _ABSURD_SHARE * (~filled).sum():
        raise SourceError(
            f"{granule.path}: {absurd.sum() / (~filled).sum():.1%} of {granule.sds[band]!r} is outside its valid_range "
            f"[{lowest}, {highest}], e.g. {stored[absurd][0]}; fetch the granule again"
        )


def _sds_name(product: str, band: str) -> str:
    return LAYOUTS[product[-2:]].sds_prefix + _BANDS[band].sds_suffix


def _extent(part: slice, length: int, name: str) -> tuple[int, int]:
    """First index and number of indices of a slice."""
    start, stop = part.start or 0, length if part.stop is None else part.stop
    if part.step not in (None, 1) or not 0 <= start < stop <= length:
        raise ValueError(f"{name} {part} is no window within 0 to {length}; give start < stop, without step")
    return start, stop - start


def _stored(granule: Granule, sd: SD, band: str, window: _Window) -> tuple[NDArray[Any], dict[str, Any]]:
    """The numbers of a window as they are in the file, and the attributes of their SDS."""
    if band not in granule.sds:
        name, found = _sds_name(granule.product, band), ", ".join(granule.sds.values())
        raise SourceError(f"{granule.path}: no SDS {name!r} for band {band}; found: {found}; fetch the whole granule")
    name = granule.sds[band]
    sds = sd.select(name)
    try:
        attributes: dict[str, Any] = sds.attributes()
        (row, height), (column, width) = window
        stored: NDArray[Any] = sds.get(start=(row, column), count=(height, width)).reshape(height, width)
    finally:
        sds.endaccess()
    for attribute in ("_FillValue", "valid_range"):
        if attribute not in attributes:
            raise SourceError(f"{granule.path}: SDS {name!r} has no attribute {attribute}; fetch the original file")
    divisor = _BANDS[band].divisor
    if divisor is not None and attributes.get("scale_factor") != divisor:
        raise SourceError(
            f"{granule.path}: SDS {name!r} has scale_factor {attributes.get('scale_factor')}, MOD13 has the divisor "
            f"{divisor:g}; fetch the original file"
        )
    return stored, attributes


def _scaled(granule: Granule, sd: SD, band: str, window: _Window) -> NDArray[np.float32]:
    stored, attributes = _stored(granule, sd, band, window)
    lowest, highest = attributes["valid_range"]
    values = stored.astype(np.float32)
    values[(stored == attributes["_FillValue"]) | (stored < lowest) | (stored > highest)] = np.nan
    if (divisor := _BANDS[band].divisor) is None:
        return values
    return (values - np.float32(attributes.get("add_offset", 0.0))) / np.float32(divisor)


def _keep(
    granule: Granule, sd: SD, quality: VegetationQuality | None, window: _Window
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Pixels of the window that break no rule, and how many break each."""
    (_, height), (_, width) = window
    known = np.ones((height, width), np.bool_)
    if quality is None:
        return known, {}
    broken: dict[str, NDArray[np.bool_]] = {}
    if quality.reliability is not None:
        stored, attributes = _stored(granule, sd, "pixel_reliability", window)
        known &= stored != attributes["_FillValue"]
        broken["reliability"] = ~np.isin(stored, quality.reliability)
    if quality.reads_bits:
        stored, attributes = _stored(granule, sd, "vi_quality", window)
        known &= stored != attributes["_FillValue"]
        broken |= quality.broken_by_bits(stored)
    kept = known.copy()
    for pixels in broken.values():
        kept &= ~pixels
    removed = {rule: int((pixels & known).sum()) for rule, pixels in broken.items()}
    return kept, {"no_quality": int((~known).sum()), **removed, "total": int((~kept).sum())}
