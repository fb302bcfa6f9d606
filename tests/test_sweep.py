"""Each study in experiments/ as a tiny sweep: one parent run, its children, the table beside the reference figures.

A new study is found and made tiny by the kind of its window: nothing is to be added here.
"""

from __future__ import annotations

import csv
import functools
import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from sifscale.config import PROJECT_ROOT

if TYPE_CHECKING:
    from conftest import Workplace

EXPERIMENTS = {path.stem: yaml.safe_load(path.read_text()) for path in (PROJECT_ROOT / "experiments").glob("*.yaml")}
STUDIES = sorted(name for name, written in EXPERIMENTS.items() if "study" in written)  # a search makes no table
# Said to every study of whose jobs each has the key.
TINY = (
    "trainer.epochs=1",
    "trainer.batch_size=64",
    "trainer.members=1",
    "trainer.threads=1",
    "trainer.progress=false",
    "evaluation.details=false",
    "evaluation.figures=false",  # half of a tiny run's time; test_training draws
    "evaluation.ridge=null",  # a reference of each run, in no table of a study
    "tracking.log_model=false",
    "tracking.system_metrics=false",
    "crop.number=4",
    "crop.stride=16",
    "split.k=3",
    "split.folds=0",  # left out for study `window`, whose arms split in different ways: there all folds are pooled
)
TINY_WINDOW = {  # by source; the small raw files are those of conftest.py
    "table": (
        "crop.size=3",
        "window.suggested.crop_px=3",  # the size of a tile, which need be no multiple of 2**depth
        "window.suggested.block_px=[8,8]",
        "split.block=[8,8]",
        "split.guard_px=1",
    ),
    "patches": (),  # whole tiles of nine places
    "osse": (  # three composites of 48 x 48 cells, the same for all studies, so that they are built once
        "window.name=tiny",
        "window.grid.bounds=[-60000.0,2658000.0,132000.0,2850000.0]",
        "window.period.end=2019-06-25",
        "window.simulation.days_per_period=4",
        "window.footprint_weights=1",
        "crop.size=12",
        "window.suggested.crop_px=12",
        "split.block=[16,16]",
    ),
}


def composed(*words: str) -> DictConfig:
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return compose("train", list(words), return_hydra_config=True)


@functools.cache
def axes(study: str) -> list[tuple[str, list[str]]]:
    """The choices that a study sweeps over."""
    params = composed(f"experiment={study}").hydra.sweeper.params or {}
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    swept = [override for override in overrides if override.is_discrete_sweep()]
    return [(override.get_key_element(), list(override.sweep_string_iterator())) for override in swept]


def tiny_sweep(study: str) -> tuple[list[str], list[DictConfig]]:
    """Words that make a study tiny, and its jobs: of the first axis the first and last choice, of others the first."""
    swept = {key: [choices[0]] for key, choices in axes(study)}
    for key, choices in axes(study)[:1]:
        swept[key] = list(dict.fromkeys([choices[0], choices[-1]]))
    jobs = [
        composed(f"experiment={study}", *(f"{key}={choice}" for key, choice in zip(swept, job, strict=True)))
        for job in product(*swept.values())
    ]
    words = [
        word
        for word in (*TINY, *TINY_WINDOW[jobs[0].window.source])
        if all(OmegaConf.select(job, word.split("=")[0], default=...) is not ... for job in jobs)
    ]
    return [*(f"{key}={','.join(choices)}" for key, choices in swept.items()), *words], jobs


