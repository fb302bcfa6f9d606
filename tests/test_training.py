"""Whole runs through the entry point: the same twice, after a kill too; fully logged."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from sifscale.datamodule import CropDataModule
from sifscale.metrics import Sums
from sifscale.task import DownscalingTask
from sifscale.tracking import flat
from sifscale.training import prepare_features, prepare_plans
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

EPOCHS = 8
LONG = ("features=lbp", f"trainer.epochs={EPOCHS}", "trainer.patience=null", "tracking.experiment=long")
DRAWN = (*LONG, "evaluation.figures=true")
PLAIN = ("evaluation.details=false", "evaluation.ridge=null", "window.truth=null")  # what a test may do without
EPOCH_METRICS = {"train/loss", "train/learning_rate", "val/loss", "val/r2", "val/mae", "val/rmse"}
TEST_METRICS = {"test/r2", "test/mae", "test/rmse", "test/skill_bilinear", "test/coarse_rmse", "perf/samples_per_s"}
TEST_METRICS |= {"perf/data_wait_share", "perf/peak_memory_mb"}


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return found


def scores(folder: Path) -> dict[str, float]:
    return {name: value for name, value in metrics(folder).items() if name.startswith("test/")}


def logged(workplace: Workplace, folder: Path) -> tuple[MlflowClient, Run]:
    client = MlflowClient(tracking_uri=workplace.tracking_uri)
    return client, client.get_run((folder / "run_id").read_text())


def history(client: MlflowClient, run: Run, name: str) -> dict[int, float]:
    return {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}


@pytest.fixture(scope="module")
def unbroken(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, LBP features and augmentation as by default."""
    return workplace.train(tmp_path_factory.mktemp("unbroken"), *DRAWN)


