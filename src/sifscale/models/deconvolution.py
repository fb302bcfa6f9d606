"""Linear deconvolution: the sharpest field that a linear filter of the coarse field alone can give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sifscale.models.interpolation import upsample
from sifscale.models.regression import Fields, LeastSquares, best_weights


class Deconvolution(nn.Module):
    """Bilinear coarse plus a linear filter of the `kernel` x `kernel` cells around, one filter a place in the cell.

    Filters read differences to the middle cell, so that a constant field stays as it is. They are fitted by ridge
    regression of the residual to bilinear on the training part; strengths as in `regression.Ridge`. With `factor` 1
    (a smooth coarse field) cells are pixels and there is one filter. `predictors` are not read; beyond the border the
    field is continued with the edge value. Has factor^2 x kernel^2 parameters, none of which a gradient changes.
    Raises ValueError where `kernel` is not odd.
    """

    def __init__(self, *, in_channels: int, factor: int, kernel: int, strengths: Sequence[float]) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that it has a middle cell, found {kernel}: add 1")
        self.factor, self.kernel, self.strengths = factor, kernel, tuple(strengths)
        self.weights = nn.Parameter(torch.zeros(factor**2, kernel**2), requires_grad=False)

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, 1, H, W), for any H and W, in the unit of `coarse`."""
        with torch.autocast(coarse.device.type, enabled=False):  # a filter with large weights of both signs
            fine = F.pixel_shuffle(torch.einsum("pk,bkyx->bpyx", self.weights, self._around(coarse)), self.factor)
        return upsample(coarse, self.factor, "bilinear") + fine[..., : coarse.shape[-2], : coarse.shape[-1]]

    def fit(self, train: Iterable[Fields], validation: Iterable[Fields], seed: int) -> dict[str, float]:
        """See `regression.Fitted`; nothing is random here."""
        parts = [self._sums(part) for part in (train, validation)]
        weights, strength = best_weights(parts[0], parts[1], self.strengths)
        self.weights.copy_(weights)
        return {"pixels": float(parts[0].n), "strength": strength}

    def _around(self, coarse: Tensor) -> Tensor:
        """Differences of the cells around to the middle one, (B, kernel^2, cells down, cells across)."""
        cells = coarse[..., :: self.factor, :: self.factor]
        reach = self.kernel // 2
        wide = F.pad(cells, (reach, reach, reach, reach), mode="replicate")
        return F.unfold(wide, self.kernel).reshape(len(cells), -1, *cells.shape[-2:]) - cells

    def _sums(self, part: Iterable[Fields]) -> LeastSquares:
        sums = LeastSquares(*self.weights.shape, intercept=False)
        for fields in part:
            residual = fields.target - upsample(fields.coarse, self.factor, "bilinear")
            around = self._around(fields.coarse).movedim(1, -1).flatten(0, 2)  # (cells, kernel^2)
            known = self._by_place(fields.counted.to(residual.dtype)) > 0
            sums.add(around.expand(len(known), -1, -1), self._by_place(residual), known)
        return sums

    def _by_place(self, field: Tensor) -> Tensor:
        """(B, 1, H, W) -> (place in the cell, cells); a cut cell is filled up with 0."""
        lower, right = (-size % self.factor for size in field.shape[-2:])
        cells = F.pixel_unshuffle(F.pad(field, (0, right, 0, lower)), self.factor)
        return cells.movedim(1, 0).flatten(1)
