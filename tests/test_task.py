"""The task against whole-field references, what reaches a network, and every model option we ship."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor, nn

from sifscale import fitting
from sifscale.config import PROJECT_ROOT, RunConfig
from sifscale.crops import Plans
from sifscale.datamodule import CropDataModule
from sifscale.features import FeatureCube
from sifscale.splits import TEST
from sifscale.task import DownscalingTask
from sifscale.tracking import RunLog
from sifscale.training import make_task, prepare_features, prepare_plans
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

NOWHERE_TO_LOG = RunLog(None, "")
MODELS = sorted(path.stem for path in (PROJECT_ROOT / "conf" / "model").glob("*.yaml"))
BASELINES = {"identity", "nearest", "bilinear", "bicubic"}
# A halo of one coarse cell, which is what bilinear interpolation reads.
WITH_HALO = ("split=time", "window.period.end=2019-06-25", "window.name=longer", "crop.size=16")

Room = tuple[RunConfig, FeatureCube, Plans, DownscalingTask, CropDataModule]


def room(workplace: Workplace, *words: str) -> Room:
    """What a run is made of, as ``train`` puts it together."""
    run = workplace.config(*words)
    torch.manual_seed(run.seed)
    features = prepare_features(run, open_or_build(run))
    plans = prepare_plans(run, features)
    data = CropDataModule(features, plans, batch_size=run.trainer.batch_size, seed=run.seed, augment=run.crop.augment)
    return run, features, plans, make_task(run, features, plans), data


def finish(parts: Room, folder: Path) -> dict[str, float]:
    run, _, _, task, data = parts
    return fitting.test(run, task, data, folder, NOWHERE_TO_LOG)


def whole_field(coarse: NDArray[np.float32], factor: int, order: int) -> NDArray[np.float64]:
    """Interpolation between block centres of a field (y, x) at once, the edge value continued outwards."""
    blocks = coarse[::factor, ::factor].astype(np.float64)
    y, x = ((np.arange(size) + 0.5) / factor - 0.5 for size in coarse.shape)
    return ndimage.map_coordinates(blocks, np.meshgrid(y, x, indexing="ij"), order=order, mode="nearest")


@pytest.mark.parametrize(("name", "order"), [("nearest", 0), ("bilinear", 1)])
def test_interpolation_scores_are_those_of_the_whole_field(
    workplace: Workplace, tmp_path: Path, name: str, order: int
) -> None:
    parts = room(workplace, *WITH_HALO, f"model={name}")
    found = finish(parts, tmp_path)
    _, features, plans, _, _ = parts
    assert plans.parts is not None
    predicted = np.stack([whole_field(c, features.block_px, order) for c in np.asarray(features.coarse)])
    scored = np.asarray(features.valid) & (plans.parts == TEST)
    actual, predicted = np.asarray(features.target)[scored].astype(np.float64), predicted[scored]
    for prefix in ("test/", f"test/{name}_"):
        assert found[f"{prefix}r2"] == pytest.approx(r2_score(actual, predicted), abs=1e-6)
        assert found[f"{prefix}mae"] == pytest.approx(mean_absolute_error(actual, predicted), abs=1e-6)
        assert found[f"{prefix}rmse"] == pytest.approx(root_mean_squared_error(actual, predicted), abs=1e-6)
    if name == "bilinear":
        assert found["test/skill_bilinear"] == pytest.approx(0, abs=1e-6)
    else:
        assert found["test/coarse_rmse"] < 1e-6 * float(np.abs(actual).mean()), "nearest repeats the block means"


@pytest.mark.parametrize("model", ["bicubic", "unet"])
def test_conservation_makes_block_means_equal_the_observation(workplace: Workplace, tmp_path: Path, model: str) -> None:
    words = (*WITH_HALO, f"model={model}")
    free = finish(room(workplace, *words), tmp_path)
    parts = room(workplace, *words, "conservation=additive")
    held = finish(parts, tmp_path)
    size = float(np.nanmean(np.abs(np.asarray(parts[1].target))))
    assert held["test/coarse_rmse"] < 1e-6 * size < free["test/coarse_rmse"]


def test_no_nan_ever_reaches_the_network(workplace: Workplace, tmp_path: Path) -> None:
    parts = room(workplace, "features=lbp", "trainer.epochs=1")
    run, features, _, task, data = parts
    features.predictors[:, 1, ::5, ::3] = np.nan  # gaps of a band, beside those of LBP at the border
    seen: list[bool] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(all(bool(torch.isfinite(field).all()) for field in inputs))

    task.model.register_forward_pre_hook(look)
    fitting.fit(run, task, data, tmp_path, NOWHERE_TO_LOG)
    scores = finish(parts, tmp_path)
    assert seen and all(seen)
    assert all(np.isfinite(value) for value in scores.values())


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_the_loss_ignores_pixels_that_are_not_scored(workplace: Workplace, loss: str) -> None:
    _, _, _, task, data = room(workplace, f"trainer.loss={loss}")
    batch: dict[str, Any] = next(iter(data.train_dataloader()))
    batch["scored"] = batch["scored"].clone()
    batch["scored"][:, :, ::2] = False
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to

    def loss_and_gradient(target: Tensor) -> list[Tensor]:
        task.zero_grad()
        value = task.training_step(batch | {"target": target}, 0)
        value.backward()
        return [value.detach(), *(p.grad.clone() for p in task.parameters() if p.grad is not None)]

    expected = loss_and_gradient(batch["target"])
    for other in (torch.nan, 1e6):
        found = loss_and_gradient(torch.where(batch["scored"], batch["target"], other))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    empty = task.training_step(batch | {"scored": torch.zeros_like(batch["scored"])}, 0)
    assert empty == 0


def test_the_loss_is_the_mean_over_scored_pixels(workplace: Workplace) -> None:
    _, _, _, task, data = room(workplace)
    batch = next(iter(data.train_dataloader()))
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
    prediction = task(batch["predictors"], batch["coarse"], batch["valid"])
    error = ((prediction - batch["target"]) / task.spec.scaler.target_scale)[batch["scored"]]
    assert float(task.training_step(batch, 0)) == pytest.approx(float((error**2).mean()), rel=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_and_is_tested(workplace: Workplace, tmp_path: Path, model: str) -> None:
    parts = room(workplace, f"model={model}", "crop.number=2", "trainer.epochs=1", "trainer.batch_size=2")
    run, _, _, task, data = parts
    before = [parameter.detach().clone() for parameter in task.parameters()]
    history = fitting.fit(run, task, data, tmp_path, NOWHERE_TO_LOG)
    assert (model in BASELINES) == (not history) == (not before)
    if before:
        assert len(history["val/rmse"]) == 1
        assert any(not torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))
    assert np.isfinite(finish(parts, tmp_path)["test/rmse"])
