"""A command of ``explain.py``: what a trained model uses, measured on the test part of its own run."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from sifscale import explaining_report, report
from sifscale.attribution import Attribution, integrated_gradients, is_network
from sifscale.checkpoints import Checkpoint, load_checkpoint
from sifscale.config import ConfigError, ExplainConfig, PersistenceConfig, RunConfig, Tracking, validate
from sifscale.crops import CropPlan
from sifscale.explaining_report import Explained
from sifscale.features import FeatureCube
from sifscale.importance import Channels, channel_groups, crops_tested, exchange
from sifscale.models.persistence import with_other_composite
from sifscale.tracking import attached, client, git_commit
from sifscale.tracking_store import find_unsent, first_line
from sifscale.training import prepare_features, prepare_plans
from sifscale.whole import remove_leftovers, take_name, temporary
from sifscale.windows import open_or_build

log = logging.getLogger(__name__)
CONFIGURATION = "config.yaml"  # of a run, in its folder and among its artifacts
_ADDED_SINCE = {"uncertainty": {"name": "none"}}  # keys that earlier runs lack, with what they were


def explain(config: ExplainConfig) -> Path:
    """Measure what the model uses, print it, and put tables and figures into its run; returns the folder of the files.

    Raises ValueError, one line a fault, where there is no such model, or its test part cannot be had again.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    found = load_checkpoint(config.run, config.tracking)
    run, folder = stored_configuration(config, found), _folder(config, found)
    features, plan, parts = _test_part(config, run, found)
    task, spec = found.task, found.task.spec
    each: dict[str, Channels] = {name: (number,) for number, name in enumerate(spec.channels)}
    sets = {"group": channel_groups(spec.channels), "channel": each}
    options: dict[str, Any] = {"seed": config.seed, "batch_size": run.trainer.batch_size, "progress": config.progress}
    distinct = dict.fromkeys(channels for of_kind in sets.values() for channels in of_kind.values())
    exchanged = exchange(task, features, plan, parts, distinct, repeats=config.repeats, **options)
    attribution: Attribution | str
    if not config.integrated_gradients:
        attribution = "integrated_gradients=false"
    elif not is_network(task):
        attribution = f"{spec.model['name']} is no network that has learned by gradients"
    else:
        attribution = integrated_gradients(task, features, plan, parts, steps=config.steps, **options)
    about = {
        "run_id": found.run_id or None,
        "checkpoint_hash": found.hash,
        "model": spec.model["name"],
        "window": run.window.name,
        "target": spec.target,
        "crops": len(plan),
        **config.model_dump(include={"repeats", "seed", "steps", "max_crops"}),
        "git_commit": git_commit(),
    }
    title = f"{run.label} on {run.window.name}"
    explained = Explained(title, spec.units, spec.channels, sets, exchanged, attribution, about)
    _keep(explained, folder)
    _log(explained, folder, config.tracking, found.run_id)
    report.show(*explaining_report.tables(explained), *explaining_report.notes(explained))
    return folder


def stored_configuration(config: ExplainConfig, found: Checkpoint) -> RunConfig:
    """The run's configuration, from its folder or from MLflow, with this command's places in place of its own.

    Raises ValueError where there is none, or one that this version cannot read.
    """
    place = _run_folder(config.run)
    if place is None and not found.run_id:
        raise ValueError(
            f"run: has no {CONFIGURATION} beside its checkpoints; take the run folder or the MLflow run "
            f"(found '{config.run}')"
        )
    try:
        path = place / CONFIGURATION if place else _download(config.tracking, found.run_id)
        values = yaml.safe_load(path.read_text())
    except (MlflowException, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = f"its {CONFIGURATION} cannot be read, {first_line(error)}"
        raise ValueError(f"run: {reason} (found '{config.run}')") from None
    here = {name: getattr(config, name).model_dump(mode="json") for name in ("paths", "dask", "tracking")}
    try:
        return validate({**_ADDED_SINCE, **values, **here} if isinstance(values, dict) else values, RunConfig)
    except ConfigError as error:
        reason = f"run: its {CONFIGURATION} is not of this version"
        raise ConfigError([f"{reason}, {line}" for line in error.faults]) from None


def _download(tracking: Tracking, run_id: str) -> Path:
    """The configuration among a run's artifacts in MLflow; MlflowException or OSError where there is none."""
    local, written = find_unsent(tracking, run_id)
    return Path((local or client(tracking)).download_artifacts(written, CONFIGURATION))


def _test_part(
    config: ExplainConfig, run: RunConfig, found: Checkpoint
) -> tuple[FeatureCube, CropPlan, NDArray[np.int8]]:
    """What the run was tested on: features with the model's channels, test crops with scored pixels, parts."""
    spec = found.task.spec
    assert spec.origin is not None
    if run.protocol != "honest":
        rule = "must be of protocol=honest, since a legacy run is tested on pixels that it has seen"
        raise ValueError(f"run: {rule} (found '{run.protocol}')")
    cube = open_or_build(run)
    if cube.hash != spec.origin.cube_hash:
        raise ValueError(
            f"run: must be explained on the cube that it was trained on, {spec.origin.cube_hash[:16]}; set paths.data "
            f"to where that is, or train again (found {cube.hash[:16]} in {cube.path})"
        )
    features = prepare_features(run, cube)
    plans = prepare_plans(run, features)
    assert plans.parts is not None
    if isinstance(run.model, PersistenceConfig):
        features = with_other_composite(features, plans.parts)
    if missing := [name for name in spec.channels if name not in features.names]:
        raise ValueError(
            f"run: this version makes no channel {', '.join(missing)}; train again (found {', '.join(features.names)})"
        )
    if tuple(features.names) != spec.channels:  # features.select left some out
        features = features.select(list(spec.channels))
    plan = crops_tested(features, plans.test, plans.parts, config.max_crops, config.seed)
    return features, plan, plans.parts


def _run_folder(run: str) -> Path | None:
    """The run folder, with its configuration, that a run was named by; None where it was named by its id or alias."""
    place = Path(run).parent.parent if run.endswith(".ckpt") else Path(run)
    return place if (place / CONFIGURATION).is_file() else None


def _folder(config: ExplainConfig, found: Checkpoint) -> Path:
    """Where the files go: into the run folder, else below paths.output; ValueError where something else is."""
    place = _run_folder(config.run)
    folder = place / "explain" if place else Path(config.paths.output) / "explain" / (found.run_id or found.hash)[:8]
    if folder.exists() and not (folder / explaining_report.NAME).is_file():
        raise ValueError(f"run: {folder} exists and is no explanation, thus not replaced; move it away")
    return folder


def _keep(explained: Explained, folder: Path) -> None:
    """Write all files whole or not at all, in the place of an earlier explanation."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    partial = temporary(folder)
    partial.mkdir()
    try:
        explaining_report.write(explained, partial)
        take_name(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # where that failed


def _log(explained: Explained, folder: Path, tracking: Tracking, run_id: str) -> None:
    """Files and metrics into the MLflow run, where that is known; a line says so where it is not."""
    if not run_id:
        log.warning("nothing goes to MLflow: the checkpoint does not say which run made it")
        return
    try:
        local, written = find_unsent(tracking, run_id)
        known = (local or client(tracking)).get_run(written).info.lifecycle_stage == "active"
        reason = "it was deleted"
    except MlflowException as error:
        known, reason = False, first_line(error)
    if not known:
        log.warning("nothing goes to MLflow: run %s cannot be written, %s", run_id, reason)
        return
    tracker = attached(tracking, run_id)
    tracker.metrics(explaining_report.metrics(explained))
    tracker.artifacts(folder, "explain")
