"""Convolutions that round alike in a tile and in the whole field: what of PyTorch's choices depends on the size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sifscale.receptive_field import pooling_px

_NOT_ONEDNN = 20480  # values; use_mkldnn in PyTorch's aten/src/ATen/native/Convolution.cpp


def memory_format(model: nn.Module) -> torch.memory_format:
    """In which convolutions round alike in a tile and in the whole field: channels last up to 3 x 3, else first.

    Measured (oneDNN 3 on AVX-512): 5 x 5 convolutions of 128 channels and 7 x 7 ones of 96 or more sum in another order
    when the width changes, if channels are last; bilinear up-sampling does if they are first, and so is done as before.
    """
    if all(max(part.kernel_size) <= 3 for part in model.modules() if isinstance(part, nn.Conv2d)):
        return torch.channels_last
    for part in (part for part in model.modules() if isinstance(part, nn.Upsample)):
        part.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous(memory_format=torch.channels_last))
        part.register_forward_hook(lambda _, inputs, output: output.contiguous())
    return torch.contiguous_format


def small_px(model: nn.Module, channels: int) -> float:
    """Fields of up to so many pixels have an input of a convolution that PyTorch does not leave to oneDNN.

    These are inputs of up to `_NOT_ONEDNN` values; deep in a network they are those with the fewest a pixel of the
    field. One pass of a small field finds them.
    """
    densities: list[float] = []
    edge = pooling_px(model)

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        densities.append(inputs[0][0].numel() / edge**2)

    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)]
    if any(isinstance(part, nn.Linear) for part in model.modules()) or not convolutions:
        return 0.0  # of one size, or without a convolution
    hooks = [part.register_forward_pre_hook(note) for part in convolutions]
    weights = next(model.parameters())
    field = torch.zeros(2, channels + 1, edge, edge, device=weights.device)
    with torch.inference_mode():
        model(field[:, 1:], field[:, :1])
    for hook in hooks:
        hook.remove()
    return _NOT_ONEDNN / min(densities)
