"""An open granule of soundings: what a file is, its variables by path, fills, footprint corners and times."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sifscale.sources import SourceError
from sifscale.sources.soundings import FILL_FROM, MARGIN_DEG, Area, FloatArray, GranuleInfo, TimeArray

_PACKING = (("scale_factor", 1.0), ("add_offset", 0.0))
_YEARS = (1995, 2100)
_MICROSECONDS = {"ms": 1e3, "millisecond": 1e3, "s": 1e6, "second": 1e6, "minute": 6e7, "hour": 3.6e9, "day": 8.64e10}
_KINDS = {
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x0e\x03\x13\x01": "HDF4 (such as MOD13A2)",
    b"CDF": "NetCDF-3",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
}


def file_kind(path: Path) -> str:
    """What the first bytes of a file say it is: "HDF5", "text" or another kind in words.

    Raises SourceError for a file that does not exist, may not be read or is empty.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{path}: no such file; check paths.raw and the window's file names") from None
    except PermissionError:
        raise SourceError(f"{path}: no permission to read it; change its mode or its owner") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be opened ({error.strerror}); check its name and the disk") from None
    if not head:
        raise SourceError(f"{path}: the file is empty (0 bytes); fetch it again")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page (of a login or an error)"
    kinds = [kind for magic, kind in _KINDS.items() if head.startswith(magic)]
    return kinds[0] if kinds else "binary data of an unknown kind" if b"\0" in head else "text"


@contextmanager
def open_hdf5(path: Path, product: str) -> Iterator[h5py.File]:
    """An open NetCDF-4 granule; SourceError if it is not one of `product`, or is damaged, also while it is read."""
    kind = file_kind(path)
    try:
        if kind == "HDF5":
            with h5py.File(path, "r") as file:
                kind = _hdf5_product(file)
                if kind == product:
                    yield file
                    return
    except (OSError, RuntimeError, KeyError) as error:
        # h5py raises any of these for damage, depending on what is damaged.
        detail = " ".join(str(error).split())
        raise SourceError(f"{path}: truncated or damaged HDF5 ({detail}); fetch it again") from None
    raise SourceError(f"{path}: looks like {kind}, not {product}; check the kind of source or the file name")


def _hdf5_product(file: h5py.File) -> str:
    names = set(file)
    group = _linked(file, "PRODUCT")
    inner = set(group) if isinstance(group, h5py.Group) else set()
    if any(name.upper().startswith("SIF") for name in inner):
        per_orbit = "scanline" in inner or getattr(_linked(file, "PRODUCT/latitude"), "ndim", 1) > 1
        return "per-orbit TROPOSIF L2 (this needs the daily L2B)" if per_orbit else "TROPOSIF"
    if len(names & {"sif", "dcSIF", "lat_bnds", "lon_bnds", "TIME"}) > 1:
        return "Caltech TROPOMI SIF"
    if inner:
        return f"another Sentinel-5P product (PRODUCT holds {', '.join(sorted(inner)[:5])})"
    if any(name.startswith(("SIF_7", "Daily_SIF_7")) for name in names):
        return "OCO SIF Lite in NetCDF"
    return f"HDF5 with {', '.join(sorted(names)[:5]) or 'nothing in it'}"


def _linked(file: h5py.File, name: str) -> Any:
    """The group or variable that a path leads to, or None; h5py's `in` and `get` find nothing if it is damaged."""
    found = file
    for part in filter(None, name.split("/")):
        if not isinstance(found, h5py.Group) or part not in set(found):
            return None
        found = found[part]
    return found


def find_variable(file: h5py.File, name: str) -> h5py.Dataset:
    """A variable by its path in the file; SourceError, with the names that its group holds, if it is not there."""
    group, _, last = name.rpartition("/")
    found = _linked(file, name)
    if isinstance(found, h5py.Dataset):
        return found
    parent = _linked(file, group)
    holds = ", ".join(sorted(parent)[:12]) if isinstance(parent, h5py.Group) else "no such group"
    raise SourceError(f"{file.filename}: no variable {last} in group /{group} ({holds}); is it another version?")


def read_floats(variable: h5py.Dataset, rows: Any) -> FloatArray:
    """Part of a variable as float64, with NaN for fills, declared or not, and CF packing undone.

    rows: what selects from a h5py.Dataset; it decides the shape. Raises SourceError if it does not hold numbers.
    """
    raw = np.asarray(variable[rows])
    if raw.dtype.kind not in "iuf":
        raise SourceError(f"{variable.file.filename}: {variable.name} holds {raw.dtype}, not numbers; fetch it again")
    values: FloatArray = raw.astype(np.float64)
    fills = [np.ravel(variable.attrs[name]) for name in ("_FillValue", "missing_value") if name in variable.attrs]
    for fill in fills:
        if fill.dtype.kind in "iuf":
            values[np.isin(raw, fill.astype(raw.dtype))] = np.nan
    values[~(np.abs(values) < FILL_FROM)] = np.nan
    if raw.dtype.kind == "i" and raw.dtype.itemsize >= 4:
        # netCDF's own default fills of integers are the lowest numbers but one or two.
        values[raw <= np.iinfo(raw.dtype).min + 2] = np.nan
    scale, offset = (np.ravel(variable.attrs.get(name, number))[0] for name, number in _PACKING)
    values = values * scale + offset
    return values


