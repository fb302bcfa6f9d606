"""Do a trained model and a cube go together? Everything that does not is said at once."""

from __future__ import annotations

import torch

from sifscale.config import FOOTPRINT_SIF, Coarse, ConfigError, Features, PredictConfig
from sifscale.cube import Cube
from sifscale.export import crs_of
from sifscale.features import bands_read
from sifscale.models import ANY_FACTOR
from sifscale.models.persistence import CHANNEL as OTHER_COMPOSITE
from sifscale.models.ratio import CHANNEL as FOOTPRINT_RATIO
from sifscale.task_spec import TaskSpec
from sifscale.tile_fields import training_sections

_MADE_IN_TRAINING = (OTHER_COMPOSITE, FOOTPRINT_RATIO, FOOTPRINT_SIF)  # channels that features do not make


def check(config: PredictConfig, spec: TaskSpec, cube: Cube, level: str) -> tuple[Features, Coarse]:
    """How the model's predictors and its coarse field are made, with the factor by which SIF becomes finer here.

    Raises ConfigError with a line for each thing that does not fit.
    """
    assert spec.origin is not None
    features, coarse = training_sections(spec.origin.features, spec.origin.coarse)
    faults = [
        f"run: must not be {spec.model['name']} with the channel '{name}', which is made in training only "
        f"(found '{config.run}')"
        for name in _MADE_IN_TRAINING
        if name in spec.channels
    ]
    faults += _target_faults(config, spec, cube) + _grid_faults(config, spec, cube, level)
    bands = cube.fine if level == "fine" else cube.native
    if bands is not None:
        read, missing = bands_read(bands, features, coarse)
        if missing:
            held = ", ".join(str(name) for name, band in bands.data_vars.items() if band.ndim == 3)
            faults.append(
                f"window: the {level} bands must have {', '.join(missing)}, which the model reads (found {held})"
            )
        for name in read:
            trained, found = spec.origin.units.get(name, "1"), str(bands[name].attrs.get("units", "1"))
            if trained != found:
                faults.append(f"window.units: {name} must be in {trained}, as in training (found {found})")
        if config.format == "cog" and crs_of(bands) is None:
            faults.append("format: must be zarr or netcdf for a window without a place on a map (found 'cog')")
    if config.conservation not in ("as_trained", "none") and spec.block_px == 1:
        faults.append(
            f"conservation: must be none for a model whose coarse field is no mean of cells "
            f"(found '{config.conservation}')"
        )
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        faults.append("accelerator: must be cpu on a machine without a GPU that torch can use (found 'gpu')")
    if faults:
        raise ConfigError(faults)
    return features, coarse.model_copy(update={"factor": _factor(config, cube, level)})


def _factor(config: PredictConfig, cube: Cube, level: str) -> int:
    """By which SIF becomes finer on the grid that is mapped."""
    if level == "fine" and cube.fine is not None:
        return int(cube.fine.sizes["y"] // cube.native.sizes["y"])
    return config.window.factor


def _target_faults(config: PredictConfig, spec: TaskSpec, cube: Cube) -> list[str]:
    if spec.target not in cube.native:
        return [f"window: must have {spec.target}, which the model predicts (found target {config.window.target})"]
    units = str(cube.native[spec.target].attrs.get("units", "1"))
    if units != spec.units:
        return [f"window.units: {spec.target} must be in {spec.units}, as in training (found {units})"]
    return []


def _grid_faults(config: PredictConfig, spec: TaskSpec, cube: Cube, level: str) -> list[str]:
    if level == "fine" and cube.fine is None:
        return [f"level: must be native, as window {config.window.name} has no finer grid (found 'fine')"]
    if level == "fine" and spec.block_px == 1:
        return ["level: must be native for a model whose coarse field is no mean of cells (found 'fine')"]
    found = _factor(config, cube, level)
    key = "window.factor" if level == "native" else "window.grid.fine_factor"
    if found < 2:
        return [f"{key}: must be at least 2, or nothing becomes finer (found {found})"]
    if found == spec.factor:
        return []
    rule = f"{key}: must be {spec.factor}, by which the model was trained to make SIF finer"
    remedy = f"train with window.factor={found}"
    if spec.block_px == 1:
        return [f"{rule}, as its coarse field is no mean of cells; {remedy} (found {found})"]
    if spec.model["name"] not in ANY_FACTOR:
        return [f"{rule}, as weights of {spec.model['name']} belong to that factor; {remedy} (found {found})"]
    if config.factor == "any":
        return []
    other = "" if level == "native" else ", take level=native"
    return [f"{rule}; {remedy}{other}, or say factor=any if what it learned holds at other scales (found {found})"]
