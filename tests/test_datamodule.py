"""Batches are plain cuts of the feature cube, in an order that (seed, epoch) alone decide."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sifscale.config import ConfigError, Normalisation, RandomCrop
from sifscale.crop_kernels import cut as cut_kernel
from sifscale.crop_kernels import load_kernels, score
from sifscale.crops import CropPlan, Plans, make_plans
from sifscale.datamodule import (
    BatchOrder,
    CropBatches,
    CropDataModule,
    channel_ranges,
    fit_scaler,
    training_pixels,
)
from sifscale.features import Channel, FeatureCube
from sifscale.splits import NOWHERE, TEST, TRAIN, VALIDATION

SHAPE = (2, 48, 60)
CHANNELS = (Channel("coarse", True), Channel("evi", True), Channel("lbp", False), Channel("flat", True))
RANDOM = RandomCrop(name="random", size=12, number=30, min_valid=0.2, augment=True)


def make_features(seed: int = 0) -> FeatureCube:
    rng = np.random.default_rng(seed)
    target = rng.normal(1, 0.5, SHAPE).astype(np.float32)
    target[rng.random(SHAPE) < 0.2] = np.nan
    predictors = rng.normal(3, 2, (SHAPE[0], 4, *SHAPE[1:])).astype(np.float32)
    predictors[:, 1][rng.random(SHAPE) < 0.1] = np.nan
    predictors[:, 3] = 0.1
    coarse = rng.random((2, 16, 20), dtype=np.float32).repeat(3, 1).repeat(3, 2)
    days = np.array(["2019-05-25", "2019-06-10"], "datetime64[ns]")
    valid = np.isfinite(target)
    weight = rng.uniform(0.1, 1, SHAPE).astype(np.float32)
    return FeatureCube(CHANNELS, predictors, coarse, target, valid, weight, 3, SHAPE[1:], ("a", "a"), days)


def make_parts() -> NDArray[np.int8]:
    parts = np.full(SHAPE, NOWHERE, dtype=np.int8)
    parts[:, :, :28], parts[:, :, 30:45], parts[:, 5:, 46:] = TRAIN, VALIDATION, TEST
    return parts


def make_module(features: FeatureCube, augment: bool = False, crop: RandomCrop = RANDOM) -> CropDataModule:
    plans = make_plans(crop, make_parts(), features.valid, 3, 0)
    return CropDataModule(features, plans, batch_size=8, seed=5, augment=augment)


def cut(features: FeatureCube, row: NDArray[np.int32], size: int) -> dict[str, NDArray[Any]]:
    sample, y, x = row[:3]
    at = np.s_[sample, y : y + size, x : x + size]
    fields = {name: getattr(features, name)[at][None] for name in ("coarse", "target", "weight", "valid")}
    return {"predictors": features.predictors[sample, :, y : y + size, x : x + size], **fields}


def test_batches_are_cuts_of_the_cube() -> None:
    features = make_features()
    module = make_module(features)
    numbers: list[int] = []
    for batch in module.train_dataloader():
        assert all(batch[name].dtype == torch.float32 for name in ("coarse", "target", "weight", "predictors"))
        assert batch["valid"].dtype == batch["scored"].dtype == torch.bool
        for i, number in enumerate(batch["crop"].tolist()):
            for name, field in cut(features, module.plans.train.table[number], 12).items():
                np.testing.assert_array_equal(batch[name][i].numpy(), field)
        torch.testing.assert_close(batch["scored"], batch["valid"])
        numbers += batch["crop"].tolist()
    assert sorted(numbers) == list(range(len(module.plans.train)))
    assert len(module.train_dataloader()) == -(-len(numbers) // 8)


def test_a_batch_is_a_copy() -> None:
    features = make_features()
    batch = next(iter(make_module(features).train_dataloader()))
    before = features.coarse.copy()
    batch["coarse"].zero_()
    np.testing.assert_array_equal(features.coarse, before)


def test_each_test_pixel_is_scored_once() -> None:
    features = make_features()
    module = make_module(features)
    count = np.zeros(SHAPE, dtype=int)
    for batch in module.test_dataloader():
        for number, scored in zip(batch["crop"].tolist(), batch["scored"], strict=True):
            sample, y, x = module.plans.test.table[number, :3]
            count[sample, y : y + 12, x : x + 12] += scored[0].numpy()
    np.testing.assert_array_equal(count, (make_parts() == TEST) & features.valid)


def test_validation_comes_in_order_and_may_be_absent() -> None:
    module = make_module(make_features())
    assert module.plans.validation is not None
    numbers = [n for batch in module.val_dataloader() for n in batch["crop"].tolist()]
    assert numbers == list(range(len(module.plans.validation)))
    module.plans = replace(module.plans, validation=None)
    assert module.val_dataloader() == []


@given(
    crops=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 99), world=st.integers(1, 4)
)
def test_the_order_depends_on_seed_and_epoch_and_ranks_share_fairly(
    crops: int, batch_size: int, seed: int, world: int
) -> None:
    assume(crops >= world)
    ranks = []
    for rank in range(world):
        order, resumed = (BatchOrder(crops, batch_size, seed, rank, world) for _ in range(2))
        for epoch in range(3):
            order.set_epoch(epoch)
            batches = list(order)
            assert len(batches) == len(order) and all(0 < len(batch) <= batch_size for batch in batches)
        resumed.set_epoch(2)
        assert list(resumed) == batches
        ranks.append([number for batch in batches for number in batch])
    taken = [number for numbers in ranks for number in numbers]
    assert len(set(taken)) == len(taken) > crops - world
    assert {len(numbers) for numbers in ranks} == {crops // world}
    assert set(taken) <= set(range(crops))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_more_processes_than_crops_of_a_part_are_refused_before_training(part: str) -> None:
    module = make_module(make_features())
    plan = getattr(module.plans, part)
    few = replace(plan, table=plan.table[:2], valid_fraction=plan.valid_fraction[:2])
    module.plans = replace(module.plans, **{part: few})
    for world in (2, 3):
        module.trainer = cast(pl.Trainer, SimpleNamespace(global_rank=0, world_size=world))
        fault = pytest.raises(ConfigError, match=f"^trainer.devices: .* {part}.* crops, 2 ")
        with fault if world > 2 else nullcontext():
            module.train_dataloader()


@given(crops=st.integers(0, 40), world=st.integers(1, 4))
def test_evaluation_takes_each_crop_once_whatever_the_ranks(crops: int, world: int) -> None:
    taken = [n for rank in range(world) for batch in BatchOrder(crops, 7, None, rank, world) for n in batch]
    assert sorted(taken) == list(range(crops))


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = BatchOrder(40, 8, seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) and order(0, 1) != order(1, 0)


class Recorder(pl.LightningModule):
    """Learns nothing; notes which crops come in which epoch, and the batches themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[int]] = {}
        self.batches: list[dict[str, torch.Tensor]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.setdefault(self.current_epoch, []).extend(batch["crop"].tolist())
        self.batches.append(batch)
        return self.weight * 0

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.validated = batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(epochs: int, folder: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


# Lightning advises loader workers, which whole batches do not need.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_resumed_lightning_run_goes_on_with_the_same_batches(tmp_path: Any) -> None:
    features = make_features()
    unbroken, first, second = Recorder(), Recorder(), Recorder()
    make_trainer(3, tmp_path).fit(unbroken, make_module(features, augment=True))
    trainer = make_trainer(2, tmp_path)
    trainer.fit(first, make_module(features, augment=True))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = make_trainer(3, tmp_path)
    resumed.fit(second, make_module(features, augment=True), ckpt_path=str(tmp_path / "last.ckpt"))
    assert unbroken.seen[0] != unbroken.seen[1] != unbroken.seen[2]
    assert first.seen == {epoch: unbroken.seen[epoch] for epoch in (0, 1)}
    assert second.seen == {2: unbroken.seen[2]}
    # Validation crops are never turned.
    rows = make_module(features).plans.validation
    assert rows is not None
    last = int(unbroken.validated["crop"][-1])
    np.testing.assert_array_equal(
        unbroken.validated["coarse"][-1].numpy(), cut(features, rows.table[last], 12)["coarse"]
    )


def symmetries(field: NDArray[Any]) -> list[NDArray[Any]]:
    return [np.rot90(f, k, (-2, -1)) for f in (field, field[..., ::-1]) for k in range(4)]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_all_fields_of_a_crop_are_turned_alike_in_all_eight_ways(tmp_path: Any) -> None:
    features = make_features()
    model = Recorder()
    module = make_module(features, augment=True, crop=RANDOM.model_copy(update={"number": 70}))
    make_trainer(8, tmp_path).fit(model, module)
    kinds = []
    per_batch = []
    for batch in model.batches:
        found = []
        for i, number in enumerate(batch["crop"].tolist()):
            fields = cut(features, module.plans.train.table[number], 12)
            fields["scored"] = fields["valid"]
            matching = [
                {
                    k
                    for k, turned in enumerate(symmetries(field))
                    if np.array_equal(turned, batch[name][i].numpy(), True)
                }
                for name, field in ((n, f.astype(np.float32)) for n, f in fields.items())
            ]
            (kind,) = set.intersection(*matching)  # exactly one of the eight, the same for every field
            found.append(kind)
        kinds += found
        per_batch.append(len(set(found)))
        assert batch["valid"].dtype == batch["scored"].dtype == torch.bool
        assert batch["predictors"].dtype == batch["target"].dtype == torch.float32
    share = np.bincount(kinds, minlength=8) / len(kinds)
    # Eight standard deviations: each way is as likely as any other, and is drawn crop by crop.
    assert (np.abs(share - 1 / 8) < 8 * np.sqrt(7 / 64 / len(kinds))).all()
    assert np.mean(per_batch) > 3


def test_nothing_is_turned_without_augment_or_outside_training() -> None:
    features = make_features()
    for augment in (True, False):
        module = make_module(features, augment)
        batch = next(iter(module.train_dataloader()))
        assert module.on_after_batch_transfer(batch, 0) is batch


def scaler_of(features: FeatureCube, plans: Plans, method: str, fit: str = "train") -> Any:
    normalisation = Normalisation.model_validate({"method": method, "fit": fit})
    return fit_scaler(features, training_pixels(plans, features, normalisation), method)


@pytest.mark.parametrize("method", ["zscore", "minmax", "none"])
def test_the_scaler_sees_train_pixels_only(method: str) -> None:
    features = make_features()
    plans = make_module(features).plans
    scaler = scaler_of(features, plans, method)
    elsewhere = make_parts() != TRAIN
    features.target[elsewhere] *= 7
    features.predictors[np.broadcast_to(elsewhere[:, None], features.predictors.shape)] += 100
    assert scaler_of(features, plans, method) == scaler
    assert method == "none" or scaler_of(features, plans, method, "everything") != scaler


def test_scalers_are_those_of_numpy_and_leave_codes_alone() -> None:
    features = make_features()
    plans = make_module(features).plans
    inside = make_parts() == TRAIN
    evi, target = (
        features.predictors[:, 1][inside].astype(np.float64),
        features.target[inside].astype(np.float64),
    )
    zscore, minmax = (scaler_of(features, plans, method) for method in ("zscore", "minmax"))
    assert (zscore.offset[1], zscore.scale[1]) == pytest.approx((np.nanmean(evi), np.nanstd(evi)))
    assert (zscore.target_offset, zscore.target_scale) == pytest.approx(
        (np.nanmean(target), np.nanstd(target))
    )
    assert (minmax.offset[1], minmax.scale[1]) == pytest.approx(
        (np.nanmin(evi), np.nanmax(evi) - np.nanmin(evi))
    )
    for scaler in (zscore, minmax):
        assert (scaler.offset[2], scaler.scale[2]) == (0, 1)  # codes
        assert (scaler.offset[3], scaler.scale[3]) == (pytest.approx(0.1), 1)  # constant
    none = scaler_of(features, plans, "none")
    assert set(none.offset) == {0.0} and set(none.scale) == {1.0}
    assert (none.target_offset, none.target_scale) == (0, 1)


@given(seed=st.integers(0, 999), mean=st.sampled_from([0.0, 1e4]))
def test_scalers_of_samples_that_differ_are_those_of_all_pixels(seed: int, mean: float) -> None:
    rng, features = np.random.default_rng(seed), make_features(seed)
    features.predictors[0, 0] += np.float32(mean)
    features.predictors[1, 0] *= np.float32(5)
    inside = rng.random(SHAPE) < 0.3
    inside[rng.integers(2)] &= rng.random() < 0.8  # at times a sample has none
    values = features.predictors[:, 0][inside].astype(np.float64)
    found = fit_scaler(features, inside, "zscore")
    assert (found.offset[0], found.scale[0]) == pytest.approx((values.mean(), values.std()), rel=1e-10)
    assert channel_ranges(features, inside)[0] == (values.min(), values.max())


def test_ranges_are_those_of_scaled_channels_that_have_values() -> None:
    features = make_features()
    features.predictors[:, 0] = np.nan
    coarse, evi, codes, flat = channel_ranges(features, np.ones(SHAPE, bool))
    assert coarse == (np.inf, -np.inf) and codes == (-np.inf, np.inf) and flat[0] == flat[1] == np.float32(0.1)
    assert evi == (np.nanmin(features.predictors[:, 1]), np.nanmax(features.predictors[:, 1]))


def compiled_for() -> list[list[Any]]:
    """Argument types that the loops are compiled for in this process."""
    return [list(cast("Any", kernel).signatures) for kernel in (cut_kernel, score)]


def compiled_before_and_by_batches() -> tuple[list[list[Any]], ...]:
    before = compiled_for()
    load_kernels()
    loaded, module = compiled_for(), make_module(make_features())
    for loader in (module.train_dataloader(), module.test_dataloader()):
        next(iter(loader))
    return before, loaded, compiled_for()


def test_no_batch_waits_for_loops_that_were_loaded() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as fresh:
        before, loaded, used = fresh.submit(compiled_before_and_by_batches).result()
    assert before == [[], []] and all(loaded) and used == loaded


def test_a_channel_without_values_is_left_alone() -> None:
    features = make_features()
    features.predictors[:, 1] = np.nan
    scaler = scaler_of(features, make_module(features).plans, "zscore")
    assert (scaler.offset[1], scaler.scale[1]) == (0, 1)


def test_legacy_crops_let_the_scaler_see_what_they_cover() -> None:
    features = make_features()
    table = np.array([[0, 3, 6, 3, 6, 15, 18]], dtype=np.int32)
    plan = CropPlan(table, np.ones(1, np.float32), 12)
    normalisation = Normalisation(method="zscore", fit="train")
    seen = training_pixels(Plans(plan, None, plan, None), features, normalisation)
    assert seen.sum() == 144 and seen[0, 3:15, 6:18].all()


def test_cores_bound_what_is_scored() -> None:
    features = make_features()
    plan = CropPlan(np.array([[1, 0, 0, 3, 0, 9, 6]], dtype=np.int32), np.ones(1, np.float32), 12)
    batch = CropBatches(features, plan, None)[[0]]
    expected = np.zeros((12, 12), dtype=bool)
    expected[3:9, :6] = True
    np.testing.assert_array_equal(batch["scored"][0, 0].numpy(), expected & features.valid[1, :12, :12])
