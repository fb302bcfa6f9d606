"""Scores as mergeable sums: add batches, tiles, workers or folds, finish once.

An R2 averaged over batches is wrong: each batch would be measured against its own mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sifscale.conservation import block_means

SUMS = ("n", "y", "yy", "p", "pp", "yp", "abs_error", "negative")
# A sum of squares about the mean that is smaller than this share of the plain sum of squares is rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Sums:
    """Sums over valid pixels of target y and prediction p, float64, shape (8,), or (8, columns) kept apart.

    Rows in the order of ``SUMS``: count, y, y^2, p, p^2, y p, abs(p - y), count of p < 0.
    """

    values: Tensor

    @classmethod
    def zero(cls, columns: int | None = None) -> Sums:
        """Nothing seen yet; ``columns`` keeps as many pixel positions of a crop, or blocks of the map, apart."""
        shape = (len(SUMS),) if columns is None else (len(SUMS), columns)
        return cls(torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def of(cls, prediction: Tensor, target: Tensor, valid: Tensor, *, by_position: bool = False) -> Sums:
        """Sums of one batch; all of shape (B, 1, H, W), ``valid`` bool. Pixels that are not valid may be NaN.

        by_position: keep the H x W positions of the crop apart, summing over the batch only.
        """
        terms = _terms(prediction, target, valid)
        return cls(terms.sum(dim=1).flatten(1) if by_position else terms.flatten(1).sum(dim=1))

    @classmethod
    def by_block(cls, prediction: Tensor, target: Tensor, valid: Tensor, block: Tensor, blocks: int) -> Sums:
        """Sums of one batch as in :meth:`of`, in ``blocks`` columns; ``block`` (B, 1, H, W) int64 is each pixel's."""
        terms = _terms(prediction, target, valid).flatten(1)
        return cls(terms.new_zeros(len(SUMS), blocks).index_add_(1, block.flatten(), terms))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.values.to(other.values.device) + other.values)

    def finish(self) -> dict[str, float]:
        """The scores of :func:`scores`, pooled over everything added; ValueError when nothing was added."""
        totals = self._totals()
        if totals[0] == 0:
            raise ValueError("no valid pixel was scored: check split, crop.min_valid and the gaps of the target")
        return {name: score.item() for name, score in scores(totals).items()}

    def r2_positions(self) -> float:
        """The notebooks' R2: one R2 a pixel position over all test crops, then the plain mean over positions.

        Equals scikit-learn's ``r2_score(y, p)`` on arrays of shape (crops, H * W), its rule for a constant
        target included: 1 where the prediction is exact, else 0. Positions valid in fewer than two crops are
        left out.
        """
        if self.values.ndim != 2:
            raise ValueError("R2 by position needs sums kept by position; add Sums.of(..., by_position=True)")
        _, _, yy, _, pp, yp, _, _ = self.values
        error, spread = yy - 2 * yp + pp, _spread(self.values[:3])
        constant = torch.where(error > ROUNDING * yy, 0.0, 1.0).double()
        by_position = torch.where(spread > 0, 1 - error / spread.where(spread > 0, 1), constant)
        return float(by_position[self.values[0] > 1].mean())

    def to_dict(self) -> dict[str, float]:
        """Pooled sums as plain numbers, for a file that a study merges later."""
        return dict(zip(SUMS, self._totals().tolist(), strict=True))

    @classmethod
    def from_dict(cls, sums: Mapping[str, float]) -> Sums:
        """Inverse of :meth:`to_dict`."""
        return cls(torch.tensor([sums[name] for name in SUMS], dtype=torch.float64))

    def _totals(self) -> Tensor:
        return self.values.flatten(1).sum(dim=1) if self.values.ndim > 1 else self.values


