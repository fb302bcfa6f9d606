"""What a search can be told: the keys of ``hydra.sweeper`` for ``hydra/sweeper=optuna``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo
from pydantic import field_validator as check_field

from sifscale.config.types import PositiveInt, Section

METRICS = ("val/rmse", "val/mae", "val/r2", "val/loss", "val/cells_rmse")
Count = Annotated[int, Field(ge=0)]


class MedianOptions(Section):
    """Stop a run whose best so far is worse than the median of the finished ones at the same epoch."""

    startup_trials: Count
    warmup_epochs: Count


class HyperbandOptions(Section):
    """Successive halving with several budgets (Li et al. 2018); ``max_epochs: auto`` is learned from finished runs."""

    min_epochs: PositiveInt
    max_epochs: PositiveInt | Literal["auto"]
    reduction_factor: Annotated[int, Field(ge=2)]


class SearchOptions(Section):
    """A search: where it is kept, what it judges by, how long it goes on, how it draws and what it draws from.

    trial: in the configuration of a run, the number of the trial that it is.
    """

    target: str = Field(alias="_target_")
    study_name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")] | None
    storage: str | None
    metric: str
    direction: Literal["minimize", "maximize"]
    n_trials: PositiveInt
    n_jobs: PositiveInt | None
    max_failures: PositiveInt
    seed: Count
    sampler: Literal["tpe", "random"]
    startup_trials: Count
    pruner: Literal["median", "hyperband", "none"]
    median: MedianOptions
    hyperband: HyperbandOptions
    trial: int | None
    params: dict[str, str | bool | int | float]

    @check_field("metric")
    @classmethod
    def _of_validation(cls, metric: str) -> str:
        if metric.startswith(("test/", "truth/", "cells/")):
            raise ValueError(
                f"must be a score of the validation part, {', '.join(METRICS)}: what is chosen by the test or the "
                "truth cannot be judged by it any more"
            )
        if metric not in METRICS:
            raise ValueError(f"must be one of {', '.join(METRICS)}")
        return metric

    @check_field("direction")
    @classmethod
    def _towards_better(cls, direction: str, info: ValidationInfo) -> str:
        metric = info.data.get("metric")
        if metric and direction != ("maximize" if metric == "val/r2" else "minimize"):
            raise ValueError(f"must lead to better models by metric {metric}: minimize errors, maximize val/r2")
        return direction
