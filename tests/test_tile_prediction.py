"""Tiles against the whole field in one piece, bit by bit, and cell means of the map against the observed ones."""

from __future__ import annotations

import inspect
import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from sifscale.checkpoints import with_factor
from sifscale.config import PROJECT_ROOT, ConfigError
from sifscale.conservation import CONSERVATIONS, conserve
from sifscale.datamodule import Scaler
from sifscale.grid import block_repeat
from sifscale.models import ANY_FACTOR, MODELS
from sifscale.models.ensemble import Ensemble
from sifscale.models.regression import GradientBoosting, RandomForest
from sifscale.receptive_field import Reach
from sifscale.said_tiles import SaidTiles
from sifscale.task import DownscalingTask
from sifscale.task_spec import Optimisation, Origin, TaskSpec
from sifscale.tile_fields import TileFields
from sifscale.tile_prediction import FLAGS, Said, TilePredictor
from sifscale.tiles import Tile, make_tiles, padded_shape
from sifscale.uncertainty import Calibration

CHANNELS = ("coarse", "ndvi", "nir")
TINY_UNET = {
    "name": "unet", "widths": [4, 8], "bottleneck": 8, "kernel_size": 3, "convolutions": 1, "norm": "none",
    "upsampling": "bilinear", "upsampling_relu": False, "dropout": 0.0, "residual": True,
}  # fmt: skip
BASELINES: list[dict[str, Any]] = [
    {"name": "bicubic"},
    {"name": "nirv_ratio", "floor": 0.01, "ratio": "block"},
    {"name": "ridge", "strengths": [1.0]},
    {"name": "deconvolution", "kernel": 5, "strengths": [1.0]},
]


def task_of(
    model: dict[str, Any], factor: int = 4, members: int = 1, size: int = 16, uncertainty: dict[str, Any] | None = None
) -> DownscalingTask:
    """A task with random weights, as they are after training: none is 0."""
    torch.manual_seed(3)
    count = len(CHANNELS)
    origin = Origin(features={}, coarse={}, units={}, ranges=((-2.0, 2.0),) * count, window="w", level="native",
                    cube_hash="", git_commit="")  # fmt: skip
    spec = TaskSpec(model=model, channels=CHANNELS, scaler=Scaler((0.0,) * count, (1.0,) * count, 0.8, 0.5),
                    block_px=factor, factor=factor, size=size, conservation="none", target="sif", units="1",
                    members=members, origin=origin, uncertainty=uncertainty)  # fmt: skip
    task = DownscalingTask(asdict(spec), asdict(Optimisation("mse", "adam", 0.1, 0.0, "constant", 1)))
    for parameter in task.model.parameters():
        parameter.data = torch.where(parameter == 0, 0.1 * torch.randn_like(parameter), parameter)
    return task


