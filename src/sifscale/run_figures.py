"""The pictures of a run: what of it goes into which figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sifscale import evaluation_figures, figures, structure
from sifscale.config import NoUncertainty, RunConfig
from sifscale.datamodule import BatchOrder, CropBatches, CropDataModule
from sifscale.features import FeatureCube
from sifscale.splits import PART_NAMES
from sifscale.task import DownscalingTask
from sifscale.testing import Tested, pixel_km

MAP_ROWS = 3
LBP_PANELS = 10

Field = NDArray[np.float32]
Correlation = tuple[list[str], NDArray[np.float64]]


def draw(
    run: RunConfig,
    task: DownscalingTask,
    data: CropDataModule,
    history: Mapping[str, Sequence[tuple[int, float]]],
    correlation: Correlation,
    metrics: Mapping[str, float],
    tested: Tested,
    folder: Path,
) -> list[Path]:
    """Draw and save all pictures of a run below ``folder``; returns their paths."""
    features, plans, units = data.features, data.plans, task.spec.units
    if plans.parts is None:
        predicted, actual, coarse = scored_crops(task, data)
        rows = [
            figures.MapRow(f"test crop {i}", coarse[i], predicted[i], actual[i])
            for i in range(min(MAP_ROWS, len(predicted)))
        ]
        pictures = {"maps": figures.maps(rows, units=units)}
        pictures["predicted_against_actual"] = _scatter(run, actual, predicted, metrics, units)
    else:
        pictures = of_test(run, features, metrics, tested, units)
    pictures["correlation_matrix"] = figures.correlation_matrix(*correlation, title="Correlation on the training part")
    if history:
        pictures["curves"] = figures.curves(history, _best_epoch(history), units=units)
    if plans.parts is not None:
        rows_px, columns_px = features.shape
        for sample in _distinct(plans.parts):
            name = "split" if sample == 0 else f"split_{sample}"
            pictures[name] = figures.split_map(
                plans.parts[sample, :rows_px, :columns_px], names=PART_NAMES, title=f"Split of {run.window.name}"
            )
    if patterns := [i for i, name in enumerate(features.names) if "lbp" in name.lower()]:
        pictures["lbp"] = _lbp(run, features, patterns)
    return save(pictures, folder)


def of_test(
    run: RunConfig, features: FeatureCube, metrics: Mapping[str, float], tested: Tested, units: str
) -> dict[str, Figure]:
    """Pictures by name of an honest test: maps, scatter and, where known, spectra, errors by group and error bars."""
    predicted = tested.fields["model"]
    actual = np.where(np.isfinite(predicted), np.asarray(features.target), np.nan)
    pictures = {
        "maps": figures.maps(_rows(features, predicted, actual), units=units),
        "predicted_against_actual": _scatter(run, actual, predicted, metrics, units),
    }
    shown = {name: run.label if name == "model" else name for name in tested.fields if name != "nearest"}
    if tested.groups:
        kinds = {
            kind: {
                group: {shown[name]: sums.finish() for name, sums in by_name.items() if name in shown}
                for group, by_name in of_kind.items()
            }
            for kind, of_kind in tested.groups.items()
        }
        pictures["errors_by"] = evaluation_figures.errors_by(kinds, units=units)
    for view, by_name in tested.structure.items():
        if view == "truth" and run.level == "fine":
            continue  # learned on the truth: the same picture
        parts = {shown[name]: structure.pooled(blocks) for name, blocks in by_name.items() if name in shown and blocks}
        spectra = {name: part.spectra() for name, part in parts.items() if part.tiles}
        if any((power["target"] > 0).any() for power in spectra.values()):
            picture, target = ("truth_spectra", "truth") if view == "truth" else ("spectra", "target")
            pictures[picture] = evaluation_figures.spectra(
                spectra, pixel_km=pixel_km(run, view), units=units, target=target
            )
    if not isinstance(run.uncertainty, NoUncertainty) and "test" in tested.spread:
        count, spread, skill = (part.numpy() for part in tested.spread["test"].by_bin())
        coverage = tested.spread["test"].finish()["coverage"]
        pictures["uncertainty"] = evaluation_figures.spread_skill(
            (count, spread, skill), level=run.uncertainty.level, coverage=coverage, units=units
        )
    return pictures


def save(pictures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each picture as PNG below ``folder``; returns their paths."""
    for name, figure in pictures.items():
        figures.save(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in pictures]


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


def _scatter(run: RunConfig, actual: Field, predicted: Field, metrics: Mapping[str, float], units: str) -> Figure:
    scores = {"r2": metrics["test/r2"], "rmse": metrics["test/rmse"]}
    return figures.scatter(actual, predicted, label=run.window.target.upper(), units=units, **scores)


def _rows(features: FeatureCube, predicted: Field, actual: Field) -> list[figures.MapRow]:
    """The tested part of samples spread over the season: coarse, prediction and target, cut to where there is any."""
    samples = np.flatnonzero(np.isfinite(actual).any(axis=(1, 2)))
    spread = np.unique(np.linspace(0, len(samples) - 1, MAP_ROWS).round().astype(int))  # first, middle, last
    rows = []
    for sample in samples[spread]:
        seen = np.argwhere(np.isfinite(actual[sample]))
        box = tuple(slice(low, high + 1) for low, high in zip(seen.min(axis=0), seen.max(axis=0), strict=True))
        title = f"{features.places[sample]} {np.datetime_as_string(features.times[sample], unit='D')}"
        coarse = np.where(np.isfinite(actual[sample]), np.asarray(features.coarse[sample]), np.nan)
        rows.append(figures.MapRow(title, coarse[box], predicted[sample][box], actual[sample][box]))
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
