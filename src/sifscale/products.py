"""A map as a file: written tile by tile under a temporary name, gone on with after a stop, and named when complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import xarray as xr
import zarr
from filelock import FileLock
from numpy.typing import NDArray

from sifscale.cube import TIME_ENCODING, Cube, consolidate
from sifscale.export import write_cogs, write_netcdf
from sifscale.tile_prediction import ERROR_BARS, FLAGS, MappedTile, Residuals
from sifscale.tiles import Tile
from sifscale.whole import take_name, written_beside

_CHUNK_PX = 256
MARK = "checkpoint_hash"  # an attribute that every map has, and by which one is known
ABOUT = "about.json"  # attributes of the map, beside its GeoTIFFs
# From CF's table, by name and units of a target.
_STANDARD_NAMES = {
    ("sif", "mW m-2 sr-1 nm-1"): "toa_outgoing_radiance_per_unit_wavelength_due_to_solar_induced_fluorescence"
}
_FLAG_NOTES = (
    "no_observation: of the coarse cell; the map is empty there, unless gap_filled. predictor_missing: its training "
    "mean stands in, or the map is empty. extrapolated: a predictor lies outside its values in training. conserved: "
    "changed, so that the mean of the coarse cell is the observation. gap_filled: from the nearest observed cell, "
    "however far, and thus without error bars."
)
_UNFINISHED = "unfinished"  # ends the name of a map that is being made


@dataclass(frozen=True)
class Description:
    """What a map is of. bands: a dataset on its grid; tile_px: edge of the parts that it is written in.

    error_bars: what their attributes say, with interval_level; None of a map without them.
    """

    name: str
    units: str
    bands: xr.Dataset
    dtype: type[np.floating]
    tile_px: int
    attrs: Mapping[str, str]
    error_bars: Mapping[str, str | float] | None = None


class Unfinished:
    """A map being made: a Zarr store beside its final place, and a ledger of the tiles that are in it."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path, self.shape = path, shape
        self._ledger = path / "ledger.jsonl"
        self._store = zarr.open_group(path / "map.zarr", mode="r+")

    def done(self) -> dict[tuple[int, int, int], Residuals]:
        """Residuals of the tiles that are written, by sample and first row and column of the core."""
        lines = self._ledger.read_text().splitlines() if self._ledger.exists() else []
        found = {}
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # empty, or cut off when the job was killed: that tile is made again
                continue
            found[tuple(entry["tile"])] = Residuals(**entry["residuals"])
        return found

    def write(self, sample: int, tile: Tile, mapped: MappedTile, name: str) -> None:
        """Put a tile into the store, and then into the ledger; what reaches into the padding is cut off."""
        rows, columns = (
            slice(core.start, min(core.stop, size)) for core, size in zip(tile.core, self.shape, strict=True)
        )
        height, width = rows.stop - rows.start, columns.stop - columns.start
        parts: dict[str, NDArray[Any]] = {name: mapped.values, "quality": mapped.quality}
        if mapped.bars is not None:
            parts |= {f"{name}_{kind}": values for kind, values in zip(ERROR_BARS, mapped.bars, strict=True)}
        for variable, values in parts.items():
            array = self._store[variable]
            assert isinstance(array, zarr.Array)
            array[sample, rows, columns] = values[:height, :width]
        entry = {"tile": (sample, rows.start, columns.start), "residuals": asdict(mapped.residuals)}
        with self._ledger.open("a") as ledger:
            ledger.write("\n" + json.dumps(entry))  # a line that was cut off before must not spoil this one


