"""What a test is scored on beside its pixels, against plain loops, SciPy and the crops' own predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import spatial

from sifscale.block_sums import BlockMap, block_map
from sifscale.crops import CropPlan
from sifscale.datamodule import CropBatches, CropDataModule
from sifscale.evaluation import DISTANCES_PX, FieldCollector, Fields, by_cell, errors_by, groups, structures
from sifscale.features import Channel, FeatureCube
from sifscale.fitting import known_warnings, lightning_trainer
from sifscale.metrics import SUMS, Sums, pooled
from sifscale.splits import NOWHERE, TEST, TRAIN
from sifscale.structure import Structure
from sifscale.structure import pooled as pooled_structure
from sifscale.training import make_task, prepare_features, prepare_plans
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

SHAPE = (2, 24, 36)
CLASSES = ("corn", "open_water", "forest")


def make_features(seed: int = 0, cover: bool = True, gaps: float = 0.2) -> FeatureCube:
    """A target with gaps, 22 x 35 px before padding, and a land cover with pixels of no class."""
    rng = np.random.default_rng(seed)
    target = rng.normal(1, 0.5, SHAPE).astype(np.float32)
    target[rng.random(SHAPE) < gaps] = np.nan
    target[:, 22:], target[:, :, 35:] = np.nan, np.nan
    days = np.array(["2019-05-25", "2019-06-10"], "datetime64[ns]")
    known: dict[str, Any] = {"cover": rng.integers(-1, 3, SHAPE, dtype=np.int8), "cover_names": CLASSES}
    return FeatureCube(
        (Channel("coarse", True),), target[:, None], np.nan_to_num(target), target, np.isfinite(target),
        np.ones_like(target), 3, (22, 35), ("a", "a"), days, **(known if cover else {}),
    )  # fmt: skip


def make_parts() -> NDArray[np.int8]:
    parts = np.full(SHAPE, NOWHERE, dtype=np.int8)
    parts[:, :, :7], parts[:, :, 9:] = TRAIN, TEST
    return parts


def make_fields(features: FeatureCube, seed: int = 0) -> Fields:
    """Two predictions, NaN outside what the test scores."""
    rng = np.random.default_rng(seed)
    scored = np.asarray(features.valid) & (make_parts() == TEST)
    guesses = (np.asarray(features.target) + rng.normal(size=(2, *SHAPE)) * 0.3).astype(np.float32)
    return {name: np.where(scored, guess, np.float32(np.nan)) for name, guess in zip("ab", guesses, strict=True)}


def by_hand(prediction: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    """Sums (8,) in the order of ``SUMS`` over two flat arrays."""
    p, y = prediction.astype(np.float64), target.astype(np.float64)
    terms = (np.ones_like(y), y, y * y, p, p * p, y * p, abs(p - y), p < 0)
    return np.array([term.sum() for term in terms], dtype=np.float64)


def test_a_collected_field_is_what_the_task_predicts_crop_by_crop(workplace: Workplace, tmp_path: Path) -> None:
    run = workplace.config("crop.size=12", "split.guard_px=0", "model.widths=[4,8]", "model.bottleneck=8")
    features = prepare_features(run, open_or_build(run))
    plans = prepare_plans(run, features)
    torch.manual_seed(0)
    task = make_task(run, features, plans)
    data = CropDataModule(features, plans, batch_size=7, seed=0, augment=True)
    collector = FieldCollector(plans.test, features.coarse.shape)
    with known_warnings():
        lightning_trainer(run, [collector], tmp_path, validate=False).test(task, data, verbose=False)

    assert plans.parts is not None and set(collector.fields) == {"model", "nearest", "bilinear"}
    expected, coarse = (np.full(features.coarse.shape, np.nan, dtype=np.float32) for _ in range(2))
    scored = (plans.parts == TEST) & features.valid
    crops = CropBatches(features, plans.test, plans.parts)
    with torch.no_grad():
        for number, (sample, *core) in enumerate(plans.test.table[:, [0, 3, 4, 5, 6]].tolist()):
            batch = crops[[number]]
            prediction = task(batch["predictors"], batch["coarse"], batch["valid"])[0, 0].numpy()
            y0, x0 = plans.test.table[number, 1:3]
            for y in range(core[0], core[2]):
                for x in range(core[1], core[3]):
                    if scored[sample, y, x]:
                        expected[sample, y, x] = prediction[y - y0, x - x0]
                        coarse[sample, y, x] = features.coarse[sample, y, x]
    np.testing.assert_array_equal(np.isfinite(collector.fields["model"]), scored)
    np.testing.assert_allclose(collector.fields["model"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(collector.fields["nearest"], coarse)


def test_what_two_processes_collect_comes_together() -> None:
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    whole[0, 0] = np.nan  # scored by neither
    mine, other = whole.copy(), whole.copy()
    mine[1], other[0] = np.nan, np.nan
    collector = FieldCollector(CropPlan(np.zeros((0, 7), np.int32), np.zeros(0, np.float32), 2), (2, 3, 4))
    collector.fields = {"model": mine}
    theirs = [torch.from_numpy(np.isfinite(other).astype(np.float32)), torch.from_numpy(np.nan_to_num(other))]
    strategy = SimpleNamespace(reduce=lambda part, reduce_op: part + theirs.pop(0))
    trainer: Any = SimpleNamespace(world_size=2, strategy=strategy)
    task: Any = SimpleNamespace(device=torch.device("cpu"))
    collector.on_test_epoch_end(trainer, task)
    np.testing.assert_array_equal(collector.fields["model"], whole)


@given(seed=st.integers(0, 500), cell_px=st.sampled_from([1, 2, 3, 4]), min_valid=st.sampled_from([0.0, 0.5, 1.0]))
def test_sums_by_cell_are_those_of_a_loop_over_cells(seed: int, cell_px: int, min_valid: float) -> None:
    features = make_features(seed)
    fields, blocks = make_fields(features, seed), block_map(features, (11, 12))
    expected: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in fields}
    for sample, y, x in np.ndindex(SHAPE[0], SHAPE[1] // cell_px, SHAPE[2] // cell_px):
        at = (sample, slice(y * cell_px, (y + 1) * cell_px), slice(x * cell_px, (x + 1) * cell_px))
        block = blocks.names[blocks.inside[y * cell_px, x * cell_px] + blocks.first[sample]]
        for name, field in fields.items():
            known = np.isfinite(field[at])
            if known.any() and known.mean() >= min_valid:
                pair = float(field[at][known].mean()), float(features.target[at][known].mean())
                expected[name].setdefault(block, []).append(pair)
    found = by_cell(fields, features.target, blocks, cell_px, min_valid)
    assert {name: set(of_block) for name, of_block in found.items()} == (
        {name: set(of_block) for name, of_block in expected.items()} if any(expected.values()) else {}
    )
    for name, of_block in found.items():
        for block, sums in of_block.items():
            prediction, target = np.array(expected[name][block]).T
            np.testing.assert_allclose(sums.values.numpy(), by_hand(prediction, target), rtol=1e-4, atol=1e-4)


def test_cells_of_one_pixel_are_pixels_and_none_is_found_where_all_have_a_gap() -> None:
    features = make_features()
    fields, blocks = make_fields(features), block_map(features, (11, 12))
    sums = pooled(by_cell(fields, features.target, blocks, 1, 1.0)["a"])
    scored = np.isfinite(fields["a"])
    np.testing.assert_allclose(sums.values.numpy(), by_hand(fields["a"][scored], features.target[scored]), rtol=1e-6)
    for field in fields.values():
        field[:, ::2, ::2] = np.nan
    assert by_cell(fields, features.target, blocks, 2, 1.0) == {}


def test_groups_of_a_kind_share_out_the_scored_pixels() -> None:
    features, parts = make_features(), make_parts()
    fields = make_fields(features)
    found = errors_by(fields, features, parts)
    assert list(found) == ["land cover", "level of the target", "distance to training pixels"]
    for name, field in fields.items():
        scored = np.isfinite(field)
        whole = by_hand(field[scored], features.target[scored])
        for kind in list(found)[1:]:
            sums = sum((of_group[name] for of_group in found[kind].values()), start=Sums.zero())
            np.testing.assert_allclose(sums.values.numpy(), whole, rtol=1e-9)
        assert set(found["land cover"]) == {"corn", "open water", "forest"}
        for number, group in enumerate(("corn", "open water", "forest")):
            here = scored & (np.asarray(features.cover) == number)
            expected = by_hand(field[here], features.target[here])
            np.testing.assert_allclose(found["land cover"][group][name].values.numpy(), expected, rtol=1e-9)
    covered = sum(of_group["a"].values[0].item() for of_group in found["land cover"].values())
    assert covered == (np.isfinite(fields["a"]) & (np.asarray(features.cover) >= 0)).sum(), "no class, no group"


def test_levels_are_fifths_of_the_whole_window_whatever_is_scored() -> None:
    features = make_features(cover=False)
    (kind, names, number), _ = groups(features, make_parts())
    assert kind == "level of the target" and len(names) == 5
    assert names[0].startswith("below ") and names[-1].startswith("above ")
    np.testing.assert_array_equal(number == -1, ~features.valid)
    order = np.argsort(np.argsort(features.target[features.valid]))  # rank, 0 the smallest
    shares = np.bincount(number[features.valid]) / len(order)
    np.testing.assert_allclose(shares, 0.2, atol=1 / len(order))
    np.testing.assert_array_equal(np.sort(number[features.valid]), number[features.valid][np.argsort(order)])


def test_distance_is_that_to_the_nearest_training_pixel_of_the_sample() -> None:
    features, parts = make_features(cover=False), make_parts()
    parts[0, :10, :7] = NOWHERE  # samples need not be split alike
    parts[1, 15:, 30:] = TRAIN
    _, (kind, names, number) = groups(features, parts)
    assert kind == "distance to training pixels"
    assert names == ("0 to 4 px", "4 to 8 px", "8 to 16 px", "16 to 32 px", "32 px and more")
    pixels = np.argwhere(np.ones(SHAPE[1:], dtype=bool))
    for sample in range(2):
        distance = spatial.distance.cdist(pixels, np.argwhere(parts[sample] == TRAIN)).min(axis=1)
        expected = [max(i for i, edge in enumerate(DISTANCES_PX) if value >= edge) for value in distance]
        np.testing.assert_array_equal(number[sample].ravel(), expected)


def test_without_training_pixels_in_a_tested_sample_there_is_no_distance() -> None:
    features, parts = make_features(cover=False), make_parts()
    parts[0], parts[1] = TRAIN, TEST
    assert [kind for kind, _, _ in groups(features, parts)] == ["level of the target"]
    parts[0] = make_parts()[0]
    _, (_, _, number) = groups(features, parts)
    assert (number[1] == -1).all() and (number[0] >= 0).all()


def test_a_constant_target_has_groups_all_the_same() -> None:
    features = make_features(cover=False)
    flat = replace(features, target=np.where(features.valid, np.float32(2), np.float32(np.nan)))
    found = errors_by({"a": flat.target}, flat, np.full(SHAPE, TEST, dtype=np.int8))
    (sums,) = [of_group["a"] for of_group in found["level of the target"].values()]
    assert sums.values[SUMS.index("n")] == features.valid.sum()


def errors_of_blocks(field: NDArray[Any], features: FeatureCube, blocks: BlockMap) -> dict[str, float]:
    """Sums of squared errors by name of the block, pixel by pixel."""
    found: dict[str, float] = {}
    for sample, y, x in np.argwhere(np.isfinite(field)):
        name = blocks.names[blocks.inside[y, x] + blocks.first[sample]]
        error = float(field[sample, y, x]) - float(features.target[sample, y, x])
        found[name] = found.get(name, 0.0) + error**2
    return found


@pytest.mark.parametrize("constant", [False, True])
def test_structures_are_those_of_the_test_part_in_the_range_of_the_whole_target(constant: bool) -> None:
    features = make_features(gaps=0.01)
    if constant:
        features = replace(features, target=np.where(features.valid, np.float32(2), np.float32(np.nan)))
    fields, inside = make_fields(features), make_parts() == TEST
    target = features.target[features.valid]
    span = 1.0 if constant else float(target.max() - target.min())
    blocks = block_map(features, (8, 9))
    for name, found in structures(fields, features, make_parts(), blocks, 8).items():
        scored = features.valid & inside
        options: dict[str, Any] = {"tile_px": 8, "data_range": span}
        expected = Structure.of(fields[name], features.target, scored, inside, **options)
        assert pooled_structure(found).finish() == pytest.approx(expected.finish(), rel=1e-9, nan_ok=True)
        assert pooled_structure(found).scored_px == expected.scored_px
        by_block = errors_of_blocks(fields[name], features, blocks)
        assert {block: part.squared_error for block, part in found.items()} == pytest.approx(by_block)
        assert expected.scored_px == scored.sum() and expected.ssim_px > 0 and expected.tiles > 0


def test_blocks_pool_to_the_sums_of_all_and_none_to_nothing() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((3, len(SUMS)))
    blocks = {str(i): Sums(torch.from_numpy(row)) for i, row in enumerate(values)}
    np.testing.assert_allclose(pooled(blocks).values.numpy(), values.sum(axis=0))
    assert not pooled({}).values.any()
