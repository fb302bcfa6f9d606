"""``explain.py`` from a trained run to tables and figures in MLflow, and what it refuses."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient

from sifscale import explaining, explaining_report
from sifscale.config import ConfigError, ExplainConfig, load

if TYPE_CHECKING:
    from conftest import Workplace

ROOT = Path(__file__).parents[1]
UNET = (
    "features=local_stats", "model.widths=[4,8]", "model.bottleneck=8", "trainer.epochs=1", "evaluation.ridge=null",
    "evaluation.details=false", "tracking.log_model=false", "trainer.batch_size=4",
)  # fmt: skip
FILES = {"importance.json", "importance.csv", "importance.png", "importance_by_cover.png"}
OF_NETWORKS = {"attribution.png", "attribution_map.png"}


@pytest.fixture(scope="module")
def run_folder(workplace: Workplace) -> Path:
    return workplace.train(workplace.folder / "explained", *UNET)


def words(workplace: Workplace, *more: str) -> list[str]:
    """The command line of ``explain.py``; ``more`` win."""
    return [*workplace.places, "progress=false", "repeats=2", "steps=8", *more]


def configured(workplace: Workplace, *more: str) -> ExplainConfig:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return load(compose("explain", words(workplace, *more)), ExplainConfig)


def explained(workplace: Workplace, run: Path | str, *more: str) -> Path:
    return explaining.explain(configured(workplace, f"run={run}", *more))


def strict(path: Path) -> Any:
    """JSON without NaN, which is none."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path}"))


@pytest.fixture(scope="module")
def folder(workplace: Workplace, run_folder: Path) -> Path:
    """The command itself."""
    with pytest.MonkeyPatch.context() as patch:
        place = f"hydra.run.dir={workplace.folder / 'explain'}"
        patch.setattr(sys, "argv", ["explain.py", *words(workplace, f"run={run_folder}", place)])
        runpy.run_path(str(ROOT / "explain.py"), run_name="__main__")
    return run_folder / "explain"


def test_an_explanation_is_of_the_test_pixels_that_the_run_was_scored_on(folder: Path, run_folder: Path) -> None:
    found = strict(folder / "importance.json")
    tested = strict(run_folder / "metrics.json")
    sums = strict(run_folder / "test_sums.json")["model"]
    assert found["pixels"] == sums["n"] and found["rmse"] == pytest.approx(tested["test/rmse"], rel=1e-5)
    assert found["run_id"] == (run_folder / "run_id").read_text()
    assert sum(part["pixels"] for part in found["cover"].values()) == found["pixels"]
    squares = sum(part["pixels"] * part["rmse"] ** 2 for part in found["cover"].values())
    assert math.sqrt(squares / found["pixels"]) == pytest.approx(found["rmse"], rel=1e-6)
    assert list(found["groups"]) == ["coarse", "indices", "reflectances", "texture"]
    assert found["groups"]["texture"] == ["mean3(evi)", "sd3(evi)", "laplacian3(evi)"]
    gradients = found["integrated_gradients"]
    assert gradients["pixels"] == found["crops"] and gradients["incompleteness"] < 0.2


def test_tables_and_figures_are_in_the_run_folder_and_in_mlflow(
    folder: Path, run_folder: Path, workplace: Workplace
) -> None:
    assert {path.name for path in folder.iterdir()} == FILES | OF_NETWORKS
    table, found = pd.read_csv(folder / "importance.csv"), strict(folder / "importance.json")
    assert len(table) == len(found["importance"])
    whole = table[table["cover"] == "all"].set_index(["kind", "name"])
    assert set(whole.loc["group"].index) == set(found["groups"])
    channels = [name for names in found["groups"].values() for name in names]
    assert sorted(whole.loc["channel"].index) == sorted(channels)
    assert whole.loc[("channel", "nir"), "rmse_increase"] == whole.loc[("group", "reflectances"), "rmse_increase"]
    for kind in ("group", "channel"):
        assert whole.loc[kind]["attribution_share"].sum() == pytest.approx(1, rel=1e-4)
    mlflow, run_id = MlflowClient(workplace.tracking_uri), (run_folder / "run_id").read_text()
    assert {Path(file.path).name for file in mlflow.list_artifacts(run_id, "explain")} == FILES | OF_NETWORKS
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    logged = {name.partition("/")[2]: v for name, v in run.data.metrics.items() if name.startswith("explain/")}
    assert logged == pytest.approx(whole.loc["group"]["rmse_increase"].to_dict(), abs=1e-9)


