"""Crops of a cube on disk are those of the same cube in memory, whatever the pool; its order and bounds hold always."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sifscale import chunk_pool
from sifscale.batch_order import BatchOrder, mixed_order
from sifscale.buffers import Buffers
from sifscale.chunk_pool import AHEAD, ChunkPool
from sifscale.config import ConfigError
from sifscale.crops import CropPlan, Plans
from sifscale.datamodule import CropBatches, CropDataModule
from sifscale.feature_store import materialise, open_features
from sifscale.features import Channel, FeatureCube

EDGE_PX = 700  # three chunks along an edge, the last one cut
LIMIT_MB = 20  # of a cube of 23.5 MB


@pytest.fixture(autouse=True, scope="module")
def only_fields_count() -> Iterator[None]:
    """Libraries leave no room in limits as small as these cubes need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_pool, "BESIDE_MB", 0)
        yield


@pytest.fixture(scope="module")
def lazy_cube() -> FeatureCube:
    rng = np.random.default_rng(0)
    fields = rng.normal(size=(6, 2, EDGE_PX, EDGE_PX)).astype(np.float32)
    lazy = da.from_array(fields, chunks=(1, 1, EDGE_PX, EDGE_PX))
    days = np.array(["2019-06-10", "2019-06-26"], "datetime64[ns]")
    channels, shape = (Channel("a", True), Channel("b", False)), (EDGE_PX, EDGE_PX)
    flat = lazy[2], lazy[3], lazy[4] > 0, lazy[5]
    weights = da.asarray(rng.random((2, EDGE_PX // 2, EDGE_PX // 2, 1, 3), dtype=np.float32))
    return FeatureCube(channels, lazy[:2].swapaxes(0, 1), *flat, 2, shape, ("a", "a"), days, footprint_weights=weights)


@pytest.fixture(scope="module")
def store(lazy_cube: FeatureCube, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise(lazy_cube, tmp_path_factory.mktemp("store"), "test")


@pytest.fixture(scope="module")
def memory(store: Path) -> FeatureCube:
    return open_features(store, 1000)


def on_disk(store: Path, limit_mb: int = LIMIT_MB) -> FeatureCube:
    return open_features(store, limit_mb)


def make_plan(crops: int, size: int, seed: int) -> CropPlan:
    """Crops anywhere, at even pixels."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, (EDGE_PX - size) // 2 + 1, (crops, 2)) * 2
    table = np.column_stack([rng.integers(0, 2, crops), corner, corner, corner + size])
    return CropPlan(table.astype(np.int32), np.ones(crops, np.float32), size)


def module(features: FeatureCube, plan: CropPlan, batch_size: int = 8, seed: int = 3) -> CropDataModule:
    plans = Plans(plan, plan, plan, None)
    return CropDataModule(features, plans, batch_size=batch_size, seed=seed, augment=False)


def numbers_of(batches: Any) -> list[list[int]]:
    return [batch["crop"].tolist() for batch in batches]


def cut(features: FeatureCube, plan: CropPlan, number: int) -> dict[str, NDArray[Any]]:
    """What a batch should hold, by plain slicing."""
    sample, y, x = plan.table[number, :3].tolist()
    at = np.s_[sample, y : y + plan.size, x : x + plan.size]
    fields = {name: getattr(features, name)[at][None] for name in ("coarse", "target", "weight", "valid")}
    cells = features.footprint_weights[sample, y // 2 : (y + plan.size) // 2, x // 2 : (x + plan.size) // 2]
    return fields | {"predictors": features.predictors[sample, :, at[1], at[2]], "footprint_weights": cells}


@settings(max_examples=15)
@given(
    crops=st.integers(1, 20),
    size=st.sampled_from([2, 64, 300, 700]),
    seed=st.integers(0, 99),
    limit_mb=st.integers(0, 22),
)
def test_crops_are_slices_of_the_cube_for_any_plan_and_limit(
    store: Path, memory: FeatureCube, crops: int, size: int, seed: int, limit_mb: int
) -> None:
    plan, features = make_plan(crops, size, seed), on_disk(store, limit_mb)
    data = module(features, plan)
    try:
        loaders = [data.train_dataloader()]
    except ConfigError as error:  # without place for a window
        assert f"found {limit_mb})" in str(error)
        loaders = []
    validation = data.val_dataloader()
    assert not isinstance(validation, list)
    for loader in (*loaders, validation):
        seen = []
        for batch in loader:
            for i, number in enumerate(batch["crop"].tolist()):
                for name, field in cut(memory, plan, number).items():
                    np.testing.assert_array_equal(batch[name][i].numpy(), field)
                seen.append(number)
        assert sorted(seen) == list(range(crops))
    assert seen == sorted(seen), "validation keeps its order"


def test_crops_that_straddle_chunks_and_windows_are_whole(store: Path, memory: FeatureCube) -> None:
    corner = np.array([[y, x] for y in (224, 254, 256, 480, 636) for x in (224, 254, 256, 480, 636)])
    table = np.column_stack([np.ones(len(corner), int), corner, corner, corner + 64]).astype(np.int32)
    plan = CropPlan(table, np.ones(len(table), np.float32), 64)
    pool = ChunkPool(on_disk(store, 14), plan, mixed=True)
    assert pool.edge_px == (256, 256) and len(pool.boxes) == 9
    for number in range(len(plan)):
        ((source, _, corner),) = pool.crops([number])
        (sample, y, x), at = corner[0], plan.table[number, 1:3]
        expected = memory.predictors[1, :, at[0] : at[0] + 64, at[1] : at[1] + 64]
        np.testing.assert_array_equal(source.predictors[sample, :, y : y + 64, x : x + 64], expected)
    pool.release()


@given(seed=st.integers(0, 999), crops=st.integers(1, 300), windows=st.integers(1, 40), slots=st.integers(1, 12))
def test_a_mixed_order_needs_no_more_windows_at_a_time_than_there_are_slots(
    seed: int, crops: int, windows: int, slots: int
) -> None:
    home = np.unique(np.random.default_rng(seed).integers(0, windows, crops), return_inverse=True)[1]
    order = mixed_order(home, slots, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(crops))
    turns = home[order]
    used = [np.flatnonzero(turns == window) for window in range(home.max() + 1)]
    in_use = np.zeros(crops, int)
    for at in used:
        in_use[at[0] : at[-1] + 1] += 1
    assert in_use.max() <= slots
    np.testing.assert_array_equal(order, mixed_order(home, slots, np.random.default_rng(seed)))


def test_a_batch_is_mixed_from_all_slots() -> None:
    home = np.repeat(np.arange(40), 100)
    turns = home[mixed_order(home, 8, np.random.default_rng(0))]
    kinds = [len(set(turns[start : start + 64])) for start in range(0, len(turns), 64)]
    assert np.mean(kinds) > 7 and min(kinds) >= 5


@given(seed=st.integers(0, 99), crops=st.integers(4, 200), slots=st.integers(1, 6), world=st.integers(1, 4))
def test_processes_share_one_order_and_hardly_a_window(seed: int, crops: int, slots: int, world: int) -> None:
    home = np.unique(np.random.default_rng(seed).integers(0, 12, crops), return_inverse=True)[1]
    shares = [mixed_order(home, slots, np.random.default_rng(seed), rank, world) for rank in range(world)]
    assert {len(share) for share in shares} == {crops // world}
    taken = np.concatenate(shares).tolist()
    assert len(set(taken)) == len(taken)
    assert sum(len(set(home[share])) for share in shares) <= home.max() + 1 + world - 1


def test_the_pool_holds_no_more_windows_than_its_slots_and_those_ahead(store: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    plan = make_plan(400, 64, 1)
    crops = module(on_disk(store), plan).train_dataloader()
    pool = crops.crops.pool
    assert pool is not None and "23.5 MB: stays on disk" in caplog.text
    assert len(pool.boxes) > pool.slots + AHEAD
    held, megabytes = [], []
    for _ in crops:
        held.append(len(pool._held))
        memories = *pool._memory.values(), *crops.crops._memory.values()
        pieces = [memory.nbytes for buffers in memories for memory, _ in buffers._pieces]
        megabytes.append(sum(pieces) / 1e6)
    assert max(held) == pool.slots + AHEAD
    assert max(megabytes) <= LIMIT_MB
    assert not pool._held, "an epoch that has ended keeps nothing"


def test_windows_of_the_next_batch_are_read_while_a_batch_is_in_use(store: Path) -> None:
    crops = module(on_disk(store), make_plan(400, 64, 1), batch_size=40).train_dataloader()
    order, pool = list(crops.sampler), crops.crops.pool
    assert pool is not None
    needed = [set(pool.home[batch].tolist()) for batch in order[1:]] + [set()]
    fits = [len(windows) <= pool.slots + AHEAD for windows in needed]
    read = [pool._held.keys() >= windows for _, windows in zip(crops, needed, strict=True)]
    assert sum(fits) > 5 and len(set.union(*needed)) > pool.slots + AHEAD
    assert read == fits


def test_epochs_differ_and_repeat_exactly(store: Path) -> None:
    plan, found = make_plan(60, 64, 2), []
    for epoch in (0, 1, 0):
        batches = module(on_disk(store), plan).train_dataloader()
        batches.sampler.set_epoch(epoch)
        found.append(numbers_of(batches))
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(("beside_mb", "least"), [(0, 8), (7, 15)])
def test_a_limit_without_place_for_a_window_is_refused_in_one_line_that_names_one_with(
    store: Path, monkeypatch: pytest.MonkeyPatch, beside_mb: int, least: int
) -> None:
    monkeypatch.setattr(chunk_pool, "BESIDE_MB", beside_mb)
    message = f"^trainer.memory_limit_mb: must be at least {least} for batches of 8 .* \\(found {least - 1}\\)$"
    with pytest.raises(ConfigError, match=message):
        module(on_disk(store, least - 1), make_plan(3, 64, 0)).train_dataloader()
    pool = module(on_disk(store, least), make_plan(3, 64, 0)).train_dataloader().crops.pool
    assert pool is not None and pool.slots == 1


def test_cells_that_edges_of_chunks_cut_are_whole(tmp_path: Path) -> None:
    rng, block, edge = np.random.default_rng(0), 3, 276
    field = da.from_array(rng.random((1, 1, edge, edge), dtype=np.float32))
    weights = da.from_array(rng.random((1, edge // block, edge // block, 3, 3), dtype=np.float32))
    flat, days = field[:, 0], np.array(["2019-06-10"], "datetime64[ns]")
    about = (Channel("a", True),), field, flat, flat, flat > 0.5, flat, block, (edge, edge), ("a",), days
    features = on_disk(materialise(FeatureCube(*about, footprint_weights=weights), tmp_path, "test"), 1)
    corner = np.array([[216, 0], [3, 213], [216, 216], [0, 6]])
    table = np.column_stack([np.zeros(4, int), corner, corner, corner + 60]).astype(np.int32)
    batch = CropBatches(features, CropPlan(table, np.ones(4, np.float32), 60), None)[[0, 1, 2, 3]]
    for i, (y, x) in enumerate(corner.tolist()):
        cells = np.s_[0, y // block : y // block + 20, x // block : x // block + 20]
        np.testing.assert_array_equal(batch["footprint_weights"][i].numpy(), weights[cells].compute())
        np.testing.assert_array_equal(batch["coarse"][i, 0].numpy(), flat[0, y : y + 60, x : x + 60].compute())


def test_a_loader_goes_on_within_an_epoch(store: Path, memory: FeatureCube) -> None:
    plan = make_plan(50, 64, 5)
    for features in (memory, on_disk(store)):
        whole = module(features, plan).train_dataloader()
        whole.sampler.set_epoch(2)
        expected = numbers_of(whole)
        stopped = module(features, plan).train_dataloader()
        stopped.sampler.set_epoch(2)
        batches = iter(stopped)
        for _ in range(3):
            next(batches)
        state = stopped.state_dict()
        resumed = module(features, plan).train_dataloader()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        resumed.sampler.set_epoch(2)
        assert numbers_of(resumed) == expected[3:]
        resumed.sampler.set_epoch(3)
        assert len(numbers_of(resumed)) == len(expected), "the next epoch is whole"


def test_a_state_of_another_order_is_refused_within_an_epoch_only(store: Path) -> None:
    plan = make_plan(50, 64, 5)
    batches = module(on_disk(store), plan).train_dataloader()
    next(iter(batches))
    other = module(on_disk(store, 13), plan).train_dataloader()
    with pytest.raises(ConfigError, match="^resume: .*trainer.memory_limit_mb"):
        other.load_state_dict(batches.state_dict())
    list(batches)
    other.load_state_dict(batches.state_dict())
    assert len(numbers_of(other)) == len(other)


class Stopping(pl.LightningModule):
    """Learns nothing; notes the crops, and saves a checkpoint within an epoch."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.weight, self.path = torch.nn.Parameter(torch.zeros(())), path
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch["crop"].tolist()))
        return self.weight * 0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.path and len(self.seen) == 10:  # of 7 an epoch
            self.trainer.save_checkpoint(self.path)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_resumes_within_an_epoch(store: Path, tmp_path: Path) -> None:
    plan = make_plan(50, 64, 6)

    def fit(model: Stopping, checkpoint: Path | None = None) -> Stopping:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=3,
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, module(on_disk(store), plan), ckpt_path=checkpoint, weights_only=False)
        return model

    unbroken = fit(Stopping(tmp_path / "stopped.ckpt"))
    assert len(unbroken.seen) == 21
    assert fit(Stopping(), tmp_path / "stopped.ckpt").seen == unbroken.seen[10:]


def test_channels_made_in_memory_go_with_fields_on_disk(store: Path, memory: FeatureCube) -> None:
    plan = make_plan(20, 64, 7)
    half = replace(on_disk(store), predictors=memory.predictors[:, ::-1])
    for batch in module(half, plan).train_dataloader():
        for i, number in enumerate(batch["crop"].tolist()):
            expected = cut(memory, plan, number)
            np.testing.assert_array_equal(batch["predictors"][i].numpy(), expected["predictors"][::-1])
            np.testing.assert_array_equal(batch["target"][i].numpy(), expected["target"])


def test_a_fault_of_the_disk_is_raised_where_the_crop_is_asked_for(store: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken.zarr"
    shutil.copytree(store, broken)
    features = on_disk(broken)
    for chunk in (broken / "predictors" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"not a chunk")
    with pytest.raises(ValueError, match="predictors"):
        list(module(features, make_plan(5, 64, 0)).train_dataloader())


def test_memory_is_used_again_only_when_its_tensors_are_gone() -> None:
    buffers = Buffers()
    first = torch.from_numpy(buffers.take((4, 5), np.float32))
    place, part = first.data_ptr(), first[1:, None]
    del first
    assert torch.from_numpy(buffers.take((4, 5), np.float32)).data_ptr() != place, "a part is still in use"
    del part
    assert torch.from_numpy(buffers.take((2, 5), np.float32)).data_ptr() == place, "less fits too"


def test_unused_memory_does_not_pile_up() -> None:
    buffers = Buffers()
    held = [buffers.take((1000,), np.float32) for _ in range(20)]
    assert len({array.ctypes.data for array in held}) == 20
    del held
    buffers.take((1000,), np.float32)
    assert len(buffers._pieces) == 2


def test_an_order_without_a_pool_is_as_it_was() -> None:
    order = BatchOrder(10, 3, 1)
    order.set_epoch(4)
    expected = np.random.default_rng((1, 4)).permutation(10).tolist()
    assert [number for batch in order for number in batch] == expected


def test_crops_can_be_asked_for_in_any_order(store: Path, memory: FeatureCube) -> None:
    plan = make_plan(30, 64, 8)
    crops, expected = CropBatches(on_disk(store), plan, None), CropBatches(memory, plan, None)
    for numbers in ([29, 0], [7], [28, 1, 15]):
        found, wanted = crops[numbers], expected[numbers]
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in found)
        assert all(found[name].stride() == wanted[name].stride() for name in found), "or convolutions would differ"
        assert found["predictors"].is_contiguous(memory_format=torch.channels_last)


def test_codes_are_crops_within_half_a_step_and_the_same_from_disk_and_memory(
    lazy_cube: FeatureCube, store: Path, memory: FeatureCube, tmp_path: Path
) -> None:
    small = replace(lazy_cube, footprint_weights=None)
    coded = materialise(small, tmp_path, "test", stored_as="int16")
    assert coded.name != store.name
    plan, limit_mb = make_plan(60, 64, 9), 12  # of 17.6 MB as it reads
    on_disk_, in_memory = (CropBatches(open_features(coded, limit), plan, None, mixed=True) for limit in (limit_mb, 99))
    assert on_disk_.pool is not None and in_memory.pool is None
    step = [np.ptp(memory.predictors[:, i]) / 65534 for i in range(2)]
    for numbers in np.arange(60).reshape(-1, 12).tolist():
        found, same = on_disk_[numbers], in_memory[numbers]
        assert all(torch.equal(found[name], same[name]) for name in found)
        for i, number in enumerate(numbers):
            expected = cut(memory, plan, number)
            error = np.abs(found["predictors"][i].numpy() - expected["predictors"]).max(axis=(1, 2))
            assert (error <= np.array(step) * 0.5 + 1e-6).all()
            np.testing.assert_array_equal(found["target"][i].numpy(), expected["target"])
    uncoded = ChunkPool(replace(on_disk(store, limit_mb), footprint_weights=None), plan, mixed=True)
    assert on_disk_.pool.slots > uncoded.slots


def test_other_tools_read_codes_by_scale_and_offset(lazy_cube: FeatureCube, tmp_path: Path) -> None:
    import xarray as xr

    small = lazy_cube.predictors[:1, :, :64, :64]
    small = da.where(small > 2, np.nan, small).astype(np.float32)
    flat = small[:, 0], small[:, 0], small[:, 0] > 0, small[:, 0]
    cube = FeatureCube(lazy_cube.channels, small, *flat, 1, (64, 64), ("a",), lazy_cube.times[:1])
    path = materialise(cube, tmp_path, "test", stored_as="int16")
    with xr.open_zarr(path, consolidated=False) as found:
        values = (found["predictors"] * found["scale"] + found["offset"]).transpose("sample", "channel", "y", "x")
    np.testing.assert_allclose(values.values, open_features(path, 99).predictors, rtol=1e-6, atol=1e-6)
