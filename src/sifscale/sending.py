"""Send what a tracking server could not take while it was away: runs of the local store, whole or the rest of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from tqdm import tqdm

from sifscale.config import SendConfig, Tracking
from sifscale.tracking_store import (
    MEANT_FOR,
    SENT,
    SENT_AS,
    SERVER_RUN,
    UNSENT_RUN,
    client,
    experiment_id,
    first_line,
    is_local,
)

log = logging.getLogger(__name__)

OURS = {MEANT_FOR, SENT, SENT_AS, SERVER_RUN}  # tags that say something to us only
METRICS_A_CALL, PARAMS_A_CALL = 1000, 100  # what MLflow takes


def send(config: SendConfig) -> int:
    """Copy every unsent run, oldest first, to its server or to ``tracking.uri``; returns how many were sent.

    May be killed and started again at any moment: nothing arrives twice. Runs that have not ended are sent as far as
    they are, and again next time. Raises ValueError, one line, where a server is away or another ``send.py`` works.
    """
    path = Path(config.tracking.unsent).resolve()
    if not path.is_file():
        log.info("nothing to send: there is no %s", path)
        return 0
    try:
        with FileLock(f"{path}.sending", timeout=0):
            return _send_all(config, path)
    except Timeout:
        raise ValueError(f"{path}: another send.py is at work; wait for its end") from None


def _send_all(config: SendConfig, path: Path) -> int:
    local = client(Tracking(uri=f"sqlite:///{path}", experiment="", artifacts=""))
    runs = list(_unsent(local))
    done = 0
    with tqdm(runs, unit="run", desc="sending", disable=not config.progress or not runs) as bar:
        for run in bar:
            uri = config.tracking.uri or run.data.tags[MEANT_FOR]
            try:
                _send_one(local, run, uri)
            except Exception as error:  # whatever way a server or its files fail
                raise ValueError(
                    f"{uri}: run {run.info.run_id} cannot be sent, {first_line(error)}; {done} of {len(runs)} runs are "
                    "sent, start send.py again for the rest"
                ) from None
            done += 1
    open_runs = sum(run.info.status == "RUNNING" for run in runs)
    log.info(
        "sent %d run%s%s",
        done,
        "" if done == 1 else "s",
        f", of which {open_runs} had not ended: send those again later" if open_runs else "",
    )
    return done


def _unsent(local: MlflowClient) -> Iterator[Run]:
    """Runs that are not on their server yet, oldest first, so that parents come before their children."""
    experiments = [found.experiment_id for found in local.search_experiments()]
    token: str | None = None
    while experiments:
        page = local.search_runs(
            experiments, "", ViewType.ACTIVE_ONLY, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from (run for run in page if SENT not in run.data.tags)
        token = page.token
        if not token:
            return


def _send_one(local: MlflowClient, run: Run, uri: str) -> None:
    """All steps may be done twice: what is there already stays as it is."""
    name = local.get_experiment(run.info.experiment_id).name
    artifacts = str(Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts") if is_local(uri) else ""
    tracking = Tracking(uri=uri, experiment=name, artifacts=artifacts)
    server = client(tracking)
    there = _counterpart(server, experiment_id(server, tracking), local, run)
    _copy_values(local, server, run, there)
    for file in _files(run):
        folder = file.parent.relative_to(_artifact_folder(run)).as_posix()
        server.log_artifact(there, str(file), None if folder == "." else folder)
    if run.info.status == "RUNNING":
        return
    server.set_terminated(there, run.info.status, run.info.end_time)
    local.set_tag(run.info.run_id, SENT, datetime.now(UTC).isoformat(timespec="seconds"))


def _counterpart(server: MlflowClient, experiment: str, local: MlflowClient, run: Run) -> str:
    """Id on the server of a local run, made where it is not there yet."""
    tags, run_id = run.data.tags, run.info.run_id
    known = tags.get(SERVER_RUN) or tags.get(SENT_AS)
    if known and _exists(server, known):
        there = known
    elif found := server.search_runs([experiment], f"tags.`{UNSENT_RUN}` = '{run_id}'", max_results=1):
        there = found[0].info.run_id
    else:
        there = server.create_run(
            experiment, run.info.start_time, {UNSENT_RUN: run_id}, run_name=run.info.run_name
        ).info.run_id
    local.set_tag(run_id, SENT_AS, there)
    # children that the server took while their parent was unsent
    for child in server.search_runs([experiment], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'"):
        server.set_tag(child.info.run_id, MLFLOW_PARENT_RUN_ID, there)
    return there


def _exists(server: MlflowClient, run_id: str) -> bool:
    try:
        server.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _copy_values(local: MlflowClient, server: MlflowClient, run: Run, there: str) -> None:
    """Tags, parameters, the history of every metric, and inputs."""
    left_out = OURS | ({MLFLOW_RUN_NAME} if SERVER_RUN in run.data.tags else set())
    tags = {key: value for key, value in run.data.tags.items() if key not in left_out}
    if parent := tags.get(MLFLOW_PARENT_RUN_ID):
        tags[MLFLOW_PARENT_RUN_ID] = _place_of_parent(local, parent)
    known = server.get_run(there).data.params  # which cannot be changed
    params = [Param(key, value) for key, value in run.data.params.items() if key not in known]
    for start in range(0, len(params), PARAMS_A_CALL):
        server.log_batch(there, params=params[start : start + PARAMS_A_CALL])
    server.log_batch(there, tags=[RunTag(key, value) for key, value in tags.items()])
    metrics = [m for key in run.data.metrics for m in local.get_metric_history(run.info.run_id, key)]
    for start in range(0, len(metrics), METRICS_A_CALL):
        server.log_batch(there, metrics=metrics[start : start + METRICS_A_CALL])
    if run.inputs and run.inputs.dataset_inputs:
        server.log_inputs(there, run.inputs.dataset_inputs)


def _place_of_parent(local: MlflowClient, parent: str) -> str:
    """Id on the server of a parent that may be one of the local store."""
    try:
        return str(local.get_run(parent).data.tags.get(SENT_AS, parent))
    except MlflowException:  # it was the server's from the start
        return parent


def _artifact_folder(run: Run) -> Path:
    return Path(url2pathname(urlparse(run.info.artifact_uri).path))


def _files(run: Run) -> list[Path]:
    return sorted(path for path in _artifact_folder(run).rglob("*") if path.is_file())
