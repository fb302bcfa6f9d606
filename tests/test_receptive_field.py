"""The reach of a model against what a change of one pixel, or of one coarse block, changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sifscale.models import MODELS
from sifscale.models.regression import GradientBoosting
from sifscale.receptive_field import Reach, find_reach, pooling_px

FACTOR = 4
TINY = {
    "widths": [2, 3], "bottleneck": 4, "kernel_size": 3, "convolutions": 1, "norm": "none",
    "upsampling": "bilinear", "upsampling_relu": False, "dropout": 0.0, "residual": True,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", TINY),
    "unet transposed": ("unet", TINY | {"upsampling": "transposed", "norm": "batch"}),
    "unet nearest, wide kernel": ("unet", TINY | {"upsampling": "nearest", "kernel_size": 5, "residual": False}),
    "sifnet": ("sifnet", {"variant": "small", "residual": True}),
    "bilinear": ("bilinear", {}),
    "bicubic": ("bicubic", {}),
    "identity": ("identity", {}),
    "deconvolution": ("deconvolution", {"kernel": 5, "strengths": [1.0]}),
    "ridge": ("ridge", {"strengths": [1.0]}),
}


def model_of(name: str, options: dict[str, Any], factor: int = FACTOR) -> nn.Module:
    torch.manual_seed(1)
    model = MODELS[name](in_channels=2, factor=factor, **options).eval()
    for parameter in model.parameters():  # some begin at 0, which would hide what they read
        parameter.data = torch.rand_like(parameter) + 0.1
    return model.double()


def reach_by_changes(model: nn.Module, step: int, factor: int = FACTOR) -> Reach:
    """The same by brute force: pixels and blocks around a part in the middle that change anything in it."""
    size = 16 * step if step < 8 else 5 * step
    part = slice(size // step // 2 * step, (size // step // 2 + 1) * step)
    generator = torch.Generator().manual_seed(2)
    predictors = torch.rand(1, 2, size, size, generator=generator, dtype=torch.float64)
    blocks = torch.rand(1, 1, size // factor, size // factor, generator=generator, dtype=torch.float64)
    coarse = blocks.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    with torch.inference_mode():
        before = model(predictors, coarse)[..., part, part]
        seen: dict[str, list[int]] = {"y": [], "x": []}
        for axis in ("y", "x"):
            for start in range(size):
                at = (slice(start, start + 1), slice(None)) if axis == "y" else (slice(None), slice(start, start + 1))
                changed, other = predictors.clone(), coarse.clone()
                changed[..., at[0], at[1]] += 100
                if start % factor == 0:
                    block = slice(start, start + factor)
                    other[..., block if axis == "y" else slice(None), slice(None) if axis == "y" else block] += 100
                after = model(changed, coarse)[..., part, part], model(predictors, other)[..., part, part]
                if not torch.equal(after[0], before):
                    seen[axis].append(start)
                if not torch.equal(after[1], before):
                    seen[axis] += [start, start + factor - 1]
    around = [(part.start - min(found, default=part.start), max(found, default=0) - part.stop + 1)
              for found in seen.values()]  # fmt: skip
    return Reach(*(max(0, edge) for pair in around for edge in pair))


@pytest.mark.parametrize("case", CASES)
def test_nothing_beyond_the_reach_changes_a_part_and_what_is_within_does(case: str) -> None:
    model = model_of(*CASES[case])
    step = math.lcm(FACTOR, pooling_px(model))
    found, changes = find_reach(model.float(), 2, FACTOR, step), reach_by_changes(model.double(), step)
    assert found is not None
    slack = FACTOR if case in ("bilinear", "bicubic", "ridge") or "unet" in case or case == "sifnet" else 0
    for name in ("up", "down", "left", "right"):  # a block read with the weight 0 counts too
        assert getattr(changes, name) <= getattr(found, name) <= getattr(changes, name) + slack


def test_the_reach_of_the_unet_of_depth_4_is_the_94_px_that_were_measured() -> None:
    options = TINY | {"widths": [2, 2, 2, 2], "convolutions": 2, "upsampling": "transposed", "residual": False}
    model = model_of("unet", options).float()
    assert find_reach(model, 2, FACTOR, 16) == Reach(94, 94, 94, 94)


def test_coarse_blocks_that_do_not_fit_pooling_are_tried_in_every_place() -> None:
    model = model_of("unet", TINY, factor=3)
    found = find_reach(model.float(), 2, 3, 12)
    changes = reach_by_changes(model.double(), 12, 3)
    assert found is not None and found.up >= changes.up and found.right >= changes.right


def test_a_model_with_statistics_of_the_whole_field_has_no_reach() -> None:
    assert find_reach(model_of("unet", TINY | {"norm": "group"}).float(), 2, FACTOR, 4) is None


def test_trees_are_read_as_their_features_are() -> None:
    model = MODELS["gradient_boosting"](
        in_channels=2, factor=FACTOR, iterations=2, learning_rate=0.1, max_leaves=3, min_leaf=1, max_pixels=100
    )
    rng = np.random.default_rng(0)
    assert isinstance(model, GradientBoosting)
    model.estimator.fit(rng.random((50, 5)), rng.random(50))
    ridge = MODELS["ridge"](in_channels=2, factor=FACTOR, strengths=[1.0])
    assert find_reach(model, 2, FACTOR, 4) == find_reach(ridge, 2, FACTOR, 4)