@contextmanager
def unfinished(path: Path, key: str, description: Description) -> Iterator[Unfinished]:
    """The map to be at ``path``, as far as the same command (``key``) has made it; what another began is removed.

    Raises ValueError where ``path`` is taken by something that is no map.
    """
    if path.exists() and not _is_map(path):
        raise ValueError(f"output: {path} exists and is no map, thus not replaced; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        partial = path.with_name(f".{path.name}.{key}.{_UNFINISHED}")
        for other in path.parent.glob(f".{path.name}.*.{_UNFINISHED}"):
            if other != partial:
                shutil.rmtree(other)
        if not (partial / "laid_out").exists():
            shutil.rmtree(partial, ignore_errors=True)
            _lay_out(partial, description)
        yield Unfinished(partial, (description.bands.sizes["y"], description.bands.sizes["x"]))


def publish(
    made: Unfinished,
    path: Path,
    format: str,
    by_sample: Mapping[int, Residuals],
    attrs: Mapping[str, str],
    cube_hash: str,
) -> Path:
    """Give the complete map its form and its final name; an older map is replaced. Returns its path.

    format: zarr, netcdf (CF 1.11) or cog, a folder of cloud-optimised GeoTIFFs, one a variable and
    sample. by_sample: residuals before conservation; attrs: of the whole file, besides those that it has.
    """
    store = made.path / "map.zarr"
    group = zarr.open_group(store, mode="r+")
    for name, values in residual_table(by_sample).items():
        array = group[name]
        assert isinstance(array, zarr.Array)
        array[:] = values
    group.attrs.update(dict(attrs))
    consolidate(store)
    if format == "zarr":
        take_name(store, path)
    else:
        with xr.open_zarr(store, chunks={}) as dataset:
            whole = {str(name): value for name, value in dataset.attrs.items()}
            product = Cube(store, dataset, None, cube_hash, whole)
            if format == "netcdf":
                with written_beside(path) as partial:
                    write_netcdf(dataset, product, partial, path.name)
                    take_name(partial, path)
            else:
                folder = made.path / "cog"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                # of one type and one way to be averaged each
                for name in (str(name) for name, band in dataset.data_vars.items() if band.ndim == 3):
                    write_cogs(dataset[[name]].assign_attrs(dataset.attrs), product, name, folder)
                (folder / ABOUT).write_text(json.dumps(whole, indent=1))
                take_name(folder, path)
    shutil.rmtree(made.path)
    return path


def residual_table(by_sample: Mapping[int, Residuals]) -> dict[str, np.ndarray[Any, Any]]:
    """Columns with one value a sample: cells that were compared, RMSE and largest difference before conservation."""
    found = [by_sample[sample] for sample in sorted(by_sample)]
    return {
        "residual_rmse": np.array([residuals.rmse for residuals in found]),
        "residual_max": np.array([residuals.largest if residuals.cells else np.nan for residuals in found]),
        "cells": np.array([residuals.cells for residuals in found], dtype=np.int32),
    }


def _is_map(path: Path) -> bool:
    """Whether what is there was written here, so that it may be replaced."""
    if path.is_file():
        if not h5py.is_hdf5(path):
            return False
        with h5py.File(path) as file:
            return MARK in file.attrs
    if (path / "zarr.json").is_file():
        return MARK in json.loads((path / "zarr.json").read_text()).get("attributes", {})
    return (path / ABOUT).is_file() and MARK in json.loads((path / ABOUT).read_text())


def _lay_out(partial: Path, description: Description) -> None:
    bands, name = description.bands, description.name
    shape = tuple(bands.sizes[dim] for dim in ("sample", "y", "x"))
    mapping = {"grid_mapping": "spatial_ref"} if "spatial_ref" in bands.coords else {}
    per_sample = {
        "residual_rmse": "root mean square difference of cell means to their observation before conservation",
        "residual_max": "largest difference of a cell mean to its observation before conservation",
    }
    chunk = tuple(_chunk(description.tile_px, size) for size in shape[1:])
    # whole tiles in a file, so that no two share one
    shard = tuple(-(-min(description.tile_px, size) // c) * c for c, size in zip(chunk, shape[1:], strict=True))
    dims, layers = ("sample", "y", "x"), _layers(description)
    variables = {
        **{
            key: (dims, da.full(shape, np.nan, dtype=dtype, chunks=(1, *shard)), attrs | mapping)
            for key, (dtype, attrs) in layers.items()
        },
        "quality": (dims, da.zeros(shape, dtype=np.uint8, chunks=(1, *shard)), {
            "long_name": f"quality of {name}",
            "standard_name": "quality_flag",
            "flag_masks": list(FLAGS.values()),
            "flag_meanings": " ".join(FLAGS),
            "comment": _FLAG_NOTES,
            **mapping,
        }),
        **{
            key: ("sample", np.full(shape[0], np.nan), {"long_name": text, "units": description.units})
            for key, text in per_sample.items()
        },
        "cells": ("sample", np.zeros(shape[0], np.int32), {"long_name": "cells with an observation", "units": "1"}),
    }  # fmt: skip
    coords = {key: value.astype(object) if value.dtype.kind in "TU" else value for key, value in bands.coords.items()}
    dataset = xr.Dataset(variables, coords={key: value.compute() for key, value in coords.items()})
    dataset = dataset.drop_encoding().assign_attrs({"Conventions": "CF-1.11", **description.attrs})
    encoding: dict[str, dict[str, Any]] = {
        key: {"chunks": (1, *chunk), "shards": (1, *shard), "fill_value": 0 if key == "quality" else np.nan}
        for key in (*layers, "quality")
    }
    encoding |= {str(key): dict(TIME_ENCODING) for key, value in coords.items() if value.dtype.kind == "M"}
    encoding |= {axis: {"_FillValue": None} for axis in ("y", "x") if axis in coords}
    partial.mkdir(parents=True)
    # without values: an empty chunk reads as its fill value
    store = partial / "map.zarr"
    dataset.to_zarr(store, mode="w-", zarr_format=3, consolidated=False, encoding=encoding, compute=False)
    (partial / "laid_out").touch()


def _layers(description: Description) -> dict[str, tuple[type[np.floating], dict[str, Any]]]:
    """The map and its error bars by name: type, and attributes as CF has them."""
    name, about = description.name, description.error_bars
    label = "solar-induced fluorescence" if name == "sif" else name
    standard = _STANDARD_NAMES.get((name, description.units))
    bars = [f"{name}_{kind}" for kind in ERROR_BARS] if about else []
    values = {"long_name": label, "units": description.units, "cell_methods": "area: mean"}
    values |= {"ancillary_variables": " ".join(["quality", *bars])} | ({"standard_name": standard} if standard else {})
    layers: dict[str, tuple[type[np.floating], dict[str, Any]]] = {name: (description.dtype, values)}
    if about is None:
        return layers
    end = f"end of the {100 * float(about['interval_level']):g} % interval of {label}"
    for key, text in zip(bars, (f"standard error of {label}", f"lower {end}", f"upper {end}"), strict=True):
        layers[key] = np.float32, {"long_name": text, "units": description.units, **about}
    if standard:
        layers[bars[0]][1]["standard_name"] = f"{standard} standard_error"
    return layers


def _chunk(tile_px: int, size: int) -> int:
    """The largest divisor of a tile that is a handy chunk; of a field that is one tile, up to all of it."""
    if tile_px >= size:
        return min(_CHUNK_PX, size)
    return next(px for px in range(min(_CHUNK_PX, tile_px), 0, -1) if tile_px % px == 0)
