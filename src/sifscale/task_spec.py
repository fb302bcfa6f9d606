"""What a model is made of beside its weights, as plain values that its checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from sifscale.datamodule import Scaler
from sifscale.models import MODELS, PHYSICAL
from sifscale.models.ensemble import Ensemble
from sifscale.models.mc_dropout import McDropout
from sifscale.uncertainty import outputs


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as making its predictors again and judging them depends on it.

    features, coarse: those sections of the run's configuration. units: of the cube's bands, by name. ranges: smallest
    and largest value of each channel on the training part, infinite for codes and classes.
    """

    features: dict[str, Any]
    coarse: dict[str, Any]
    units: dict[str, str]
    ranges: tuple[tuple[float, float], ...]
    window: str
    level: str
    cube_hash: str
    git_commit: str


@dataclass(frozen=True)
class TaskSpec:
    """Everything that prediction needs beside weights; kept in the checkpoint as plain values.

    channels: predictor names in order. block_px: edge of coarse blocks (1: coarse is a smooth field). factor: by
    which SIF is made finer. target, units: what is predicted. members: networks of an ensemble. origin: None in
    checkpoints from before there was prediction of maps. uncertainty: that section of the run's configuration; None
    where predictions have no error bars, as in earlier checkpoints.
    """

    model: dict[str, Any]
    channels: tuple[str, ...]
    scaler: Scaler
    block_px: int
    factor: int
    size: int
    conservation: str
    target: str
    units: str
    members: int = 1
    origin: Origin | None = None
    uncertainty: dict[str, Any] | None = None


@dataclass(frozen=True)
class Optimisation:
    """How weights are learned and judged; see conf/trainer and conf/train.yaml for the meaning of the values."""

    loss: str
    optimiser: str
    learning_rate: float
    weight_decay: float
    schedule: str
    epochs: int
    total_variation_weight: float = 0.0
    conservation_weight: float = 0.0
    cell_px: int | None = None
    cell_min_valid: float = 1.0


def build_model(spec: TaskSpec) -> nn.Module:
    """The network, ensemble of networks or baseline that ``spec.model`` names, freshly initialised."""
    options = {key: value for key, value in spec.model.items() if key not in ("name", "any_size")}
    if spec.model["name"] == "cnn_dense":
        options["size"] = spec.size
    uncertainty = spec.uncertainty or {"name": "none"}
    if outputs(uncertainty) > 1:
        options["outputs"] = outputs(uncertainty)
    if uncertainty["name"] == "mc_dropout":
        options["dropout"] = uncertainty["dropout"]
    if spec.model["name"] in PHYSICAL:
        options |= {"channels": spec.channels, "scaler": spec.scaler}
    make = partial(MODELS[spec.model["name"]], in_channels=len(spec.channels), factor=spec.block_px, **options)
    if uncertainty["name"] == "mc_dropout":
        return McDropout(make(), uncertainty["passes"])
    return Ensemble(make, spec.members) if spec.members > 1 else make()
