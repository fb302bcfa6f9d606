"""The sections of uncertainty: where error bars come from, and what share of the truth their interval is to hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sifscale.config.types import Section, Share

AtLeastTwo = Annotated[int, Field(ge=2)]


class NoUncertainty(Section):
    name: Literal["none"]


class ConstantUncertainty(Section):
    name: Literal["constant"]
    level: Share


class EnsembleUncertainty(Section):
    name: Literal["ensemble"]
    level: Share


class McDropoutUncertainty(Section):
    """dropout: share of channels dropped after each block, in training and in each of the ``passes``."""

    name: Literal["mc_dropout"]
    level: Share
    passes: AtLeastTwo
    dropout: Share


class HeteroscedasticUncertainty(Section):
    name: Literal["heteroscedastic"]
    level: Share
    beta: Annotated[float, Field(ge=0, le=1)]


class QuantileUncertainty(Section):
    name: Literal["quantile"]
    level: Share


Uncertainty = Annotated[
    NoUncertainty
    | ConstantUncertainty
    | EnsembleUncertainty
    | McDropoutUncertainty
    | HeteroscedasticUncertainty
    | QuantileUncertainty,
    Field(discriminator="name"),
]
