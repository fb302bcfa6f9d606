"""Functions on arrays, compiled by numba."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from numba import njit

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def compiled(function: Callable[_Args, _Result], **options: Any) -> Callable[_Args, _Result]:
    """Compile on first call. Without FMA or reordering, unless ``options`` (of numba's njit) ask for it.

    What was compiled is kept in `__pycache__`, or where that cannot be written in NUMBA_CACHE_DIR or the user's
    cache folder. GIL released and threads from Python instead of `parallel=True`: numba's pool dies in forked
    workers (OpenMP) or under Dask's threads (workqueue).
    """
    make = partial(njit, nogil=True, error_model="numpy", **options)
    try:
        found = make(cache=True)(function)
    except RuntimeError:  # numba found no folder to write to: each process compiles for itself
        found = make()(function)
    return cast("Callable[_Args, _Result]", found)
