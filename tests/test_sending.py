"""A tracking server that is away: training goes on, runs are kept, and one command sends them, nothing twice."""

from __future__ import annotations

import contextlib
import json
import runpy
import select
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from sifscale.config import PROJECT_ROOT, SendConfig, Tracking, validate
from sifscale.sending import send
from sifscale.tracking import PARENT_VARIABLE, RunLog, children, client, end_parent, finished, run_log, start_parent

if TYPE_CHECKING:
    from conftest import CopyTo, Workplace


@dataclass
class Door:
    """Stands before a server; closed, nobody is there: connections are refused, and open ones end."""

    server_port: int
    port: int
    _doorman: socketserver.ThreadingTCPServer | None = None
    _open: list[socket.socket] = field(default_factory=list)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        door = self

        class Passing(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", door.server_port)) as inside:
                    ends = {self.request: inside, inside: self.request}
                    door._open += ends
                    with contextlib.suppress(OSError, ValueError):  # ValueError: closed while it is waited for
                        while True:
                            for source in select.select(list(ends), [], [])[0]:
                                data = source.recv(65536)
                                if not data:
                                    return
                                ends[source].sendall(data)

        if self._doorman is None:
            socketserver.ThreadingTCPServer.allow_reuse_address = True
            self._doorman = socketserver.ThreadingTCPServer(("127.0.0.1", self.port), Passing)
            self._doorman.daemon_threads = True
            threading.Thread(target=self._doorman.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        if self._doorman:
            self._doorman.shutdown()
            self._doorman.server_close()
            self._doorman = None
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def door_of_module(mlflow_port: int) -> Door:
    return Door(mlflow_port, free_port())


@pytest.fixture
def door(door_of_module: Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """The open door of the server; who finds it closed does not try for long."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    door_of_module.open()
    yield door_of_module
    door_of_module.close()


@pytest.fixture(scope="module")
def unsent(tmp_path_factory: pytest.TempPathFactory, copy_of_empty_database: CopyTo) -> Path:
    """One local store for all tests."""
    return copy_of_empty_database(tmp_path_factory.mktemp("unsent") / "unsent.db")


@pytest.fixture
def tracking(door: Door, unsent: Path, request: pytest.FixtureRequest) -> Tracking:
    """An experiment of the test's own on the server."""
    return Tracking(uri=door.uri, experiment=request.node.name, artifacts="", unsent=str(unsent))


def send_config(unsent: Path, uri: str | None = None) -> SendConfig:
    paths = {"raw": "", "data": "", "output": ""}
    values = {"paths": paths, "tracking": {"uri": uri, "unsent": str(unsent)}, "progress": False}
    return validate(values, SendConfig)


def on_server(tracking: Tracking) -> list[Run]:
    mlflow = client(tracking)
    found = mlflow.get_experiment_by_name(tracking.experiment)
    return list(mlflow.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])) if found else []


def files(tracking: Tracking, run: Run, folder: str = "") -> set[str]:
    mlflow = client(tracking)
    return {file.path for file in mlflow.list_artifacts(run.info.run_id, folder) if not file.is_dir}


def history(tracking: Tracking, run: Run, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client(tracking).get_metric_history(run.info.run_id, name)]


LONG = "x" * 20_000


def begin(tracker: RunLog, folder: Path) -> None:
    """What a run logs at its start."""
    tracker.parameters({"model": {"name": "unet"}, "channels": LONG})
    part = Dataset("window train", "digest", "local", "cube.zarr", profile="{}")
    tracker.inputs([DatasetInput(part, [InputTag("mlflow.data.context", "train")])])
    tracker.metrics({"val/rmse": 0.5}, step=0)
    (folder / "start.txt").write_text("start")
    tracker.artifact(folder / "start.txt")


def finish(tracker: RunLog, folder: Path) -> None:
    """What a run logs at its end."""
    tracker.metrics({"val/rmse": 0.25, "undefined": float("nan")}, step=1)
    tracker.tags({"arm": "unet lbp"})
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"weights")
    tracker.artifacts(folder / "model", "model")


