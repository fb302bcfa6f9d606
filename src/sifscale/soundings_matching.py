"""Soundings and the mean of a map over the footprint of each, in the sample whose days hold it."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from tqdm import tqdm

from sifscale.config import SoundingsCheck
from sifscale.footprint_kernels import Floats, Integers
from sifscale.footprints import overlap_areas, prepare, project_corners
from sifscale.grid import Grid, block_mean, block_repeat
from sifscale.map_file import MapFile
from sifscale.sources.oco import read_oco

_PART_PX = 1024  # of the map, read at once for the footprints whose centres lie there
_ROUNDING = 1e-9  # of a share of area
_WIDEST_DEG = 0.5  # from corner to corner; OCO's footprints are about 2 km wide
_NAMED = 3  # lines of a table that are named among those left out
_READ = ("sif", "sif_error", "time", "longitude", "latitude", "longitude_bounds", "latitude_bounds")


@dataclass(frozen=True, eq=False)
class Read:
    """Soundings of all tables (dimension sounding; coordinates file, line), and how many were left out and why."""

    soundings: xr.Dataset
    files: tuple[Path, ...]
    rows: int
    left_out: dict[str, int]


def read_tables(patterns: Sequence[str], check: SoundingsCheck) -> Read:
    """Soundings of tables, each once, without those of other flags and those that lack a value.

    Raises ValueError, one line, for a name or pattern without files, for a table that cannot be read (SourceError
    names the line), and where no sounding is left.
    """
    files = _files(patterns)
    parts, rows = [], 0
    for path in tqdm(files, desc="tables of soundings", unit="file", disable=None if len(files) > 1 else True):
        found = read_oco(
            path,
            sif=check.column.removesuffix("_D"),
            day_length_corrected=check.column.endswith("_D"),
            quality_flags=check.quality_flags,
            cloud_flags=check.cloud_flags,
        )
        rows += int(found.attrs["rows"])
        name = np.full(found.sizes["sounding"], str(path), dtype=object)
        parts.append(found[list(_READ)].assign_coords(file=("sounding", name)))
    soundings = xr.concat(parts, "sounding", combine_attrs="override")
    left_out = {"quality or cloud flag": rows - soundings.sizes["sounding"]}
    rules = {
        "value, error, time or corner missing": _complete,
        f"corners more than {_WIDEST_DEG} degrees apart": _compact,
        "repeated": _first,
    }
    for reason, kept in rules.items():
        mask = kept(soundings)
        if not mask.all():
            left_out[f"{reason} ({_named(soundings, ~mask)})"] = int((~mask).sum())
        soundings = soundings.isel(sounding=np.flatnonzero(mask))
    if not soundings.sizes["sounding"]:
        why = ", ".join(f"{reason}: {number}" for reason, number in left_out.items())
        raise ValueError(f"soundings: none of {rows} is left ({why}); correct check.quality_flags or the tables")
    return Read(soundings, tuple(files), rows, left_out)


def match(read: Read, opened: MapFile, min_cover: float) -> tuple[pd.DataFrame, dict[str, int]]:
    """One row a sounding that has a value of the map, and how many have none, by reason.

    Columns: file, line, time, longitude, latitude (degrees, of the centre), sounding, sounding_error, map and coarse
    (units of the map; coarse NaN where the observation of a native cell is not known), cover (share of the
    footprint's area on pixels with a value), sample, row and column (of the pixel at the footprint's centre), and the
    corners x_1..4, y_1..4 in the CRS of the map. A sounding of the days of several samples counts in the first that
    covers it.
    """
    soundings = read.soundings
    x, y = project_corners(soundings["longitude_bounds"].values, soundings["latitude_bounds"].values, opened.grid)
    day = soundings["time"].values.astype("datetime64[D]")
    row, column, meets = _centres(opened.grid, x, y)
    number = len(day)
    sample_of, in_time = np.full(number, -1), np.zeros(number, bool)
    values = {name: np.full(number, np.nan) for name in ("map", "coarse", "cover")}
    for sample, (first, last) in enumerate(tqdm(opened.days, desc="footprints", unit="sample", disable=None)):
        now = (day >= first) & (day <= last)
        in_time |= now
        for part in _parts(row, column, np.flatnonzero(now & meets & (sample_of < 0))):
            for name, found in _means(opened, sample, x[part], y[part]).items():
                values[name][part] = found
            sample_of[part[values["cover"][part] >= min_cover - _ROUNDING]] = sample
    matched = np.flatnonzero(sample_of >= 0)
    left_out = {
        "outside the days of the map": int((~in_time).sum()),
        "outside the map": int((in_time & ~meets).sum()),
        f"less than {min_cover:.0%} on pixels with a value": int((in_time & meets & (sample_of < 0)).sum()),
    }
    columns = {key: soundings[key].values for key in ("file", "line", "time", "longitude", "latitude")}
    for name, key in (("sounding", "sif"), ("sounding_error", "sif_error")):
        columns[name] = soundings[key].values.astype(np.float64)
    columns |= {**values, "sample": sample_of, "row": row, "column": column}
    columns |= {f"{axis}_{i + 1}": corners[:, i] for axis, corners in (("x", x), ("y", y)) for i in range(4)}
    return pd.DataFrame(columns).iloc[matched].reset_index(drop=True), left_out


def means_over(grid: Grid, values: Floats, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Area-weighted mean of the finite values (height, width) over each footprint, and their share of its area.

    x, y: corners (n, 4), finite, in the CRS of the grid. Both (n,); the mean is NaN and the share 0 where a footprint
    meets no finite value, or has no area.
    """
    footprint, row, column, area = overlap_areas(grid, x, y)
    found = values[row, column]
    known = np.isfinite(found)
    footprint, area, found = footprint[known], area[known], found[known]
    covered: Floats = np.bincount(footprint, area, len(x)).astype(np.float64)
    total: Floats = np.bincount(footprint, area * found, len(x)).astype(np.float64)
    own = prepare(grid, x, y)[1] * (grid.dx * grid.dy)
    return _quotient(total, covered), np.nan_to_num(_quotient(covered, own))


