"""The light-use-efficiency model: SIF from a vegetation index, evapotranspiration and land surface temperature.

Duveiller & Cescatti 2016, doi:10.1016/j.rse.2016.04.027. Its coefficients are found between coarse SIF and bands
averaged over coarse cells, and then applied to fine bands: fine SIF is not needed at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor, nn
from torch.nn import functional as F

from sifscale.datamodule import Scaler
from sifscale.models.regression import Fields

Vector = NDArray[np.float64]
Drivers = Mapping[str, Tensor]  # by the names in COEFFICIENTS, all of one shape, in physical units

# What SIF may depend on and the coefficients of each, with values that change nothing (or what b1 makes good).
COEFFICIENTS: dict[str, dict[str, float]] = {
    "vegetation": {"b1": 1.0, "b2": 1.0},
    "evapotranspiration": {"b3": 0.0, "b4": 0.0},
    "temperature": {"b5": 0.0, "b6": float("inf")},
}
SMALLEST_INDEX = 1e-3  # water and snow have indices below 0, which have no power
AMPLITUDES = (0.2, 5.0)  # beyond these a crop's SIF is noise about 0 or has another cause than its vegetation
CONSTANT = 1e-5  # a range that is a smaller share of the values is rounding of float32


def light_use(coefficients: Tensor, drivers: Drivers) -> Tensor:
    """SIF = b1 VI^b2 x 1 / (1 + exp(b3 (b4 - ET))) x exp(-0.5 ((LST - b5) / b6)^2), in the shape of the drivers.

    Duveiller & Cescatti 2016, doi:10.1016/j.rse.2016.04.027. drivers: vegetation (VI), and evapotranspiration (ET) and
    temperature (LST) where they are known; without one its factor is left out. coefficients: b1 and b2, b3 and b4 if
    there is ET, b5 and b6 if there is LST. b1 has the unit of SIF, b4 that of ET and b3 its inverse, b5 and b6 that of
    LST. A vegetation index below `SMALLEST_INDEX` counts as that.
    """
    b1, b2, *others = coefficients.unbind()
    sif = b1 * drivers["vegetation"].clamp(min=SMALLEST_INDEX) ** b2
    if "evapotranspiration" in drivers:
        b3, b4, *others = others
        sif = sif * torch.sigmoid(b3 * (drivers["evapotranspiration"] - b4))
    if "temperature" in drivers:
        b5, b6 = others
        sif = sif * torch.exp(-0.5 * ((drivers["temperature"] - b5) / b6) ** 2)
    return sif


class LightUse(nn.Module):
    """`light_use` of the fine bands, times an amplitude that fits the coarse field of each crop.

    vegetation, evapotranspiration, temperature: the channels to read; None leaves a factor out. channels: names of the
    predictors in order. scaler: how they and SIF were normalised, which is undone here, since a power or an optimum
    means nothing for z-scores. Raises ValueError where a named channel is missing.

    The paper fits all coefficients anew in a moving window. Here a crop is the window: a few dozen noisy cells of one
    composite do not tell six coefficients apart, so that only the amplitude is fitted in each; the others, how
    vegetation responds, are those of the whole training part.

    Before `fit` SIF goes as the vegetation index. The coefficients are a buffer, which travels in the checkpoint.
    """

    coefficients: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        factor: int,
        vegetation: str,
        evapotranspiration: str | None,
        temperature: str | None,
        channels: Sequence[str],
        scaler: Scaler,
    ) -> None:
        super().__init__()
        roles = dict(zip(COEFFICIENTS, (vegetation, evapotranspiration, temperature), strict=True))
        named = {role: name for role, name in roles.items() if name is not None}
        missing = [name for name in named.values() if name not in channels]
        if missing:
            raise ValueError(f"lue needs the channels {', '.join(missing)}, found {', '.join(channels)}: add them")
        self.index = {role: list(channels).index(name) for role, name in named.items()}
        self.factor, self.scaler = factor, scaler
        neutral = {name: value for role in self.index for name, value in COEFFICIENTS[role].items()}
        self.names = tuple(neutral)
        self.register_buffer("coefficients", torch.tensor(list(neutral.values())))

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, 1, H, W), normalised as `coarse` is, for any H and W.

        A gap (0 after normalisation) is read as the value that 0 stands for: the training mean of a z-scored band. All
        coarse cells of a crop count, those too that were filled from a neighbour.
        """
        offset, scale = self.scaler.target_offset, self.scaler.target_scale
        sif = light_use(self.coefficients, self._drivers(predictors))
        cells = coarse[..., :: self.factor, :: self.factor] * scale + offset
        means = F.avg_pool2d(sif, self.factor, ceil_mode=True)
        return (_amplitude(cells, means) * sif - offset) / scale

    def fit(self, train: Iterable[Fields], validation: Iterable[Fields], seed: int) -> dict[str, float]:
        """Coefficients from the coarse cells of ``train`` of which at least half the pixels count; see `Fitted`.

        Neither the target nor validation is read, and nothing is random. Returns how many cells there are, the RMSE of
        their SIF (its unit) and the coefficients. Raises ValueError where cells are fewer than coefficients.
        """
        tables = [self._cells(fields) for fields in train]
        table = torch.cat(tables, dim=1) if tables else torch.zeros(len(self.index) + 1, 0)
        needed, found = len(self.names), table.shape[1]
        if found < needed:
            raise ValueError(
                f"training part: must have at least {needed} coarse cells with half of their pixels observed for "
                f"model.name=lue; take another split (found {found} cells)"
            )
        *columns, sif = table
        best, rmse = _least_squares(dict(zip(self.index, columns, strict=True)), sif)
        self.coefficients.copy_(torch.from_numpy(best))
        return {"cells": float(found), "rmse": rmse} | dict(zip(self.names, best.tolist(), strict=True))

    def _drivers(self, predictors: Tensor) -> dict[str, Tensor]:
        """The channels to read, each (B, 1, H, W), in physical units."""
        scaler = self.scaler
        return {role: predictors[:, i : i + 1] * scaler.scale[i] + scaler.offset[i] for role, i in self.index.items()}

    def _cells(self, fields: Fields) -> Tensor:
        """Means of the drivers over counted pixels and coarse SIF (drivers + 1, cells), in physical units."""
        counted = fields.counted.double()
        coarse = fields.coarse * self.scaler.target_scale + self.scaler.target_offset
        sums = [self._block_sums(f * counted) for f in (*self._drivers(fields.predictors).values(), coarse)]
        counts = self._block_sums(counted)
        used = 2 * counts >= self.factor**2
        return torch.stack([field[used] / counts[used] for field in sums]).cpu()

    def _block_sums(self, field: Tensor) -> Tensor:
        return F.avg_pool2d(field, self.factor, ceil_mode=True, divisor_override=1)


