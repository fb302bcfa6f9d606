"""Is one model better than another? The paired block bootstrap over test sums kept by block of the map.

Errors of neighbouring pixels are alike, so that pixels are no independent evidence; whole blocks are nearly so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from sifscale.metrics import SUMS, Sums, scores

CONFIDENCE = 0.95
DRAWN_AT_ONCE = 2_000_000  # weights held in memory: 16 MB, however many blocks there are

BlockSums = Mapping[str, Sums]  # sums (8,) by name of the block


@dataclass(frozen=True)
class Difference:
    """A score of a minus that of b, its 95 % interval, two-sided p of no difference, and the number of blocks.

    Interval and p are NaN where there is but one block.
    """

    difference: float
    low: float
    high: float
    p: float
    blocks: int


def paired_difference(
    blocks_a: BlockSums, blocks_b: BlockSums, metric: str = "rmse", number: int = 2000, seed: int = 0
) -> Difference:
    """Difference of a pooled score (a - b) of two models on the same pixels, by the paired block bootstrap.

    Draws ``number`` times as many blocks as there are, with replacement, the same for both models, and computes
    the score of each from the summed sums (Efron & Tibshirani 1993, ch. 8; blocks: Lahiri 2003). The percentile
    interval is expanded as Hesterberg (2015, doi:10.1080/00031305.2015.1089789) does, by Student's t and
    sqrt(k / (k - 1)), since with few blocks k the plain one is too narrow; so made, it held the truth in 95 % of
    the cases of a test with 24 or 60 blocks, 90 % with 8 and 87 % with 5. p is one less the confidence at which
    the interval just reaches 0. Blocks of several folds are to be merged first. metric: a name of
    ``metrics.scores``. Raises ValueError where the blocks are not of the same pixels, for another metric, or for
    ``number`` below 1.
    """
    a, b = _aligned(blocks_a, blocks_b)
    known = list(scores(a.sum(dim=1)))
    if metric not in known or number < 1:
        raise ValueError(
            f"metric must be one of {', '.join(known)}, and number at least 1 (found {metric!r}, {number})"
        )
    difference = float(_score(a.sum(dim=1), metric) - _score(b.sum(dim=1), metric))
    count = a.shape[1]
    if count < 2:
        return Difference(difference, low=float("nan"), high=float("nan"), p=float("nan"), blocks=count)
    rng, drawn = np.random.default_rng(seed), []
    left = number
    while left:
        size = min(left, max(DRAWN_AT_ONCE // count, 1))
        times = torch.from_numpy(rng.multinomial(count, np.full(count, 1 / count), size=size).T.astype(np.float64))
        drawn.append(_score(a @ times, metric) - _score(b @ times, metric))
        left -= size
    low, high, p = _expanded(torch.cat(drawn).numpy(), count)
    return Difference(difference, low, high, p, count)


def _aligned(blocks_a: BlockSums, blocks_b: BlockSums) -> tuple[Tensor, Tensor]:
    """Sums of both (8, blocks), in one order; ValueError where they are not of the same pixels."""
    names = sorted(blocks_a)
    if not names or names != sorted(blocks_b):
        raise ValueError(
            f"both models need sums of the same blocks, found {len(names)} and {len(blocks_b)}, "
            f"{len(set(names) & set(blocks_b))} in common; test both on the same folds"
        )
    a, b = (torch.stack([blocks[name].values for name in names], dim=1) for blocks in (blocks_a, blocks_b))
    # count and sum of y^2; sums in another order differ by rounding
    if not torch.equal(a[0], b[0]) or not torch.allclose(a[2], b[2], rtol=1e-6, atol=0):
        raise ValueError("both models need sums of the same pixels and target; test both on the same window and split")
    return a, b


def _score(sums: Tensor, metric: str) -> Tensor:
    return scores(sums)[metric]


def _expanded(drawn: NDArray[np.float64], count: int) -> tuple[float, float, float]:
    """Low, high and p from drawn differences of ``count`` blocks."""
    shrink = np.sqrt((count - 1) / count)
    tail = stats.norm.cdf(stats.t.ppf((1 - CONFIDENCE) / 2, count - 1) / shrink)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    # One more of each (Davison & Hinkley 1997, 4.25): p is never 0, and equal runs have p = 1.
    beyond = (min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1) / (len(drawn) + 1)
    p = 2 * stats.t.cdf(stats.norm.ppf(beyond) * shrink, count - 1)
    return float(low), float(high), min(float(p), 1.0)


def to_json(tested: Mapping[str, BlockSums]) -> dict[str, Any]:
    """Sums by prediction and block as plain values: ``{"sums": names, "blocks": {prediction: {block: numbers}}}``."""
    return {
        "sums": SUMS,
        "blocks": {n: {block: s.values.tolist() for block, s in blocks.items()} for n, blocks in tested.items()},
    }


def from_json(values: Mapping[str, Any], prediction: str) -> dict[str, Sums]:
    """Sums by block of one prediction, from what :func:`to_json` gave."""
    return {
        block: Sums.from_dict(dict(zip(values["sums"], numbers, strict=True)))
        for block, numbers in values["blocks"][prediction].items()
    }
