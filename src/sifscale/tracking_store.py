"""Where runs are kept: clients of MLflow, the local database, and the local store for a server that is away."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError

from sifscale.config import Tracking

# Our bars say what the user waits for; MLflow's would draw one for each small file.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A server that is away costs a run seconds, half a minute if nothing answers at all; by default it is many minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
# each failed attempt, which we sum up in one line
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

BUSY_S = 600  # how long a job waits for others to write to a local database

# Tags of runs in the local store of what was not sent yet.
MEANT_FOR = "sifscale.meant_for"  # URI of the server
SERVER_RUN = "sifscale.server_run"  # id of the run on the server that this is the rest of
SENT_AS = "sifscale.sent_as"  # id that it has on the server
SENT = "sifscale.sent"  # when all of it was there
# Tag of a run on the server: the id that it had in the local store.
UNSENT_RUN = "sifscale.unsent_run"


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _wait_longer(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> tuple[str, Any]:
    """MLflow has SQLite give up after 20 s, which a hundred jobs on a busy machine are longer at it."""
    if statement.startswith("PRAGMA busy_timeout"):
        statement = f"PRAGMA busy_timeout = {BUSY_S * 1000}"
    return statement, parameters


def is_local(uri: str) -> bool:
    """Whether runs are kept in a file, so that there is nobody to be away."""
    return uri.startswith("sqlite:")


def client(tracking: Tracking) -> MlflowClient:
    """Client of the tracking server or local database, which is created here; parallel jobs may all do so.

    A server is not asked yet whether it is there. Raises ValueError, one line, for a URI that cannot be used.
    """
    uri = tracking.uri
    try:
        path = make_url(uri).database if is_local(uri) else None
        if not path:
            return MlflowClient(tracking_uri=uri)
        if _is_ready(Path(path)):
            return MlflowClient(tracking_uri=_patient(uri))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # two creators at once: one of them dies
            mlflow = MlflowClient(tracking_uri=_patient(uri))
            mlflow.search_experiments(max_results=1)
            with closing(sqlite3.connect(path, timeout=BUSY_S)) as database:
                # a hundred jobs that write starve each other without; MLflow gives each 20 s
                database.execute("PRAGMA journal_mode=WAL")
        return mlflow
    except (MlflowException, ArgumentError, OSError) as error:
        raise ValueError(f"tracking.uri: cannot be opened, {first_line(error)} (found '{uri}')") from None


def _patient(uri: str) -> str:
    """A URI with which SQLite waits for other writers; by itself it gives up after five seconds."""
    return uri if "?" in uri else f"{uri}?timeout={BUSY_S}"


def _is_ready(path: Path) -> bool:
    """Whether MLflow's tables are complete: it makes the default experiment last."""
    if not path.exists():
        return False
    try:
        database = sqlite3.connect(path, timeout=BUSY_S)
        try:
            return database.execute("SELECT 1 FROM experiments LIMIT 1").fetchone() is not None
        finally:
            database.close()
    except sqlite3.OperationalError:  # no such table yet
        return False


def experiment_id(mlflow: MlflowClient, tracking: Tracking) -> str:
    """Id of the experiment, created where it does not exist yet."""
    found = mlflow.get_experiment_by_name(tracking.experiment)
    if found:
        return str(found.experiment_id)
    try:
        place = Path(tracking.artifacts).resolve().as_uri() if is_local(tracking.uri) else None
        return str(mlflow.create_experiment(tracking.experiment, artifact_location=place))
    except MlflowException:  # another job created it in the meantime
        found = mlflow.get_experiment_by_name(tracking.experiment)
        if found is None:
            raise
        return str(found.experiment_id)


def unsent_store(tracking: Tracking) -> Tracking | None:
    """The local store for what a server could not take, None where nothing can be away."""
    if is_local(tracking.uri) or tracking.unsent is None:
        return None
    path = Path(tracking.unsent).resolve()
    local = {"uri": f"sqlite:///{path}", "artifacts": str(path.with_suffix("")), "unsent": None}
    return tracking.model_copy(update=local)


def find_unsent(tracking: Tracking, run_id: str) -> tuple[MlflowClient | None, str]:
    """Where a run of the local store is now: (local client, its id), or (None, id on the server).

    A run that is not in the store is taken for one of the server.
    """
    store = unsent_store(tracking)
    if store is None or tracking.unsent is None or not _is_ready(Path(tracking.unsent)):
        return None, run_id
    local = client(store)
    try:
        tags = local.get_run(run_id).data.tags
    except MlflowException:
        return None, run_id
    return (None, tags[SENT_AS]) if SENT in tags else (local, run_id)


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of it; of a failed connection only why."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "Caused by" in line:
        line = re.sub(r"^\[Errno -?\d+\] ", "", line.rpartition(": ")[2]).rstrip("()'\" ")
    return line[:300]
