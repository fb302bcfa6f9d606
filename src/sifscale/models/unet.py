"""The U-Net: an encoder-decoder with skip connections, every size of it a parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sifscale.models.interpolation import add_upsampled
from sifscale.models.mc_dropout import ChannelDropout

Norm = Literal["none", "batch", "group"]
Upsampling = Literal["transposed", "bilinear", "nearest"]


class UNet(nn.Module):
    """U-Net after Ronneberger et al. 2015 (doi:10.1007/978-3-319-24574-4_28), with same-size convolutions.

    Each of the `len(widths)` encoder levels is a block of `convolutions` x [convolution, norm, ReLU] and a
    2x2 max-pooling; `bottleneck` is the width of the deepest block. A decoder level up-samples by 2 to the
    width of its skip, concatenates (up, skip) and runs a block; a 1x1 convolution ends the network.
    `upsampling` "transposed" is a 2x2 convolution of stride 2; "bilinear" and "nearest" are followed by a
    convolution of `kernel_size`; `upsampling_relu` puts a ReLU after either. `dropout` is the share of
    channels dropped after each block. The first of the `outputs` channels is the prediction.

    With `residual` the prediction is the bilinear interpolation of `coarse` plus the network, whose last
    convolution starts at zero, so that training starts at the interpolation. Without it `coarse` is not
    read: whoever wants the network to see it makes it a predictor.

    Two things matter for prediction by tiles. A size that is no multiple of 2**depth is up-sampled to the
    skip by bilinear interpolation, which stretches the whole level. And `norm` "group" takes its statistics
    from the whole input.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        factor: int,
        widths: Sequence[int],
        bottleneck: int,
        kernel_size: int = 3,
        convolutions: int = 2,
        norm: Norm,
        upsampling: Upsampling,
        upsampling_relu: bool,
        dropout: float,
        residual: bool,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        _check(widths, bottleneck, kernel_size, convolutions, norm, upsampling, dropout)
        self.factor = factor
        self.residual = residual
        self.depth = len(widths)
        block = partial(
            _block, kernel_size=kernel_size, convolutions=convolutions, norm=norm, dropout=dropout
        )
        descent = list(pairwise((in_channels, *widths)))
        ascent = list(pairwise((bottleneck, *reversed(widths))))
        self.encoder = nn.ModuleList(block(above, below) for above, below in descent)
        self.bottleneck = block(widths[-1], bottleneck)
        self.upsamplers = nn.ModuleList(
            _upsampler(below, above, upsampling, kernel_size, upsampling_relu) for below, above in ascent
        )
        self.decoder = nn.ModuleList(block(2 * above, above) for _, above in ascent)
        self.head = nn.Conv2d(widths[0], outputs, kernel_size=1)
        if residual:
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, outputs, H, W)."""
        features, skips = predictors, []
        for block in self.encoder:
            features = block(features)
            skips.append(features)
            # Sizes are halved downwards, but a level of one pixel stays one.
            features = F.max_pool2d(features, 2, ceil_mode=min(features.shape[-2:]) == 1)
        features = self.bottleneck(features)
        for upsampler, block, skip in zip(self.upsamplers, self.decoder, reversed(skips), strict=True):
            features = upsampler(features)
            if features.shape[-2:] != skip.shape[-2:]:
                features = F.interpolate(features, skip.shape[-2:], mode="bilinear", align_corners=False)
            features = block(torch.cat((features, skip), dim=1))
        output: Tensor = self.head(features)
        return add_upsampled(coarse, self.factor, output) if self.residual else output


def _block(
    in_channels: int, out_channels: int, *, kernel_size: int, convolutions: int, norm: Norm, dropout: float
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, *[out_channels] * (convolutions - 1)):
        # a normalisation brings its own offset
        layers.append(
            nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm == "none")
        )
        if norm == "batch":
            layers.append(nn.BatchNorm2d(out_channels))
        elif norm == "group":
            layers.append(nn.GroupNorm(math.gcd(8, out_channels), out_channels))
        layers.append(nn.ReLU(inplace=True))
    if dropout > 0:
        layers.append(ChannelDropout(out_channels, dropout))
    return nn.Sequential(*layers)


def _upsampler(
    in_channels: int, out_channels: int, upsampling: Upsampling, kernel_size: int, relu: bool
) -> nn.Sequential:
    layers: list[nn.Module]
    if upsampling == "transposed":
        layers = [nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)]
    else:
        layers = [
            nn.Upsample(scale_factor=2, mode=upsampling),
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def _check(
    widths: Sequence[int],
    bottleneck: int,
    kernel_size: int,
    convolutions: int,
    norm: str,
    upsampling: str,
    dropout: float,
) -> None:
    if not widths or min(*widths, bottleneck) < 1:
        raise ValueError(
            f"widths and bottleneck must be at least 1 channel, found {list(widths)} and {bottleneck}: "
            "give one width a level"
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, found {kernel_size}: an even one shifts the field")
    if convolutions < 1:
        raise ValueError(f"convolutions must be at least 1 a block, found {convolutions}: 2 is usual")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), found {dropout}: give the share of channels to drop")
    if norm not in get_args(Norm):
        raise ValueError(f"unknown norm {norm!r}: choose one of {', '.join(get_args(Norm))}")
    if upsampling not in get_args(Upsampling):
        names = ", ".join(get_args(Upsampling))
        raise ValueError(f"unknown upsampling {upsampling!r}: choose one of {names}")
