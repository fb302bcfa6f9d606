"""The model that a run logs predicts in MLflow what the run predicted, also in a process that knows nothing of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pytest
import torch
import xarray as xr
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from sifscale.config import PROJECT_ROOT
from sifscale.datamodule import Batch, CropDataModule
from sifscale.metrics import Sums
from sifscale.served_model import ServedModel
from sifscale.tracking import client
from sifscale.training import prepare_features, prepare_plans
from sifscale.uncertainty import Spread
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

QUICK = ("evaluation.ridge=null", "evaluation.details=false", "evaluation.figures=false", "window.truth=null")
MODELS = {
    "unet": ("model=unet", "model.widths=[4,8]", "model.bottleneck=8", "conservation=additive"),
    "half precision": ("model=unet", "model.widths=[4,8]", "model.bottleneck=8", "trainer.precision=bf16-mixed"),
    "cnn_dense": ("model=cnn_dense", "uncertainty=quantile"),
    "bicubic": ("model=bicubic", "conservation=multiplicative", "uncertainty=constant"),
    "nirv_ratio": ("model=nirv_ratio",),
    "ridge": ("model=ridge",),
    "random_forest": ("model=random_forest", "model.trees=3"),
}


@dataclass(frozen=True)
class Logged:
    """A finished run, its words, and its test part as batches."""

    run_id: str
    words: tuple[str, ...]
    rmse: float
    coverage: float
    batches: list[Batch]


@pytest.fixture(autouse=True)
def database(workplace: Workplace) -> Iterator[None]:
    """``runs:/`` and ``models:/`` are looked for in the tests' database."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(workplace.tracking_uri)
    yield
    mlflow.set_tracking_uri(before)


def train(workplace: Workplace, folder: Path, *words: str) -> Logged:
    words = (*QUICK, "trainer.epochs=1", *words)
    run_id = (workplace.train(folder, *words) / "run_id").read_text()
    run = workplace.config(*words)
    features = prepare_features(run, open_or_build(run))
    data = CropDataModule(features, prepare_plans(run, features), batch_size=8, seed=0, augment=False)
    metrics = client(run.tracking).get_run(run_id).data.metrics
    coverage = metrics.get("test/coverage", float("nan"))
    return Logged(run_id, words, metrics["test/rmse"], coverage, list(data.test_dataloader()))


@pytest.fixture(scope="module")
def unet(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Logged:
    return train(workplace, tmp_path_factory.mktemp("unet"), *MODELS["unet"])


def arrays(batch: Batch, names: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    return {name: batch[name].numpy() for name in names}


def rmse(model: mlflow.pyfunc.PyFuncModel, logged: Logged) -> float:
    sums = Sums.zero()
    for batch in logged.batches:
        found = model.predict(arrays(batch, tuple(model.metadata.signature.inputs.input_names())))
        assert found.dtype == np.float32 and found.shape == batch["coarse"].shape
        sums += Sums.of(torch.from_numpy(found), batch["target"], batch["scored"])
    return float(sums.finish()["rmse"])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "unet"])
def test_a_model_that_mlflow_loads_has_the_score_that_the_run_logged(
    workplace: Workplace, tmp_path: Path, name: str
) -> None:
    logged = train(workplace, tmp_path, *MODELS[name])
    model = mlflow.pyfunc.load_model(f"runs:/{logged.run_id}/model")
    assert rmse(model, logged) == pytest.approx(logged.rmse, rel=1e-5)
    assert model.predict(model.input_example).shape[:2] == (1, 1)
    served = model.get_raw_model()
    if "uncertainty=" not in " ".join(MODELS[name]):
        with pytest.raises(ValueError, match="trained with uncertainty=none"):
            served.error_bars(model.input_example)
    else:
        bars = Spread.zero()
        for batch in logged.batches:
            given = arrays(batch, ("predictors", "coarse", "valid"))
            prediction, found = (torch.from_numpy(of(given)) for of in (served.predict, served.error_bars))
            edges = served.task.calibration.edges
            bars += Spread.of(prediction, found, batch["target"], batch["scored"], edges)
        assert bars.finish()["coverage"] == pytest.approx(logged.coverage, abs=2e-3)


