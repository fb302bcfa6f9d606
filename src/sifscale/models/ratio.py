"""The NIRv ratio: within a coarse cell SIF goes as the near-infrared reflectance of vegetation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sifscale.config import NIRV_SOURCES
from sifscale.datamodule import Scaler


class NIRvRatio(nn.Module):
    """coarse x NIRv / block mean of NIRv. Has no parameters.

    That SIF is nearly proportional to NIRv: Badgley et al. 2017, doi:10.1126/sciadv.1602244. NIRv is the channel of
    that name, else NDVI x NIR, with NDVI from red and NIR where it is no channel itself. channels: names of the
    predictors in order. scaler: how they and the coarse field were normalised, which is undone here, since a ratio
    means nothing between z-scores. floor: smallest denominator (reflectance), so that bare blocks do not divide by
    nearly nothing. Raises ValueError where the channels do not give NIRv, or for a floor that is not positive.
    """

    def __init__(self, *, in_channels: int, factor: int, channels: Sequence[str], scaler: Scaler, floor: float) -> None:
        super().__init__()
        if floor <= 0:
            raise ValueError(f"floor must be positive, found {floor}: give a small reflectance such as 0.01")
        sources = [names for names in NIRV_SOURCES if set(names) <= set(channels)]
        if not sources:
            wanted = " or ".join(" and ".join(names) for names in NIRV_SOURCES)
            raise ValueError(f"nirv_ratio needs the channels {wanted}, found {', '.join(channels)}: add them")
        self.names = sources[0]
        self.index = {name: list(channels).index(name) for name in self.names}
        self.factor, self.scaler, self.floor = factor, scaler, floor

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, 1, H, W), normalised as `coarse` is.

        A gap (exactly 0 after normalisation) keeps the coarse value and does not count in the block mean.
        """
        bands = {name: predictors[:, i : i + 1] for name, i in self.index.items()}
        known = torch.stack([band != 0 for band in bands.values()]).all(dim=0)
        nirv = torch.where(known, self._nirv(bands), 0)
        ratio = torch.where(known, nirv / self._block_mean(nirv, known).clamp(min=self.floor), 1)
        offset, scale = self.scaler.target_offset, self.scaler.target_scale
        return ((coarse * scale + offset) * ratio - offset) / scale

    def _nirv(self, normal: dict[str, Tensor]) -> Tensor:
        scaler = self.scaler
        band = {n: x * scaler.scale[self.index[n]] + scaler.offset[self.index[n]] for n, x in normal.items()}
        if self.names == ("nirv",):
            return band["nirv"]
        if self.names == ("ndvi", "nir"):
            return band["ndvi"] * band["nir"]
        total = band["nir"] + band["red"]
        # where nothing is reflected there is no vegetation either
        return torch.where(total > 0, (band["nir"] - band["red"]) / total.clamp(min=1e-6) * band["nir"], 0)

    def _block_mean(self, field: Tensor, known: Tensor) -> Tensor:
        sums, counts = (
            F.avg_pool2d(x, self.factor, ceil_mode=True, divisor_override=1) for x in (field, known.to(field.dtype))
        )
        means = F.interpolate(sums / counts.clamp(min=1), scale_factor=self.factor, mode="nearest-exact")
        return means[..., : field.shape[-2], : field.shape[-1]]
