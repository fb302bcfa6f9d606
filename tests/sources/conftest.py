"""What the tests of the MOD13 reader and of its metadata share: the texts that HDF-EOS puts into a granule."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from sifscale.sources.sinusoidal import TILE_M, tile_grid

GRIDS = {  # name of the grid, pixels along a tile
    "A2": ("MODIS_Grid_16DAY_1km_VI", 1200),
    "A1": ("MODIS_Grid_16DAY_500m_VI", 2400),
    "Q1": ("MODIS_Grid_16DAY_250m_500m_VI", 4800),
}


def _core_metadata(product: str, days: tuple[str, str]) -> str:
    values = {"SHORTNAME": product, "RANGEBEGINNINGDATE": days[0], "RANGEENDINGDATE": days[1]}
    return "".join(
        f'  OBJECT                 = {key}\n    NUM_VAL              = 1\n    VALUE                = "{value}"\n'
        f"  END_OBJECT             = {key}\n"
        for key, value in values.items()
    )


def _attributes(
    shape: tuple[int, int],
    *,
    product: str = "MOD13A2",
    corner_px: tuple[float, float] = (0, 0),  # row and column of the upper-left corner in tile h11v04
    days: tuple[str, str] | None = ("2019-05-25", "2019-06-09"),
    edit: tuple[str, str] = ("", ""),  # a pattern in StructMetadata and what takes its place
    heg: bool = False,
) -> dict[str, str]:
    grid_name, pixels = GRIDS[product[-2:]]
    (height, width), tile, pixel_m = shape, tile_grid(11, 4, pixels), TILE_M / pixels
    west, north = tile.west + corner_px[1] * pixel_m, tile.north - corner_px[0] * pixel_m
    structure = (
        "GROUP=SwathStructure\nEND_GROUP=SwathStructure\nGROUP=GridStructure\n\tGROUP=GRID_1\n"
        f'\t\tGridName="{grid_name}"\n'
        f"\t\tXDim={width}\n\t\tYDim={height}\n\t\tUpperLeftPointMtrs=({west:.6f},{north:.6f})\n"
        f"\t\tLowerRightMtrs=({west + width * pixel_m:.6f},{north - height * pixel_m:.6f})\n"
        "\t\tProjection=GCTP_SNSOID\n\t\tProjParams=(6371007.181000,0,0,0,0,0,0,0,0,0,0,0,0)\n\t\tSphereCode=-1\n"
        "\t\tGROUP=Dimension\n\t\tEND_GROUP=Dimension\n\tEND_GROUP=GRID_1\nEND_GROUP=GridStructure\nEND\n"
    )
    found = {}
    if text := re.sub(*edit, structure) if edit[0] else structure:
        found["StructMetadata.0"] = text.ljust(32_000, "\0")
    if heg:
        found["OldStructMetadata.0"] = structure
    if days:
        found["CoreMetadata.0"] = _core_metadata(product, days)
    return found


@pytest.fixture(scope="session")
def mod13_attributes() -> Callable[..., dict[str, str]]:
    """Makes the global attributes of a granule of `shape` (rows, columns), whole or a subset of tile h11v04."""
    return _attributes
