"""What the notebooks of the original study did and nobody should repeat; here to reproduce its table.

The only room that lets a predictor see the target: protocol=legacy runs go through it, the audit names it.
Source of the procedure: the U-Net notebook of the original repository (README of the raw data, 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from sifscale.config import LegacyFeatures
from sifscale.features import Channel, FeatureCube
from sifscale.texture import without_steps

LayerMap: TypeAlias = Callable[[da.Array], da.Array]

LBP_WEIGHT = 0.5  # the notebook multiplies the raw code, so its channel runs from 0 to 127.5
# Neighbours (dy, dx) of bits 0 to 7. Its rows run from south to north, ours not: dy is turned.
LBP_NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def extend(features: FeatureCube, legacy: LegacyFeatures) -> FeatureCube:
    """Add the notebooks' channels and scaling to a lazy feature cube, as the options say.

    lbp: codes of coarse SIF (or of the predictor ``lbp_source``) x 0.5. difference: target - coarse, which gives the
    target away. minmax_everything: each channel but LBP to [0, 1] over the whole sample, test pixels included.
    zero_gaps: gaps become 0 in predictors, coarse and target, and count as observed (padding does not).
    """
    scale: LayerMap = partial(_map, minmax) if legacy.minmax_everything else _unchanged
    channels = list(features.channels)
    parts = [scale(features.predictors)]
    observed = da.where(features.valid, features.coarse, np.float32(np.nan))
    if legacy.lbp:
        of_other = "" if legacy.lbp_source == "coarse" else f"({legacy.lbp_source})"
        channels.append(Channel(f"notebook LBP x 0.5{of_other}", False))
        parts.append(_map(notebook_lbp, _lbp_source(features, legacy.lbp_source))[:, None])
    if legacy.difference:
        channels.append(Channel("target - coarse", True))
        parts.append(scale(features.target - observed)[:, None])
    predictors = da.concatenate(parts, axis=1)
    if not legacy.zero_gaps:
        return replace(features, channels=tuple(channels), predictors=predictors)
    return replace(
        features,
        channels=tuple(channels),
        predictors=da.where(da.isfinite(predictors), predictors, np.float32(0)),
        coarse=da.where(features.valid, features.coarse, np.float32(0)),
        target=da.where(features.valid, features.target, np.float32(0)),
        valid=features.valid | _in_field(features),
    )


def _lbp_source(features: FeatureCube, name: str) -> da.Array:
    """Field (sample, y, x) whose codes are wanted: coarse SIF where it was observed, or a predictor."""
    if name != "coarse":
        return features.predictors[:, features.names.index(name)]
    smooth = without_steps(features.coarse, features.block_px)  # block means; the notebooks' field had no steps
    return da.where(features.valid, smooth, np.float32(np.nan))


def _in_field(features: FeatureCube) -> NDArray[np.bool_]:
    """True (y, x) where the field is, False on the padding."""
    inside = np.zeros(features.coarse.shape[-2:], dtype=bool)
    inside[: features.shape[0], : features.shape[1]] = True
    return inside


def minmax(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """(x - min) / (max - min) of each (y, x) layer over all its pixels, 0 if constant; gaps stay NaN."""
    # fmin and fmax pass over NaN; unlike nanmin they are silent about a layer that has nothing else.
    low = np.fmin.reduce(field, axis=(-2, -1), keepdims=True)
    high = np.fmax.reduce(field, axis=(-2, -1), keepdims=True)
    return np.asarray((field - low) / np.where(high > low, high - low, 1), dtype=np.float32)


def notebook_lbp(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """The notebooks' LBP, (..., y, x): a bit where a neighbour in the square exceeds the centre; times 0.5.

    Pixels are quantised to 0-255 by truncation; nothing outside the field is greater, and gaps count as 0, as
    the notebook's cast makes them.
    """
    grey = np.nan_to_num(minmax(field) * 255).astype(np.uint8)
    around = np.pad(grey, [(0, 0)] * (grey.ndim - 2) + [(1, 1), (1, 1)])
    rows, columns = grey.shape[-2:]
    code = np.zeros(grey.shape, dtype=np.uint8)
    for bit, (dy, dx) in enumerate(LBP_NEIGHBOURS):
        neighbour = around[..., 1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]
        code |= (neighbour > grey).astype(np.uint8) << bit
    return code.astype(np.float32) * LBP_WEIGHT


def _unchanged(array: da.Array) -> da.Array:
    return array


def _map(function: Callable[[NDArray[np.float32]], NDArray[np.float32]], array: da.Array) -> da.Array:
    return array.rechunk({-2: -1, -1: -1}).map_blocks(function, dtype=np.float32)
