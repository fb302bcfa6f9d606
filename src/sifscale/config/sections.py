"""The sections of a configuration: types and ranges of every value, as frozen objects that refuse unknown keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic import field_validator as check_field

from sifscale.config.model_sections import (
    CNNDenseConfig,
    DeconvolutionConfig,
    GradientBoostingConfig,
    InterpolationConfig,
    LightUseConfig,
    NIRvRatioConfig,
    PersistenceConfig,
    RandomForestConfig,
    RidgeConfig,
    SIFNetConfig,
    Strengths,
    UNetConfig,
)
from sifscale.config.types import Bands, Odd, PositiveInt, Section, Share, distinct
from sifscale.config.uncertainty_sections import Uncertainty
from sifscale.config.window_sections import GriddedWindow, OsseWindow, PatchWindow, SatelliteWindow, TableWindow

LBP_ENCODINGS = {
    "default": ("bits", "scaled"),
    "ror": ("bits", "scaled"),
    "uniform": ("onehot", "scaled"),
    "nri_uniform": ("onehot", "scaled"),
    "var": ("raw",),
}

WITHOUT_TRUTH = ("aggregate", "footprints")  # losses that read no fine target

# NIRv = NDVI x NIR, and NDVI comes from red and NIR: the bands that nirv_ratio may work with, the best first.
FOOTPRINT_SIF = "sif_by_footprint"  # a band made of NIRv and the footprint weights of native SIF, on the fine grid
NIRV_SOURCES = (("nirv",), ("ndvi", "nir"), ("red", "nir"))


class Paths(Section):
    raw: str
    data: str
    output: str


class Coarse(Section):
    method: Literal["block_mean", "moving_mean", "given"]
    factor: Annotated[int, Field(ge=2)]

    @property
    def block_px(self) -> int:
        """Edge of the blocks that share one coarse value; 1 where coarse is no block mean."""
        return self.factor if self.method == "block_mean" else 1


class RandomCrop(Section):
    name: Literal["random"]
    size: PositiveInt
    number: PositiveInt
    min_valid: Annotated[float, Field(ge=0, le=1)]
    augment: bool


class SlidingCrop(Section):
    name: Literal["sliding"]
    size: PositiveInt
    stride: PositiveInt
    min_valid: Annotated[float, Field(ge=0, le=1)]
    augment: bool


class _Folds(Section):
    """Cross-validation with k folds: fold i is the test, fold i+1 the validation; all: each in turn, pooled."""

    k: Annotated[int, Field(ge=3)]
    folds: int | Literal["all"]

    @check_field("folds", mode="plain")
    @classmethod
    def _fold_exists(cls, folds: object, info: ValidationInfo) -> object:
        k = info.data.get("k")
        if folds == "all" or (type(folds) is int and 0 <= folds < (k or folds + 1)):
            return folds
        raise ValueError("must be all, or a fold from 0" + (f" to split.k - 1 = {k - 1}" if k else ""))

    @property
    def fold(self) -> int:
        """The fold that is tested; ValueError where it is every one in turn."""
        if isinstance(self.folds, str):
            raise ValueError("split.folds: must be one fold here (found 'all')")
        return self.folds


class BlocksSplit(_Folds):
    name: Literal["blocks"]
    block: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
    guard_px: Annotated[int, Field(ge=0)]
    assignment: Literal["contiguous", "random"]


class _HoldOut(Section):
    test_share: Share
    validation_share: Annotated[float, Field(ge=0, lt=1)]  # 0: no validation, the last epoch is kept

    @check_field("validation_share")
    @classmethod
    def _train_remains(cls, share: float, info: ValidationInfo) -> float:
        test = info.data.get("test_share")
        if test is not None and test + share >= 1:
            raise ValueError(f"must leave something to train on beside split.test_share ({test})")
        return share


class TimeSplit(_HoldOut):
    """The ``tested`` composites are the test, their neighbours in time the validation."""

    name: Literal["time"]
    tested: Literal["last", "first"]


class SamplesSplit(_HoldOut):
    """Whole places are drawn for the test."""

    name: Literal["samples"]


class PlacesSplit(_Folds):
    """Whole groups of places in ``folds``: fold i is the test, fold i+1 the validation."""

    name: Literal["places"]


class LegacySplit(Section):
    name: Literal["legacy"]
    test_share: Share


class LbpFeature(Section):
    source: str
    method: Literal["default", "ror", "uniform", "nri_uniform", "var"]
    points: Annotated[int, Field(ge=1, le=32)]
    radius: Annotated[float, Field(gt=0)]
    encoding: Literal["bits", "onehot", "scaled", "raw"]

    @check_field("encoding")
    @classmethod
    def _goes_with_method(cls, encoding: str, info: ValidationInfo) -> str:
        method = info.data.get("method")
        if method is not None and encoding not in LBP_ENCODINGS[method]:
            raise ValueError(f"must be {' or '.join(LBP_ENCODINGS[method])} for method {method}")
        return encoding


class LocalStats(Section):
    bands: Bands
    window_px: Annotated[Odd, Field(ge=3)]


class Select(Section):
    """Keep the bands most correlated with coarse SIF on the training part: the ``top`` k, or |r| >= a threshold."""

    top: PositiveInt | None = None
    min_correlation: Annotated[float, Field(gt=0, lt=1)] | None = None


class LegacyFeatures(Section):
    """The notebooks' own features and scaling (``legacy.py``); the first two read the target or leak through it."""

    difference: bool
    lbp: bool
    lbp_source: str  # coarse, as in the notebooks, or one of features.bands
    minmax_everything: bool
    zero_gaps: bool


