"""The section of ``explain.py``: which model, and how closely what it uses is looked at."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sifscale.config.sections import Dask, Paths, Tracking
from sifscale.config.types import PositiveInt, Section


class ExplainConfig(Section):
    """What ``explain.py`` needs; see conf/explain.yaml for the meaning of the values. The window is the run's own."""

    paths: Paths
    dask: Dask
    run: Annotated[str, Field(min_length=1)]
    repeats: PositiveInt
    integrated_gradients: bool
    steps: Annotated[int, Field(ge=2)]
    max_crops: Annotated[int, Field(ge=2)] | None
    seed: Annotated[int, Field(ge=0)]
    threads: Annotated[int, Field(ge=0)]
    progress: bool
    tracking: Tracking
