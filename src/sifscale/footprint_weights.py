"""What a native cell saw: how much each fine pixel around it counts in its observation.

A cell c is the mean of soundings i with weight q_i and share A_ic (`footprints.FootprintSums`), and a sounding is the
mean of the field over its footprint, which has the share f_ip of its area in pixel p. Thus a cell is the mean of the
fine field with the weights W_cp = sum_i q_i A_ic f_ip / sum_i q_i A_ic, which sum to 1 over p. They are kept for the
k x k pixels about the cell, k = (2 radius + 1) factor: (y, x, ky, kx), with pixel (ky, kx) of cell (y, x) in row
(y - radius) factor + ky and column (x - radius) factor + kx of the fine grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, DTypeLike, NDArray

from sifscale import footprint_kernels as kernels
from sifscale.footprint_kernels import Floats, Integers
from sifscale.footprints import (
    CHUNK,
    buffer_size,
    check_corners,
    check_footprints,
    for_each_band,
    kind_of,
    prepare,
)
from sifscale.grid import Grid

FOOTPRINT_WEIGHTS = "footprint_weights"  # the native band (sample, y, x, ky, kx) that holds them


class FootprintWeights:
    """Running weights of fine pixels in native cells; add granule by granule, then finish.

    grid: the native one; its cells are cut into factor x factor fine pixels. radius: how many native cells the pixels
    reach beyond the cell on each side. method, subpixels: how a sounding's share in a cell is found, as in
    `FootprintSums`; its footprint in fine pixels is always exact. Results are the same to the last bit for any number
    of threads and any division into granules. Raises ValueError for an unknown method and for numbers below 1.
    """

    def __init__(
        self, grid: Grid, factor: int, radius: int, method: str = "exact", subpixels: int = 10, threads: int = 1
    ) -> None:
        if factor < 1 or radius < 1:
            raise ValueError(f"factor and radius must be at least 1, found {factor} and {radius}")
        self._grid, self._fine, self._factor, self._radius = grid, grid.refine(factor), factor, radius
        self._kind, self._threads = kind_of(method, subpixels, threads), threads
        support_px = (2 * radius + 1) * factor
        self._sums = np.zeros((grid.height, grid.width, support_px, support_px))
        self._total = np.zeros((grid.height, grid.width))

    def add(self, x: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> None:
        """Add soundings: corners x, y (n, 4) in units of the CRS, and weight (n,) above 0, 1 for all by default.

        Raises ValueError, and adds nothing, for a corner that is not finite, other weights and shapes, and a footprint
        whose bounding box spans more than 1e7 fine pixels.
        """
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        check_corners(x, y)
        weights = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)
        if weights.shape != (len(x),):
            raise ValueError(f"weight has shape {weights.shape} for {len(x)} footprints; give one number for each")
        good = (weights > 0) & np.isfinite(weights)
        if not good.all():
            raise ValueError(f"weight must be finite and above 0, found {weights[~good][0]}; leave these soundings out")
        check_footprints(self._fine, x, y)
        for first in range(0, len(x), CHUNK):
            chunk = slice(first, first + CHUNK)
            self._add_chunk(x[chunk], y[chunk], weights[chunk])

    def _add_chunk(self, x: Floats, y: Floats, weights: Floats) -> None:
        native, fine = (prepare(grid, x, y, self._threads) for grid in (self._grid, self._fine))
        sizes = buffer_size(native), buffer_size(fine)

        def add_band(rows: tuple[int, int], members: Integers) -> None:
            kernels.add_weights_band(
                native, fine, members, weights, self._kind, rows, sizes, self._factor, self._sums, self._total
            )

        for_each_band(add_band, native, self._grid.height, self._threads)

    def finish(
        self, rows: slice | None = None, columns: slice | None = None, dtype: DTypeLike = np.float64
    ) -> tuple[NDArray[Any], Floats]:
        """Weights (height, width, k, k), which sum to 1, 0 in cells without soundings; and the share of each cell lost.

        rows, columns: the fine pixels that there are, with start and stop, counted from the corner of the grid and
        perhaps beyond it; those of the grid by default. The lost share (height, width), NaN without soundings, lay
        beyond these or beyond the k x k pixels; the rest is scaled to 1 (or 0 where nothing remains). More soundings
        may be added afterwards.
        """
        inside_y = self._inside(slice(0, self._fine.height) if rows is None else rows, self._grid.height)
        inside_x = self._inside(slice(0, self._fine.width) if columns is None else columns, self._grid.width)
        weights, kept = np.empty(self._sums.shape, dtype), np.empty(self._total.shape)
        for row, sums in enumerate(self._sums):  # one by one: a copy of all would double the peak of memory
            known = np.where(inside_y[row][:, None] & inside_x[:, None, :], sums, 0)
            kept[row] = known.sum(axis=(1, 2))
            weights[row] = known / np.where(kept[row] > 0, kept[row], 1)[:, None, None]
        seen = np.where(self._total > 0, self._total, np.nan)
        return weights, np.clip(1 - kept / seen, 0, 1)  # rounding leaves -1e-16

    def _inside(self, known: slice, cells: int) -> NDArray[np.bool_]:
        """Which pixels along one axis of each cell's support there are, (cells, k)."""
        pixel = (np.arange(cells)[:, None] - self._radius) * self._factor + np.arange(self._sums.shape[2])
        inside: NDArray[np.bool_] = (pixel >= known.start) & (pixel < known.stop)
        return inside


