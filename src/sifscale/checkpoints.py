"""Trained models wherever they are: MLflow run or registered model, run folder, or a checkpoint file."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from sifscale.config import Tracking
from sifscale.sources import file_sha256
from sifscale.task import DownscalingTask
from sifscale.tracking import client
from sifscale.tracking_store import find_unsent, first_line

_IN_RUN = ("checkpoints/best.ckpt", "model/data/best.ckpt")  # the second where the run logs its model


@dataclass(frozen=True)
class Checkpoint:
    """A trained task, its MLflow run (where that is known) and the SHA-256 of its file."""

    task: DownscalingTask
    run_id: str
    hash: str


def load_checkpoint(run: str, tracking: Tracking) -> Checkpoint:
    """The model that ``run`` names: MLflow run id, models:/NAME@ALIAS or models:/NAME/VERSION, run folder, FILE.ckpt.

    Raises ValueError, one line, where there is none, or none that says how its predictors are made. A checkpoint may
    hold pickled estimators: load only what you trust.
    """
    path, run_id = _find(run, tracking)
    try:
        task = DownscalingTask.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"run: {path} cannot be loaded, {first_line(error)} (found '{run}')") from None
    if task.spec.origin is None:
        raise ValueError(
            f"run: its checkpoint does not say how predictors were made, as those of earlier versions do not; train "
            f"again (found '{run}')"
        )
    return Checkpoint(task, run_id, file_sha256(path))


def with_factor(task: DownscalingTask, factor: int) -> DownscalingTask:
    """The trained task for coarse blocks of ``factor`` x ``factor`` pixels, with the weights learned with others.

    RuntimeError for a model whose weights belong to one factor; see `models.ANY_FACTOR`.
    """
    spec = dict(task.hparams["spec"]) | {"block_px": factor, "factor": factor}
    other = DownscalingTask(**(dict(task.hparams) | {"spec": spec}))
    other.load_state_dict(task.state_dict())
    other.calibration = task.calibration
    return other


def _find(run: str, tracking: Tracking) -> tuple[Path, str]:
    place = Path(run)
    if place.suffix == ".ckpt":
        if not place.is_file():
            raise ValueError(f"run: there is no such checkpoint (found '{run}')")
        return place, _noted_id(place.parent.parent)
    if place.is_dir():
        path = place / "checkpoints" / "best.ckpt"
        if not path.is_file():
            folds = sorted(fold.name for fold in place.glob("fold_*"))
            remedy = f"; take one of its folds, {', '.join(folds)}" if folds else ""
            raise ValueError(f"run: the folder has no checkpoints/best.ckpt{remedy} (found '{run}')")
        return path, _noted_id(place)
    try:
        mlflow = client(tracking)
        if run.startswith("models:/"):
            run_id = _registered(mlflow, run)
        elif "/" in run or "\\" in run:
            raise ValueError(f"run: there is no such folder (found '{run}')")
        else:
            local, run_id = find_unsent(tracking, run)
            mlflow = local or mlflow
        return _download(mlflow, run_id, run), run_id
    except MlflowException as error:
        raise ValueError(f"run: {first_line(error)} (found '{run}')") from None


def _registered(mlflow: MlflowClient, run: str) -> str:
    """Id of the run that made a registered model."""
    if alias := re.fullmatch(r"models:/([^/@]+)@([^/@]+)", run):
        version = mlflow.get_model_version_by_alias(alias[1], alias[2])
    elif numbered := re.fullmatch(r"models:/([^/@]+)/(\d+)", run):
        version = mlflow.get_model_version(numbered[1], numbered[2])
    else:
        raise ValueError(f"run: must be models:/NAME@ALIAS or models:/NAME/VERSION (found '{run}')")
    return str(version.run_id)


def _download(mlflow: MlflowClient, run_id: str, run: str) -> Path:
    mlflow.get_run(run_id)  # says so where there is none
    for name in _IN_RUN:
        folder = name.rpartition("/")[0]
        if name in [file.path for file in mlflow.list_artifacts(run_id, folder)]:
            return Path(mlflow.download_artifacts(run_id, name))
    raise ValueError(
        f"run: has no checkpoint in MLflow; of a run over all folds take that of one fold (found '{run}')"
    )


def _noted_id(folder: Path) -> str:
    """Id of the MLflow run of a run folder; empty where none is noted."""
    note = folder / "run_id"
    return note.read_text().strip() if note.is_file() else ""
