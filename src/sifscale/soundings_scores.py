"""How well a map agrees with soundings whose own error is known: scores, lines of regression, and their intervals.

The error of a single sounding is large, about 0.4 mW m-2 sr-1 nm-1 for OCO. It adds to the RMSE, keeps the correlation
below 1 and flattens the line of ordinary least squares, however good the map. What it does is said beside each score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sifscale import bootstrap
from sifscale.bootstrap import BlockSums
from sifscale.metrics import ROUNDING, Sums, scores

LEAST_BLOCKS = 5  # with fewer, even the widened interval of the bootstrap is too narrow
Values = NDArray[np.float64]

# key of a score, and what it is called; those below the number are in units of the map but for r and slopes
LABELS = {
    "n": "n",
    "correlation": "r",
    "correlation_of_perfect_map": "r of a perfect map, with soundings of this error",
    "bias": "bias (map - soundings)",
    "rmse": "RMSE",
    "sounding_error": "error of the soundings (1 sigma, root mean square)",
    "rmse_beyond_error": "RMSE beyond the error of the soundings",
    "slope_ols": "slope, least squares",
    "intercept_ols": "intercept, least squares",
    "slope": "slope, error of the soundings taken out",
    "intercept": "intercept, error of the soundings taken out",
}


@dataclass(frozen=True)
class Scored:
    """Scores by name (``LABELS``; NaN where there is none) with their 95 % intervals, none for few blocks."""

    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    blocks: int

    def text(self, name: str) -> str:
        """A score with its interval, as text."""
        value = self.values[name]
        if name == "n":
            return f"{value:,.0f}"
        if not np.isfinite(value):
            return "-"
        low, high = self.intervals.get(name, (np.nan, np.nan))
        return f"{value:.4f}" + (f" [{low:.4f}, {high:.4f}]" if np.isfinite(low + high) else "")

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; NaN where there is no number."""
        ends = {name: list(ends) for name, ends in self.intervals.items() if np.isfinite(sum(ends))}
        return {**self.values, "blocks": self.blocks, "intervals_95": ends}


def score(predicted: Values, sounding: Values, error: Values, block: Sequence[str]) -> Scored:
    """Scores of a map's values against soundings with errors (1 sigma), all (n,) and finite, in one unit.

    block: of the map, one name a sounding; whole blocks are drawn for the intervals (``bootstrap.intervals``), where
    there are LEAST_BLOCKS. Raises ValueError for no sounding.
    """
    if not len(sounding):
        raise ValueError("no sounding to score a map with; match some first")
    names, at = np.unique(np.asarray(block, dtype=str), return_inverse=True)
    by_block = sums_by_block(predicted, sounding, block)
    squares = torch.from_numpy(np.bincount(at, error**2, len(names)))  # (blocks,)
    sums = torch.cat([torch.stack([by_block[name].values for name in names], dim=1), squares[None]])
    values = {name: value.item() for name, value in statistics(sums.sum(dim=1)).items()}
    count = len(names)
    drawn = bootstrap.intervals(sums, statistics) if count >= LEAST_BLOCKS else {}
    drawn.pop("n", None)
    return Scored(values, drawn, count)


def sums_by_block(predicted: Values, sounding: Values, block: Sequence[str]) -> dict[str, Sums]:
    """Metric sums by name of the block, as ``bootstrap.paired_difference`` wants them; all (n,)."""
    names, at = np.unique(np.asarray(block, dtype=str), return_inverse=True)
    fields = [torch.from_numpy(np.array(field)).reshape(1, 1, 1, -1) for field in (predicted, sounding, at)]
    found = Sums.by_block(fields[0], fields[1], torch.ones_like(fields[2], dtype=torch.bool), fields[2], len(names))
    return {str(name): Sums(found.values[:, i]) for i, name in enumerate(names)}


def difference(a: BlockSums, b: BlockSums) -> bootstrap.Difference:
    """RMSE of a minus that of b on the same soundings; without an interval where there are few blocks."""
    found = bootstrap.paired_difference(a, b, "rmse")
    if found.blocks >= LEAST_BLOCKS:
        return found
    nan = float("nan")
    return bootstrap.Difference(found.difference, nan, nan, nan, found.blocks)


def statistics(sums: Tensor) -> dict[str, Tensor]:
    """The scores of ``LABELS``, each (...), from sums (9, ...): those of ``metrics.SUMS`` and of squared errors.

    Target y is the sounding, prediction p the map. p = intercept + slope y by least squares, and by the same with the
    known error variance u of the soundings taken out of their variance, slope = s_yp / (s_yy - u) (Fuller 1987,
    Measurement Error Models, 1.2.1); the former is smaller by the reliability 1 - u / s_yy, whose square root is the
    correlation that a perfect map would have (Spearman 1904). NaN where the soundings vary no more than their errors.
    """
    found = scores(sums[:8])
    n, y, yy, p, _, yp = sums[:6]
    u = sums[8] / n
    s_yy, s_yp = ((square - y * other / n) / (n - 1) for square, other in ((yy, y), (yp, p)))
    s_yy = torch.where((n > 1) & (s_yy > ROUNDING * yy), s_yy, torch.nan)
    signal = torch.where(s_yy > u, s_yy - u, torch.nan)
    slope_ols, slope = s_yp / s_yy, s_yp / signal
    return {
        "n": n,
        "correlation": found["correlation"],
        "correlation_of_perfect_map": (signal / s_yy).sqrt(),
        "bias": found["bias"],
        "rmse": found["rmse"],
        "sounding_error": u.sqrt(),
        "rmse_beyond_error": (found["rmse"] ** 2 - u).clamp(min=0).sqrt(),
        "slope_ols": slope_ols,
        "intercept_ols": (p - slope_ols * y) / n,
        "slope": slope,
        "intercept": (p - slope * y) / n,
    }
