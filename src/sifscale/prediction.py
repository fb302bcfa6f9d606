"""A command of ``predict.py``: from a trained model and a cube to a map, tile by tile."""

from __future__ import annotations

import datetime
import json
import math
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from sifscale import report
from sifscale.checkpoints import Checkpoint, load_checkpoint, with_factor
from sifscale.config import PredictConfig, digest
from sifscale.cube import Cube
from sifscale.map_fields import MapFields
from sifscale.map_pictures import draw_pictures, pictures_folder
from sifscale.mapping import map_tiles
from sifscale.prediction_checks import check
from sifscale.products import MARK, Description, publish, unfinished
from sifscale.task import DownscalingTask
from sifscale.tile_fields import FieldSource
from sifscale.tile_prediction import Residuals, TilePredictor
from sifscale.tracking import git_commit
from sifscale.windows import open_or_build

# what changes neither the map nor the way in which it is written
_AS_ONE_LIKES = {"threads", "progress", "batch_size", "dask", "paths", "tracking", "run", "output", "pictures"}


def predict(config: PredictConfig) -> Path:
    """Map the window with the trained model; returns where the map is, which has its name only when it is complete.

    A job that was stopped goes on where it was when the same command is given again. Raises ValueError, one line a
    fault, where model and cube do not go together.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    found = load_checkpoint(config.run, config.tracking)
    spec = found.task.spec
    cube = open_or_build(config)
    level = config.level or ("native" if cube.fine is None else "fine")
    features, coarse = check(config, spec, cube, level)
    conservation = spec.conservation if config.conservation == "as_trained" else config.conservation
    source = FieldSource(cube, features, coarse, spec.channels, spec.target, fine=level == "fine")
    predictor = TilePredictor(
        found.task if coarse.factor == spec.factor else with_factor(found.task, coarse.factor),
        conservation=conservation,
        fill_gaps=config.fill_gaps,
        leave_out=config.missing_predictors == "leave_out",
        half=config.precision == "bf16-mixed",
        device="cuda" if config.accelerator == "gpu" else "cpu",
    )
    layout = predictor.layout(source.shape, config.tile_px)
    resolved = config.model_copy(update={"level": level, "conservation": conservation})
    about = _provenance(resolved, found, cube, coarse.factor)
    path = _output(resolved, found)
    key = digest(found.hash, cube.hash, resolved.model_dump(mode="json", exclude=_AS_ONE_LIKES), git_commit())
    folder = pictures_folder(path) if config.pictures else None
    bars = _about_error_bars(found.task)
    described = Description(spec.target, spec.units, source.bands, predictor.dtype, layout.core_px, about, bars)
    with unfinished(path, key, described) as made:
        by_sample = map_tiles(predictor, source, layout, made, config.batch_size, config.progress)
        pooled = sum(by_sample.values(), start=Residuals())
        more = {"residual_rmse": str(pooled.rmse), "residual_max": str(pooled.largest)} if pooled.cells else {}
        if folder:
            with xr.open_zarr(made.path / "map.zarr", consolidated=False, chunks=None) as drawn:
                shown = MapFields(drawn, source, *_truth(config, cube, level))
                draw_pictures(shown, folder, progress=config.progress)
        publish(made, path, config.format, by_sample, more, cube.hash)
    _show(cube, spec.target, spec.units, by_sample)
    return path


def _output(config: PredictConfig, found: Checkpoint) -> Path:
    if config.output:
        return Path(config.output)
    run = (found.run_id or found.hash)[:8]
    name = f"{config.window.name}_{config.level}_{found.task.spec.model['name']}_{run}"
    return Path(config.paths.output) / "maps" / (name + {"zarr": ".zarr", "netcdf": ".nc", "cog": ""}[config.format])


def _provenance(config: PredictConfig, found: Checkpoint, cube: Cube, factor: int) -> dict[str, str]:
    """Attributes that say where the map comes from. factor: by which it is finer than its coarse field."""
    spec = found.task.spec
    assert spec.origin is not None
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        version = metadata.version("sifscale")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        version = "unknown"
    scales = (
        f"{spec.target} was made {factor} times finer by what was learned from making it {spec.factor} times finer: "
        f"that its relation to the predictors is the same is an assumption"
    )
    return {
        "title": f"{spec.target} of window {config.window.name}, {config.level} grid, by {spec.model['name']}",
        "source": f"sifscale {version}: {spec.model['name']} trained on window {spec.origin.window}",
        "history": f"{now} predict.py run={config.run} window={config.window.name}",
        "date_created": now,
        "run_id": found.run_id or "unknown",
        MARK: found.hash,
        "cube_hash": cube.hash,
        "trained_on_cube_hash": spec.origin.cube_hash,
        "trained_at_git_commit": spec.origin.git_commit,
        "git_commit": git_commit(),
        "sifscale_version": version,
        "trained_factor": str(spec.factor),
        "applied_factor": str(factor),
        **({"comment": scales} if factor != spec.factor else {}),
        "conservation": config.conservation,
        "config": json.dumps(config.model_dump(mode="json"), sort_keys=True),
    }


def _truth(config: PredictConfig, cube: Cube, level: str) -> tuple[xr.DataArray | None, str]:
    """What a map is compared with in its pictures, and its name: a simulated world's truth, or the native SIF."""
    if level == "native" or cube.fine is None:
        return cube.native[config.window.target], "observed"
    return (cube.fine[config.window.truth] if config.window.truth in cube.fine else None), "truth"


def _about_error_bars(task: DownscalingTask) -> dict[str, str | float] | None:
    """Attributes that say what error bars mean; None where there are none."""
    spec, calibration = task.spec, task.calibration
    if spec.uncertainty is None:
        return None
    assert spec.origin is not None
    calibrated = (
        f"calibrated on validation blocks of window {spec.origin.window}, {spec.origin.level} grid, with "
        f"conservation={spec.conservation} and factor {spec.factor}: standard error x {calibration.sd:.4g}, interval x "
        f"{calibration.interval:.4g}"
        if calibration
        else "not calibrated"
    )
    return {
        "interval_level": float(spec.uncertainty["level"]),
        "comment": f"by uncertainty={spec.uncertainty['name']}, {calibrated}; none where quality says gap_filled",
    }


def _show(cube: Cube, target: str, units: str, by_sample: dict[int, Residuals]) -> None:
    """Residuals before conservation, a line a sample."""
    times = np.datetime_as_string(cube.native["time_start"].values, unit="D")
    lines = [
        f"{day}: {found.cells} cells, RMSE {found.rmse:.4g}, largest {found.largest:.4g}"
        for day, found in zip(times, by_sample.values(), strict=True)
        if not math.isnan(found.rmse)
    ]
    if lines:
        report.show(f"{target} [{units}], cell means before conservation against the observed ones", *lines)
