"""Do predictors, or coarse SIF, hold the target in another form? The audit asks, on pixels drawn from the field.

A predictor is judged beside coarse SIF, which every model reads: it holds the target if both together explain nearly
all of it *and* most of what coarse SIF alone leaves. Real bands do not, not even where the target is smooth and free of
noise (1 km temperature, the truth of a simulation). Not found: a target moved by more than ``FILTER_PX // 2`` px,
turned or mirrored, or under noise of its own (``noise_floor.py`` sees a score too good to be true).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from sifscale import grid
from sifscale.crops import window_sums
from sifscale.features import FeatureCube

Mask = NDArray[np.bool_]
Values = NDArray[np.floating]
Pixels = NDArray[np.intp]  # (n, 3): sample, y, x

# The best band beside coarse SIF leaves 17 % of the variance of the Minnesota tables and 12 % of a simulation's
# noise-free 1 km truth, but 0.3 % of 1 km surface temperature, of which coarse alone leaves 0.5 %.
DERIVED_R2 = 0.99
LEFT_SHARE = 0.1  # so it must also leave at most this share of what coarse leaves: 86, 36 and 59 % of the same fields
EXPLAINED = 1e-6  # variance left by rounding: there is nothing more to explain
ROUNDING = 1e-10  # likewise in a predictor that is coarse SIF itself: float32, mean 100 times the spread
LOCAL_WINDOW_PX = 16  # a scaling that differs from place to place is constant in most windows of this size
MIN_WINDOWS = 8  # the median of fewer windows is chance: in one homogeneous landscape SIF follows NIRv closely
FILTER_PX = 5  # a network looks at neighbours, so does the audit
REACH_PX = FILTER_PX // 2  # a predictor may itself look so far in coarse SIF (local statistics, LBP)
MIN_PIXELS, ROWS_PER_UNKNOWN = 64, 4  # of one predictor, of a filter: fewer may agree by chance
MAX_PIXELS, MAX_WINDOWS = 10_000, 1000  # R2 is known to 1e-3 then, and 82 coefficients cost 10 ms
MAX_PAIRS, PAIR_PIXELS = 1000, 1000  # of composites of one place, the nearest in time first
MOVING_MEAN_FACTORS = (3, 5, 7)  # in pixels; 3 is the original study
BLUR_PX = (5, 9)  # the smaller filter is for gaps, which leave few whole neighbourhoods of the larger
BLUR_R2 = 0.995  # of coarse SIF: a measurement of its own has noise of its own
CENTRE = FILTER_PX**2 // 2  # of a flattened square


@dataclass(frozen=True)
class _Squares:
    """Squares of k px cut from a feature cube: predictors (n, channel, k), target, coarse (n, k), gaps NaN."""

    predictors: Values
    target: Values
    coarse: Values
    reach: Values  # (n, m): coarse in the larger square at which a filter of a predictor may look through it

    def centre(self, channel: int) -> tuple[Values, Values, Values]:
        """A predictor, target and coarse at the central pixel of each square of FILTER_PX, all (n,)."""
        return self.predictors[:, channel, CENTRE], self.target[:, CENTRE], self.coarse[:, CENTRE]

    def alone(self, wanted: Values) -> float:
        """Share of wanted (n,) left by a filter of coarse; by the smaller one where few of the larger are whole."""
        return min(_left(self.reach, wanted), _left(self.coarse, wanted))


def derived_predictors(features: FeatureCube, observed: Mask, test: Mask) -> list[str]:
    """A sentence for each predictor that holds the target; if there is none, for all together or another composite.

    observed, test (sample, y, x): where the target was measured, and where a model is tested. A leak may be there only
    where scores are made, so all is asked of the test part again.
    """
    target = np.where(observed, np.asarray(features.target), np.nan)
    found, together = dict[str, str](), list[str]()
    for part, where in (("", observed), (" in the test part", observed & test)):
        corners = _drawn(where, MAX_PIXELS) - (0, FILTER_PX // 2, FILTER_PX // 2)
        around = _cut(features, target, corners, FILTER_PX, REACH_PX)
        known = window_sums(grid.pad_to_multiple(where, LOCAL_WINDOW_PX), LOCAL_WINDOW_PX, LOCAL_WINDOW_PX)
        corners = _drawn(known >= LOCAL_WINDOW_PX**2 / 2, MAX_WINDOWS) * (1, LOCAL_WINDOW_PX, LOCAL_WINDOW_PX)
        windows = _cut(features, target, corners, LOCAL_WINDOW_PX)
        for i, channel in enumerate(features.channels):
            name = f"'{channel.name}'"
            if name not in found:
                way = _linear(around, windows, i, name) or _filtered(around, i, name) or _bent(around, i, name)
                found |= {name: way + part} if way else {}
        together += [text + part for text in [_all_together(around)] if text]
    return list(found.values()) or together[:1] or _other_composites(features, target, observed & test)


def blurred_coarse(features: FeatureCube, observed: Mask) -> list[str]:
    """A sentence if coarse SIF is a moving mean or blur of the target (``observed``: where measured) on its grid."""
    if features.block_px > 1 or not observed.any():  # block means by construction
        return []
    target = np.where(observed, np.asarray(features.target), np.nan)
    coarse, so = np.asarray(features.coarse), "the task is deblurring, not downscaling"
    bare = replace(features, predictors=coarse[:, None])
    for factor in MOVING_MEAN_FACTORS:
        mean = grid.moving_mean(target.astype(np.float64), factor)[observed]
        # half of the pixels, not all: those at gaps and borders may have been treated otherwise
        if np.isclose(mean, coarse[observed], rtol=1e-6, atol=1e-5).mean() > 0.5:
            return [f"coarse SIF is the {factor}x{factor} moving mean of the target on the same grid: {so}"]
    for size in BLUR_PX:
        around = _cut(bare, target, _drawn(observed, MAX_PIXELS) - (0, size // 2, size // 2), size)
        r2 = 1 - _left(around.target, around.coarse[:, size**2 // 2])
        if r2 >= BLUR_R2:
            return [f"a {size}x{size} px filter of the target on the same grid gives coarse SIF with R2 {r2:.6f}: {so}"]
    return []


def _holds(with_it: float, without: float) -> bool:
    """Does what is left of the variance, with and without a predictor, say that it holds the target?"""
    return without > EXPLAINED and with_it <= min(1 - DERIVED_R2, LEFT_SHARE * without)


def _linear(around: _Squares, windows: _Squares, channel: int, name: str) -> str:
    """Is the target linear in the predictor and coarse SIF, over the field or in most well-filled windows?"""
    says = f"a linear fit of {name} and coarse SIF gives the target with R2"
    values, wanted, coarse = around.centre(channel)
    without, with_it = _left_linear(values[None], wanted[None], coarse[None], MIN_PIXELS)[:, 0]
    if _holds(with_it, without) and _holds(with_it, around.alone(wanted)):
        return f"{says} {1 - with_it:.6f} over the whole field"
    left = _left_linear(windows.predictors[:, channel], windows.target, windows.coarse, LOCAL_WINDOW_PX**2 // 2)
    left = left[:, np.isfinite(left[0])]
    without, with_it = np.median(left, axis=1) if left.shape[1] >= MIN_WINDOWS else (1.0, 1.0)
    if _holds(with_it, without) and around.alone(values) >= LEFT_SHARE * around.alone(wanted):  # no filter of coarse
        return f"{says} {1 - with_it:.6f} in {LOCAL_WINDOW_PX} px windows"
    return ""


def _filtered(around: _Squares, channel: int, name: str) -> str:
    """Is the target a filter of the predictor and coarse SIF, or the predictor of the target (shifted, blurred)?"""
    values, wanted, _ = around.centre(channel)
    for given, gives, inputs, output in (
        (name, "the target", around.predictors[:, channel], wanted),
        ("the target", name, around.target, values),
    ):
        left = _left(np.hstack([around.coarse, inputs]), output)
        if _holds(left, 1.0) and _holds(left, around.alone(output)):
            return f"a {FILTER_PX}x{FILTER_PX} px filter of {given} and coarse SIF gives {gives} with R2 {1 - left:.6f}"
    return ""


def _bent(around: _Squares, channel: int, name: str) -> str:
    """Is the predictor a function of the target, however bent, and much less so of coarse SIF?"""
    values, target, coarse = around.centre(channel)
    left = _left_function(target, values)
    if _holds(left, 1.0) and _holds(left, min(_left_function(coarse, values), around.alone(values))):
        return f"{name} is a function of the target with R2 {1 - left:.6f} of its ranks"
    return ""


def _all_together(around: _Squares) -> str:
    """Is the target linear in all predictors and coarse SIF (the difference of two bands, say)?"""
    values, wanted = around.predictors[:, :, CENTRE].astype(np.float64), around.target[:, CENTRE]
    known = np.isfinite(values)
    mean = np.where(known, values, 0).sum(axis=0) / known.sum(axis=0).clip(min=1)
    # a gap in one predictor must not hide what the others hold
    left = _left(np.hstack([around.coarse, np.where(known, values, mean)]), wanted)
    if _holds(left, 1.0) and _holds(left, around.alone(wanted)):
        return f"a linear fit of all predictors together and coarse SIF gives the target with R2 {1 - left:.6f}"
    return ""


def _other_composites(features: FeatureCube, target: Values, tested: Mask) -> list[str]:
    """Is the tested target of another composite of the same place linear in a predictor and coarse SIF?"""
    pixels = {int(i): _drawn(tested[i], PAIR_PIXELS) for i in np.flatnonzero(tested.any(axis=(1, 2)))}
    samples = {place: np.flatnonzero(np.array(features.places) == place) for place in set(features.places)}
    pairs = np.array([(i, j) for j in pixels for i in samples[features.places[j]] if i != j], np.intp).reshape(-1, 2)
    apart = np.abs(features.times[pairs[:, 0]] - features.times[pairs[:, 1]])
    for here, other in pairs[np.argsort(apart, kind="stable")[:MAX_PAIRS]]:
        y, x = pixels[other].T
        values = np.asarray(features.predictors[here])[:, y, x]
        wanted, coarse = (np.asarray(field[other])[None, y, x] for field in (target, features.coarse))
        without, with_it = _left_linear(values, wanted, coarse, MIN_PIXELS)
        for channel, *left in zip(features.channels, with_it, without, strict=True):
            if _holds(*left):
                way = f"a linear fit of '{channel.name}' of sample {here} and coarse SIF gives the tested target of"
                return [f"{way} sample {other}, another composite of its place, with R2 {1 - left[0]:.6f}"]
    return []


def _drawn(where: Mask, most: int) -> Pixels:
    """At most ``most`` pixels of a mask, in order; by chance (a stride may keep to a column), but always the same."""
    index = np.flatnonzero(where)
    if len(index) > most:
        index = index[np.sort(np.random.default_rng(0).choice(len(index), most, replace=False))]
    return np.stack(np.unravel_index(index, where.shape), axis=1)


def _cut(features: FeatureCube, target: Values, corners: Pixels, size: int, reach: int = 0) -> _Squares:
    """Squares of ``size`` px with these upper-left pixels, NaN beyond the border; reads each sample once."""
    near = [np.empty((0, features.predictors.shape[1] + 2, size**2), np.float32)]
    far = [np.empty((0, 1, (size + 2 * reach) ** 2), np.float32)]
    for sample in np.unique(corners[:, 0]):
        at, coarse = corners[corners[:, 0] == sample, 1:], features.coarse[sample][None]
        fields = features.predictors[sample], target[sample, None], coarse
        near.append(np.concatenate([_squares(some, at, size) for some in fields], axis=1))
        far.append(_squares(coarse, at - reach, size + 2 * reach))
    whole = np.concatenate(near)
    return _Squares(whole[:, :-2], whole[:, -2], whole[:, -1], np.concatenate(far)[:, 0])


def _squares(fields: Values, corners: Pixels, size: int) -> Values:
    """Squares (n, k, size ** 2) of fields (k, y, x) at corners (n, 2), NaN beyond the border."""
    height, width = fields.shape[1:]
    y, x = (corner[:, None] + np.arange(size) for corner in corners.T)
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    squares = fields[:, y.clip(0, height - 1)[:, :, None], x.clip(0, width - 1)[:, None, :]]
    squares[:, ~inside] = np.nan
    return squares.reshape(len(fields), len(y), size**2).swapaxes(0, 1)


def _left_linear(values: Values, target: Values, coarse: Values, least: int) -> Values:
    """Shares (2, groups) of the target's variance left by a fit on coarse, and on coarse and values, in each group.

    All (group, pixel), gaps NaN; NaN for a group with fewer than ``least`` known pixels or a constant target.
    """
    fields = np.stack(np.broadcast_arrays(values, target, coarse)).astype(np.float64)
    known = np.isfinite(fields).all(axis=0)
    count = known.sum(axis=1, keepdims=True)
    mean = np.where(known, fields, 0).sum(axis=2, keepdims=True) / count.clip(min=1)
    v, t, c = np.where(known, fields - mean, 0)
    t_left = _without(t, c, c)
    squares = np.stack([(field**2).sum(axis=1) for field in (t, t_left, _without(t_left, _without(v, c, c), v))])
    varies = squares[0] > (count * (np.finfo(np.float32).eps * mean[1]) ** 2)[:, 0]
    return np.asarray(squares[1:] / np.where((count[:, 0] >= least) & varies, squares[0], np.nan))


def _without(field: Values, part: Values, scale: Values) -> Values:
    """What a fit on ``part`` leaves of a field, both (group, pixel) of mean 0; all, if it is tiny beside ``scale``."""
    size, whole, shared = ((a * b).sum(axis=1, keepdims=True) for a, b in ((part, part), (scale, scale), (field, part)))
    return np.asarray(field - np.where(size > ROUNDING * whole, shared, 0) / np.where(size > 0, size, 1) * part)


def _left(columns: Values, wanted: Values) -> float:
    """Share of the variance of wanted (n,) left by a linear fit on columns (n, k), adjusted for k; 1 for few rows."""
    known = np.isfinite(wanted) & np.isfinite(columns).all(axis=1)
    y, unknowns = wanted[known] - wanted[known].sum(dtype=np.float64) / max(known.sum(), 1), columns.shape[1] + 1
    if len(y) < ROWS_PER_UNKNOWN * unknowns or np.ptp(y) == 0:
        return 1.0
    design = columns[known] - columns[known].mean(axis=0, dtype=np.float64)
    design /= np.where(np.ptp(design, axis=0) > 0, design.std(axis=0), 1)
    # normal equations: of float32 columns nothing is lost, and it takes a tenth of the time
    residual = y - design @ np.linalg.lstsq(design.T @ design, design.T @ y, rcond=1e-12)[0]
    return float(residual.var() / y.var() * len(y) / (len(y) - unknowns))


def _left_function(of: Values, values: Values) -> float:
    """Share of the variance of the ranks of values (n,) that no smooth function of ``of`` (n,) explains.

    Half the mean squared step from one value to the next in the order of ``of``: the difference-based estimate of the
    noise around an unknown curve (Rice 1984, Annals of Statistics 12, 1215-1230). 1 for few or constant values.
    """
    known = np.isfinite(of) & np.isfinite(values)
    if known.sum() < MIN_PIXELS or np.ptp(values[known]) == 0:
        return 1.0
    ranks = rankdata(values[known])[np.argsort(of[known], kind="stable")]
    return float((np.diff(ranks) ** 2).mean() / 2 / ranks.var())
