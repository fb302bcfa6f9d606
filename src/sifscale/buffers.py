"""Memory that is used again: on many machines a fresh array costs more than to fill it."""

from __future__ import annotations

import math
import weakref
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_IDLE = 2  # pieces of memory that are kept while nobody needs them


class Buffers:
    """Arrays whose memory is used again once the last tensor that was made of them is gone."""

    def __init__(self, least: int = 0) -> None:
        """least: bytes that every piece of memory has, so that each fits all."""
        self._least, self._lock = least, Lock()
        self._pieces: list[tuple[NDArray[np.uint8], weakref.ref[NDArray[Any]]]] = []

    def take(self, shape: tuple[int, ...], dtype: DTypeLike, channels_last: bool = False) -> NDArray[Any]:
        """An array with any content. What is made of it must keep it alive, as ``torch.from_numpy`` does.

        A NumPy view does not: NumPy lets views refer to the memory below them. channels_last: the second dimension
        varies fastest in memory.
        """
        with self._lock:  # a pool's reader takes some, and who reads a crop on its own
            return self._take(shape, dtype, channels_last)

    def _take(self, shape: tuple[int, ...], dtype: DTypeLike, channels_last: bool) -> NDArray[Any]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        idle = [memory for memory, user in self._pieces if user() is None]
        memory = next((piece for piece in idle if piece.nbytes >= size), None)
        if memory is None:
            memory = np.empty(max(size, self._least), np.uint8)
        values = memory[:size].view(dtype)
        if channels_last:
            array = np.moveaxis(values.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
        else:
            array = values.reshape(shape)
        used = [(piece, user) for piece, user in self._pieces if user() is not None]
        spare = [(piece, user) for piece, user in self._pieces if user() is None and piece is not memory]
        self._pieces = [*used, (memory, weakref.ref(array)), *spare[: _IDLE - 1]]
        return array
