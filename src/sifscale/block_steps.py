"""Steps at block borders that a prediction has of its own, as a constant a block.

A model that reads block means, or the coarse field as it is, says something else on either side of a border. Whatever
constant it has in a block, the block's mean is to be the observation: the constants are free, and those that close
the steps can be found from the values on either side of each border.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Two pixels on either side of a border tell a step from a slope; in smaller blocks they would be the same two.
LEAST_FACTOR = 4
# Of damped Jacobi iteration. What it leaves is smooth over many blocks, and no step: on Spain the mean difference
# across borders was 1.11, 1.03, 1.00 and 0.99 of that within blocks after 3, 10, 30 and 300 (decision 0017).
SWEEPS = 16
_DAMPING = 0.8


def edge_values(field: Tensor, valid: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Mean values at the upper, lower, left and right border of each block, (B, 4, h, w), and whether they are known.

    field and valid (B, 1, H, W), the first block at the origin. The two pixels next to the border are continued to it
    in a straight line, where both are valid; a border without such a pair is not known, and its value is 0. Nothing is
    known below a factor of `LEAST_FACTOR`.
    """
    height, width = field.shape[-2:]
    down, across = -(-height // factor), -(-width // factor)
    if factor < LEAST_FACTOR:
        nothing = field.new_zeros(len(field), 4, down, across)
        return nothing, nothing
    padding = (0, across * factor - width, 0, down * factor - height)
    field, valid = F.pad(field, padding), F.pad(valid, padding)
    last = factor - 1
    sides = [
        _means_along(field[..., at::factor, :], field[..., to::factor, :],
                     valid[..., at::factor, :] & valid[..., to::factor, :], (1, factor))
        for at, to in ((0, 1), (last, last - 1))
    ] + [
        _means_along(field[..., at::factor], field[..., to::factor],
                     valid[..., at::factor] & valid[..., to::factor], (factor, 1))
        for at, to in ((0, 1), (last, last - 1))
    ]  # fmt: skip
    values, known = (torch.cat([side[part] for side in sides], dim=1) for part in (0, 1))
    return values, known


def steps(edges: Tensor, known: Tensor) -> Tensor:
    """Constants of blocks (B, 1, h, w) without which the field has no steps, by least squares; 0 where none is known.

    edges and known (B, 4, h, w): `edge_values`. Linear in edges. Blocks that nothing connects have constants of their
    own.
    """
    upper, lower, left, right = (edges[:, side : side + 1] for side in range(4))
    has_upper, has_lower, has_left, has_right = (known[:, side : side + 1] for side in range(4))
    weights_y, weights_x = has_lower[..., :-1, :] * has_upper[..., 1:, :], has_right[..., :-1] * has_left[..., 1:]
    jumps_y, jumps_x = upper[..., 1:, :] - lower[..., :-1, :], left[..., 1:] - right[..., :-1]
    number = _into_blocks(weights_y, weights_x, sign=1).clamp(min=1)
    found = torch.zeros_like(upper)
    for _ in range(SWEEPS):
        rest_y = weights_y * (jumps_y - found[..., 1:, :] + found[..., :-1, :])
        rest_x = weights_x * (jumps_x - found[..., 1:] + found[..., :-1])
        found = found + _DAMPING * _into_blocks(rest_y, rest_x, sign=-1) / number
    return found


def _means_along(nearest: Tensor, next_one: Tensor, pairs: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Means at a border over pairs of pixels, and whether there are any (as 0 or 1)."""
    at_border = torch.where(pairs, 1.5 * nearest - 0.5 * next_one, 0)
    # pooling sums in one order wherever a block lies
    total, count = (F.avg_pool2d(part, block, divisor_override=1) for part in (at_border, pairs.to(nearest.dtype)))
    return total / count.clamp(min=1), (count > 0).to(nearest.dtype)


def _into_blocks(between_y: Tensor, between_x: Tensor, sign: int) -> Tensor:
    """Sum over the borders of each block of what lies there; that of its lower and right one times ``sign``."""
    along_y = F.pad(between_y, (0, 0, 1, 0)) + sign * F.pad(between_y, (0, 0, 0, 1))
    return along_y + F.pad(between_x, (1, 0)) + sign * F.pad(between_x, (0, 1))
