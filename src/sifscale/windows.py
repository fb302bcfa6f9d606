"""A window's configuration -> its cube: built by ``build.py``, and on demand by training."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from pathlib import Path

import xarray as xr

from sifscale.config import BuildConfig, OsseWindow, Paths, TableWindow, digest
from sifscale.cube import Cube, file_sha256, open_cube, write_cube
from sifscale.grid import Grid
from sifscale.sources import osse, table

log = logging.getLogger(__name__)


def cube_path(config: BuildConfig) -> Path:
    """Where the window's cube lies: one cube a window name."""
    return Path(config.paths.data) / f"{config.window.name}.zarr"


def build_cube(config: BuildConfig) -> Path:
    """Build the window's cube from its sources, replace an older one, and return its path.

    Raises ValueError (SourceError) with one clear line for unusable input.
    """
    window, path = config.window, cube_path(config)
    log.info("building the cube of window %s", window.name)
    attrs = {"window": window.name, "target": window.target, "window_digest": digest(window)}
    if isinstance(window, OsseWindow):
        native, fine, grid = _simulate(window)
        attrs["input_files"] = "{}"
        write_cube(path, native, grid, fine, grid.refine(window.factor), attrs)
    else:
        native, grid, hashes = _read_tables(window, config.paths)
        attrs["input_files"] = json.dumps(hashes)
        write_cube(path, native, grid, None, None, attrs)
    log.info("wrote %s: %s", path, ", ".join(f"{name} {size}" for name, size in native.sizes.items()))
    return path


def open_or_build(config: BuildConfig) -> Cube:
    """The window's cube; built first where there is none, or where its configuration or raw files have changed."""
    path = cube_path(config)
    if path.exists():
        cube = open_cube(path)
        if cube.attrs.get("window_digest") == digest(config.window) and _same_inputs(cube, config):
            return cube
        log.info("window %s or its raw files have changed", config.window.name)
    return open_cube(build_cube(config))


def _same_inputs(cube: Cube, config: BuildConfig) -> bool:
    """Whether the raw files are still those of the cube; where they are absent (a cube from elsewhere), yes."""
    if isinstance(config.window, OsseWindow):
        return True
    files = [path for file in config.window.files for path in (file.path, file.coarse_path) if path]
    present = [Path(config.paths.raw) / path for path in files]
    if not all(path.exists() for path in present):
        return True
    known = json.loads(cube.attrs.get("input_files", "{}"))
    return sorted(file_sha256(path) for path in present) == sorted(known.values())


def _simulate(window: OsseWindow) -> tuple[xr.Dataset, xr.Dataset, Grid]:
    days = timedelta(days=window.period_days)
    starts = [window.start + i * days for i in range(window.periods)]
    native, fine = osse.simulate(
        height_px=window.height_px,
        width_px=window.width_px,
        pixel_m=window.pixel_m,
        fine_factor=window.factor,
        periods=[(start, start + days - timedelta(days=1)) for start in starts],
        seed=window.seed,
        sounding_noise=window.sounding_noise,
        soundings_per_cell=window.soundings_per_cell,
        missing_share=window.missing_share,
        west_m=window.west_m,
        north_m=window.north_m,
        crs=window.crs,
        place=window.place,
    )
    fine["land_cover"] = (
        fine["land_cover"].expand_dims(sample=fine.sizes["sample"]).transpose("sample", "y", "x")
    )
    pixel = window.pixel_m
    grid = Grid(window.crs, window.west_m, window.north_m, pixel, pixel, window.height_px, window.width_px)
    return native, fine, grid


def _read_tables(window: TableWindow, paths: Paths) -> tuple[xr.Dataset, Grid, dict[str, str]]:
    raw = Path(paths.raw)
    files = [
        table.TableFile(
            raw / file.path, file.start, file.end, raw / file.coarse_path if file.coarse_path else None
        )
        for file in window.files
    ]
    return table.read_tables(
        files,
        columns=window.columns,
        scale=window.scale,
        units=window.units,
        longitude=window.longitude,
        latitude=window.latitude,
        crs=window.crs,
        place=window.place,
    )
