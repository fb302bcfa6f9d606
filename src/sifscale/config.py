"""Typed run configuration: YAML holds every value, this room holds types, ranges and relations.

The only room that knows OmegaConf. Entry points call :func:`load` on what Hydra composed; everything downstream
gets frozen, validated objects. Heavy libraries (torch, mlflow, xarray) are not imported here, so that help and a
refused configuration answer in about a second.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
)
from pydantic import field_validator as check_field

PROJECT_ROOT = Path(__file__).resolve().parents[2]

# ${root:mlflow.db} in YAML: a path below the project, whichever directory the command is started from.
OmegaConf.register_new_resolver("root", lambda path: str(PROJECT_ROOT / path), replace=True)

LBP_DIRECTIONAL = ("default", "nri_uniform")  # codes that name directions: they change when a picture is turned
LBP_ENCODINGS = {
    "default": ("bits", "scaled"),
    "ror": ("bits", "scaled"),
    "uniform": ("onehot", "scaled"),
    "nri_uniform": ("onehot", "scaled"),
    "var": ("raw",),
}
UNIONS = ("window", "crop", "split", "model")  # sections with several forms, told apart by name or source
OSSE_BANDS = ("ndvi", "evi", "red", "nir", "blue", "mir")

RULES = {  # pydantic's kinds of fault, in the words of someone who writes YAML
    "missing": "must be given",
    "union_tag_not_found": "must be given",
    "union_tag_invalid": "must be one of {expected_tags}",
    "extra_forbidden": "is no key of this section; remove it or correct its spelling",
    "model_type": "must be a section of keys and values",
    "model_attributes_type": "must be a section of keys and values",
    "dict_type": "must be a section of keys and values",
    "tuple_type": "must be a list",
    "too_short": "must hold {min_length} or more values",
    "too_long": "must hold {max_length} or fewer values",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
}


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


class ConfigError(ValueError):
    """A configuration that cannot be run; ``faults`` holds one line a fault: key, rule, value found."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


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
    model: Annotated[UNetConfig | SIFNetConfig | CNNDenseConfig | InterpolationConfig, Field(discriminator="name")]
    trainer: Trainer
    tracking: Tracking

    @property
    def label(self) -> str:
        """How a reader tells this run from its neighbours: the study's arm, or model and features."""
        return self.arm or f"{self.model.name} {self.features.name}"


S = TypeVar("S", bound=BuildConfig)


def relation_faults(run: RunConfig) -> list[str]:
    """Rules between groups, each broken one as a line ``key: rule (found value)``."""
    return [*_crop_faults(run), *_feature_faults(run)]


def _crop_faults(run: RunConfig) -> list[str]:
    faults = []
    size, model = run.crop.size, run.model
    if isinstance(model, UNetConfig) and not model.any_size and size % 2 ** len(model.widths):
        faults.append(
            f"crop.size: must be a multiple of 2**depth = {2 ** len(model.widths)} for model.widths of "
            f"{len(model.widths)} levels (found {size})"
        )
    if isinstance(model, CNNDenseConfig) and size % 8:
        faults.append(f"crop.size: must be a multiple of 8 for model.name=cnn_dense (found {size})")
    if size % run.coarse.block_px:
        faults.append(
            f"crop.size: must be a multiple of coarse.factor = {run.coarse.factor}, so that no coarse cell is cut "
            f"(found {size})"
        )
    if isinstance(run.crop, SlidingCrop) and run.crop.stride % run.coarse.block_px:
        factor, stride = run.coarse.factor, run.crop.stride
        faults.append(f"crop.stride: must be a multiple of coarse.factor = {factor} (found {stride})")
    if isinstance(run.split, BlocksSplit) and size > min(run.split.block):
        faults.append(f"crop.size: must not exceed the block, split.block = {list(run.split.block)} (found {size})")
    if isinstance(run.window, OsseWindow) and size > min(run.window.height_px, run.window.width_px):
        faults.append(
            f"crop.size: must not exceed the sample of {run.window.height_px} x {run.window.width_px} px (found {size})"
        )
    if run.crop.augment and any(lbp.method in LBP_DIRECTIONAL for lbp in run.features.lbp):
        faults.append(
            "crop.augment: must be false where features.lbp has a method that names directions (default, nri_uniform), "
            "since turning a picture would turn its codes (found True)"
        )
    return faults


