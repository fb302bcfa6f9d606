"""The pictures of a run: what of it goes into which figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sifscale import figures
from sifscale.config import RunConfig
from sifscale.crops import Plans
from sifscale.datamodule import BatchOrder, CropBatches, CropDataModule
from sifscale.features import FeatureCube
from sifscale.splits import PART_NAMES
from sifscale.task import DownscalingTask

MAP_ROWS = 3
LBP_PANELS = 10

Field = NDArray[np.float32]
Correlation = tuple[list[str], NDArray[np.float64]]


def draw(
    run: RunConfig,
    task: DownscalingTask,
    data: CropDataModule,
    features: FeatureCube,
    plans: Plans,
    history: Mapping[str, Sequence[tuple[int, float]]],
    correlation: Correlation,
    metrics: Mapping[str, float],
    folder: Path,
) -> list[Path]:
    """Draw and save all pictures of a run below ``folder``; returns their paths."""
    label, units = run.window.target.upper(), task.spec.units
    predicted, actual, coarse = scored_crops(task, data)
    pictures: dict[str, Figure] = {
        "predicted_against_actual": figures.scatter(
            actual, predicted, label=label, units=units, r2=metrics["test/r2"], rmse=metrics["test/rmse"]
        ),
        "maps": figures.maps(_rows(plans, features, predicted, actual, coarse), units=units),
        "correlation_matrix": figures.correlation_matrix(
            *correlation, title="Correlation on the training part"
        ),
    }
    if history:
        pictures["curves"] = figures.curves(history, _best_epoch(history), units=units)
    if plans.parts is not None:
        rows, columns = features.shape
        for sample in _distinct(plans.parts):
            name = "split" if sample == 0 else f"split_{sample}"
            pictures[name] = figures.split_map(
                plans.parts[sample, :rows, :columns], names=PART_NAMES, title=f"Split of {run.window.name}"
            )
    if patterns := [i for i, name in enumerate(features.names) if "lbp" in name.lower()]:
        pictures["lbp"] = _lbp(run, features, patterns)
    paths = []
    for name, figure in pictures.items():
        paths.append(folder / f"{name}.png")
        figures.save(figure, paths[-1])
    return paths


def scored_crops(task: DownscalingTask, data: CropDataModule) -> tuple[Field, Field, Field]:
    """Prediction, target and coarse of all test crops, (crops, size, size); NaN where not scored."""
    task.eval()
    device, dtype = next((p.device for p in task.buffers()), torch.device("cpu")), torch.float32
    parts: list[list[Field]] = [[], [], []]
    with torch.no_grad():
        test = CropBatches(data.features, data.plans.test, data.plans.parts)
        for numbers in BatchOrder(len(test), data.batch_size, None):  # all of them, in whichever process
            batch = test[numbers]
            inputs = (batch[name].to(device) for name in ("predictors", "coarse", "valid"))
            prediction = task(*inputs).to("cpu", dtype)
            for found, field in zip(parts, (prediction, batch["target"], batch["coarse"]), strict=True):
                found.append(torch.where(batch["scored"], field, torch.nan)[:, 0].numpy())
    predicted, actual, coarse = (np.concatenate(found) for found in parts)
    return predicted, actual, coarse


def _rows(
    plans: Plans, features: FeatureCube, predicted: Field, actual: Field, coarse: Field
) -> list[figures.MapRow]:
    """Honest: the test part of samples spread over the season; legacy: the first test crops."""
    if plans.parts is None:
        return [
            figures.MapRow(f"test crop {i}", coarse[i], predicted[i], actual[i])
            for i in range(min(MAP_ROWS, len(predicted)))
        ]
    shape = features.coarse.shape
    fields = [np.full(shape, np.nan, dtype=np.float32) for _ in range(3)]
    size = plans.test.size
    for crop, (sample, y, x) in enumerate(plans.test.table[:, :3]):
        at = (sample, slice(y, y + size), slice(x, x + size))
        for field, crops in zip(fields, (coarse, predicted, actual), strict=True):
            field[at] = np.where(np.isfinite(crops[crop]), crops[crop], field[at])
    rows = []
    samples = np.unique(plans.test.table[:, 0])
    spread = np.unique(np.linspace(0, len(samples) - 1, MAP_ROWS).round().astype(int))  # first, middle, last
    for sample in samples[spread]:
        seen = np.argwhere(np.isfinite(fields[2][sample]))
        if len(seen):
            box = tuple(
                slice(low, high + 1) for low, high in zip(seen.min(axis=0), seen.max(axis=0), strict=True)
            )
            title = f"{features.places[sample]} {np.datetime_as_string(features.times[sample], unit='D')}"
            rows.append(figures.MapRow(title, *(field[sample][box] for field in fields)))
    return rows


def _best_epoch(history: Mapping[str, Sequence[tuple[int, float]]]) -> int | None:
    scores = [pair for pair in history.get("val/rmse", ()) if pair[1] == pair[1]]
    return min(scores, key=lambda pair: pair[1])[0] if scores else None


def _distinct(parts: NDArray[np.int8]) -> list[int]:
    """Samples whose split differs from that of the sample before, at most three."""
    changes = [i for i in range(len(parts)) if i == 0 or not np.array_equal(parts[i], parts[i - 1])]
    return changes[:MAP_ROWS]


def _lbp(run: RunConfig, features: FeatureCube, index: list[int]) -> Figure:
    """The first sample of the field that patterns were taken from, beside the first of their channels."""
    channels: dict[str, NDArray[Any]] = {
        features.names[i]: np.asarray(features.predictors[0, i]) for i in index[:LBP_PANELS]
    }
    source = run.features.lbp[0].source if run.features.lbp else "coarse"
    if source in features.names and source != "coarse":
        field, units = np.asarray(features.predictors[0, features.names.index(source)]), "dimensionless"
    else:
        field, units = np.asarray(features.coarse[0]), run.window.units.get(run.window.target, "1")
        source = f"coarse {run.window.target.upper()}"
    return figures.lbp_panel(field, channels, source_label=f"{source}\n({units})")
