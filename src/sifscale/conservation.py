"""Conservation: make the coarse mean of a prediction equal the coarse observation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sifscale.block_steps import edge_values, steps
from sifscale.histospline import coefficients, field_of, mask_weights

CONSERVATIONS = ("none", "additive", "multiplicative", "softmax", "smooth")
LARGEST_RATIO = 10.0  # beyond it a multiplication would blow up the noise of a block more than it corrects its mean


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


def conserve(name: str, prediction: Tensor, coarse: Tensor, valid: Tensor, factor: int) -> Tensor:
    """Change a prediction so that the mean of the valid pixels of each block equals its coarse value.

    All (B, 1, H, W): `prediction` and `coarse` in one unit, `coarse` constant in each `factor` x `factor` block,
    `valid` bool. One change goes to all pixels of a block, the invalid ones too; a block without valid pixels
    stays as it is, so a block whose coarse value is missing must not have any. A block cut by the edge is given
    the coarse value over the part that is there. Differentiable, also where invalid pixels are NaN. A prediction
    in half precision comes back in the dtype of `coarse`. name:

    none: the prediction as it is.
    additive: one constant is added to the block; of all corrections of the valid pixels that conserve, this is
    the smallest in the least-squares sense (an orthogonal projection).
    multiplicative: the block is multiplied by coarse value / predicted mean, which keeps its relative pattern.
    Where that ratio is not above 0 or is above `LARGEST_RATIO` (the predicted mean is near 0 or of the other
    sign, or the coarse value is 0) the block is changed as by additive.
    softmax: n c exp(p) / sum(exp(p)) over the n valid pixels of a block with coarse value c (Harder et al. 2023,
    arXiv 2208.05424), never negative. exp makes it depend on the unit: meant for networks trained through it. An
    invalid pixel gets at most what the largest valid one of its block gets. Where c is not above 0 the block is
    changed as by additive.
    smooth: without steps at block borders, which additive makes and which a prediction may have itself. Constants of
    blocks that close the prediction's own steps (see `block_steps`), which say nothing about a mean that is given, are
    taken away, and a smooth field is added that gives each block its mean (see `histospline`). Blocks without valid
    pixels are changed as well, by what those about them suggest. What masks of partly valid blocks leave is added as by
    additive. The smooth field is at most 3 times the largest mean that it has to give if blocks are full (of noise 1.4
    to 1.7 times, of real residuals 1.1 to 1.5), and at most 9 times with any mask.

    Raises ValueError for another name, as `block_means` does, or where the shapes of `prediction` and `coarse`
    differ.
    """
    if name not in CONSERVATIONS:
        raise ValueError(f"conservation must be one of {', '.join(CONSERVATIONS)}, found {name!r}")
    if prediction.shape != coarse.shape:
        raise ValueError(
            f"prediction and coarse must have one shape, found {tuple(prediction.shape)} and "
            f"{tuple(coarse.shape)}: repeat the coarse value over its block"
        )
    if name == "none":
        return prediction
    if name == "additive":
        return _added(prediction, coarse, valid, factor)
    if name == "smooth":
        correction = smooth_correction(blocks_of(prediction, coarse, valid, factor), factor)
        return conserve_smoothly(prediction, coarse, valid, factor, correction)
    known = valid | prediction.isfinite()
    readable = torch.where(known, prediction, 0)  # a product with NaN has no gradient, even where it is not used
    changed = (_multiplied if name == "multiplicative" else _softmax)(readable, coarse, valid, factor)
    return torch.where(known, changed, prediction)


@dataclass(frozen=True)
class Blocks:
    """What `smooth` reads of blocks, of a field or of a part of it that is made of whole blocks.

    lacking (B, 1, h, w): mean over valid pixels of what the prediction lacks. counts (B, 1, h, w): of these pixels.
    masks (1 or B, 9, h, w): `mask_weights`, None where no block is partly valid. edges and has_edges (B, 4, h, w):
    `edge_values` of the prediction.
    """

    lacking: Tensor
    counts: Tensor
    masks: Tensor | None
    edges: Tensor
    has_edges: Tensor


def blocks_of(prediction: Tensor, coarse: Tensor, valid: Tensor, factor: int) -> Blocks:
    """See `Blocks`; arguments as `conserve`, but that coarse and valid may be of one field for all predictions."""
    each = valid.expand_as(prediction)
    lacking, counts = block_means(coarse - prediction, each, factor)
    edges = edge_values(prediction.to(lacking.dtype), each, factor)
    return Blocks(lacking, counts, mask_weights(valid, factor, lacking.dtype), *edges)


def smooth_correction(blocks: Blocks, factor: int) -> Tensor:
    """What `conserve_smoothly` adds: coefficients of a smooth field, and the steps to be taken away.

    (B, 2, h + 2, w + 2), with a margin of one block.
    """
    own = steps(blocks.edges, blocks.has_edges)
    found = coefficients(blocks.lacking + own, blocks.counts, blocks.masks, factor)
    return torch.cat([found, F.pad(own, (1, 1, 1, 1))], dim=1)


def conserve_smoothly(prediction: Tensor, coarse: Tensor, valid: Tensor, factor: int, correction: Tensor) -> Tensor:
    """The second half of ``smooth``, by `smooth_correction`; other arguments as `blocks_of`.

    Of a part of a field that is made of whole blocks, with their part of the correction, the result is that part of
    the whole result, bit by bit.
    """
    height, width = prediction.shape[-2:]
    field, own = field_of(correction[:, :1], factor), correction[:, 1:, 1:-1, 1:-1]
    changed = prediction + (field[..., :height, :width] - _on_pixels(own, prediction, factor))
    return _added(changed, coarse, valid.expand_as(prediction), factor)


def _added(prediction: Tensor, coarse: Tensor, valid: Tensor, factor: int) -> Tensor:
    # the mean of the difference, not the difference of means: smaller numbers, smaller rounding error
    shift, _ = block_means(coarse - prediction, valid, factor)
    return prediction + _on_pixels(shift, prediction, factor)


def _multiplied(prediction: Tensor, coarse: Tensor, valid: Tensor, factor: int) -> Tensor:
    wanted, _ = block_means(coarse, valid, factor)
    predicted, _ = block_means(prediction, valid, factor)
    usable = (wanted * predicted > 0) & (wanted.abs() <= LARGEST_RATIO * predicted.abs())
    # where() differentiates what it does not choose too: a 1 in place of 0 keeps that finite
    ratio = torch.where(usable, wanted / torch.where(usable, predicted, 1), 1)
    # what is still missing: rounding, and all of it in the other blocks
    return _added(prediction * _on_pixels(ratio, prediction, factor), coarse, valid, factor)


def _softmax(prediction: Tensor, coarse: Tensor, valid: Tensor, factor: int) -> Tensor:
    wanted, counts = block_means(coarse, valid, factor)
    usable = (wanted > 0) & (counts > 0)
    prediction = prediction.to(coarse.dtype)
    largest = F.max_pool2d(torch.where(valid, prediction, -torch.inf), factor, ceil_mode=True)
    largest = torch.where(counts > 0, largest, 0)  # it cancels out, and keeps exp from overflowing
    weight = (prediction - _on_pixels(largest, prediction, factor)).clamp(max=0).exp()
    mean_weight, _ = block_means(weight, valid, factor)
    per_weight = torch.where(usable, wanted / torch.where(usable, mean_weight, 1), 0)
    changed = weight * _on_pixels(per_weight, prediction, factor)
    chosen = _on_pixels(usable.to(prediction.dtype), prediction, factor) > 0
    return torch.where(chosen, changed, _added(prediction, coarse, valid, factor))


def _on_pixels(blocks: Tensor, like: Tensor, factor: int) -> Tensor:
    """Values of blocks repeated over their pixels, (B, 1, H, W) as `like`."""
    height, width = like.shape[-2:]
    return F.interpolate(blocks, scale_factor=factor, mode="nearest-exact")[..., :height, :width]


def _block_sums(field: Tensor, factor: int) -> Tensor:
    # with ceil_mode and divisor 1 the pooling sums what there is of a cut block; 4 x faster than reshaping
    return F.avg_pool2d(field, factor, ceil_mode=True, divisor_override=1)
