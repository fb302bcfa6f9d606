"""MLflow: one run a training, children of a sweep's parent run; parameters, metrics by epoch, artifacts, tags.

A server that is away stops no training: what it cannot take goes to a local store, and ``send.py`` sends it later.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import yaml
from lightning_utilities.core.rank_zero import rank_zero_only  # Lightning's own; by itself it loads no torch
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME

from sifscale import tracking_store as store
from sifscale.config import PROJECT_ROOT, Tracking
from sifscale.processes import has_gone, this_process, uninterrupted
from sifscale.system_metrics import SystemMetrics

# Offered here too, because who reads runs needs them.
from sifscale.tracking_store import client as client
from sifscale.tracking_store import experiment_id as experiment_id

log = logging.getLogger(__name__)

PARENT_VARIABLE = "SIFSCALE_PARENT_RUN"  # tells the jobs of a sweep, in whatever process, their parent run
ADOPTED = "adopted."  # tags of a sweep's parent: id of an earlier run by number of the job that it makes needless
PROCESS = "process"  # tag of a run: who writes it
PARAMETER_LIMIT = 6000  # characters; MLflow cuts longer values without a word

T = TypeVar("T")


class Pruned(Exception):
    """A search stopped this run as hopeless; says when, and at what value."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"model": {"widths": [16, 32]}}`` -> ``{"model.widths": "[16, 32]"}``."""
    items: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
    return items


def fitting(key: str, value: str) -> dict[str, str]:
    """A parameter as MLflow takes it: a value that is too long in parts ``key/1``, ``key/2``, ... which join to it."""
    if len(value) <= PARAMETER_LIMIT:
        return {key: value}
    starts = range(0, len(value), PARAMETER_LIMIT)
    return {f"{key}/{i}": value[start : start + PARAMETER_LIMIT] for i, start in enumerate(starts, 1)}


def git_commit() -> str:
    """Commit of the checkout, with ``+changes`` where files differ from it; ``unknown`` outside a checkout."""
    try:
        describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        call = ["git", "-C", str(PROJECT_ROOT), *describe]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def process_rank() -> int:
    """Number of this process in a distributed run (trainer=ddp), 0 for the main one, which alone writes results."""
    return int(getattr(rank_zero_only, "rank", 0))


def is_main_process() -> bool:
    """Whether this process writes results."""
    return process_rank() == 0


