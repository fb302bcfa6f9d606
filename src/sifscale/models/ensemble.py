"""Several networks of one kind, trained side by side from different random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """`members` networks that `make` builds one after another; their mean is the prediction.

    Each has its own loss, so that one optimiser trains them as so many would; they see the same batches and differ by
    their first weights, which is what makes most of an ensemble's gain (Lakshminarayanan et al. 2017, arXiv
    1612.01474).
    """

    def __init__(self, make: Callable[[], nn.Module], members: int) -> None:
        super().__init__()
        if members < 2:
            raise ValueError(f"an ensemble needs 2 members or more, found {members}: take the model itself")
        self.members = nn.ModuleList(make() for _ in range(members))

    def each(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """Predictions of all members, (members, B, 1, H, W), from (B, C, H, W) and (B, 1, H, W)."""
        return torch.stack([member(predictors, coarse) for member in self.members])

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """Their mean, (B, 1, H, W)."""
        return self.each(predictors, coarse).mean(dim=0)
