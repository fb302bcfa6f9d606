"""Does anything leak? Asked before every training: a finding stops an honest run, a legacy run logs it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sifscale.crops import Plans
from sifscale.features import FeatureCube
from sifscale.hidden_target import blurred_coarse, derived_predictors
from sifscale.noise_floor import FLOOR_SHARE
from sifscale.splits import TEST

Mask = NDArray[np.bool_]


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
        *_twins(plans, test, features),
        *_scaler(scaler_saw, test),
        *(Finding("target_derived_predictor", text) for text in derived_predictors(features, observed, test)),
        *(Finding("moving_mean_coarse", text) for text in blurred_coarse(features, observed)),
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


def _twins(plans: Plans, test: Mask, features: FeatureCube) -> list[Finding]:
    """Samples whose target is, pixel by pixel, that of a sample of the other part, whatever the places are called."""
    tested, trained = test.any(axis=(1, 2)), plans.train.covered(_shape(test)).any(axis=(1, 2))
    target = np.where(observed_pixels(features), np.asarray(features.target), 0)
    varies = np.ptp(target, axis=(1, 2)) > 0  # empty ones are all alike
    fields = [hashlib.sha256(field.tobytes()).digest() for field in target]
    seen = {fields[i]: i for i in np.flatnonzero(trained & ~tested & varies)}
    twins = [(i, seen[fields[i]]) for i in np.flatnonzero(tested & ~trained) if fields[i] in seen]
    if not twins:
        return []
    text = f"{len(twins)} tested samples are trained on under another name, e.g. sample {twins[0][0]} as {twins[0][1]}"
    return [Finding("shared_place", text)]


def _scaler(scaler_saw: Mask, test: Mask) -> list[Finding]:
    share = _share_seen(scaler_saw, test)
    return [Finding("scaler", f"the scaler was fitted on {share:.1%} of the test pixels")] if share else []


def _share_seen(seen: Mask, test: Mask) -> float:
    return float((seen & test).sum() / max(int(test.sum()), 1))


def _shape(mask: Mask) -> tuple[int, int, int]:
    samples, rows, columns = mask.shape
    return samples, rows, columns
