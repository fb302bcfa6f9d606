"""The task against whole-field references, what reaches a network, and every model option we ship."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sifscale import fitting, testing
from sifscale.config import PROJECT_ROOT, ConfigError, RunConfig
from sifscale.conservation import conserve
from sifscale.crops import Plans
from sifscale.datamodule import CropDataModule
from sifscale.features import FeatureCube
from sifscale.losses import aggregate, beta_nll, pinball, total_variation
from sifscale.models.mc_dropout import McDropout
from sifscale.models.persistence import with_other_composite
from sifscale.splits import TEST, VALIDATION
from sifscale.task import LEAST_WIDTH, DownscalingTask
from sifscale.task_spec import Optimisation
from sifscale.tracking import RunLog
from sifscale.training import make_task, prepare_features, prepare_plans
from sifscale.uncertainty import Spread
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

NOWHERE_TO_LOG = RunLog(None, "")
MODELS = sorted(path.stem for path in (PROJECT_ROOT / "conf" / "model").glob("*.yaml"))
WITHOUT_PARAMETERS = {"identity", "nearest", "bilinear", "bicubic", "nirv_ratio", "persistence"}
IN_ONE_STEP = {"lue", "ridge", "random_forest", "gradient_boosting", "deconvolution"}
LONGER = ("split=time", "window.period.end=2019-06-25", "window.name=tiny")  # three composites
# A halo of one coarse cell, which is what bilinear interpolation reads.
WITH_HALO = (*LONGER, "crop.size=16", "evaluation.ridge=null", "evaluation.details=false")

Room = tuple[RunConfig, FeatureCube, Plans, DownscalingTask, CropDataModule]


def room(workplace: Workplace, *words: str) -> Room:
    """What a run is made of, as ``train`` puts it together."""
    run = workplace.config(*words)
    torch.manual_seed(run.seed)
    features = prepare_features(run, open_or_build(run))
    plans = prepare_plans(run, features)
    if run.model.name == "persistence" and plans.parts is not None:
        features = with_other_composite(features, plans.parts)
    data = CropDataModule(features, plans, batch_size=run.trainer.batch_size, seed=run.seed, augment=run.crop.augment)
    return run, features, plans, make_task(run, features, plans), data


def finish(parts: Room, folder: Path) -> dict[str, float]:
    run, _, _, task, data = parts
    return testing.test(run, task, data, None, folder, NOWHERE_TO_LOG)[0]


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


@pytest.mark.parametrize(
    ("model", "name"), [("bicubic", "additive"), ("unet", "additive"), ("unet", "multiplicative"), ("unet", "softmax")]
)
def test_conservation_makes_block_means_equal_the_observation(
    workplace: Workplace, tmp_path: Path, model: str, name: str
) -> None:
    words = (*WITH_HALO, f"model={model}")
    free = finish(room(workplace, *words), tmp_path)
    parts = room(workplace, *words, f"conservation={name}")
    held = finish(parts, tmp_path)
    size = float(np.nanmean(np.abs(np.asarray(parts[1].target))))
    assert held["test/coarse_rmse"] < 1e-6 * size < free["test/coarse_rmse"]
    assert held["test/coarse_rmse_raw"] == free["test/coarse_rmse_raw"] == free["test/coarse_rmse"]


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


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Notes what a GPU would be waited for: numbers read by Python or made from its own, sizes that follow values."""

    OPERATIONS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "_unique2", "lift_fresh"}

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith(("index", "_index")) and any(
            isinstance(part, Tensor) and part.dtype == torch.bool
            for arg in args if isinstance(arg, list | tuple) for part in arg
        )  # fmt: skip
        if by_mask or name in self.OPERATIONS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "word",
    [
        *(f"trainer.loss={name}" for name in
          ("mse", "error_weighted", "cells", "dssim", "spectral", "aggregate")),
        *(f"uncertainty={name}" for name in ("ensemble", "mc_dropout", "heteroscedastic", "quantile")),
        "conservation=multiplicative",
    ],
)  # fmt: skip
def test_no_training_step_waits_for_a_gpu(workplace: Workplace, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first one, which makes what is kept. What Lightning does with the loss is its own."""
    weights = ("trainer.total_variation_weight=0.1", "conservation_weight=0.1", "evaluation.cell_px=2")
    _, _, _, task, data = room(workplace, *weights, word)
    monkeypatch.setattr(task, "log", lambda *args, **options: None)
    batch: dict[str, Any] = next(iter(data.train_dataloader()))
    task.training_step(batch, 0)
    with Waits() as waits:
        task.training_step(batch, 1).backward()  # type: ignore[no-untyped-call]  # torch's own
    assert waits.found == []


def test_a_compiled_network_leaves_a_checkpoint_that_one_without_a_compiler_loads(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # only traced: torch's own compiler takes a minute
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    words = ("trainer.compile=true", "trainer.epochs=1", "model.widths=[4]", "model.bottleneck=4")
    run, _, _, task, data = room(workplace, *words)
    fitting.fit(run, task, data, tmp_path, NOWHERE_TO_LOG)
    again = DownscalingTask.load_from_checkpoint(tmp_path / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    batch = next(iter(data.test_dataloader()))
    with torch.no_grad():
        first, second = (one.eval()(batch["predictors"], batch["coarse"]) for one in (task, again))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "error_weighted", "dssim", "spectral", "aggregate"])
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


@pytest.mark.parametrize("loss", ["mse", "aggregate"])
def test_soft_terms_add_to_the_loss_by_weight_and_look_before_conservation(workplace: Workplace, loss: str) -> None:
    _, features, _, task, data = room(workplace, f"trainer.loss={loss}", "conservation=additive")
    batch = next(iter(data.train_dataloader()))
    scale = task.spec.scaler.target_scale

    def judged(conservation_weight: float = 0.0, total_variation_weight: float = 0.0) -> float:
        weights = {"conservation_weight": conservation_weight, "total_variation_weight": total_variation_weight}
        options = Optimisation(**(asdict(task.optimisation) | weights))
        other = DownscalingTask.create(task.spec, options, False)
        other.load_state_dict(task.state_dict())
        other.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
        return float(other.training_step(batch, 0))

    raw = DownscalingTask.create(replace(task.spec, conservation="none"), task.optimisation, False)
    raw.load_state_dict(task.state_dict())
    with torch.no_grad():
        free = raw(batch["predictors"], batch["coarse"]) / scale
    fields = free, batch["coarse"] / scale, batch["valid"], batch["scored"]
    mismatch = float(aggregate(*fields, features.block_px))
    assert mismatch > 1e-4
    assert judged(conservation_weight=2.0) - judged() == pytest.approx(2 * mismatch, rel=1e-4)
    steps = float(total_variation(free, batch["scored"]))
    assert judged(total_variation_weight=3.0) - judged() == pytest.approx(3 * steps, rel=1e-4)
    if loss == "aggregate":
        assert judged() == pytest.approx(mismatch, rel=1e-5)


def test_without_fine_truth_nothing_but_its_block_means_is_learned_from(workplace: Workplace, tmp_path: Path) -> None:
    """Truth shuffled within its coarse cells, in all parts: no bit of the weights and of the chosen epoch changes."""
    words = ("trainer.loss=aggregate", "trainer.epochs=4", "features=base", "conservation=additive")
    run, features, plans, task, _ = room(workplace, *words)
    found = []
    for shuffled in (False, True):
        truth = within_blocks_shuffled(features) if shuffled else np.asarray(features.target)
        seen = replace(features, target=truth)
        data = CropDataModule(seen, plans, batch_size=run.trainer.batch_size, seed=run.seed, augment=True)
        torch.manual_seed(0)
        learner = DownscalingTask.create(task.spec, task.optimisation, False)
        folder = tmp_path / str(shuffled)
        folder.mkdir()
        history = fitting.fit(run, learner, data, folder, NOWHERE_TO_LOG).history
        epoch = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
        found.append((learner.state_dict(), epoch, history))
        assert make_task(run, seen, plans).spec.scaler == task.spec.scaler
    (weights, epoch, history), (others, other_epoch, other_history) = found
    assert all(torch.equal(weights[key], others[key]) for key in weights) and epoch == other_epoch
    assert [value for _, value in history["val/loss"]] == [value for _, value in other_history["val/loss"]]
    assert history["val/rmse"] != other_history["val/rmse"], "the truth was shuffled indeed"
    by_loss = [value for _, value in history["val/loss"]]
    assert epoch == by_loss.index(min(by_loss))


def test_the_configuration_reaches_the_task(workplace: Workplace) -> None:
    words = ("trainer.loss=dssim", "conservation_weight=0.5", "trainer.total_variation_weight=0.25")
    options = room(workplace, *words)[3].optimisation
    assert (options.loss, options.conservation_weight, options.total_variation_weight) == ("dssim", 0.5, 0.25)


def within_blocks_shuffled(features: FeatureCube) -> NDArray[np.float32]:
    """The target with the valid pixels of each coarse cell in another order."""
    truth, valid = np.array(features.target), np.asarray(features.valid)
    rng, block = np.random.default_rng(0), features.block_px
    for sample, y, x in np.ndindex(truth.shape[0], truth.shape[1] // block, truth.shape[2] // block):
        at = (sample, slice(y * block, (y + 1) * block), slice(x * block, (x + 1) * block))
        cell = truth[at]
        cell[valid[at]] = rng.permutation(cell[valid[at]])
        truth[at] = cell
    return truth


@pytest.mark.parametrize("uncertainty", ["heteroscedastic", "quantile"])
@pytest.mark.parametrize("model", ["unet", "sifnet_small", "cnn_dense"])
def test_learned_widths_are_above_0_and_in_units_of_the_target(
    workplace: Workplace, model: str, uncertainty: str
) -> None:
    _, _, _, task, data = room(workplace, f"model={model}", f"uncertainty={uncertainty}", "conservation=additive")
    batch, widths = next(iter(data.test_dataloader())), {"heteroscedastic": 1, "quantile": 2}[uncertainty]
    fields = batch["predictors"], batch["coarse"]
    last = list(task.model.parameters())[-1]
    with torch.no_grad():
        last.fill_(-50)  # far below 0, before the function that keeps widths above it
        said = task.eval().each(*fields)
        assert said.shape == (1, len(batch["crop"]), 1 + widths, *batch["coarse"].shape[-2:])
        scale = task.spec.scaler.target_scale
        torch.testing.assert_close(said[:, :, 1:], torch.full_like(said[:, :, 1:], LEAST_WIDTH * scale))
        last.fill_(3)
        wide = task.each(*fields)
        prediction = task(*fields)
        assert torch.equal(prediction, wide[0, :, :1])
        held = task(*fields, batch["valid"])
        bars = task.bars(wide, held[None])
    assert bars.shape == (len(held), 3, *held.shape[-2:])
    assert bool((held - bars[:, 1:2] < held).all() and (held < held + bars[:, 2:]).all()), "no quantile crosses another"


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("uncertainty", ["heteroscedastic", "quantile"])
def test_learned_widths_are_learned_by_a_loss_of_their_own(
    workplace: Workplace, uncertainty: str, members: int
) -> None:
    words = ("conservation=additive", f"trainer.members={members}", "model.widths=[4,8]", "model.bottleneck=8")
    _, _, _, task, data = room(workplace, f"uncertainty={uncertainty}", *words, "model.residual=false")
    batch, scale = next(iter(data.train_dataloader())), task.spec.scaler.target_scale
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
    found = task.training_step(batch, 0)
    found.backward()  # type: ignore[no-untyped-call]  # torch's own
    heads = [weight for name, weight in task.named_parameters() if name.endswith("head.weight")]
    assert len(heads) == members and all(bool(w.grad.flatten(1).any(dim=1).all()) for w in heads if w.grad is not None)
    expected, target, scored = 0.0, batch["target"] / scale, batch["scored"]
    for said in task.each(batch["predictors"], batch["coarse"]).detach():
        held = conserve("additive", said[:, :1], batch["coarse"], batch["valid"], task.spec.block_px) / scale
        if uncertainty == "quantile":
            expected += float(pinball(held, said[:, 1:] / scale, target, scored, 0.9))
        else:
            expected += float(beta_nll(held, said[:, 1:] / scale, target, scored, 0.5))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_mc_dropout_trains_by_one_pass_is_validated_without_and_tested_with_all(workplace: Workplace) -> None:
    words = ("uncertainty=mc_dropout", "uncertainty.passes=3", "model.widths=[4,8]", "model.bottleneck=8")
    _, _, _, task, data = room(workplace, *words, "model.residual=false")
    batch, passes = next(iter(data.test_dataloader())), list[int]()
    assert isinstance(task.model, McDropout)
    task.model.network.register_forward_hook(lambda *args: passes.append(len(args[1][0])))
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
    task.train().training_step(batch, 0)
    task.eval().validation_step(batch, 0)
    assert len(passes) == 2
    with torch.no_grad():
        assert task.each(batch["predictors"], batch["coarse"]).shape[0] == 3 == len(passes) - 2


def test_checkpoints_from_before_there_were_error_bars_still_load(workplace: Workplace, tmp_path: Path) -> None:
    run, _, _, task, data = room(workplace, "trainer.epochs=1", "evaluation.ridge=null", "evaluation.details=false")
    fitting.fit(run, task, data, tmp_path, NOWHERE_TO_LOG)
    path = tmp_path / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)
    del state["hyper_parameters"]["spec"]["uncertainty"]
    torch.save(state, tmp_path / "old.ckpt")
    back = DownscalingTask.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True)
    assert back.spec == task.spec and back.spec.uncertainty is None and back.calibration is None
    batch = next(iter(data.test_dataloader()))
    fields = batch["predictors"], batch["coarse"]
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(*fields), task.eval()(*fields))
        with pytest.raises(ValueError, match="trained with uncertainty=none"):
            back.bars(back.each(*fields), back.each(*fields))


@pytest.mark.parametrize("words", [("model=bilinear", "uncertainty=constant"), ("uncertainty=heteroscedastic",)])
def test_calibration_is_that_of_each_validation_pixel_once_and_kept(
    workplace: Workplace, tmp_path: Path, words: tuple[str, ...]
) -> None:
    run, features, plans, task, data = room(workplace, *words, "trainer.epochs=1")
    fitting.fit(run, task, data, tmp_path, NOWHERE_TO_LOG)
    back = DownscalingTask.load_from_checkpoint(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert task.calibration is not None and back.calibration == task.calibration
    assert plans.parts is not None
    truth = np.asarray(features.target)[np.asarray(features.valid) & (plans.parts == VALIDATION)]
    errors, plain = [], replace(task.calibration, sd=1.0, interval=1.0)
    spread, calibrated = Spread.zero(), Spread.zero()
    with torch.no_grad():
        for batch in data.each_pixel_once(VALIDATION):
            said = back.eval().each(batch["predictors"], batch["coarse"])
            held = back(batch["predictors"], batch["coarse"], batch["valid"])
            fields = batch["target"], batch["scored"]
            errors.append((held - batch["target"])[batch["scored"]])
            calibrated += Spread.of(held, back.bars(said, held[None]), *fields, task.calibration.edges)
            back.calibration = plain
            spread += Spread.of(held, back.bars(said, held[None]), *fields, plain.edges)
            back.calibration = task.calibration
    assert len(torch.cat(errors)) == len(truth)
    assert task.calibration.sd == pytest.approx(1 / spread.finish()["spread_skill"], rel=1e-4)
    assert calibrated.finish()["coverage"] == pytest.approx(np.ceil(0.9 * (len(truth) + 1)) / len(truth), abs=2e-3)


def test_error_bars_without_a_validation_part_are_refused_before_training(
    workplace: Workplace, tmp_path: Path
) -> None:
    run, features, plans, task, _ = room(workplace, "uncertainty=constant")
    without = replace(plans, validation=None)
    data = CropDataModule(features, without, batch_size=run.trainer.batch_size, seed=run.seed, augment=False)
    with pytest.raises(ConfigError, match="uncertainty.name: must be none where the split has no validation part"):
        fitting.fit(run, task, data, tmp_path, NOWHERE_TO_LOG)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_and_is_tested(workplace: Workplace, tmp_path: Path, model: str) -> None:
    words = ("evaluation.ridge=null", "evaluation.details=false", "trainer.epochs=1", "trainer.batch_size=2")
    kind = yaml.safe_load((PROJECT_ROOT / "conf" / "model" / f"{model}.yaml").read_text())["name"]
    words += LONGER if kind == "persistence" else ()
    parts = room(workplace, *words, f"model={model}", "crop.number=2")
    run, _, _, task, data = parts
    before = {name: value.clone() for name, value in task.state_dict().items()}
    history = fitting.fit(run, task, data, tmp_path, NOWHERE_TO_LOG).history
    assert (kind in WITHOUT_PARAMETERS | IN_ONE_STEP) == (not history)
    after = task.state_dict()
    changed = any(not torch.equal(value, after[name]) for name, value in before.items())
    assert changed == (kind not in WITHOUT_PARAMETERS)
    if history:
        assert len(history["val/rmse"]) == 1
    kept = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, kept[name]) for name, value in task.state_dict().items())
    assert np.isfinite(finish(parts, tmp_path)["test/rmse"])
