"""A window's configuration -> its cube: built by ``build.py``, and on demand by training."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from sifscale import composites
from sifscale.assembly import build_gridded
from sifscale.config import BuildCommand, BuildConfig, GriddedWindow, OsseWindow, PatchWindow, TableWindow, digest
from sifscale.cube import Cube, file_sha256, open_cube, write_cube
from sifscale.export import export_cube
from sifscale.inventory import matching, relative_name
from sifscale.simulation import STAMP, simulate_raw
from sifscale.sources import table
from sifscale.sources.patches import read_patches

log = logging.getLogger(__name__)

# keys of a window that do not change what is in its cube
NOT_IN_THE_CUBE = {"factor", "truth", "cover", "suggested", "tile_px"}


@dataclass(frozen=True)
class Build:
    """A finished cube, and {file: reason} for the input files that were left out of it."""

    path: Path
    faults: dict[str, str]


def cube_path(config: BuildConfig) -> Path:
    """Where the window's cube lies: one cube a window name."""
    return Path(config.paths.data) / f"{config.window.name}.zarr"


def raw_folder(config: BuildConfig) -> Path:
    """Where the window's raw files lie; simulated ones lie beside the cubes."""
    if isinstance(config.window, OsseWindow):
        return Path(config.paths.data) / "raw" / config.window.name
    return Path(config.paths.raw)


def build_raw(config: BuildConfig) -> Path:
    """Simulate the window's raw files, unless they are there already for the same configuration.

    Raises ValueError for a window that is not simulated.
    """
    window, folder = config.window, raw_folder(config)
    if not isinstance(window, OsseWindow):
        raise ValueError(f"window {window.name} is not simulated; put its raw files below paths.raw, {folder}")
    wanted = _simulation_digest(window)
    with _alone(folder):
        stamp = folder / STAMP
        if stamp.is_file() and json.loads(stamp.read_text()).get("digest") == wanted:
            return folder
        if stamp.is_file():
            shutil.rmtree(folder)  # simulated for another configuration
        log.info("simulating the raw files of window %s", window.name)
        native, _ = composites.grids(window.grid)
        simulate_raw(
            folder,
            grid=native,
            factor=window.grid.fine_factor,
            periods=[(period.start, period.end) for period in composites.periods(window.period)],
            stamp={"digest": wanted},
            progress=log.info,
            **window.simulation.model_dump(),
        )
    return folder


def _simulation_digest(window: OsseWindow) -> str:
    return digest(window.grid, window.period, window.simulation)


def build_cube(config: BuildConfig) -> Build:
    """Build the window's cube from its sources and put it in the place of an older one.

    Raises ValueError (SourceError) with one clear line for unusable input.
    """
    with _alone(cube_path(config)):
        return _build_cube(config)


def _build_cube(config: BuildConfig) -> Build:
    window, path = config.window, cube_path(config)
    log.info("building the cube of window %s", window.name)
    attrs = {"window": window.name, "target": window.target, "window_digest": window_digest(config)}
    if isinstance(window, GriddedWindow):
        hashes, faults = build_gridded(window, raw_folder(config), config.dask, path, attrs)
    elif isinstance(window, PatchWindow):
        hashes, faults = _build_patches(config, window, path, attrs), {}
    else:
        hashes, faults = _build_tables(config, window, path, attrs), {}
    _note_inputs(path, raw_folder(config), [*hashes, *faults])
    log.info("wrote %s", path)
    return Build(path, faults)


def build(command: BuildCommand) -> bool:
    """What ``build.py`` does; whether every input file could be used. Prints where things are."""
    simulated = isinstance(command.window, OsseWindow)
    if command.step == "raw" or (command.step == "all" and simulated):
        print(build_raw(command))
    if command.step == "raw":
        return True
    result = build_cube(command)
    print(result.path)
    if command.export:
        for exported in export_cube(open_cube(result.path), command.export, result.path.parent):
            print(exported)
    for fault in result.faults.values():
        print(f"left out: {fault}", file=sys.stderr)
    if result.faults:
        print(f"{len(result.faults)} files left out; the cube is built from the others", file=sys.stderr)
    return not result.faults


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock on `path`: of two jobs of a sweep, the second waits for the first one's result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def window_digest(config: BuildConfig) -> str:
    """Names everything in a window's configuration that its cube depends on."""
    values = config.window.model_dump(mode="json", exclude=NOT_IN_THE_CUBE)
    if values.get("footprint_weights") is None:  # cubes without them keep the digest from before there were any
        values.pop("footprint_weights", None)
    return digest(values)


