"""Persistence: SIF stays as another composite of the same place showed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sifscale.config import ConfigError
from sifscale.datamodule import Scaler
from sifscale.features import Channel, FeatureCube
from sifscale.splits import TRAIN

CHANNEL = "other composite"


def with_other_composite(features: FeatureCube, parts: NDArray[np.int8]) -> FeatureCube:
    """The feature cube with one more predictor: SIF of the composite nearest in time, from the train part only.

    parts (sample, y, x): see `splits`. Gaps are filled from the next nearest composite of the place, what then is
    left from the sample's own coarse field. Reads everything. ConfigError where no sample of the test or validation
    part has a composite of its place in the train part.
    """
    target, parts = np.asarray(features.target), np.broadcast_to(parts, features.coarse.shape)
    known = np.asarray(features.valid) & (parts == TRAIN)
    other = np.full_like(target, np.nan)
    for sample, (place, time) in enumerate(zip(features.places, features.times, strict=True)):
        for candidate in np.argsort(np.abs(features.times - time), kind="stable"):
            if candidate != sample and features.places[candidate] == place:
                use = known[candidate] & np.isnan(other[sample])
                other[sample][use] = target[candidate][use]
    if not np.isfinite(other[(parts != TRAIN).any(axis=(1, 2))]).any():
        rule = "must leave composites of the tested places to the train part for model.name=persistence"
        raise ConfigError([f"split: {rule} (found none)"])
    filled = np.where(np.isnan(other), np.asarray(features.coarse), other).astype(np.float32)
    return replace(
        features,
        channels=(*features.channels, Channel(CHANNEL, False)),
        predictors=np.concatenate([np.asarray(features.predictors), filled[:, None]], axis=1),
    )


class Persistence(nn.Module):
    """Returns the channel that `with_other_composite` adds. Has no parameters; the scaler says what 1 means."""

    def __init__(self, *, in_channels: int, factor: int, channels: Sequence[str], scaler: Scaler) -> None:
        super().__init__()
        if CHANNEL not in channels:
            raise ValueError(f"persistence needs the channel '{CHANNEL}', found {', '.join(channels)}: add it")
        self.index, self.scaler = list(channels).index(CHANNEL), scaler

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, 1, H, W), normalised as `coarse` is; `coarse` itself is not read."""
        other = predictors[:, self.index : self.index + 1]  # in physical units: it is not scaled as a predictor
        return (other - self.scaler.target_offset) / self.scaler.target_scale
