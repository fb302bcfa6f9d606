"""Each shipped study as a tiny sweep: one parent run, its children, the table beside the reference figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from mlflow import MlflowClient

from sifscale import run_figures
from sifscale.config import PROJECT_ROOT

if TYPE_CHECKING:
    from conftest import Workplace

SMALL = ("trainer.epochs=1", "trainer.threads=1", "trainer.progress=false", "evaluation.details=false")
TINY_FIELD = (
    "window.grid.bounds=[-60000.0,2658000.0,132000.0,2850000.0]",
    "window.period.end=2019-06-09",
    "window.simulation.days_per_period=4",
    "split.block=[12,12]",
    "split.k=3",
    "crop.size=8",
    "crop.number=4",
)
STUDIES = {  # words that make a study tiny, and its number of jobs
    "paper_table3": (("crop.size=8", "crop.number=10"), 6),
    # one network, one interpolation and the study's own baseline of eleven arms, three folds
    "honest_minnesota": (
        (
            "+experiment/honest_minnesota=bicubic_conservation,ridge,sifnet",
            "split.k=3",
            "split.block=[8,8]",
            "split.guard_px=1",
            "crop.size=3",
            "crop.number=4",
        ),
        3,
    ),
    # nine places
    "honest_cfis": (("+experiment/honest_cfis=nearest,unet_tile_means", "split.k=3", "trainer.members=1"), 2),
    "honest_lst": (("+experiment/honest_lst=bicubic,unet", "split.k=3"), 2),
    # two composites of 48 x 48 cells
    "osse_demo": (("+experiment/osse_demo=nearest,unet", *TINY_FIELD), 2),
    "osse_truth": (("+experiment/osse_truth=bilinear,unet_on_truth", *TINY_FIELD), 2),
}


def test_every_study_is_tried() -> None:
    assert set(STUDIES) == {path.stem for path in (PROJECT_ROOT / "experiments").glob("*.yaml")}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study(
    workplace: Workplace, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(run_figures, "draw", lambda *args: [])  # half of a tiny run's time; test_training draws
    words, jobs = STUDIES[name]
    sweep = tmp_path / "sweep"
    workplace.main(
        "-m", f"experiment={name}", *workplace.places, f"paths.raw={raw}", f"paths.data={tmp_path / 'data'}",
        f"tracking.experiment={name}", f"hydra.sweep.dir={sweep}", *SMALL, *words,
    )  # fmt: skip
    client = MlflowClient(tracking_uri=workplace.tracking_uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert all(run.info.status == "FINISHED" for run in runs)
    (parent,) = (run for run in runs if run.data.tags.get("sweep") == "parent")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    folds = [run for run in runs if run.data.tags.get("mlflow.parentRunId") in {c.info.run_id for c in children}]
    assert len(children) == jobs == len(runs) - 1 - len(folds)
    every_fold = children[0].data.params.get("split.folds") == "all"
    assert len(folds) == (3 * jobs if every_fold else 0)
    assert {run.data.tags["study"] for run in children} == {name}

    study = yaml.safe_load((PROJECT_ROOT / "experiments" / f"{name}.yaml").read_text())["study"]
    table = json.loads((sweep / f"{name}.json").read_text())
    assert table["study"] == study | {"title": table["study"]["title"]}, "a title may name values of the configuration"
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == [f"{name}.json"]
    rows = {row["arm"]: row for row in table["rows"]}
    assert len(rows) == len({run.data.tags["arm"] for run in children})
    assert sum(row["runs"] for row in rows.values()) == jobs
    assert set(study["reference"]) & set(rows) or not study["reference"]
    for arm in set(study["reference"]) & set(rows):
        assert {key: rows[arm][f"reference_{key}"] for key in study["reference"][arm]} == study["reference"][arm]
    legacy = name == "paper_table3"
    assert all((row["r2_positions"] is not None) == bool(row["findings"]) == legacy for row in rows.values())
    if legacy:
        assert "target_derived_predictor" in rows["U-Net + LBP + difference"]["findings"]
        assert "target_derived_predictor" not in rows["U-Net + LBP"]["findings"]
