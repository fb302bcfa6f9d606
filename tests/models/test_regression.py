"""Ridge and trees against scikit-learn on the same pixels; pixels counted once; state that survives a new process."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler
from torch import nn

from sifscale.datamodule import CropDataModule
from sifscale.models import MODELS
from sifscale.models.interpolation import upsample
from sifscale.models.regression import Fields, Fitted, pixel_features
from sifscale.splits import TRAIN, VALIDATION
from sifscale.training import prepare_features, prepare_plans
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

FACTOR, BANDS = 3, 2
TREES = {
    "random_forest": {"trees": 5, "min_leaf": 4, "max_features": 0.5, "max_pixels": 10**6},
    "gradient_boosting": {"iterations": 8, "learning_rate": 0.2, "max_leaves": 6, "min_leaf": 4, "max_pixels": 10**6},
}


def fields(seed: int, batch: int = 2, size: int = 12) -> Fields:
    """Random bands, the second of them constant, and a target that hangs on them; some pixels do not count."""
    rng = torch.Generator().manual_seed(seed)
    predictors = torch.randn(batch, BANDS, size, size, generator=rng)
    predictors[:, 1] = 0.7
    blocks = torch.randn(batch, 1, size // FACTOR, size // FACTOR, generator=rng)
    coarse = blocks.repeat_interleave(FACTOR, -1).repeat_interleave(FACTOR, -2)
    noise = torch.randn(batch, 1, size, size, generator=rng)
    counted = torch.rand(batch, 1, size, size, generator=rng) < 0.7
    target = torch.where(counted, coarse + 0.5 * predictors[:, :1] + 0.3 * noise, torch.nan)
    return Fields(predictors, coarse, target, counted)


def rows(parts: Sequence[Fields]) -> tuple[Any, Any]:
    """Features written out pixel by pixel, and residuals, as a user of scikit-learn would prepare them."""
    features, residuals = [], []
    for part in parts:
        bilinear = upsample(part.coarse, FACTOR, "bilinear")
        for b, _, y, x in part.counted.nonzero().tolist():
            y0, x0 = y // FACTOR * FACTOR, x // FACTOR * FACTOR
            band, block = part.predictors[b, :, y, x], part.predictors[b, :, y0 : y0 + FACTOR, x0 : x0 + FACTOR]
            features.append(torch.cat([band, band - block.mean(dim=(1, 2)), bilinear[b, :, y, x]]).numpy())
            residuals.append(float(part.target[b, 0, y, x] - bilinear[b, 0, y, x]))
    return np.array(features), np.array(residuals)


def fitted(name: str, train: Sequence[Fields], validation: Sequence[Fields] = (), **options: Any) -> nn.Module:
    model = MODELS[name](in_channels=BANDS, factor=FACTOR, **options)
    assert isinstance(model, Fitted)
    model.fit(train, validation, seed=3)
    assert isinstance(model, nn.Module)
    return model


def residual(model: nn.Module, part: Fields) -> Any:
    """What a model adds to bilinear, one number a pixel."""
    with torch.no_grad():
        return (model(part.predictors, part.coarse) - upsample(part.coarse, FACTOR, "bilinear")).flatten().numpy()


def everywhere(part: Fields) -> Any:
    return pixel_features(part.predictors, part.coarse, FACTOR).movedim(1, -1).flatten(0, 2).numpy()


@pytest.mark.parametrize("strength", [1e-4, 1.0])
def test_ridge_is_that_of_scikit_learn_on_standardised_features(strength: float) -> None:
    train, new = [fields(0), fields(1)], fields(2)
    features, wanted = rows(train)
    scaler = StandardScaler().fit(features.astype(np.float64))
    varying = np.ptp(features, axis=0) > 1e-6  # the constant band tells nothing
    reference = SklearnRidge(alpha=strength * len(wanted))
    reference.fit(scaler.transform(features)[:, varying], wanted)
    expected = reference.predict(scaler.transform(everywhere(new).astype(np.float64))[:, varying])
    found = residual(fitted("ridge", train, strengths=[strength]), new)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_ridge_takes_the_strength_with_the_smallest_validation_error() -> None:
    train, validation, strengths = [fields(0, batch=1, size=6)], [fields(5), fields(6)], [1e-4, 0.1, 10.0]
    features, wanted = rows(validation)
    errors = []
    for strength in strengths:
        weights = dict(fitted("ridge", train, strengths=[strength]).named_parameters())["weights"].numpy()
        errors.append(float(((features @ weights[:-1] + weights[-1] - wanted) ** 2).sum()))
    model = MODELS["ridge"](in_channels=BANDS, factor=FACTOR, strengths=strengths)
    assert isinstance(model, Fitted)
    assert model.fit(train, validation, seed=0)["strength"] == strengths[int(np.argmin(errors))]
    assert model.fit(train, [], seed=0)["strength"] == strengths[0]


@given(offset=st.floats(-100, 100), scale=st.floats(0.01, 100))
def test_ridge_does_not_hang_on_the_units_of_a_band(offset: float, scale: float) -> None:
    part = fields(0)
    moved = Fields(part.predictors.double() * scale + offset, part.coarse.double(), part.target, part.counted)
    found = residual(fitted("ridge", [moved], strengths=[0.01]).double(), moved)
    np.testing.assert_allclose(found, residual(fitted("ridge", [part], strengths=[0.01]), part), atol=1e-3)


@pytest.mark.parametrize("name", TREES)
def test_trees_are_those_of_scikit_learn(name: str) -> None:
    options, train, new = TREES[name], [fields(0), fields(1)], fields(2)
    if name == "random_forest":
        reference = RandomForestRegressor(5, min_samples_leaf=4, max_features=0.5, random_state=3)
    else:
        reference = HistGradientBoostingRegressor(
            max_iter=8, learning_rate=0.2, max_leaf_nodes=6, min_samples_leaf=4, early_stopping=False, random_state=3
        )
    features = np.concatenate([everywhere(part)[part.counted.flatten().numpy()] for part in train])
    expected = reference.fit(features, rows(train)[1].astype(np.float32)).predict(everywhere(new))
    np.testing.assert_allclose(residual(fitted(name, train, **options), new), expected, atol=1e-5)


def test_no_more_pixels_are_used_than_allowed_and_the_draw_is_that_of_the_seed() -> None:
    parts = [fields(seed) for seed in range(6)]
    options = TREES["gradient_boosting"] | {"max_pixels": 100}
    model = MODELS["gradient_boosting"](in_channels=BANDS, factor=FACTOR, **options)
    assert isinstance(model, Fitted) and isinstance(model, nn.Module)
    found = []
    for seed in (0, 0, 1):
        assert model.fit(parts, [], seed)["pixels"] == 100
        found.append(residual(model, parts[0]))
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


@pytest.mark.parametrize("name", ["ridge", *TREES])
def test_a_part_without_pixels_is_refused(name: str) -> None:
    part = fields(0)
    nothing = Fields(part.predictors, part.coarse, part.target, torch.zeros_like(part.counted))
    for empty in ([], [nothing]):
        with pytest.raises(ValueError, match="must hold a pixel with an observed target"):
            fitted(name, empty, **TREES.get(name, {"strengths": [0.1]}))


@pytest.mark.parametrize("name", TREES)
def test_trees_that_were_not_fitted_say_so(name: str) -> None:
    part = fields(0)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        MODELS[name](in_channels=BANDS, factor=FACTOR, **TREES[name])(part.predictors, part.coarse)


@pytest.mark.parametrize("words", [(), ("split=time", "window.period.end=2019-06-25", "window.name=tiny")])
def test_each_valid_pixel_of_a_part_is_learned_from_once(workplace: Workplace, words: tuple[str, ...]) -> None:
    run = workplace.config(*words)
    features = prepare_features(run, open_or_build(run))
    plans = prepare_plans(run, features)
    assert plans.parts is not None
    data = CropDataModule(features, plans, batch_size=5, seed=0, augment=True)
    for part in (TRAIN, VALIDATION):
        found = torch.cat([batch["target"][batch["scored"]] for batch in data.each_pixel_once(part)]).numpy()
        wanted = np.asarray(features.target)[np.asarray(features.valid) & (plans.parts == part)]
        np.testing.assert_array_equal(np.sort(found), np.sort(wanted))


AGAIN = """
import sys, numpy as np, torch
from sifscale.task import DownscalingTask
torch.set_num_threads(1)
task = DownscalingTask.load_from_checkpoint(sys.argv[1], map_location="cpu", weights_only=True).eval()
rng = torch.Generator().manual_seed(0)
predictors, coarse = (torch.randn(2, n, 8, 8, generator=rng) for n in (len(task.spec.channels), 1))
with torch.no_grad():
    np.save(sys.argv[2], task(predictors, coarse).numpy())
"""


def test_a_run_goes_on_as_it_was_and_predicts_the_same_in_a_fresh_process(workplace: Workplace, tmp_path: Path) -> None:
    words = ("model=gradient_boosting", "conservation=additive", "evaluation.details=false", "window.truth=null")
    folder = workplace.train(tmp_path / "run", *words)
    scores = json.loads((folder / "metrics.json").read_text())
    assert scores["test/coarse_rmse"] < 1e-6
    workplace.train(tmp_path / "unused", *words, f"resume={folder}")
    assert json.loads((folder / "metrics.json").read_text()) == scores

    script, checkpoint = tmp_path / "again.py", str(folder / "checkpoints" / "best.ckpt")
    script.write_text(AGAIN)
    places = [str(tmp_path / f"{name}.npy") for name in ("here", "there")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", checkpoint, places[0]])
        exec(AGAIN, {})
    process = workplace.start_script(script, checkpoint, places[1])
    process.join(240)
    assert process.exitcode == 0
    here, there = map(np.load, places)
    np.testing.assert_array_equal(there, here)
    assert len(np.unique(here)) > 10
