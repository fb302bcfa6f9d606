"""Raster layers from one grid to another: indices and weights are computed once and used for many layers.

Layers are NumPy arrays (..., y, x), y from north to south; NaN marks a pixel without a value. Positions on a grid are
in its pixels, from the outer north-western corner: the centre of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from scipy import sparse

from sifscale.compiled import compiled
from sifscale.footprints import overlap_areas
from sifscale.grid import Grid

METHODS = ("nearest", "bilinear", "area")

_Floats: TypeAlias = NDArray[np.float64]
_Weights: TypeAlias = tuple[NDArray[Any], NDArray[Any], _Floats]

# A position this near a pixel's edge, and a share of a cell this small, is rounding of coordinates.
_ROUNDING = 1e-9
# Source pixels whose corners are held at once: some 30 MB.
_STRIP_PX = 1 << 18
# A window is found from at least and at most this many steps along each axis of the target.
_WINDOW_STEPS = (256, 512)



class Resampler:
    """How to bring layers from a source grid to a target grid; it does not change and may be shared by threads.

    - `nearest`: the pixel that holds the cell's centre (on an edge the eastern or southern one), for categories too.
    - `bilinear`: between the four pixel centres around the cell's centre; beyond the outermost pixel centres the
      border pixels count alone. A point value: it does not average where the target is coarser.
    - `area`: mean over the cell, each pixel weighted by its overlap in the CRS of the target, where pixels are
      quadrilaterals with straight edges.

    Missing pixels have no weight, and the others are scaled up; a cell is NaN where valid pixels make up less than
    `min_valid` of its weight (`bilinear`) or of its area (`area`; what lies outside the source counts as missing).
    Cells with their centre outside the source (`area`: wholly outside) are NaN. A geographic source once around the
    globe goes on across its seam. Beyond the edge of the globe PROJ goes round again: a sinusoidal source must be NaN
    there, as MODIS tiles are, and cells of a sinusoidal target have no meaning there.

    Raises ValueError for an unknown method or CRS, and min_valid outside 0..1. Memory goes with the size of the target
    (`area`: with the number of overlaps): tile a large target, and read of the source only `source_window`.
    """

    def __init__(self, source: Grid, target: Grid, method: str, min_valid: float = 0.5) -> None:
        if method not in METHODS:
            raise ValueError(f"unknown regridding method {method!r}; use {', '.join(METHODS)}")
        if not 0 <= min_valid <= 1:
            raise ValueError(f"min_valid must lie in 0..1, found {min_valid}; give a share of the weight")
        self.source, self.target, self.method, self.min_valid = source, target, method, min_valid
        if method == "nearest":
            self._nearest = _nearest_pixels(source, target)
        else:
            self._weights = (_bilinear_weights if method == "bilinear" else _area_weights)(source, target)

    def apply(self, layers: NDArray[Any], fill: int | None = None) -> NDArray[Any]:
        """Layers (..., source.height, source.width) on the target: (..., target.height, target.width), same dtype.

        Any float dtype; with `nearest` integers and booleans too, for which `fill` is the value of cells without a
        pixel. Sums are float64. Raises ValueError for other shapes and dtypes, and integers without a fitting fill.
        """
        layers = np.asarray(layers)
        if layers.shape[-2:] != (self.source.height, self.source.width):
            raise ValueError(
                f"layers have shape {layers.shape}, the source grid is {self.source.height} x {self.source.width}; "
                "give (..., y, x) on the source grid"
            )
        missing = _missing_value(layers.dtype, fill, self.method)
        flat = layers.reshape(-1, self.source.height * self.source.width)
        shape = (*layers.shape[:-2], self.target.height, self.target.width)
        if self.method == "nearest":
            return _gather(flat, self._nearest, missing).reshape(shape)
        # Compiled for two dtypes in native byte order only.
        pixels = np.ascontiguousarray(flat.T, np.float32 if layers.dtype.itemsize <= 4 else np.float64)
        means = np.empty((len(flat), self.target.height * self.target.width), pixels.dtype)
        _weighted_means(pixels, self._weights, max(self.min_valid - _ROUNDING, _ROUNDING), means)
        return means.reshape(shape).astype(layers.dtype, copy=False)


def source_window(source: Grid, target: Grid, margin_px: int = 2) -> tuple[slice, slice] | None:
    """Rows and columns of the source that the target needs, or None if they do not meet.

    margin_px is added on each side: 2 are enough for all methods, and for the curvature of the target between the
    points sampled, at least 256 x 256 over border and interior. A target across the seam of a geographic source once
    around the globe needs its whole width. `source.spanning` gives the grid of the window. Raises ValueError for an
    unknown CRS and a negative margin.
    """
    if margin_px < 0:
        raise ValueError(f"margin_px must not be negative, found {margin_px}")
    rows, columns = (np.linspace(0, n, int(np.clip(n, *_WINDOW_STEPS)) + 1) for n in (target.height, target.width))
    row_px, column_px = _positions(source, target, rows, columns)
    known = np.isfinite(row_px) & np.isfinite(column_px)
    if not known.any():
        return None
    height, width = source.height, source.width
    top, bottom = _range(row_px[known], margin_px)
    left, right = _range(column_px[known], margin_px)
    if _wraps(source) and (left < 0 or right > width):
        left, right = 0, width
    rows_used, columns_used = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    if rows_used.start >= rows_used.stop or columns_used.start >= columns_used.stop:
        return None
    return rows_used, columns_used


def _range(positions_px: _Floats, margin_px: int) -> tuple[int, int]:
    first, last = np.floor(positions_px.min() + _ROUNDING), np.ceil(positions_px.max() - _ROUNDING)
    return int(first) - margin_px, int(last) + margin_px


def _nearest_pixels(source: Grid, target: Grid) -> NDArray[np.intp]:
    """Flat index of the pixel that holds the centre of each cell (cells,), -1 outside the source."""
    row_px, column_px, inside = _centres(source, target)
    row = np.minimum((row_px + _ROUNDING).astype(np.intp), source.height - 1)
    column = (column_px + _ROUNDING).astype(np.intp)
    column = column % source.width if _wraps(source) else np.minimum(column, source.width - 1)
    return np.where(inside, row * source.width + column, -1)


def _bilinear_weights(source: Grid, target: Grid) -> _Weights:
    """Weights of the four pixels around the centre of each cell; their sum is 1, or 0 outside the source."""
    row_px, column_px, inside = _centres(source, target)
    row, column = np.floor(row_px - 0.5), np.floor(column_px - 0.5)
    down, right = row_px - 0.5 - row, column_px - 0.5 - column
    rows = np.clip(row[:, None] + [0, 0, 1, 1], 0, source.height - 1)
    columns = column[:, None] + [0, 1, 0, 1]
    columns = np.mod(columns, source.width) if _wraps(source) else np.clip(columns, 0, source.width - 1)
    weight = np.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], axis=1)
    # A neighbour without weight is left out, or rounding would let its missing value count.
    used = inside[:, None] & (weight > _ROUNDING)
    index = (rows * source.width + columns)[used]
    dtype = sparse.get_index_dtype(maxval=max(source.height * source.width, len(index)))
    start = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    return start.astype(dtype), index.astype(dtype), weight[used]


def _area_weights(source: Grid, target: Grid) -> _Weights:
    """The part of each cell that each pixel covers; their sum is 1 where the source covers the cell."""
    cells, pixels, shares = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    window = source_window(source, target)
    rows, columns = window if window is not None else (slice(0, 0), slice(0, 1))
    step = max(1, _STRIP_PX // (columns.stop - columns.start))
    for first in range(rows.start, rows.stop, step):
        strip = (slice(first, min(first + step, rows.stop)), columns)
        pixel, x, y = _pixel_corners(source, target, *strip)
        number, row, column, area = overlap_areas(target, x, y)
        cells.append(row * target.width + column)
        pixels.append(pixel[number])
        shares.append(area / (target.dx * target.dy))
    share = np.concatenate(shares)
    used = share > _ROUNDING
    index = (np.concatenate(cells)[used], np.concatenate(pixels)[used])
    shape = (target.height * target.width, source.height * source.width)
    table = sparse.coo_array((share[used], index), shape=shape).tocsr()
    return table.indptr, table.indices, table.data


def _pixel_corners(
    source: Grid, target: Grid, rows: slice, columns: slice
) -> tuple[NDArray[np.int64], _Floats, _Floats]:
    """Flat index (n,) and corners x, y (n, 4) in the CRS of the target of the pixels near it, of a part of the source.

    A pixel may be there more than once on a geographic target about as wide as the globe.
    """
    row, column = np.arange(rows.start, rows.stop + 1), np.arange(columns.start, columns.stop + 1)
    crs = _crs(target.crs)
    corner_x, corner_y = _transform(
        source.west + column * source.dx, source.north - row * source.dy, _crs(source.crs), crs
    )
    x, y = _quads(corner_x), _quads(corner_y)
    pixel = (row[:-1, None] * source.width + column[:-1]).ravel()
    turn = _full_turn(crs)
    if turn is not None:
        x[:, 0] = _near(x[:, 0], target.west + target.width * target.dx / 2, turn)
        x = _near(x, x[:, :1], turn)
    # Corners that run the other way round are those of a pixel torn apart by the seam of the target's CRS.
    twice_area = (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 3]) - (y[:, 2] - y[:, 0]) * (x[:, 1] - x[:, 3])
    east, south = target.west + target.width * target.dx, target.north - target.height * target.dy
    whole = (twice_area > 0) & (y.max(axis=1) > south) & (y.min(axis=1) < target.north)
    parts = []
    for shift in (0.0,) if turn is None else (-turn, 0.0, turn):
        near = whole & (x.max(axis=1) + shift > target.west) & (x.min(axis=1) + shift < east)
        parts.append((pixel[near], x[near] + shift, y[near]))
    indices, all_x, all_y = zip(*parts, strict=True)
    return np.concatenate(indices), np.concatenate(all_x), np.concatenate(all_y)


def _quads(corners: _Floats) -> _Floats:
    """Corners of pixels (height * width, 4), clockwise from north-west, from those of the lattice (height + 1, ...)."""
    around = (corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1])
    return np.stack(around, axis=-1).reshape(-1, 4)


def _centres(source: Grid, target: Grid) -> tuple[_Floats, _Floats, NDArray[np.bool_]]:
    """Row and column (cells,) of the centres of the target's cells on the source, and which lie inside it (else 0)."""
    rows, columns = (np.arange(n, dtype=np.float64) + 0.5 for n in (target.height, target.width))
    row_px, column_px = (px.ravel() for px in _positions(source, target, rows, columns))
    inside = (row_px >= -_ROUNDING) & (row_px <= source.height + _ROUNDING)
    inside &= (column_px >= -_ROUNDING) & (column_px <= source.width + _ROUNDING)
    return np.where(inside, row_px, 0), np.where(inside, column_px, 0), inside


