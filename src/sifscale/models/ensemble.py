"""Several networks of one kind, trained side by side from different random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor, nn


def sum_of(members: Tensor) -> Tensor:
    """Sum over the first dimension, one after another: torch.sum takes another order at the end of a tensor.

    A pixel would then have other bits in a tile than in the whole field.
    """
    total: Tensor = reduce(torch.add, members)
    return total


def mean_of(members: Tensor) -> Tensor:
    """Mean over the first dimension, see `sum_of`."""
    return sum_of(members) / len(members)


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
        """Predictions of all members, (members, B, outputs, H, W), from (B, C, H, W) and (B, 1, H, W)."""
        return torch.stack([member(predictors, coarse) for member in self.members])

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """Their mean, (B, outputs, H, W)."""
        return mean_of(self.each(predictors, coarse))