def open_or_build(config: BuildConfig) -> Cube:
    """The window's cube; built first where there is none, or where its configuration or raw files have changed."""
    path = cube_path(config)
    if cube := _current(config):
        return cube
    with _alone(path):
        if cube := _current(config):  # built by another job meanwhile
            return cube
        if path.exists():
            log.info("window %s or its raw files have changed", config.window.name)
        if isinstance(config.window, OsseWindow):
            build_raw(config)
        build = _build_cube(config)
    for fault in build.faults.values():
        log.warning("left out: %s", fault)
    return open_cube(path)


def _current(config: BuildConfig) -> Cube | None:
    """The window's cube, unless there is none or it is out of date."""
    path = cube_path(config)
    if not path.exists():
        return None
    cube = open_cube(path)
    known = cube.attrs.get("window_digest") == window_digest(config) and _same_inputs(cube, config)
    return cube if known else None


def _same_inputs(cube: Cube, config: BuildConfig) -> bool:
    """Whether the raw files are still those of the cube; where they are absent (a cube from elsewhere), yes.

    A file whose size and time of change are those of the build is not read again: a year of swaths is 100 GB.
    """
    raw, known = raw_folder(config), json.loads(cube.attrs.get("input_files", "{}"))
    if not all((raw / name).exists() for name in known):
        return True
    notes = _notes_path(cube.path)
    seen = json.loads(notes.read_text()) if notes.is_file() else {}
    if isinstance(config.window, GriddedWindow):
        excluded = json.loads(cube.attrs.get("excluded_files", "{}"))
        if not set(_granule_files(config.window, raw)) <= {*known, *excluded}:
            return False
        # A file that could not be used may have been fetched again.
        if any(name in seen and _stamp(raw / name) not in (None, seen[name]) for name in excluded):
            return False
    return all(seen.get(name) == _stamp(raw / name) or file_sha256(raw / name) == known[name] for name in known)


def _granule_files(window: GriddedWindow, raw: Path) -> list[str]:
    patterns = [*(window.soundings.files if window.soundings else ())]
    patterns += window.vegetation.files if window.vegetation else ()
    return [relative_name(path, raw) for pattern in patterns for path in matching(raw, pattern)]


def _notes_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.inputs.json")


def _note_inputs(path: Path, raw: Path, names: Iterable[str]) -> None:
    _notes_path(path).write_text(json.dumps({name: _stamp(raw / name) for name in names}))


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None  # missing, or a broken link
    return [status.st_size, status.st_mtime_ns]


def _build_tables(config: BuildConfig, window: TableWindow, path: Path, attrs: dict[str, str]) -> dict[str, str]:
    raw = Path(config.paths.raw)
    files = [
        table.TableFile(
            raw / file.path, file.start, file.end, raw / file.coarse_path if file.coarse_path else None
        )
        for file in window.files
    ]
    native, grid, hash_of = table.read_tables(
        files,
        columns=window.columns,
        scale=window.scale,
        units=window.units,
        longitude=window.longitude,
        latitude=window.latitude,
        crs=window.crs,
        place=window.place,
    )
    names = [name for file in window.files for name in (file.path, file.coarse_path) if name]
    hashes = {name: hash_of[Path(name).name] for name in names}
    write_cube(path, native, grid, None, None, attrs | {"input_files": json.dumps(hashes)})
    return hashes


def _build_patches(config: BuildConfig, window: PatchWindow, path: Path, attrs: dict[str, str]) -> dict[str, str]:
    raw = Path(config.paths.raw)
    native = read_patches(
        raw / window.path,
        columns=window.columns,
        scale=window.scale,
        units=window.units,
        valid_range=window.valid_range,
        where=window.where,
        target=window.target,
        place=window.place_by,
        pixel_m=window.pixel_m,
        group_distance=window.group_distance,
        group_lattice=window.group_lattice,
    )
    hashes = {window.path: file_sha256(raw / window.path)}
    write_cube(path, native, None, None, None, attrs | {"input_files": json.dumps(hashes)})
    return hashes
