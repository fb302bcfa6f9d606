"""The CNN with dense layers that the original study compared its U-Net with."""

from __future__ import annotations

from torch import Tensor, nn


class CNNDense(nn.Module):
    """Three [3x3 convolution, ReLU, 2x2 max-pooling] of 32, 64 and 128 channels, then two dense layers.

    The last dense layer has one output a pixel, so that the network is tied to crops of `size` x `size`
    pixels and knows positions instead of surroundings; it cannot map a field of another size. `coarse` is
    not read, and `factor` has no effect. The first of the `outputs` channels is the prediction. Raises ValueError
    where `size` is below 8.
    """

    def __init__(self, *, in_channels: int, factor: int, size: int, outputs: int = 1) -> None:
        super().__init__()
        if size < 8:
            raise ValueError(f"size must be at least 8 pixels, found {size}: three poolings halve it")
        self.size = size
        widths = (in_channels, 32, 64, 128)
        layers: list[nn.Module] = []
        for in_width, out_width in zip(widths[:-1], widths[1:], strict=True):
            convolution = nn.Conv2d(in_width, out_width, kernel_size=3, padding=1)
            layers += [convolution, nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.network = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(widths[-1] * (size // 8) ** 2, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, outputs * size * size),
            nn.Unflatten(1, (outputs, size, size)),
        )

    def forward(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, size, size), (B, 1, size, size) -> (B, outputs, size, size); ValueError for any other size."""
        height, width = predictors.shape[-2:]
        if (height, width) != (self.size, self.size):
            raise ValueError(
                f"this cnn_dense was built for crops of {self.size} x {self.size} pixels, "
                f"found {height} x {width}: give crops of that size or build the model for these"
            )
        output: Tensor = self.network(predictors)
        return output
