"""A smooth field with given means over blocks: histosplines along y and x, whose coefficients live on blocks.

Along an axis the field is a quadratic spline with knots at block borders, thus without a step or a kink there. In one
dimension it is the field with these block means whose squared slope, integrated, is the smallest (the derivative of the
cubic spline through the cumulative sum; Boneva, Kendall & Stefanov 1971, JRSS B 33; Tobler 1979, JASA 74, asks for the
same of a surface). Beyond the field its coefficients go on as they are, so that it arrives at the edge level.

What is solved for has a value a block; a pixel depends on its own block and the eight about it. All functions are
linear in the means, but for a bound that full blocks never reach, and differentiable.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# Sweeps over partly valid blocks. After them the means are off by 1e-4 to 4e-3 of the residuals' rms along coasts,
# and by 0.02 if all blocks are halved (decision 0017): `conserve` adds the rest, a constant a block.
SWEEPS = 4
# Coefficients in units of the largest mean: full blocks have at most 9. Masks that leave one corner of each block
# to be extrapolated from would have more with each sweep.
LARGEST_COEFFICIENT = 9.0


def mask_weights(valid: Tensor, factor: int, dtype: torch.dtype) -> Tensor:
    """With which weights coefficients make the mean over the valid pixels of a block, (B, 9, h, w).

    valid (B, 1, H, W) bool, its first block at the origin. The 9 are the block and those about it, row by row; they
    add up to 1, or are 0 in a block without valid pixels.
    """
    height, width = valid.shape[-2:]
    along = _weights(factor, dtype, valid.device)
    across = F.avg_pool2d(
        valid.to(dtype) * _repeated(along, width)[:, None], (1, factor), ceil_mode=True, divisor_override=1
    )
    both = (across[:, None] * _repeated(along, height)[:, None, :, None]).flatten(1, 2)
    sums = F.avg_pool2d(both, (factor, 1), ceil_mode=True, divisor_override=1)
    return sums / sums.sum(dim=1, keepdim=True).clamp(min=0.5 / factor**2)


def coefficients(means: Tensor, counts: Tensor, weights: Tensor | None, factor: int) -> Tensor:
    """Coefficients of the field whose means over valid pixels are ``means``, with a margin of one block.

    means and counts (B, 1, h, w): as `block_means` gives them, counts those of valid pixels. weights: `mask_weights`;
    None where no block is partly valid. Returns (B, 1, h + 2, w + 2), in units of ``means``. Blocks without valid
    pixels take up what is about them. Exact for full blocks; for partly valid ones see `SWEEPS`. Dense matrices of
    h x h and w x w are used: memory and time suit fields of some thousand blocks along an axis.
    """
    known = counts > 0
    wanted = _filled(torch.where(known, means, 0), known)
    rows, columns = (_inverse(size, factor, means.dtype, means.device) for size in means.shape[-2:])
    found = rows @ wanted @ columns
    if weights is not None:
        along = _weights(factor, means.dtype, means.device).mean(dim=1)
        full = (along[:, None] * along).reshape(9, 1, 1)
        weights = torch.where(known & (counts < factor**2), weights, full)
        for _ in range(SWEEPS):
            found = found + rows @ (wanted - _means_of(found, weights)) @ columns
        bound = LARGEST_COEFFICIENT * wanted.abs().amax(dim=(-2, -1), keepdim=True)
        found = torch.minimum(torch.maximum(found, -bound), bound)
    return F.pad(found, (1, 1, 1, 1), mode="replicate")


def field_of(coefficients: Tensor, factor: int) -> Tensor:
    """The field (B, 1, h factor, w factor) of coefficients (B, 1, h + 2, w + 2), or of a cut of them with its margin.

    A pixel has the same bits in a cut and in the whole: it is summed in one order.
    """
    weights = _weights(factor, coefficients.dtype, coefficients.device)
    batch, _, height, width = coefficients.shape
    by_row = coefficients[..., None, :] * weights[:, None, None, None, :, None]
    down = by_row[0][:, :, :-2] + by_row[1][:, :, 1:-1] + by_row[2][:, :, 2:]
    down = down.reshape(batch, 1, (height - 2) * factor, width)
    by_column = down[..., None] * weights[:, None, None, None, None, :]
    across = by_column[0][..., :-2, :] + by_column[1][..., 1:-1, :] + by_column[2][..., 2:, :]
    return across.reshape(batch, 1, down.shape[-2], (width - 2) * factor)


@lru_cache(maxsize=8)  # made for each batch, a copy to a GPU would wait for all that goes on there
def _weights(factor: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of the coefficients of the block before, of its own and of the one after in each pixel along a block, (3, f)."""
    with torch.inference_mode(False):  # whoever asks next may want gradients
        at = (torch.arange(factor, dtype=torch.float64) + 0.5) / factor - 0.5
        return torch.stack([(0.5 - at) ** 2 / 2, 0.75 - at**2, (0.5 + at) ** 2 / 2]).to(device, dtype)


def _repeated(weights: Tensor, size: int) -> Tensor:
    """Weights (3, f) in each of ``size`` pixels, (3, size)."""
    factor = weights.shape[1]
    return weights.repeat(1, -(-size // factor))[:, :size]


@lru_cache(maxsize=8)
def _inverse(size: int, factor: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Coefficients (size,) from the means of full blocks along an axis, as a matrix, made in float64."""
    beside = float(_weights(factor, torch.float64, torch.device("cpu"))[0].mean())
    means: NDArray[np.float64] = np.diag(np.full(size, 1 - 2 * beside))
    means += np.diag(np.full(size - 1, beside), 1) + np.diag(np.full(size - 1, beside), -1)
    means[0, 0] += beside
    means[-1, -1] += beside
    with torch.inference_mode(False):
        return torch.from_numpy(np.linalg.inv(means)).to(device, dtype)


def _means_of(found: Tensor, weights: Tensor) -> Tensor:
    """Means over valid pixels (B, 1, h, w) of the field that coefficients (B, 1, h, w) make."""
    height, width = found.shape[-2:]
    wide = F.pad(found, (1, 1, 1, 1), mode="replicate")
    places = [(y, x) for y in range(3) for x in range(3)]
    parts = [weights[:, k : k + 1] * wide[..., y : y + height, x : x + width] for k, (y, x) in enumerate(places)]
    return torch.stack(parts).sum(dim=0)


def _filled(values: Tensor, known: Tensor) -> Tensor:
    """Values (B, 1, h, w), 0 where unknown, with the unknown ones from means of ever larger squares about them.

    Gortler et al. 1996 (doi:10.1145/237170.237200), pull and push; 0 where nothing is known.
    """
    if values.shape[-2:] == (1, 1):
        return values
    sums, counts = (
        F.avg_pool2d(field, 2, ceil_mode=True, divisor_override=1) for field in (values, known.to(values.dtype))
    )
    coarser = _filled(sums / counts.clamp(min=1), counts > 0)
    height, width = values.shape[-2:]
    about = F.interpolate(coarser, scale_factor=2.0, mode="bilinear", align_corners=False)[..., :height, :width]
    return torch.where(known, values, about)
