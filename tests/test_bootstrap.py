"""The paired block bootstrap covers as it says, and a run keeps by block what brute force finds on its pixels."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, stats

from sifscale import testing
from sifscale.block_sums import BlockMap, BlockTally, block_map
from sifscale.bootstrap import (
    averaged,
    difference_of_seeds,
    from_json,
    intervals,
    paired_difference,
    paired_structure,
    structure_of_seeds,
    to_json,
)
from sifscale.crops import CropPlan
from sifscale.datamodule import CropDataModule
from sifscale.metrics import SUMS, Sums, scores
from sifscale.splits import TEST
from sifscale.structure import Blocks, Structure
from sifscale.tracking import RunLog
from sifscale.training import make_task, prepare_features, prepare_plans
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

Values = NDArray[np.float64]


def sums_of(prediction: Values, target: Values) -> Sums:
    p, y = (torch.from_numpy(np.ascontiguousarray(f)).view(1, 1, 1, -1) for f in (prediction, target))
    return Sums.of(p, y, torch.ones_like(y, dtype=torch.bool))


def models(rng: np.random.Generator, blocks: int, pixels: int) -> tuple[Values, Values, Values]:
    """Target and the predictions of two models (blocks, pixels), b worse; errors are alike within a block."""
    target = rng.normal(1, 0.5, (blocks, pixels))
    shared = rng.normal(0, 0.3, (blocks, 1)) * rng.uniform(0.5, 1.5, (blocks, 1))
    a = target + shared + rng.normal(0, 0.2, target.shape)
    b = target + shared + rng.normal(0, 0.3, (blocks, 1)) + rng.normal(0, 0.25, target.shape)
    return target, a, b


def by_block(prediction: Values, target: Values) -> dict[str, Sums]:
    return {f"block {i}": sums_of(p, y) for i, (p, y) in enumerate(zip(prediction, target, strict=True))}


def test_the_interval_holds_the_true_difference_in_95_of_100_cases() -> None:
    """24 blocks, as the Minnesota tables have; pixels alone, taken as blocks, cover in 45 of 100 cases."""
    rng = np.random.default_rng(0)
    far = models(rng, 400_000, 4)  # the truth: so many blocks that it has no error to speak of
    rmse_a, rmse_b = (float(np.sqrt(np.mean((far[0] - p) ** 2))) for p in far[1:])
    cases, covered = 400, 0
    for case in range(cases):
        target, a, b = models(rng, 24, 30)
        found = paired_difference(by_block(a, target), by_block(b, target), number=400, seed=case)
        covered += found.low <= rmse_a - rmse_b <= found.high
    assert 0.91 <= covered / cases <= 0.99, covered / cases


def test_of_equal_models_few_differ() -> None:
    """p below 0.05 in about 5 of 100 cases, and exactly where the interval leaves 0 out."""
    rng, cases, low = np.random.default_rng(1), 200, 0
    for case in range(cases):
        target = rng.normal(size=(15, 20))
        a, b = (target + rng.normal(size=(15, 1)) + rng.normal(size=target.shape) for _ in range(2))
        found = paired_difference(by_block(a, target), by_block(b, target), number=400, seed=case)
        low += found.p < 0.05
        if abs(found.p - 0.05) > 0.02:  # nearer, the two count by one draw more or less
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
    assert low / cases <= 0.1


@pytest.mark.parametrize("metric", ["rmse", "mae", "r2"])
def test_brute_force_on_pixels_agrees(metric: str) -> None:
    target, a, b = models(np.random.default_rng(2), 6, 40)
    found = paired_difference(by_block(a, target), by_block(b, target), metric, number=4000)

    def score(p: Values, y: Values) -> float:
        error = p - y
        if metric == "rmse":
            return float(np.sqrt(np.mean(error**2)))
        return float(np.mean(np.abs(error)) if metric == "mae" else 1 - np.mean(error**2) / np.var(y))

    assert found.difference == pytest.approx(score(a, target) - score(b, target), rel=1e-9)
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(4000):
        at = rng.integers(0, 6, 6)
        drawn.append(score(a[at], target[at]) - score(b[at], target[at]))
    # Hesterberg (2015), table 5 and section 4.1: of 6 blocks, t(5) times sqrt(6/5) is 2.816 normal deviations
    tail = 0.5 * math.erfc(2.570582 * math.sqrt(6 / 5) / math.sqrt(2))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


@given(seed=st.integers(0, 1000), order=st.permutations(range(7)))
def test_the_order_of_the_blocks_does_not_matter(seed: int, order: list[int]) -> None:
    target, a, b = models(np.random.default_rng(seed), 7, 5)
    blocks_a, blocks_b = by_block(a, target), by_block(b, target)
    names = list(blocks_a)
    shuffled = {names[i]: blocks_a[names[i]] for i in order}
    first = paired_difference(blocks_a, blocks_b, number=50)
    assert paired_difference(shuffled, blocks_b, number=50) == first
    assert first.low <= first.high and 0 < first.p <= 1 and first.blocks == 7


@given(seed=st.integers(0, 1000))
def test_equal_runs_do_not_differ_and_exchanged_ones_change_sign(seed: int) -> None:
    target, a, b = models(np.random.default_rng(seed), 5, 8)
    blocks_a, blocks_b = by_block(a, target), by_block(b, target)
    same = paired_difference(blocks_a, blocks_a, number=50)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    there, back = paired_difference(blocks_a, blocks_b, number=50), paired_difference(blocks_b, blocks_a, number=50)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p == there.p


def test_many_blocks_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    target, a, b = models(np.random.default_rng(4), 9, 3)
    whole = paired_difference(by_block(a, target), by_block(b, target), number=100)
    monkeypatch.setattr("sifscale.bootstrap.DRAWN_AT_ONCE", 9 * 7)
    in_parts = paired_difference(by_block(a, target), by_block(b, target), number=100)
    assert (in_parts.low, in_parts.high, in_parts.p) == pytest.approx((whole.low, whole.high, whole.p), rel=1e-9)


def test_one_block_has_no_interval() -> None:
    target, a, b = models(np.random.default_rng(5), 1, 8)
    found = paired_difference(by_block(a, target), by_block(b, target))
    assert found.difference != 0 and found.blocks == 1 and all(map(math.isnan, (found.low, found.high, found.p)))


def test_the_interval_of_one_score_is_that_of_its_difference_from_a_perfect_model() -> None:
    target, a, _ = models(np.random.default_rng(3), 12, 20)
    ours, perfect = by_block(a, target), by_block(target, target)
    sums = torch.stack([ours[name].values for name in sorted(ours)], dim=1)
    found = intervals(sums, lambda drawn: {"rmse": scores(drawn)["rmse"], "twice": 2 * scores(drawn)["rmse"]})
    difference = paired_difference(ours, perfect)
    assert found["rmse"] == pytest.approx((difference.low, difference.high))
    assert found["twice"] == pytest.approx((2 * difference.low, 2 * difference.high))
    assert np.isnan(intervals(sums[:, :1], scores)["rmse"]).all()
    with pytest.raises(ValueError, match="found 0 and 2000"):
        intervals(sums[:, :0], scores)


def test_what_cannot_be_compared_is_refused_in_one_line() -> None:
    target, a, b = models(np.random.default_rng(6), 4, 8)
    blocks_a, blocks_b = by_block(a, target), by_block(b, target)
    fewer = {name: sums for name, sums in blocks_b.items() if name != "block 2"}
    for other, part in (
        (fewer, "found 4 and 3, 3 in common"),
        ({}, "found 4 and 0"),
        (by_block(b[:, :7], target[:, :7]), "same pixels"),
        (by_block(b, 2 * target), "same pixels"),
    ):
        with pytest.raises(ValueError, match=part) as refused:
            paired_difference(blocks_a, other)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="found 0 and 0"):
        paired_difference({}, {})
    with pytest.raises(ValueError, match=r"found 'psnr', 2000"):
        paired_difference(blocks_a, blocks_b, "psnr")
    with pytest.raises(ValueError, match=r"found 'rmse', 0"):
        paired_difference(blocks_a, blocks_b, number=0)


def test_a_run_keeps_sums_by_block_that_brute_force_finds(workplace: Workplace, tmp_path: Path) -> None:
    run = workplace.config("model=bicubic", "evaluation.ridge=null", "evaluation.details=false")
    features = prepare_features(run, open_or_build(run))
    plans = prepare_plans(run, features)
    data = CropDataModule(features, plans, batch_size=4, seed=0, augment=False)
    task = make_task(run, features, plans)
    testing.test(run, task, data, None, tmp_path, RunLog(None, ""))

    values = json.loads((tmp_path / "test_block_sums.json").read_text())
    assert tuple(values["sums"]) == SUMS
    pooled = json.loads((tmp_path / "test_sums.json").read_text())
    kept = {name: from_json(values, name) for name in ("model", "nearest", "bilinear")}
    for name, blocks in kept.items():
        together = sum(blocks.values(), start=Sums.zero())
        assert together.to_dict() == pytest.approx(pooled[name], rel=1e-9)

    # 48 x 48 px in blocks of 12 x 12; those of the test are whole, nearest repeats the coarse field
    assert plans.parts is not None
    target, coarse = (np.asarray(field, dtype=np.float64) for field in (features.target, features.coarse))
    scored = np.asarray(features.valid) & (plans.parts == TEST)
    tested = {
        (y, x) for y in range(4) for x in range(4) if scored[:, 12 * y : 12 * y + 12, 12 * x : 12 * x + 12].any()
    }
    (place,) = set(features.places)
    assert set(kept["nearest"]) == {f"{place}:{4 * y + x}" for y, x in tested} and 3 < len(tested) < 16
    for y, x in tested:
        at = np.s_[:, 12 * y : 12 * y + 12, 12 * x : 12 * x + 12]
        expected = sums_of(coarse[at][scored[at]], target[at][scored[at]])
        assert kept["nearest"][f"{place}:{4 * y + x}"].to_dict() == pytest.approx(expected.to_dict(), rel=1e-6)


def test_blocks_of_one_place_are_of_the_map_and_of_many_places_the_places(workplace: Workplace) -> None:
    run = workplace.config()
    features = prepare_features(run, open_or_build(run))
    assert len(block_map(features, (12, 16)).names) == 4 * 3
    two = replace(features, places=("north", "south"))
    blocks = block_map(two, (12, 16))
    assert blocks.names == ("north:0", "south:0") and not blocks.inside.any()
    assert blocks.first.tolist() == [0, 1]


def test_crops_are_told_their_blocks_and_json_brings_sums_back() -> None:
    inside = np.repeat(np.arange(3), 4)[None, :] + np.zeros((6, 1), dtype=np.int64)
    blocks = BlockMap(("a:0", "a:1", "a:2", "b:0", "b:1", "b:2"), inside, np.array([0, 3]))
    table = np.array([[0, 0, 0], [1, 2, 2], [0, 1, 7]], dtype=np.int32)
    plan = CropPlan(np.pad(table, ((0, 0), (0, 4))), np.ones(3, dtype=np.float32), 4)
    cut = blocks.cut(plan, [0, 1, 2])
    assert cut.shape == (3, 1, 4, 4)
    assert cut[:, 0, 0].tolist() == [[0] * 4, [3, 3, 4, 4], [1, 2, 2, 2]]

    tally = BlockTally(blocks, plan)
    tally.sums = {"model": Sums.by_block(cut + 0.5, cut.double(), cut < 3, cut, 6)}
    kept = tally.by_name()
    assert set(kept["model"]) == {"a:0", "a:1", "a:2"}, "blocks that were not scored are left out"
    back = from_json(json.loads(json.dumps(to_json(kept))), "model")
    assert {name: sums.to_dict() for name, sums in back.items()} == {
        name: sums.to_dict() for name, sums in kept["model"].items()
    }


def test_of_several_seeds_the_squared_errors_are_averaged_and_their_spread_widens_the_interval() -> None:
    rng = np.random.default_rng(5)
    target, noise = rng.normal(size=(2, 20, 50))

    def arm(scales: list[float]) -> dict[str, dict[str, Sums]]:
        return {
            str(seed): {f"b{i}": sums_of(y + scale * e, y) for i, (y, e) in enumerate(zip(target, noise, strict=True))}
            for seed, scale in enumerate(scales)
        }

    a, b = arm([0.5, 0.52, 0.54]), arm([0.6, 0.6])
    found = difference_of_seeds(a, b)
    rmse = float(np.sqrt((noise**2).mean()))
    assert found.difference == pytest.approx(rmse * (np.sqrt(np.mean(np.square([0.5, 0.52, 0.54]))) - 0.6))
    plain = paired_difference(averaged(list(a.values())), averaged(list(b.values())))
    spread = np.std(rmse * np.array([0.5, 0.52, 0.54]), ddof=1) / np.sqrt(3)
    reach = stats.t.ppf(0.975, 2) * spread
    assert found.difference - found.low == pytest.approx(np.hypot(plain.difference - plain.low, reach))
    assert found.high - found.difference == pytest.approx(np.hypot(plain.high - plain.difference, reach))
    assert plain.p < found.p < 1
    one = {"0": a["0"]}
    assert difference_of_seeds(one, {"0": b["0"]}) == paired_difference(a["0"], b["0"])
    other_blocks = {"1": {f"c{name}": sums for name, sums in a["1"].items()}}
    both = difference_of_seeds(one | other_blocks, {"0": b["0"]} | other_blocks)
    assert both.blocks == 40
    with pytest.raises(ValueError, match="same blocks"):
        difference_of_seeds(one, {"7": other_blocks["1"]})


def test_p_goes_on_where_few_draws_reach_zero() -> None:
    target, noise = np.random.default_rng(6).normal(size=(2, 30, 40))
    pairs = list(zip(target, noise, strict=True))
    worst, better, best = ({f"b{i}": sums_of(y + s * e, y) for i, (y, e) in enumerate(pairs)} for s in (1.0, 0.7, 0.5))
    assert 0 < paired_difference(worst, best).p <= paired_difference(worst, better).p < 1e-4


TILE_PX = 8


def structure_of(prediction: Values, target: Values) -> Structure:
    """Of samples (sample, 8, 8), a tile each."""
    whole = np.ones(target.shape, dtype=bool)
    return Structure.of(prediction, target, whole, whole, tile_px=TILE_PX, data_range=4.0)


def tiles(prediction: Values, target: Values) -> dict[str, Structure]:
    """A block a sample."""
    return {f"p:{i}": structure_of(prediction[i : i + 1], target[i : i + 1]) for i in range(len(target))}


def maps(seed: int, blocks: int = 7) -> tuple[Values, Values, Values]:
    """Target and two predictions (blocks, 8, 8) of which b has larger errors; blocks differ in what can be known."""
    rng = np.random.default_rng(seed)
    target, noise_a, noise_b = rng.normal(size=(3, blocks, TILE_PX, TILE_PX))
    target = target + 2 * ndimage.gaussian_filter(target, (0, 2, 2), mode="wrap")
    scale = rng.uniform(0.3, 0.7, (blocks, 1, 1))
    return target, target + scale * noise_a, target + 1.2 * scale * noise_b


def test_brute_force_on_drawn_maps_agrees() -> None:
    target, a, b = maps(0)
    parts_a, parts_b = tiles(a, target), tiles(b, target)
    zero, rng, drawn = Structure.zero(TILE_PX, 4.0), np.random.default_rng(3), []
    for case in range(1500):
        at = rng.integers(0, 7, 7)
        two = [sum((parts[f"p:{i}"] for i in at), start=zero).finish() for parts in (parts_a, parts_b)]
        if case < 20:  # the sums are those of the maps themselves
            of_maps = [structure_of(p[at], target[at]).finish() for p in (a, b)]
            assert two[0] == pytest.approx(of_maps[0], nan_ok=True) and two[1] == pytest.approx(of_maps[1], nan_ok=True)
        drawn.append(two)
    tail = stats.norm.cdf(stats.t.ppf(0.025, 6) * math.sqrt(7 / 6))
    whole = [structure_of(p, target).finish() for p in (a, b)]
    for score in ("spectral_error", "effective_resolution_px", "spectrum_ratio"):
        found = paired_structure(parts_a, parts_b, score, number=4000)
        assert found.difference == pytest.approx(whole[0][score] - whole[1][score], rel=1e-9) and found.blocks == 7
        # where not even the longest wave is resolved, that stands for the resolution
        less = [np.nan_to_num(x[score], nan=TILE_PX) - np.nan_to_num(y[score], nan=TILE_PX) for x, y in drawn]
        low, high = np.quantile(less, [tail, 1 - tail])
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


def in_squares(prediction: Values, target: Values, edge: int = 24) -> dict[str, Structure]:
    """By squares of the map, tiles of 16 px; both (sample, y, x)."""
    y, x = np.indices(target.shape[1:]) // edge
    number = y * (int(x.max()) + 1) + x
    whole = np.ones(target.shape, dtype=bool)
    names = [f"p:{i}" for i in range(int(number.max()) + 1)]
    block = np.broadcast_to(number, target.shape)
    return Structure.by_block(prediction, target, whole, whole, block, names, tile_px=16, data_range=4.0)


def test_a_smoothed_prediction_is_worse_beyond_doubt() -> None:
    rng = np.random.default_rng(1)
    target = rng.normal(size=(2, 96, 96)) + 8 * ndimage.gaussian_filter(rng.normal(size=(2, 96, 96)), (0, 4, 4))
    sharp = target + rng.normal(scale=0.5, size=target.shape)
    smooth = ndimage.gaussian_filter(sharp, (0, 1.5, 1.5))
    parts = [in_squares(part, target) for part in (smooth, sharp)]
    for score in ("spectral_error", "effective_resolution_px"):
        found = paired_structure(parts[0], parts[1], score)
        assert 0 < found.low < found.difference < found.high and found.p < 0.01 and found.blocks == 16
    ratio = paired_structure(parts[0], parts[1], "spectrum_ratio")
    assert ratio.high < 0, "it has less fine texture"


@given(seed=st.integers(0, 1000), score=st.sampled_from(["spectral_error", "effective_resolution_px"]))
@settings(max_examples=20)
def test_equal_maps_do_not_differ_and_exchanged_ones_change_sign(seed: int, score: str) -> None:
    target, a, b = maps(seed, 4)
    assume(math.isfinite(structure_of(a, target).finish()[score]))  # two that resolve nothing: see below
    parts_a, parts_b = tiles(a, target), tiles(b, target)
    same = paired_structure(parts_a, dict(reversed(parts_a.items())), score, number=50)
    there, back = (paired_structure(*pair, score, number=50) for pair in ((parts_a, parts_b), (parts_b, parts_a)))
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))


def test_a_map_that_resolves_nothing_counts_as_resolving_the_longest_wave() -> None:
    target, a, b = maps(2)
    nothing = tiles(0 * target, target)
    resolved = structure_of(a, target).finish()["effective_resolution_px"]
    assert resolved < TILE_PX and math.isnan(structure_of(0 * target, target).finish()["effective_resolution_px"])
    found = paired_structure(nothing, tiles(a, target), "effective_resolution_px", number=200)
    assert found.difference == pytest.approx(TILE_PX - resolved) and found.low >= 0
    neither = paired_structure(nothing, nothing, "effective_resolution_px")
    assert all(map(math.isnan, (neither.difference, neither.low, neither.high, neither.p))) and neither.blocks == 7
    assert paired_structure(nothing, nothing, "spectral_error").p == 1


def test_without_tiles_or_with_one_or_of_a_constant_target_there_is_no_interval() -> None:
    target, a, b = maps(3)
    too_small = tiles(a[:, :, :4], target[:, :, :4])
    none = paired_structure(too_small, too_small, "spectral_error")
    assert math.isnan(none.difference) and none.blocks == 0
    one = paired_structure(tiles(a[:1], target[:1]), tiles(b[:1], target[:1]), "spectral_error")
    assert one.difference < 0 and one.blocks == 1 and math.isnan(one.low) and math.isnan(one.p)
    also_without = tiles(a[:2], target[:2]) | {"q": too_small["p:0"]}
    assert paired_structure(also_without, also_without, "spectral_error").blocks == 2
    flat = paired_structure(tiles(a, 0 * target), tiles(b, 0 * target), "spectral_error")
    assert math.isnan(flat.difference) and math.isnan(flat.p)


def test_structures_that_cannot_be_compared_are_refused_in_one_line() -> None:
    target, a, b = maps(4)
    ours, fewer = tiles(a, target), tiles(b[:6], target[:6])
    others: list[tuple[Blocks, str]] = [
        (fewer, "found 7 and 6, 6 in common"),
        ({}, "found 7 and 0, 0 in common"),
        (tiles(b, 1.1 * target), "tiles of the same target"),
        ({name: part + part for name, part in ours.items()}, "tiles of the same target"),
    ]
    for other, part in others:
        with pytest.raises(ValueError, match=part) as refused:
            paired_structure(ours, other, "spectral_error")
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="found 'ssim', 2000"):
        paired_structure(ours, ours, "ssim")
    with pytest.raises(ValueError, match="found 'spectral_error', 0"):
        paired_structure(ours, ours, "spectral_error", number=0)


def test_the_power_of_several_seeds_is_averaged_and_their_spread_widens_the_interval() -> None:
    target, a, b = maps(5, 12)

    def arm(prediction: Values, *scales: float) -> dict[str, dict[str, Structure]]:
        return {str(seed): tiles(target + s * (prediction - target), target) for seed, s in enumerate(scales)}

    two, one = arm(a, 0.8, 1.2), arm(b, 1.0)
    found = structure_of_seeds(two, one, "spectral_error")
    error = structure_of(a, target).finish()["spectral_error"]
    other = structure_of(b, target).finish()["spectral_error"]
    assert found.difference == pytest.approx(error * (0.8**2 + 1.2**2) / 2 - other)
    scaled = tiles(target + math.sqrt((0.8**2 + 1.2**2) / 2) * (a - target), target)
    plain = paired_structure(scaled, one["0"], "spectral_error")
    reach = stats.t.ppf(0.975, 1) * np.std([0.8**2 * error, 1.2**2 * error], ddof=1) / math.sqrt(2)
    assert found.difference - found.low == pytest.approx(np.hypot(plain.difference - plain.low, reach))
    assert found.p > plain.p
    assert structure_of_seeds({"0": two["0"]}, one, "spectral_error") == paired_structure(
        two["0"], one["0"], "spectral_error"
    )
    elsewhere = {"1": {f"q{name}": part for name, part in two["1"].items()}}
    both = structure_of_seeds({"0": two["0"]} | elsewhere, one | elsewhere, "spectral_error")
    assert both.blocks == 24
    with pytest.raises(ValueError, match="same blocks"):
        structure_of_seeds({"0": two["0"]}, {"7": elsewhere["1"]}, "spectral_error")
