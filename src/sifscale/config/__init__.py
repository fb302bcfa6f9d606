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
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from sifscale.config.compare_sections import CompareConfig, SoundingsCheck
from sifscale.config.explain_sections import ExplainConfig
from sifscale.config.model_sections import (
    CNNDenseConfig,
    InterpolationConfig,
    NIRvRatioConfig,
    PersistenceConfig,
    SIFNetConfig,
    UNetConfig,
)
from sifscale.config.predict_sections import PredictConfig
from sifscale.config.relations import relation_faults
from sifscale.config.sections import (
    FOOTPRINT_SIF,
    NIRV_SOURCES,
    WITHOUT_TRUTH,
    BlocksSplit,
    BuildCommand,
    BuildConfig,
    Coarse,
    Dask,
    Features,
    LbpFeature,
    LegacyFeatures,
    LegacySplit,
    LocalStats,
    Normalisation,
    Paths,
    PlacesSplit,
    RandomCrop,
    RunConfig,
    SamplesSplit,
    Select,
    SendConfig,
    SlidingCrop,
    Study,
    TimeSplit,
    Tracking,
    Trainer,
)
from sifscale.config.types import Section
from sifscale.config.uncertainty_sections import NoUncertainty
from sifscale.config.window_sections import (
    Cover,
    GriddedWindow,
    Gridding,
    GridSection,
    Layer,
    OsseWindow,
    PatchWindow,
    PeriodSection,
    Resampling,
    SatelliteWindow,
    Simulation,
    SoundingQuality,
    Soundings,
    Suggested,
    TableFile,
    TableWindow,
    Vegetation,
    VegetationBand,
    VegetationQualitySection,
    Window,
)

__all__ = [
    "BlocksSplit",
    "BuildCommand",
    "BuildConfig",
    "CNNDenseConfig",
    "Coarse",
    "CompareConfig",
    "ConfigError",
    "Cover",
    "Dask",
    "ExplainConfig",
    "Features",
    "GridSection",
    "GriddedWindow",
    "Gridding",
    "InterpolationConfig",
    "Layer",
    "LbpFeature",
    "LegacyFeatures",
    "LegacySplit",
    "LocalStats",
    "FOOTPRINT_SIF",
    "NIRV_SOURCES",
    "NIRvRatioConfig",
    "NoUncertainty",
    "Normalisation",
    "OsseWindow",
    "PROJECT_ROOT",
    "PatchWindow",
    "Paths",
    "PersistenceConfig",
    "PlacesSplit",
    "PredictConfig",
    "PeriodSection",
    "RandomCrop",
    "Resampling",
    "RunConfig",
    "SIFNetConfig",
    "SamplesSplit",
    "SatelliteWindow",
    "Section",
    "Select",
    "SendConfig",
    "Simulation",
    "SlidingCrop",
    "SoundingQuality",
    "Soundings",
    "SoundingsCheck",
    "Suggested",
    "Study",
    "TableFile",
    "TableWindow",
    "TimeSplit",
    "Tracking",
    "Trainer",
    "UNetConfig",
    "Vegetation",
    "VegetationBand",
    "VegetationQualitySection",
    "WITHOUT_TRUTH",
    "Window",
    "digest",
    "load",
    "plain",
    "refuse",
    "validate",
]

PROJECT_ROOT = Path(__file__).resolve().parents[3]

# ${root:mlflow.db} in YAML: a path below the project, whichever directory the command is started from.
OmegaConf.register_new_resolver("root", lambda path: str(PROJECT_ROOT / path), replace=True)
# Made for studies: ${join:${model.widths},-} gives 16-32-64, for names of arms; ${last:${model.widths}} gives 64.
OmegaConf.register_new_resolver("join", lambda values, by=" ": by.join(map(str, values)), replace=True)
OmegaConf.register_new_resolver("last", lambda values: values[-1], replace=True)

UNIONS = ("window", "crop", "split", "model", "uncertainty")  # sections with several forms, by name or source

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


class ConfigError(ValueError):
    """A configuration that cannot be run; ``faults`` holds one line a fault: key, rule, value found."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


S = TypeVar("S", bound=Section)


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
