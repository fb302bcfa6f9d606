"""SIF-MODIS tables (CSV, Parquet): one row a grid cell, one column a band, one file a composite."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr
from numpy.typing import NDArray

from sifscale.grid import Grid
from sifscale.sources import SourceError, file_sha256

_TOLERANCE_CELLS = 0.01
_LINES_SHOWN = 5
_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class TableFile:
    """One composite: its table, first and last day, and the coarse table of the same cells, if any."""

    path: Path
    start: date
    end: date
    coarse_path: Path | None


@dataclass(frozen=True)
class _Table:
    """The used columns of a file; the line of the file is index + 2, as the header is line 1."""

    path: Path
    values: pd.DataFrame  # columns: longitude, latitude and bands by their names in the file
    found: tuple[str, ...]  # all column names of the file

    def lines(self, faulty: NDArray[np.bool_]) -> str:
        """The lines of the file where `faulty` (rows,) is True, the first few of them, in words."""
        numbers = [str(line) for line in self.values.index[faulty] + 2]
        more = f" and {len(numbers) - _LINES_SHOWN} more" if len(numbers) > _LINES_SHOWN else ""
        return f"line{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:_LINES_SHOWN])}{more}"


def read_tables(
    files: Sequence[TableFile],
    *,
    columns: Mapping[str, Sequence[str]],
    scale: Mapping[str, float],
    units: Mapping[str, str],
    longitude: str,
    latitude: str,
    crs: str,
    place: str,
) -> tuple[xr.Dataset, Grid, dict[str, str]]:
    """Read the composites of one window onto the grid that their cell centres lie on.

    columns: {band: accepted column names}, the first one in the file is read; a band in no file is left out.
    scale: {band: factor from raw value to unit}, 1 if not named; units: {band: unit}, "1" if not named.
    longitude, latitude: the columns of the cell centres, in units of crs (degrees, or metres if projected).

    Returns the dataset (sample, y, x) float32 with samples in the order of `files` and NaN where a table has
    no row or no value, its grid, and {file name: SHA-256}. A coarse table gives bands `coarse_<band>`. Raises
    SourceError, one line with file, fault, lines and remedy, for whatever cannot be read in this way.
    """
    _check_request(files, columns, scale, units)
    wanted = [longitude, latitude, *(name for names in columns.values() for name in names)]
    centre = (longitude, latitude)
    native = [_read(file.path, wanted, centre) for file in files]
    coarse = [_read(file.coarse_path, wanted, centre) for file in files if file.coarse_path is not None]
    grid = _common_grid(native, crs, longitude, latitude)
    variables: dict[str, tuple[tuple[str, ...], NDArray[np.float32], dict[str, str]]] = {}
    for prefix, tables in (("", native), ("coarse_", coarse)):
        cells = [_cells(table, grid, longitude, latitude) for table in tables]
        for band, names in _present_columns(tables, columns).items():
            field = np.full((len(tables), grid.height, grid.width), np.nan, np.float32)
            for layer, table, (row, column), name in zip(field, tables, cells, names, strict=True):
                layer[row, column] = table.values[name].to_numpy(np.float64) * scale.get(band, 1.0)
            attrs = {"units": units.get(band, "1"), "long_name": f"{prefix}{band}".replace("_", " ")}
            variables[prefix + band] = (("sample", "y", "x"), field, attrs)
    coords = {
        "y": ("y", grid.y),
        "x": ("x", grid.x),
        "time_start": ("sample", _days([file.start for file in files]), {"long_name": "first day"}),
        "time_end": ("sample", _days([file.end for file in files]), {"long_name": "last day"}),
        "place": ("sample", np.array([place] * len(files), dtype=object)),
    }
    return xr.Dataset(variables, coords), grid, _hashes([*native, *coarse])


def _check_request(
    files: Sequence[TableFile],
    columns: Mapping[str, Sequence[str]],
    scale: Mapping[str, float],
    units: Mapping[str, str],
) -> None:
    if not files:
        raise SourceError("the window names no table; give one file for each composite")
    for file in files:
        if file.end < file.start:
            raise SourceError(f"{file.path}: end {file.end} is before start {file.start}; swap the dates")
    without = [str(file.path) for file in files if file.coarse_path is None]
    if 0 < len(without) < len(files):
        raise SourceError(f"{without[0]}: no coarse table, others have one; name one for all or for none")
    for option, bands in (("scale", scale), ("units", units)):
        if unknown := sorted(set(bands) - set(columns)):
            raise SourceError(f"{option} names {', '.join(unknown)}, but columns does not; correct the band")


def _read(path: Path, wanted: Sequence[str], centre: tuple[str, str]) -> _Table:
    """The wanted columns that the file has, as float64; rows without anything in them are left out."""
    if path.suffix.lower() not in _SUFFIXES:
        raise SourceError(f"{path}: unknown kind of table {path.suffix!r}; give {' or '.join(_SUFFIXES)}")
    if not path.is_file():
        raise SourceError(f"{path}: no such file; check paths.raw and the window's file names")
    try:
        frame = _load(path)
    except pd.errors.EmptyDataError:
        raise SourceError(f"{path}: the file is empty; fetch it again") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError, pa.ArrowInvalid) as error:
        detail = " ".join(str(error).split())
        raise SourceError(f"{path}: cannot be read as a table ({detail}); repair or fetch it again") from None
    found = tuple(map(str, frame.columns))
    if missing := [name for name in centre if name not in found]:
        raise SourceError(
            f"{path}: no column {missing[0]}; columns found: {', '.join(found)}; "
            "name the columns of longitude and latitude"
        )
    frame = frame.dropna(how="all")
    if frame.empty:
        raise SourceError(f"{path}: the table has a header but no rows; fetch it again")
    return _as_numbers(_Table(path, frame[[name for name in found if name in wanted]], found), centre)


def _load(path: Path) -> pd.DataFrame:
    if path.suffix.lower() == ".parquet":
        frame: pd.DataFrame = pq.read_table(path).to_pandas(ignore_metadata=True)
        return frame
    with warnings.catch_warnings():
        # Pandas cuts rows that are longer than the header and only warnsabout the shifted values.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        # Blank lines are read as rows, so that row numbers stay line numbers.
        return pd.read_csv(path, skip_blank_lines=False, low_memory=False, index_col=False)


def _as_numbers(table: _Table, centre: tuple[str, str]) -> _Table:
    numbers = table.values.copy()
    for name in numbers:
        raw = table.values[name]
        number = pd.to_numeric(raw, errors="coerce").astype(np.float64)
        faulty = ((number.isna() & raw.notna()) | np.isinf(number)).to_numpy()
        if faulty.any():
            raise SourceError(
                f"{table.path}: column {name} holds {str(raw[faulty].iloc[0])!r}, not a finite number, "
                f"{table.lines(faulty)}; correct it or leave it empty"
            )
        if name in centre and (missing := number.isna().to_numpy()).any():
            raise SourceError(f"{table.path}: no {name} in {table.lines(missing)}; add it or drop the row")
        numbers[name] = number
    return _Table(table.path, numbers, table.found)


def _common_grid(tables: Sequence[_Table], crs: str, longitude: str, latitude: str) -> Grid:
    """The grid of the fullest table, extended to the cells of all; raises SourceError for cells off it."""
    fullest = max(tables, key=lambda table: len(table.values))
    x, y = (fullest.values[name].to_numpy() for name in (longitude, latitude))
    try:
        lattice = Grid.from_centres(x, y, crs, _TOLERANCE_CELLS)[0]
    except ValueError as error:
        raise SourceError(f"{fullest.path}: {error}") from None
    cells = [_on_lattice(table, lattice, longitude, latitude) for table in tables]
    row, column = (np.concatenate(parts) for parts in zip(*cells, strict=True))
    return lattice.spanning(row, column)[0]


def _on_lattice(
    table: _Table, grid: Grid, longitude: str, latitude: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    x, y = (table.values[name].to_numpy() for name in (longitude, latitude))
    row, column, off_grid = grid.locate(x, y, _TOLERANCE_CELLS)
    if off_grid.any():
        raise SourceError(
            f"{table.path}: {off_grid.sum()} of {len(x)} cell centres are off the window's grid of "
            f"{grid.dx:.6g} x {grid.dy:.6g}, {table.lines(off_grid)}; correct them or put this file in "
            "another window"
        )
    return row, column


def _cells(
    table: _Table, grid: Grid, longitude: str, latitude: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each row of the table, each cell once and inside the grid."""
    row, column = _on_lattice(table, grid, longitude, latitude)
    outside = (row < 0) | (row >= grid.height) | (column < 0) | (column >= grid.width)
    if outside.any():
        raise SourceError(
            f"{table.path}: {outside.sum()} cells lie outside the grid of the native tables, "
            f"{table.lines(outside)}; give the coarse table of the same area"
        )
    duplicate = pd.Series(row * grid.width + column).duplicated(keep=False).to_numpy()
    if duplicate.any():
        raise SourceError(
            f"{table.path}: {duplicate.sum()} rows share a cell with another row, {table.lines(duplicate)}; "
            "keep one row a cell"
        )
    return row, column


def _present_columns(tables: Sequence[_Table], columns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """{band: the column of each table}, for the bands that any table has; all tables must have those."""
    present: dict[str, list[str]] = {}
    for band, accepted in columns.items():
        matches = [[name for name in accepted if name in table.values] for table in tables]
        if not any(matches):
            continue
        for table, names in zip(tables, matches, strict=True):
            if not names:
                raise SourceError(
                    f"{table.path}: no column for band {band} (accepted: {', '.join(accepted)}); found: "
                    f"{', '.join(table.found)}; add the name this file uses"
                )
        present[band] = [names[0] for names in matches]
    return present


def _days(days: Sequence[date]) -> NDArray[np.datetime64]:
    return np.array(days, "datetime64[D]").astype("datetime64[ns]")


def _hashes(tables: Sequence[_Table]) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for table in tables:
        digest = file_sha256(table.path)
        if hashes.setdefault(table.path.name, digest) != digest:
            raise SourceError(f"{table.path}: another file of the window has this name; rename one of them")
    return hashes
