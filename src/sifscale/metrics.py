"""Scores as mergeable sums: add batches, tiles, workers or folds, finish once.

An R2 averaged over batches is wrong: each batch would be measured against its own mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SUMS = ("n", "y", "yy", "p", "pp", "yp", "abs_error")
# A sum of squares about the mean that is smaller than this share of the plain sum of squares is rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Sums:
    """Sums over valid pixels of target y and prediction p, float64, shape (7,) or (7, positions).

    Rows in the order of ``SUMS``: count, y, y^2, p, p^2, y p, |p - y|.
    """

    values: Tensor

    @classmethod
    def zero(cls, positions: int | None = None) -> Sums:
        """Nothing seen yet; ``positions`` keeps one column a pixel position of a crop."""
        shape = (len(SUMS),) if positions is None else (len(SUMS), positions)
        return cls(torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def of(cls, prediction: Tensor, target: Tensor, valid: Tensor, *, by_position: bool = False) -> Sums:
        """Sums of one batch; all of shape (B, 1, H, W), ``valid`` bool. Pixels that are not valid may be NaN.

        by_position: keep the H x W positions of the crop apart, summing over the batch only.
        """
        y = torch.where(valid, target, 0).double()
        p = torch.where(valid, prediction, 0).double()
        terms = torch.stack([valid.double(), y, y * y, p, p * p, y * p, (p - y).abs()])
        return cls(terms.sum(dim=1).flatten(1) if by_position else terms.flatten(1).sum(dim=1))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.values.to(other.values.device) + other.values)

    def finish(self) -> dict[str, float]:
        """R2, MAE, RMSE, bias, correlation (r) and n, pooled over everything added.

        R2 and r are NaN where the target (for r: or the prediction) is constant. Raises ValueError when
        nothing was added.
        """
        totals = self.values.flatten(1).sum(dim=1) if self.values.ndim > 1 else self.values
        n, y, yy, p, pp, yp, abs_error = totals.tolist()
        if n == 0:
            raise ValueError(
                "no valid pixel was scored: check split, crop.min_valid and the gaps of the target"
            )
        squared_error = max(yy - 2 * yp + pp, 0.0)
        spread_y, spread_p = _spread(totals[:3]).item(), _spread(totals[[0, 3, 4]]).item()
        both = (spread_y * spread_p) ** 0.5
        return {
            "n": n,
            "r2": 1 - squared_error / spread_y if spread_y else float("nan"),
            "mae": abs_error / n,
            "rmse": (squared_error / n) ** 0.5,
            "bias": (p - y) / n,
            "r": (yp - y * p / n) / both if both else float("nan"),
        }

    def r2_positions(self) -> float:
        """The notebooks' R2: one R2 a pixel position over all test crops, then the plain mean over positions.

        Equals scikit-learn's ``r2_score(y, p)`` on arrays of shape (crops, H * W), its rule for a constant
        target included: 1 where the prediction is exact, else 0. Positions valid in fewer than two crops are
        left out.
        """
        if self.values.ndim != 2:
            raise ValueError("R2 by position needs sums kept by position; add Sums.of(..., by_position=True)")
        _, _, yy, _, pp, yp, _ = self.values
        error, spread = yy - 2 * yp + pp, _spread(self.values[:3])
        constant = torch.where(error > ROUNDING * yy, 0.0, 1.0).double()
        scores = torch.where(spread > 0, 1 - error / spread.where(spread > 0, 1), constant)
        return float(scores[self.values[0] > 1].mean())

    def to_dict(self) -> dict[str, float]:
        """Pooled sums as plain numbers, for a file that a study merges later."""
        totals = self.values.flatten(1).sum(dim=1) if self.values.ndim > 1 else self.values
        return dict(zip(SUMS, totals.tolist(), strict=True))

    @classmethod
    def from_dict(cls, sums: Mapping[str, float]) -> Sums:
        """Inverse of :meth:`to_dict`."""
        return cls(torch.tensor([sums[name] for name in SUMS], dtype=torch.float64))


def _spread(sums: Tensor) -> Tensor:
    """Sum of squares about the mean from count, sum, sum of squares (3, ...); 0 where it is mere rounding."""
    n, total, squares = sums
    spread = squares - total * total / n.clamp(min=1)
    return torch.where(spread > ROUNDING * squares, spread, 0)


def skill(rmse: float, reference_rmse: float) -> float:
    """Share of the reference's squared error that is gone: 1 - (rmse / reference_rmse)^2 (Murphy 1988)."""
    return 1 - (rmse / reference_rmse) ** 2 if reference_rmse > 0 else float("nan")