def test_a_run_of_mlflow_is_explained_without_its_folder_and_a_part_of_it_faster(
    folder: Path,
    run_folder: Path,
    workplace: Workplace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = (run_folder / "run_id").read_text()
    place = explained(workplace, run_id, "integrated_gradients=false", "max_crops=4", "repeats=1")
    assert place == workplace.folder / "outputs" / "explain" / run_id[:8]
    assert {path.name for path in place.iterdir()} == FILES
    found = strict(place / "importance.json")
    assert found["crops"] == 4 and found["integrated_gradients"] == {"left_out": "integrated_gradients=false"}
    assert {row["rmse_increase_sd"] for row in found["importance"]} == {None}
    assert "no integrated gradients: integrated_gradients=false" in capsys.readouterr().out
    monkeypatch.setattr(explaining_report, "pictures", lambda explained: {})
    again = explained(workplace, run_id, "integrated_gradients=false", "max_crops=4", "repeats=1")
    assert again == place and strict(place / "importance.json") == found, "seeded"
    assert {path.name for path in place.iterdir()} == {"importance.json", "importance.csv"}, "no figures of before"


def copied(run_folder: Path, place: Path, **changes: Any) -> Path:
    """A run folder without note of its MLflow run, with other values in its configuration."""
    shutil.copytree(run_folder / "checkpoints", place / "checkpoints")
    values = yaml.safe_load((run_folder / "config.yaml").read_text())
    (place / "config.yaml").write_text(yaml.safe_dump(values | changes))
    return place


def test_a_run_that_mlflow_does_not_know_is_explained_beside_it(
    run_folder: Path,
    workplace: Workplace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(explaining_report, "pictures", lambda explained: {})  # seconds, and tested above
    options = ("integrated_gradients=false", "max_crops=2", "repeats=1")
    place = copied(run_folder, tmp_path / "run")
    found = explained(workplace, place / "checkpoints" / "best.ckpt", *options)
    assert found == place / "explain" and "does not say which run made it" in caplog.text
    (place / "run_id").write_text("0" * 32)
    explained(workplace, place, *options)
    assert f"nothing goes to MLflow: run {'0' * 32} cannot be written" in caplog.text


def test_what_cannot_be_explained_is_refused_in_one_line(
    run_folder: Path, workplace: Workplace, tmp_path: Path
) -> None:
    legacy = copied(run_folder, tmp_path / "legacy", protocol="legacy")
    with pytest.raises(ValueError, match=r"^run: must be of protocol=honest, .* \(found 'legacy'\)$"):
        explained(workplace, legacy)
    unknown = copied(run_folder, tmp_path / "unknown", colour="blue", seed=-1)
    with pytest.raises(ConfigError) as error:
        explained(workplace, unknown)
    assert len(error.value.faults) == 2
    assert all(line.startswith("run: its config.yaml is not of this version, ") for line in error.value.faults)
    (unknown / "config.yaml").write_text("{")
    with pytest.raises(ValueError, match=r"^run: its config.yaml cannot be read, .*\)$"):
        explained(workplace, unknown)
    (unknown / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"^run: has no config.yaml beside its checkpoints; take the run folder"):
        explained(workplace, unknown)
    (unknown / "run_id").write_text("0" * 32)
    with pytest.raises(ValueError, match=r"^run: its config.yaml cannot be read, .*\)$"):
        explained(workplace, unknown)


def test_another_cube_and_a_folder_of_something_else_are_refused(
    run_folder: Path, workplace: Workplace, tmp_path: Path
) -> None:
    place = copied(run_folder, tmp_path / "run")
    (place / "explain").mkdir()
    (place / "explain" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"^run: .*explain exists and is no explanation, thus not replaced"):
        explained(workplace, place, "integrated_gradients=false", "max_crops=2", "repeats=1")
    assert (place / "explain" / "notes.txt").exists()
    shutil.rmtree(place / "explain")
    path = place / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)
    state["hyper_parameters"]["spec"]["origin"]["cube_hash"] = "f" * 64
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"^run: must be explained on the cube that it was trained on, f{16}; .*\)$"):
        explained(workplace, place)


def test_the_command_ends_with_one_line_a_fault(
    workplace: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"hydra.run.dir={workplace.folder / 'explain'}"
    faulty = ["run=x", "repeats=0", "max_crops=1"]
    for more, keys in ((["run=nowhere.ckpt"], ["run"]), (faulty, ["repeats", "max_crops"])):
        monkeypatch.setattr(sys, "argv", ["explain.py", *words(workplace, place, *more)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "explain.py"), run_name="__main__")
        assert stop.value.code == 1
        assert [line.split(":")[1].strip() for line in capsys.readouterr().err.splitlines()] == keys
