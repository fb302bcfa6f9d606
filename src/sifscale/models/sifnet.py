"""SIFnet-style networks: same-size convolutions and residual sums, no pooling."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from sifscale.models.interpolation import add_upsampled

Variant = Literal["benchmark", "large", "small"]


class SIFNet(nn.Module):
    """SIFnet family, not the published network.

    The family is that of Gensheimer et al. 2022, "A convolutional neural network for spatial downscaling of
    satellite-based solar-induced chlorophyll fluorescence (SIFnet)", Biogeosciences 19, 1777-1793
    (doi:10.5194/bg-19-1777-2022). The layers of the variants follow three candidates in the authors' public
    code (ccatter/SIFnet2.0: benchmark model, more channels, feature reduction); inputs, training and
    `residual` are sifscale's own. A pair is [3x3 convolution, ReLU, 3x3 convolution], and a residual pair
    adds its input and ends in a ReLU:

    - benchmark: 1x1 to 64; residual pairs 64-256-64 and 64-128-64; pair 64-128-64; 1x1 to 32, ReLU; 1x1 to 1.
    - large: 1x1 to 128; residual pair 128-512-128 twice; pair 128-256-128; 1x1 to 64, ReLU; 1x1 to 1.
    - small: 1x1 to 16; residual pair 16-32-16; 3x3 to 8; 1x1 to 4; 1x1 to 1, no ReLU between these three.

    Every convolution has a bias: with 32 input channels 594,753, 2,963,329 and 10,993 parameters. An output
    pixel reads predictors up to 6, 6 and 3 pixels away. The first of the `outputs` channels is the prediction.

    With `residual` the prediction is the bilinear interpolation of `coarse` plus the network, whose last
    convolution starts at zero, so that training starts at the interpolation. Without it `coarse` is not
    read: whoever wants the network to see it, as SIFnet does, makes it a predictor.
    """

    def __init__(
        self, *, in_channels: int, factor: int, variant: Variant, residual: bool, outputs: int = 1
    ) -> None:
        super().__init__()
        if variant not in get_args(Variant):
            raise ValueError(f"unknown variant {variant!r}: choose one of {', '.join(get_args(Variant))}")
        self.factor = factor
        self.residual = residual
        if variant == "small":
            self.body = _small_body(in_channels)
            self.head = nn.Conv2d(4, outputs, kernel_size=1)
        else:
            width, inner = (64, (256, 128, 128)) if variant == "benchmark" else (128, (512, 512, 256))
            self.body = _body(in_channels, width, inner)
            self.head = nn.Conv2d(width // 2, outputs, kernel_size=1)
        if residual:
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, outputs, H, W), for any H and W."""
        output: Tensor = self.head(self.body(predictors))
        return add_upsampled(coarse, self.factor, output) if self.residual else output


class _ResidualPair(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.pair = _pair(width, inner)

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(features + self.pair(features))


def _pair(width: int, inner: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, inner, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, width, kernel_size=3, padding=1),
    )


def _body(in_channels: int, width: int, inner: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, kernel_size=1),
        _ResidualPair(width, inner[0]),
        _ResidualPair(width, inner[1]),
        _pair(width, inner[2]),
        nn.Conv2d(width, width // 2, kernel_size=1),
        nn.ReLU(inplace=True),
    )


def _small_body(in_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, kernel_size=1),
        _ResidualPair(16, 32),
        nn.Conv2d(16, 8, kernel_size=3, padding=1),
        nn.Conv2d(8, 4, kernel_size=1),
    )
