"""Arrays of a Zarr store on this machine, read straight into memory where they are needed.

By TensorStore: it decodes chunks side by side and beside Python, and copies each value once, into any layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

if TYPE_CHECKING:
    import tensorstore


class StoredArray:
    """An array of a store; ``field`` is as Zarr opened it."""

    def __init__(self, field: zarr.Array[Any]) -> None:
        import tensorstore

        store = field.store
        assert isinstance(store, LocalStore)
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store.root / field.path)}}
        self.shape: tuple[int, ...] = tuple(field.shape)
        self.chunks: tuple[int, ...] = tuple(field.chunks)
        self._store = tensorstore.open(spec, open=True, read=True, context=_one_file_at_a_time()).result()

    def read(self, where: tuple[slice, ...], into: NDArray[Any]) -> tensorstore.WriteFutures:
        """Start reading a part, with a slice for each dimension, into an array of its shape; both alive until done."""
        import tensorstore

        return tensorstore.array(into, copy=False, write=True).write(self._store[where].translate_to[0])


@cache
def _one_file_at_a_time() -> tensorstore.Context:
    """For all arrays together: files are read faster than chunks are decoded, and would wait in memory."""
    import tensorstore

    return tensorstore.Context({"file_io_concurrency": {"limit": 1}})


def rows_of_chunks(start: int, stop: int, rows: int) -> Sequence[tuple[int, int]]:
    """Where rows ``start`` to ``stop`` of a field cross chunks of so many rows: a first and an end for each piece.

    Read piece by piece, for all of a field would wait in memory to be decoded.
    """
    return list(pairwise([start, *range((start // rows + 1) * rows, stop, rows), stop]))
