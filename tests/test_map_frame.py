"""Where a map lies: proportions, scale bar and degrees against geodesics and the projection itself."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Geod, Transformer

from sifscale.map_frame import frame_of

ALBERS = (5070, -60000.0, 2850000.0, 1000.0, (384, 512))
SPAIN = (4326, -7.0, 40.0, 0.01, (300, 600))
CASES = [ALBERS, SPAIN, (32630, 3e5, 4.4e6, 20.0, (50, 70)), (4326, -180.0, 90.0, 1.0, (180, 360))]


def field(epsg: int, west: float, north: float, pixel: float, shape: tuple[int, int]) -> xr.Dataset:
    mapping = {"crs_wkt": CRS(epsg).to_wkt(), "GeoTransform": f"{west} {pixel} 0.0 {north} 0.0 {-pixel}"}
    return xr.Dataset({"sif": (("y", "x"), np.zeros(shape))}, coords={"spatial_ref": ((), 0, mapping)})


@pytest.mark.parametrize("case", CASES)
def test_a_scale_bar_is_as_long_as_it_says(case: tuple[int, float, float, float, tuple[int, int]]) -> None:
    frame = frame_of(field(*case))
    assert frame.scale_bar is not None
    length, label = frame.scale_bar
    number, unit = label.split()
    west, south, east, north = frame.bounds
    assert 0.1 < length / (east - west) <= 0.3 + 1e-9 and number.strip("0") in "125"
    x, y = (west + east) / 2 + np.array([-0.5, 0.5]) * length, [(south + north) / 2] * 2
    longitude, latitude = Transformer.from_crs(case[0], 4326, always_xy=True).transform(x, y)
    metres = Geod(ellps="WGS84").line_length(longitude, latitude)
    assert metres == pytest.approx(float(number) * (1000 if unit == "km" else 1), rel=0.01)


@pytest.mark.parametrize("case", CASES)
def test_labels_stand_where_edges_meet_degrees(case: tuple[int, float, float, float, tuple[int, int]]) -> None:
    frame = frame_of(field(*case))
    to_degrees = Transformer.from_crs(case[0], 4326, always_xy=True)
    west, south, _, _ = frame.bounds
    assert 1 <= len(frame.x_ticks) <= 6 and 1 <= len(frame.y_ticks) <= 6
    for place, label in frame.x_ticks:
        assert to_degrees.transform(place, south)[0] == pytest.approx(degrees(label), abs=1e-3) or "180" in label
    for place, label in frame.y_ticks:
        assert to_degrees.transform(west, place)[1] == pytest.approx(degrees(label), abs=1e-3)


def degrees(label: str) -> float:
    return float(label.rstrip("NESW").rstrip("°")) * (-1 if label[-1] in "SW" else 1)


def test_a_picture_has_the_proportions_of_the_ground() -> None:
    frame = frame_of(field(*SPAIN))
    geod = Geod(ellps="WGS84")
    high, wide = geod.line_length([-4, -4], [38.4, 38.6]), geod.line_length([-4.1, -3.9], [38.5, 38.5])
    assert frame.height_to_width == pytest.approx(high / wide / 2, rel=1e-3)
    assert frame.pixel_km == pytest.approx(np.sqrt(high * wide) / 20 / 1000, rel=1e-3)
    assert frame_of(field(*ALBERS)).height_to_width == 384 / 512
    assert frame_of(field(*ALBERS)).pixel_km == pytest.approx(1, abs=1e-3), "Albers keeps areas"


def test_a_patch_lies_nowhere() -> None:
    frame = frame_of(xr.Dataset({"sif": (("y", "x"), np.zeros((20, 40)))}))
    assert frame.bounds == (0, 0, 40, 20) and frame.height_to_width == 0.5
    assert frame.scale_bar is None and frame.pixel_km is None and not (frame.x_ticks or frame.borders.outlines)


@given(
    west=st.floats(-180, 179), north=st.floats(-89, 90), pixel=st.floats(1e-5, 0.5),
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)  # fmt: skip
def test_every_geographic_map_has_few_labels_that_differ(
    west: float, north: float, pixel: float, shape: tuple[int, int]
) -> None:
    pixel = min(pixel, (north + 90) / shape[0])
    frame = frame_of(field(4326, west, north, pixel, shape))
    for ticks in (frame.x_ticks, frame.y_ticks):
        assert len(ticks) <= 6 and len({label for _, label in ticks}) == len(ticks)
    assert 0 < frame.height_to_width < np.inf