def scores(sums: Tensor) -> dict[str, Tensor]:
    """Scores, each (...), of sums (8, ...) in the order of ``SUMS``, counts above 0.

    n; r2; mae, rmse, bias (mean of p - y) and target_sd in the unit of the target; correlation (Pearson's);
    negative_share (0..1 of the predictions). r2 and correlation are NaN where the target (for the latter: or
    the prediction) is constant.
    """
    n, y, yy, p, pp, yp, abs_error, negative = sums
    squared_error = (yy - 2 * yp + pp).clamp(min=0)
    spread_y, spread_p = _spread(sums[:3]), _spread(sums[[0, 3, 4]])
    return {
        "n": n,
        "r2": 1 - _ratio(squared_error, spread_y),
        "mae": abs_error / n,
        "rmse": (squared_error / n).sqrt(),
        "bias": (p - y) / n,
        "correlation": _ratio(yp - y * p / n, (spread_y * spread_p).sqrt()),
        "negative_share": negative / n,
        "target_sd": (spread_y / n).sqrt(),
    }


def pooled(blocks: Mapping[str, Sums]) -> Sums:
    """Sums of all blocks together."""
    return sum(blocks.values(), start=Sums.zero())


def merged(parts: Iterable[Mapping[str, Sums]]) -> dict[str, Sums]:
    """Sums by name (of a block, of a prediction) of all parts together; those that several parts have are added."""
    total: dict[str, Sums] = {}
    for part in parts:
        for name, sums in part.items():
            total[name] = total[name] + sums if name in total else sums
    return total


def on_cells(
    prediction: Tensor, target: Tensor, scored: Tensor, cell_px: int, min_valid: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Means of the scored pixels of each ``cell_px`` x ``cell_px`` cell, as fields that are scored like pixels.

    All (B, 1, H, W), the first cell at the origin; returns prediction, target and mask, (B, 1, H / cell_px,
    W / cell_px). The mask is True where at least ``min_valid`` (0..1) of a cell is scored.
    """
    mean_prediction, count = block_means(prediction, scored, cell_px)
    mean_target, _ = block_means(target, scored, cell_px)
    return mean_prediction, mean_target, (count > 0) & (count >= min_valid * cell_px**2)


def r2_residual(model: Sums, reference: Sums) -> float:
    """R2 of what is beyond a reference b: how much of y - b the prediction's p - b explains.

    1 - sum (p - y)^2 / sum (y - b - mean(y - b))^2: 1 is exact, 0 no better than the reference without its
    bias, NaN where the reference is wrong by a constant only. Equals scikit-learn's ``r2_score(y - b, p - b)``;
    no sum of its own is needed, since the errors of p - b and of p are the same. Raises ValueError where the
    two were not scored on as many pixels.
    """
    ours, theirs = model.finish(), reference.finish()
    if ours["n"] != theirs["n"]:
        raise ValueError(
            f"model and reference must be scored on the same pixels, found {ours['n']:.0f} and {theirs['n']:.0f}"
        )
    variance = theirs["rmse"] ** 2 - theirs["bias"] ** 2
    return 1 - ours["rmse"] ** 2 / variance if variance > ROUNDING * theirs["rmse"] ** 2 else float("nan")


def skill(rmse: float, reference_rmse: float) -> float:
    """Share of the reference's squared error that is gone: 1 - (rmse / reference_rmse)^2 (Murphy 1988)."""
    return 1 - (rmse / reference_rmse) ** 2 if reference_rmse > 0 else float("nan")


def _terms(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """What each pixel adds: (8, B, 1, H, W) float64, 0 where it is not valid."""
    y = torch.where(valid, target, 0).double()
    p = torch.where(valid, prediction, 0).double()
    return torch.stack([valid.double(), y, y * y, p, p * p, y * p, (p - y).abs(), (p < 0).double()])


def _spread(sums: Tensor) -> Tensor:
    """Sum of squares about the mean from count, sum, sum of squares (3, ...); 0 where it is mere rounding."""
    n, total, squares = sums
    spread = squares - total * total / n.clamp(min=1)
    return torch.where(spread > ROUNDING * squares, spread, 0)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.where(whole > 0, 1), torch.nan)