def check_whole(tracking: Tracking, run: Run) -> None:
    """The run on the server is as if the server had been there all the time."""
    assert run.info.status == "FINISHED" and run.data.tags["arm"] == "unet lbp"
    assert "".join(run.data.params[f"channels/{i}"] for i in range(1, 5)) == LONG
    assert run.data.params["model.name"] == "unet"
    assert history(tracking, run, "val/rmse") == [(0, 0.5), (1, 0.25)]
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["window train"]
    assert run.inputs.dataset_inputs[0].tags[0].value == "train"
    assert files(tracking, run) == {"start.txt"} and files(tracking, run, "model") == {"model/weights"}
    assert not {name for name in run.data.tags if name.startswith("sifscale.")} - {"sifscale.unsent_run"}


def test_nothing_is_kept_here_while_the_server_is_there(tracking: Tracking, unsent: Path, tmp_path: Path) -> None:
    with run_log(tracking, "there") as tracker:
        begin(tracker, tmp_path)
        finish(tracker, tmp_path)
        assert not tracker.is_unsent
    (run,) = on_server(tracking)
    check_whole(tracking, run)
    assert run.info.run_name == "there" and send(send_config(unsent)) == 0


def test_a_run_without_server_is_sent_later_and_once(
    tracking: Tracking, door: Door, unsent: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    door.close()
    with run_log(tracking, "away", tags={"mlflow.note.content": "notes"}) as tracker:
        began = time.time()
        begin(tracker, tmp_path)
        finish(tracker, tmp_path)
        assert tracker.is_unsent
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (said,) = [line for line in warnings if "tracking server" in line]
    assert said.endswith(f"python send.py tracking.unsent={unsent}") and "\n" not in said
    assert "(Connection refused)" in said
    time.sleep(0.01)
    ended = time.time()
    with pytest.raises(ValueError, match=rf"^{door.uri}: run \w+ cannot be sent, .*; 0 of 1 runs are sent.*$"):
        send(send_config(unsent))
    door.open()
    assert on_server(tracking) == []
    assert [send(send_config(unsent)) for _ in range(2)] == [1, 0]
    (run,) = on_server(tracking)
    check_whole(tracking, run)
    assert run.info.run_name == "away" and run.data.tags["mlflow.note.content"] == "notes"
    assert run.info.start_time / 1000 <= began and began <= run.info.end_time / 1000 <= ended


@pytest.mark.parametrize("moment", ["before the start", "in the middle", "before the end"])
def test_a_run_whose_server_is_lost_is_completed_and_not_doubled(
    tracking: Tracking, door: Door, unsent: Path, tmp_path: Path, moment: str
) -> None:
    with run_log(tracking, "lost") as tracker:
        if moment == "before the start":
            door.close()
        begin(tracker, tmp_path)
        if moment == "in the middle":
            door.close()
        finish(tracker, tmp_path)
        door.close()
    door.open()
    assert on_server(tracking)[0].info.status == "RUNNING"
    assert send(send_config(unsent)) == 1
    (run,) = on_server(tracking)
    check_whole(tracking, run)
    assert run.info.run_id == tracker.run_id and run.info.run_name == "lost"


@pytest.mark.parametrize("step", ["create_run", "log_batch", "log_inputs", "log_artifact", "set_terminated", "set_tag"])
def test_sending_that_is_killed_goes_on_without_doubling(
    tracking: Tracking, door: Door, unsent: Path, tmp_path: Path, step: str
) -> None:
    door.close()
    with run_log(tracking, "killed") as tracker:
        begin(tracker, tmp_path)
        finish(tracker, tmp_path)
    door.open()

    def then_die(*args: Any, **kwargs: Any) -> None:
        done(*args, **kwargs)
        raise KeyboardInterrupt

    done = getattr(MlflowClient, step)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, step, then_die)
        send(send_config(unsent))
    send(send_config(unsent))
    (run,) = on_server(tracking)
    check_whole(tracking, run)
    assert send(send_config(unsent)) == 0


def test_children_find_their_parent_wherever_each_of_them_began(
    tracking: Tracking, door: Door, unsent: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PARENT_VARIABLE, "")  # so that what is set here ends here
        door.close()
        parent = start_parent(tracking, "sweep", ["seed=0,1"])
        with run_log(tracking, "child of nobody"):
            pass
        door.open()
        with run_log(tracking, "child on the server"):
            door.close()
        end_parent(tracking, parent, "FAILED")
    door.open()
    assert send(send_config(unsent)) == 3
    runs = {run.info.run_name: run for run in on_server(tracking)}
    assert set(runs) == {"sweep", "child of nobody", "child on the server"}
    assert runs["sweep"].info.status == "FAILED" and runs["sweep"].data.tags["sweep"] == "parent"
    there = runs["sweep"].info.run_id
    assert {run.info.run_name for run in children(tracking, there)} == set(runs) - {"sweep"}
    assert all(runs[name].data.tags[MLFLOW_PARENT_RUN_ID] == there for name in set(runs) - {"sweep"})


