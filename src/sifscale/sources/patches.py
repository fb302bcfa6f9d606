"""Patch sets: one NetCDF-4 file (or Zarr store) with many small fields (sample, y, x) from many places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from sifscale.sources import SourceError
from sifscale.sources.raster import open_dataset, to_float32

_DIMS = ("sample", "y", "x")
# Where a patch lies: its centre, or its upper left corner, which serves distances as well.
_CENTRES = (("lon", "lat"), ("longitude", "latitude"), ("ul_x", "ul_y"), ("centre_x", "centre_y"))
_EARTH_RADIUS_M = 6_371_007.2  # sphere of equal area, as in MODIS's sinusoidal grid
_BLOCK_BYTES = 2**25


def read_patches(
    path: Path,
    *,
    columns: Mapping[str, Sequence[str]],
    scale: Mapping[str, float],
    units: Mapping[str, str],
    valid_range: Mapping[str, tuple[float, float]],
    target: str,
    where: Mapping[str, tuple[float, float]] | None,
    place: Sequence[str],
    pixel_m: float,
    group_distance: float | None,
    group_lattice: int | None = None,
    chunk_samples: int | None = None,
) -> xr.Dataset:
    """Open a patch set lazily: bands (sample, y, x), float32 on Dask, NaN = missing, y from north to south.

    columns: {band: accepted variable names}, the first one in the file is read. scale: {band: factor from the
    decoded value to units}, 1 if not named; units: {band: unit}, else the file's own, or "1". valid_range: {band:
    (least, greatest) value after scaling}, what lies outside is missing. where: {variable: (least, greatest)
    value as the file has it}; the band `target` is missing where one of them is not met. place: per-sample
    coordinates whose joint value names a place. pixel_m: edge of a pixel, for the local coordinates y and x
    (metres from the lower left corner). chunk_samples: samples read at once; None means whole stored chunks, or as
    many as make about 32 MB.

    Coordinates: time_start and time_end (both the file's `time`), place, the file's position and place coordinates,
    and group: places at most group_distance (metres) apart, directly or over others (single linkage), share the name of
    the first of them; with None each place is its own group. Degrees are measured on the sphere. group_lattice: instead
    the pieces of group_lattice x group_lattice places of a lattice, whose whole-numbered coordinates `place` names.

    Rows run from north to south, or as a `y` coordinate says that is no mere row number (steps of 1). Raises
    SourceError, one line with file, fault and remedy, for an unusable file, also where a band is missing everywhere,
    and ValueError for arguments that contradict each other.
    """
    conditions = where or {}
    _check_request(columns, scale, units, valid_range, target, conditions, place)
    if group_distance is not None and group_lattice is not None:
        raise ValueError("group_distance and group_lattice contradict each other; give one of them")
    lengths = {
        "pixel_m": pixel_m,
        "group_distance": group_distance,
        "group_lattice": group_lattice,
        "chunk_samples": chunk_samples,
    }
    for option, value in lengths.items():
        if value is not None and not value > 0:
            raise ValueError(f"{option} must be above 0, found {value}")
    with ExitStack() as after_fault:
        raw = open_dataset(path)
        after_fault.callback(raw.close)
        names = {band: _accepted(path, raw, band, accepted) for band, accepted in columns.items()}
        for name in (*names.values(), *conditions):
            _check_field(path, raw, name)
        coords = _sample_coordinates(path, raw, place, group_distance, group_lattice)
        pixels = raw[[*dict.fromkeys([*names.values(), *conditions])]].transpose(*_DIMS)
        samples = chunk_samples or _samples_at_once(raw[names[target]])
        pixels = _north_up(raw, pixels).chunk({"sample": samples, "y": -1, "x": -1})
        bands = {}
        for band, name in names.items():
            field = _decoded(pixels[name], scale.get(band, 1.0), valid_range.get(band, (-np.inf, np.inf)))
            for other, (least, greatest) in conditions.items() if band == target else ():
                field = field.where((pixels[other] >= least) & (pixels[other] <= greatest))
            _check_any_value(path, band, field)
            unit = units.get(band) or raw[name].attrs.get("units") or "1"
            bands[band] = (_DIMS, field.data, {"units": unit, "long_name": band.replace("_", " ")})
        height, width = pixels.sizes["y"], pixels.sizes["x"]
        coords["y"] = xr.Variable("y", (height - 0.5 - np.arange(height)) * pixel_m, {"units": "m"})
        coords["x"] = xr.Variable("x", (np.arange(width) + 0.5) * pixel_m, {"units": "m"})
        patches = xr.Dataset(bands, coords)
        # From here on the file stays open for as long as the bands are wanted.
        after_fault.pop_all()
        patches.set_close(raw.close)
    return patches


def _check_request(
    columns: Mapping[str, Sequence[str]],
    scale: Mapping[str, float],
    units: Mapping[str, str],
    valid_range: Mapping[str, tuple[float, float]],
    target: str,
    conditions: Mapping[str, tuple[float, float]],
    place: Sequence[str],
) -> None:
    wanted = (("scale", scale), ("units", units), ("valid_range", valid_range), ("target", [target]))
    for option, bands in wanted:
        if unknown := sorted(set(bands) - set(columns)):
            raise ValueError(f"{option} names {', '.join(unknown)}, but columns does not; correct the band")
    for option, ranges in (("valid_range", valid_range), ("where", conditions)):
        for name, (least, greatest) in ranges.items():
            if not least <= greatest:
                raise ValueError(f"{option} of {name} is {least} to {greatest}; give the least value first")
    if not place:
        raise ValueError("place names no coordinate; name those that tell places apart, such as lon and lat")


def _accepted(path: Path, raw: xr.Dataset, band: str, accepted: Sequence[str]) -> str:
    for name in accepted:
        if name in raw.variables:
            return name
    raise SourceError(
        f"{path}: no variable for band {band} (accepted: {', '.join(accepted)}); found: {_names(raw)}; "
        "add the name this file uses"
    )


def _check_field(path: Path, raw: xr.Dataset, name: str) -> None:
    if name not in raw.variables:
        raise SourceError(f"{path}: no variable {name}; found: {_names(raw)}; correct the name")
    field = raw[name]
    if set(field.dims) != set(_DIMS) or 0 in field.shape or field.dtype.kind not in "iufb":
        raise SourceError(
            f"{path}: {name} is {field.dtype} with dimensions {dict(field.sizes)}; patches need numbers with "
            "sample, y and x"
        )


def _names(raw: xr.Dataset) -> str:
    return ", ".join(map(str, raw.variables)) or "none"


def _samples_at_once(field: xr.DataArray) -> int:
    """Samples a Dask block: whole stored chunks, as each is unpacked whole at every access, within a limit."""
    per_block = max(1, _BLOCK_BYTES // (4 * field.sizes["y"] * field.sizes["x"]))
    stored_samples = int(field.encoding.get("preferred_chunks", {}).get("sample", 1))
    return per_block if stored_samples > per_block else per_block // stored_samples * stored_samples


def _north_up(raw: xr.Dataset, pixels: xr.Dataset) -> xr.Dataset:
    if "y" in raw.coords:
        step = np.diff(np.asarray(raw["y"].values, np.float64))
        if (step > 0).all() and not (step == 1).all():
            return pixels.isel(y=slice(None, None, -1))
    return pixels


def _decoded(field: xr.DataArray, scale: float, valid: tuple[float, float]) -> xr.DataArray:
    """The field times scale, float32, NaN outside the valid range; lazy."""
    return field.copy(data=field.data.map_blocks(_decode, scale, *valid, dtype=np.float32))


def _decode(block: NDArray[np.float64], scale: float, least: float, greatest: float) -> NDArray[np.float32]:
    values = np.asarray(block, np.float64) * scale
    # Compared before rounding to float32, so that a limit such as 0.0001 holds for the value 0.0001.
    return to_float32(np.where((values >= least) & (values <= greatest), values, np.nan), 1.0)


def _check_any_value(path: Path, band: str, field: xr.DataArray) -> None:
    """SourceError unless the band has a value somewhere; reads block by block, only up to the first value."""
    try:
        if any(bool(np.isfinite(block).any().compute()) for block in field.data.blocks):
            return
    except (OSError, RuntimeError) as error:
        detail = " ".join(str(error).split())
        raise SourceError(f"{path}: band {band} cannot be read ({detail}); fetch it again") from None
    raise SourceError(f"{path}: band {band} is missing everywhere; check scale, valid_range, where and the file")


def _sample_coordinates(
    path: Path, raw: xr.Dataset, place: Sequence[str], group_distance: float | None, group_lattice: int | None
) -> dict[str, xr.Variable]:
    position = next((pair for pair in _CENTRES if all(name in raw.variables for name in pair)), ())
    for name in dict.fromkeys(("time", *place, *position)):
        if name not in raw.variables or raw[name].dims != ("sample",):
            found = f"with dimensions {dict(raw[name].sizes)}" if name in raw.variables else f"; found: {_names(raw)}"
            raise SourceError(f"{path}: no coordinate {name} of each sample {found}; name one with dimension sample")
        if raw[name].isnull().any():
            raise SourceError(f"{path}: {name} is missing in {int(raw[name].isnull().sum())} samples; complete it")
    time = _time(path, raw)
    parts = [[_text(name, value) for value in raw[name].values] for name in place]
    places = np.array([", ".join(joint) for joint in zip(*parts, strict=True)], object)
    groups = places
    if group_distance is not None:
        if not position:
            pairs = "; ".join(" and ".join(pair) for pair in _CENTRES)
            raise SourceError(f"{path}: no position to group places by; the file needs one of {pairs}")
        x, y = (np.asarray(raw[name].values, np.float64) for name in position)
        label = _chained(_points_m(x, y, position[0].startswith("lon")), places, group_distance)
        _, first, member = np.unique(label, return_index=True, return_inverse=True)
        groups = places[first[member]]
    if group_lattice is not None:
        groups = _lattice_groups(path, raw, place, group_lattice)
    kept = {name: raw[name].load().variable for name in dict.fromkeys((*position, *place))}
    return kept | {
        "time_start": xr.Variable("sample", time, {"long_name": "first day"}),
        "time_end": xr.Variable("sample", time, {"long_name": "last day"}),
        "place": xr.Variable("sample", places),
        "group": xr.Variable("sample", groups, {"long_name": "places that belong into the same part of a split"}),
    }


def _lattice_groups(path: Path, raw: xr.Dataset, place: Sequence[str], edge: int) -> NDArray[np.object_]:
    """Name of the edge x edge piece of the lattice that each sample lies in."""
    for name in place:
        if raw[name].dtype.kind not in "iu":
            raise SourceError(f"{path}: {name} holds {raw[name].dtype}, no whole numbers; group by distance instead")
    parts = [[_text(name, value) for value in raw[name].values // edge] for name in place]
    return np.array([", ".join(joint) for joint in zip(*parts, strict=True)], object)


def _time(path: Path, raw: xr.Dataset) -> NDArray[np.datetime64]:
    try:
        decoded = xr.decode_cf(xr.Dataset({"time": raw["time"].variable}), mask_and_scale=False)["time"]
    except ValueError as error:
        detail = " ".join(str(error).split())
        raise SourceError(f"{path}: time cannot be decoded ({detail}); give it CF units and calendar") from None
    if decoded.dtype.kind != "M":
        raise SourceError(f"{path}: time has no CF units, found {raw['time'].attrs}; write 'days since ...'")
    # Some writers store a missing time as the least integer and declare no fill.
    if missing := int(decoded.isnull().sum()):
        raise SourceError(f"{path}: time is missing in {missing} samples; complete it")
    return decoded.values.astype("datetime64[ns]")


def _text(name: str, value: object) -> str:
    # Nine digits are 1e-6 deg or 1 cm, far below any pixel, and above the rounding of the writers.
    return f"{name} {value:.9g}" if isinstance(value, float) else f"{name} {value}"


def _points_m(x: NDArray[np.float64], y: NDArray[np.float64], degrees: bool) -> NDArray[np.float64]:
    """Points (n, 2 or 3) in metres: the plane as it is, or longitude and latitude on the sphere."""
    if not degrees:
        return np.stack([x, y], axis=1)
    longitude, latitude = np.deg2rad(x), np.deg2rad(y)
    axes = [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
    return _EARTH_RADIUS_M * np.stack(axes, axis=1)


def _chained(points_m: NDArray[np.float64], places: NDArray[np.object_], distance_m: float) -> NDArray[np.int32]:
    """Group number (n,) of samples: linked at most distance_m apart (chord on the sphere), or of one place.

    points_m: (n, d) positions; places: (n,) names. One place stays whole even if its position drifts.
    """
    distinct, point = np.unique(points_m, axis=0, return_inverse=True)
    named, place = np.unique(places.astype(str), return_inverse=True)
    near = cKDTree(distinct).query_pairs(distance_m, output_type="ndarray")
    start = np.concatenate([near[:, 0], point])
    end = np.concatenate([near[:, 1], len(distinct) + place])
    nodes = len(distinct) + len(named)
    links = coo_array((np.ones(len(start)), (start, end)), shape=(nodes, nodes))
    labels: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return labels[point]