@pytest.fixture(scope="module")
def cubes(tiny_cube_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the studies' cubes, with the files that the tiny cube was simulated from."""
    folder = tmp_path_factory.mktemp("cubes")
    shutil.copytree(tiny_cube_path.parent / "raw" / "tiny", folder / "raw" / "tiny")
    return folder


def trained(job: DictConfig) -> bool:
    """Whether a job has epochs, and a part to validate them on."""
    network = job.model.name in ("unet", "sifnet", "cnn_dense")
    return network and job.split.name != "legacy" and job.split.get("validation_share", 1) > 0


@pytest.mark.parametrize("name", STUDIES)
def test_a_study(workplace: Workplace, raw: Path, cubes: Path, tmp_path: Path, name: str) -> None:
    from mlflow import MlflowClient

    words, jobs = tiny_sweep(name)
    sweep = tmp_path / "sweep"
    workplace.main(
        "-m", f"experiment={name}", *workplace.places, f"paths.raw={raw}", f"paths.data={cubes}",
        f"tracking.experiment={name}", f"hydra.sweep.dir={sweep}", *words,
    )  # fmt: skip
    client = MlflowClient(tracking_uri=workplace.tracking_uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert all(run.info.status == "FINISHED" for run in runs)
    (parent,) = (run for run in runs if run.data.tags.get("sweep") == "parent")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(jobs)
    folds = [run for run in runs if run.data.tags.get("mlflow.parentRunId") in {c.info.run_id for c in children}]
    pools = [run for run in children if run.data.params.get("split.folds") == "all"]
    assert len(folds) == sum(int(run.data.params["split.k"]) for run in pools)
    assert len(runs) == 1 + len(children) + len(folds)
    assert {run.data.tags["study"] for run in children} == {name}

    study = OmegaConf.to_container(jobs[0].study, resolve=True)
    assert isinstance(study, dict)
    table = json.loads((sweep / f"{name}.json").read_text())
    assert table["study"] == study | {"title": table["study"]["title"]}, "a title may name values of the configuration"
    assert f"experiment={name}" in parent.data.tags["mlflow.note.content"]
    assert f"{name}.json" in [file.path for file in client.list_artifacts(parent.info.run_id)]
    scores = {row["arm"]: {key: row[key] for key in ("r2", "mae", "rmse")} for row in table["rows"]}
    assert json.loads((sweep / "metrics.json").read_text()) == scores
    with (sweep / "arms.csv").open() as arms, (sweep / "curves.csv").open() as curves:
        listed, points = list(csv.DictReader(arms)), list(csv.DictReader(curves))
    assert {row.pop("arm"): {key: float(value) for key, value in row.items()} for row in listed} == scores
    assert all(float(point["val/rmse"]) > 0 and point["epoch"] == "0" for point in points)
    rows = {row["arm"]: row for row in table["rows"]}
    assert {point["arm"] for point in points} == {arm for job, arm in zip(jobs, rows, strict=True) if trained(job)}
    assert set(rows) == {run.data.tags["arm"] for run in children}
    assert len(rows) == len(jobs) and all(row["runs"] == 1 for row in rows.values())
    for arm in set(study["reference"]) & set(rows):
        assert {key: rows[arm][f"reference_{key}"] for key in study["reference"][arm]} == study["reference"][arm]
    for job, row in zip(jobs, table["rows"], strict=True):
        legacy = job.protocol == "legacy"
        assert (row["r2_positions"] is not None) == bool(row["findings"]) == legacy
        difference = bool(legacy and job.features.legacy.difference)
        assert ("target_derived_predictor" in row["findings"]) == difference


@pytest.mark.parametrize("name", STUDIES)
def test_arms_have_names_of_their_own_and_the_baseline_is_one_of_them(name: str) -> None:
    arms = list(_arms(name))
    assert len(set(arms)) == len(arms)
    baseline = composed(f"experiment={name}").study.baseline
    assert baseline is None or baseline in arms


def _arms(study: str) -> Iterator[str]:
    """Names of all arms of a study; repetitions (seeds, folds) are no arms. Composing every job would take a minute."""
    swept = [(key, choices) for key, choices in axes(study) if key not in ("seed", "split.folds")]
    cfg = composed(f"experiment={study}")
    OmegaConf.set_struct(cfg, False)
    named = OmegaConf.to_container(cfg).get("arm")  # as written, with its ${...}
    for job in product(*(choices for _, choices in swept)):
        cfg.arm = named
        for (key, _), choice in zip(swept, job, strict=True):
            if key.startswith("+experiment/"):
                cfg.arm = _written("experiments", key.split("/")[1], choice).get("arm", named)
            elif (PROJECT_ROOT / "conf" / key).is_dir():
                cfg[key] = _written("conf", key, choice)
            else:
                OmegaConf.update(cfg, key, yaml.safe_load(choice))
        yield cfg.arm or f"{cfg.model.name} {cfg.features.name}"


def _written(*place: str) -> dict[str, Any]:
    found = yaml.safe_load(PROJECT_ROOT.joinpath(*place).with_suffix(".yaml").read_text())
    assert isinstance(found, dict)
    return found
