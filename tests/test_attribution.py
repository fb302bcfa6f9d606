"""Integrated gradients against closed forms of a linear model, and on networks: completeness, and what is not read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sifscale.attribution import Attribution, Contribution, Example, contributions, integrated_gradients, is_network
from sifscale.crops import CropPlan, covering_crops
from sifscale.datamodule import CropBatches, Scaler
from sifscale.features import Channel, FeatureCube
from sifscale.importance import crops_tested
from sifscale.splits import TEST
from sifscale.task import DownscalingTask
from sifscale.task_spec import Optimisation, TaskSpec

SHAPE, BLOCK_PX, SIZE = (2, 32, 32), 4, 16
NAMES = ("coarse", "ndvi", "lbp_uniform_p8_r1px_class0(evi)")
SCALER = Scaler((0.4, 0.5, 0.0), (0.3, 0.2, 1.0), 1.0, 0.5)
WEIGHTS = (0.2, 0.5, -0.3)
UNET = {
    "name": "unet", "widths": [4, 8], "bottleneck": 8, "kernel_size": 3, "convolutions": 1, "norm": "batch",
    "upsampling": "bilinear", "upsampling_relu": False, "dropout": 0.0, "residual": True, "any_size": False,
}  # fmt: skip
OPTIMISATION = Optimisation("mse", "adam", 1e-3, 0.0, "constant", 1)


def make_features() -> FeatureCube:
    """Some structure, gaps in a predictor and in the target, a coarse field of block means."""
    rng = np.random.default_rng(1)
    predictors = rng.normal(0.5, 0.3, size=(SHAPE[0], 3, *SHAPE[1:])).astype(np.float32)
    predictors[:, 2] = predictors[:, 2] > 0.5
    predictors[0, 1, 3:6, 4:9] = np.nan
    coarse = rng.normal(1, 0.5, size=(SHAPE[0], 8, 8)).repeat(BLOCK_PX, axis=1).repeat(BLOCK_PX, axis=2)
    target = np.where(rng.random(SHAPE) < 0.2, np.nan, coarse).astype(np.float32)
    days = np.array(["2019-05-25", "2019-06-10"], "datetime64[ns]")
    channels = tuple(Channel(name, not name.startswith("lbp")) for name in NAMES)
    return FeatureCube(
        channels, predictors, coarse.astype(np.float32), target, np.isfinite(target), np.ones_like(target), BLOCK_PX,
        SHAPE[1:], ("a", "a"), days,
    )  # fmt: skip


FEATURES = make_features()
PARTS = np.full(SHAPE, TEST, dtype=np.int8)


def make_plan() -> CropPlan:
    plan = covering_crops(PARTS == TEST, np.asarray(FEATURES.valid), SIZE, BLOCK_PX)
    return crops_tested(FEATURES, plan, PARTS, 12, 0)


def make_task(model: dict[str, object], conservation: str = "none") -> DownscalingTask:
    torch.manual_seed(0)
    spec = TaskSpec(model, NAMES, SCALER, BLOCK_PX, 4, SIZE, conservation, "sif", "1")
    task = DownscalingTask.create(spec, OPTIMISATION, keep_positions=False)
    with torch.no_grad():
        if model["name"] == "ridge":
            task.model.weights[:3] = torch.tensor(WEIGHTS)
        else:
            task.model.head.weight.normal_()  # a residual head starts at zero
    return task


def attributed(task: DownscalingTask, steps: int = 16, batch_size: int = 5, seed: int = 3) -> Attribution:
    return integrated_gradients(task, FEATURES, make_plan(), PARTS, steps=steps, seed=seed, batch_size=batch_size)


def drawn_pixels(seed: int = 3) -> list[tuple[int, int, int]]:
    """(sample, y, x) of the pixel of each crop, found as the room draws it: one number a pixel, the largest scored."""
    rng, crops, found = np.random.default_rng(seed), CropBatches(FEATURES, make_plan(), PARTS), []
    for number, (s, y, x) in enumerate(make_plan().table[:, :3].tolist()):
        scored = crops[[number]]["scored"][0, 0].numpy()
        place = np.where(scored, rng.random(scored.shape), -1).argmax()
        found.append((s, y + int(place) // SIZE, x + int(place) % SIZE))
    return found


def normal_fields() -> NDArray[np.float64]:
    offset, scale = (np.array(values)[:, None, None] for values in (SCALER.offset, SCALER.scale))
    return np.nan_to_num((FEATURES.predictors.astype(np.float64) - offset) / scale)


def test_of_a_linear_model_each_channel_adds_its_weight_times_its_value() -> None:
    fields, found = normal_fields(), attributed(make_task({"name": "ridge", "strengths": [1.0]}))
    wanted = [[w * v * SCALER.target_scale for w, v in zip(WEIGHTS, fields[s, :, y, x], strict=True)]
              for s, y, x in drawn_pixels()]  # fmt: skip
    np.testing.assert_allclose(found.by_channel, wanted, atol=1e-5)
    np.testing.assert_allclose(found.change, np.sum(wanted, axis=1), atol=1e-5)
    assert found.incompleteness < 1e-4


def test_under_conservation_a_channel_adds_what_it_differs_from_the_mean_of_its_cell() -> None:
    fields, found = normal_fields(), attributed(make_task({"name": "ridge", "strengths": [1.0]}, "additive"))
    known, wanted = np.asarray(FEATURES.valid), []
    for s, y, x in drawn_pixels():
        cell = slice(y // 4 * 4, y // 4 * 4 + 4), slice(x // 4 * 4, x // 4 * 4 + 4)
        means = fields[s, :, *cell][:, known[s, *cell]].mean(axis=1)
        wanted.append(np.array(WEIGHTS) * (fields[s, :, y, x] - means) * SCALER.target_scale)
    np.testing.assert_allclose(found.by_channel, wanted, atol=1e-5)


@pytest.mark.parametrize("conservation", ["none", "multiplicative"])
def test_the_attributions_of_a_network_are_complete_and_a_channel_that_it_does_not_read_adds_nothing(
    conservation: str,
) -> None:
    task = make_task(UNET, conservation)
    with torch.no_grad():
        task.model.encoder[0][0].weight[:, 1] = 0
    found = attributed(task, steps=48)
    assert (found.by_channel[:, 1] == 0).all() and np.abs(found.by_channel[:, [0, 2]]).max() > 1e-3
    crops, change = CropBatches(FEATURES, make_plan(), PARTS), []
    baseline = torch.tensor(SCALER.offset)[:, None, None].expand(1, 3, SIZE, SIZE)
    for number, (s, y, x) in enumerate(drawn_pixels()):
        batch, (_, y0, x0) = crops[[number]], make_plan().table[number, :3].tolist()
        assert s == make_plan().table[number, 0]
        with torch.no_grad():
            ends = [task(p, batch["coarse"], batch["valid"]) for p in (batch["predictors"], baseline)]
        change.append(float((ends[0] - ends[1])[0, 0, y - y0, x - x0]))
    np.testing.assert_allclose(found.change, change, atol=1e-5)
    assert found.incompleteness < 0.03
    np.testing.assert_allclose(found.gap, found.by_channel.sum(axis=1) - change, atol=1e-5)
    rough = attributed(task, steps=2)
    assert rough.incompleteness > found.incompleteness


def test_the_example_is_the_crop_that_its_predictors_change_most() -> None:
    found = attributed(make_task(UNET))
    number = int(np.abs(found.change).argmax())
    (s, y0, x0), (_, y, x) = make_plan().table[number, :3].tolist(), drawn_pixels()[number]
    assert found.example.pixel == (y - y0, x - x0)
    crop = FEATURES.predictors[s, :, y0 : y0 + SIZE, x0 : x0 + SIZE]
    np.testing.assert_array_equal(found.example.predictors, crop)
    np.testing.assert_allclose(found.example.attributions.sum(axis=(1, 2)), found.by_channel[number], atol=1e-5)
    other = attributed(make_task(UNET), batch_size=12)
    np.testing.assert_allclose(other.by_channel, found.by_channel, atol=1e-5)


def test_contributions_of_channels_and_of_what_they_add_together() -> None:
    by_channel = np.array([[1.0, -1.0, 2.0], [3.0, 1.0, 0.0]])
    example = Example(np.zeros((3, 1, 1), np.float32), np.zeros((3, 1, 1), np.float32), (0, 0))
    change = by_channel.sum(axis=1) - 0.1
    found = Attribution(by_channel, change, by_channel.sum(axis=1) - change, example)
    assert contributions(found, {"a": (0,), "b": (1,)}) == {
        "a": Contribution(2.0, pytest.approx(1.0), pytest.approx(2 / 3)),
        "b": Contribution(1.0, 0.0, pytest.approx(1 / 3)),
    }
    assert contributions(found, {"a and b": (0, 1)})["a and b"].mean_absolute == 2.0
    assert found.incompleteness == pytest.approx(0.1 / np.sqrt((1.9**2 + 3.9**2) / 2))
    nothing = replace(found, by_channel=np.zeros((1, 3)), change=np.zeros(1), gap=np.zeros(1))
    assert nothing.incompleteness == 0 and np.isnan(contributions(nothing, {"a": (0,)})["a"].share)
    assert replace(nothing, gap=np.ones(1)).incompleteness == np.inf


def test_only_what_has_learned_by_gradients_is_a_network() -> None:
    assert is_network(make_task(UNET)) and not is_network(make_task({"name": "ridge", "strengths": [1.0]}))
    assert not is_network(DownscalingTask.create(
        TaskSpec({"name": "bilinear"}, NAMES, SCALER, BLOCK_PX, 4, SIZE, "none", "sif", "1"), OPTIMISATION, False
    ))  # fmt: skip