def test_a_fresh_process_predicts_the_same_numbers(workplace: Workplace, unet: Logged, tmp_path: Path) -> None:
    model = mlflow.pyfunc.load_model(f"runs:/{unet.run_id}/model")
    assert rmse(model, unet) == pytest.approx(unet.rmse, rel=1e-5)
    given = arrays(unet.batches[0], ("predictors", "coarse", "valid"))
    np.savez(tmp_path / "crops.npz", **given)
    program = (
        "import sys, numpy as np, mlflow\n"
        "uri, run, crops, found = sys.argv[1:]\n"
        "mlflow.set_tracking_uri(uri)\n"
        "model = mlflow.pyfunc.load_model(f'runs:/{run}/model')\n"
        "np.save(found, model.predict(dict(np.load(crops))))\n"
    )
    call = [sys.executable, "-c", program, workplace.tracking_uri, unet.run_id]
    call += [str(tmp_path / "crops.npz"), str(tmp_path / "found.npy")]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT / "src")}
    subprocess.run(call, cwd=tmp_path, env=environment, check=True, timeout=240)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), model.predict(given))


def test_a_dataset_is_predicted_as_its_arrays_are(unet: Logged) -> None:
    model = mlflow.pyfunc.load_model(f"runs:/{unet.run_id}/model")
    given = arrays(unet.batches[0], ("predictors", "coarse", "valid"))
    raw = model.get_raw_model()
    assert isinstance(raw, ServedModel) and model.metadata.metadata["channels"] == list(raw.channels)
    dims = ("sample", "channel", "y", "x")
    dataset = xr.Dataset(
        {
            "predictors": (dims, given["predictors"], {"long_name": "predictors"}),
            "coarse": (("sample", "y", "x"), given["coarse"][:, 0]),
            "valid": (("sample", "y", "x"), given["valid"][:, 0]),
        },
        coords={"channel": list(raw.channels)},
    )
    expected = model.predict(given)
    np.testing.assert_array_equal(raw.predict(dataset), expected)
    turned = dataset.isel(channel=slice(None, None, -1))
    np.testing.assert_array_equal(raw.predict(turned), expected)
    with pytest.raises(ValueError, match=rf"^predictors: dataset lacks the channels {raw.channels[0]}; add them$"):
        raw.predict(dataset.isel(channel=slice(1, None)))


def test_input_that_does_not_fit_is_refused_in_one_line(unet: Logged) -> None:
    model = mlflow.pyfunc.load_model(f"runs:/{unet.run_id}/model")
    raw, fits = model.get_raw_model(), arrays(unet.batches[0], ("predictors", "coarse", "valid"))
    predictors, coarse = fits["predictors"], fits["coarse"]
    shape = rf"\({len(predictors)}, 1, 8, 8\)"
    faults = {
        r"input: must have predictors and coarse \(found valid\)": {"valid": fits["valid"]},
        r"predictors: must be \(B, 5, H, W\), of coarse, .* \(found \(\d+, 4, 8, 8\)\)": fits
        | {"predictors": predictors[:, 1:]},
        r"predictors: must be \(B, 5, H, W\), .* \(found \(5, 8, 8\)\)": fits | {"predictors": predictors[0]},
        rf"coarse: must be {shape}, as predictors \(found .*\)": fits | {"coarse": coarse[..., :4]},
        rf"valid: must be {shape}, as predictors \(found .*\)": fits | {"valid": coarse[:, 0]},
        r"input: height and width must be multiples of 4 px \(found 8 x 6\)": {k: v[..., :6] for k, v in fits.items()},
        r"input: height and width must be multiples of 4 px \(found 8 x 0\)": {k: v[..., :0] for k, v in fits.items()},
        r"coarse: must have no NaN; .* \(found 64\)": fits
        | {"coarse": np.where(np.arange(len(coarse))[:, None, None, None] == 0, np.nan, coarse)},
    }
    for rule, given in faults.items():
        with pytest.raises(ValueError, match=f"^{rule}$"):
            raw.predict(given)
    with pytest.raises(MlflowException, match=r"Shape of input .* does not match expected shape \(-1, 5, -1, -1\)"):
        model.predict(fits | {"predictors": predictors[:, 1:]})


def test_weights_are_stored_once(workplace: Workplace, unet: Logged) -> None:
    mlflow_client = MlflowClient(workplace.tracking_uri)
    folder = Path(mlflow_client.download_artifacts(unet.run_id, ""))
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.ckpt")] == ["model/data/best.ckpt"]
    assert "sifscale.served_model" in (folder / "model" / "MLmodel").read_text()
    assert "torch==" in (folder / "model" / "requirements.txt").read_text()
    assert sum(path.stat().st_size for path in (folder / "model").glob("*")) < 50_000


def test_a_run_that_logs_no_model_keeps_its_checkpoint(workplace: Workplace, tmp_path: Path) -> None:
    logged = train(workplace, tmp_path, "model=bicubic", "tracking.log_model=false")
    found = {file.path for file in MlflowClient(workplace.tracking_uri).list_artifacts(logged.run_id)}
    assert "checkpoints" in found and "model" not in found
