"""Which bands are worth reading? Chosen by their correlation with coarse SIF on the training part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sifscale.config import ConfigError, Select
from sifscale.features import FeatureCube

Floats: TypeAlias = NDArray[np.float64]

PIXELS = 2**14  # that are added at a time: they fit the processor's caches
ROUNDING = 1e-12  # variance beside the mean square that sums in float64 leave of a constant


def correlations(features: FeatureCube, inside: NDArray[np.bool_]) -> tuple[list[str], Floats]:
    """Correlations of coarse SIF and all scaled channels over ``inside`` (sample, y, x), the train part.

    Against coarse SIF, not the target: choosing bands must not look at what is to be predicted. Pixels where
    one of a pair is missing do not count for this pair; NaN where a channel is constant or missing.
    """
    index = [i for i, channel in enumerate(features.channels) if channel.scaled]
    sums = _PairSums.nothing(1 + len(index))
    for part in features.strips(inside):
        here = inside[part] & np.asarray(features.valid[part])
        columns = [np.asarray(features.coarse[part])[here]]
        predictors = np.asarray(features.predictors[part[0], :, part[1]])
        columns += [predictors[i][here] for i in index]
        for start in range(0, len(columns[0]), PIXELS):
            sums.add(np.array([column[start : start + PIXELS] for column in columns], np.float64))
    return ["coarse SIF", *(features.channels[i].name for i in index)], sums.correlations()


@dataclass
class _PairSums:
    """Sums (k, k) over the pixels where both of a pair of columns are known.

    count: of these pixels; of_first, squares: of the first of the pair and of its square; products: of both. All less
    ``shift`` (k, 1), the first known value of a column: rounding then is beside its spread, not beside its mean.
    """

    shift: Floats
    count: Floats
    of_first: Floats
    squares: Floats
    products: Floats

    @classmethod
    def nothing(cls, columns: int) -> _PairSums:
        """Of no pixel yet."""
        return cls(np.full((columns, 1), np.nan), *(np.zeros((columns, columns)) for _ in range(4)))

    def add(self, columns: Floats) -> None:
        """Columns (k, n) of further pixels, NaN where unknown."""
        known = np.isfinite(columns)
        for i in np.flatnonzero(np.isnan(self.shift[:, 0]) & known.any(axis=1)):
            self.shift[i] = columns[i, known[i].argmax()]
        values, mask = np.where(known, columns - self.shift, 0), known.astype(np.float64)
        self.count += mask @ mask.T
        self.of_first += values @ mask.T
        self.squares += values**2 @ mask.T
        self.products += values @ values.T

    def correlations(self) -> Floats:
        """Pearson's r (k, k); NaN where one of a pair does not vary or no pixel has both."""
        count = np.where(self.count > 0, self.count, np.nan)
        mean, square = self.of_first / count, self.squares / count
        variance = square - mean**2
        variance[variance <= ROUNDING * square] = np.nan
        found: Floats = (self.products / count - mean * mean.T) / np.sqrt(variance * variance.T)
        return found.clip(-1, 1)


def choose(select: Select, bands: tuple[str, ...], names: list[str], matrix: Floats) -> list[str]:
    """Names of the bands to keep: coarse, then by falling |r| with coarse SIF; ConfigError if none is."""
    strength = {name: abs(matrix[0, i]) for i, name in enumerate(names) if name in bands and name != "coarse"}
    ranked = sorted((n for n in strength if np.isfinite(strength[n])), key=lambda name: -strength[name])
    least = select.min_correlation or 0
    kept = ranked[: select.top] if select.top else [name for name in ranked if strength[name] >= least]
    if not kept:
        strongest = f"{ranked[0]} with {strength[ranked[0]]:.2f}" if ranked else "none"
        raise ConfigError(
            [f"features.select: no band is that correlated with coarse SIF (found {strongest})"]
        )
    return [*(["coarse"] if "coarse" in bands else []), *kept]
