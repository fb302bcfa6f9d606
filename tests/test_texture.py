"""Texture made tile by tile is that of the whole field, to the last bit."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sifscale import lbp, texture
from sifscale.config import LbpFeature

TILES = (2, texture.TILE_EDGE_PX + 45, texture.TILE_EDGE_PX + 15)  # two tiles each way
PATTERNS = (
    LbpFeature(source="evi", method="default", points=16, radius=3.0, encoding="scaled"),
    LbpFeature(source="evi", method="uniform", points=8, radius=1.0, encoding="onehot"),
    LbpFeature(source="evi", method="var", points=24, radius=2.5, encoding="raw"),
)


def field_with_ties(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Few values, so that codes hang on the last bits of weights, which vary with the place; some gaps."""
    rng = np.random.default_rng(seed)
    field = rng.integers(0, 4, shape).astype(np.float32) * np.float32(0.7)
    field[rng.random(shape) < 0.001] = np.nan
    return field


def lazy(field: NDArray[np.float32]) -> da.Array:
    return da.from_array(field, chunks=(1, *field.shape[1:]))


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.method)
def test_lbp_of_a_field_of_several_tiles(pattern: LbpFeature) -> None:
    field = field_with_ties(TILES)
    codes = lbp.codes(field, pattern.points, pattern.radius, pattern.method, origin_px=(5, 1000))
    expected = lbp.encode(*codes, pattern.points, pattern.method, pattern.encoding)
    found = texture.lbp_planes(lazy(field), pattern, (5, 1000))
    assert np.isfinite(expected).mean() > 0.8 and found.shape == expected.shape
    np.testing.assert_array_equal(found.compute(), expected)


@settings(max_examples=10)
@given(seed=st.integers(0, 99), window_px=st.sampled_from([1, 3, 7]))
def test_local_stats_of_a_field_of_several_tiles(seed: int, window_px: int) -> None:
    field = field_with_ties(TILES, seed)
    found = texture.local_stats(lazy(field), window_px)
    np.testing.assert_array_equal(found.compute(), texture.local_stats_tile(field, (0, 0), window_px))


def test_planes_are_made_a_tile_at_a_time() -> None:
    edge = texture.TILE_EDGE_PX
    found = texture.lbp_planes(lazy(field_with_ties(TILES)), PATTERNS[1])
    assert found.chunks == ((1, 1), (10,), (edge, 45), (edge, 15)) and found.dtype == np.float32
