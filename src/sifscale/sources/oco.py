"""OCO-2 and OCO-3 SIF Lite soundings as CSV tables: one row a sounding, corners in lon_1..4 and lat_1..4."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from sifscale.sources import SourceError
from sifscale.sources.granule import file_kind, time_span
from sifscale.sources.soundings import (
    MARGIN_DEG,
    Area,
    FloatArray,
    GranuleInfo,
    TimeArray,
    day_length_factor,
    soundings_dataset,
)

PRODUCT = "OCO SIF"
_LONGITUDES = [f"lon_{corner}" for corner in range(1, 5)]
_LATITUDES = [f"lat_{corner}" for corner in range(1, 5)]
_OPTIONAL = {"solar_zenith": "sza", "view_zenith": "vza"}
# The missing_value of the Lite files, which a table made from one inherits.
_FILL = -999999.0
_FIRST_LINE = 2  # after the header


def read_oco(
    path: Path,
    *,
    day_length_corrected: bool = False,
    area: Area | None = None,
    sif: str = "sif740",
    quality_flags: Collection[int] = (0, 1),
    cloud_flags: Collection[int] | None = None,
) -> xr.Dataset:
    """Soundings (sounding, corner = 4) of one table, those whose centre lies in the area or 0.5 deg around it.

    The centre is the mean of the corners. sif: the column to read (sif740, sif757, sif771). day_length_corrected:
    sif740_D, the daily mean, instead of sif740; the table's error is that of sif740, scaled by sif740_D / sif740.
    quality_flags: the quality_flag kept (0 best, 1 good, 2 failed); cloud_flags: the cloud_flag kept (0 clear,
    1 cloudy, 2 not known), None for all. The coordinate `line` says where in the table a sounding stands, the
    attribute `rows` how many it has. Raises SourceError for a table that cannot be used.
    """
    flags = {"quality_flag": quality_flags} | ({} if cloud_flags is None else {"cloud_flag": cloud_flags})
    name = f"{sif}_D" if day_length_corrected else sif
    required = list(dict.fromkeys(["time", *_LONGITUDES, *_LATITUDES, sif, name, f"{sif}_U", *flags]))
    table = _read(path, required, list(_OPTIONAL.values()))
    longitude, latitude = (_numbers(path, table, names) for names in (_LONGITUDES, _LATITUDES))
    value, instantaneous, error = (_numbers(path, table, [column])[:, 0] for column in (name, sif, f"{sif}_U"))
    if day_length_corrected:
        error *= day_length_factor(value, instantaneous)
    values = {
        "sif": value,
        "sif_error": error,
        "longitude": _mean_longitude(longitude),
        "latitude": latitude.mean(axis=1),
        "longitude_bounds": longitude,
        "latitude_bounds": latitude,
        **{key: _numbers(path, table, [column])[:, 0] for key, column in _OPTIONAL.items() if column in table},
    }
    kept = np.ones(len(table), np.bool_)
    if area is not None:
        kept &= area.contains(values["longitude"], values["latitude"], MARGIN_DEG)
    for flag, wanted in flags.items():
        kept &= np.isin(_numbers(path, table, [flag])[:, 0], list(wanted))
    values = {key: field[kept] for key, field in values.items()}
    soundings = soundings_dataset(path, PRODUCT, name, values, _times(path, table)[kept])
    line = table.index.to_numpy()[kept] + _FIRST_LINE
    return soundings.assign_coords(line=("sounding", line)).assign_attrs(rows=len(table))


def inspect_oco(path: Path) -> GranuleInfo:
    """Number of soundings and first and last time; reads only the times. Raises SourceError as read_oco."""
    return time_span(path, PRODUCT, _times(path, _read(path, ["time"], [])))


def _read(path: Path, required: list[str], optional: list[str]) -> pd.DataFrame:
    """The named columns of the table, as text where they are not all numbers."""
    kind = file_kind(path)
    if kind != "text":
        raise SourceError(f"{path}: looks like {kind}, not {PRODUCT} in a CSV table; check the kind of source")
    wanted = {*required, *optional}
    try:
        # Blank lines are read as rows, so that row numbers stay line numbers.
        table = pd.read_csv(path, skip_blank_lines=False, low_memory=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise SourceError(f"{path}: cannot be read as a table ({detail}); fetch it again") from None
    if missing := [name for name in required if name not in table]:
        found = ", ".join(map(str, table.columns[:12]))
        raise SourceError(f"{path}: no column {', '.join(missing)} (found {found}); check the kind of source")
    if len(table) and not isinstance(table.index, pd.RangeIndex):
        # Pandas takes the surplus for an index, and every column for its neighbour.
        raise SourceError(f"{path}: its rows have more fields than its header; correct the header")
    table = table.dropna(how="all")[[name for name in table if name in wanted]]
    if table.empty:
        raise SourceError(f"{path}: no soundings in it; leave the granule out")
    return table


def _numbers(path: Path, table: pd.DataFrame, columns: list[str]) -> FloatArray:
    """Columns as (sounding, column) float64 with NaN for fills; SourceError names a line that holds anything else."""
    fields = []
    for column in columns:
        number = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
        _refuse(path, table, column, np.isnan(number) & table[column].notna().to_numpy(), "a number")
        fields.append(np.where(np.isfinite(number) & (number != _FILL), number, np.nan))
    return np.stack(fields, axis=1)


def _times(path: Path, table: pd.DataFrame) -> TimeArray:
    text = table["time"]
    time = pd.to_datetime(text.map(str, na_action="ignore").astype(object), errors="coerce", utc=True, format="ISO8601")
    _refuse(path, table, "time", (time.isna() & text.notna()).to_numpy(), "a time such as 2020-06-17 14:41:03")
    naive: TimeArray = time.dt.tz_localize(None).to_numpy("datetime64[ns]")
    return naive


def _refuse(path: Path, table: pd.DataFrame, column: str, faulty: NDArray[np.bool_], wanted: str) -> None:
    if faulty.any():
        found = str(table[column][faulty].iloc[0])
        line = table.index[faulty][0] + _FIRST_LINE
        raise SourceError(f"{path}: line {line}, column {column} holds {found!r}, not {wanted}; correct the line")


def _mean_longitude(corners: FloatArray) -> FloatArray:
    """Mean of corners (sounding, 4) in degrees, -180..180, also where they lie on both sides of the dateline."""
    first = corners[:, :1]
    from_first = (corners - first + 180) % 360 - 180
    mean: FloatArray = (first[:, 0] + from_first.mean(axis=1) + 180) % 360 - 180
    return mean
