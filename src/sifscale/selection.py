"""Which bands are worth reading? Chosen by their correlation with coarse SIF on the training part."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sifscale.config import ConfigError, Select
from sifscale.features import FeatureCube


def correlations(features: FeatureCube, inside: NDArray[np.bool_]) -> tuple[list[str], NDArray[np.float64]]:
    """Correlations of coarse SIF and all scaled channels over ``inside`` (sample, y, x), the train part.

    Against coarse SIF, not the target: choosing bands must not look at what is to be predicted. Pixels where
    one of a pair is missing do not count for this pair; NaN where a channel is constant or missing.
    """
    index = [i for i, channel in enumerate(features.channels) if channel.scaled]
    inside = inside & np.asarray(features.valid)
    columns = [np.asarray(features.coarse)[inside]]
    columns += [np.asarray(features.predictors[:, i])[inside] for i in index]
    matrix = pd.DataFrame(np.stack(columns, axis=1).astype(np.float64)).corr().to_numpy()
    return ["coarse SIF", *(features.channels[i].name for i in index)], matrix


def choose(
    select: Select, bands: tuple[str, ...], names: list[str], matrix: NDArray[np.float64]
) -> list[str]:
    """Names of the bands to keep: coarse, then by falling |r| with coarse SIF; ConfigError if none is."""
    strength = {name: abs(matrix[0, i]) for i, name in enumerate(names) if name in bands and name != "coarse"}
    ranked = sorted((n for n in strength if np.isfinite(strength[n])), key=lambda name: -strength[name])
    least = select.min_correlation or 0
    kept = ranked[: select.top] if select.top else [name for name in ranked if strength[name] >= least]
    if not kept:
        strongest = f"{ranked[0]} with {strength[ranked[0]]:.2f}" if ranked else "none"
        raise ConfigError(
            [f"features.select: no band is that correlated with coarse SIF (found {strongest})"]
        )
    return [*(["coarse"] if "coarse" in bands else []), *kept]