def cell_means(weights: NDArray[Any], field: NDArray[Any]) -> Floats:
    """Mean (height, width) of a fine field with the weights (height, width, k, k) of each cell; NaN without weights.

    field: (height factor, width factor); NaN there is left out and the other weights are scaled to sum to 1. Raises
    ValueError where the shapes do not belong together.
    """
    height, width, support_px, _ = weights.shape
    factor = field.shape[0] // height
    if field.shape != (height * factor, width * factor) or factor < 1 or support_px % factor:
        raise ValueError(f"weights {weights.shape} do not fit a fine field {field.shape}; give both of one window")
    known = np.isfinite(field)
    total, seen = np.zeros((height, width)), np.zeros((height, width))
    margin = (support_px - factor) // 2
    padded, mask = (np.pad(values, margin) for values in (np.where(known, field, 0), known.astype(np.float64)))
    for row in range(height):
        at = slice(row * factor, row * factor + support_px)
        for sums, values in ((total, padded), (seen, mask)):
            views = sliding_window_view(values[at], (support_px, support_px))[0, ::factor]
            sums[row] = np.einsum("cyx,cyx->c", weights[row], views, dtype=np.float64)
    return _quotient(total, seen)


def on_pixels(weights: NDArray[Any], values: NDArray[Any], factor: int) -> Floats:
    """Values of cells (height, width) carried back to fine pixels: sum_c W_cp v_c / sum_c W_cp, NaN without weights.

    A cell whose value is NaN is left out. Returns (height factor, width factor).
    """
    height, width, support_px, _ = weights.shape
    cells = support_px // factor  # along an edge of the support
    known = np.isfinite(values)
    shape = (height + cells - 1, factor, width + cells - 1, factor)
    total, reached = np.zeros(shape), np.zeros(shape)
    parts = weights.reshape(height, width, cells, factor, cells, factor)
    for y in range(cells):
        for x in range(cells):
            part = np.where(known[:, :, None, None], parts[:, :, y, :, x], 0).transpose(0, 2, 1, 3)
            at = np.s_[y : y + height, :, x : x + width]
            reached[at] += part
            total[at] += part * np.where(known, values, 0)[:, None, :, None]
    radius = cells // 2
    inner = np.s_[radius : radius + height, :, radius : radius + width]
    total, reached = (sums[inner].reshape(height * factor, width * factor) for sums in (total, reached))
    return _quotient(total, reached)


def _quotient(total: Floats, weight: Floats) -> Floats:
    """total / weight, NaN without a weight."""
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan)
