"""The sections of models: what each of them can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sifscale.config.types import Odd, PositiveInt, Section

Strengths = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)]


class UNetConfig(Section):
    name: Literal["unet"]
    widths: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
    bottleneck: PositiveInt
    kernel_size: Odd
    convolutions: PositiveInt
    norm: Literal["none", "batch", "group"]
    upsampling: Literal["transposed", "bilinear", "nearest"]
    upsampling_relu: bool
    dropout: Annotated[float, Field(ge=0, lt=1)]
    residual: bool
    any_size: bool  # True: odd sizes are interpolated to the skip's (the notebook's 40 px at depth 4)


class SIFNetConfig(Section):
    name: Literal["sifnet"]
    variant: Literal["benchmark", "large", "small"]
    residual: bool


class NIRvRatioConfig(Section):
    name: Literal["nirv_ratio"]
    floor: Annotated[float, Field(gt=0)]
    ratio: Literal["block", "footprint"]


class LightUseConfig(Section):
    name: Literal["lue"]
    vegetation: str
    evapotranspiration: str | None
    temperature: str | None


class RidgeConfig(Section):
    name: Literal["ridge"]
    strengths: Strengths


class DeconvolutionConfig(Section):
    name: Literal["deconvolution"]
    kernel: Odd
    strengths: Strengths


class RandomForestConfig(Section):
    name: Literal["random_forest"]
    trees: PositiveInt
    min_leaf: PositiveInt
    max_features: Annotated[float, Field(gt=0, le=1)]
    max_pixels: PositiveInt


class GradientBoostingConfig(Section):
    name: Literal["gradient_boosting"]
    iterations: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]
    max_leaves: Annotated[int, Field(ge=2)]
    min_leaf: PositiveInt
    max_pixels: PositiveInt


class PersistenceConfig(Section):
    name: Literal["persistence"]


class CNNDenseConfig(Section):
    name: Literal["cnn_dense"]


class InterpolationConfig(Section):
    name: Literal["identity", "nearest", "bilinear", "bicubic"]
