"""Sweeps that fail, are stopped or killed: nothing finished is lost or repeated, and MLflow says what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from sifscale import processes
from sifscale.continuing import config_hash
from sifscale.tracking import children, close_dead, end_parent, run_log, start_parent

if TYPE_CHECKING:
    from conftest import Workplace

PARENT = "mlflow.parentRunId"
SMALL = (  # tables of 24 x 24 cells
    "window=minnesota_2019",
    "split.k=3",
    "split.block=[8,8]",
    "split.guard_px=1",
    "crop.size=3",
    "crop.number=4",
    "features=base",
    "trainer.epochs=1",
    "trainer.threads=1",
    "trainer.progress=false",
    "evaluation.details=false",
    "evaluation.figures=false",
    "evaluation.ridge=null",
    "tracking.system_metrics=false",
    "tracking.log_model=false",
)


def words(workplace: Workplace, raw: Path, folder: Path, experiment: str, *more: str) -> list[str]:
    """A small sweep's command line; cubes and runs are those of all tests, the experiment is its own."""
    places = [*workplace.places, f"paths.raw={raw}", f"tracking.experiment={experiment}"]
    return ["-m", *places, *SMALL, f"hydra.sweep.dir={folder}", *more]


def runs_of(workplace: Workplace, experiment: str) -> tuple[list[Run], list[Run]]:
    """Parents of an experiment's sweeps and all other runs, oldest first."""
    client = MlflowClient(tracking_uri=workplace.tracking_uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])
    parents = [run for run in runs if run.data.tags.get("sweep") == "parent"]
    return parents, [run for run in runs if run not in parents]


def rows(folder: Path, name: str = "sweep") -> list[dict[str, object]]:
    table: list[dict[str, object]] = json.loads((folder / f"{name}.json").read_text())["rows"]
    return table