class Features(Section):
    name: str
    bands: Bands
    select: Select | None
    lbp: Annotated[tuple[LbpFeature, ...], Field(strict=False), AfterValidator(distinct)]
    local_stats: LocalStats | None
    legacy: LegacyFeatures | None
    stored_as: Literal["float32", "int16"] = "float32"  # not required: checkpoints of earlier versions lack it


class Normalisation(Section):
    method: Literal["zscore", "minmax", "none"]
    fit: Literal["train", "everything"]


class Trainer(Section):
    accelerator: Literal["cpu", "gpu", "auto"]
    devices: PositiveInt
    strategy: Literal["auto", "ddp"]
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    channels_last: bool
    compile: bool = False  # not required, so that configurations of earlier runs can be read
    threads: Annotated[int, Field(ge=0)]  # 0: leave it to torch
    epochs: PositiveInt
    batch_size: PositiveInt
    members: PositiveInt
    loss: Literal["mse", "mae", "huber", "error_weighted", "cells", "dssim", "spectral", "aggregate", "footprints"]
    total_variation_weight: Annotated[float, Field(ge=0)]
    optimiser: Literal["adam", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "cosine", "one_cycle"]
    average: Literal["none", "ema", "swa"]
    average_decay: Annotated[float, Field(gt=0, lt=1)]
    keep: Literal["best", "last"]
    patience: PositiveInt | None
    progress: bool
    memory_limit_mb: PositiveInt
    checkpoint_minutes: Annotated[float, Field(gt=0)] | None = None  # not required, as compile


class Evaluation(Section):
    """What is scored beside pixels: means over cells of ``cell_px`` of which ``cell_min_valid`` is scored.

    ridge: penalties of the ridge regression that is fitted as a reference beside every model. details: structure, and
    errors by group of pixels. figures: pictures of the run.
    """

    cell_px: PositiveInt | None
    cell_min_valid: Annotated[float, Field(ge=0, le=1)]
    ridge: Strengths | None
    details: bool
    figures: bool


class Tracking(Section):
    """Where runs are logged, and what of them beside figures; see conf/tracking/mlflow.yaml."""

    uri: str
    experiment: str
    artifacts: str
    # not required, so that runs can be read with what says where they are
    unsent: str | None = None
    system_metrics: bool = False
    log_model: bool = False
    register_as: Annotated[str, Field(pattern=r"^[^/:]+$")] | None = None  # auto: sifscale-WINDOW


class Study(Section):
    """A named comparison; ``reference`` holds published figures by arm, shown beside ours.

    baseline: the arm that every other is compared with, by the paired block bootstrap; null: no comparison. score: on
    what: test (all pixels), cells (evaluation.cell_px) or truth (fine pixels of a simulation).
    """

    name: str
    title: str
    pool: Literal["folds", "none"]
    baseline: str | None = None  # not required, so that tables of earlier studies can still be read
    reference: dict[str, dict[str, float]]
    score: Literal["test", "cells", "truth"] = "test"


class Dask(Section):
    """Who does the work of building cubes and feature cubes; ``scheduler`` may be the address of a cluster."""

    scheduler: Annotated[str, Field(pattern=r"^(synchronous|threads|processes|tcp://.+|tls://.+)$")]
    workers: PositiveInt
    memory_limit_mb: PositiveInt | None  # of each worker process


class BuildConfig(Section):
    """What ``build.py`` needs: a window, where files lie and who does the work."""

    paths: Paths
    dask: Dask
    window: Annotated[
        TableWindow | SatelliteWindow | OsseWindow | PatchWindow, Field(discriminator="source")
    ]


class BuildCommand(BuildConfig):
    """What ``build.py`` is asked to do: which steps, and which exports for people with other tools."""

    step: Literal["all", "raw", "cube"]
    export: Literal["csv", "parquet", "netcdf", "cog"] | None


class RunConfig(BuildConfig):
    """One training run, complete."""

    study: Study | None
    arm: str | None
    protocol: Literal["honest", "legacy"]
    seed: Annotated[int, Field(ge=0)]
    check: bool
    again: bool
    resume: str | None
    level: Literal["native", "fine"]
    coarse: Coarse
    conservation: Literal["none", "additive", "multiplicative", "softmax", "smooth"]
    conservation_weight: Annotated[float, Field(ge=0)]
    crop: Annotated[RandomCrop | SlidingCrop, Field(discriminator="name")]
    split: Annotated[BlocksSplit | PlacesSplit | TimeSplit | SamplesSplit | LegacySplit, Field(discriminator="name")]
    features: Features
    normalisation: Normalisation
    model: Annotated[
        UNetConfig
        | SIFNetConfig
        | CNNDenseConfig
        | InterpolationConfig
        | NIRvRatioConfig
        | LightUseConfig
        | RidgeConfig
        | RandomForestConfig
        | GradientBoostingConfig
        | DeconvolutionConfig
        | PersistenceConfig,
        Field(discriminator="name"),
    ]
    trainer: Trainer
    uncertainty: Uncertainty
    evaluation: Evaluation
    tracking: Tracking

    def finer_by(self, level: Literal["native", "fine"]) -> int:
        """By how much the grid of the target is finer than the native one, where that level is learned or tested."""
        return self.window.grid.fine_factor if level == "fine" and isinstance(self.window, GriddedWindow) else 1

    @property
    def label(self) -> str:
        """How a reader tells this run from its neighbours: the study's arm, or model and features."""
        return self.arm or f"{self.model.name} {self.features.name}"


class SendTracking(Section):
    uri: str | None
    unsent: str


class SendConfig(Section):
    """What ``send.py`` needs: the local store of unsent runs, and where they go (null: where they were meant for)."""

    paths: Paths
    tracking: SendTracking
    progress: bool