@dataclass(frozen=True)
class Selection:
    """The soundings of an open granule that lie in an area: of `total` those of `rows` where `inside` is True."""

    file: h5py.File
    total: int
    rows: slice
    inside: NDArray[np.bool_]

    @classmethod
    def of_centres(cls, file: h5py.File, longitude: str, latitude: str, area: Area | None) -> Selection:
        """Those whose centre lies in the area or within MARGIN_DEG of it; all without an area.

        longitude, latitude: paths of the variables. Raises SourceError if there are no soundings or no coordinates.
        """
        shape = find_variable(file, latitude).shape
        if len(shape) != 1 or shape[0] == 0:
            raise SourceError(
                f"{file.filename}: no soundings in it, {latitude} has shape {shape}; leave the granule out"
            )
        everything = cls(file, shape[0], slice(0, shape[0]), np.ones(shape, np.bool_))
        if area is None:
            return everything
        x, y = everything.values(longitude), everything.values(latitude)
        if not (np.isfinite(x) & np.isfinite(y)).any():
            raise SourceError(f"{file.filename}: {longitude}, {latitude} are all missing; fetch it again")
        inside = area.contains(x, y, MARGIN_DEG)
        index = np.flatnonzero(inside)
        rows = slice(int(index[0]), int(index[-1]) + 1) if len(index) else slice(0, 0)
        return cls(file, shape[0], rows, inside[rows])

    def values(self, name: str) -> FloatArray:
        """One variable, (sounding,); SourceError if it is missing or has another length."""
        variable = find_variable(self.file, name)
        if variable.shape != (self.total,):
            raise self._misfit(name, variable)
        return read_floats(variable, self.rows)[self.inside]

    def corners(self, name: str, corner_axis: int) -> FloatArray:
        """Footprint corners, (sounding, 4), of a variable in either order; corner_axis decides between 4 and 4."""
        variable = find_variable(self.file, name)
        layouts = {(4, self.total): 0, (self.total, 4): 1}
        if variable.shape not in layouts:
            raise self._misfit(name, variable)
        axis = corner_axis if self.total == 4 else layouts[variable.shape]
        corners = read_floats(variable, self.rows if axis else (slice(None), self.rows))
        return (corners if axis else corners.T)[self.inside]

    def present(self, names: Mapping[str, str]) -> dict[str, FloatArray]:
        """{key: values} of those variables {key: name} that the granule has."""
        return {key: self.values(name) for key, name in names.items() if _linked(self.file, name)}

    def _misfit(self, name: str, variable: h5py.Dataset) -> SourceError:
        return SourceError(
            f"{self.file.filename}: {name} has shape {variable.shape}, but there are {self.total} soundings; "
            "fetch it again"
        )


def text_attribute(file: h5py.File, name: str, attribute: str) -> str:
    """A text attribute of a variable, "" where there is none; SourceError if there is no such variable."""
    found = np.ravel(find_variable(file, name).attrs.get(attribute, ""))
    text = found[0] if len(found) else ""
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def decode_times(path: Path, name: str, values: FloatArray, units: str) -> TimeArray:
    """Numbers "<unit> since <epoch>" (CF conventions 4.4) as UTC to the microsecond; NaN becomes NaT.

    Raises SourceError for units that cannot be read, and for times outside 1995-2100.
    """
    match = re.fullmatch(r"\s*(\w+)\s+since\s+(\d.*?)\s*", units)
    word = match[1].lower() if match else ""
    step_us = _MICROSECONDS.get(word, _MICROSECONDS.get(word.removesuffix("s")))
    try:
        epoch = pd.Timestamp(match[2]) if match else pd.NaT
    except ValueError:
        epoch = pd.NaT
    if step_us is None or pd.isna(epoch):
        raise SourceError(f'{path}: {name} has units "{units}"; "seconds since 2010-01-01" would be readable')
    start = np.datetime64(epoch.tz_convert(None) if epoch.tz else epoch, "us")
    first, end = (float((np.datetime64(f"{year}-01-01", "us") - start).astype(np.int64)) for year in _YEARS)
    since_us = np.round(values * step_us)
    if (wrong := (since_us < first) | (since_us >= end)).any():
        found = f'{values[wrong][0]:g} "{units}"'
        raise SourceError(f"{path}: {name} {found} is not in {_YEARS[0]}-{_YEARS[1]}; check the epoch")
    missing = np.isnan(since_us)
    return np.where(missing, np.datetime64("NaT"), start + np.where(missing, 0, since_us).astype("timedelta64[us]"))


def time_span(path: Path, product: str, time: TimeArray) -> GranuleInfo:
    """The summary of a granule from the times of all its soundings; SourceError if none has a time."""
    known = time[~np.isnat(time)].astype("datetime64[ns]")
    if not len(known):
        raise SourceError(f"{path}: no sounding has a time; fetch it again")
    return GranuleInfo(path, product, known.min(), known.max(), len(time))
