"""The models by name: `MODELS[name](in_channels=..., factor=..., ...)` is the public way to build one.

A model is an nn.Module with `forward(predictors, coarse)`: predictors (B, C, H, W) and coarse (B, 1, H, W),
the block mean repeated over each `factor` x `factor` block, give the fine field (B, 1, H, W). Neither may
hold NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from sifscale.models.cnn_dense import CNNDense
from sifscale.models.interpolation import Identity, Interpolation
from sifscale.models.sifnet import SIFNet
from sifscale.models.unet import UNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "sifnet": SIFNet,
    "cnn_dense": CNNDense,
    "identity": Identity,
    "nearest": partial(Interpolation, mode="nearest"),
    "bilinear": partial(Interpolation, mode="bilinear"),
    "bicubic": partial(Interpolation, mode="bicubic"),
}


def parameter_count(module: nn.Module) -> int:
    """Number of parameters of `module`, trainable or frozen; buffers do not count."""
    return sum(parameter.numel() for parameter in module.parameters())
