"""Conservation: make the coarse mean of a prediction equal the coarse observation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def block_means(field: Tensor, valid: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Mean of `field` over the valid pixels of each `factor` x `factor` block, and how many those are.

    `field` (B, 1, H, W), any unit, and `valid` (B, 1, H, W) bool, with the first block at the origin; the
    last block may be cut. What stands in pixels that are not valid, NaN included, is never read. Returns
    means and counts, both (B, 1, ceil(H / factor), ceil(W / factor)) in the dtype of `field`; the mean of a
    block without valid pixels is 0. Raises ValueError for a factor below 1, other shapes or a mask that is
    not bool.
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, found {factor}: give the block edge in pixels")
    if valid.dtype != torch.bool:
        raise ValueError(f"valid must be a bool mask, found {valid.dtype}: compare or convert it first")
    if field.shape != valid.shape:
        raise ValueError(
            f"field and valid must have one shape, found {tuple(field.shape)} and {tuple(valid.shape)}: "
            "cut both alike"
        )
    sums = _block_sums(torch.where(valid, field, 0), factor)
    counts = _block_sums(valid.to(field.dtype), factor)
    return sums / counts.clamp(min=1), counts


def conserve_additive(prediction: Tensor, coarse: Tensor, valid: Tensor, factor: int) -> Tensor:
    """Add one constant to each block so that the mean of its valid pixels equals its coarse value.

    All (B, 1, H, W): `prediction` and `coarse` in one unit, `coarse` constant in each `factor` x `factor`
    block, `valid` bool. The constant goes to all pixels of the block, the invalid ones too; a block without
    valid pixels stays as it is, so a block whose coarse value is missing must not have any. A block cut by
    the edge is given the coarse value over the part that is there. Of all corrections of the valid pixels
    that conserve, this is the smallest in the least-squares sense (an orthogonal projection).
    Differentiable. A prediction in half precision comes back in the dtype of `coarse`. Raises ValueError as
    `block_means` does, or where the shapes of `prediction` and `coarse` differ.
    """
    if prediction.shape != coarse.shape:
        raise ValueError(
            f"prediction and coarse must have one shape, found {tuple(prediction.shape)} and "
            f"{tuple(coarse.shape)}: repeat the coarse value over its block"
        )
    # the mean of the difference, not the difference of means: smaller numbers, smaller rounding error
    shift, _ = block_means(coarse - prediction, valid, factor)
    height, width = prediction.shape[-2:]
    shift_per_pixel = F.interpolate(shift, scale_factor=factor, mode="nearest-exact")[..., :height, :width]
    return prediction + shift_per_pixel


def _block_sums(field: Tensor, factor: int) -> Tensor:
    # with ceil_mode and divisor 1 the pooling sums what there is of a cut block; 4 x faster than reshaping
    return F.avg_pool2d(field, factor, ceil_mode=True, divisor_override=1)
