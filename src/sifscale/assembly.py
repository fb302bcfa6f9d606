"""A gridded window's cube put together: every part computed and written, by whoever does the work."""

from __future__ import annotations

import functools
import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr

from sifscale import composites, gridding
from sifscale.config import Dask, GriddedWindow
from sifscale.cube import PartialCube, new_cube
from sifscale.footprint_weights import FOOTPRINT_WEIGHTS
from sifscale.grid import Grid
from sifscale.inventory import relative_name, take_stock
from sifscale.parallel import run_all
from sifscale.sources import SourceError

log = logging.getLogger(__name__)


def build_gridded(
    window: GriddedWindow, raw: Path, dask: Dask, path: Path, attrs: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Build the cube at `path` from the files below `raw`; returns {file: SHA-256} of its input, {file: reason} of what
    was left out. A file whose fault shows only when it is read is in both.

    Raises SourceError where nothing can be built, or under ``strict`` for the first bad file.
    """
    stock = take_stock(window, raw, dask)
    native_grid, fine_grid = composites.grids(window.grid)
    periods = composites.periods(window.period)
    fine_bands = composites.fine_bands(window, raw)
    has_fine = bool(fine_bands) and window.grid.fine_factor > 1
    native = _layout(composites.native_bands(window, raw), native_grid, periods, window)
    if window.footprint_weights:
        native = _with_footprint_weights(native, window.footprint_weights, window.grid.fine_factor)
    fine = _layout(fine_bands, fine_grid, periods, window) if has_fine else None
    part_px = window.tile_px if has_fine else window.tile_px // window.grid.fine_factor
    hashes = stock.hashes | composites.layer_hashes(window, raw)
    attrs = {**attrs, "input_files": json.dumps(hashes)}
    with new_cube(path, native, native_grid, fine, fine_grid if has_fine else None, attrs, part_px) as store:
        tally = composites.Tally(faults=dict(stock.faults))
        for found in run_all(
            functools.partial(_build_part, store=store, has_fine=has_fine),
            composites.parts(window, raw, stock.soundings, stock.granules),
            scheduler=dask.scheduler,
            workers=dask.workers,
            memory_limit_mb=dask.memory_limit_mb,
            description="building",
            report=lambda found: {"files": found.files, "soundings": found.soundings["kept"]},
        ):
            tally.add(found)
        if not tally.target_cells:
            raise SourceError(_nothing_there(window, raw, len(stock.soundings), tally))
        store.describe(
            {
                "excluded_files": json.dumps(tally.faults, sort_keys=True),
                "missing_tiles": json.dumps(sorted(tally.missing_tiles)),
                "soundings": json.dumps(tally.soundings, sort_keys=True),
                "modis_pixels": json.dumps(tally.pixels, sort_keys=True),
            }
        )
    for subject, counts in (("soundings", tally.soundings), ("MODIS pixels", tally.pixels)):
        if counts:
            log.info("%s: %s", subject, _counts(counts))
    if window.footprint_weights:
        log.info(
            "footprint weights: %.2f %% of the mean cell's footprints lie beyond %d native cells around it, or beyond "
            "the window, and are left out",
            100 * tally.lost_share / tally.target_cells,
            window.footprint_weights,
        )
    if tally.missing_tiles:
        log.warning("no MODIS granule for tile %s", ", ".join(sorted(tally.missing_tiles)))
    return hashes, tally.faults


def _build_part(part: composites.Part, store: PartialCube, has_fine: bool) -> composites.Tally:
    native, fine, tally = gridding.compute(part)
    store.write("native", part.sample, part.rows, part.columns, native)
    if has_fine:
        factor = part.window.grid.fine_factor
        rows = slice(part.rows.start * factor, part.rows.stop * factor)
        columns = slice(part.columns.start * factor, part.columns.stop * factor)
        store.write("fine", part.sample, rows, columns, fine)
    return tally


def _nothing_there(window: GriddedWindow, raw: Path, files: int, tally: composites.Tally) -> str:
    if window.soundings:
        found = f"{files} usable files, soundings in the window and period: {_counts(tally.soundings) or 'none'}"
        keys = "window.grid.bounds, window.period and window.soundings"
    else:
        layers = [layer for layer in window.native_layers if layer.band == window.target]
        periods = composites.periods(window.period)
        paths = [composites.layer_path(layer, period, raw) for layer in layers for period in periods]
        reasons = [tally.faults.get(relative_name(path, raw)) for path in paths]
        found = next(filter(None, reasons), "its layer is missing all over the window")
        keys = "window.grid.bounds, window.period and window.native_layers"
    return f"{raw}: no cell has a value of {window.target} ({found}); check {keys}"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items() if number)


def _layout(
    bands: Mapping[str, composites.BandSpec], grid: Grid, periods: list[composites.Period], window: GriddedWindow
) -> xr.Dataset:
    """An empty dataset (sample, y, x) with `bands`: {name: (dtype, attributes)}."""
    shape = (len(periods), grid.height, grid.width)
    variables = {}
    for name, (dtype, attrs) in bands.items():
        fill = np.nan if np.dtype(dtype).kind == "f" else 0
        empty = da.full(shape, fill, dtype=dtype, chunks=(1, *shape[1:]))
        variables[name] = (("sample", "y", "x"), empty, attrs)
    days = [np.array([getattr(period, end) for period in periods], "datetime64[ns]") for end in ("start", "end")]
    return xr.Dataset(
        variables,
        {
            "time_start": ("sample", days[0], {"long_name": "first day"}),
            "time_end": ("sample", days[1], {"long_name": "last day"}),
            "place": ("sample", np.array([window.place] * len(periods), dtype=object), {"long_name": "place"}),
        },
    )


def _with_footprint_weights(native: xr.Dataset, radius: int, factor: int) -> xr.Dataset:
    """The native layout with weights (sample, y, x, ky, kx) of the fine pixels around each cell."""
    support_px = (2 * radius + 1) * factor
    shape = (*(native.sizes[axis] for axis in ("sample", "y", "x")), support_px, support_px)
    empty = da.full(shape, np.nan, dtype="float32", chunks=(1, *shape[1:]))
    attrs = {
        "units": "1",
        "long_name": "weight of each fine pixel around the cell in its observation, from the footprints",
    }
    return native.assign({FOOTPRINT_WEIGHTS: (("sample", "y", "x", "ky", "kx"), empty, attrs)})
