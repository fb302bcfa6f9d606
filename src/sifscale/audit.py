"""Does anything leak? Asked before every training: a finding stops an honest run, a legacy run logs it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sifscale import grid
from sifscale.crops import Plans
from sifscale.features import FeatureCube
from sifscale.noise_floor import FLOOR_SHARE
from sifscale.splits import TEST

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]

# A predictor that explains the target this well together with coarse SIF is made from the target: real
# predictors leave the sounding noise unexplained (about 20 % of the variance of the Minnesota tables).
DERIVED_R2 = 0.99
LOCAL_WINDOW_PX = 16
MOVING_MEAN_FACTORS = (3, 5, 7)


@dataclass(frozen=True)
class Finding:
    """What makes test scores look better than they are: a short ``code`` and a sentence with figures."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


def audit(features: FeatureCube, plans: Plans, scaler_saw: Mask) -> list[Finding]:
    """All findings of a run.

    features: what the model will read (gaps NaN). plans: its crops. scaler_saw (sample, y, x): the pixels
    that normalisation, or any scaling before it, was fitted on.
    """
    test = scored_pixels(plans, features.coarse.shape)
    observed = observed_pixels(features)
    return [
        *_overlap(plans, test),
        *_shared_places(plans, test, features),
        *_scaler(scaler_saw, test),
        *_derived_predictors(features, observed),
        *_moving_mean_coarse(features, observed),
    ]


def below_noise_floor(rmse: float, floor_rmse: float) -> list[Finding]:
    """A test RMSE that the noise of the target does not allow (``noise_floor.py``), asked after the test."""
    if not rmse < FLOOR_SHARE * floor_rmse:
        return []
    text = (
        f"test RMSE {rmse:.4g} is below {FLOOR_SHARE} x the noise floor of the target, {floor_rmse:.4g}: no honest "
        "model gets there; look for what lets the target through"
    )
    return [Finding("below_noise_floor", text)]


def observed_pixels(features: FeatureCube) -> Mask:
    """Pixels (sample, y, x) of which the target was measured.

    Not those that are exactly 0, a gap that legacy.zero_gaps filled: they hide what holds for the others.
    """
    observed: Mask = np.asarray(features.valid) & (np.asarray(features.target) != 0)
    return observed


def scored_pixels(plans: Plans, shape: tuple[int, int, int]) -> Mask:
    """Pixels (sample, y, x) that test scores are made of."""
    return plans.test.covered(shape) if plans.parts is None else plans.parts == TEST


def guard_distance_px(plans: Plans, shape: tuple[int, int, int]) -> float:
    """Smallest distance (Chebyshev, px) from a pixel of a training crop to a test pixel of the same sample.

    0: they overlap; inf: no sample has both.
    """
    train, test = plans.train.covered(shape), scored_pixels(plans, shape)
    closest = np.inf
    for near, held_out in zip(train, test, strict=True):
        if near.any() and held_out.any():
            distance = ndimage.distance_transform_cdt(~held_out, metric="chessboard")
            closest = min(closest, float(distance[near].min()))
    return closest


def _overlap(plans: Plans, test: Mask) -> list[Finding]:
    findings = []
    for name, plan in (("training", plans.train), ("validation", plans.validation)):
        if plan is not None:
            share = _share_seen(plan.covered(_shape(test)), test)
            if share:
                text = f"{share:.1%} of the test pixels lie inside a {name} crop"
                findings.append(Finding("overlap", text))
    return findings


def _shared_places(plans: Plans, test: Mask, features: FeatureCube) -> list[Finding]:
    """Places, of many, that are trained on and tested, unless the test is all later (a time split)."""
    if len(set(features.places)) == 1:  # the split lies within the place, or in time
        return []
    tested = test.any(axis=(1, 2))
    trained = plans.train.covered(_shape(test)).any(axis=(1, 2))
    if not (tested.any() and trained.any()) or features.times[tested].min() > features.times[trained].max():
        return []
    places = np.array(features.places)
    shared = sorted(set(places[tested]) & set(places[trained]))
    text = f"{len(shared)} places are in train and test, e.g. {shared[0]}" if shared else ""
    return [Finding("shared_place", text)] if shared else []


def _scaler(scaler_saw: Mask, test: Mask) -> list[Finding]:
    share = _share_seen(scaler_saw, test)
    return [Finding("scaler", f"the scaler was fitted on {share:.1%} of the test pixels")] if share else []


def _share_seen(seen: Mask, test: Mask) -> float:
    return float((seen & test).sum() / max(int(test.sum()), 1))


def _shape(mask: Mask) -> tuple[int, int, int]:
    samples, rows, columns = mask.shape
    return samples, rows, columns


def _derived_predictors(features: FeatureCube, observed: Mask) -> list[Finding]:
    """Predictors that, with coarse SIF, give the target linearly, everywhere or in most small windows."""
    findings = []
    coarse, target = np.asarray(features.coarse), np.asarray(features.target)
    for i, channel in enumerate(features.channels):
        values = np.asarray(features.predictors[:, i])
        known = observed & np.isfinite(values)
        everywhere = _linear_r2(values[known], coarse[known], target[known])
        local = _local_r2(values, coarse, target, known) if everywhere < DERIVED_R2 else everywhere
        if max(everywhere, local) >= DERIVED_R2:
            where = "over the whole field" if everywhere >= DERIVED_R2 else f"in {LOCAL_WINDOW_PX} px windows"
            text = (
                f"a linear fit of '{channel.name}' and coarse SIF gives the target with R2 "
                f"{max(everywhere, local):.6f} {where}"
            )
            findings.append(Finding("target_derived_predictor", text))
    return findings


def _linear_r2(values: Field, coarse: Field, target: Field) -> float:
    """R2 of target ~ values + coarse + 1 (least squares, in sample)."""
    if len(target) < 8 or np.ptp(target) == 0:
        return 0.0
    design = np.column_stack([values, coarse, np.ones_like(values)]).astype(np.float64)
    wanted = target.astype(np.float64)
    residual = wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    return float(1 - residual.var() / wanted.var())


def _local_r2(values: Field, coarse: Field, target: Field, known: Mask) -> float:
    """Median of the same R2 over well-filled windows: finds scalings that differ from place to place."""
    scores = []
    step = LOCAL_WINDOW_PX
    for sample in range(values.shape[0]):
        for y in range(0, values.shape[1], step):
            for x in range(0, values.shape[2], step):
                at = (sample, slice(y, y + step), slice(x, x + step))
                here = known[at]
                if here.sum() >= step * step // 2:
                    scores.append(_linear_r2(values[at][here], coarse[at][here], target[at][here]))
    return float(np.median(scores)) if scores else 0.0


def _moving_mean_coarse(features: FeatureCube, observed: Mask) -> list[Finding]:
    """Is coarse SIF the moving mean of the target? Then its neighbours hold each value: mere deblurring."""
    if features.block_px > 1 or not observed.any():  # block means by construction
        return []
    target = np.where(observed, np.asarray(features.target), np.nan).astype(np.float64)
    coarse = np.asarray(features.coarse)
    for factor in MOVING_MEAN_FACTORS:
        difference = np.abs(grid.moving_mean(target, factor) - coarse)[observed]
        # the share, not the maximum: a few cells at gaps may have been treated otherwise
        if np.mean(difference < 1e-5) > 0.95:
            text = (
                f"coarse SIF is the {factor}x{factor} moving mean of the target on the same grid (median "
                f"difference {np.median(difference):.1e}): the task is deblurring, not downscaling"
            )
            return [Finding("moving_mean_coarse", text)]
    return []
