"""Texture of a field as planes beside it: LBP and local statistics, lazily and tile by tile.

There are many planes to a field, so that memory goes by the tile and not by the field.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sifscale import grid, lbp
from sifscale.config import LbpFeature

TILE_EDGE_PX = 256  # along an edge; as large as the chunks of a feature cube in a store
LOCAL_STATS = ("mean", "sd", "laplacian")

Floats: TypeAlias = NDArray[np.float32]
TileMaker: TypeAlias = Callable[[Floats, tuple[int, int]], Floats]


def lbp_planes(field: da.Array, pattern: LbpFeature, origin_px: tuple[int, int] = (0, 0)) -> da.Array:
    """LBP of a field (sample, y, x), encoded (sample, channel, y, x); see `lbp.encode`. NaN where it knows no code.

    origin_px: where the field begins in the whole one (y, x), which ties depend on, see `lbp.codes`.
    """
    channels = len(lbp.channel_names(pattern.points, pattern.radius, pattern.method, pattern.encoding))
    make = partial(_lbp_tile, pattern=pattern, origin_px=origin_px)
    return _by_tiles(make, field, lbp.halo_px(pattern.radius), channels)


def _lbp_tile(field: Floats, at: tuple[int, int], pattern: LbpFeature, origin_px: tuple[int, int]) -> Floats:
    origin_px = origin_px[0] + at[0], origin_px[1] + at[1]
    codes, valid = lbp.codes(field, pattern.points, pattern.radius, pattern.method, origin_px=origin_px)
    return lbp.encode(codes, valid, pattern.points, pattern.method, pattern.encoding)


def local_stats(field: da.Array, window_px: int) -> da.Array:
    """LOCAL_STATS of a field (sample, y, x) as planes (sample, 3, y, x).

    Mean and standard deviation of what is known in the square of ``window_px`` (odd) about a pixel, clipped at the
    border, and the five-point Laplacian; NaN where the pixel is a gap, the last one also where a neighbour is.
    """
    return _by_tiles(partial(local_stats_tile, window_px=window_px), field, max(window_px // 2, 1), len(LOCAL_STATS))


def local_stats_tile(field: Floats, at: tuple[int, int], window_px: int) -> Floats:
    """`local_stats` of a field in memory; where it begins makes no difference."""
    wide = field.astype(np.float64)
    mean = grid.moving_mean(wide, window_px)
    square = grid.moving_mean(wide * wide, window_px)
    spread = np.sqrt(np.maximum(square - mean * mean, 0))
    # Five-point Laplacian; NaN neighbours give NaN, as with LBP.
    laplacian = np.full_like(wide, np.nan)
    inner = wide[..., 1:-1, 1:-1]
    around = wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1] + wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:]
    laplacian[..., 1:-1, 1:-1] = around - 4 * inner
    return np.stack([mean, spread, laplacian], axis=-3).astype(np.float32)


def without_steps(coarse: da.Array, block_px: int) -> da.Array:
    """Coarse field, linear between the centres of its blocks: texture means nothing on steps."""
    return coarse.map_blocks(_between_centres, factor=block_px, dtype=np.float32) if block_px > 1 else coarse


def _between_centres(field: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    blocks = field[..., ::factor, ::factor]
    zoom = (1,) * (field.ndim - 2) + (factor, factor)
    fine = ndimage.zoom(blocks, zoom, order=1, mode="nearest", grid_mode=True)
    return np.asarray(fine[..., : field.shape[-2], : field.shape[-1]], dtype=np.float32)


def _by_tiles(make: TileMaker, field: da.Array, halo_px: int, channels: int) -> da.Array:
    """Planes (sample, channel, y, x), in chunks of a tile, of a field (sample, y, x) in one chunk a sample.

    make: the planes of a tile with ``halo_px`` pixels around it, as far as the field goes, and where that begins.
    """
    y, x = (da.arange(size, chunks=TILE_EDGE_PX) for size in field.shape[1:])
    tile = partial(_tile, make=make, halo_px=halo_px)
    like = np.empty((0, 0, 0, 0), np.float32)
    return da.blockwise(tile, "scyx", field, "sij", y, "y", x, "x", new_axes={"c": channels}, meta=like)


def _tile(
    field: list[list[Floats]], y: NDArray[np.int64], x: NDArray[np.int64], make: TileMaker, halo_px: int
) -> Floats:
    top, left = max(int(y[0]) - halo_px, 0), max(int(x[0]) - halo_px, 0)
    made = make(field[0][0][:, top : y[-1] + 1 + halo_px, left : x[-1] + 1 + halo_px], (top, left))
    return made[..., y[0] - top : y[-1] + 1 - top, x[0] - left : x[-1] + 1 - left]