def _means(opened: MapFile, sample: int, x: Floats, y: Floats) -> dict[str, Floats]:
    """Means of the map and of the observed native cells over footprints, and the share covered, each (n,)."""
    grid, cell_px = opened.grid, opened.cell_px or 1
    rows = _span((grid.north - y) / grid.dy, grid.height, cell_px)
    columns = _span((x - grid.west) / grid.dx, grid.width, cell_px)
    part, values = grid.window(rows, columns), opened.read(sample, rows, columns)
    mean, cover = means_over(part, values, x, y)
    coarse = np.full(len(x), np.nan)
    if opened.cell_px:
        cells = block_repeat(block_mean(values, cell_px), cell_px, *values.shape)
        known = np.isfinite(values) & opened.observed(sample, rows, columns)
        over_cells, covered = means_over(part, np.where(known, cells, np.nan), x, y)
        coarse = np.where(covered >= cover - _ROUNDING, over_cells, np.nan)
    return {"map": mean, "coarse": coarse, "cover": cover}


def _span(position_px: Floats, size: int, cell_px: int) -> slice:
    """Rows or columns of the map, in whole cells, that hold the corners, positions in pixels."""
    first, last = np.floor(position_px.min()), np.floor(position_px.max()) + 1
    start = int(np.clip(first, 0, size - 1)) // cell_px * cell_px
    return slice(start, min(size, -(-int(np.clip(last, start + 1, size)) // cell_px) * cell_px))


def _centres(grid: Grid, x: Floats, y: Floats) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """Row and column of the pixel at the mean of the corners, and whether a footprint may meet the map, each (n,)."""
    column_px, row_px = (x - grid.west) / grid.dx, (grid.north - y) / grid.dy
    meets = np.isfinite(column_px).all(axis=1)
    for position_px, size in ((column_px, grid.width), (row_px, grid.height)):
        meets = meets & (position_px.max(axis=1) > 0) & (position_px.min(axis=1) < size)
    row, column = (
        np.clip(np.floor(np.where(meets, position.mean(axis=1), 0)), 0, size - 1).astype(np.int64)
        for position, size in ((row_px, grid.height), (column_px, grid.width))
    )
    return row, column, np.asarray(meets)


def _parts(row: Integers, column: Integers, chosen: Integers) -> Iterator[Integers]:
    """The chosen soundings, those whose centres lie in one part of the map together."""
    if len(chosen):
        places = np.stack([row[chosen], column[chosen]]) // _PART_PX
        _, part = np.unique(places, axis=1, return_inverse=True)
        for number in range(part.max() + 1):
            yield chosen[part.ravel() == number]


def _files(patterns: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        found = [Path(pattern)] if Path(pattern).exists() else [Path(name) for name in sorted(glob.glob(pattern))]
        if not found:
            raise ValueError(f"soundings: no file {pattern}; correct the name or pattern")
        files += found
    return list(dict.fromkeys(path.resolve() for path in files))


def _complete(soundings: xr.Dataset) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = ~np.isnat(soundings["time"].values)
    for name in ("sif", "sif_error", "longitude_bounds", "latitude_bounds"):
        finite = np.isfinite(soundings[name].values)
        kept &= finite.all(axis=tuple(range(1, finite.ndim)))
    return kept


def _compact(soundings: xr.Dataset) -> NDArray[np.bool_]:
    """Which footprints are of a possible size; a single wrong corner would make one of half a continent."""
    longitude, latitude = (soundings[name].values for name in ("longitude_bounds", "latitude_bounds"))
    from_first = (longitude - longitude[:, :1] + 180) % 360 - 180
    spans = np.ptp(from_first, axis=1) * np.cos(np.deg2rad(latitude.mean(axis=1))), np.ptp(latitude, axis=1)
    small: NDArray[np.bool_] = np.maximum(*spans) <= _WIDEST_DEG
    return small


def _first(soundings: xr.Dataset) -> NDArray[np.bool_]:
    """Which soundings are no repetition of an earlier one: the same time and corners."""
    corners = np.hstack([soundings[name].values for name in ("longitude_bounds", "latitude_bounds")])
    repeated = pd.DataFrame(corners).assign(time=soundings["time"].values).duplicated()
    kept: NDArray[np.bool_] = ~repeated.to_numpy(np.bool_)
    return kept


def _named(soundings: xr.Dataset, chosen: NDArray[np.bool_]) -> str:
    at = np.flatnonzero(chosen)
    lines = [f"{Path(str(soundings['file'].values[i])).name} line {soundings['line'].values[i]}" for i in at[:_NAMED]]
    return ", ".join(lines) + (", ..." if len(at) > _NAMED else "")


def _quotient(total: Floats, weight: Floats) -> Floats:
    """total / weight, NaN without a weight."""
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan)
