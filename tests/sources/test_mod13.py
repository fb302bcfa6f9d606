"""The MOD13 reader on true HDF4-EOS files written here; real granules are in test_mod13_real."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyhdf.SD import SD, SDC
from pyproj import Transformer

from sifscale.sources import SourceError
from sifscale.sources.mod13 import check_mod13, inspect_mod13, read_mod13
from sifscale.sources.sinusoidal import SINUSOIDAL_CRS, tile_grid
from sifscale.sources.vi_quality import VegetationQuality

NAME = "MOD13A2.A2019145.h11v04.061.2020001000000.hdf"
ALL = slice(None)
PREFIXES = {"MOD13A2": "1 km 16 days ", "MYD13A1": "500m 16 days ", "MOD13Q1": "250m 16 days "}  # of SDS names
INT16, UINT16, INT8 = (SDC.INT16, np.int16), (SDC.UINT16, np.uint16), (SDC.INT8, np.int8)
LAYERS: dict[str, tuple[str, tuple[int, type], int, list[int], float | None]] = {
    "ndvi": ("NDVI", INT16, -3000, [-2000, 10000], 1e4),
    "evi": ("EVI", INT16, -3000, [-2000, 10000], 1e4),
    "vi_quality": ("VI Quality", UINT16, 65535, [0, 65534], None),
    "red": ("red reflectance", INT16, -1000, [0, 10000], 1e4),
    "nir": ("NIR reflectance", INT16, -1000, [0, 10000], 1e4),
    "blue": ("blue reflectance", INT16, -1000, [0, 10000], 1e4),
    "mir": ("MIR reflectance", INT16, -1000, [0, 10000], 1e4),
    "view_zenith": ("view zenith angle", INT16, -10000, [0, 18000], 1e2),
    "sun_zenith": ("sun zenith angle", INT16, -10000, [0, 18000], 1e2),
    "relative_azimuth": ("relative azimuth angle", INT16, -4000, [-18000, 18000], 1e2),
    "day_of_year": ("composite day of the year", INT16, -1, [1, 366], None),
    "pixel_reliability": ("pixel reliability", INT8, -1, [0, 3], None),
}
Layers = dict[str, NDArray[Any]]
Write = Callable[..., Path]


def layers(height: int, width: int, seed: int = 1) -> Layers:
    """Random stored values within the valid ranges, with a tenth of the pixels fill in all layers."""
    rng = np.random.default_rng(seed)
    fill = rng.random((height, width)) < 0.1
    return {
        band: np.where(fill, missing, rng.integers(low, high + 1, fill.shape)).astype(dtype)
        for band, (_, (_, dtype), missing, (low, high), _) in LAYERS.items()
    }


@pytest.fixture(scope="module")
def write(mod13_attributes: Callable[..., dict[str, str]]) -> Write:
    """Writes a granule as the LP DAAC does: SDS, their attributes, StructMetadata and CoreMetadata.

    sds_attributes: others than those of the product, None to leave one out; metadata: see `mod13_attributes`.
    """

    def write_granule(
        folder: Path,
        values: Layers,
        *,
        name: str = NAME,
        product: str = "MOD13A2",
        shape: tuple[int, int] | None = None,  # that the metadata state
        sds_attributes: dict[str, Any] | None = None,
        **metadata: Any,
    ) -> Path:
        stated = shape or next(iter(values.values())).shape
        sd = SD(str(folder / name), SDC.WRITE | SDC.CREATE | SDC.TRUNC)
        for band, stored in values.items():
            suffix, (code, _), fill, valid_range, divisor = LAYERS[band]
            sds = sd.create(PREFIXES[product] + suffix, code, stored.shape)
            sds.setcompress(SDC.COMP_DEFLATE, 5)
            found = {"_FillValue": fill, "valid_range": valid_range, "scale_factor": divisor, "add_offset": 0.0}
            for key, value in (found | (sds_attributes or {})).items():
                if value is not None:
                    sds.attr(key).set(SDC.FLOAT64 if key in ("scale_factor", "add_offset") else code, value)
            sds[:] = stored
            sds.endaccess()
        for key, text in mod13_attributes(stated, product=product, **metadata).items():
            sd.attr(key).set(SDC.CHAR8, text)
        sd.end()
        return folder / name

    return write_granule


@pytest.fixture(scope="module")
def tile(tmp_path_factory: pytest.TempPathFactory, write: Write) -> Path:
    """A whole tile with three bands, only to be read."""
    values = layers(1200, 1200)
    few = {band: values[band] for band in ("ndvi", "vi_quality", "pixel_reliability")}
    return write(tmp_path_factory.mktemp("tile"), few)


def test_a_whole_tile_is_known_by_its_metadata(tile: Path) -> None:
    granule = inspect_mod13(tile)
    assert (granule.product, granule.tile) == ("MOD13A2", (11, 4))
    assert (granule.start, granule.end) == (date(2019, 5, 25), date(2019, 6, 9))
    assert granule.grid == tile_grid(11, 4, 1200)
    assert granule.lattice_offset_px == 0
    assert granule.sds["vi_quality"] == "1 km 16 days VI Quality"
    check_mod13(granule)


def test_pixel_centres_are_within_a_metre_of_those_of_pyproj(tile: Path) -> None:
    grid = inspect_mod13(tile).grid
    to_metres = Transformer.from_crs("EPSG:4326", SINUSOIDAL_CRS, always_xy=True)
    # Tile v04 runs from 50 to 40 degrees north; column h11 from 70 to 60 degrees west at the equator.
    for row in (0, 700, 1199):
        for column in (0, 300, 1199):
            latitude = 50 - (row + 0.5) / 120
            longitude = (-70 + (column + 0.5) / 120) / np.cos(np.radians(latitude))
            expected = to_metres.transform(longitude, latitude)
            assert (grid.x[column], grid.y[row]) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("product", PREFIXES)
def test_every_band_of_every_product_is_the_stored_value_over_the_divisor(
    product: str, tmp_path: Path, write: Write
) -> None:
    values = layers(30, 40)
    path = write(tmp_path, values, product=product, name="renamed.hdf", corner_px=(100, 200))
    granule = inspect_mod13(path)
    assert (granule.product, granule.tile, set(granule.sds)) == (product, None, set(LAYERS))
    read, removed = read_mod13(granule, list(LAYERS), None, ALL, ALL)
    assert removed == {}
    for band, (_, _, fill, _, divisor) in LAYERS.items():
        expected = np.where(values[band] == fill, np.nan, values[band] / (divisor or 1))
        np.testing.assert_allclose(read[band], expected, rtol=1e-6)
        assert read[band].dtype == np.float32
        assert read[band].attrs["units"] == ("degree" if divisor == 100 else "1")


def test_a_window_is_the_same_part_of_the_whole(tile: Path) -> None:
    granule = inspect_mod13(tile)
    whole, _ = read_mod13(granule, ["ndvi"], VegetationQuality(), ALL, ALL)
    part, _ = read_mod13(granule, ["ndvi"], VegetationQuality(), slice(400, 401), slice(1100, None))
    np.testing.assert_array_equal(part["ndvi"], whole["ndvi"][400:401, 1100:])
    np.testing.assert_array_equal(part["x"], granule.grid.x[1100:])
    np.testing.assert_array_equal(part["y"], granule.grid.y[400:401])


@pytest.mark.parametrize("rows", [slice(5, 5), slice(0, 1201), slice(-3, None), slice(0, 10, 2), slice(1200, None)])
def test_a_window_that_is_empty_or_outside_is_refused(tile: Path, rows: slice) -> None:
    with pytest.raises(ValueError, match="no window within 0 to 1200"):
        read_mod13(inspect_mod13(tile), ["ndvi"], None, rows, ALL)


def test_values_outside_the_valid_range_are_missing(tmp_path: Path, write: Write) -> None:
    ndvi = np.array([[-2001, -2000, 0, 10000, 10001, -3000]], np.int16)
    granule = inspect_mod13(write(tmp_path, {"ndvi": ndvi}))
    read, _ = read_mod13(granule, ["ndvi"], None, ALL, ALL)
    np.testing.assert_allclose(read["ndvi"], [[np.nan, -0.2, 0, 1, np.nan, np.nan]])


@pytest.mark.parametrize(
    "rules",
    [
        VegetationQuality(),
        VegetationQuality(reliability=None),
        VegetationQuality(reliability=None, max_usefulness=3),
        VegetationQuality(reliability=(0,), modland=(0, 1), adjacent_cloud=False),
        VegetationQuality(None, 8, None, False, False, False, False, True),
    ],
)
def test_pixels_are_removed_and_counted_as_a_slow_reference_does(
    rules: VegetationQuality, tmp_path: Path, write: Write
) -> None:
    values = layers(30, 40)
    values["vi_quality"][:, :20] &= 0b0000_1000_0011_1111  # so that some pixels break no rule at all
    fill = values["pixel_reliability"] == -1
    values["vi_quality"][fill] = 65535
    by_bits = rules.broken_by_bits(values["vi_quality"])  # compared with the table in test_vi_quality
    counts: dict[str, int] = {}
    kept = np.zeros((30, 40), bool)
    for pixel in np.ndindex(30, 40):
        broken = {rule for rule, pixels in by_bits.items() if pixels[pixel]}
        if rules.reliability is not None and int(values["pixel_reliability"][pixel]) not in rules.reliability:
            broken.add("reliability")
        if fill[pixel]:
            broken = {"no_quality"} if rules != VegetationQuality(None) else set()
        kept[pixel] = not broken
        for rule in broken | ({"total"} if broken else set()):
            counts[rule] = counts.get(rule, 0) + 1
    read, removed = read_mod13(inspect_mod13(write(tmp_path, values)), ["ndvi", "nir"], rules, ALL, ALL)
    assert {rule: count for rule, count in removed.items() if count} == counts
    for band in ("ndvi", "nir"):
        np.testing.assert_array_equal(np.isfinite(read[band]), kept & ~fill)


def test_an_sds_of_another_shape_than_the_grid_is_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(SourceError, match=r"has shape \(6, 8\), StructMetadata says \(7, 8\)"):
        inspect_mod13(write(tmp_path, layers(6, 8), shape=(7, 8)))


def test_a_missing_sds_is_named(tmp_path: Path, write: Write) -> None:
    values = layers(6, 8)
    granule = inspect_mod13(write(tmp_path, {"ndvi": values["ndvi"]}))
    with pytest.raises(SourceError, match="no SDS '1 km 16 days EVI' for band evi"):
        read_mod13(granule, ["evi"], None, ALL, ALL)
    with pytest.raises(SourceError, match="no SDS '1 km 16 days pixel reliability'"):
        read_mod13(granule, ["ndvi"], VegetationQuality(), ALL, ALL)
    with pytest.raises(ValueError, match="no band 'NDVI'"):
        read_mod13(granule, ["NDVI"], None, ALL, ALL)
    with pytest.raises(ValueError, match="no band 'NDVI'"):
        check_mod13(granule, "NDVI")


def test_a_file_without_any_band_is_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(SourceError, match="no SDS '1 km 16 days NDVI' or other band of MOD13A2"):
        inspect_mod13(write(tmp_path, {}, shape=(6, 8)))


@pytest.mark.parametrize(
    ("attributes", "part"),
    [
        ({"_FillValue": None}, "no attribute _FillValue"),
        ({"valid_range": None}, "no attribute valid_range"),
        ({"scale_factor": None}, "has scale_factor None"),
        ({"scale_factor": 1e-4}, "has scale_factor 0.0001, MOD13 has the divisor 10000"),
    ],
)
def test_attributes_that_would_give_wrong_values_are_refused(
    tmp_path: Path, write: Write, attributes: dict[str, Any], part: str
) -> None:
    granule = inspect_mod13(write(tmp_path, {"ndvi": layers(6, 8)["ndvi"]}, sds_attributes=attributes))
    with pytest.raises(SourceError, match=part):
        read_mod13(granule, ["ndvi"], None, ALL, ALL)


def test_a_granule_of_fill_and_one_of_absurd_values_are_refused(tmp_path: Path, write: Write) -> None:
    fill = np.full((20, 20), -3000, np.int16)
    with pytest.raises(SourceError, match="all of '1 km 16 days NDVI' is fill"):
        check_mod13(inspect_mod13(write(tmp_path, {"ndvi": fill})))
    values = np.zeros((20, 20), np.int16)
    values[0, :4] = 20000
    check_mod13(inspect_mod13(write(tmp_path, {"ndvi": values})))
    values[0, 4] = 20000
    with pytest.raises(SourceError, match=r"1.2% of .* is outside its valid_range \[-2000, 10000\], e.g. 20000"):
        check_mod13(inspect_mod13(write(tmp_path, {"ndvi": values})))


def test_a_file_broken_inside_is_refused(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path, layers(60, 80))
    content = bytearray(path.read_bytes())
    content[400:2000] = bytes(1600)  # the list of what is in the file
    path.write_bytes(content)
    with pytest.raises(SourceError, match="HDF4 library cannot read it|truncated|no StructMetadata"):
        inspect_mod13(path)
