"""Choices and their effects: found in the parameters of runs, compared only over settings that were both tried."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sifscale.choices import grouped, settings
from sifscale.effects import Tried, holm, main_effects
from sifscale.metrics import Sums

BLOCKS = 12


def tried(rmse: float, *seeds: int, **keys: str) -> Tried:
    """An arm that is wrong by ``rmse`` times the same noise everywhere, and a little noise of its seed."""
    blocks = {}
    for seed in seeds or (0,):
        own = np.random.default_rng(seed)
        common = np.random.default_rng(99)
        of_seed = {}
        for number in range(BLOCKS):
            target, noise = common.normal(size=(2, 40))
            wrong = rmse * noise / math.sqrt((noise**2).mean()) + own.normal(scale=1e-3, size=40)
            pair = (torch.from_numpy(part)[None, None, None] for part in (target + wrong, target))
            of_seed[f"b{number}"] = Sums.of(*pair, torch.ones(1, 1, 1, 40, dtype=torch.bool))
        blocks[str(seed)] = of_seed
    return Tried({key.replace("__", "."): value for key, value in keys.items()}, blocks)


def test_settings_are_choices_and_a_list_of_sections_is_taken_apart() -> None:
    params = {
        "paths.data": "/x", "seed": "3", "arm": "a", "split.k": "5", "trainer.threads": "2", "trainer.epochs": "9",
        "trainer.patience": "None", "features.lbp": '[{"source": "evi", "points": 8}, {"source": "ndvi", "points": 4}]',
        "model.widths/1": "[1, ", "model.widths/2": "2]", "features.bands": '["a", "b"]',
    }  # fmt: skip
    assert settings(params) == {
        "trainer.epochs": "9", "features.lbp.source": "evi", "features.lbp.points": "8", "model.widths": "[1, 2]",
        "features.lbp[1].source": "ndvi", "features.lbp[1].points": "4", "features.bands": '["a", "b"]',
    }  # fmt: skip


def test_keys_that_only_follow_another_are_grouped_with_it() -> None:
    runs = [
        {"model.name": model, "model.widths": widths, "loss": loss, "same": "1"}
        for model, widths in (("unet", "[4]"), ("ridge", "-"))
        for loss in ("mse", "mae")
    ]
    runs = [{key: value for key, value in run.items() if value != "-"} for run in runs]
    assert grouped(runs) == {"model.name": ("model.widths",), "loss": ()}
    runs.append({"model.name": "unet", "model.widths": "[8]", "loss": "mse", "same": "1"})
    assert grouped(runs) == {"model.widths": ("model.name",), "loss": ()}
    assert grouped(runs[:1]) == {} == grouped([])


def test_a_level_is_compared_over_the_settings_that_both_have_and_the_largest_effect_comes_first() -> None:
    arms = {
        "small mse": tried(0.50, width="1", loss="mse"),
        "large mse": tried(0.30, width="2", loss="mse"),
        "small mae": tried(0.60, width="1", loss="mae"),
        "large mae": tried(0.40, width="2", loss="mae"),
        "large, alone": tried(5.0, width="2", loss="huber"),  # would spoil a plain mean over the width
    }
    first, second = main_effects(arms, "small mse")
    assert (first.key, second.key) == ("loss", "width")  # huber against mse at width 2: 4.7
    one, two = second.levels
    assert (one.value, one.difference, two.matched) == ("1", None, 2)
    assert two.difference is not None
    expected = np.sqrt(np.mean([0.3**2, 0.4**2])) - np.sqrt(np.mean([0.5**2, 0.6**2]))
    assert two.difference.difference == pytest.approx(expected, abs=1e-3)
    assert two.difference.low <= two.difference.difference <= two.difference.high < 0 and two.matters
    assert one.rmse == pytest.approx(np.sqrt(np.mean([0.5**2, 0.6**2])), abs=1e-3) and one.low < one.rmse < one.high
    assert second.size == pytest.approx(-expected, abs=1e-3)


def test_values_that_were_never_tried_with_the_same_other_choices_are_not_compared() -> None:
    arms = {"a": tried(0.5, model="x", loss="mse"), "b": tried(0.4, model="y", loss="mae")}
    arms |= {"c": tried(0.4, model="y", loss="huber")}
    effects = main_effects(arms, None)
    assert [(e.key, e.follows) for e in effects] == [("loss", ("model",))]
    assert main_effects({"a": tried(0.5, model="x")}, "a") == [] == main_effects({}, None)


def test_the_spread_of_seeds_widens_the_interval() -> None:
    first, second = (tried(rmse, 1, 2, 3, model=name) for rmse, name in ((0.5, "x"), (0.5001, "y")))
    single = main_effects({"a": tried(0.5, 1, model="x"), "b": tried(0.5001, 1, model="y")}, "a")
    many = main_effects({"a": first, "b": second}, "a")
    wide, narrow = (effects[0].levels[1].difference for effects in (many, single))
    assert wide is not None and narrow is not None
    assert wide.high - wide.low > narrow.high - narrow.low and wide.p > narrow.p


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_the_smallest_level_at_which_the_stepwise_test_rejects(values: list[float]) -> None:
    adjusted = holm([*values, float("nan")])
    assert math.isnan(adjusted.pop())
    order = sorted(range(len(values)), key=lambda i: values[i])
    for rank, i in enumerate(order):
        steps = [min(1.0, (len(values) - k) * values[order[k]]) for k in range(rank + 1)]
        assert adjusted[i] == max(steps)
    assert all(a >= p for a, p in zip(adjusted, values, strict=True))
