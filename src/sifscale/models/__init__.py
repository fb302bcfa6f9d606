"""The models by name: `MODELS[name](in_channels=..., factor=..., ...)` is the public way to build one.

A model is an nn.Module with `forward(predictors, coarse)`: predictors (B, C, H, W) and coarse (B, 1, H, W),
the block mean repeated over each `factor` x `factor` block, give the fine field (B, 1, H, W). Neither may
hold NaN: both are normalised, and gaps of predictors are 0. A model with the method `fit` (`regression.Fitted`)
learns in one step instead of by gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from sifscale.models.cnn_dense import CNNDense
from sifscale.models.deconvolution import Deconvolution
from sifscale.models.interpolation import Identity, Interpolation
from sifscale.models.lue import LightUse
from sifscale.models.persistence import Persistence
from sifscale.models.ratio import NIRvRatio
from sifscale.models.regression import GradientBoosting, RandomForest, Ridge
from sifscale.models.sifnet import SIFNet
from sifscale.models.unet import UNet

# Models that work with physical values: they are also given `channels` (names) and `scaler`.
PHYSICAL = ("nirv_ratio", "lue", "persistence")
# Models with no weight that belongs to one factor, so that what was learned with one can be applied with another.
# A deconvolution has a filter for each place in the block, cnn_dense weights for each place in the crop.
ANY_FACTOR = (
    "unet",
    "sifnet",
    "identity",
    "nearest",
    "bilinear",
    "bicubic",
    "nirv_ratio",
    "lue",
    "ridge",
    "random_forest",
    "gradient_boosting",
)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "sifnet": SIFNet,
    "cnn_dense": CNNDense,
    "identity": Identity,
    "nearest": partial(Interpolation, mode="nearest"),
    "bilinear": partial(Interpolation, mode="bilinear"),
    "bicubic": partial(Interpolation, mode="bicubic"),
    "nirv_ratio": NIRvRatio,
    "lue": LightUse,
    "ridge": Ridge,
    "random_forest": RandomForest,
    "gradient_boosting": GradientBoosting,
    "deconvolution": Deconvolution,
    "persistence": Persistence,
}


def parameter_count(module: nn.Module) -> int:
    """Number of parameters of `module`, trainable or frozen; buffers do not count."""
    return sum(parameter.numel() for parameter in module.parameters())
