"""What a run leaves in MLflow is complete and reads well; the registry's champion is the one that validates best."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from sifscale.config import ConfigError, Tracking
from sifscale.run_record import run_name
from sifscale.system_metrics import SystemMetrics
from sifscale.tracking import PARAMETER_LIMIT, client, fitting, flat, found, run_log
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

QUICK = ("evaluation.ridge=null", "evaluation.details=false", "evaluation.figures=false", "window.truth=null")


def tracking(workplace: Workplace, experiment: str, **more: object) -> Tracking:
    place = str(workplace.folder / "artifacts")
    return Tracking(uri=workplace.tracking_uri, experiment=experiment, artifacts=place).model_copy(update=more)


@given(st.text("abc\n", max_size=5), st.integers(0, 3 * PARAMETER_LIMIT))
def test_the_parts_of_a_long_value_join_to_it(text: str, length: int) -> None:
    value = (text or "x") * length
    parts = fitting("channels", value)
    assert "".join(parts.values()) == value and all(len(part) <= PARAMETER_LIMIT for part in parts.values())
    assert set(parts) == {"channels"} if len(value) <= PARAMETER_LIMIT else "channels/1" in parts


def test_no_parameter_is_cut(workplace: Workplace) -> None:
    values = {"channels": [f"channel_{i}" for i in range(2000)], "text": "é" * PARAMETER_LIMIT, "model": {"depth": 3}}
    with run_log(tracking(workplace, "long values"), "long") as tracker:
        tracker.parameters(values)
        tracker.parameters(values)  # as a resumed run does
    params = MlflowClient(workplace.tracking_uri).get_run(tracker.run_id).data.params
    parts = sorted((name for name in params if name.startswith("channels/")), key=lambda name: int(name.split("/")[1]))
    assert json.loads("".join(params[name] for name in parts)) == values["channels"]
    assert params["text"] == values["text"] and params["model.depth"] == "3"


def test_a_training_run_says_what_it_is_and_what_it_read(workplace: Workplace, tmp_path: Path) -> None:
    words = ("model=bicubic", "split.folds=1", "tracking.experiment=said", *QUICK)
    folder = workplace.train(tmp_path, *words)
    run = MlflowClient(workplace.tracking_uri).get_run((folder / "run_id").read_text())
    assert run.info.run_name == "bicubic base, minnesota_osse, seed 0, fold 1"
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith(f"**{run.info.run_name}**\n\n```\npython train.py ") and " model=bicubic " in note
    assert f"| commit | `{run.data.tags['git_commit']}` |" in note and "| window | minnesota_osse |" in note
    assert {"arm", "study", "protocol", "window", "features", "model", "git_commit", "cube_hash"} - set(
        run.data.tags
    ) == {"study"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert {key: run.data.params[key] for key in flat(config) if key != "study"}.items() <= flat(config).items()

    cube = open_or_build(workplace.config(*words))
    datasets = {part.tags[0].value: part.dataset for part in run.inputs.dataset_inputs}
    assert set(datasets) == {"train", "validation", "test"}
    for part, dataset in datasets.items():
        assert dataset.name == f"minnesota_osse {part}" and cube.hash.startswith(dataset.digest)
        assert json.loads(dataset.source) == {"uri": str(cube.path)}
        profile = json.loads(dataset.profile)
        assert (profile["samples"], profile["shape"], profile["channels"]) == (2, [48, 48], 5)
        assert profile["crops"] > 0 and 0 < profile["pixels"] < 2 * 48 * 48
    assert run.data.metrics["test/rmse"] > 0
    assert 0 <= run.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert "system metrics" not in {thread.name for thread in threading.enumerate()}


def test_names_of_runs_tell_them_apart(workplace: Workplace) -> None:
    names = {
        run_name(workplace.config(*words))
        for words in [(), ("seed=1",), ("split.folds=1",), ("features=lbp",), ("model=ridge",), ("arm=plain",)]
    }
    names.add(run_name(workplace.config("split=time")))
    names.add(run_name(workplace.config("split.folds=all")))
    assert {"unet base, minnesota_osse, seed 0, fold 0", "plain, minnesota_osse, seed 0, fold 0"} < names
    assert {"unet base, minnesota_osse, seed 0", "unet base, minnesota_osse, seed 0, all folds"} < names
    assert len(names) == 8


def test_system_metrics_come_by_time_and_end_with_the_block() -> None:
    samples: list[tuple[int, dict[str, float]]] = []

    def write(values: Mapping[str, float], step: int) -> None:
        samples.append((step, dict(values)))

    with SystemMetrics(write, time.time() - 100, interval_s=0.01):
        while len(samples) < 3:
            time.sleep(0.01)
    count = len(samples)
    time.sleep(0.05)
    assert len(samples) == count and all(step >= 100 for step, _ in samples)
    names = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "disk_usage_percentage"}
    assert {f"system/{name}" for name in names} <= set(samples[0][1])


def test_a_short_run_has_one_sample_and_a_store_that_fails_stops_no_run(caplog: pytest.LogCaptureFixture) -> None:
    steps: list[int] = []
    with SystemMetrics(lambda values, step: steps.append(step), time.time()):
        pass
    assert len(steps) == 1

    def fail(values: Mapping[str, float], step: int) -> None:
        raise OSError("disk full")

    with SystemMetrics(fail, time.time(), interval_s=0.01):
        time.sleep(0.05)
    assert [record.getMessage() for record in caplog.records] == ["no more system metrics: disk full"]


def test_the_champion_is_the_model_that_validates_best_on_the_same_data(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("tracking.register_as=best", "tracking.experiment=champions", *QUICK)
    registry = MlflowClient(workplace.tracking_uri)

    def train(*more: str) -> tuple[str, str]:
        workplace.train(tmp_path / str(len(list(tmp_path.iterdir()))), *words, *more)
        (said,) = [line for line in capsys.readouterr().out.splitlines() if "[sifscale.champion]" in line]
        return said, str(registry.get_model_version_by_alias("best", "champion").version)

    said, champion = train("model=nearest")
    assert champion == "1" and "best: registered as version 1, val/rmse " in said
    assert said.endswith("it is the champion now: models:/best@champion")
    said, champion = train("model=ridge")
    assert champion == "2" and ", before version 1 with " in said
    said, champion = train("model=nearest")
    assert champion == "2" and "champion stays version 2" in said
    said, champion = train("model=ridge", "split.folds=1")
    assert champion == "2" and "validated on other data" in said
    said, champion = train("model=nearest", "protocol=legacy", "split=legacy")
    assert champion == "2" and "best: not registered, since only honest runs" in said
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(workplace.tracking_uri)
    try:
        model = mlflow.pyfunc.load_model("models:/best@champion")
    finally:
        mlflow.set_tracking_uri(before)
    assert model.predict(model.input_example).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("words", [("tracking.log_model=false",), ("split.folds=all",)])
def test_a_champion_needs_a_model_and_one_validation_part(workplace: Workplace, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^tracking\.register_as: must be null .* \(found 'auto'\)$"):
        workplace.config("tracking.register_as=auto", *words)


@pytest.mark.parametrize("name", ["a/b", "a:b", "''"])
def test_a_name_that_the_registry_cannot_take_is_refused(workplace: Workplace, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^tracking\.register_as: .*\(found '.*'\)$"):
        workplace.config(f"tracking.register_as={name}")


def test_a_run_stopped_while_it_is_written_says_so_and_leaves_the_database_free(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement cut short kept its lock, for which the run's end then waited ten minutes, in vain."""
    monkeypatch.setattr("sifscale.tracking_store.BUSY_S", 1)
    place = tracking(workplace, "stopped while written")

    def stop(connection: Connection, cursor: object, statement: str, *more: object) -> None:
        if statement.startswith("INSERT INTO metrics"):
            signal.raise_signal(signal.SIGINT)

    event.listen(Engine, "after_cursor_execute", stop)
    try:
        with pytest.raises(KeyboardInterrupt), run_log(place, "stopped", watch=False) as tracker:
            tracker.metrics({"loss": 1.0})
    finally:
        event.remove(Engine, "after_cursor_execute", stop)
    run = MlflowClient(workplace.tracking_uri).get_run(tracker.run_id)
    assert run.info.status == "KILLED" and run.data.metrics == {"loss": 1.0}


@pytest.mark.parametrize("uri", ["htp://server", "sqlite:////proc/none/ml.db"])
def test_a_uri_that_cannot_be_used_is_one_line(uri: str) -> None:
    with pytest.raises(ValueError, match=rf"^tracking\.uri: cannot be opened, .* \(found '{uri}'\)$"):
        client(Tracking(uri=uri, experiment="", artifacts=""))


def test_jobs_that_start_at_once_share_a_fresh_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    fresh = Tracking(uri=uri, experiment="fresh", artifacts=str(tmp_path / "artifacts"))

    def start(number: int) -> None:
        with run_log(fresh, f"job {number}"):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, range(8)))
    runs = found(fresh, "attributes.status = 'FINISHED'")
    assert {run.info.run_name for run in runs} == {f"job {number}" for number in range(8)}
