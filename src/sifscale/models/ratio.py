"""The NIRv ratio: within a coarse cell SIF goes as the near-infrared reflectance of vegetation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sifscale.config import FOOTPRINT_SIF, NIRV_SOURCES
from sifscale.datamodule import Scaler
from sifscale.features import Channel, FeatureCube
from sifscale.footprint_weights import cell_means, on_pixels
from sifscale.grid import block_mean, block_repeat

CHANNEL = "SIF / NIRv by footprint"
SMALLEST_NIRV = 0.01  # reflectance; what a network is given does not divide by less


def with_footprint_ratio(features: FeatureCube, floor: float) -> FeatureCube:
    """The feature cube with one more predictor, the ratio that footprint weights make, and without these weights."""
    return _with_channel(features, Channel(CHANNEL, False), _footprint_ratio(features, floor))


def with_footprint_sif(features: FeatureCube) -> FeatureCube:
    """The feature cube with NIRv x its ratio by footprint, a first map of SIF, as the predictor `FOOTPRINT_SIF`."""
    first_map = _footprint_ratio(features, SMALLEST_NIRV) * _named_nirv(features)
    return _with_channel(features, Channel(FOOTPRINT_SIF, True), first_map)


def _with_channel(features: FeatureCube, channel: Channel, values: NDArray[Any]) -> FeatureCube:
    predictors = np.concatenate([np.asarray(features.predictors), values[:, None].astype(np.float32)], axis=1)
    channels = (*features.channels, channel)
    return replace(features, channels=channels, predictors=predictors, footprint_weights=None)


def _footprint_ratio(features: FeatureCube, floor: float) -> NDArray[np.float32]:
    """SIF / NIRv (sample, y, x) by the footprint weights of native cells, in the unit of SIF.

    The ratio of a native cell is its SIF over NIRv as its footprints saw it, not below `floor`; a fine pixel has the
    mean of the ratios of the cells that saw it, by its weights in them. After Turner et al. 2020
    (doi:10.5194/bg-17-405-2020), who do so for each sounding. Where no footprint reaches it is that of the block.
    """
    nirv, coarse = _named_nirv(features), np.asarray(features.coarse).astype(np.float64)
    factor, found = features.block_px, np.empty(nirv.shape, np.float32)
    for sample, (field, observed) in enumerate(zip(nirv, coarse, strict=True)):
        weights = np.asarray(features.footprint_weights[sample])
        by_cell = observed[::factor, ::factor] / np.maximum(cell_means(weights, field), floor)
        blocks = observed[::factor, ::factor] / np.maximum(np.nan_to_num(block_mean(field, factor)), floor)
        ratio = on_pixels(weights, by_cell, factor)
        found[sample] = np.where(np.isnan(ratio), block_repeat(blocks, factor, *field.shape), ratio)
    return found


def _named_nirv(features: FeatureCube) -> NDArray[Any]:
    """NIRv (sample, y, x) in physical units, NaN in gaps."""
    names = _source(features.names)
    band = {name: np.asarray(features.predictors[:, features.names.index(name)]).astype(np.float64) for name in names}
    return _nirv({name: torch.from_numpy(values) for name, values in band.items()}).numpy()


def _source(names: Sequence[str]) -> tuple[str, ...]:
    """The channels that give NIRv; ValueError where there are none."""
    for source in NIRV_SOURCES:
        if set(source) <= set(names):
            return source
    wanted = " or ".join(" and ".join(source) for source in NIRV_SOURCES)
    raise ValueError(f"nirv_ratio needs the channels {wanted}, found {', '.join(names)}: add them")


def _nirv(band: dict[str, Tensor]) -> Tensor:
    """NIRv from the bands of one of `NIRV_SOURCES`, in physical units."""
    if "nirv" in band:
        return band["nirv"]
    if "ndvi" in band:
        return band["ndvi"] * band["nir"]
    total = band["nir"] + band["red"]
    # where nothing is reflected there is no vegetation either; a gap stays one
    return torch.where(total <= 0, 0, (band["nir"] - band["red"]) / total.clamp(min=1e-6) * band["nir"])


class NIRvRatio(nn.Module):
    """coarse x NIRv / block mean of NIRv, or NIRv x the channel of `with_footprint_ratio`. Has no parameters.

    That SIF is nearly proportional to NIRv: Badgley et al. 2017, doi:10.1126/sciadv.1602244. NIRv is the channel of
    that name, else NDVI x NIR, with NDVI from red and NIR where it is no channel itself. channels: names of the
    predictors in order. scaler: how they and the coarse field were normalised, which is undone here, since a ratio
    means nothing between z-scores. floor: smallest denominator (reflectance), so that bare blocks do not divide by
    nearly nothing. ratio: block or footprint. Raises ValueError where channels that it needs are missing, or for a
    floor that is not positive.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        factor: int,
        channels: Sequence[str],
        scaler: Scaler,
        floor: float,
        ratio: str = "block",
    ) -> None:
        super().__init__()
        if floor <= 0:
            raise ValueError(f"floor must be positive, found {floor}: give a small reflectance such as 0.01")
        if ratio == "footprint" and CHANNEL not in channels:
            raise ValueError(f"ratio=footprint needs the channel '{CHANNEL}', found {', '.join(channels)}: add it")
        self.index = {name: list(channels).index(name) for name in _source(channels)}
        self.ratio_index = list(channels).index(CHANNEL) if ratio == "footprint" else None
        self.factor, self.scaler, self.floor = factor, scaler, floor

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, 1, H, W), normalised as `coarse` is.

        A gap (exactly 0 after normalisation) keeps the coarse value and does not count in the mean of NIRv.
        """
        bands = {name: predictors[:, i : i + 1] for name, i in self.index.items()}
        known = torch.stack([band != 0 for band in bands.values()]).all(dim=0)
        nirv = torch.where(known, _nirv(self._physical(bands)), 0)
        offset, scale = self.scaler.target_offset, self.scaler.target_scale
        if self.ratio_index is not None:
            by_footprint = nirv * predictors[:, self.ratio_index : self.ratio_index + 1]
            return torch.where(known, (by_footprint - offset) / scale, coarse)
        ratio = torch.where(known, nirv / self._block_mean(nirv, known).clamp(min=self.floor), 1)
        return ((coarse * scale + offset) * ratio - offset) / scale

    def _physical(self, normal: dict[str, Tensor]) -> dict[str, Tensor]:
        scaler = self.scaler
        return {n: x * scaler.scale[self.index[n]] + scaler.offset[self.index[n]] for n, x in normal.items()}

    def _block_mean(self, field: Tensor, known: Tensor) -> Tensor:
        sums, counts = (
            F.avg_pool2d(x, self.factor, ceil_mode=True, divisor_override=1) for x in (field, known.to(field.dtype))
        )
        means = F.interpolate(sums / counts.clamp(min=1), scale_factor=self.factor, mode="nearest-exact")
        return means[..., : field.shape[-2], : field.shape[-1]]
