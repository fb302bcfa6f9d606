"""Regressions of the residual to bilinear on the predictors of a pixel: ridge, random forest, gradient boosting.

They are fitted once on the pixels of the training part, and from then on are models as all others.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from sifscale.models.interpolation import upsample

# A sum of squares about the mean that is smaller than this share of the plain sum of squares is rounding.
ROUNDING = 1e-10


@dataclass(frozen=True)
class Fields:
    """One batch to learn from: predictors (B, C, H, W), coarse and target (B, 1, H, W), all normalised.

    counted (B, 1, H, W) bool: the pixels that count. Elsewhere target may be NaN; predictors and coarse never are.
    """

    predictors: Tensor
    coarse: Tensor
    target: Tensor
    counted: Tensor


@runtime_checkable
class Fitted(Protocol):
    """A model that learns in one step instead of by gradients."""

    def fit(self, train: Iterable[Fields], validation: Iterable[Fields], seed: int) -> dict[str, float]:
        """Learn from each counted pixel of ``train``; returns figures worth logging.

        validation: for a choice between options; may be empty. Raises ValueError where ``train`` has no counted pixel.
        """
        ...


def pixel_features(predictors: Tensor, coarse: Tensor, factor: int) -> Tensor:
    """What a pixel is known by, (B, 2 C + 1, H, W): each band, its deviation from the block mean, the bilinear coarse.

    predictors (B, C, H, W) and coarse (B, 1, H, W), both normalised; the first block lies at the origin, the last
    one may be cut. Where `factor` is 1 all deviations are 0.
    """
    height, width = predictors.shape[-2:]
    means = F.avg_pool2d(predictors, factor, ceil_mode=True)
    means = F.interpolate(means, scale_factor=factor, mode="nearest-exact")[..., :height, :width]
    return torch.cat([predictors, predictors - means, upsample(coarse, factor, "bilinear")], dim=1)


def counted_pixels(fields: Fields, factor: int) -> tuple[Tensor, Tensor]:
    """Features (n, 2 C + 1) and residual to bilinear (n,) of the pixels that count."""
    features = pixel_features(fields.predictors, fields.coarse, factor)
    residual = fields.target - upsample(fields.coarse, factor, "bilinear")
    counted = fields.counted[:, 0]
    return features.movedim(1, -1)[counted], residual[:, 0][counted]


def no_pixels() -> ValueError:
    """What to say where there is nothing to learn from."""
    return ValueError("training part: must hold a pixel with an observed target; take another split (found 0 pixels)")


class LeastSquares:
    """Ridge regressions from sums of products alone, in float64: the number of pixels does not matter.

    regressions: how many side by side (P). intercept: each has a constant as its last weight, without penalty.
    """

    def __init__(self, regressions: int, features: int, *, intercept: bool) -> None:
        columns = features + intercept + 1
        self.intercept = intercept
        self.n = 0
        self.products = torch.zeros(regressions, columns, columns, dtype=torch.float64)

    def add(self, features: Tensor, residual: Tensor, known: Tensor) -> None:
        """Count pixels: features (P, n, K), residual (P, n), of which only those with ``known`` (P, n) are read."""
        parts = [features, *([torch.ones_like(residual)[..., None]] if self.intercept else []), residual[..., None]]
        columns = torch.where(known[..., None], torch.cat(parts, dim=-1), 0).double().cpu()
        self.products += columns.mT @ columns
        self.n += int(known.sum())

    def weights(self, strength: float) -> Tensor:
        """Weights (P, K), with intercept (P, K + 1), that minimise squared error + strength x penalty.

        The penalty is the sum of (weight x spread of its feature)^2 over all pixels (Hoerl & Kennard 1970,
        doi:10.1080/00401706.1970.10488634, on standardised features): ``strength`` is the usual one divided by the
        number of pixels. A feature without spread gets no weight. Without intercept the spread is that about 0.
        """
        gram, cross = self.products[:, :-1, :-1], self.products[:, :-1, -1:]
        squares = torch.diagonal(gram, dim1=-2, dim2=-1)
        spread = squares - gram[:, -1] ** 2 / gram[:, -1:, -1] if self.intercept else squares
        penalty = torch.where(spread > ROUNDING * squares, strength * spread, squares.clamp(min=1))
        if self.intercept:
            penalty[:, -1] = 0
        weights: Tensor = torch.linalg.solve(gram + torch.diag_embed(penalty), cross)
        return weights[..., 0]

    def squared_error(self, weights: Tensor) -> float:
        """Sum of squared errors that these weights make on the pixels counted here."""
        error = torch.cat([-weights, torch.ones_like(weights[:, :1])], dim=-1)[..., None]
        return float((error.mT @ self.products @ error).sum())


def best_weights(train: LeastSquares, validation: LeastSquares, strengths: Sequence[float]) -> tuple[Tensor, float]:
    """Weights and the strength with the smallest error on ``validation``; the first strength where that is empty.

    Raises ValueError where ``train`` has no pixel.
    """
    if not train.n:
        raise no_pixels()
    candidates = [(train.weights(strength), strength) for strength in strengths]
    return min(candidates, key=lambda found: validation.squared_error(found[0])) if validation.n else candidates[0]


class Ridge(nn.Module):
    """Bilinear coarse plus a linear function of `pixel_features`, the same for all pixels.

    strengths: what `LeastSquares.weights` may use; the best on the validation part is taken (the first where there is
    none). Before `fit` the output is the bilinear coarse. Has 2 C + 2 parameters, none of which a gradient changes.
    """

    def __init__(self, *, in_channels: int, factor: int, strengths: Sequence[float]) -> None:
        super().__init__()
        self.factor, self.strengths = factor, tuple(strengths)
        self.weights = nn.Parameter(torch.zeros(2 * in_channels + 2), requires_grad=False)  # the last: intercept

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, 1, H, W), for any H and W."""
        features = pixel_features(predictors, coarse, self.factor)
        correction = self.weights[-1].expand_as(coarse)
        # one after another: autocast would round a matrix product to half precision, and torch.sum takes another order
        # at the end of a tensor, so that a tile would differ from the whole field
        for feature, weight in zip(features.unbind(dim=1), self.weights[:-1], strict=True):
            correction = correction + feature[:, None] * weight
        return upsample(coarse, self.factor, "bilinear") + correction

    def fit(self, train: Iterable[Fields], validation: Iterable[Fields], seed: int) -> dict[str, float]:
        """See `Fitted`; nothing is random here."""
        parts = []
        for part in (train, validation):
            sums = LeastSquares(1, len(self.weights) - 1, intercept=True)
            for fields in part:
                features, residual = counted_pixels(fields, self.factor)
                sums.add(features[None], residual[None], torch.ones_like(residual[None], dtype=torch.bool))
            parts.append(sums)
        weights, strength = best_weights(parts[0], parts[1], self.strengths)
        self.weights.copy_(weights[0])
        return {"pixels": float(parts[0].n), "strength": strength}


