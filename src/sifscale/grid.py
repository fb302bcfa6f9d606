"""Regular grids, and fields made coarser by an integer factor: block means, their inverse, moving means.

Fields are NumPy arrays (..., y, x), y from north to south; NaN marks a pixel without a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
_Scalar = TypeVar("_Scalar", bound=np.generic)

# Share of the points that a step between cell centres must explain; the others are reported as off the grid.
_SHARE_ON_GRID = 0.9
_MAX_CELLS_ALONG_AXIS = 1_000_000


@dataclass(frozen=True)
class Grid:
    """Regular grid by its outer upper-left corner; lengths in units of the CRS, rows from north to south."""

    crs: str
    west: float
    north: float
    dx: float
    dy: float
    height: int
    width: int

    def __post_init__(self) -> None:
        if not (self.dx > 0 and self.dy > 0 and self.height > 0 and self.width > 0):
            raise ValueError(
                f"a grid needs dx, dy, height and width above 0, found dx={self.dx}, dy={self.dy}, "
                f"height={self.height}, width={self.width}; give dy as a positive length"
            )

    @property
    def x(self) -> FloatArray:
        """Cell centres (width,), west to east."""
        return self.west + (np.arange(self.width) + 0.5) * self.dx

    @property
    def y(self) -> FloatArray:
        """Cell centres (height,), north to south."""
        return self.north - (np.arange(self.height) + 0.5) * self.dy

    def refine(self, factor: int) -> Grid:
        """The grid with every cell cut into factor x factor cells. Raises ValueError if factor < 1."""
        _check_factor(factor)
        return Grid(
            self.crs, self.west, self.north, self.dx / factor, self.dy / factor,
            self.height * factor, self.width * factor,
        )  # fmt: skip

    def window(self, rows: slice, columns: slice) -> Grid:
        """The grid of some rows and columns (with start and stop) of this one."""
        return Grid(
            self.crs, self.west + columns.start * self.dx, self.north - rows.start * self.dy, self.dx, self.dy,
            rows.stop - rows.start, columns.stop - columns.start,
        )  # fmt: skip

    def locate(
        self, x: FloatArray, y: FloatArray, tolerance: float = 0.01
    ) -> tuple[IntArray, IntArray, BoolArray]:
        """Row, column and an off-grid mask of points (n,), on the grid continued beyond its borders.

        A point is off the grid (row and column 0) when it lies more than `tolerance` cells from the nearest
        cell centre along x or y. Rows and columns outside the grid itself are returned as they are.
        """
        column_px = (x - self.west) / self.dx - 0.5
        row_px = (self.north - y) / self.dy - 0.5
        column, row = np.rint(column_px), np.rint(row_px)
        on_grid = (np.abs(column_px - column) <= tolerance) & (np.abs(row_px - row) <= tolerance)
        # NaN and infinite coordinates have no cell; the mask tells them apart from cell 0.
        column, row = np.where(on_grid, column, 0), np.where(on_grid, row, 0)
        return row.astype(np.int64), column.astype(np.int64), ~on_grid

    @classmethod
    def from_centres(
        cls, x: FloatArray, y: FloatArray, crs: str, tolerance: float = 0.01
    ) -> tuple[Grid, IntArray, IntArray, BoolArray]:
        """Find the regular grid behind scattered cell centres.

        x, y: (n,) centres, in any order; cells, rows and columns may be missing, as long as some neighbouring
        rows and columns are there. tolerance: largest distance from a cell centre, in cells. Returns the
        grid that spans the points on it, the row and column of each point, and a mask of the points that are
        off the grid (row and column 0). The step along an axis is the longest gap between neighbouring values
        that puts 90 % of the points on a grid without putting several into one cell.
        Raises ValueError when there is no such step.
        """
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError("centre coordinates contain NaN or infinite values; drop these points first")
        x_origin, dx = _axis_lattice(x, y, tolerance, "x")
        y_origin, dy = _axis_lattice(y, x, tolerance, "y")
        lattice = cls(crs, x_origin - dx / 2, y_origin + dy / 2, dx, dy, 1, 1)
        row, column, off_grid = lattice.locate(x, y, tolerance)
        if off_grid.all():
            raise ValueError("no centre is on a grid along x and y at once; check the coordinate columns")
        grid, row0, column0 = lattice.spanning(row[~off_grid], column[~off_grid])
        return grid, np.where(off_grid, 0, row - row0), np.where(off_grid, 0, column - column0), off_grid

    def spanning(self, row: IntArray, column: IntArray) -> tuple[Grid, int, int]:
        """The grid of the same cells that just holds row, column (n,); and its first row and column here."""
        row0, column0 = int(row.min()), int(column.min())
        grid = Grid(
            self.crs, self.west + column0 * self.dx, self.north - row0 * self.dy, self.dx, self.dy,
            int(row.max()) - row0 + 1, int(column.max()) - column0 + 1,
        )  # fmt: skip
        return grid, row0, column0


def _axis_lattice(values: FloatArray, others: FloatArray, tolerance: float, name: str) -> tuple[float, float]:
    """One cell centre and the step of the regular positions behind values (n,); others: the other axis."""
    gaps = np.diff(np.unique(values))
    gaps = gaps[gaps * _MAX_CELLS_ALONG_AXIS >= gaps.sum()]
    # Gaps that agree within 2 % stand for one candidate; the coarsest first, because every fraction of the
    # true step explains the points as well, and a point half-way between two columns must not halve it.
    _, first = np.unique(np.floor(np.log(gaps) / np.log(1.02)), return_index=True)
    points = len(np.unique(np.stack([values, others]), axis=1).T)
    for candidate in gaps[first][::-1]:
        fit = _fit_step(values, float(candidate))
        if fit is None:
            continue
        origin, step = fit
        index_px = (values - origin) / step
        on_grid = np.abs(index_px - np.rint(index_px)) <= tolerance
        # A step as long as a hole in the area puts all on either side into one cell: cells must stay apart.
        cells = len(np.unique(np.stack([np.rint(index_px), others]), axis=1).T)
        if on_grid.mean() >= _SHARE_ON_GRID and cells >= _SHARE_ON_GRID * points:
            return origin, step
    raise ValueError(
        f"no regular step along {name} puts {_SHARE_ON_GRID:.0%} of the {len(values)} centres on a grid "
        f"(to {tolerance} cells); check the coordinates (two neighbouring rows and columns at least)"
    )


def _fit_step(values: FloatArray, candidate: float) -> tuple[float, float] | None:
    """(one position, step) near a candidate step between the positions in values; None if it fits nothing."""
    values = np.sort(values)
    position = np.concatenate([[0], np.cumsum(np.diff(values) > candidate / 4)])
    weight = np.bincount(position)
    centre = np.bincount(position, values) / weight
    gap = np.diff(centre)
    neighbouring = np.abs(gap / candidate - 1) < 0.1
    if not neighbouring.any():
        return None
    # Rounding noise cancels along a run of neighbours, so the mean gap holds over the whole axis.
    step = float(gap[neighbouring].mean())
    from_heaviest = (centre - centre[weight.argmax()]) / step
    index = np.rint(from_heaviest)
    on_grid = np.flatnonzero(np.abs(from_heaviest - index) <= 0.1)
    first, last = on_grid[0], on_grid[-1]
    if last > first:
        step = float((centre[last] - centre[first]) / (index[last] - index[first]))
    return float(np.median(centre[on_grid] - index[on_grid] * step)), step


def block_mean(field: FloatArray, factor: int) -> FloatArray:
    """Mean of the valid pixels of each factor x factor block: (..., y, x) -> (..., ceil(y/f), ceil(x/f)).

    Blocks cut by the lower or right edge use what is there; a block without a valid pixel is NaN. The float
    dtype is kept (sums are float64), integers give float64. Raises ValueError if factor < 1.
    """
    padded = pad_to_multiple(_as_float(field), factor)
    *lead, height, width = padded.shape
    blocks = padded.reshape(*lead, height // factor, factor, width // factor, factor)
    valid = ~np.isnan(blocks)
    total = np.where(valid, blocks, 0).sum(axis=(-3, -1), dtype=np.float64)
    return _mean(total, valid.sum(axis=(-3, -1)), padded.dtype)


def block_repeat(coarse: NDArray[_Scalar], factor: int, height: int, width: int) -> NDArray[_Scalar]:
    """Give every pixel its block's value: (..., ceil(height/f), ceil(width/f)) -> (..., height, width).

    Inverse of block_mean for fields that are constant in each block. ValueError if the shape does not fit.
    """
    _check_factor(factor)
    expected = (-(-height // factor), -(-width // factor))
    if coarse.shape[-2:] != expected:
        raise ValueError(
            f"coarse field is {coarse.shape[-2:]} but {height} x {width} pixels in blocks of {factor} make "
            f"{expected}; give the height and width of the field that was averaged"
        )
    return coarse.repeat(factor, axis=-2).repeat(factor, axis=-1)[..., :height, :width]


def moving_mean(field: FloatArray, factor: int) -> FloatArray:
    """Mean of the valid pixels in the factor x factor neighbourhood of each pixel: (..., y, x), same shape.

    The neighbourhood is clipped at the border; NaN where the centre is NaN. With factor 3 this is how the
    "7x14km" SIF of the original study was made (equal to 5e-7, the rounding of its tables). The float dtype
    is kept. Raises ValueError if factor is even or < 1.
    """
    _check_factor(factor)
    if factor % 2 == 0:
        raise ValueError(f"a moving mean needs an odd factor, found {factor}; use {factor + 1}")
    field = _as_float(field)
    valid = ~np.isnan(field)
    total = _moving_sum(np.where(valid, field, 0).astype(np.float64), factor)
    # The centre itself is counted, so no valid pixel divides by zero.
    return _mean(total, np.where(valid, _moving_sum(valid.astype(np.int64), factor), 0), field.dtype)


def fill_nearest(field: FloatArray) -> FloatArray:
    """Fill the NaN of each (y, x) layer from the nearest finite pixel (in pixels): (..., y, x), a copy.

    Raises ValueError when a layer has no finite pixel at all.
    """
    filled = _as_float(field).copy()
    layers = filled.reshape(-1, *filled.shape[-2:])
    for number, layer in enumerate(layers):
        finite = np.isfinite(layer)
        if not finite.any():
            raise ValueError(f"layer {number} of {len(layers)} has no finite pixel; leave it out")
        gaps = np.isnan(layer)
        if gaps.any():
            nearest = ndimage.distance_transform_edt(~finite, return_distances=False, return_indices=True)
            layer[gaps] = layer[tuple(nearest[:, gaps])]
    return layers.reshape(filled.shape)


def pad_to_multiple(field: NDArray[_Scalar], factor: int) -> NDArray[_Scalar]:
    """Extend (..., y, x) at the lower and right edge to multiples of factor, by NaN (float) or False (bool).

    Raises ValueError for other dtypes, for fewer than two dimensions and if factor < 1.
    """
    _check_factor(factor)
    if field.ndim < 2 or field.dtype.kind not in "fb":
        raise ValueError(
            f"padding needs a float or bool field (..., y, x), found {field.dtype} with shape {field.shape}; "
            "convert integers to float first"
        )
    height, width = field.shape[-2:]
    widths = [(0, 0)] * (field.ndim - 2) + [(0, -height % factor), (0, -width % factor)]
    return np.pad(field, widths, constant_values=np.nan if field.dtype.kind == "f" else False)


def _moving_sum(values: NDArray[_Scalar], factor: int) -> NDArray[_Scalar]:
    reach = factor // 2
    for axis in (-2, -1):
        widths = [(0, 0)] * values.ndim
        widths[axis] = (reach, reach)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, widths), factor, axis=axis)
        values = windows.sum(axis=-1)
    return values


def _mean(total: FloatArray, count: IntArray, dtype: np.dtype[Any]) -> FloatArray:
    mean: FloatArray = np.full(total.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean.astype(dtype)


def _as_float(field: FloatArray) -> FloatArray:
    field = np.asarray(field)
    return field if field.dtype.kind == "f" else field.astype(np.float64)


def _check_factor(factor: int) -> None:
    if factor < 1:
        raise ValueError(f"factor must be an integer of at least 1, found {factor}")
