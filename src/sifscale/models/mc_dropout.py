"""Dropout that goes on in prediction: passes through parts of one network, whose spread tells how sure it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sifscale.models.ensemble import mean_of


class ChannelDropout(nn.Module):
    """In training whole channels are 0 with probability ``share``, drawn for each crop, as ``nn.Dropout2d`` does.

    In evaluation it changes nothing, unless `McDropout` chooses which ``channels`` a pass keeps: the same for all crops
    of a batch and all positions, so that a map does not depend on how it is cut into tiles.
    """

    def __init__(self, channels: int, share: float) -> None:
        super().__init__()
        self.channels, self.share = channels, share
        self._kept: Tensor | None = None  # (C, 1, 1)

    def keep(self, generator: torch.Generator | None) -> None:
        """Draw the channels that are kept from now on in evaluation; None: all of them."""
        if generator is None:
            self._kept = None
        else:
            kept = torch.rand(self.channels, generator=generator) >= self.share
            self._kept = kept[:, None, None] / (1 - self.share)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> the same with channels dropped, the others larger, so that the mean stays."""
        if self.training:
            return F.dropout2d(features, self.share)
        return features if self._kept is None else features * self._kept.to(features)


class McDropout(nn.Module):
    """Parts of a network that lack different channels, one a pass; their mean is the prediction.

    Gal & Ghahramani 2016, arXiv 1506.02142. What pass i drops depends on i alone: predictions can be repeated.
    """

    def __init__(self, network: nn.Module, passes: int) -> None:
        super().__init__()
        self.network, self.passes = network, passes
        self._dropouts = [part for part in network.modules() if isinstance(part, ChannelDropout)]
        if passes < 2 or not any(part.share for part in self._dropouts):
            shares = sorted({part.share for part in self._dropouts})
            raise ValueError(
                f"mc_dropout needs 2 passes or more and a network with dropout above 0, found {passes} and {shares}"
            )

    def each(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """Predictions of all passes, in training one: (passes, B, outputs, H, W) from (B, C, H, W) and (B, 1, H, W)."""
        if self.training:
            found: Tensor = self.network(predictors, coarse)
            return found[None]
        try:
            return torch.stack([self._pass(number, predictors, coarse) for number in range(self.passes)])
        finally:
            for part in self._dropouts:
                part.keep(None)

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """Their mean, (B, outputs, H, W)."""
        return mean_of(self.each(predictors, coarse))

    def _pass(self, number: int, predictors: Tensor, coarse: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        for part in self._dropouts:
            part.keep(generator)
        found: Tensor = self.network(predictors, coarse)
        return found
