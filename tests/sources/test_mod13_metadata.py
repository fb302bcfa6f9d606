"""The metadata of MOD13 granules: what true ones state, and untrue ones refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from sifscale.sources import SourceError
from sifscale.sources.mod13_metadata import LAYOUTS, read_metadata
from sifscale.sources.sinusoidal import TILE_M, tile_grid

PATH = Path("MOD13A2.A2019145.h11v04.061.2020001000000.hdf")
Attributes = Callable[..., dict[str, str]]


@pytest.mark.parametrize("product", ["MOD13A2", "MYD13A2", "MOD13A1", "MYD13Q1"])
def test_a_whole_tile_states_product_tile_days_and_grid(product: str, mod13_attributes: Attributes) -> None:
    pixels = LAYOUTS[product[-2:]].pixels
    found = read_metadata(Path("renamed.hdf"), mod13_attributes((pixels, pixels), product=product))
    assert (found.product, found.tile) == (product, (11, 4))
    assert (found.start, found.end) == (date(2019, 5, 25), date(2019, 6, 9))
    assert found.grid == tile_grid(11, 4, pixels) and found.lattice_offset_px == 0


def test_struct_metadata_cut_into_several_attributes_are_joined(mod13_attributes: Attributes) -> None:
    whole = mod13_attributes((1200, 1200))
    text = whole["StructMetadata.0"]
    cut = whole | {"StructMetadata.0": text[:150], "StructMetadata.1": text[150:]}
    assert read_metadata(PATH, cut) == read_metadata(PATH, whole)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("MYD13A2.A2020009.h11v04.061.2020030000000.hdf", date(2020, 1, 9), date(2020, 1, 24)),
        ("MOD13A2.A2019353.h11v04.061.2020030000000.hdf", date(2019, 12, 19), date(2019, 12, 31)),
    ],
)
def test_without_core_metadata_product_and_days_come_from_the_name(
    name: str, first: date, last: date, mod13_attributes: Attributes
) -> None:
    found = read_metadata(Path(name), mod13_attributes((6, 8), days=None))
    assert (found.product, found.start, found.end) == (name[:7], first, last)


def test_a_subset_lies_on_the_lattice_of_its_tile(mod13_attributes: Attributes) -> None:
    found = read_metadata(PATH, mod13_attributes((6, 8), corner_px=(7, 11)))
    whole = tile_grid(11, 4, 1200)
    assert found.grid.x == pytest.approx(whole.x[11:19], abs=1e-6)
    assert found.grid.y == pytest.approx(whole.y[7:13], abs=1e-6)
    assert found.tile is None and found.lattice_offset_px == 0


def test_only_a_file_of_the_heg_tool_may_lie_off_the_lattice_and_says_by_how_much(
    mod13_attributes: Attributes,
) -> None:
    found = read_metadata(PATH, mod13_attributes((6, 8), corner_px=(7, 11.2), heg=True))
    assert found.lattice_offset_px == pytest.approx(0.2, abs=1e-6)
    assert found.grid.west == pytest.approx(tile_grid(11, 4, 1200).x[11] - 0.3 * TILE_M / 1200, abs=1e-3)
    with pytest.raises(SourceError, match="0.200 pixels off the sinusoidal pixel lattice"):
        read_metadata(PATH, mod13_attributes((6, 8), corner_px=(7, 11.2)))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no metadata": ({"edit": (r"(?s).*", "")}, "no StructMetadata"),
    "no grid": ({"edit": ("GROUP=GRID_1", "GROUP=OTHER")}, "no StructMetadata"),
    "no XDim": ({"edit": ("XDim=8", "")}, r"StructMetadata is broken \('XDim'\)"),
    "word for a number": ({"edit": ("YDim=6", "YDim=six")}, "StructMetadata is broken"),
    "no pair": ({"edit": (r"UpperLeftPointMtrs=\(", "UpperLeftPointMtrs=(1,")}, "StructMetadata is broken"),
    "NaN corner": ({"edit": (r"Mtrs=\([^,]*,", "Mtrs=(nan,")}, "do not span the corners"),
    "projection": ({"edit": ("SNSOID", "GEO")}, "GCTP_GEO .* is not the MODIS sinusoidal"),
    "sphere": ({"edit": ("6371007.181", "6378137.000")}, "is not the MODIS sinusoidal"),
    "meridian": ({"edit": ("181000,0,0,0,0,0", "181000,0,0,0,90,0")}, "is not the MODIS sinusoidal"),
    "pixel": ({"edit": ("XDim=8", "XDim=16")}, "16 x 6 pixels of 926.625 m do not span"),
    "grid name": ({"edit": ("1km", "CMG")}, "grid 'MODIS_Grid_16DAY_CMG_VI' is not that of MOD13A2"),
    "product": ({"days": None, "name": "MOD11A2.A2019145.hdf"}, "product 'MOD11A2' is not MOD13"),
    "no days": ({"days": None, "name": "MOD13A2.hdf"}, "days of the composite are not known"),
    "no such day": ({"days": None, "name": "MOD13A2.A2019366.hdf"}, "days of the composite are not known"),
    "not a date": ({"days": ("2019-05-25", "soon")}, "days of the composite are not known"),
    "days swapped": ({"days": ("2019-05-25", "2019-05-09")}, "ends on 2019-05-09, before"),
    "other ground": ({"name": "MOD13A2.A2019145.h12v04.hdf"}, "wrong tile: the name says h12v04"),
    "no tile": ({"name": "MOD13A2.A2019145.h44v04.hdf"}, "wrong tile: the name says h44v04"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_metadata_that_cannot_be_true_are_refused_in_one_line(fault: str, mod13_attributes: Attributes) -> None:
    changes, part = FAULTS[fault]
    path = Path(changes.get("name", PATH))
    attributes = mod13_attributes((6, 8), **{key: value for key, value in changes.items() if key != "name"})
    with pytest.raises(SourceError, match=part) as refusal:
        read_metadata(path, attributes)
    assert str(refusal.value).startswith(f"{path}: ") and "\n" not in str(refusal.value)


def test_a_whole_tile_under_the_name_of_another_is_refused(mod13_attributes: Attributes) -> None:
    renamed = Path(PATH.name.replace("h11v04", "h10v04"))
    with pytest.raises(SourceError, match="wrong tile: the name says h10v04, StructMetadata h11v04"):
        read_metadata(renamed, mod13_attributes((1200, 1200)))


def test_a_whole_granule_between_two_tiles_is_refused(mod13_attributes: Attributes) -> None:
    with pytest.raises(SourceError, match="not the upper-left corner of a tile; the nearest is that of h11v04"):
        read_metadata(PATH, mod13_attributes((1200, 1200), corner_px=(0, 5)))