def test_the_same_seed_gives_the_same_scores(workplace: Workplace, tmp_path: Path) -> None:
    first = workplace.train(tmp_path / "first")
    assert workplace.config().crop.augment
    assert scores(workplace.train(tmp_path / "second")) == scores(first)
    other = workplace.train(tmp_path / "other", "seed=1", *PLAIN)
    assert scores(other)["test/rmse"] != scores(first)["test/rmse"]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(workplace: Workplace, unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = workplace.start(*workplace.overrides(f"hydra.run.dir={folder}", *LONG))
    while process.is_alive() and not (folder / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    done = len(json.loads((folder / "history.json").read_text())["train/loss"])
    assert 0 < done < EPOCHS and not (folder / "metrics.json").exists()

    workplace.train(tmp_path / "unused", *LONG, f"resume={folder}")
    assert scores(folder) == scores(unbroken)
    client, run = logged(workplace, folder)
    assert run.info.status == "FINISHED"
    assert list(history(client, run, "val/rmse")) == list(range(EPOCHS))
    assert history(client, run, "train/loss") == history(*logged(workplace, unbroken), "train/loss")
    experiment = client.search_runs([run.info.experiment_id])
    assert len(experiment) == 2, "the unbroken run and the resumed one"


def test_two_processes_train_one_run(workplace: Workplace, unbroken: Path, tmp_path: Path) -> None:
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.epochs=1", "tracking.experiment=ddp"]
    words = workplace.overrides(f"hydra.run.dir={tmp_path}", "features=lbp", *ddp)
    for more in ([], [f"resume={tmp_path}"]):  # the second time nothing is left to do
        process = workplace.start(*words, *more)
        process.join(240)
        assert process.exitcode == 0
    # references learn nothing, so that sums from two processes must give the scores of one
    same = [name for name in metrics(unbroken) if "nearest" in name or "bilinear_" in name]
    assert same and {n: metrics(tmp_path)[n] for n in same} == pytest.approx({n: metrics(unbroken)[n] for n in same})
    client, run = logged(workplace, tmp_path)
    assert run.info.status == "FINISHED" and len(client.search_runs([run.info.experiment_id])) == 1


def test_resuming_a_finished_run_changes_nothing(workplace: Workplace, unbroken: Path, tmp_path: Path) -> None:
    def of_the_model() -> dict[str, float]:
        found = logged(workplace, unbroken)[1].data.metrics
        return {name: value for name, value in found.items() if not name.startswith("system/")}

    before, was = metrics(unbroken), of_the_model()
    workplace.train(tmp_path, *DRAWN, f"resume={unbroken}")
    assert metrics(unbroken) == before and of_the_model() == was


@pytest.mark.parametrize("change", ["trainer.learning_rate=0.1", "seed=7", "model.residual=false"])
def test_resume_refuses_another_configuration(
    workplace: Workplace, unbroken: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        workplace.train(tmp_path, *DRAWN, change, f"resume={unbroken}")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {change.split('=')[0]}: must be as in the run that is resumed")


def test_resume_refuses_a_folder_that_is_no_run(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        workplace.train(tmp_path / "new", f"resume={tmp_path}")
    assert capsys.readouterr().err.startswith("error: resume: must be the folder of a run that had started")


def test_what_a_run_leaves_in_mlflow(workplace: Workplace, unbroken: Path) -> None:
    client, run = logged(workplace, unbroken)
    config = yaml.safe_load((unbroken / "config.yaml").read_text())
    wanted = {key: value for key, value in flat(config).items() if key not in ("study", "resume")}
    assert wanted == {key: value for key, value in run.data.params.items() if key not in ("channels", "resume")}
    named = {"model.widths", "split.folds", "normalisation.fit", "window.simulation.seed", "channels"}
    assert named <= set(run.data.params)

    assert EPOCH_METRICS | TEST_METRICS <= set(run.data.metrics)
    assert "test/r2_positions" not in run.data.metrics
    for name in EPOCH_METRICS:
        assert list(history(client, run, name)) == list(range(EPOCHS))
    assert {name: run.data.metrics[name] for name in metrics(unbroken)} == metrics(unbroken)

    tags = run.data.tags
    assert tags["protocol"] == "honest" and tags["audit"] == "no finding" and tags["arm"] == "unet lbp"
    assert tags["cube_hash"] == open_or_build(workplace.config()).hash
    assert tags["git_commit"] == "unknown" or len(tags["git_commit"].removesuffix("+changes")) == 40

    files = {
        file.path
        for folder in ("", "crops", "model/data", "figures")
        for file in client.list_artifacts(run.info.run_id, folder)
    }
    assert {"config.yaml", "metrics.json", "test_sums.json", "model/data/best.ckpt"} <= files
    assert {f"crops/crops_{part}.csv" for part in ("train", "validation", "test")} <= files
    pictures = ("predicted_against_actual", "maps", "correlation_matrix", "curves", "split", "lbp")
    assert {f"figures/{name}.png" for name in pictures} <= files


def test_the_best_epoch_is_that_of_the_smallest_validation_rmse(workplace: Workplace, unbroken: Path) -> None:
    client, run = logged(workplace, unbroken)
    by_epoch = history(client, run, "val/rmse")
    best = min(by_epoch, key=lambda epoch: by_epoch[epoch])
    assert run.data.metrics["best_epoch"] == best
    assert torch.load(unbroken / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == best


def test_a_checkpoint_predicts_without_the_configuration(workplace: Workplace, unbroken: Path) -> None:
    task = DownscalingTask.load_from_checkpoint(unbroken / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    run = workplace.config(*LONG)
    features = prepare_features(run, open_or_build(run))
    assert task.spec.channels == tuple(features.names) and len(task.spec.scaler.offset) == len(features.names)
    assert task.spec.factor == run.window.factor and task.spec.block_px == features.block_px
    assert task.spec.model == run.model.model_dump()

    data = CropDataModule(features, prepare_plans(run, features), batch_size=4, seed=0, augment=False)
    sums = Sums.zero()
    with torch.no_grad():
        for batch in data.test_dataloader():
            prediction = task(batch["predictors"], batch["coarse"], batch["valid"])
            sums += Sums.of(prediction, batch["target"], batch["scored"])
    found: dict[str, Any] = sums.finish()
    # a checkpoint does not keep the memory layout of weights, on which rounding depends
    assert found["rmse"] == pytest.approx(metrics(unbroken)["test/rmse"], rel=1e-7)
    assert np.isfinite(found["r2"])


def test_the_last_epoch_is_tested_where_it_is_asked_for(workplace: Workplace, tmp_path: Path) -> None:
    # a rate that grows past all use: the last epoch is not the best
    words = ("trainer.keep=last", "trainer.epochs=4", "trainer.schedule=constant", "trainer.learning_rate=0.5")
    folder = workplace.train(tmp_path, *words, *PLAIN)
    _, run = logged(workplace, folder)
    assert run.data.metrics["best_epoch"] == 3
    kept, last = (torch.load(folder / "checkpoints" / f"{n}.ckpt", weights_only=True) for n in ("best", "last"))
    assert all(torch.equal(value, last["state_dict"][name]) for name, value in kept["state_dict"].items())
