"""Land cover of a pixel is what most of it is, by brute force; gaps stay gaps; lazily as eagerly."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sifscale.config import ConfigError, Cover
from sifscale.land_cover import UNKNOWN, land_cover

CLASSES = ("water", "corn", "forest")
BY_NUMBER = Cover(band="land_cover", classes=CLASSES)
BY_SHARE = Cover(band=None, classes=CLASSES)


def dataset(bands: dict[str, NDArray[np.float32]], chunks: tuple[int, int, int] | None = None) -> xr.Dataset:
    """Bands (sample, y, x), in memory or as Dask arrays."""
    fields: dict[str, Any] = {k: da.from_array(v, chunks=chunks) if chunks else v for k, v in bands.items()}
    return xr.Dataset({name: (("sample", "y", "x"), field) for name, field in fields.items()})


def classes_with_gaps(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Numbers 0 to 2, some numbers that are no class (3, -1), some NaN."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 1, 2, 3, -1, np.nan], np.float32), shape, p=[0.2, 0.2, 0.2, 0.1, 0.1, 0.2])


def most_common(pixels: NDArray[np.float32]) -> int:
    """The first of the classes that most of these pixels have."""
    counts = [sum(value == number for value in pixels.ravel()) for number in range(len(CLASSES))]
    return counts.index(max(counts)) if max(counts) else UNKNOWN


@given(seed=st.integers(0, 999), factor=st.integers(1, 4), height=st.integers(1, 4), width=st.integers(1, 4))
def test_a_pixel_is_what_most_of_its_fine_pixels_are(seed: int, factor: int, height: int, width: int) -> None:
    fine = classes_with_gaps(seed, (2, height * factor, width * factor))
    bands = dataset({"ndvi": np.zeros((2, height, width), np.float32)})
    found = land_cover(bands, dataset({"land_cover": fine}), BY_NUMBER)
    assert found.dtype == np.int8 and found.shape == (2, height, width)
    for sample, y, x in np.ndindex(2, height, width):
        pixels = fine[sample, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        assert found.compute()[sample, y, x] == most_common(pixels)


def test_of_several_equal_classes_the_first_counts_and_gaps_have_none() -> None:
    fine = np.array([[2, 1, np.nan, np.nan], [1, 2, np.nan, np.nan], [np.nan, 2, 3, 3], [0, np.nan, 3, 1]], np.float32)
    bands = dataset({"ndvi": np.zeros((1, 2, 2), np.float32)})
    found = land_cover(bands, dataset({"land_cover": fine[None]}), BY_NUMBER).compute()
    assert found.tolist() == [[[1, UNKNOWN], [0, 1]]]


def test_a_band_on_the_own_grid_goes_before_that_on_the_finer_one() -> None:
    own = np.array([[[0, 2], [np.nan, 5]]], np.float32)
    finer = dataset({"land_cover": np.ones((1, 4, 4), np.float32)})
    for beside in (finer, None):
        assert land_cover(dataset({"land_cover": own}), beside, BY_NUMBER).compute().tolist() == [[[0, 2], [-1, -1]]]


def shares(seed: int, shape: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    found = {name: rng.integers(0, 3, shape).astype(np.float32) * np.float32(0.5) for name in CLASSES}
    for field in found.values():
        field[rng.random(shape) < 0.3] = np.nan
    return found


@given(seed=st.integers(0, 999))
def test_the_largest_share_counts(seed: int) -> None:
    bands = shares(seed, (2, 4, 5))
    found = land_cover(dataset(bands), None, BY_SHARE).compute()
    assert found.dtype == np.int8 and found.shape == (2, 4, 5)
    for at in np.ndindex(2, 4, 5):
        best, largest = UNKNOWN, 0.0
        for number, name in enumerate(CLASSES):
            if bands[name][at] > largest:
                best, largest = number, float(bands[name][at])
        assert found[at] == best


@pytest.mark.parametrize("chunks", [(1, 8, 12), (2, 3, 5), (1, 1, 12)])
def test_lazily_as_eagerly(chunks: tuple[int, int, int]) -> None:
    fine, bands = {"land_cover": classes_with_gaps(0, (2, 8, 12))}, {"ndvi": np.zeros((2, 4, 6), np.float32)}
    eager = land_cover(dataset(bands), dataset(fine), BY_NUMBER)
    lazy = land_cover(dataset(bands, chunks), dataset(fine, chunks), BY_NUMBER)
    np.testing.assert_array_equal(lazy.compute(), eager.compute())
    by_class = shares(1, (2, 8, 12))
    lazy = land_cover(dataset(by_class, chunks), None, BY_SHARE)
    np.testing.assert_array_equal(lazy.compute(), land_cover(dataset(by_class), None, BY_SHARE).compute())
    assert lazy.chunks == ((1, 1), (8,), (12,)), "one chunk a sample, as all features have it"


@pytest.mark.parametrize(("cover", "missing"), [(BY_NUMBER, "land_cover"), (BY_SHARE, "water")])
def test_a_missing_band_is_named_beside_those_found(cover: Cover, missing: str) -> None:
    bands = dataset({name: np.zeros((1, 2, 2), np.float32) for name in ("ndvi", "corn")})
    for finer in (None, bands):
        with pytest.raises(ConfigError) as caught:
            land_cover(bands, finer, cover)
        line = f"window.cover: the cube has no band '{missing}'; build the window again (found ndvi, corn)"
        assert caught.value.faults == [line]
