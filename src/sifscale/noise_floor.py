"""How noisy is the target itself? The nugget of its semivariogram, and the RMSE that no honest model gets below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The floor is an estimate with an error of some per cent; a score this far below it has another reason.
FLOOR_SHARE = 0.9
LAGS_PX = 3  # further lags tell of the field's structure, not of its noise: the curve bends
EXPONENTS = (1.0, 1.25, 1.5, 1.75, 2.0)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NoiseFloor:
    """noise_sd: standard deviation of the target's noise over the scored pixels. rmse: what it leaves of any honest
    prediction, NaN where coarse SIF is a field on the target's own grid. Both in the unit of the target.
    """

    noise_sd: float
    rmse: float


def estimate(
    target: NDArray[np.floating],
    observed: NDArray[np.bool_],
    scored: NDArray[np.bool_],
    block_px: int,
    *,
    together: bool,
) -> NoiseFloor | None:
    """Noise and floor of RMSE over ``scored`` pixels of a target; all (sample, y, x), ``observed`` where it counts.

    The noise variance of a sample is its nugget (of all samples, where ``together``: many small places). A model
    that knows the field without noise s and the block mean of s + e, e being white, predicts s plus the block mean
    of e at best; of n observed pixels in a block that leaves var(e) (1 - 1 / n). Variation on scales below a pixel
    counts as noise, which makes the floor a mark to look at, not a law; noise shared by neighbours (footprints in
    several cells) does not count. None where nothing is scored or no sample has a nugget. Raises ValueError for
    shapes that differ or are not whole blocks.
    """
    if not target.shape == observed.shape == scored.shape or any(n % block_px for n in target.shape[1:]):
        raise ValueError(
            f"target, observed and scored must have one shape of whole blocks of {block_px} px, found "
            f"{target.shape}, {observed.shape}, {scored.shape}: pad them alike"
        )
    field = np.where(observed, target, np.nan)
    parts = [field] if together else [field[i : i + 1] for i in range(len(field))]
    variance = np.repeat([nugget(*semivariances(part)) for part in parts], [len(part) for part in parts])
    blocks = (len(field), field.shape[1] // block_px, block_px, field.shape[2] // block_px, block_px)
    in_block = observed.reshape(blocks).sum(axis=(2, 4))
    ours = scored.reshape(blocks).sum(axis=(2, 4)) * np.isfinite(variance)[:, None, None]
    if not ours.any():
        return None
    noise = np.nan_to_num(variance)[:, None, None]
    mean_variance = (ours * noise).sum() / ours.sum()
    left = (ours * noise * (1 - 1 / in_block.clip(min=1))).sum() / ours.sum()
    return NoiseFloor(float(np.sqrt(mean_variance)), float(np.sqrt(left)) if block_px > 1 else float("nan"))


def semivariances(field: NDArray[np.floating], lags: int = LAGS_PX) -> tuple[Floats, NDArray[np.int64]]:
    """Semivariance and number of pairs at 1 .. ``lags`` px along y and along x, each (2, lags), of (sample, y, x).

    Matheron's estimator, mean (z(s + h) - z(s))^2 / 2 over the pairs without a gap (Cressie 1993, eq. 2.4.2). Not
    the robust one (2.4.12), which is for noise with outliers that are to be ignored: an RMSE does not ignore them.
    NaN where there is no pair.
    """
    wide = np.asarray(field, dtype=np.float64)
    gamma, pairs = np.full((2, lags), np.nan), np.zeros((2, lags), dtype=np.int64)
    for direction, along in enumerate((wide, wide.swapaxes(1, 2))):
        for lag in range(1, lags + 1):
            squares = (along[:, lag:] - along[:, :-lag]) ** 2
            known = np.isfinite(squares)
            pairs[direction, lag - 1] = known.sum()
            if known.any():
                gamma[direction, lag - 1] = squares[known].mean() / 2
    return gamma, pairs


def nugget(gamma: Floats, pairs: NDArray[np.int64]) -> float:
    """Nugget c of gamma_y(h) = c + a h^t and gamma_x(h) = c + b h^t, at least 0; NaN where too few lags have pairs.

    gamma, pairs: (2, lags), as :func:`semivariances` gives them. The power model (Cressie 1993, section 2.3.1)
    with 1 <= t <= 2: t = 1 is a rough field, 2 a smooth one; below 1 the field would vary most within a pixel,
    which is noise here. For each of ``EXPONENTS`` least squares with weights N(h) / gamma(h)^2 (section 2.6.2,
    after Cressie 1985), so that the many pairs and small values of the first lags count; the best t is taken.
    The slopes are apart since cells are not square and fields not isotropic.
    """
    direction, index = np.nonzero(pairs)
    if len(index) < 5 or len(set(direction)) < 2:  # four unknowns, and one to spare
        return float("nan")
    found = gamma[direction, index]
    if not (found > 0).all():  # equal neighbours: a field without noise, and no weight for this lag
        return 0.0
    weight = np.sqrt(pairs[direction, index]) / found
    fits = []
    for exponent in EXPONENTS:
        slopes = [(direction == d) * (index + 1.0) ** exponent for d in (0, 1)]
        design = np.stack([np.ones(len(index)), *slopes], axis=1) * weight[:, None]
        solution = np.linalg.lstsq(design, found * weight, rcond=None)[0]
        fits.append((float(((design @ solution - found * weight) ** 2).sum()), float(solution[0])))
    return max(min(fits)[1], 0.0)


def describe(noise_sd: float, floor_rmse: float | None, target_sd: float, units: str) -> str:
    """One line for the foot of a table: how much noise, and which R2 of a target with ``target_sd`` is suspect."""
    if target_sd > 0 and noise_sd < 0.01 * target_sd:
        return f"no noise of the target to be seen (nugget of its semivariogram below {0.01 * target_sd:.1g} {units})"
    noise = f"noise of the target about {noise_sd:.3f} {units} (nugget of its semivariogram)"
    if floor_rmse is None:
        return f"{noise}; no floor: coarse SIF is a field on the target's own grid"
    suspect = 1 - (FLOOR_SHARE * floor_rmse / target_sd) ** 2 if target_sd > 0 else float("nan")
    return f"{noise}, floor of RMSE about {floor_rmse:.3f}: treat R2 above {suspect:.2f} as a leak alarm"
