"""The sections of a configuration: types and ranges of every value, as frozen objects that refuse unknown keys."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationInfo
from pydantic import field_validator as check_field

LBP_ENCODINGS = {
    "default": ("bits", "scaled"),
    "ror": ("bits", "scaled"),
    "uniform": ("onehot", "scaled"),
    "nri_uniform": ("onehot", "scaled"),
    "var": ("raw",),
}
OSSE_BANDS = ("ndvi", "evi", "red", "nir", "blue", "mir")


def _day(value: object) -> date:
    """A day from YAML; pydantic alone would read the number 0 as 1970-01-01."""
    try:
        if isinstance(value, str):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise ValueError("must be a day such as 2019-05-25")


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must not name anything twice")
    return values


PositiveInt = Annotated[int, Strict(), Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Bands = Annotated[Names, AfterValidator(_distinct)]
Day = Annotated[date, BeforeValidator(_day)]


class Section(BaseModel):
    """A frozen node of the configuration that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Paths(Section):
    raw: str
    data: str
    output: str


class TableFile(Section):
    path: str
    start: Day
    end: Day
    coarse_path: str | None

    @check_field("end")
    @classmethod
    def _not_reversed(cls, end: date, info: ValidationInfo) -> date:
        start = info.data.get("start")
        if start is not None and end < start:
            raise ValueError(f"must not be earlier than start ({start})")
        return end


class Window(Section):
    """What is studied; ``factor`` is the integer by which native SIF is made coarser for training."""

    name: str
    place: str
    crs: str
    target: str
    units: dict[str, str]
    factor: Annotated[int, Field(ge=2)]

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the predictor bands that the cube of this window holds."""
        raise NotImplementedError


class TableWindow(Window):
    source: Literal["table"]
    longitude: str
    latitude: str
    files: Annotated[tuple[TableFile, ...], Field(strict=False, min_length=1)]
    columns: dict[str, Names]
    scale: dict[str, float]

    @check_field("columns")
    @classmethod
    def _holds_target(cls, columns: dict[str, Names], info: ValidationInfo) -> dict[str, Names]:
        target = info.data.get("target")
        if target is not None and target not in columns:
            raise ValueError(f"must name the columns of window.target ('{target}')")
        return columns

    @property
    def bands(self) -> tuple[str, ...]:
        return tuple(band for band in self.columns if band != self.target)

    @property
    def has_given_coarse(self) -> bool:
        """Whether every file comes with a table of the coarse field."""
        return all(file.coarse_path for file in self.files)


class OsseWindow(Window):
    source: Literal["osse"]
    start: Day
    periods: PositiveInt
    period_days: PositiveInt
    height_px: PositiveInt
    width_px: PositiveInt
    pixel_m: Annotated[float, Field(gt=0)]
    west_m: float
    north_m: float
    seed: Annotated[int, Field(ge=0)]
    sounding_noise: Annotated[float, Field(ge=0)]
    soundings_per_cell: Annotated[float, Field(gt=0)]
    missing_share: Annotated[float, Field(ge=0, lt=1)]

    @property
    def bands(self) -> tuple[str, ...]:
        return OSSE_BANDS


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


class BlocksSplit(Section):
    name: Literal["blocks"]
    block: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
    folds: Annotated[int, Field(ge=3)]
    fold: Annotated[int, Field(ge=0)]
    guard_px: Annotated[int, Field(ge=0)]
    assignment: Literal["contiguous", "random"]

    @check_field("fold")
    @classmethod
    def _fold_exists(cls, fold: int, info: ValidationInfo) -> int:
        folds = info.data.get("folds")
        if folds is not None and fold >= folds:
            raise ValueError(f"must be smaller than split.folds ({folds})")
        return fold


class HoldOutSplit(Section):
    """``time``: the last composites are the test; ``samples``: whole places are drawn for the test."""

    name: Literal["time", "samples"]
    test_share: Share
    validation_share: Annotated[float, Field(ge=0, lt=1)]  # 0: no validation, the last epoch is kept

    @check_field("validation_share")
    @classmethod
    def _train_remains(cls, share: float, info: ValidationInfo) -> float:
        test = info.data.get("test_share")
        if test is not None and test + share >= 1:
            raise ValueError(f"must leave something to train on beside split.test_share ({test})")
        return share


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
    window_px: Annotated[int, Field(ge=3)]

    @check_field("window_px")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError("must be odd, so that the window has a centre")
        return size


class Select(Section):
    """Keep the bands most correlated with coarse SIF on the training part: the ``top`` k, or |r| >= a threshold."""

    top: PositiveInt | None = None
    min_correlation: Annotated[float, Field(gt=0, lt=1)] | None = None


class LegacyFeatures(Section):
    """The notebooks' own features and scaling (``legacy.py``); the first two read the target or leak through it."""

    difference: bool
    lbp: bool
    minmax_everything: bool
    zero_gaps: bool