def _feature_faults(run: RunConfig) -> list[str]:
    faults = []
    window, features = run.window, run.features
    native = (*window.bands, *(("nirv",) if {"ndvi", "nir"} <= set(window.bands) else ()))
    known = ("coarse", *native, *(f"coarse_{band}" for band in native))
    asked = [(f"features.bands[{i}]", band) for i, band in enumerate(features.bands)]
    asked += [(f"features.lbp[{i}].source", lbp.source) for i, lbp in enumerate(features.lbp)]
    if features.local_stats:
        asked += [(f"features.local_stats.bands[{i}]", b) for i, b in enumerate(features.local_stats.bands)]
    for key, band in asked:
        if band == window.target:
            faults.append(f"{key}: must not be the target of the window; use 'coarse' (found '{band}')")
        elif band not in known:
            faults.append(f"{key}: must be coarse, {', '.join(native)} or coarse_ before one of these (found '{band}')")
    if run.coarse.method == "given" and not (isinstance(window, TableWindow) and window.has_given_coarse):
        faults.append("coarse.method: window has no given coarse field; use block_mean or moving_mean (found 'given')")
    if run.coarse.method == "moving_mean" and run.coarse.factor % 2 == 0:
        faults.append(f"coarse.factor: must be odd for coarse.method=moving_mean (found {run.coarse.factor})")
    if features.select and (features.select.top is None) == (features.select.min_correlation is None):
        found = features.select.model_dump()
        faults.append(f"features.select: must give either top or min_correlation (found {found})")
    return faults


def validate(values: Any, section: type[S]) -> S:
    """Validated configuration from plain values; raises ConfigError with every fault at once."""
    try:
        config = section.model_validate(values)
    except ValidationError as error:
        details = [detail for detail in error.errors() if not _is_echo(detail)]
        raise ConfigError([_fault_line(detail) for detail in details]) from None
    faults = relation_faults(config) if isinstance(config, RunConfig) else []
    if faults:
        raise ConfigError(faults)
    return config


def _is_echo(detail: Any) -> bool:
    """Whether a list is called too short only because its faulty values (reported anyway) do not count."""
    return bool(detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"])


def _fault_line(detail: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    first, *rest = detail["loc"] or ("configuration",)
    if first in UNIONS:  # pydantic names the chosen member after the key; the user never wrote it
        rest = rest[1:]
    if "discriminator" in context:  # the fault lies in the key that chooses the member
        rest = [context["discriminator"].strip("'")]
    key = str(first) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
    if kind in RULES:
        rule = RULES[kind].format(**context)
    else:
        rule = detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
    nothing = kind in ("missing", "union_tag_not_found")
    found = "nothing" if nothing else repr(context.get("tag", detail["input"]))
    return f"{key}: {rule} (found {found if len(found) < 200 else found[:200] + ' ...'})"


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Composed configuration as resolved plain values; raises ConfigError for ``???`` and broken ``${...}``."""
    if "hydra" in cfg:  # a sweep's callback gets it with that node
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    written = dict(_leaves(OmegaConf.to_container(cfg, resolve=False), ""))
    missing = sorted(key for key, value in written.items() if value == "???")
    if missing:
        raise ConfigError([f"{key}: must be given, there is no default (found ???)" for key in missing])
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        key, message = error.full_key or "configuration", str(error).splitlines()[0]
        raise ConfigError([f"{key}: cannot be resolved, {message} (found {written.get(key)})"]) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value as it is written in YAML, with its full key."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from _leaves(child, f"{key}[{number}]")
    else:
        yield key, node


def load(cfg: DictConfig, section: type[S]) -> S:
    """Validated configuration from what Hydra composed; raises ConfigError."""
    return validate(plain(cfg), section)


def refuse(error: ValueError) -> NoReturn:
    """Print a clear error (one line a fault) to standard error and leave with exit code 1."""
    lines = error.faults if isinstance(error, ConfigError) else [str(error)]
    print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
    sys.exit(1)


def digest(*parts: Any) -> str:
    """Short stable hash of configuration sections and plain values; names caches and tags runs."""
    plain_parts = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain_parts, sort_keys=True).encode()).hexdigest()[:16]
