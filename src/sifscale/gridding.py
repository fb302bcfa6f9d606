"""A part of a window computed: footprints gridded, MODIS granules mosaicked and regridded, rasters cut out."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from sifscale.composites import Part, Tally, grids, in_native, layer_path, read_layer
from sifscale.config import Layer, Resampling, Soundings, Vegetation, VegetationBand
from sifscale.footprint_weights import FOOTPRINT_WEIGHTS, FootprintWeights
from sifscale.footprints import FootprintSums, project_corners
from sifscale.grid import Grid, block_mean
from sifscale.inventory import SOUNDING_READERS, relative_name
from sifscale.regrid import Resampler, source_window
from sifscale.sources import SourceError
from sifscale.sources.mod13 import Granule, read_mod13
from sifscale.sources.sinusoidal import SINUSOIDAL_CRS, tile_grid, tiles_covering
from sifscale.sources.soundings import Area, Quality, filter_soundings
from sifscale.sources.vi_quality import VegetationQuality

FloatBands = dict[str, NDArray[np.float32]]

_STRIP_ROWS = 1200  # counted at once: below 100 MB for pixels of 250 m
CATEGORIES = ("vi_quality", "pixel_reliability", "day_of_year")  # MOD13 layers that no mean makes sense of


def compute(part: Part) -> tuple[dict[str, NDArray[np.generic]], FloatBands, Tally]:
    """Bands (y, x) of the native and of the fine tile, and what became of the input.

    Footprint weights, where the window wants them, are native and (y, x, ky, kx); see `footprint_weights`.
    A file that cannot be used is left out and named in the tally; under ``strict`` it raises SourceError.
    """
    window, tally = part.window, Tally()
    fine: FloatBands = {}
    if window.vegetation:
        fine |= _vegetation(part, window.vegetation, tally)
    for layer in window.fine_layers:
        fine |= _layer(part, layer, part.fine, tally)
    # Means over each native cell, indices included, as in an aggregation of the 1 km product.
    native: dict[str, NDArray[np.generic]] = {
        band: block_mean(field, window.grid.fine_factor) for band, field in fine.items() if in_native(band, window)
    }
    if window.soundings:
        native |= _soundings(part, window.soundings, tally)
    for layer in window.native_layers:
        native |= _layer(part, layer, part.native, tally)
    tally.target_cells = int(np.count_nonzero(~np.isnan(native[window.target].astype(np.float32))))
    return native, fine, tally


def _soundings(part: Part, section: Soundings, tally: Tally) -> dict[str, NDArray[np.generic]]:
    grid, gridding, target, radius = part.native, section.gridding, part.window.target, part.window.footprint_weights
    area = area_of(grid)
    sums = FootprintSums(grid, gridding.method, gridding.subpixels)
    # Shares alone say how much of a cell was seen, whatever weighs in its mean.
    shares = FootprintSums(grid, gridding.method, gridding.subpixels) if gridding.error_weighted else sums
    factor, how = part.window.grid.fine_factor, (gridding.method, gridding.subpixels)
    footprints = FootprintWeights(grid, factor, radius, *how) if radius else None
    quality = Quality(**section.quality.model_dump())
    for info in part.soundings:
        try:
            granule = SOUNDING_READERS[section.product].read(info.path, section, area)
        except SourceError as error:
            _leave_out(part, info.path, error, tally)
            continue
        tally.files += 1
        granule = granule.isel(sounding=np.flatnonzero(part.period.contains(granule["time"].values)))
        _count(granule, quality, grid, tally)
        kept, _ = filter_soundings(granule, quality)
        if not kept.sizes["sounding"]:
            continue
        x, y = project_corners(kept["longitude_bounds"].values, kept["latitude_bounds"].values, grid)
        sigma = kept["sif_error"].values.astype(np.float64)
        usable = np.isfinite(x).all(axis=1) & ((sigma > 0) | (not gridding.error_weighted))
        columns = (x[usable], y[usable], kept["sif"].values.astype(np.float64)[usable], sigma[usable])
        shares.add(*columns)
        precision = 1 / np.square(sigma[usable]) if gridding.error_weighted else None
        if gridding.error_weighted:
            sums.add(*columns, weight=precision)
        if footprints:
            footprints.add(x[usable], y[usable], precision)
    result, seen = sums.finish(), shares.finish()["weight"]
    enough = seen >= max(gridding.min_weight, np.finfo(float).tiny)
    weights = _footprint_weights(part, footprints, enough, tally) if footprints else {}
    return weights | {
        target: np.where(enough, result["mean"], np.nan).astype(np.float32),
        f"{target}_error": np.where(enough, result["error"], np.nan).astype(np.float32),
        "n_soundings": result["n_soundings"],
        "sounding_weight": seen.astype(np.float32),
    }


def _footprint_weights(
    part: Part, footprints: FootprintWeights, enough: NDArray[np.bool_], tally: Tally
) -> dict[str, NDArray[np.generic]]:
    """Weights (y, x, ky, kx) of cells with a value, 0 in the others, over the fine pixels of the window."""
    native, _ = grids(part.window.grid)
    factor = part.window.grid.fine_factor
    rows, columns = (
        slice(-first * factor, (size - first) * factor)
        for first, size in ((part.rows.start, native.height), (part.columns.start, native.width))
    )
    weights, lost = footprints.finish(rows, columns, np.float32)
    weights[~enough] = 0
    tally.lost_share += float(lost[enough].sum())
    return {FOOTPRINT_WEIGHTS: weights}


def _count(granule: xr.Dataset, quality: Quality, grid: Grid, tally: Tally) -> None:
    """Count each sounding in the one tile that its centre lies in, however far its footprint reaches."""
    if not granule.sizes["sounding"]:
        return
    to_grid = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True)
    x, y = to_grid.transform(granule["longitude"].values, granule["latitude"].values)
    if CRS.from_user_input(grid.crs).is_geographic:
        x = x + 360 * np.rint((grid.west + grid.width * grid.dx / 2 - x) / 360)  # a grid may cross the dateline
    column, row = (x - grid.west) // grid.dx, (grid.north - y) // grid.dy
    inside = (column >= 0) & (column < grid.width) & (row >= 0) & (row < grid.height)
    kept, removed = filter_soundings(granule.isel(sounding=np.flatnonzero(inside)), quality)
    tally.soundings.update({"kept": kept.sizes["sounding"]} | removed)


def area_of(grid: Grid) -> Area | None:
    """Longitudes and latitudes that a grid spans; None (everywhere) where it holds a pole."""
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    edge = np.linspace(0, 1, 41)
    # The inside too: a border may touch neither the northernmost point nor a pole.
    x, y = np.meshgrid(grid.west + edge * grid.width * grid.dx, grid.north - edge * grid.height * grid.dy)
    longitude, latitude = to_degrees.transform(x, y)
    if not np.isfinite(longitude).all() or np.abs(latitude).max() > 85:
        return None
    middle = longitude[20, 20]
    from_middle = (longitude - middle + 180) % 360 - 180
    west, east = middle + from_middle.min(), middle + from_middle.max()
    return Area(
        west=float((west + 180) % 360 - 180),
        south=float(latitude.min()),
        east=float((east + 180) % 360 - 180),
        north=float(latitude.max()),
    )


def _vegetation(part: Part, section: Vegetation, tally: Tally) -> FloatBands:
    """MODIS layers of the composite, mosaicked on their own lattice and brought to the fine tile."""
    shape = (part.fine.height, part.fine.width)
    result = {str(band): np.full(shape, np.nan, np.float32) for band in section.bands}
    read: set[tuple[int, int]] = set()
    if part.granules:
        # Along the edge of a tile; products of different pixel sizes do not mix in a window.
        pixels = round(tile_grid(0, 0, 1).dx / part.granules[0].grid.dx)
        sphere = _whole_sphere(pixels)
        if part.rows.start == part.columns.start == 0:
            _count_pixels(part, section, sphere, tally)
        found = source_window(sphere, part.fine)
        if found is not None:
            mosaic = sphere.window(*found)
            layers = np.full((len(section.bands), mosaic.height, mosaic.width), np.nan, np.float32)
            for image in part.granules:
                try:
                    _paste(image, section, mosaic, layers)
                except SourceError as error:
                    _leave_out(part, image.path, error, tally)
                else:
                    tally.files += 1
                    read.update([image.tile] if image.tile else tiles_covering(image.grid))
            for names, method in _methods(section):
                index = [section.bands.index(name) for name in names]
                fields = _resampler(mosaic, part.fine, method).apply(layers[index])
                result |= dict(zip(names, fields, strict=True))
    missing = [f"h{h:02}v{v:02}" for h, v in tiles_covering(part.fine) if (h, v) not in read]
    tally.missing_tiles |= {f"{tile} of {part.period.start}" for tile in missing}
    if missing and section.missing_tile == "stop":
        raise SourceError(
            f"composite {part.period.start}: no MODIS granule for tile {', '.join(missing)}; add it below paths.raw "
            "or set window.vegetation.missing_tile=nan"
        )
    return result


def _methods(section: Vegetation) -> list[tuple[list[VegetationBand], Resampling]]:
    """Which bands are resampled in which way; no mean makes sense of categories."""
    smooth = [band for band in section.bands if band not in CATEGORIES]
    categories = [band for band in section.bands if band in CATEGORIES]
    return [(names, method) for names, method in ((smooth, section.resampling), (categories, "nearest")) if names]


@functools.lru_cache(maxsize=4)
def _whole_sphere(pixels: int) -> Grid:
    """The global MODIS lattice with so many pixels along the edge of a tile."""
    first = tile_grid(0, 0, pixels)
    return Grid(SINUSOIDAL_CRS, first.west, first.north, first.dx, first.dy, 18 * pixels, 36 * pixels)


# Composites of one tile follow each other and share the table of weights; a few tables bound the memory.
@functools.lru_cache(maxsize=3)
def _resampler(source: Grid, target: Grid, method: str) -> Resampler:
    return Resampler(source, target, method)


def _count_pixels(part: Part, section: Vegetation, sphere: Grid, tally: Tally) -> None:
    """Count the pixels that the whole window needs, in the first part of each composite.

    Neighbouring parts read the pixels along their border twice, so that a sum over parts would tell of the tiling.
    """
    found = source_window(sphere, grids(part.window.grid)[1])
    if found is None:
        return
    needed = sphere.window(*found)
    for image in part.granules:
        try:
            rows, columns, _ = _overlap(image, needed)
            for start in range(rows.start, rows.stop, _STRIP_ROWS):
                strip = slice(start, min(start + _STRIP_ROWS, rows.stop))
                if columns.start < columns.stop:
                    dataset, removed = read_mod13(image, (), _quality(section), strip, columns)
                    tally.pixels.update({"read": dataset.sizes["y"] * dataset.sizes["x"]} | removed)
        except SourceError:
            continue  # named by the part that needs it


def _paste(image: Granule, section: Vegetation, mosaic: Grid, layers: NDArray[np.float32]) -> None:
    """Read what the mosaic needs of a granule and put it in its place in the layers (band, y, x)."""
    rows, columns, there = _overlap(image, mosaic)
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    dataset, _ = read_mod13(image, section.bands, _quality(section), rows, columns)
    for band, layer in zip(section.bands, layers, strict=True):
        # A granule of the same tile that was read before keeps what this one lacks.
        layer[there] = np.where(np.isnan(dataset[band].values), layer[there], dataset[band].values)


def _quality(section: Vegetation) -> VegetationQuality:
    return VegetationQuality(**section.quality.model_dump())


def _overlap(image: Granule, mosaic: Grid) -> tuple[slice, slice, tuple[slice, slice]]:
    """Rows and columns of a granule that a piece of the MODIS lattice needs (perhaps none), and where they lie there.

    Raises SourceError for a granule that is not on this lattice.
    """
    if abs(image.grid.dx - mosaic.dx) > 1e-6 * mosaic.dx:
        raise SourceError(
            f"{image.path}: its pixels have {image.grid.dx:.1f} m, others of the composite {mosaic.dx:.1f} m; name one "
            "product in window.vegetation.files"
        )
    if image.lattice_offset_px > 0.01:
        raise SourceError(
            f"{image.path}: its pixels lie {image.lattice_offset_px:.2f} px off the MODIS lattice (a subset cut by the "
            "HEG tool); use the whole tile"
        )
    row0 = round((image.grid.north - mosaic.north) / mosaic.dy)  # of the mosaic, in the granule
    column0 = round((mosaic.west - image.grid.west) / mosaic.dx)
    rows = slice(max(row0, 0), min(row0 + mosaic.height, image.grid.height))
    columns = slice(max(column0, 0), min(column0 + mosaic.width, image.grid.width))
    there = (slice(rows.start - row0, rows.stop - row0), slice(columns.start - column0, columns.stop - column0))
    return rows, columns, there


def _layer(part: Part, layer: Layer, target: Grid, tally: Tally) -> FloatBands:
    """A plain raster on the tile; missing where its file is left out."""
    path = layer_path(layer, part.period, part.raw)
    try:
        raster, source = read_layer(layer, path)
        found = source_window(source, target)
        if found is None:
            raise SourceError(f"{path}: does not touch the window; check its CRS and window.grid.bounds")
    except SourceError as error:
        _leave_out(part, path, error, tally)
        return {layer.band: np.full((target.height, target.width), np.nan, np.float32)}
    rows, columns = found
    values = raster.values[rows, columns]
    return {layer.band: _resampler(source.window(rows, columns), target, layer.resampling).apply(values)}


def _leave_out(part: Part, path: Path, error: SourceError, tally: Tally) -> None:
    if part.window.strict:
        raise error
    tally.faults[relative_name(path, part.raw)] = str(error)
