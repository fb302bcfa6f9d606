"""Models that read nothing but the coarse field, and the up-sampling the networks correct."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Mode = Literal["nearest", "bilinear", "bicubic"]


def upsample(coarse: Tensor, factor: int, mode: Mode) -> Tensor:
    """Interpolate a piecewise-constant coarse field between its block centres.

    `coarse` (B, C, H, W) holds one value in each `factor` x `factor` block, with the first block at the
    origin; where H or W is no multiple of `factor` the last block is cut, and its value still stands for
    the centre of the whole block. Beyond the outermost centres the field is continued with the edge value.
    Returns the same shape in the unit of `coarse`. bicubic is Keys' cubic convolution with a = -0.75 (Keys
    1981, doi:10.1109/TASSP.1981.1163711), which may overshoot. A pixel has the same bits in a field and in a part of
    it that is cut along blocks: PyTorch's own interpolation rounds positions, and by another amount in another place.
    Raises ValueError for a factor below 1 or an unknown mode.
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, found {factor}: give the block edge in pixels")
    _check_mode(mode)
    if factor == 1:
        return coarse
    height, width = coarse.shape[-2:]
    blocks = coarse[..., ::factor, ::factor]
    if mode == "nearest":
        # in float32 plain "nearest" rounds 1 / factor and takes the wrong block for some factors (41, 47)
        fine = F.interpolate(blocks, scale_factor=factor, mode="nearest-exact")
    else:
        weights = _weights(factor, mode, coarse.dtype, coarse.device)
        fine = _along_rows(_along_rows(blocks.mT, weights).mT, weights)
    return fine[..., :height, :width].contiguous()


def add_upsampled(coarse: Tensor, factor: int, output: Tensor) -> Tensor:
    """What a network found (B, outputs, H, W), to its first channel added the interpolation of coarse (B, 1, H, W)."""
    corrected = upsample(coarse, factor, "bilinear") + output[:, :1]
    return torch.cat([corrected, output[:, 1:]], dim=1) if output.shape[1] > 1 else corrected


@cache  # made for each batch, a copy to a GPU would wait for all that goes on there
def _weights(factor: int, mode: Mode, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the blocks from -r to r around count at each of the `factor` places in a block, (2 r + 1, factor)."""
    reach = 1 if mode == "bilinear" else 2
    places = [(place + 0.5) / factor - 0.5 for place in range(factor)]  # from the block's centre, in blocks
    kernel = _linear if mode == "bilinear" else _cubic
    rows = [[kernel(abs(at - block)) for at in places] for block in range(-reach, reach + 1)]
    with torch.inference_mode(False):  # whoever asks next may want gradients
        return torch.tensor(rows, dtype=dtype, device=device)


def _linear(distance: float) -> float:
    return max(0.0, 1 - distance)


def _cubic(distance: float, a: float = -0.75) -> float:
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


def _along_rows(blocks: Tensor, weights: Tensor) -> Tensor:
    """(..., W) -> (..., W x factor); one product and one sum after another, which round alike wherever a pixel lies."""
    reach, width = len(weights) // 2, blocks.shape[-1]
    wide = F.pad(blocks, (reach, reach, 0, 0), mode="replicate")
    fine = wide[..., :width, None] * weights[0]
    for shift in range(1, len(weights)):
        fine = fine + wide[..., shift : shift + width, None] * weights[shift]
    return fine.flatten(-2)


class Identity(nn.Module):
    """Returns `coarse` unchanged: the score every model has to beat. Has no parameters."""

    def __init__(self, *, in_channels: int, factor: int) -> None:
        super().__init__()

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, 1, H, W), in the unit of `coarse`; `predictors` is not read."""
        return coarse


class Interpolation(nn.Module):
    """`upsample` as a model: nearest, bilinear or bicubic. Has no parameters."""

    def __init__(self, *, in_channels: int, factor: int, mode: Mode) -> None:
        super().__init__()
        _check_mode(mode)
        self.factor = factor
        self.mode: Mode = mode

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, 1, H, W), in the unit of `coarse`; `predictors` is not read."""
        return upsample(coarse, self.factor, self.mode)


def _check_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"unknown interpolation mode {mode!r}: choose one of {', '.join(get_args(Mode))}")
