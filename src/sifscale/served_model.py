"""A trained model as MLflow serves it: ``mlflow.pyfunc.load_model("runs:/ID/model").predict(arrays)``.

MLflow loads it through this module from the checkpoint, which says everything else; nothing but this package is needed.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from sifscale.datamodule import Batch
from sifscale.task import DownscalingTask
from sifscale.task_spec import TaskSpec
from sifscale.tracking import RunLog

logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # tells of every step

FOLDER = "model"  # of a run: runs:/ID/model
EXAMPLE_PX = 8  # edge of the input example, or the next that the model can take
Arrays = Mapping[str, NDArray[np.generic]]


class ServedModel:
    """A model that predicts physical values from physical values, on whatever machine it is loaded."""

    def __init__(self, task: DownscalingTask, precision: str) -> None:
        self.task, self.precision = task.eval(), precision

    def predict(self, model_input: Arrays | xr.Dataset) -> NDArray[np.float32]:
        """Fine field (B, 1, H, W), in the units of the target.

        model_input: ``predictors`` (B, C, H, W), channels in the order of ``channels``, gaps NaN; ``coarse`` (B, 1, H,
        W), constant on each block, without gaps; for a model that conserves also ``valid`` (B, 1, H, W), the pixels
        over which coarse was observed (without it: all). As a dataset coarse and valid may lack the channel dimension,
        and channels with a coordinate ``channel`` are found by name. Raises ValueError, one line, for anything else.
        """
        predictors, coarse, valid = self._fields(model_input)
        half = torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16-mixed")
        with torch.inference_mode(), half:
            found: NDArray[np.float32] = self.task(predictors, coarse, valid).float().numpy()
        return found

    def error_bars(self, model_input: Arrays | xr.Dataset) -> NDArray[np.float32]:
        """Standard error, distance down to the lower and up to the upper end of the interval (B, 3, H, W).

        Of what `predict` says of the same input, in the units of the target. Raises ValueError, one line, also where
        the model was trained with uncertainty=none.
        """
        predictors, coarse, valid = self._fields(model_input)
        half = torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16-mixed")
        with torch.inference_mode(), half:
            raw = self.task.each(predictors, coarse)
            found: NDArray[np.float32] = self.task.bars(raw, self.task.conserved(raw, coarse, valid)).float().numpy()
        return found

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the predictors, in order."""
        return tuple(self.task.spec.channels)

    def get_raw_model(self) -> ServedModel:
        """What ``get_raw_model()`` of MLflow's model gives: this, with `error_bars`, and it takes datasets as well."""
        return self

    def _fields(self, model_input: Arrays | xr.Dataset) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predictors, coarse and valid of an input; valid is all where it does not say."""
        fields = self._checked(_from_dataset(model_input, self.channels) if _is_dataset(model_input) else model_input)
        everything = torch.ones_like(fields["coarse"], dtype=torch.bool)
        return fields["predictors"], fields["coarse"], fields.get("valid", everything)

    def _checked(self, arrays: Any) -> dict[str, torch.Tensor]:
        names = ("predictors", "coarse", "valid")
        missing = [name for name in names[:2] if name not in arrays]
        if missing:
            found = ", ".join(map(str, arrays)) or "nothing"
            raise ValueError(f"input: must have {' and '.join(missing)} (found {found})")
        fields = {name: np.asarray(arrays[name]) for name in names if name in arrays}
        predictors, channels = fields["predictors"], len(self.channels)
        if predictors.ndim != 4 or predictors.shape[1] != channels:
            raise ValueError(
                f"predictors: must be (B, {channels}, H, W), of {', '.join(self.channels)} (found {predictors.shape})"
            )
        batch, _, *size = predictors.shape
        for name in ("coarse", "valid"):
            if name in fields and fields[name].shape != (batch, 1, *size):
                raise ValueError(f"{name}: must be {(batch, 1, *size)}, as predictors (found {fields[name].shape})")
        step = _step_px(self.task.spec)
        if not all(size) or any(edge % step for edge in size):
            raise ValueError(f"input: height and width must be multiples of {step} px (found {size[0]} x {size[1]})")
        gaps = int(np.isnan(fields["coarse"].astype(np.float32)).sum())
        if gaps:
            raise ValueError(f"coarse: must have no NaN; fill its gaps, and say so in valid (found {gaps})")
        kinds = {"predictors": np.float32, "coarse": np.float32, "valid": np.bool_}
        return {name: torch.from_numpy(np.array(field, kinds[name])) for name, field in fields.items()}


def _is_dataset(model_input: object) -> bool:
    return isinstance(model_input, xr.Dataset)


def _from_dataset(dataset: Any, channels: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    """Fields of a dataset as arrays with a channel dimension each, predictors in the order of ``channels``."""
    if "channel" in dataset.coords:
        absent = set(channels) - set(map(str, dataset["channel"].values))
        if absent:
            raise ValueError(f"predictors: dataset lacks the channels {', '.join(sorted(absent))}; add them")
    found = {}
    for name in (name for name in ("predictors", "coarse", "valid") if name in dataset):
        field = dataset[name]
        if name == "predictors" and "channel" in dataset.coords:
            field = field.sel(channel=list(channels))
        values = field.values
        found[name] = values[:, None] if values.ndim == 3 and name != "predictors" else values
    return found


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedModel:
    """What MLflow calls with the path of the checkpoint."""
    task = DownscalingTask.load_from_checkpoint(path, map_location="cpu")
    return ServedModel(task, (model_config or {}).get("precision", "32-true"))


def log_model(tracker: RunLog, checkpoint: Path, spec: TaskSpec, precision: str, batch: Batch) -> None:
    """Log a checkpoint as the run's model; the one place in MLflow where its weights are.

    batch: of it an input example is cut. Requirements are named, not found out: MLflow would load the model in another
    process for that, which takes as long as many a training.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, Schema, TensorSpec

    example = _example(spec, batch)
    inputs: list[ColSpec | TensorSpec] = [
        TensorSpec(array.dtype, (-1, array.shape[1], -1, -1), name) for name, array in example.items()
    ]
    outputs: list[ColSpec | TensorSpec] = [TensorSpec(np.dtype(np.float32), (-1, 1, -1, -1), spec.target)]
    about = {"channels": list(spec.channels), "target": spec.target, "units": spec.units, "block_px": spec.block_px}
    with tempfile.TemporaryDirectory() as folder:
        save_model(
            f"{folder}/{FOLDER}",
            loader_module=__name__,
            data_path=str(checkpoint),
            mlflow_model=Model(artifact_path=FOLDER, run_id=tracker.run_id),
            signature=ModelSignature(Schema(inputs), Schema(outputs)),
            input_example=example,
            pip_requirements=requirements(),
            model_config={"precision": precision},
            metadata=about,
        )
        tracker.artifacts(Path(folder) / FOLDER, FOLDER)