def _positions(source: Grid, target: Grid, rows_px: _Floats, columns_px: _Floats) -> tuple[_Floats, _Floats]:
    """Row and column on the source of rows (y,) x columns (x,) of the target: each (y, x), NaN without an image."""
    crs = _crs(source.crs)
    x, y = _transform(target.west + columns_px * target.dx, target.north - rows_px * target.dy, _crs(target.crs), crs)
    turn = _full_turn(crs)
    if turn is not None:
        x = _near(x, source.west + source.width * source.dx / 2, turn)
    return (source.north - y) / source.dy, (x - source.west) / source.dx


def _transform(x: _Floats, y: _Floats, origin: CRS, destination: CRS) -> tuple[_Floats, _Floats]:
    """Every x (n,) with every y (m,) in another CRS, each (m, n); NaN where a point has no image. No approximation."""
    x, y = np.meshgrid(x, y)
    if origin == destination:
        return x, y
    x, y = Transformer.from_crs(origin, destination, always_xy=True).transform(x, y)
    lost = ~(np.isfinite(x) & np.isfinite(y))
    return np.where(lost, np.nan, x), np.where(lost, np.nan, y)


def _near(x: _Floats, reference: float | _Floats, turn: float) -> _Floats:
    """x shifted by full turns to within half a turn of the reference; unchanged, to the bit, where it is already."""
    return x - turn * np.rint((x - reference) / turn)


