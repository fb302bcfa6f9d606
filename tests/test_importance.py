"""Permutation importance against closed forms and plain loops on a linear model whose coefficients are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sifscale.crops import CropPlan, covering_crops
from sifscale.datamodule import Scaler
from sifscale.features import Channel, FeatureCube
from sifscale.importance import (
    NO_CLASS,
    Exchanged,
    Importance,
    by_cover,
    channel_groups,
    crops_tested,
    cyclic_order,
    exchange,
    group_of,
)
from sifscale.metrics import Sums
from sifscale.splits import TEST, TRAIN
from sifscale.task import DownscalingTask
from sifscale.task_spec import Optimisation, TaskSpec

SHAPE, BLOCK_PX = (3, 48, 48), 4
NAMES = ("coarse", "ndvi", "evi", "red", "sd3(evi)")
WEIGHTS = (0.2, 0.5, -0.3, 0.0, 0.1)  # of standard normal channels
NOISE = 0.25
OPTIMISATION = Optimisation("mse", "adam", 1e-3, 0.0, "constant", 1)


def linear_task(conservation: str = "none", weights: tuple[float, ...] = WEIGHTS) -> DownscalingTask:
    """Bilinear coarse plus weights times the predictors of a pixel."""
    scaler = Scaler((0.0,) * len(weights), (1.0,) * len(weights), 0.0, 1.0)
    spec = TaskSpec({"name": "ridge", "strengths": [1.0]}, NAMES, scaler, BLOCK_PX, 4, 16, conservation, "sif", "1")
    task = DownscalingTask.create(spec, OPTIMISATION, keep_positions=False)
    with torch.no_grad():
        task.model.weights[: len(weights)] = torch.tensor(weights)
    return task


def make_features(seed: int = 0) -> FeatureCube:
    """Independent channels without any structure, a coarse field of 0, a target that the linear task nearly knows."""
    rng = np.random.default_rng(seed)
    predictors = rng.normal(size=(SHAPE[0], len(NAMES), *SHAPE[1:])).astype(np.float32)
    target = np.tensordot(predictors, WEIGHTS, axes=(1, 0)) + rng.normal(scale=NOISE, size=SHAPE)
    target = np.where(rng.random(SHAPE) < 0.1, np.nan, target).astype(np.float32)
    cover = rng.integers(-1, 2, SHAPE, dtype=np.int8)
    days = np.arange(SHAPE[0]) * np.timedelta64(16, "D") + np.datetime64("2019-05-09", "ns")
    channels = tuple(Channel(name, True) for name in NAMES)
    return FeatureCube(
        channels, predictors, np.zeros(SHAPE, np.float32), target, np.isfinite(target), np.ones_like(target), BLOCK_PX,
        SHAPE[1:], ("a",) * SHAPE[0], days, cover, ("corn", "open_water"),
    )  # fmt: skip


def make_parts() -> NDArray[np.int8]:
    parts = np.full(SHAPE, TEST, dtype=np.int8)
    parts[:, :, :8] = TRAIN
    return parts


def make_plan(features: FeatureCube) -> CropPlan:
    return covering_crops(make_parts() == TEST, np.asarray(features.valid), 16, BLOCK_PX)


@pytest.fixture(scope="module")
def features() -> FeatureCube:
    return make_features()


@pytest.fixture(scope="module")
def found(features: FeatureCube) -> Exchanged:
    sets = [*((i,) for i in range(len(NAMES))), (1, 2)]
    plan = make_plan(features)
    return exchange(linear_task(), features, plan, make_parts(), sets, repeats=3, seed=7, batch_size=11)


def importance(found: Exchanged, *channels: int) -> Importance:
    return Importance.of(found.before, found.after[channels])


def test_an_exchange_is_what_a_plain_loop_over_crops_makes_of_it(features: FeatureCube, found: Exchanged) -> None:
    plan, rng, weights = make_plan(features), np.random.default_rng(7), np.array(WEIGHTS)
    scored = np.asarray(features.valid) & (make_parts() == TEST)
    by_repeat = []
    for _ in range(3):
        donor, errors, classes = cyclic_order(len(plan), rng), [], []
        for row, other in zip(plan.table.tolist(), plan.table[donor].tolist(), strict=True):
            s, y0, x0, core_y0, core_x0, core_y1, core_x1 = row
            values = features.predictors[s, :, y0 : y0 + 16, x0 : x0 + 16].astype(np.float64)
            values[[1, 2]] = features.predictors[other[0], 1:3, other[1] : other[1] + 16, other[2] : other[2] + 16]
            error = np.tensordot(weights, values, axes=1) - features.target[s, y0 : y0 + 16, x0 : x0 + 16]
            core = slice(core_y0 - y0, core_y1 - y0), slice(core_x0 - x0, core_x1 - x0)
            inside = scored[s, core_y0:core_y1, core_x0:core_x1]
            errors.append(error[core][inside])
            classes.append(features.cover[s, core_y0:core_y1, core_x0:core_x1][inside])
        by_repeat.append((np.concatenate(errors), np.concatenate(classes)))
    assert found.before.finish()["n"] == scored.sum()
    for sums, (error, cover) in zip(found.after[1, 2], by_repeat, strict=True):
        assert sums.finish()["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-5)
        for column, number in enumerate((0, 1, -1)):
            of_class = Sums(sums.values[:, column]).finish()
            assert of_class["rmse"] == pytest.approx(np.sqrt(np.mean(error[cover == number] ** 2)), rel=1e-5)
    rises = [np.sqrt(np.mean(error**2)) - found.before.finish()["rmse"] for error, _ in by_repeat]
    assert importance(found, 1, 2).rmse == pytest.approx(np.mean(rises), rel=1e-4)
    assert importance(found, 1, 2).rmse_sd == pytest.approx(np.std(rises, ddof=1), rel=1e-3)


def test_independent_channels_cost_twice_their_variance_times_their_squared_weight(found: Exchanged) -> None:
    """E[(w x - w x')^2] = 2 w^2 var(x) for x' of another place; what several cost together adds up."""
    before = found.before.finish()["rmse"]
    assert before == pytest.approx(NOISE, rel=0.03)
    for channels in found.after:
        wanted = sum(2 * WEIGHTS[i] ** 2 for i in channels)
        assert importance(found, *channels).squared_error * before**2 == pytest.approx(wanted, rel=0.06, abs=1e-12)
        assert (before + importance(found, *channels).rmse) ** 2 == pytest.approx(wanted + NOISE**2, rel=0.06)


def test_a_channel_that_the_model_does_not_read_has_exactly_no_importance(found: Exchanged) -> None:
    unread = Importance(0.0, 0.0, 0.0, 0.0)
    assert importance(found, 3) == unread
    assert by_cover(found, (3,)) == {"corn": unread, "open water": unread, NO_CLASS: unread}


def test_under_conservation_what_is_constant_in_a_coarse_cell_has_no_importance(features: FeatureCube) -> None:
    steps = np.asarray(features.predictors).copy()
    steps[:, 0] = steps[:, 0, ::BLOCK_PX, ::BLOCK_PX].repeat(BLOCK_PX, axis=1).repeat(BLOCK_PX, axis=2)
    stepped, plan = replace(features, predictors=steps), make_plan(features)
    sets = [(0,), (1,)]
    free, conserving = (
        exchange(linear_task(kind), stepped, plan, make_parts(), sets, repeats=1, seed=0, batch_size=50)
        for kind in ("none", "additive")
    )
    assert importance(free, 0).rmse > 1e-3
    assert abs(importance(conserving, 0).rmse) < 1e-6 and importance(conserving, 1).rmse > 0.05


def test_seeds_and_batches(features: FeatureCube) -> None:
    plan, task = make_plan(features), linear_task()

    def values(seed: int, batch_size: int) -> NDArray[np.float64]:
        options = {"repeats": 1, "seed": seed, "batch_size": batch_size}
        return exchange(task, features, plan, make_parts(), [(1,)], **options).after[1,][0].values.numpy()

    np.testing.assert_allclose(values(0, 5), values(0, 64), rtol=1e-5)
    assert not np.allclose(values(0, 64), values(1, 64))


@given(count=st.integers(2, 60), seed=st.integers(0, 1000))
def test_nothing_stays_where_it_is(count: int, seed: int) -> None:
    donor = cyclic_order(count, np.random.default_rng(seed))
    assert sorted(donor) == list(range(count)) and (donor != np.arange(count)).all()
    place, steps = int(donor[0]), 1
    while place:
        place, steps = int(donor[place]), steps + 1
    assert steps == count, "one cycle"


def test_groups_of_channels() -> None:
    names = ["coarse", "ndvi", "coarse_evi", "nir", "sd3(coarse)", "lbp_uniform_p8_r1px_class0(evi)", "sun_zenith"]
    assert channel_groups(names) == {
        "coarse": (0,), "indices": (1, 2), "reflectances": (3,), "texture": (4, 5), "others": (6,),
    }  # fmt: skip
    assert channel_groups(["mir"]) == {"reflectances": (0,)} and channel_groups([]) == {}
    assert [group_of(name) for name in ("sif_by_footprint", "other composite")] == ["coarse", "others"]


def test_only_crops_with_a_scored_pixel_count_and_two_are_needed(features: FeatureCube) -> None:
    plan, parts = make_plan(features), make_parts()
    known = np.asarray(features.valid).copy()
    known[1:] = False
    known[0, :24] = False
    sparse = replace(features, valid=known)
    kept = crops_tested(sparse, plan, parts, None, 0)
    assert 2 < len(kept) < len(plan) and (kept.table[:, 0] == 0).all() and (kept.table[:, 5] > 24).all()
    few = crops_tested(sparse, plan, parts, 3, 0)
    assert len(few) == 3 and {tuple(row) for row in few.table.tolist()} <= {tuple(row) for row in kept.table.tolist()}
    assert len(crops_tested(sparse, plan, parts, 10**6, 0)) == len(kept)
    known[:] = False
    known[0, 30, 30] = True
    with pytest.raises(ValueError, match=r"^test part: must hold 2 crops or more, .* \(found 1\)$"):
        crops_tested(replace(features, valid=known), plan, parts, None, 0)


def test_importance_of_one_repeat_and_of_an_exact_model() -> None:
    target, valid = torch.tensor([[[[1.0, 2.0]]]]), torch.ones(1, 1, 1, 2, dtype=torch.bool)
    exact, wrong = Sums.of(target, target, valid), Sums.of(target + 2, target, valid)
    found = Importance.of(exact, [wrong])
    assert found.rmse == 2 and math.isnan(found.rmse_sd) and math.isnan(found.squared_error)
    again = Importance.of(wrong, [wrong, exact])
    assert (again.rmse, again.squared_error) == (-1, -0.5)
    with pytest.raises(ValueError, match="no valid pixel"):
        Importance.of(Sums.zero(), [Sums.zero()])


def test_without_land_cover_all_pixels_have_no_class(features: FeatureCube) -> None:
    bare = replace(features, cover=None, cover_names=())
    found = exchange(linear_task(), bare, make_plan(bare), make_parts(), [(1,)], repeats=2, seed=0, batch_size=64)
    assert found.classes == (NO_CLASS,) and by_cover(found, (1,)) == {NO_CLASS: importance(found, 1)}