def requirements() -> list[str]:
    """This package and what numbers depend on, at the versions that are at work here."""
    found = []
    for name in ("sifscale", "mlflow", "pytorch-lightning", "scikit-learn", "torch"):
        try:
            found.append(f"{name}=={metadata.version(name).split('+')[0]}")
        except metadata.PackageNotFoundError:  # this package, where a checkout is not installed
            continue
    return found


def _step_px(spec: TaskSpec) -> int:
    """Height and width must be multiples of this: whole blocks, or the one size that a dense layer knows."""
    return spec.size if spec.model["name"] == "cnn_dense" else spec.block_px


def _example(spec: TaskSpec, batch: Batch) -> dict[str, NDArray[np.generic]]:
    """A corner of a crop, gaps of predictors filled with what the scaler takes for their middle."""
    step = _step_px(spec)
    edge = min(step * math.ceil(EXAMPLE_PX / step), batch["coarse"].shape[-1])
    names = ("predictors", "coarse") if spec.conservation == "none" else ("predictors", "coarse", "valid")
    fields = {name: batch[name][:1, :, :edge, :edge].numpy() for name in names}
    middle = np.array(spec.scaler.offset, np.float32)[:, None, None]
    return fields | {"predictors": np.where(np.isfinite(fields["predictors"]), fields["predictors"], middle)}