def _crs(text: str) -> CRS:
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise ValueError(f"unknown CRS {text!r} of a grid ({' '.join(str(error).split())})") from None


def _full_turn(crs: CRS) -> float | None:
    """A full turn in units of a geographic CRS (360 for degrees), None for others."""
    return 2 * np.pi / crs.axis_info[0].unit_conversion_factor if crs.is_geographic else None


def _wraps(grid: Grid) -> bool:
    """Whether the first column follows the last one."""
    turn = _full_turn(_crs(grid.crs))
    return turn is not None and abs(grid.width * grid.dx - turn) < 1e-6 * grid.dx


def _missing_value(dtype: np.dtype[Any], fill: int | None, method: str) -> float:
    if dtype.kind == "f":
        if fill is not None:
            raise ValueError(f"{dtype} layers mark missing cells by NaN, found fill={fill}; leave it out")
        return np.nan
    if dtype.kind not in "iub" or method != "nearest":
        raise ValueError(f"{method} cannot regrid {dtype} layers; give floats (or integers and booleans to nearest)")
    lowest, highest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if fill is None or not lowest <= fill <= highest or fill != int(fill):
        raise ValueError(f"{dtype} layers need a fill in {lowest}..{highest} for cells without a pixel, found {fill}")
    return fill


def _gather(layers: NDArray[Any], pixel: NDArray[np.intp], missing: float) -> NDArray[Any]:
    out = np.empty((len(layers), len(pixel)), layers.dtype)
    outside = np.flatnonzero(pixel < 0)
    for layer, result in zip(layers, out, strict=True):
        np.take(layer, pixel, out=result, mode="clip")
        result[outside] = missing
    return out


@compiled
def _weighted_means(pixels: NDArray[Any], weights: _Weights, least: float, means: NDArray[Any]) -> None:
    """Fill means (layers, cells) from pixels (pixels, layers); NaN where the valid weight is below `least` > 0."""
    start, index, weight = weights
    layers = pixels.shape[1]
    total, valid = np.empty(layers), np.empty(layers)
    for cell in range(len(start) - 1):
        total[:] = valid[:] = 0
        for k in range(start[cell], start[cell + 1]):
            # All layers of a pixel lie together, and without a jump for NaN they are added several at a time.
            for layer in range(layers):
                value = pixels[index[k], layer]
                known = not np.isnan(value)
                total[layer] += weight[k] * value if known else 0.0
                valid[layer] += weight[k] if known else 0.0
        for layer in range(layers):
            means[layer, cell] = total[layer] / valid[layer] if valid[layer] >= least else np.nan
