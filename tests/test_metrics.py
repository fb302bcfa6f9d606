"""Pooled scores equal scikit-learn's on everything at once, however it was cut into batches."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from sifscale.metrics import SUMS, Sums, on_cells, r2_residual, scores, skill


def fields(seed: int, crops: int = 12, size: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prediction, target, valid (B, 1, H, W); what is not valid is NaN in either."""
    rng = np.random.default_rng(seed)
    target = rng.normal(1, 0.5, (crops, 1, size, size)).astype(np.float32)
    prediction = (target + rng.normal(0.1, 0.3, target.shape)).astype(np.float32)  # some are negative
    valid = rng.random(target.shape) < 0.7
    valid[0, 0, 0, :3] = True
    target[~valid] = np.nan
    prediction[~valid & (rng.random(target.shape) < 0.5)] = np.nan
    return torch.from_numpy(prediction), torch.from_numpy(target), torch.from_numpy(valid)


@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 12), max_size=6), data=st.data())
def test_any_partition_in_any_order_equals_scikit_learn(
    seed: int, cuts: list[int], data: st.DataObject
) -> None:
    prediction, target, valid = fields(seed)
    edges = [0, *sorted(cuts), 12]
    batches = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    sums = Sums.zero()
    for at in data.draw(st.permutations(batches)):
        sums = sums + Sums.of(prediction[at], target[at], valid[at])
    scores = sums.finish()
    y, p = target[valid].double().numpy(), prediction[valid].double().numpy()
    assert scores["n"] == len(y)
    assert scores["r2"] == pytest.approx(r2_score(y, p), abs=1e-9)
    assert scores["mae"] == pytest.approx(mean_absolute_error(y, p), abs=1e-9)
    assert scores["rmse"] == pytest.approx(root_mean_squared_error(y, p), abs=1e-9)
    assert scores["bias"] == pytest.approx(np.mean(p - y), abs=1e-9)
    assert scores["correlation"] == pytest.approx(np.corrcoef(y, p)[0, 1], abs=1e-9)
    assert scores["negative_share"] == pytest.approx(np.mean(p < 0), abs=1e-12)
    assert scores["target_sd"] == pytest.approx(np.std(y), abs=1e-9)


def test_the_mean_of_batch_scores_would_be_another_number() -> None:
    prediction, target, valid = fields(0)
    pooled = Sums.of(prediction, target, valid).finish()["r2"]
    apart = [Sums.of(prediction[i : i + 1], target[i : i + 1], valid[i : i + 1]).finish() for i in range(12)]
    assert abs(np.mean([scores["r2"] for scores in apart]) - pooled) > 0.01


@given(seed=st.integers(0, 1000), blocks=st.integers(1, 9), cut=st.integers(0, 12))
def test_sums_by_block_are_those_of_each_block_alone(seed: int, blocks: int, cut: int) -> None:
    prediction, target, valid = fields(seed)
    block = torch.from_numpy(np.random.default_rng(seed).integers(0, blocks, tuple(valid.shape)))
    sums = Sums.zero(columns=blocks)
    for at in (slice(0, cut), slice(cut, 12)):
        sums = sums + Sums.by_block(prediction[at], target[at], valid[at], block[at], blocks)
    assert sums.values.shape == (len(SUMS), blocks)
    for number, found in enumerate(sums.values.T):
        alone = Sums.of(prediction, target, valid & (block == number))
        assert found.numpy() == pytest.approx(alone.values.numpy(), rel=1e-12, abs=1e-12)
    assert sums.finish() == pytest.approx(Sums.of(prediction, target, valid).finish(), rel=1e-9)


@given(seed=st.integers(0, 1000), offset=st.floats(-300, 300))
def test_r2_beyond_a_reference_is_that_of_the_residuals(seed: int, offset: float) -> None:
    prediction, target, valid = fields(seed)
    reference = target + torch.from_numpy(np.random.default_rng(seed + 1).normal(0.2, 0.4, tuple(target.shape)))
    halves = [[Sums.of(f[i::2], target[i::2], valid[i::2]) for i in (0, 1)] for f in (prediction, reference)]
    found = r2_residual(*(first + second for first, second in halves))
    y, p, b = (field[valid].double().numpy() for field in (target, prediction, reference))
    assert found == pytest.approx(r2_score(y - b, p - b), rel=1e-6, abs=1e-6)
    # the level of all three has no part in it
    moved = [Sums.of(f.double() + offset, target.double() + offset, valid) for f in (prediction, reference)]
    assert r2_residual(*moved) == pytest.approx(found, rel=1e-5, abs=1e-5)


def test_r2_beyond_a_reference_at_its_ends() -> None:
    _, target, valid = fields(3)
    reference = Sums.of(target + torch.rand(target.shape), target, valid)
    assert r2_residual(Sums.of(target, target, valid), reference) == 1
    assert r2_residual(reference, reference) <= 0, "its own bias is not forgiven"
    off_by_one = Sums.of(target.double() + 1, target.double(), valid)
    assert math.isnan(r2_residual(reference, off_by_one))
    fewer = valid.clone()
    fewer[0] = False
    with pytest.raises(ValueError, match="the same pixels"):
        r2_residual(Sums.of(target, target, fewer), reference)


