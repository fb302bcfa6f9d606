"""A map that ``predict.py`` wrote, opened to be read by parts: where it lies, when, and what it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from sifscale.grid import Grid

_MARK = "checkpoint_hash"  # products.MARK; that room would load all networks
_DIMS = ("sample", "y", "x")


@dataclass(frozen=True, eq=False)
class MapFile:
    """An open map. days: first and last day of each sample (sample, 2); cell_px: edge of the native cells whose
    observation the means of the map equal, None where they do not; daily_means: None where that is not known.
    """

    dataset: xr.Dataset
    name: str
    units: str
    grid: Grid
    days: NDArray[np.datetime64]
    cell_px: int | None
    daily_means: bool | None

    def read(self, sample: int, rows: slice, columns: slice) -> NDArray[np.float64]:
        """Values (rows, columns) of a part of a sample, NaN where there is none."""
        values: NDArray[np.float64] = self._part(self.name, sample, rows, columns).astype(np.float64)
        return values

    def observed(self, sample: int, rows: slice, columns: slice) -> NDArray[np.bool_]:
        """Where SIF was observed in a part of a sample, by the quality flags (rows, columns)."""
        about = self.dataset["quality"].attrs
        masks = dict(zip(about["flag_meanings"].split(), np.ravel(about["flag_masks"]), strict=True))
        found: NDArray[np.bool_] = (self._part("quality", sample, rows, columns) & masks["observed"]) > 0
        return found

    def _part(self, name: str, sample: int, rows: slice, columns: slice) -> NDArray[Any]:
        return np.asarray(self.dataset[name].isel(sample=sample, y=rows, x=columns).values)

    def extent_deg(self) -> tuple[float, float, float, float]:
        """West, south, east and north of a box around the map, degrees."""
        grid = self.grid
        east, south = grid.west + grid.width * grid.dx, grid.north - grid.height * grid.dy
        to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
        west_deg, south_deg, east_deg, north_deg = to_degrees.transform_bounds(grid.west, south, east, grid.north)
        return west_deg, south_deg, east_deg, north_deg


@contextmanager
def open_map(path: Path, variable: str | None = None) -> Iterator[MapFile]:
    """Open a Zarr or NetCDF map; variable: null means sif, or the only band that describes no other.

    Raises ValueError, one line, for anything else than such a map with a place on the Earth.
    """
    with _opened(path) as dataset:
        if _MARK not in dataset.attrs:
            raise ValueError(f"map: {path} is no map that predict.py wrote, as it lacks attribute {_MARK}; give one")
        name = _band(path, dataset, variable)
        grid = _grid(path, dataset)
        config = json.loads(dataset.attrs.get("config", "{}"))
        window = config.get("window", {})
        days = np.stack([dataset[key].values for key in ("time_start", "time_end")], axis=1).astype("datetime64[D]")
        yield MapFile(
            dataset=dataset,
            name=name,
            units=str(dataset[name].attrs.get("units", "1")),
            grid=grid,
            days=days,
            cell_px=_cell_px(config) if "quality" in dataset else None,
            daily_means=(window.get("soundings") or {}).get("day_length_corrected"),
        )


@contextmanager
def _opened(path: Path) -> Iterator[xr.Dataset]:
    if not path.exists():
        raise ValueError(f"map: no such file {path}; make it with predict.py, or correct the path")
    if (path / "zarr.json").is_file():
        with xr.open_zarr(path, chunks=None) as dataset:
            yield dataset
    elif path.is_file() and h5py.is_hdf5(path):
        try:
            found = xr.open_dataset(path, engine="h5netcdf", chunks=None)
        except (OSError, RuntimeError, KeyError) as error:  # h5py raises any of these for damage
            detail = " ".join(str(error).split())
            raise ValueError(f"map: {path} is damaged or incomplete ({detail}); make it again") from None
        with found as dataset:
            yield dataset
    else:
        raise ValueError(f"map: {path} is neither Zarr nor NetCDF; give a map made with format=zarr or netcdf")


def _band(path: Path, dataset: xr.Dataset, variable: str | None) -> str:
    bands = [str(name) for name, band in dataset.data_vars.items() if band.dims == _DIMS]
    about = {word for name in bands for word in dataset[name].attrs.get("ancillary_variables", "").split()}
    main = [name for name in bands if name not in about]
    if variable is None:
        variable = "sif" if "sif" in main else main[0] if len(main) == 1 else ""
    if variable not in bands:
        raise ValueError(f"check.variable: must be one of {', '.join(bands) or 'none'}, the bands of {path}")
    return variable


def _grid(path: Path, dataset: xr.Dataset) -> Grid:
    mapping = dataset["spatial_ref"].attrs if "spatial_ref" in dataset else {}
    crs = CRS.from_wkt(mapping["crs_wkt"]) if "crs_wkt" in mapping else None
    if crs is None or not (crs.is_geographic or crs.is_projected) or "GeoTransform" not in mapping:
        raise ValueError(f"map: {path} has no place on the Earth (no CRS), so that no sounding lies on it")
    west, dx, _, north, _, minus_dy = map(float, mapping["GeoTransform"].split())
    return Grid(mapping["crs_wkt"], west, north, dx, -minus_dy, dataset.sizes["y"], dataset.sizes["x"])


def _cell_px(config: dict[str, Any]) -> int | None:
    """Edge of a native (level native: coarse) cell in pixels, of a map whose means over cells are the observed ones."""
    if config.get("conservation", "none") == "none":
        return None
    window = config.get("window", {})
    grid = window.get("grid") or {}
    factor = grid.get("fine_factor") if config.get("level") == "fine" else window.get("factor")
    return int(factor) if factor else None