class RunLog:
    """One MLflow run being written. Metrics go in batches: each call costs tens of milliseconds.

    Without a client (further processes of a distributed run) everything is accepted and nothing written. Given
    ``tracking`` with a server, the first call that fails is made again on a run in the local store, and so are all
    after it; ``run_id`` stays what it was. Threads may share it. A signal waits for the end of a call: one cut short
    would leave the database locked, and nothing could say that the run was stopped.
    """

    def __init__(self, mlflow: MlflowClient | None, run_id: str, tracking: Tracking | None = None) -> None:
        self.mlflow, self.run_id, self.tracking = mlflow, run_id, tracking
        self._written = run_id  # of the run that is written: another one after the server was lost
        self._lock = threading.RLock()

    def parameters(self, config: Mapping[str, Any]) -> None:
        """The whole configuration, flattened; a value logged before (a resumed run) is left as it is."""
        run = self.call(lambda mlflow, run_id: mlflow.get_run(run_id))
        known = run.data.params if run else {}
        whole = {name: part for key, value in flat(config).items() for name, part in fitting(key, value).items()}
        items = [Param(key, value) for key, value in whole.items() if key not in known]
        for start in range(0, len(items), 100):  # MLflow takes 100 a call
            self._send(params=items[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Metrics of one epoch, or of the end; NaN (an undefined score) is left out."""
        now = int(time.time() * 1000)
        batch = [Metric(name, float(value), now, step) for name, value in values.items() if value == value]
        self._send(metrics=batch)

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags, shown in the run list."""
        self._send(tags=[RunTag(name, value) for name, value in values.items()])

    def inputs(self, datasets: Sequence[DatasetInput]) -> None:
        """Data that the run reads."""
        self.call(lambda mlflow, run_id: mlflow.log_inputs(run_id, list(datasets)))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file of the run."""
        self.call(lambda mlflow, run_id: mlflow.log_artifact(run_id, str(path), folder))

    def artifacts(self, path: Path, folder: str) -> None:
        """Everything below a folder, into ``folder`` of the run."""
        self.call(lambda mlflow, run_id: mlflow.log_artifacts(run_id, str(path), folder))

    def yaml(self, config: Mapping[str, Any], path: Path) -> None:
        """The resolved configuration as YAML, kept in the run folder and as an artifact."""
        path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        self.artifact(path)

    def status(self, status: str) -> None:
        """RUNNING, or the end: FINISHED, FAILED."""
        if status == "RUNNING":
            self.call(lambda mlflow, run_id: mlflow.update_run(run_id, status=status))
        else:
            self.call(lambda mlflow, run_id: mlflow.set_terminated(run_id, status=status))

    @property
    def is_unsent(self) -> bool:
        """Whether the run, or the rest of it, is in the local store."""
        if self.mlflow is None or self.tracking is None:
            return False
        return store.is_local(self.mlflow.tracking_uri) and not store.is_local(self.tracking.uri)

    def call(self, do: Callable[[MlflowClient, str], T]) -> T | None:
        """Call with client and run id; where the server is lost, again on a run in the local store."""
        with uninterrupted(), self._lock:
            if self.mlflow is None:
                return None
            try:
                return do(self.mlflow, self._written)
            except Exception as error:  # each kind of store fails in its libraries' way; a fault of ours comes again
                place = store.unsent_store(self.tracking) if self.tracking and not self.is_unsent else None
                if self.tracking is None or place is None:
                    raise
                rest = {store.SERVER_RUN: self.run_id}
                self.mlflow, run = _start_unsent(self.tracking, place, f"rest of {self.run_id}", rest, error)
                self._written = run.info.run_id
                return do(self.mlflow, self._written)

    def _send(
        self, metrics: Sequence[Metric] = (), params: Sequence[Param] = (), tags: Sequence[RunTag] = ()
    ) -> None:
        self.call(lambda mlflow, run_id: mlflow.log_batch(run_id, metrics, params, tags))


def _start_unsent(
    tracking: Tracking, place: Tracking, name: str, tags: Mapping[str, str], error: Exception
) -> tuple[MlflowClient, Run]:
    """A run in the local store, and one line on why and on what to do."""
    log.warning(
        "tracking server %s cannot be used (%s); the run is kept, send it later: python send.py tracking.unsent=%s",
        tracking.uri,
        store.first_line(error),
        tracking.unsent,
    )
    mlflow = client(place)
    tags = {**tags, store.MEANT_FOR: tracking.uri}
    return mlflow, mlflow.create_run(experiment_id(mlflow, place), run_name=name, tags=tags)


def started(tracking: Tracking, name: str, tags: Mapping[str, str]) -> RunLog:
    """A new run, on the server or, where that is away, in the local store."""
    mlflow, tags = client(tracking), {**tags, PROCESS: this_process()}
    with uninterrupted():
        try:
            run = mlflow.create_run(experiment_id(mlflow, tracking), run_name=name, tags=dict(tags))
        except Exception as error:  # see RunLog.call
            place = store.unsent_store(tracking)
            if place is None:
                raise
            mlflow, run = _start_unsent(tracking, place, name, tags, error)
    return RunLog(mlflow, run.info.run_id, tracking)


def attached(tracking: Tracking, run_id: str) -> RunLog:
    """Go on writing a run that exists, on the server or in the local store."""
    local, run_id = store.find_unsent(tracking, run_id)
    return RunLog(local or client(tracking), run_id, tracking)


@contextmanager
def run_log(
    tracking: Tracking,
    name: str,
    *,
    resume: str | None = None,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    watch: bool = True,
) -> Iterator[RunLog]:
    """Start (or go on with) an MLflow run; it ends FINISHED, FAILED when an error leaves the block, KILLED by a signal.

    parent: id of the run that it belongs to, else that of the sweep that this process is a job of, if any. watch: log
    system metrics, where the configuration asks for them.
    """
    if not is_main_process():
        yield RunLog(None, "")
        return
    if resume:
        tracker = attached(tracking, resume)
        tracker.status("RUNNING")
        tracker.tags({PROCESS: this_process()})
    else:
        parent = parent or os.environ.get(PARENT_VARIABLE)
        family = {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
        tracker = started(tracking, name, {MLFLOW_SOURCE_NAME: "train.py", **(tags or {}), **family})
    run = tracker.call(lambda mlflow, run_id: mlflow.get_run(run_id))
    assert run is not None
    watched = tracking.system_metrics and watch
    try:
        with SystemMetrics(tracker.metrics, run.info.start_time / 1000) if watched else nullcontext():
            yield tracker
    except Pruned as stop:
        tracker.tags({"pruned": str(stop)})
        tracker.status("KILLED")  # not FINISHED: it was not tested, so that no table may count it
        raise
    except BaseException as error:
        tracker.status("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.status("FINISHED")


def start_parent(tracking: Tracking, name: str, overrides: Sequence[str]) -> str:
    """Parent run of a sweep; jobs started from this process and its children become its children."""
    code = shlex.join(["python", "train.py", "-m", *overrides])
    note = f"**{name}**\n\n```\n{code}\n```\n\nIts runs are its children."
    tags = {MLFLOW_SOURCE_NAME: "train.py", "overrides": " ".join(overrides), "sweep": "parent", MLFLOW_RUN_NOTE: note}
    parent = started(tracking, name, tags).run_id
    os.environ[PARENT_VARIABLE] = parent
    return parent


def end_parent(tracking: Tracking, parent: str, status: str, tags: Mapping[str, str] | None = None) -> None:
    """Close a sweep's parent run with FINISHED, FAILED or KILLED."""
    os.environ.pop(PARENT_VARIABLE, None)
    tracker = attached(tracking, parent)
    tracker.tags(tags or {})
    tracker.status(status)


def close_dead(tracking: Tracking) -> list[Run]:
    """Runs that were killed without being able to say so: their process on this machine is gone; they end KILLED.

    Nothing happens where the server is away.
    """
    mlflow = client(tracking)
    try:
        running = found(tracking, f"attributes.status = 'RUNNING' and tags.{PROCESS} LIKE '%'")
    except ValueError:
        return []
    dead = [run for run in running if has_gone(run.data.tags[PROCESS])]
    for run in dead:
        mlflow.set_terminated(run.info.run_id, status="KILLED")
    return dead


def children(tracking: Tracking, parent: str) -> list[Run]:
    """Finished runs of a sweep, oldest first, and those of earlier sweeps that it adopted; see ``finished``."""
    runs = finished(tracking, f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'")
    mlflow = client(tracking)
    tags = mlflow.get_run(parent).data.tags
    adopted = dict.fromkeys(run_id for tag, run_id in tags.items() if tag.startswith(ADOPTED))
    return sorted([*runs, *map(mlflow.get_run, adopted)], key=lambda run: run.info.start_time)


def finished(tracking: Tracking, condition: str) -> list[Run]:
    """Finished runs of the experiment that meet a condition of MLflow search; see ``found``."""
    return found(tracking, f"{condition} and attributes.status = 'FINISHED'")


def found(tracking: Tracking, condition: str) -> list[Run]:
    """Runs of the experiment that meet a condition of MLflow search, oldest first; none without experiment.

    Raises ValueError, one line, where the server does not answer.
    """
    mlflow = client(tracking)
    runs: list[Run] = []
    token: str | None = None
    try:
        experiment = mlflow.get_experiment_by_name(tracking.experiment)
        if experiment is None:
            return []
        while True:
            order = ["attributes.start_time ASC"]
            page = mlflow.search_runs([experiment.experiment_id], condition, order_by=order, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs
    except MlflowException as error:
        raise ValueError(
            f"tracking.uri: runs cannot be read, {store.first_line(error)}; start the server (found '{tracking.uri}')"
        ) from None


def artifact_json(tracking: Tracking, run: Run, name: str) -> Any:
    """Content of a JSON artifact of a run."""
    return json.loads(Path(client(tracking).download_artifacts(run.info.run_id, name)).read_text())
