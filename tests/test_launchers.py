"""Jobs of a sweep in processes of their own: joblib, submitit, and a database that many processes open at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from joblib import cpu_count
from mlflow import MlflowClient
from omegaconf import DictConfig, OmegaConf

from sifscale.config import PROJECT_ROOT
from sifscale.jobs import share_cores

if TYPE_CHECKING:
    from conftest import Workplace

OPTIONS = {"joblib": JobLibLauncherConf, "submitit_local": LocalQueueConf, "submitit_slurm": SlurmQueueConf}
TINY_TABLES = (  # tables of 24 x 24 cells
    "window=minnesota_2019",
    "split.k=3",
    "split.block=[8,8]",
    "split.guard_px=1",
    "crop.size=3",
    "features=base",
    "trainer.progress=false",
    "evaluation.details=false",
    "evaluation.figures=false",
    "evaluation.ridge=null",
    "tracking.system_metrics=false",
    "tracking.log_model=false",
)
# How many processes open a new database at once; SIFSCALE_TEST_PROCESSES=100 tries a hundred, which takes 15 s.
PROCESSES = int(os.environ.get("SIFSCALE_TEST_PROCESSES", "24"))
MANY = """
import multiprocessing, sys
import alembic.command, mlflow.store.tracking.sqlalchemy_store  # here, not in each of them
from mlflow.entities import Metric
from sifscale.config import Tracking
from sifscale.tracking import client, experiment_id

folder, count = sys.argv[1], int(sys.argv[2])
tracking = Tracking(uri=f"sqlite:///{folder}/mlflow.db", experiment="many", artifacts=f"{folder}/artifacts")

def job(number):
    mlflow = client(tracking)
    run = mlflow.create_run(experiment_id(mlflow, tracking), run_name=str(number)).info.run_id
    mlflow.log_batch(run, [Metric("val/rmse", number, 0, 0)])
    mlflow.set_terminated(run)

context = multiprocessing.get_context("fork")
workers = [context.Process(target=job, args=(number,)) for number in range(count)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
sys.exit(sum(worker.exitcode != 0 for worker in workers))
"""


def composed(*words: str) -> DictConfig:
    Plugins.instance()  # a plugin's own options are known only then
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return compose("train", list(words), return_hydra_config=True)


def test_every_launcher_of_ours_is_tried() -> None:
    found = {path.stem for path in (PROJECT_ROOT / "conf" / "hydra" / "launcher").glob("*.yaml")}
    assert found == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_launcher_has_the_options_of_its_plugin(name: str) -> None:
    ours = OmegaConf.load(PROJECT_ROOT / "conf" / "hydra" / "launcher" / f"{name}.yaml")
    plugin = OmegaConf.structured(OPTIONS[name])
    OmegaConf.merge(plugin, ours)  # refuses an unknown option and a value of the wrong type
    left_to_joblib = {"backend", "require", "temp_folder", "max_nbytes", "mmap_mode"}
    assert {str(key) for key in set(plugin) - set(ours)} == (left_to_joblib if name == "joblib" else set())
    assert composed(f"hydra/launcher={name}").hydra.launcher._target_ == plugin._target_ == ours._target_


@pytest.mark.parametrize(
    ("words", "jobs", "at_once"),
    [
        (["hydra/launcher=joblib"], 100, cpu_count()),
        (["hydra/launcher=joblib"], 1, 1),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"], 100, 3),
        (["hydra/launcher=submitit_local"], 2, 2),
        (["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=1"], 2, 1),
        (["hydra/launcher=submitit_slurm"], 2, None),
        ([], 2, None),
    ],
)
def test_jobs_on_one_machine_share_its_cores(
    words: list[str], jobs: int, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "7")  # what a user has set stays
    config = composed(*words)
    threads = {"OMP_NUM_THREADS": str(max(1, cpu_count() // at_once))} if at_once else {}
    assert share_cores(config, jobs) == threads
    if "hydra/launcher=joblib" in words:
        assert config.hydra.launcher.n_jobs == at_once


@pytest.mark.parametrize(("launcher", "more"), [("joblib", ["hydra.launcher.n_jobs=2"]), ("submitit_local", [])])
def test_jobs_in_other_processes_are_one_sweep(
    workplace: Workplace, raw: Path, tmp_path: Path, launcher: str, more: list[str], capfd: Any
) -> None:
    """One of the jobs fails: the field has fewer blocks than its folds, which only the data show."""
    words = [*workplace.places, *TINY_TABLES, f"paths.raw={raw}", f"tracking.experiment={launcher}"]
    with pytest.raises(SystemExit) as stop:
        workplace.main(
            "-m", f"hydra/launcher={launcher}", *more, *words, f"hydra.sweep.dir={tmp_path}",
            "model=bilinear", "split.k=3,99", "crop.number=4",
        )  # fmt: skip
    assert stop.value.code == 1
    client = MlflowClient(tracking_uri=workplace.tracking_uri)
    experiment = client.get_experiment_by_name(launcher)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if run.data.tags.get("sweep") == "parent")
    (child,) = (run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id)
    assert (parent.info.status, child.info.status) == ("FAILED", "FINISHED")
    assert parent.data.tags["failed_jobs"].startswith("job 1 (split.k=99): ")
    assert f"failed: {parent.data.tags['failed_jobs']}" in capfd.readouterr().out
    assert (tmp_path / "sweep.json").exists() and (tmp_path / "0" / "run_id").read_text() == child.info.run_id


def test_many_processes_start_against_a_new_database(workplace: Workplace, tmp_path: Path) -> None:
    script = tmp_path / "many.py"
    script.write_text(MANY)
    process = workplace.start_script(script, str(tmp_path), str(PROCESSES))
    process.join(240)
    assert process.exitcode == 0
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = (found for found in client.search_experiments() if found.name == "many")
    runs = client.search_runs([experiment.experiment_id], max_results=2 * PROCESSES)
    assert sorted(run.data.metrics["val/rmse"] for run in runs) == list(range(PROCESSES))