def _amplitude(cells: Tensor, means: Tensor) -> Tensor:
    """What ``means`` are multiplied by to come nearest to ``cells`` in each sample, (B, 1, 1, 1), within bounds."""
    wide = means.double()  # the square of a SIF near 0 is 0 in float32
    product = (cells * wide).sum(dim=(1, 2, 3), keepdim=True)
    square = (wide**2).sum(dim=(1, 2, 3), keepdim=True)
    best = torch.where(square > 0, product / torch.where(square > 0, square, 1), 1)
    return best.clamp(*AMPLITUDES).to(means)


def _least_squares(drivers: Drivers, sif: Tensor) -> tuple[Vector, float]:
    """Coefficients with the smallest squared error of ``sif`` (n,), float64, and their RMSE.

    The best from several starts is taken: a search may end where a factor is 0, or flat, all over the data.
    """

    def residual(coefficients: Vector) -> Vector:
        error: Vector = (light_use(torch.from_numpy(coefficients), drivers) - sif).numpy()
        return error

    lower, upper = zip(*(bound for role, values in drivers.items() for bound in _bounds(role, values)), strict=True)
    found = []
    for start in itertools.product(*(_starts(role, values) for role, values in drivers.items())):
        first = np.concatenate(start)
        shape = light_use(torch.from_numpy(first), drivers)  # with b1 = 1, in which the model is linear
        first[0] = max(float((shape * sif).sum() / (shape**2).sum()), 1e-6)
        found.append(optimize.least_squares(residual, first, bounds=(lower, upper), x_scale="jac"))
    best = min(found, key=lambda fit: float(fit.cost))
    return best.x, float(np.sqrt(np.mean(best.fun**2)))


def _bounds(role: str, values: Tensor) -> list[tuple[float, float]]:
    """(lower, upper) of each coefficient that goes with a driver (n,): a response that the data can show."""
    if role == "vegetation":
        return [(0.0, np.inf), (0.1, 4.0)]
    low, high, spread = _range(values)
    centre = (low - spread, high + spread)
    if role == "evapotranspiration":
        return [(0.0, 50 / spread), centre]  # not negative: more water, more light use
    return [centre, (0.05 * spread, 20 * spread)]


def _starts(role: str, values: Tensor) -> list[list[float]]:
    if role == "vegetation":
        return [[1.0, 0.5], [1.0, 2.0]]
    _, _, spread = _range(values)
    centres = np.quantile(values.numpy(), (0.25, 0.75)).tolist()
    return [[4 / spread, at] if role == "evapotranspiration" else [at, 0.5 * spread] for at in centres]


def _range(values: Tensor) -> tuple[float, float, float]:
    """Smallest, largest and their difference; 1 in its place where the values are constant, and any would do."""
    low, high = float(values.min()), float(values.max())
    spread = high - low
    return low, high, spread if spread > CONSTANT * max(abs(low), abs(high)) else 1.0