class Field:
    """A random field to cut from, continued beyond its edge as a cube's is."""

    def __init__(self, shape: tuple[int, int], factor: int, seed: int, gaps: float) -> None:
        rng = np.random.default_rng(seed)
        self.shape, cells = shape, tuple(-(-size // factor) for size in shape)
        self.predictors = rng.normal(size=(len(CHANNELS), *shape)).astype(np.float32)
        self.predictors[rng.random(self.predictors.shape) < gaps] = np.nan
        self.coarse = block_repeat(rng.normal(0.5, 1, cells).astype(np.float32), factor, *shape)
        self.observed = block_repeat(rng.random(cells) >= gaps, factor, *shape) & (rng.random(shape) >= gaps / 2)

    def read(self, tile: Tile) -> TileFields:
        rows, columns = tile.window
        wide = [(0, max(0, along.stop - size)) for along, size in zip(tile.window, self.shape, strict=True)]
        predictors = np.pad(self.predictors, [(0, 0), *wide], constant_values=np.nan)
        coarse, observed = np.pad(self.coarse, wide, mode="edge"), np.pad(self.observed, wide)
        return TileFields(predictors[:, rows, columns], coarse[rows, columns], observed[rows, columns])


def mapped(predictor: TilePredictor, field: Field, tile_px: int, batch: int = 1) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values and quality of the whole field."""
    return all_mapped(predictor, field, tile_px, batch)[:2]


def all_mapped(
    predictor: TilePredictor, field: Field, tile_px: int, batch: int = 1
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Values, quality and error bars of the whole field; zeros where there are no error bars."""
    layout = predictor.layout(field.shape, tile_px)
    bars = np.zeros((3, *layout.shape), np.float32)
    values = np.full(layout.shape, -99.0, predictor.dtype)
    quality = np.zeros(layout.shape, np.uint8)
    said: list[tuple[Tile, Said]] = []
    shapes = {tile.shape for tile in layout.tiles}
    for alike in ([tile for tile in layout.tiles if tile.shape == shape] for shape in shapes):
        for start in range(0, len(alike), batch):
            some = alike[start : start + batch]
            read = [field.read(tile) for tile in some]
            parts = zip(some, read, predictor.raw(read).unbind(1), strict=True)
            said += [(tile, predictor.say(raw, fields, tile)) for tile, fields, raw in parts]
    with tempfile.TemporaryDirectory() as folder:
        kept = SaidTiles(Path(folder), layout, predictor.spec.block_px)
        smooth = predictor.conservation == "smooth"
        if smooth:
            for tile, one in said:
                kept.put(0, tile, one, predictor.blocks(one))
            kept.correct(0)
        for tile, one in said:
            found = predictor.finish(one, kept.correction(0, tile) if smooth else None)
            values[tile.core], quality[tile.core] = found.values, found.quality
            bars[:, *tile.core] = 0 if found.bars is None else found.bars
    assert not (values == -99).any()
    height, width = field.shape
    return values[:height, :width], quality[:height, :width], bars[:, :height, :width]


def assert_tiles_are_the_whole(
    predictor: TilePredictor, field: Field, tiles_px: tuple[int, ...], batch: int = 1
) -> None:
    whole = all_mapped(predictor, field, 4096)
    for tile_px in tiles_px:
        assert len(predictor.layout(field.shape, tile_px).tiles) > 1
        for ours, theirs in zip(all_mapped(predictor, field, tile_px, batch), whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)


# --- tiles are the whole field --------------------------------------------------------------------


@settings(max_examples=12)
@given(
    height=st.integers(20, 90),
    width=st.integers(61, 90),
    factor=st.sampled_from([2, 3, 4, 5, 10]),
    upsampling=st.sampled_from(["bilinear", "transposed", "nearest"]),
    tile_px=st.sampled_from([20, 36, 60]),
    batch=st.sampled_from([1, 3]),
    gaps=st.sampled_from([0.0, 0.2, 0.9]),
    seed=st.integers(0, 99),
)
def test_tiles_of_a_unet_are_the_whole_field_bit_by_bit(
    height: int, width: int, factor: int, upsampling: str, tile_px: int, batch: int, gaps: float, seed: int
) -> None:
    predictor = TilePredictor(task_of(TINY_UNET | {"upsampling": upsampling}, factor), conservation="multiplicative")
    assert_tiles_are_the_whole(predictor, Field((height, width), factor, seed, gaps), (tile_px,), batch)


def shipped(name: str) -> dict[str, Any]:
    options = yaml.safe_load((PROJECT_ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    return {key: value for key, value in options.items() if key != "any_size"}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["unet", "unet_table1", "unet_readme", "unet_notebook", "sifnet", "sifnet_small"]
)
def test_tiles_of_every_network_are_the_whole_field_bit_by_bit(name: str, half: bool) -> None:
    model = shipped(name)
    for key in ("widths", "bottleneck"):  # as deep as it is, and narrow enough for a test
        if key in model:
            model[key] = [max(8, w // 4) for w in model[key]] if key == "widths" else model[key] // 4
    if name == "unet":
        model = shipped(name)  # the default as it is
    predictor = TilePredictor(task_of(model), conservation="none", half=half)
    assert_tiles_are_the_whole(predictor, Field((97, 173), 4, 1, 0.1), (64,))


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("kernel_size", "upsampling"), [(5, "transposed"), (5, "bilinear"), (7, "bilinear")])
def test_wide_kernels_round_alike_in_tiles_and_in_the_whole_field(
    kernel_size: int, upsampling: str, half: bool
) -> None:
    model = TINY_UNET | {"kernel_size": kernel_size, "upsampling": upsampling, "widths": [32], "bottleneck": 128}
    predictor = TilePredictor(task_of(model), conservation="none", half=half)
    assert_tiles_are_the_whole(predictor, Field((120, 100), 4, 1, 0.1), (36, 64))


@settings(max_examples=8)
@given(
    height=st.integers(20, 40),
    width=st.integers(41, 50),
    factor=st.sampled_from([2, 4, 5]),
    members=st.sampled_from([1, 3]),
    gaps=st.sampled_from([0.0, 0.2, 0.9]),
    leave_out=st.booleans(),
    fill_gaps=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_smooth_correction_of_tiles_is_that_of_the_whole_field_bit_by_bit(
    height: int, width: int, factor: int, members: int, gaps: float, leave_out: bool, fill_gaps: bool, seed: int
) -> None:
    task = task_of(TINY_UNET, factor, members)
    predictor = TilePredictor(task, conservation="smooth", leave_out=leave_out, fill_gaps=fill_gaps)
    assert_tiles_are_the_whole(predictor, Field((height, width), factor, seed, gaps), (20,))


@pytest.mark.parametrize("threads", [1, 2])
def test_tiles_are_the_whole_field_with_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        predictor = TilePredictor(task_of(TINY_UNET, members=2), conservation="additive")
        assert_tiles_are_the_whole(predictor, Field((101, 75), 4, 2, 0.1), (36, 52))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("model", BASELINES, ids=lambda model: str(model["name"]))
@pytest.mark.parametrize("factor", [3, 4])
def test_tiles_of_baselines_are_the_whole_field_bit_by_bit(model: dict[str, Any], factor: int) -> None:
    predictor = TilePredictor(task_of(model, factor), conservation="additive")
    assert_tiles_are_the_whole(predictor, Field((70, 131), factor, 4, 0.2), (24, 49))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "random_forest", "trees": 5, "min_leaf": 2, "max_features": 0.5, "max_pixels": 500},
        {"name": "gradient_boosting", "iterations": 5, "learning_rate": 0.1, "max_leaves": 8, "min_leaf": 2,
         "max_pixels": 500},
    ],
    ids=lambda model: str(model["name"]),
)  # fmt: skip
def test_tiles_of_trees_are_the_whole_field_bit_by_bit(model: dict[str, Any]) -> None:
    task, rng = task_of(model), np.random.default_rng(0)
    rows = rng.normal(size=(500, 2 * len(CHANNELS) + 1)).astype(np.float32)
    assert isinstance(task.model, RandomForest | GradientBoosting)
    task.model.estimator.fit(rows, rows.sum(axis=1))
    predictor = TilePredictor(task, conservation="additive")
    assert predictor.reach == Reach(4, 4, 4, 4)
    assert_tiles_are_the_whole(predictor, Field((70, 41), 4, 4, 0.2), (24, 49))


def test_crops_of_a_network_with_one_size_do_not_depend_on_the_tiles() -> None:
    predictor = TilePredictor(task_of({"name": "cnn_dense"}, size=16), conservation="none")
    assert_tiles_are_the_whole(predictor, Field((70, 41), 4, 4, 0.2), (16, 33))
    values, _ = mapped(predictor, Field((5, 7), 4, 4, 0.0), 16)  # smaller than a crop
    assert values.shape == (5, 7)


def test_a_network_that_reads_everything_is_predicted_whole_or_refused() -> None:
    predictor = TilePredictor(task_of(TINY_UNET | {"norm": "group"}), conservation="none")
    assert len(predictor.layout((70, 41), 70).tiles) == 1
    with pytest.raises(ConfigError, match=r"^tile_px: must be at least 70 .* \(found 64\)$"):
        predictor.layout((70, 41), 64)


@given(
    size=st.integers(1, 60), core=st.integers(1, 9), step=st.integers(1, 5), reach=st.integers(0, 30)
)
def test_cores_cover_a_field_once_and_windows_hold_the_reach(size: int, core: int, step: int, reach: int) -> None:
    shape = padded_shape((size, 2 * size), step)
    count = np.zeros(shape, int)
    for tile in make_tiles(shape, core * step, Reach(reach, 2, 0, reach), step):
        count[tile.core] += 1
        (rows, columns), (y, x) = tile.core, tile.window
        assert y.start <= max(0, rows.start - reach) and y.stop >= min(shape[0], rows.stop + 2)
        assert x.start <= columns.start and x.stop >= min(shape[1], columns.stop + reach)
        assert not any(edge % step for edge in (y.start, y.stop, x.start, x.stop))
    assert (count == 1).all()


# --- error bars -----------------------------------------------------------------------------------

CALIBRATION = Calibration(sd=1.5, interval=1.25, edges=(0.1,) * 9)
MC_DROPOUT = {"name": "mc_dropout", "level": 0.9, "passes": 6, "dropout": 0.3}


def with_bars(model: dict[str, Any], uncertainty: dict[str, Any], conservation: str, **more: Any) -> TilePredictor:
    members = more.pop("members", 1)
    task = task_of(model, members=members, uncertainty=uncertainty | {"level": 0.9})
    task.calibration = CALIBRATION
    return TilePredictor(task, conservation=conservation, **more)


@pytest.mark.parametrize(
    ("uncertainty", "members"),
    [({"name": "constant"}, 1), ({"name": "ensemble"}, 5), (MC_DROPOUT, 1), ({"name": "quantile"}, 1),
     ({"name": "heteroscedastic", "beta": 0.5}, 3)],
    ids=lambda value: value["name"] if isinstance(value, dict) else str(value),
)  # fmt: skip
def test_error_bars_of_tiles_are_those_of_the_whole_field_bit_by_bit(uncertainty: dict[str, Any], members: int) -> None:
    for conservation in ("none", "smooth"):
        predictor = with_bars(TINY_UNET, uncertainty, conservation, members=members)
        field = Field((97, 75), 4, 2, 0.1)
        assert_tiles_are_the_whole(predictor, field, (36, 52), batch=2)
        values, _, (error, lower, upper) = all_mapped(predictor, field, 52)
        for bar in (error, lower, upper):
            np.testing.assert_array_equal(np.isnan(bar), np.isnan(values))
        shown = np.isfinite(values)
        assert (error[shown] > 0).all() and (lower < values)[shown].all() and (values < upper)[shown].all()


def test_the_spread_of_an_ensemble_is_that_of_its_maps() -> None:
    predictor = with_bars(TINY_UNET, {"name": "ensemble"}, "additive", members=4)
    field = Field((24, 24), 4, 2, 0.1)
    values, _, (error, lower, upper) = all_mapped(predictor, field, 4096)
    alone = task_of(TINY_UNET)
    maps = []
    assert isinstance(predictor.task.model, Ensemble)
    for member in predictor.task.model.members:
        alone.model = member
        maps.append(mapped(TilePredictor(alone, conservation="additive"), field, 4096)[0])
    np.testing.assert_allclose(values, np.mean(maps, axis=0), rtol=1e-6)
    spread = np.std(maps, axis=0, ddof=1)
    np.testing.assert_allclose(error, 1.5 * spread, rtol=1e-4)
    np.testing.assert_allclose(values - lower, 1.25 * norm.ppf(0.95) * spread, rtol=1e-3)
    np.testing.assert_allclose(upper - values, 1.25 * norm.ppf(0.95) * spread, rtol=1e-3)


def test_a_gap_that_is_filled_has_no_error_bars() -> None:
    field = Field((16, 16), 4, 6, 0.0)
    field.observed[:4] = False
    predictor = with_bars(BASELINES[0], {"name": "constant"}, "additive", fill_gaps=True)
    values, quality, bars = all_mapped(predictor, field, 8)
    assert np.isfinite(values).all() and (quality[:4] & FLAGS["gap_filled"]).all()
    assert np.isnan(bars[:, :4]).all()
    np.testing.assert_allclose(bars[0, 4:], 1.5)
    np.testing.assert_allclose(bars[2, 4:] - bars[1, 4:], 2 * 1.25 * norm.ppf(0.95), rtol=1e-5)


# --- another factor than the one that was learned -----------------------------------------------


@pytest.mark.parametrize("model", [TINY_UNET, *BASELINES[:3]], ids=lambda model: str(model["name"]))
def test_a_task_with_another_factor_is_one_that_was_made_for_it(model: dict[str, Any]) -> None:
    field = Field((40, 70), 10, 4, 0.2)  # random weights do not depend on the factor
    given, made = (
        mapped(TilePredictor(task, conservation="additive"), field, 4096)
        for task in (with_factor(task_of(model, 2, members=2), 10), task_of(model, 10, members=2))
    )
    for ours, theirs in zip(given, made, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_only_weights_that_belong_to_no_factor_can_be_taken_to_another() -> None:
    options = {"strengths": [1.0], "channels": ["nirv"], "floor": 1.0, "vegetation": "nirv", "evapotranspiration": None,
               "temperature": None, "scaler": Scaler((0.0,), (1.0,), 0.0, 1.0), "variant": "small", "residual": True,
               "trees": 1, "min_leaf": 1, "max_features": 1.0, "max_pixels": 1, "iterations": 1, "learning_rate": 1.0,
               "max_leaves": 2, "kernel": 3, "size": 8}  # fmt: skip
    options |= {key: value for key, value in TINY_UNET.items() if key != "name"}
    for name in (*ANY_FACTOR, "deconvolution"):
        takes = inspect.signature(MODELS[name]).parameters
        known = {key: value for key, value in options.items() if key in takes}
        two, ten = (MODELS[name](in_channels=1, factor=factor, **known).state_dict() for factor in (2, 10))
        shapes = [{key: value.shape for key, value in state.items()} for state in (two, ten)]
        assert (shapes[0] == shapes[1]) == (name in ANY_FACTOR), name


# --- conservation ---------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    conservation=st.sampled_from(["additive", "multiplicative", "softmax", "smooth"]),
    factor=st.sampled_from([2, 4, 10]),
    gaps=st.sampled_from([0.0, 0.3, 0.8]),
    leave_out=st.booleans(),
    fill_gaps=st.booleans(),
    seed=st.integers(0, 999),
)
def test_cell_means_of_the_map_are_the_observed_ones_in_every_cell(
    conservation: str, factor: int, gaps: float, leave_out: bool, fill_gaps: bool, seed: int
) -> None:
    predictor = TilePredictor(
        task_of(BASELINES[2], factor), conservation=conservation, leave_out=leave_out, fill_gaps=fill_gaps
    )
    field = Field((40, 40), factor, seed, gaps)
    values, quality = mapped(predictor, field, 20)
    counted = np.isfinite(values) & field.observed
    assert counted.any() or gaps > 0
    for y in range(0, 40, factor):
        for x in range(0, 40, factor):
            cell = (slice(y, y + factor), slice(x, x + factor))
            if counted[cell].any():
                mean = math.fsum(values[cell][counted[cell]]) / counted[cell].sum()
                assert mean == pytest.approx(field.coarse[y, x], rel=1e-6, abs=0)
    changed = (quality & FLAGS["conserved"]) > 0
    assert changed[counted].mean() > 0.9 if counted.any() else not changed.any()


def test_observations_near_zero_are_conserved_as_well() -> None:
    predictor = TilePredictor(task_of(BASELINES[2]), conservation="additive")
    field = Field((16, 16), 4, 0, 0.0)
    field.coarse = np.full_like(field.coarse, 1e-6)
    values, _ = mapped(predictor, field, 8)
    means = values.reshape(4, 4, 4, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(means, field.coarse[::4, ::4].astype(np.float64), rtol=1e-6)
    assert np.abs(values).max() > 1e-3


def test_a_smooth_map_is_what_conserve_makes_of_the_whole_field() -> None:
    field = Field((24, 32), 4, 3, 0.2)
    predictor, free = (TilePredictor(task_of(BASELINES[2]), conservation=name) for name in ("smooth", "none"))
    values, quality = mapped(predictor, field, 8)
    raw, _ = mapped(free, field, 8)
    seen = torch.from_numpy(field.observed)[None, None]
    before, coarse = (torch.from_numpy(part)[None, None].double() for part in (raw, field.coarse))
    expected = conserve("smooth", before, coarse, seen, 4).numpy()[0, 0]
    np.testing.assert_allclose(values[field.observed], expected[field.observed], rtol=1e-9)
    with pytest.raises(ValueError, match="conservation=smooth needs the correction of the whole sample"):
        (tile,) = predictor.layout(field.shape, 4096).tiles
        read = field.read(tile)
        predictor.finish(predictor.say(predictor.raw([read])[:, 0], read, tile))


def test_a_gap_between_cells_is_corrected_by_them_without_being_called_conserved() -> None:
    field = Field((24, 24), 4, 3, 0.0)
    field.observed[8:12, 8:12] = False
    maps = {}
    for name in ("none", "smooth"):
        predictor = TilePredictor(task_of(BASELINES[0]), conservation=name, fill_gaps=True)
        maps[name], quality = mapped(predictor, field, 8)
    gap = np.s_[8:12, 8:12]
    assert (np.abs(maps["smooth"] - maps["none"])[gap] > 1e-6).all()
    assert not (quality[gap] & FLAGS["conserved"]).any() and (quality[:8] & FLAGS["conserved"]).any()


def test_residuals_are_those_of_the_prediction_before_it_conserves() -> None:
    field = Field((24, 24), 4, 5, 0.2)
    free, held = (TilePredictor(task_of(BASELINES[2]), conservation=name) for name in ("none", "additive"))
    values, _ = mapped(free, field, 4096)
    (tile,) = held.layout(field.shape, 4096).tiles
    fields = field.read(tile)
    found = held.finish(held.say(held.raw([fields])[:, 0], fields, tile)).residuals
    differences = []
    for y in range(0, 24, 4):
        for x in range(0, 24, 4):
            seen = field.observed[y : y + 4, x : x + 4]
            if seen.any():
                differences.append(values[y : y + 4, x : x + 4][seen].mean(dtype=np.float64) - field.coarse[y, x])
    assert found.cells == len(differences)
    assert found.rmse == pytest.approx(np.sqrt(np.mean(np.square(differences))), rel=1e-5)
    assert found.largest == pytest.approx(np.abs(differences).max(), rel=1e-5)


# --- where there is a value, and what the flags say -----------------------------------------------


def test_flags_say_what_a_value_rests_on() -> None:
    field = Field((16, 16), 4, 6, 0.0)
    field.observed[:4] = False
    field.predictors[1, 4:6] = np.nan
    field.predictors[1, 12:] = 0.0
    field.predictors[:] = np.clip(field.predictors, -1.9, 1.9)
    field.predictors[2, 8] = 2.1
    for conservation in CONSERVATIONS[:2]:
        for fill_gaps in (False, True):
            for leave_out in (False, True):
                predictor = TilePredictor(
                    task_of(BASELINES[0]), conservation=conservation, fill_gaps=fill_gaps, leave_out=leave_out
                )
                values, quality = mapped(predictor, field, 8)
                has = {name: (quality & mask) > 0 for name, mask in FLAGS.items()}
                shown = np.isfinite(values)
                np.testing.assert_array_equal(has["observed"], field.observed)
                np.testing.assert_array_equal(has["no_observation"], ~field.observed)
                assert has["predictor_missing"][4:6].all() and not has["predictor_missing"][6:].any()
                assert has["extrapolated"][8].all() and not has["extrapolated"][9:].any()
                assert shown[:4].all() == shown[:4].any() == has["gap_filled"][:4].all() == fill_gaps
                assert shown[4:6].any() != leave_out and shown[6:].all()
                assert has["conserved"].any() == (conservation == "additive")
                assert not has["conserved"][:4].any()
                assert values.dtype == (np.float32 if conservation == "none" else np.float64)


def test_gaps_are_left_where_a_predictor_is_missing_too() -> None:
    field = Field((16, 16), 4, 6, 0.0)
    field.observed[:4] = False
    field.predictors[1, 0] = np.nan
    predictor = TilePredictor(task_of(BASELINES[0]), conservation="none", fill_gaps=True)
    values, _ = mapped(predictor, field, 8)
    assert np.isnan(values[0]).all() and np.isfinite(values[1:]).all()
