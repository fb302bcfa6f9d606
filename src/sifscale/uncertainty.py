"""Error bars of predictions: from what a model says of its own error, calibrated on the validation part.

A model says it by the spread of its members (``ensemble``, ``mc_dropout``), by channels of its own (standard deviation
under ``heteroscedastic``, distances to two quantiles under ``quantile``) or not at all (``constant``: the same
everywhere, the reference for the others). Two factors then make it right on average over the validation part: one for
the standard error, one for the interval. Everything is in the units of the target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from sifscale.models.ensemble import mean_of, sum_of

WIDTHS = {"heteroscedastic": 1, "quantile": 2}  # channels that a network has beside its prediction
SPREAD_SUMS = ("n", "covered", "below", "width", "crps", "squared_standard_error", "squared_error")
BINS = 10  # of the standard error, in the spread-skill diagram
_HIGHEST_DENSITY = 1 / math.sqrt(2 * math.pi)  # of the standard normal distribution
_SQUARED_TAIL = _HIGHEST_DENSITY - 1 / (2 * math.sqrt(math.pi))  # integral of its squared distribution up to 0


@dataclass(frozen=True)
class Calibration:
    """What the validation part says of error bars; plain numbers, kept in the checkpoint.

    sd: factor of the standard error, root mean square error over root mean square standard error. interval: factor of
    both distances to the ends of the interval. edges: deciles of the calibrated standard error, ``BINS`` - 1 of them.
    """

    sd: float
    interval: float
    edges: tuple[float, ...]


def outputs(uncertainty: Mapping[str, Any] | None) -> int:
    """Channels of a network: its prediction, and widths where ``uncertainty`` has it learn them."""
    return 1 + (WIDTHS.get(uncertainty["name"], 0) if uncertainty else 0)


def error_bars(
    uncertainty: Mapping[str, Any], raw: Tensor, conserved: Tensor, calibration: Calibration | None
) -> Tensor:
    """Standard error, and distances from the prediction down to the lower and up to the upper end of its interval.

    uncertainty: the section of the configuration as plain values, not ``none``. raw (members, B, outputs, H, W): what
    `DownscalingTask.each` gives, channels beyond the first being widths. conserved (members, B, 1, H, W): predictions
    after conservation, of which the mean over members is the prediction. Returns (B, 3, H, W), in the units of the
    target, none below 0; without calibration as the model alone says it, under ``constant`` a standard error of 1.

    ensemble, mc_dropout (Gal & Ghahramani 2016, arXiv 1506.02142): standard deviation of the members. heteroscedastic:
    that of the mixture of the members' normal distributions (Lakshminarayanan et al. 2017, arXiv 1612.01474). quantile:
    mean distances of the members; the standard error is half the interval of a normal distribution.
    """
    name, half = str(uncertainty["name"]), normal_half_width(float(uncertainty["level"]))
    members = len(conserved)
    if name == "quantile":
        distances = mean_of(raw[:, :, 1:].to(conserved.dtype))
        lower, upper = distances[:, :1], distances[:, 1:]
        standard_error = (lower + upper) / (2 * half)
    else:
        squares = sum_of((conserved - mean_of(conserved)).square())
        if name == "constant":
            variance = torch.ones_like(squares)
        elif name == "heteroscedastic":
            variance = mean_of(raw[:, :, 1:].to(conserved.dtype).square()) + squares / members
        elif members > 1:
            variance = squares / (members - 1)
        else:
            raise ValueError(f"uncertainty={name} needs 2 predictions or more, found {members}: give more members")
        standard_error = variance.sqrt()
        lower = upper = half * standard_error
    sd, interval = (calibration.sd, calibration.interval) if calibration else (1.0, 1.0)
    return torch.cat([standard_error * sd, lower * interval, upper * interval], dim=1)


def normal_half_width(level: float) -> float:
    """Half the central interval that holds the share ``level`` of a normal distribution, in its sd: 1.64 for 0.9."""
    return NormalDist().inv_cdf((1 + level) / 2)


def calibrate(level: float, prediction: Tensor, bars: Tensor, target: Tensor) -> Calibration:
    """Factors that make error bars right on these pixels: prediction (n,), bars (n, 3) uncalibrated, target (n,).

    The factor of the interval is split-conformal (Lei et al. 2018, doi:10.1080/01621459.2017.1307116; for quantiles
    Romano et al. 2019, arXiv 1905.03222, here scaled, so that wide stays wider than narrow): the smallest with which
    ceil((n + 1) level) of the n pixels are covered. Of a pixel that is exchangeable with these the interval then holds
    ``level`` or more; neighbours are alike, so that blocks, not pixels, say how exact that is.

    The factor of the standard error is a ratio of sums, not the root mean square of error / standard error: that has
    no expectation for the spread of 2 or 3 members. Raises ValueError, one line, for too few pixels, values that are
    not finite, and where bars have no width at too many pixels.
    """
    prediction, bars, target = prediction.double(), bars.double(), target.double()
    count, rank = len(target), _ceiling((len(target) + 1) * level)
    if rank > count:
        needed = _ceiling(level / (1 - level))
        raise ValueError(
            f"uncertainty.level: needs {needed} validation pixels or more for {level}, found {count}: give validation "
            "more of the split, or ask for a lower level"
        )
    if not (prediction.isfinite().all() and bars.isfinite().all()):
        raise ValueError("uncertainty: predictions of the validation part are not finite; has training diverged?")
    error = prediction - target
    distance = torch.where(error > 0, bars[:, 1], bars[:, 2])
    # an exact prediction is inside an interval of no width
    scores = torch.where(error == 0, 0, error.abs() / distance)
    interval, spread = float(scores.sort().values[rank - 1]), float(bars[:, 0].square().mean())
    if not math.isfinite(interval) or spread == 0:
        share = 100 * float((distance == 0).double().mean())
        raise ValueError(
            f"uncertainty: its spread is 0 at {share:.0f} % of the validation pixels, too many to calibrate; let the "
            "members differ more, or take uncertainty=constant"
        )
    sd = float((error.square().mean() / spread).sqrt())
    tenths = torch.arange(1, BINS, dtype=torch.float64) / BINS
    places = (tenths * (count - 1)).round().long()  # torch.quantile takes 16 million values at most
    edges = (bars[:, 0] * sd).sort().values[places]
    return Calibration(sd, interval, tuple(edges.tolist()))


def _ceiling(value: float) -> int:
    return math.ceil(round(value, 9))  # 0.9 / 0.1 is a little more than 9


@dataclass(frozen=True)
class Spread:
    """Sums over scored pixels, float64, (7, ``BINS``): rows as ``SPREAD_SUMS``, columns by standard error.

    Count; targets inside the interval, and below it; its width; CRPS; squared standard error; squared error.
    """

    values: Tensor

    @classmethod
    def zero(cls) -> Spread:
        """Nothing seen yet."""
        return cls(torch.zeros((len(SPREAD_SUMS), BINS), dtype=torch.float64))

    @classmethod
    def of(cls, prediction: Tensor, bars: Tensor, target: Tensor, scored: Tensor, edges: tuple[float, ...]) -> Spread:
        """Sums of one batch: prediction, target, scored (bool) (B, 1, H, W), bars (B, 3, H, W) of `error_bars`.

        edges: of the calibration, in ascending order.
        """
        inside = scored[:, 0]
        p, y = prediction[:, 0][inside].double(), target[:, 0][inside].double()
        sd, lower, upper = bars.movedim(1, 0)[:, inside].double()
        below = y < p - lower
        covered = ~below & (y <= p + upper)
        both = (lower + upper).clamp(min=torch.finfo(torch.float64).tiny)
        narrow, wide = (torch.where(lower + upper > 0, 2 * sd * side / both, sd) for side in (lower, upper))
        terms = [
            torch.ones_like(p), covered, below, lower + upper, crps(y - p, narrow, wide), sd.square(), (p - y).square()
        ]  # fmt: skip
        bins = torch.bucketize(sd, torch.tensor(edges, dtype=torch.float64, device=sd.device))
        values = torch.zeros((len(SPREAD_SUMS), BINS), dtype=torch.float64, device=sd.device)
        return cls(values.index_add_(1, bins, torch.stack([term.double() for term in terms])))

    def __add__(self, other: Spread) -> Spread:
        return Spread(self.values.to(other.values.device) + other.values)

    def finish(self) -> dict[str, float]:
        """Scores over everything added; ValueError when nothing was.

        coverage, and the share of targets below the interval (0..1); interval_width and crps (means, units of the
        target); spread_skill: root mean square standard error over root mean square error, 1 is right, less says too
        sure, NaN where there is no error.
        """
        n, covered, below, width, total_crps, variance, squared_error = self.values.sum(dim=1).tolist()
        if n == 0:
            raise ValueError("no valid pixel was scored: check split, crop.min_valid and the gaps of the target")
        return {
            "coverage": covered / n,
            "coverage_below": below / n,
            "interval_width": width / n,
            "crps": total_crps / n,
            "spread_skill": math.sqrt(variance / squared_error) if squared_error > 0 else math.nan,
        }

    def by_bin(self) -> tuple[Tensor, Tensor, Tensor]:
        """Count, root mean square standard error and error of each bin that has pixels, the narrowest first."""
        filled = self.values[:, self.values[0] > 0]
        n, _, _, _, _, variance, squared_error = filled
        return n, (variance / n).sqrt(), (squared_error / n).sqrt()

    def to_dict(self) -> dict[str, list[float]]:
        """Sums by bin as plain numbers, for a file."""
        return dict(zip(SPREAD_SUMS, self.values.tolist(), strict=True))

    @classmethod
    def from_dict(cls, sums: Mapping[str, list[float]]) -> Spread:
        """Inverse of :meth:`to_dict`."""
        return cls(torch.tensor([sums[name] for name in SPREAD_SUMS], dtype=torch.float64))


def crps(departure: Tensor, lower_sd: Tensor, upper_sd: Tensor) -> Tensor:
    """Continuous ranked probability score of a split normal distribution, in the units of the target.

    departure: observation minus mode. lower_sd, upper_sd: of the normal halves below and above the mode. All of one
    shape. With equal sd it is that of a normal distribution (Gneiting & Raftery 2007, doi:10.1198/016214506000001437),
    with both 0 the absolute departure, so that the mean absolute error is the CRPS of a prediction without error bars.
    The distribution is that of Gneiting & Thorarinsdottir 2010, arXiv 1010.2318; its integral of
    (F(t) - [t >= departure])^2 in closed form is |d| + 4 a s (H(-|d| / s) - H(0)) + 4 G (a_1^2 s_1 + a_2^2 s_2), where
    s and a = s / (s_1 + s_2) belong to the side of the departure, H(x) = x Phi(x) + phi(x), G = H(0) - 1 / sqrt(4 pi).
    """
    tiny = torch.finfo(departure.dtype).tiny
    both = (lower_sd + upper_sd).clamp(min=tiny)
    lower_share, upper_share = lower_sd / both, upper_sd / both
    side, distance = torch.where(departure < 0, lower_sd, upper_sd), departure.abs()
    at = -distance / side.clamp(min=tiny)
    integral = at * torch.special.ndtr(at) + _HIGHEST_DENSITY * (-at.square() / 2).exp()
    integral = torch.where(at > -40, integral, 0)  # infinitely many sd away it would be -inf * 0
    tails = 4 * _SQUARED_TAIL * (lower_share**2 * lower_sd + upper_share**2 * upper_sd)
    return distance + 4 * side * (side / both) * (integral - _HIGHEST_DENSITY) + tails