class _Trees(nn.Module):
    """Bilinear coarse plus what an estimator of scikit-learn says about `pixel_features`.

    At most ``max_pixels`` training pixels are used, drawn at random. The estimator travels in the state as pickled
    bytes: a checkpoint is to be loaded only if its source is trusted, and with the scikit-learn that wrote it.
    """

    def __init__(self, factor: int, max_pixels: int, estimator: Any) -> None:
        super().__init__()
        self.factor, self.max_pixels, self.estimator = factor, max_pixels, estimator

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, 1, H, W), for any H and W; scikit-learn's NotFittedError before `fit`."""
        features = pixel_features(predictors, coarse, self.factor).movedim(1, -1)
        rows = features.flatten(0, 2).float().cpu().numpy()
        known = np.isfinite(rows).all(axis=1)  # trees have an answer to NaN too, or refuse it; here it gives NaN
        found = np.full(len(rows), np.nan)
        with _threads_of_torch():
            if known.any():
                found[known] = self.estimator.predict(rows if known.all() else rows[known])
        correction = torch.from_numpy(found).to(coarse).reshape(coarse.shape)
        return upsample(coarse, self.factor, "bilinear") + correction

    def fit(self, train: Iterable[Fields], validation: Iterable[Fields], seed: int) -> dict[str, float]:
        """See `Fitted`; validation is not read."""
        rows = self._sample(train, np.random.default_rng(seed))
        self.estimator.set_params(random_state=seed)
        with _threads_of_torch():
            self.estimator.fit(rows[:, :-1], rows[:, -1])
        return {"pixels": float(len(rows))}

    def _sample(self, train: Iterable[Fields], rng: np.random.Generator) -> NDArray[np.float32]:
        """Rows of features and residual: of all pixels those with the smallest random numbers, at most max_pixels."""
        rows: list[NDArray[np.float32]] = []
        for fields in train:
            features, residual = (part.cpu().numpy() for part in counted_pixels(fields, self.factor))
            number = rng.random(len(residual), dtype=np.float32)
            rows.append(np.column_stack([features, residual, number]))
            if sum(map(len, rows)) > 2 * self.max_pixels:
                rows = [self._smallest(rows)]
        if not any(map(len, rows)):
            raise no_pixels()
        return self._smallest(rows)[:, :-1]

    def _smallest(self, rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        table = np.concatenate(rows)
        if len(table) <= self.max_pixels:
            return table
        kept: NDArray[np.float32] = table[np.argsort(table[:, -1], kind="stable")[: self.max_pixels]]
        return kept

    def get_extra_state(self) -> Tensor:
        """The pickled estimator as bytes in a tensor, which ``torch.load(weights_only=True)`` accepts."""
        return torch.frombuffer(bytearray(pickle.dumps(self.estimator)), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of `get_extra_state`."""
        self.estimator = pickle.loads(state.cpu().numpy().tobytes())


def _threads_of_torch() -> threadpool_limits:
    """OpenMP of scikit-learn is another than torch's: without this it takes every core, whatever trainer.threads is."""
    return threadpool_limits(torch.get_num_threads(), user_api="openmp")


class RandomForest(_Trees):
    """Random forest (Breiman 2001, doi:10.1023/A:1010933404324) of the residual to bilinear.

    trees: their number. min_leaf: training pixels that a leaf must hold. max_features: share of the features that a
    split may choose from. max_pixels: how many training pixels are drawn at most.
    """

    def __init__(
        self, *, in_channels: int, factor: int, trees: int, min_leaf: int, max_features: float, max_pixels: int
    ) -> None:
        from sklearn.ensemble import RandomForestRegressor  # about a second, which networks need not wait for

        estimator = RandomForestRegressor(trees, min_samples_leaf=min_leaf, max_features=max_features, n_jobs=1)
        super().__init__(factor, max_pixels, estimator)


class GradientBoosting(_Trees):
    """Histogram gradient boosting (Ke et al. 2017, NeurIPS 30) of the residual to bilinear.

    iterations: number of trees, each of at most `max_leaves` leaves with `min_leaf` training pixels or more, each
    added with the weight `learning_rate`. max_pixels: how many training pixels are drawn at most.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        factor: int,
        iterations: int,
        learning_rate: float,
        max_leaves: int,
        min_leaf: int,
        max_pixels: int,
    ) -> None:
        from sklearn.ensemble import HistGradientBoostingRegressor  # see RandomForest

        estimator = HistGradientBoostingRegressor(
            max_iter=iterations,
            learning_rate=learning_rate,
            max_leaf_nodes=max_leaves,
            min_samples_leaf=min_leaf,
            early_stopping=False,  # would hold back random pixels, neighbours of those it learns from
        )
        super().__init__(factor, max_pixels, estimator)