def test_scores_of_many_columns_are_those_of_each() -> None:
    columns = [Sums.of(*fields(seed)) for seed in range(5)]
    together = scores(torch.stack([sums.values for sums in columns], dim=1))
    for i, sums in enumerate(columns):
        assert {name: score[i].item() for name, score in together.items()} == pytest.approx(sums.finish(), rel=1e-12)


@given(seed=st.integers(0, 200), zeros=st.integers(0, 16), exact=st.integers(0, 16))
def test_r2_by_position_equals_scikit_learn_constants_included(seed: int, zeros: int, exact: int) -> None:
    rng = np.random.default_rng(seed)
    target, prediction = rng.normal(size=(2, 9, 16))
    target[:, :zeros] = 0  # as a legacy run fills its gaps
    prediction[:, :exact] = target[:, :exact]
    as_crops = [torch.from_numpy(a.reshape(9, 1, 4, 4)) for a in (prediction, target)]
    valid = torch.ones(9, 1, 4, 4, dtype=torch.bool)
    sums = Sums.zero(columns=16)
    for at in (slice(0, 4), slice(4, 9)):
        sums = sums + Sums.of(as_crops[0][at], as_crops[1][at], valid[at], by_position=True)
    assert sums.r2_positions() == pytest.approx(r2_score(target, prediction), rel=1e-9)
    whole = Sums.of(as_crops[0], as_crops[1], valid).finish()
    assert sums.finish() == pytest.approx(whole, rel=1e-9, nan_ok=True)


def test_positions_without_two_crops_are_left_out() -> None:
    target = torch.arange(6.0).view(3, 1, 1, 2)
    valid = torch.tensor([[1, 1], [1, 0], [1, 0]]).bool().view(3, 1, 1, 2)
    assert Sums.of(target, target, valid, by_position=True).r2_positions() == 1.0


def test_r2_by_position_needs_positions() -> None:
    with pytest.raises(ValueError, match="by_position=True"):
        Sums.zero().r2_positions()


@pytest.mark.parametrize("value", [0.0, 0.1, 300.1])
def test_a_constant_target_has_no_r2(value: float) -> None:
    target = torch.full((7, 1, 3, 3), value)
    valid = torch.ones_like(target, dtype=torch.bool)
    scores = Sums.of(target + torch.rand(7, 1, 3, 3), target, valid).finish()
    assert math.isnan(scores["r2"]) and math.isnan(scores["correlation"]) and scores["mae"] > 0


def test_an_exact_prediction_scores_one_far_from_zero_too() -> None:
    target = 300 + torch.rand(4, 1, 5, 5)
    scores = Sums.of(target, target, torch.ones_like(target, dtype=torch.bool)).finish()
    assert scores["r2"] == 1 and scores["rmse"] == 0 and scores["correlation"] == pytest.approx(1)


def test_nothing_scored_is_an_error() -> None:
    prediction, target, valid = fields(1)
    with pytest.raises(ValueError, match="no valid pixel was scored"):
        (Sums.zero() + Sums.of(prediction, target, valid & False)).finish()


@pytest.mark.parametrize("by_position", [False, True])
def test_plain_numbers_come_back(by_position: bool) -> None:
    sums = Sums.of(*fields(2), by_position=by_position)
    back = Sums.from_dict(json.loads(json.dumps(sums.to_dict())))
    assert back.finish() == pytest.approx(sums.finish(), rel=1e-12)


def test_skill_is_the_share_of_squared_error_that_is_gone() -> None:
    assert skill(0.1, 0.2) == pytest.approx(0.75)
    assert skill(0.2, 0.2) == 0
    assert math.isnan(skill(0.1, 0.0))


@given(seed=st.integers(0, 999), cell_px=st.sampled_from([1, 2, 3, 6]), min_valid=st.sampled_from([0.0, 0.5, 0.75, 1]))
def test_cells_are_means_of_their_scored_pixels(seed: int, cell_px: int, min_valid: float) -> None:
    prediction, target, valid = fields(seed, crops=3, size=6)
    found, wanted, mask = on_cells(prediction, target, valid, cell_px, min_valid)
    assert found.shape == wanted.shape == mask.shape == (3, 1, 6 // cell_px, 6 // cell_px)
    assert found.isfinite().all() and wanted.isfinite().all() and mask.dtype == torch.bool
    for crop, y, x in np.ndindex(3, 6 // cell_px, 6 // cell_px):
        at = (crop, 0, slice(y * cell_px, (y + 1) * cell_px), slice(x * cell_px, (x + 1) * cell_px))
        filled = int(valid[at].sum())
        assert bool(mask[crop, 0, y, x]) == (filled > 0 and filled / cell_px**2 >= min_valid)
        if filled:
            assert float(found[crop, 0, y, x]) == pytest.approx(float(prediction[at][valid[at]].mean()), abs=1e-5)
            assert float(wanted[crop, 0, y, x]) == pytest.approx(float(target[at][valid[at]].mean()), abs=1e-5)
    if cell_px == 1:
        assert torch.equal(mask, valid) and torch.equal(found[mask], prediction[valid])