class Features(Section):
    name: str
    bands: Bands
    select: Select | None
    lbp: Annotated[tuple[LbpFeature, ...], Field(strict=False), AfterValidator(_distinct)]
    local_stats: LocalStats | None
    legacy: LegacyFeatures | None


class Normalisation(Section):
    method: Literal["zscore", "minmax", "none"]
    fit: Literal["train", "everything"]


class UNetConfig(Section):
    name: Literal["unet"]
    widths: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
    bottleneck: PositiveInt
    kernel_size: PositiveInt
    convolutions: PositiveInt
    norm: Literal["none", "batch", "group"]
    upsampling: Literal["transposed", "bilinear", "nearest"]
    upsampling_relu: bool
    dropout: Annotated[float, Field(ge=0, lt=1)]
    residual: bool
    any_size: bool  # True: odd sizes are interpolated to the skip's (the notebook's 40 px at depth 4)

    @check_field("kernel_size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError("must be odd, so that the size of the picture is kept")
        return size


class SIFNetConfig(Section):
    name: Literal["sifnet"]
    variant: Literal["benchmark", "large", "small"]
    residual: bool


class CNNDenseConfig(Section):
    name: Literal["cnn_dense"]


class InterpolationConfig(Section):
    name: Literal["identity", "nearest", "bilinear", "bicubic"]


class Trainer(Section):
    accelerator: Literal["cpu", "gpu", "auto"]
    devices: PositiveInt
    strategy: Literal["auto", "ddp"]
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    threads: Annotated[int, Field(ge=0)]  # 0: leave it to torch
    epochs: PositiveInt
    batch_size: PositiveInt
    loss: Literal["mse", "mae", "huber"]
    optimiser: Literal["adam", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "cosine"]
    patience: PositiveInt | None
    progress: bool
    memory_limit_mb: PositiveInt


class Tracking(Section):
    uri: str
    experiment: str
    artifacts: str


class Study(Section):
    """A named comparison; ``reference`` holds published figures by arm, shown beside ours."""

    name: str
    title: str
    pool: Literal["folds", "none"]
    reference: dict[str, dict[str, float]]


class BuildConfig(Section):
    """What ``build.py`` needs: a window and where files lie."""

    paths: Paths
    window: Annotated[TableWindow | OsseWindow, Field(discriminator="source")]


class RunConfig(BuildConfig):
    """One training run, complete."""

    study: Study | None
    arm: str | None
    protocol: Literal["honest", "legacy"]
    seed: Annotated[int, Field(ge=0)]
    check: bool
    resume: str | None
    coarse: Coarse
    conservation: Literal["none", "additive"]
    crop: Annotated[RandomCrop | SlidingCrop, Field(discriminator="name")]
    split: Annotated[BlocksSplit | HoldOutSplit | LegacySplit, Field(discriminator="name")]
    features: Features
    normalisation: Normalisation
    model: Annotated[
        UNetConfig | SIFNetConfig | CNNDenseConfig | InterpolationConfig, Field(discriminator="name")
    ]
    trainer: Trainer
    tracking: Tracking

    @property
    def label(self) -> str:
        """How a reader tells this run from its neighbours: the study's arm, or model and features."""
        return self.arm or f"{self.model.name} {self.features.name}"
