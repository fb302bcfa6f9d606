"""Writes MOD13A2 granules, collection 6.1, as HDF4-EOS files like those of the LP DAAC.

Layout read from real granules; see also the MODIS VI user's guide, collection 6.1 (Didan & Barreto Munoz 2019).
"""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyhdf.HDF import HC, HDF
from pyhdf.SD import SD, SDC

# Imported for its effect: it gives an open HDF the method vgstart.
from pyhdf.V import V as V

from sifscale.simulation.mod13_metadata import core_metadata, struct_metadata
from sifscale.simulation.modis import TILE_PX, Layers, Tile
from sifscale.simulation.world import Period
from sifscale.sources.hdf4 import hdf4_lock

GRID_NAME: Final = "MODIS_Grid_16DAY_1km_VI"
PREFIX: Final = "1 km 16 days "
_DEFLATE_LEVEL: Final = 5  # as in the real granules


@dataclass(frozen=True)
class Layer:
    """One science data set: storage type, fill value, valid range, divisor (0: none) and units."""

    kind: int
    dtype: type[np.integer]
    fill: int
    low: int
    high: int
    divisor: float
    units: str


def _index(units: str) -> Layer:
    return Layer(SDC.INT16, np.int16, -3000, -2000, 10_000, 10_000.0, units)


_REFLECTANCE: Final = Layer(SDC.INT16, np.int16, -1000, 0, 10_000, 10_000.0, "reflectance")
_ZENITH: Final = Layer(SDC.INT16, np.int16, -10_000, 0, 18_000, 100.0, "degrees")
LAYERS: Final = {
    "NDVI": _index("NDVI"),
    "EVI": _index("EVI"),
    "VI Quality": Layer(SDC.UINT16, np.uint16, 65_535, 0, 65_534, 0.0, "bit field"),
    "red reflectance": _REFLECTANCE,
    "NIR reflectance": _REFLECTANCE,
    "blue reflectance": _REFLECTANCE,
    "MIR reflectance": _REFLECTANCE,
    "view zenith angle": _ZENITH,
    "sun zenith angle": _ZENITH,
    "relative azimuth angle": Layer(SDC.INT16, np.int16, -4000, -18_000, 18_000, 100.0, "degrees"),
    "composite day of the year": Layer(SDC.INT16, np.int16, -1, 1, 366, 0.0, "Julian day of the year "),
    "pixel reliability": Layer(SDC.INT8, np.int8, -1, 0, 3, 0.0, "rank"),
}


def granule_name(tile: Tile, period: Period) -> str:
    """Name of a tile's granule of one composite, as if produced ten days after the last of the period."""
    produced = period[1] + datetime.timedelta(days=10)
    return f"MOD13A2.A{period[0]:%Y%j}.h{tile.h:02d}v{tile.v:02d}.061.{produced:%Y%j}000000.hdf"


def write_mod13(path: Path, tile: Tile, period: Period, layers: Layers) -> None:
    """Write one granule of 1200 x 1200 pixels: the part that the tile covers of the world, fill elsewhere.

    One thread at a time uses the HDF4 library: threads wait here for each other and for the readers. Meanwhile the
    working directory is that of the file.
    """
    # The library writes the name that it is given into the file, which must not depend on where it was made.
    with hdf4_lock, contextlib.chdir(path.parent):
        name = Path(path.name)
        references = _write_datasets(name, tile, period, layers)
        _write_groups(name, references)


def _write_datasets(path: Path, tile: Tile, period: Period, layers: Layers) -> list[int]:
    """Write the global attributes and all data sets. Returns the HDF4 references of the data sets."""
    file = SD(str(path), SDC.WRITE | SDC.CREATE | SDC.TRUNC)
    try:
        file.attr("HDFEOSVersion").set(SDC.CHAR, "HDFEOS_V2.19")
        names = [PREFIX + name for name in LAYERS]
        types = [np.dtype(layer.dtype).name.upper() for layer in LAYERS.values()]
        # 32 000 characters, padded by zeros, is how HDF-EOS lays the attribute out.
        struct = struct_metadata(GRID_NAME, tile.grid, list(zip(names, types, strict=True)))
        file.attr("StructMetadata.0").set(SDC.CHAR, struct.ljust(32_000, "\0"))
        file.attr("identifier_product_doi").set(SDC.CHAR, "10.5067/MODIS/MOD13A2.061")
        file.attr("identifier_product_doi_authority").set(SDC.CHAR, "http://dx.doi.org")
        cloudy = layers["pixel reliability"][tile.inside] == 3
        percent = round(100 * float(cloudy.mean())) if cloudy.size else 0
        core = core_metadata(path.name, tile.h, tile.v, tile.grid, period, names, percent)
        file.attr("CoreMetadata.0").set(SDC.CHAR, core)
        return [_write_layer(file, name, layer, _whole(tile, layers[name], layer)) for name, layer in LAYERS.items()]
    finally:
        file.end()


def _whole(tile: Tile, part: NDArray[np.generic], layer: Layer) -> NDArray[np.generic]:
    whole = np.full((TILE_PX, TILE_PX), layer.fill, layer.dtype)
    whole[tile.rows, tile.columns] = np.where(tile.inside, part, layer.dtype(layer.fill))
    return whole


def _write_layer(file: SD, name: str, layer: Layer, values: NDArray[np.generic]) -> int:
    """Write one data set; the order of its attributes is the product's. Returns its HDF4 reference."""
    dataset = file.create(PREFIX + name, layer.kind, values.shape)
    try:
        for axis, dimension in enumerate(("YDim", "XDim")):
            dataset.dim(axis).setname(f"{dimension}:{GRID_NAME}")
        dataset.attr("long_name").set(SDC.CHAR, PREFIX + name)
        dataset.attr("units").set(SDC.CHAR, layer.units)
        dataset.attr("valid_range").set(layer.kind, [layer.low, layer.high])
        dataset.setfillvalue(layer.fill)
        if layer.divisor:
            # Value, its error, offset, its error, type of the uncalibrated values.
            dataset.setcal(layer.divisor, 0.0, 0.0, 0.0, SDC.FLOAT32)
        dataset.setcompress(SDC.COMP_DEFLATE, _DEFLATE_LEVEL)
        dataset[:] = values
        return int(dataset.ref())
    finally:
        dataset.endaccess()


def _write_groups(path: Path, references: list[int]) -> None:
    """The Vgroups by which the HDF-EOS library finds a grid and its fields."""
    file = HDF(str(path), HC.WRITE)
    groups = file.vgstart()
    try:
        grid = groups.create(GRID_NAME)
        for name in ("Data Fields", "Grid Attributes"):
            group = groups.create(name)
            group._class = "GRID Vgroup"
            if name == "Data Fields":
                for reference in references:
                    group.add(HC.DFTAG_NDG, reference)
            grid.insert(group)
            group.detach()
        grid._class = "GRID"
        grid.detach()
    finally:
        groups.end()
        file.close()
