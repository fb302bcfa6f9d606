"""The section of ``predict.py``: which model maps which window, and into what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo
from pydantic import field_validator as check_field

from sifscale.config.sections import BuildConfig, Tracking
from sifscale.config.types import PositiveInt


class PredictConfig(BuildConfig):
    """What ``predict.py`` needs; see conf/predict.yaml for the meaning of the values."""

    run: Annotated[str, Field(min_length=1)]
    level: Literal["fine", "native"] | None
    factor: Literal["as_trained", "any"]
    conservation: Literal["as_trained", "none", "additive", "multiplicative", "smooth"]
    fill_gaps: bool
    missing_predictors: Literal["fill", "leave_out"]
    format: Literal["zarr", "netcdf", "cog"]
    output: str | None
    pictures: bool
    tile_px: PositiveInt
    batch_size: PositiveInt
    accelerator: Literal["cpu", "gpu"]
    precision: Literal["32-true", "bf16-mixed"]
    threads: Annotated[int, Field(ge=0)]
    progress: bool
    tracking: Tracking

    @check_field("output")
    @classmethod
    def _is_new_or_a_map(cls, output: str | None, info: ValidationInfo) -> str | None:
        suffix = {"zarr": ".zarr", "netcdf": ".nc", "cog": ""}.get(info.data.get("format", ""))
        if output is not None and suffix is not None and Path(output).suffix != suffix:
            raise ValueError(f"must end in {suffix or 'no suffix, as a folder does,'} for format={info.data['format']}")
        return output