def test_a_sweep_started_again_runs_only_what_is_new(
    workplace: Workplace, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sweep(folder: str, *more: str) -> None:
        workplace.main(*words(workplace, raw, tmp_path / folder, "again", *more))

    sweep("first", "model=nearest", "seed=0,1", "split.folds=0")
    (first,), jobs = runs_of(workplace, "again")
    assert first.info.run_name == "sweep of seed" and len(jobs) == 2

    capsys.readouterr()
    sweep("second", "model=nearest,bilinear", "seed=0,1", "split.folds=0", "dask.workers=1")
    parents, jobs = runs_of(workplace, "again")
    assert [run.info.status for run in parents] == ["FINISHED"] * 2 and len(jobs) == 4
    assert capsys.readouterr().out.count("not repeated") == 2
    adopted = {key: value for key, value in parents[1].data.tags.items() if key.startswith("adopted.")}
    assert adopted == {f"adopted.{number}": run.info.run_id for number, run in enumerate(jobs[:2])}
    tracking = workplace.config("tracking.experiment=again").tracking
    assert [run.info.run_id for run in children(tracking, parents[1].info.run_id)] == [run.info.run_id for run in jobs]
    arms = [(row["arm"], row["runs"]) for row in rows(tmp_path / "second")]
    assert arms == [("nearest base", 2), ("bilinear base", 2)]
    assert rows(tmp_path / "second")[0] == rows(tmp_path / "first")[0]

    sweep("third", "model=nearest", "seed=0", "split.folds=0", "again=true")
    assert len(runs_of(workplace, "again")[1]) == 5


def test_a_job_over_all_folds_counts_when_all_are_there(workplace: Workplace, raw: Path, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        workplace.main(*words(workplace, raw, tmp_path / folder, "all folds", "model=nearest", "split.folds=all"))
    parents, jobs = runs_of(workplace, "all folds")
    assert len(parents) == 2 and len(jobs) == 4, "one run that pools three folds"
    assert rows(tmp_path / "first") == rows(tmp_path / "second")


def test_a_job_that_fails_stops_no_other(
    workplace: Workplace, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """99 folds are more than the field has blocks, which only the data show."""
    with pytest.raises(SystemExit) as stop:
        workplace.main(*words(workplace, raw, tmp_path, "failing", "model=nearest", "split.k=99,3", "seed=0,1"))
    assert stop.value.code == 1
    (parent,), jobs = runs_of(workplace, "failing")
    assert parent.info.status == "FAILED"
    lines = parent.data.tags["failed_jobs"].splitlines()
    assert [line.partition(":")[0] for line in lines] == ["job 0 (split.k=99 seed=0)", "job 1 (split.k=99 seed=1)"]
    out = capsys.readouterr().out
    assert all(f"failed: {line}" in out for line in lines)
    assert [run.info.status for run in jobs] == ["FINISHED"] * 2
    assert [row["runs"] for row in rows(tmp_path)] == [2]


def test_every_job_is_checked_before_the_first_starts(
    workplace: Workplace, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in (["check=true"], []):
        with pytest.raises(SystemExit) as stop:
            workplace.main(
                *words(workplace, raw, tmp_path / "sweep", "typos", "model=nearest,bilinea", "crop.size=3,0", *more)
            )
        assert stop.value.code == 1
        unknown, size = capsys.readouterr().err.splitlines()
        assert unknown.startswith("error: jobs 1, 3 (model=bilinea): ") and "Could not find 'model/bilinea'" in unknown
        assert size == "error: job 2 (crop.size=0 model=nearest): crop.size: must be greater than 0 (found 0)"
    assert not (tmp_path / "sweep").exists()
    with pytest.raises(SystemExit) as stop:
        workplace.main(*words(workplace, raw, tmp_path / "sweep", "typos", "model=nearest", "seed=0,1", "check=true"))
    assert stop.value.code == 0
    assert capsys.readouterr().out.splitlines() == [f"ok: job {i} (seed={i}): nearest base" for i in (0, 1)]
    assert MlflowClient(tracking_uri=workplace.tracking_uri).get_experiment_by_name("typos") is None


SWEPT = ("model=nearest,bilinear", "seed=0,1", "split.folds=1")


@pytest.fixture(scope="module")
def unbroken(workplace: Workplace, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """Rows of a sweep that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    workplace.main(*words(workplace, raw, folder, "unbroken", *SWEPT))
    return rows(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_goes_on_where_it_was(
    workplace: Workplace, raw: Path, tmp_path: Path, unbroken: list[dict[str, object]], number: signal.Signals
) -> None:
    name = f"stopped by {number.name}"
    process = workplace.start(*words(workplace, raw, tmp_path / "first", name, *SWEPT))
    while process.is_alive() and not (tmp_path / "first" / "1" / "run_id").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (-9 if number == signal.SIGKILL else 128 + number)
    (parent,), jobs = runs_of(workplace, name)
    before = {run.info.run_id for run in jobs if run.info.status == "FINISHED"}
    assert 1 <= len(before) < 4
    if number == signal.SIGTERM:
        assert {run.info.status for run in [parent, *jobs] if run.info.run_id not in before} == {"KILLED"}

    workplace.main(*words(workplace, raw, tmp_path / "second", name, *SWEPT))
    parents, jobs = runs_of(workplace, name)
    assert [run.info.status for run in parents] == ["KILLED", "FINISHED"]
    finished = {run.info.run_id for run in jobs if run.info.status == "FINISHED"}
    assert before < finished and len(finished) == 4 and {run.info.status for run in jobs} <= {"FINISHED", "KILLED"}
    assert rows(tmp_path / "second") == unbroken


def test_the_hash_of_a_configuration_follows_its_results_only(workplace: Workplace) -> None:
    def hashed(*more: str) -> str:
        return config_hash(workplace.config(*more))

    same = ["check=true", "paths.output=/elsewhere", "trainer.threads=2", "tracking.experiment=other", "dask.workers=7"]
    assert hashed(*same, "again=true", "trainer.progress=true") == hashed()
    other = ["seed=1", "trainer.learning_rate=0.5", "arm=named", "crop.number=9", "split.folds=1", "level=fine"]
    assert len({hashed(), *(hashed(word) for word in other)}) == len(other) + 1


def test_only_runs_whose_process_is_gone_are_closed(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = workplace.config("tracking.experiment=dead").tracking
    living = start_parent(tracking, "living", [])
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    here = processes.this_process().split()[0]
    monkeypatch.setattr("sifscale.tracking.this_process", lambda: f"{here} {ended.pid} 1.00")
    dead = start_parent(tracking, "dead", [])
    monkeypatch.setattr("sifscale.tracking.this_process", lambda: f"another-machine {ended.pid} 1.00")
    elsewhere = start_parent(tracking, "elsewhere", [])
    assert [run.info.run_id for run in close_dead(tracking)] == [dead]
    client = MlflowClient(tracking_uri=workplace.tracking_uri)
    assert [client.get_run(run).info.status for run in (living, dead, elsewhere)] == ["RUNNING", "KILLED", "RUNNING"]
    end_parent(tracking, living, "FINISHED")


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (OSError, "FAILED")]
)
def test_a_run_says_whether_it_failed_or_was_stopped(
    workplace: Workplace, error: type[BaseException], status: str
) -> None:
    tracking = workplace.config("tracking.experiment=ends").tracking
    with pytest.raises(error), run_log(tracking, "run", watch=False) as tracker:
        raise error
    assert MlflowClient(tracking_uri=workplace.tracking_uri).get_run(tracker.run_id).info.status == status
