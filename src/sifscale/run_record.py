"""What a run leaves beside its scores: name, notes, tags, parameters, data it reads, crop plans."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NOTE

from sifscale.audit import Finding, guard_distance_px
from sifscale.config import RunConfig
from sifscale.continuing import identity
from sifscale.crops import Plans
from sifscale.cube import Cube
from sifscale.features import FeatureCube
from sifscale.precision import computed_in
from sifscale.splits import TEST, TRAIN, VALIDATION
from sifscale.tracking import RunLog, git_commit

PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
DIGEST_LENGTH = 36  # of a dataset in MLflow


def run_name(run: RunConfig) -> str:
    """How a reader tells this run from others: arm, or model and features; window, seed and fold."""
    folds = getattr(run.split, "folds", None)
    fold = [] if folds is None else ["all folds" if folds == "all" else f"fold {folds}"]
    return ", ".join([run.label, run.window.name, f"seed {run.seed}", *fold])


def opening_tags(run: RunConfig, folder: Path) -> dict[str, str]:
    """Tags that a run has from its first moment: its notes, and the command line as it was typed."""
    typed = " ".join(sys.argv)
    task = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    rows = {
        "model": run.model.name,
        "features": run.features.name,
        "window": run.window.name,
        "protocol": run.protocol,
        "commit": f"`{git_commit()}`",
        "folder": f"`{folder}`",
        "typed": f"`{typed}`",
    }
    code = ["```", shlex.join(["python", "train.py", *task]), "```"]
    table = ["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows.items())]
    return {MLFLOW_RUN_NOTE: "\n".join([f"**{run_name(run)}**", "", *code, "", *table]), "command": typed}


def _cell(text: str) -> str:
    """Text in a table of Markdown."""
    return text.replace("|", r"\|")


def log_choices(
    run: RunConfig,
    tracker: RunLog,
    folder: Path,
    cube: Cube,
    features: FeatureCube,
    plans: Plans,
    findings: Sequence[Finding],
) -> None:
    """Parameters, resolved YAML, data, crop plans and tags: what is needed to see how the numbers were made."""
    log_config(run, tracker, folder, {"channels": features.names})
    tracker.inputs(datasets(run, cube, features, plans))
    for name in PARTS:
        plan = getattr(plans, name)
        if plan is not None:
            plan.save(folder / f"crops_{name}.csv")
            tracker.artifact(folder / f"crops_{name}.csv", "crops")
    guard = str(guard_distance_px(plans, features.coarse.shape))
    tracker.tags(tags(run, cube, findings) | {"crop_plan": plans.train.hash, "guard_distance_px": guard})


def log_config(run: RunConfig, tracker: RunLog, folder: Path, more: Mapping[str, Any]) -> None:
    """The whole configuration, as parameters (with ``more``) and as YAML."""
    values = run.model_dump(mode="json")
    tracker.parameters({k: v for k, v in values.items() if k != "study"} | dict(more))
    tracker.yaml(values, folder / "config.yaml")


def tags(run: RunConfig, cube: Cube, findings: Sequence[Finding]) -> dict[str, str]:
    """What the run list shows of a run, and what finds it again."""
    return {
        "arm": run.label,
        "protocol": run.protocol,
        "window": run.window.name,
        "features": run.features.name,
        "model": run.model.name,
        "git_commit": git_commit(),
        "precision": computed_in(run.trainer.precision, run.trainer.accelerator),
        **identity(run, cube.hash),
        "audit": "; ".join(map(str, dict.fromkeys(findings))) or "no finding",
        **({"study": run.study.name} if run.study else {}),
    }


def datasets(run: RunConfig, cube: Cube, features: FeatureCube, plans: Plans) -> list[DatasetInput]:
    """One dataset a part of the split: the cube, with what of it the part holds.

    MLflow keeps one of those with the same name and digest, so that the name says the part as well.
    """
    found = []
    valid = np.asarray(features.valid)
    for name, part in PARTS.items():
        plan = getattr(plans, name)
        if plan is None:
            continue
        inside = plan.covered(valid.shape) if plans.parts is None else plans.parts == part
        profile = {
            "samples": valid.shape[0],
            "shape": list(features.shape),
            "channels": len(features.names),
            "crops": len(plan),
            "pixels": int((inside & valid).sum()),
        }
        dataset = Dataset(
            name=f"{run.window.name} {name}",
            digest=cube.hash[:DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": str(cube.path)}),
            profile=json.dumps(profile),
        )
        found.append(DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, name)]))
    return found


def log_correlation(tracker: RunLog, folder: Path, names: list[str], matrix: np.ndarray[Any, Any]) -> None:
    """Correlation of coarse SIF and all bands on the training part, as a table beside the figure."""
    pd.DataFrame(matrix, index=names, columns=names).to_csv(folder / "correlation.csv", float_format="%.4f")
    tracker.artifact(folder / "correlation.csv")
