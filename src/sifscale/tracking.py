"""MLflow: one run a training, children of a sweep's parent run; parameters, metrics by epoch, artifacts, tags."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME
from pytorch_lightning.utilities import rank_zero_only

from sifscale.config import PROJECT_ROOT, Tracking

# Our bars say what the user waits for; MLflow's would draw one for each small file.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

log = logging.getLogger(__name__)

PARENT_VARIABLE = "SIFSCALE_PARENT_RUN"  # tells the jobs of a sweep, in whatever process, their parent run
PARAMETER_LIMIT = 6000  # MLflow refuses longer parameter values


def client(tracking: Tracking) -> MlflowClient:
    """Client of the tracking server; creates a local database so that parallel jobs never race to do so."""
    mlflow = MlflowClient(tracking_uri=tracking.uri)
    mlflow.search_experiments(max_results=1)
    return mlflow


def experiment_id(mlflow: MlflowClient, tracking: Tracking) -> str:
    """Id of the experiment, created where it does not exist yet."""
    found = mlflow.get_experiment_by_name(tracking.experiment)
    if found:
        return str(found.experiment_id)
    local = tracking.uri.startswith("sqlite:")
    try:
        place = Path(tracking.artifacts).resolve().as_uri() if local else None
        return str(mlflow.create_experiment(tracking.experiment, artifact_location=place))
    except MlflowException:  # another job created it in the meantime
        found = mlflow.get_experiment_by_name(tracking.experiment)
        if found is None:
            raise
        return str(found.experiment_id)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"model": {"widths": [16, 32]}}`` -> ``{"model.widths": "[16, 32]"}``."""
    items: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[f"{prefix}{key}"] = (
                json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
            )
    return items


def git_commit() -> str:
    """Commit of the checkout, with ``+changes`` where files differ from it; ``unknown`` outside a checkout."""
    try:
        call = [
            "git",
            "-C",
            str(PROJECT_ROOT),
            "describe",
            "--always",
            "--abbrev=40",
            "--exclude=*",
            "--dirty=+changes",
        ]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def process_rank() -> int:
    """Number of this process in a distributed run (trainer=ddp), 0 for the main one, which alone writes results."""
    return int(getattr(rank_zero_only, "rank", 0))


def is_main_process() -> bool:
    """Whether this process writes results."""
    return process_rank() == 0


def _fitting(key: str, value: str) -> str:
    """A parameter's value, cut to what MLflow takes; the whole one stands in the run's YAML."""
    if len(value) > PARAMETER_LIMIT:
        log.warning("parameter %s is cut from %d to %d characters in MLflow", key, len(value), PARAMETER_LIMIT)
    return value[:PARAMETER_LIMIT]


class RunLog:
    """One MLflow run being written. Metrics go in batches: each call costs tens of milliseconds.

    Without a client (further processes of a distributed run) everything is accepted and nothing written.
    """

    def __init__(self, mlflow: MlflowClient | None, run_id: str) -> None:
        self.mlflow, self.run_id = mlflow, run_id

    def parameters(self, config: Mapping[str, Any]) -> None:
        """The whole configuration, flattened; a value logged before (a resumed run) is left as it is."""
        known = self.mlflow.get_run(self.run_id).data.params if self.mlflow else {}
        items = [Param(k, _fitting(k, v)) for k, v in flat(config).items() if k not in known]
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

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file of the run."""
        if self.mlflow:
            self.mlflow.log_artifact(self.run_id, str(path), folder)

    def yaml(self, config: Mapping[str, Any], path: Path) -> None:
        """The resolved configuration as YAML, kept in the run folder and as an artifact."""
        path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        self.artifact(path)

    def _send(
        self, metrics: Sequence[Metric] = (), params: Sequence[Param] = (), tags: Sequence[RunTag] = ()
    ) -> None:
        if self.mlflow:
            self.mlflow.log_batch(self.run_id, metrics, params, tags)


@contextmanager
def run_log(
    tracking: Tracking, name: str, resume: str | None, command: Sequence[str], parent: str | None = None
) -> Iterator[RunLog]:
    """Start (or go on with) an MLflow run; it ends FINISHED, or FAILED when an error leaves the block.

    parent: id of the run that it belongs to, else that of the sweep that this process is a job of, if any.
    """
    if not is_main_process():
        yield RunLog(None, "")
        return
    mlflow = client(tracking)
    tags = {MLFLOW_SOURCE_NAME: "train.py", MLFLOW_RUN_NOTE: f"`{' '.join(command)}`"}
    if parent := parent or os.environ.get(PARENT_VARIABLE):
        tags[MLFLOW_PARENT_RUN_ID] = parent
    if resume:
        run = mlflow.get_run(resume)
        mlflow.update_run(resume, status="RUNNING")
    else:
        run = mlflow.create_run(experiment_id(mlflow, tracking), run_name=name, tags=tags)
    try:
        yield RunLog(mlflow, run.info.run_id)
    except BaseException:
        mlflow.set_terminated(run.info.run_id, status="FAILED")
        raise
    mlflow.set_terminated(run.info.run_id)


def start_parent(tracking: Tracking, name: str, overrides: Sequence[str]) -> str:
    """Parent run of a sweep; jobs started from this process and its children become its children."""
    mlflow = client(tracking)
    tags = {MLFLOW_SOURCE_NAME: "train.py", "overrides": " ".join(overrides), "sweep": "parent"}
    run = mlflow.create_run(experiment_id(mlflow, tracking), run_name=name, tags=tags)
    os.environ[PARENT_VARIABLE] = run.info.run_id
    return str(run.info.run_id)


def end_parent(tracking: Tracking, parent: str, *, failed: bool) -> None:
    """Close a sweep's parent run."""
    os.environ.pop(PARENT_VARIABLE, None)
    client(tracking).set_terminated(parent, status="FAILED" if failed else "FINISHED")


def children(tracking: Tracking, parent: str) -> list[Run]:
    """Finished runs of a sweep, oldest first."""
    return finished(tracking, f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'")


def finished(tracking: Tracking, condition: str) -> list[Run]:
    """Finished runs of the experiment that meet a condition of MLflow search, oldest first; none without experiment."""
    mlflow = client(tracking)
    experiment = mlflow.get_experiment_by_name(tracking.experiment)
    if experiment is None:
        return []
    ids, chosen = [experiment.experiment_id], f"{condition} and attributes.status = 'FINISHED'"
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = mlflow.search_runs(ids, chosen, order_by=["attributes.start_time ASC"], page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def artifact_json(tracking: Tracking, run: Run, name: str) -> Any:
    """Content of a JSON artifact of a run."""
    return json.loads(Path(client(tracking).download_artifacts(run.info.run_id, name)).read_text())
