"""The structure of each arm's maps, and how it differs from the reference: spectra and similarity of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from mlflow.entities import Run

from sifscale.arms import Arm
from sifscale.bootstrap import structure_of_seeds
from sifscale.config import Study, Tracking
from sifscale.structure import Blocks, from_json, merged, pooled
from sifscale.study_runs import artifact_names
from sifscale.tracking import artifact_json, client

FILE = "structure.json"
COMPARED = ("spectral_error", "effective_resolution_px")  # less is better

Seeds = Mapping[str, Blocks]


def structure_rows(study: Study, arms: Sequence[Arm], tracking: Tracking) -> list[dict[str, object]]:
    """One row an arm, of the view that the study scores: ``Structure.finish``, pooled over folds and seeds.

    pixel_km: side of a pixel, where known. longest_wave_px: of those that may be resolved. For each of ``COMPARED`` its
    difference to the baseline, as ``SCORE_difference``, ``_low``, ``_high``, ``_p`` and ``_blocks``; or why there is
    none, as structure_fault. Empty for an arm of which a run kept no structure of that view: there is none of cells
    and of legacy runs, and earlier versions kept none of the truth.
    """
    files = {arm.name: [_read(run, tracking) for run in arm.runs] for arm in arms}
    by_arm = {arm.name: _by_seed(arm, files[arm.name], study.score) for arm in arms}
    baseline = by_arm.get(study.baseline or "", {})
    rows = []
    for name, seeds in by_arm.items():
        pixel_km = files[name][-1].get("pixel_km", {}).get(study.score)
        row: dict[str, object] = {}
        try:
            if seeds:
                whole = pooled(merged(seeds.values()))
                row = {**whole.finish(pixel_km), "pixel_km": pixel_km, "longest_wave_px": whole.tile_px}
            if seeds and baseline and name != study.baseline:
                row |= _beyond(seeds, baseline)
        except ValueError as error:
            row["structure_fault"] = str(error)
        rows.append({key: None if value != value else value for key, value in row.items()})
    return rows


def _read(run: Run, tracking: Tracking) -> Mapping[str, Any]:
    """What a run's file says, empty where there is none."""
    known = FILE in artifact_names(client(tracking), run)
    return cast(Mapping[str, Any], artifact_json(tracking, run, FILE)) if known else {}


def _by_seed(arm: Arm, files: Sequence[Mapping[str, Any]], view: str) -> Seeds:
    """Structure by seed and block, the folds of a seed together; empty where a run has none."""
    seeds: dict[str, Blocks] = {}
    for values, outcome in zip(files, arm.outcomes, strict=True):
        blocks = from_json(values, view, "model")
        if not blocks:
            return {}
        seeds[outcome.seed] = merged([seeds.get(outcome.seed, {}), blocks])
    return seeds


def _beyond(seeds: Seeds, baseline: Seeds) -> dict[str, object]:
    if any("" in blocks for arm in (seeds, baseline) for blocks in arm.values()):  # of an earlier version: one block
        seeds, baseline = ({seed: {"": pooled(blocks)} for seed, blocks in arm.items()} for arm in (seeds, baseline))
    found: dict[str, object] = {}
    for score in COMPARED:
        difference = structure_of_seeds(seeds, baseline, score)
        found |= {f"{score}_{name}": value for name, value in asdict(difference).items()}
    return found