def test_a_parent_that_lost_its_server_ends_with_its_children(tracking: Tracking, door: Door, unsent: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PARENT_VARIABLE, "")
        parent = start_parent(tracking, "sweep", [])
        door.close()
        with run_log(tracking, "child"):
            pass
        end_parent(tracking, parent, "FINISHED")
    with pytest.raises(ValueError, match=r"^tracking\.uri: runs cannot be read, .*start the server \(found "):
        finished(tracking, "")
    door.open()
    send(send_config(unsent))
    sweep, child = on_server(tracking)
    assert (sweep.info.run_id, sweep.info.status) == (parent, "FINISHED")
    assert child.data.tags[MLFLOW_PARENT_RUN_ID] == parent


def test_a_run_that_has_not_ended_is_sent_as_far_as_it_is_and_again(
    tracking: Tracking, door: Door, unsent: Path, tmp_path: Path
) -> None:
    door.close()
    with run_log(tracking, "long") as tracker:
        begin(tracker, tmp_path)
        door.open()
        assert send(send_config(unsent)) == 1
        (run,) = on_server(tracking)
        assert run.info.status == "RUNNING" and history(tracking, run, "val/rmse") == [(0, 0.5)]
        finish(tracker, tmp_path)
    assert send(send_config(unsent)) == 1
    (run,) = on_server(tracking)
    check_whole(tracking, run)


def test_a_run_goes_on_where_it_is_kept_or_was_sent_to(
    tracking: Tracking, door: Door, unsent: Path, tmp_path: Path
) -> None:
    door.close()
    with pytest.raises(RuntimeError), run_log(tracking, "stopped") as tracker:
        begin(tracker, tmp_path)
        raise RuntimeError
    with pytest.raises(RuntimeError), run_log(tracking, "stopped", resume=tracker.run_id) as again:
        assert again.is_unsent
        raise RuntimeError
    door.open()
    assert send(send_config(unsent)) == 1
    assert [run.info.status for run in on_server(tracking)] == ["FAILED"]
    with run_log(tracking, "stopped", resume=tracker.run_id) as again:
        assert not again.is_unsent
        finish(again, tmp_path)
    (run,) = on_server(tracking)
    check_whole(tracking, run)


def test_a_fault_of_ours_is_no_server_that_is_away(tracking: Tracking, unsent: Path) -> None:
    with pytest.raises(FileNotFoundError), run_log(tracking, "faulty") as tracker:
        tracker.artifact(Path("absent.txt"))
    send(send_config(unsent))
    assert [run.info.status for run in on_server(tracking)] == ["FAILED"]


def test_a_training_without_server_ends_well_and_its_model_is_served_from_there_later(
    workplace: Workplace, tracking: Tracking, door: Door, unsent: Path, tmp_path: Path
) -> None:
    door.close()
    words = [f"tracking.uri={door.uri}", f"tracking.unsent={unsent}", "tracking.experiment=away", "model=bicubic"]
    quick = ["evaluation.ridge=null", "evaluation.details=false", "evaluation.figures=false", "window.truth=null"]
    folder = workplace.train(tmp_path / "run", *words, *quick)
    metrics = json.loads((folder / "metrics.json").read_text())

    door.open()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["send.py", f"tracking.unsent={unsent}", f"hydra.run.dir={tmp_path / 'send'}"])
        runpy.run_path(str(PROJECT_ROOT / "send.py"), run_name="__main__")
    away = tracking.model_copy(update={"experiment": "away"})
    (run,) = on_server(away)
    assert run.info.status == "FINISHED" and {name: run.data.metrics[name] for name in metrics} == metrics
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(door.uri)
    try:
        model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    finally:
        mlflow.set_tracking_uri(before)
    assert np.isfinite(model.predict(model.input_example)).all()


def test_another_sending_is_waited_for(unsent: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    unsent.touch()
    with FileLock(f"{unsent.resolve()}.sending"), pytest.raises(ValueError, match=r"another send\.py is at work"):
        send(send_config(unsent))


def test_nothing_to_send_is_no_fault(tmp_path: Path) -> None:
    assert send(send_config(tmp_path / "unsent.db")) == 0
    assert not list(tmp_path.iterdir())
