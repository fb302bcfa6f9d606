"""The model registry: a run's model under a name, and the alias ``champion`` on the one that validates best."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from sifscale.config import RunConfig, digest
from sifscale.crops import Plans
from sifscale.cube import Cube
from sifscale.processes import uninterrupted
from sifscale.served_model import FOLDER
from sifscale.splits import VALIDATION
from sifscale.tracking import RunLog

log = logging.getLogger(__name__)

ALIAS, AUTO = "champion", "auto"
SCORE = "val/rmse"


def register(
    run: RunConfig, tracker: RunLog, cube: Cube, plans: Plans, score: float | None, folder: Path
) -> None:
    """Register the run's model; it becomes champion where it validates better than the present one. Says so in a line.

    score: val/rmse of the epoch that was kept, None where nothing was validated. Models are compared only if they were
    validated on the same pixels of the same cube, honestly, with the same coarse field. The test part has no say.
    Nothing here stops a run.
    """
    if run.tracking.register_as is None:
        return
    name = f"sifscale-{run.window.name}" if run.tracking.register_as == AUTO else run.tracking.register_as
    if run.protocol != "honest" or plans.parts is None or score is None:
        log.info("%s: not registered, since only honest runs with a validation part can be compared", name)
        return
    if tracker.mlflow is None or tracker.is_unsent:
        log.warning("%s: not registered, since the tracking server is away; register the model in MLflow later", name)
        return
    pixels = hashlib.sha256(np.packbits(plans.parts == VALIDATION).tobytes()).hexdigest()
    tags = {
        "arm": run.label,
        "window": run.window.name,
        "cube_hash": cube.hash,
        "validated_on": digest(cube.hash, run.coarse, run.level, pixels),
        SCORE: repr(score),
    }
    try:
        with FileLock(folder.parent / f".{name}.lock"), uninterrupted():  # jobs of one sweep end together
            log.info("%s", _enter(tracker.mlflow, name, tracker.run_id, tags))
    except MlflowException as error:
        log.warning("%s: not registered, %s", name, str(error).splitlines()[0])


def _enter(mlflow: MlflowClient, name: str, run_id: str, tags: dict[str, str]) -> str:
    """Add a version, and move the alias if it is the better one; returns what to say."""
    try:
        mlflow.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{mlflow.get_run(run_id).info.artifact_uri}/{FOLDER}"
    version = mlflow.create_model_version(name, source, run_id, tags=tags).version
    best = _champion(mlflow, name)
    said = f"{name}: registered as version {version}, {SCORE} {float(tags[SCORE]):.4g}"
    if best and best.tags.get("validated_on") != tags["validated_on"]:
        return (
            f"{said}; champion stays version {best.version}, which was validated on other data: to begin anew, delete "
            "the alias in MLflow"
        )
    if best and float(best.tags[SCORE]) <= float(tags[SCORE]):
        return f"{said}; champion stays version {best.version} with {float(best.tags[SCORE]):.4g}"
    mlflow.set_registered_model_alias(name, ALIAS, version)
    before = f", before version {best.version} with {float(best.tags[SCORE]):.4g}" if best else ""
    return f"{said}; it is the champion now{before}: models:/{name}@{ALIAS}"


def _champion(mlflow: MlflowClient, name: str) -> ModelVersion | None:
    try:
        return mlflow.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise
