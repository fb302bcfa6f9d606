"""Test: scores of a model beside its references, by pixel, by cell, against a fine truth; table, files and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sifscale import block_sums, bootstrap, noise_floor, report, structure
from sifscale.audit import observed_pixels, scored_pixels
from sifscale.config import (
    BlocksSplit,
    GriddedWindow,
    NIRvRatioConfig,
    NoUncertainty,
    PatchWindow,
    PersistenceConfig,
    RunConfig,
)
from sifscale.datamodule import CropDataModule
from sifscale.evaluation import (
    BlockScores,
    FieldCollector,
    Fields,
    GroupSums,
    Structures,
    by_cell,
    errors_by,
    structures,
)
from sifscale.fitting import fit_at_once, known_warnings, lightning_trainer
from sifscale.metrics import Sums, pooled, r2_residual, skill
from sifscale.models import parameter_count
from sifscale.task import REFERENCES, DownscalingTask
from sifscale.tracking import RunLog, is_main_process
from sifscale.uncertainty import Spread
from sifscale.whole import write_text

LARGEST_TILE_PX = 64  # of power spectra; waves longer than that are in the coarse field anyway
ERROR_BARS = ("coverage", "interval_width", "crps", "spread_skill")  # scores of them, in the order of the notes
VIEWS = {"test": "pixels", "cells": "cells", "truth": "fine pixels against the truth"}


@dataclass(frozen=True)
class Tested:
    """What a test found.

    views: sums by view (``VIEWS``), prediction and block. sums: those that the task kept itself
    (``DownscalingTask.test_sums``). Under ``honest`` only: fields, predictions on the grid of the target; groups;
    structure, by view. spread: of runs with error bars, sums about them by view. Of structure and spread the views
    are those of pixels and, on a simulation, of the truth.
    """

    views: dict[str, BlockScores]
    sums: dict[str, Sums]
    floor: noise_floor.NoiseFloor | None
    fields: Fields = field(default_factory=dict)
    groups: GroupSums = field(default_factory=dict)
    structure: dict[str, Structures] = field(default_factory=dict)
    spread: dict[str, Spread] = field(default_factory=dict)


def test(
    run: RunConfig,
    task: DownscalingTask,
    data: CropDataModule,
    fine: CropDataModule | None,
    folder: Path,
    tracker: RunLog,
) -> tuple[dict[str, float], Tested]:
    """Scores on the test part; the table is printed, sums are kept so that folds can be pooled.

    fine: the same part on the fine grid, where its truth is known. Returns the metrics and what they are made of.
    """
    ridge = _ridge(run, task, data)
    views: dict[str, BlockScores] = {}
    views["test"], fields = _predict(run, task, ridge, data, folder, run.finer_by(run.level))
    sums, spread = task.test_sums(), {"test": task.test_spread()}
    # a simulated truth has no noise: what its semivariogram shows at the origin is ground that differs by the pixel
    floor = None if run.level == "fine" else _noise_floor(data)
    tested = Tested(views, sums, floor, fields)
    honest = data.plans.parts is not None and run.protocol == "honest"
    if honest:
        tested = _with_details(run, tested, data)
    if run.level == "fine":
        views["truth"], spread["truth"] = views["test"], spread["test"]
        if "test" in tested.structure:
            tested.structure["truth"] = tested.structure["test"]
    elif fine is not None:
        views["truth"], fields = _predict(run, task, ridge, fine, folder, run.finer_by("fine"))
        spread["truth"] = task.test_spread()
        if honest and run.evaluation.details:
            tested.structure.update(_structures(run, fields, fine, "truth"))
    tested.spread.update({view: sums for view, sums in spread.items() if sums})
    metrics = test_metrics(run, tested) | {"perf/parameters": float(parameter_count(task.model))}
    if run.protocol == "legacy":
        metrics["test/r2_positions"] = sums["model"].r2_positions()
    tracker.metrics(metrics)
    if is_main_process():
        write(run, tested, metrics, folder, tracker)
        show(run, f"{run.label} on {run.window.name} ({run.protocol})", tested, metrics, task.spec.units)
    return metrics, tested


def pixel_km(run: RunConfig, view: str = "test") -> float | None:
    """Edge of a pixel of a view, that of the target or of the fine truth, in km, where the configuration tells it."""
    window = run.window
    if isinstance(window, PatchWindow):
        return window.pixel_m / 1000
    if not isinstance(window, GriddedWindow) or window.grid.pixel < 10:  # degrees
        return None
    return window.grid.pixel / 1000 / run.finer_by(_level(run, view))


def _level(run: RunConfig, view: str) -> Literal["native", "fine"]:
    return "fine" if view == "truth" else run.level


def test_metrics(run: RunConfig, tested: Tested) -> dict[str, float]:
    """Final metrics by their names in MLflow."""
    sums, floor = tested.sums, tested.floor
    metrics: dict[str, float] = {}
    for view, blocks in tested.views.items():
        found = _view_metrics(blocks, sums if view == "test" else {})
        metrics |= {f"{view}/{name}": value for name, value in found.items()}
    for view, bars in tested.spread.items():
        found = bars.finish()
        metrics |= {f"{view}/{name}": found[name] for name in ERROR_BARS if np.isfinite(found[name])}
    for name, key in (("coarse_rmse", "coarse"), ("coarse_rmse_raw", "coarse_raw")):
        metrics[f"test/{name}"] = sums[key].finish()["rmse"]
    for view, by_name in tested.structure.items():
        found = structure.pooled(by_name["model"]).finish(pixel_km(run, view))
        metrics |= {f"{view}/{name}": value for name, value in found.items() if np.isfinite(value)}
    if floor:
        metrics["test/noise_sd"] = floor.noise_sd
        if floor.rmse == floor.rmse:  # NaN: coarse SIF lies on the target's own grid
            metrics["test/noise_floor_rmse"] = floor.rmse
    return metrics


def _view_metrics(blocks: BlockScores, exact: Mapping[str, Sums]) -> dict[str, float]:
    """Scores of one view; ``exact``: sums that a task kept itself, crops that overlap counted as often as they do."""
    sums = {name: exact.get(name) or pooled(of_block) for name, of_block in blocks.items()}
    scores = {name: total.finish() for name, total in sums.items()}
    model = scores["model"]
    names = ("r2", "mae", "rmse", "bias", "correlation", "negative_share")
    metrics = {name: model[name] for name in names}
    metrics["r2_beyond_bilinear"] = r2_residual(sums["model"], sums["bilinear"])
    for reference in (name for name in scores if name != "model"):
        metrics |= {f"{reference}_{name}": scores[reference][name] for name in ("r2", "mae", "rmse")}
        if reference != "nearest":
            metrics[f"skill_{reference}"] = skill(model["rmse"], scores[reference]["rmse"])
    return metrics


def write(run: RunConfig, tested: Tested, metrics: Mapping[str, float], folder: Path, tracker: RunLog) -> None:
    """Metrics, sums, groups and structure as JSON, in the run folder and in MLflow."""
    files: dict[str, Mapping[str, Any]] = {
        "metrics": metrics,
        "test_sums": {name: part.to_dict() for name, part in tested.sums.items()},
    }
    files |= {f"{view}_block_sums": bootstrap.to_json(blocks) for view, blocks in tested.views.items()}
    if tested.groups:
        files["errors_by"] = {
            kind: {group: {name: s.to_dict() for name, s in by_name.items()} for group, by_name in of_kind.items()}
            for kind, of_kind in tested.groups.items()
        }
        side_km = {view: pixel_km(run, view) for view in tested.structure}
        files["structure"] = structure.to_json(tested.structure) | {"pixel_km": side_km}
    if tested.spread:
        files["spread"] = {view: sums.to_dict() for view, sums in tested.spread.items()}
    for name, values in files.items():
        path = folder / f"{name}.json"
        write_text(path, json.dumps(values, indent=1))
        tracker.artifact(path)


def show(run: RunConfig, title: str, tested: Tested, metrics: Mapping[str, float], units: str) -> None:
    """Print a table a view: the model beside its references on the same pixels."""
    label = run.label
    for view, blocks in tested.views.items():
        if view == "truth" and tested.views["test"] is blocks:
            continue  # learned on the truth: the same figures
        exact = tested.sums if view == "test" else {}
        scores = {
            label if name == "model" else name: (exact.get(name) or pooled(of_block)).finish()
            for name, of_block in blocks.items()
        }
        notes = [
            f"RMSE less that of {name}: {report.interval(bootstrap.paired_difference(blocks['model'], blocks[name]))}"
            for name in blocks
            if name not in ("model", "nearest")
        ]
        if view == "test" and tested.floor:
            limit = metrics.get("test/noise_floor_rmse")
            notes.append(noise_floor.describe(tested.floor.noise_sd, limit, scores[label]["target_sd"], units))
        if view in tested.spread:
            notes.append(_about_error_bars(run, tested.spread[view].finish(), scores[label]["mae"], units))
        about = title if view == "test" else f"{title}, {VIEWS[view]}"
        report.show(report.run_table(scores, units, about, notes))


def _about_error_bars(run: RunConfig, found: Mapping[str, float], mae: float, units: str) -> str:
    """Scores of error bars as text, the CRPS beside what it would be without them."""
    assert not isinstance(run.uncertainty, NoUncertainty)
    level, coverage = 100 * run.uncertainty.level, 100 * found["coverage"]
    return (
        f"{level:g} % intervals ({run.uncertainty.name}) cover {coverage:.1f} % of the pixels, mean width "
        f"{found['interval_width']:.3g} {units}; CRPS {found['crps']:.4f} (without error bars: the MAE, {mae:.4f}); "
        f"spread over skill {found['spread_skill']:.2f}"
    )


def _predict(
    run: RunConfig,
    task: DownscalingTask,
    ridge: DownscalingTask | None,
    data: CropDataModule,
    folder: Path,
    zoom: int,
) -> tuple[BlockScores, Fields]:
    """Sums by prediction and block, and predicted fields (honest only), of the model and its references."""
    blocks = _blocks(run, data, zoom)
    scores: BlockScores = {}
    fields: Fields = {}
    for name, tested in (("model", task), ("ridge", ridge)):
        if tested is None:
            continue
        tally = block_sums.BlockTally(blocks, data.plans.test)
        collector = FieldCollector(data.plans.test, data.features.coarse.shape)
        honest = data.plans.parts is not None
        with known_warnings():
            lightning_trainer(run, [tally, *([collector] if honest else [])], folder, validate=False).test(
                tested, data, verbose=False
            )
        keep = ("model", *REFERENCES) if name == "model" else ("model",)
        scores |= {name if key == "model" else key: tally.by_name()[key] for key in keep}
        fields |= {name if key == "model" else key: collector.fields[key] for key in keep if honest}
    return scores, fields


def _blocks(run: RunConfig, data: CropDataModule, zoom: int) -> block_sums.BlockMap:
    """Blocks for the bootstrap: those of the split, given in native pixels, on a grid that is ``zoom`` times finer."""
    rows, columns = run.split.block if isinstance(run.split, BlocksSplit) else run.window.suggested.block_px
    return block_sums.block_map(data.features, (rows * zoom, columns * zoom))


def _with_details(run: RunConfig, tested: Tested, data: CropDataModule) -> Tested:
    features, parts = data.features, data.plans.parts
    assert parts is not None
    if run.evaluation.cell_px:
        cell = run.evaluation.cell_px, run.evaluation.cell_min_valid
        blocks = _blocks(run, data, run.finer_by(run.level))
        cells = by_cell(tested.fields, np.asarray(features.target), blocks, *cell)
        if cells:
            tested.views["cells"] = cells
    if not run.evaluation.details:
        return tested
    return replace(
        tested,
        groups=errors_by(tested.fields, features, parts),
        structure=_structures(run, tested.fields, data, "test"),
    )


def _structures(run: RunConfig, fields: Fields, data: CropDataModule, view: str) -> dict[str, Structures]:
    """Structure of predicted fields, by view; empty where the test part is too small for tiles of spectra."""
    features, parts, zoom = data.features, data.plans.parts, run.finer_by(_level(run, view))
    assert parts is not None
    edge = zoom * min(run.split.block) if isinstance(run.split, BlocksSplit) else min(features.shape)
    tile_px = min(edge, LARGEST_TILE_PX) // 2 * 2
    return {view: structures(fields, features, parts, _blocks(run, data, zoom), tile_px)} if tile_px >= 4 else {}


def _ridge(run: RunConfig, task: DownscalingTask, data: CropDataModule) -> DownscalingTask | None:
    """Ridge regression with conservation on the same features, fitted on the same training part."""
    strengths = run.evaluation.ridge
    known = run.protocol == "honest" and run.coarse.method == "block_mean"
    # These two have a predictor of their own, which ridge would read too.
    more = isinstance(run.model, PersistenceConfig)
    more = more or (isinstance(run.model, NIRvRatioConfig) and run.model.ratio == "footprint")
    if not (strengths and known) or run.model.name == "ridge" or more:
        return None
    model = {"name": "ridge", "strengths": strengths}
    spec = replace(task.spec, model=model, conservation="additive", members=1, uncertainty=None)
    ridge = DownscalingTask.create(spec, task.optimisation, keep_positions=False)
    fit_at_once(ridge, data, run.seed)
    return ridge


def _noise_floor(data: CropDataModule) -> noise_floor.NoiseFloor | None:
    """Of the pixels that the test scores; the semivariograms are of whole samples, for more pairs."""
    features, observed = data.features, observed_pixels(data.features)
    scored = scored_pixels(data.plans, features.coarse.shape) & observed
    together = len(set(features.places)) > 1
    return noise_floor.estimate(
        np.asarray(features.target), observed, scored, features.block_px, together=together
    )
