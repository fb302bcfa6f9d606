"""Parts of an array on disk, read into memory of any layout, against Zarr."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from sifscale.stored_arrays import StoredArray, rows_of_chunks

SHAPE = (2, 3, 20, 17)
PART = (slice(1, 2), slice(0, 3), slice(5, 20), slice(3, 11))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    group = zarr.open_group(tmp_path_factory.mktemp("store") / "cube.zarr", mode="w")
    array = group.create_array("field", shape=SHAPE, chunks=(1, 3, 8, 8), dtype="float32")
    array[...] = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    return array


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_part_is_read_in_place_whatever_its_layout(stored: Any, side_by_side: bool) -> None:
    whole = np.full(SHAPE, np.nan, np.float32)
    if side_by_side:
        whole = np.moveaxis(np.ascontiguousarray(np.moveaxis(whole, 1, -1)), -1, 1)
    array = StoredArray(stored)
    assert (array.shape, array.chunks) == (SHAPE, (1, 3, 8, 8))
    array.read(PART, whole[PART]).result()
    np.testing.assert_array_equal(whole[PART], stored[PART])
    assert np.isfinite(whole).sum() == stored[PART].size


@given(start=st.integers(0, 50), height=st.integers(1, 50), rows=st.integers(1, 20))
def test_pieces_of_rows_meet_and_keep_to_a_row_of_chunks(start: int, height: int, rows: int) -> None:
    pieces = rows_of_chunks(start, start + height, rows)
    assert (pieces[0][0], pieces[-1][1]) == (start, start + height)
    assert all(before[1] == after[0] for before, after in pairwise(pieces))
    assert all(top < bottom and top // rows == (bottom - 1) // rows for top, bottom in pieces)
