"""Local Binary Patterns of batches of images on any device: `sifscale.lbp` for tensors, bit for bit.

For whom cuts crops as a training goes and makes their planes where the batch lies:

    found, valid = lbp_torch.codes(images[:, 0], 8, 1.0, "uniform", origin_px=corners)  # images (B, C, y, x)
    planes = lbp_torch.encode(found, valid, 8, "uniform", "onehot")
    inputs = torch.cat([images, planes.nan_to_num()], dim=1)

Nothing here waits for a GPU: no value is read from it, no table sent to it, no shape depends on what it holds. All is
done in float64, which autocast leaves alone and Apple's GPUs lack. It is meant for GPUs: on a processor
`lbp.codes(images.numpy(), ...)` is many times as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sifscale import lbp

_Function = TypeVar("_Function")
# Compiled, a product and a sum may become one operation and numpy's rounding one of torch, and codes would be others.
_never_compiled = cast("Callable[[_Function], _Function]", torch.compiler.disable)


@_never_compiled
def codes(
    images: Tensor, points: int, radius: float, method: str, *, origin_px: tuple[int, int] | Tensor = (0, 0)
) -> tuple[Tensor, Tensor]:
    """LBP codes of images and the mask of where they rest on real pixels only, as `lbp.codes` finds them.

    Args:
        images: (..., y, x), floats or integers; NaN or infinite where missing.
        points: neighbours on the circle (P), 1 to 32.
        radius: of the circle (R), in px.
        method: one of lbp.METHODS.
        origin_px: (y, x) position of the first pixel in the whole grid, which decides ties: one for all images, or
            an integer tensor (..., 2) on their device with one for each entry of their first dimensions, (B, 2) say.

    Returns:
        Codes (..., y, x), int64 (`var`: float64, NaN where the variance is 0) and without gradient; and a mask
        (..., y, x), True where the centre and every pixel that the bilinear neighbourhood touches are inside the
        image and finite. Where a touched pixel is not finite the code is 0; beyond the border the codes read zeros.

    Raises:
        ValueError: the images are not real or have no (y, x), origins do not fit them, or an argument is out of range.
    """
    lbp.check(points, radius, method)
    if images.is_complex() or images.dtype == torch.bool:
        raise ValueError(f"LBP needs integer or float pixels, found dtype {images.dtype}: convert the images")
    if images.ndim < 2:
        raise ValueError(f"LBP needs dimensions (..., y, x), found shape {tuple(images.shape)}: add the missing ones")
    exact = images.detach().to(torch.float64)
    dy, dx, corners = lbp.neighbourhood(points, float(radius), (exact.shape[-2], exact.shape[-1]))
    neighbours = _neighbours(exact, _positions(exact, origin_px), (dy, dx), corners)
    found = _variances(exact, neighbours, points) if method == "var" else _classes(exact, neighbours, points, method)
    inside, broken = _masks(exact, corners)
    return found.masked_fill_(broken, 0), inside & ~broken


def encode(codes: Tensor, valid: Tensor, points: int, method: str, encoding: str) -> Tensor:
    """Turn codes into channels that a network can read, as `lbp.encode` does, which says what they mean.

    Args:
        codes, valid: (..., y, x), as `codes` returns them.
        points, method: as given to `codes`.
        encoding: one of lbp.ENCODINGS; `lbp.channel_names` names its planes.

    Returns:
        (..., channel, y, x), float32, NaN where not valid (and, under `raw`, where a zero variance has no code).

    Raises:
        ValueError: the shapes differ, or the encoding does not go with the method.
    """
    lbp.check(points, 1.0, method, encoding)
    if codes.shape != valid.shape or codes.ndim < 2:
        raise ValueError(
            f"LBP codes and mask must share one shape (..., y, x), found {tuple(codes.shape)} and "
            f"{tuple(valid.shape)}: pass both as codes() returns them"
        )
    planes, largest = codes.unsqueeze(-3), lbp.largest_code(points, method)
    if encoding == "bits":
        planes = (planes >> torch.arange(points, device=codes.device).view(-1, 1, 1)) & 1
    elif encoding == "onehot":
        planes = planes == torch.arange(largest + 1, device=codes.device).view(-1, 1, 1)
    elif encoding == "scaled":
        planes = _over(planes.to(torch.float64), largest)
    return planes.to(torch.float32).masked_fill(~valid.unsqueeze(-3), torch.nan)


def _positions(images: Tensor, origin_px: tuple[int, int] | Tensor) -> tuple[Tensor, Tensor]:
    """Rows (..., y, 1) and columns (..., 1, x) of the pixels in the whole grid, float64."""
    top: int | Tensor
    left: int | Tensor
    if isinstance(origin_px, Tensor):
        given, axes = origin_px.shape[:-1], images.shape[:-2]
        fits = origin_px.shape[-1:] == (2,) and given == axes[: len(given)] and origin_px.device == images.device
        if not fits or origin_px.is_floating_point():
            raise ValueError(
                f"LBP origins must be integers (..., 2) for {tuple(axes)} images on {images.device}, found "
                f"{origin_px.dtype} {tuple(origin_px.shape)} on {origin_px.device}: give e.g. each image its (y, x)"
            )
        origins = origin_px.reshape(*given, *[1] * (len(axes) - len(given)), 2)
        top, left = origins[..., :1], origins[..., 1:]
    else:
        top, left = origin_px
    y, x = (torch.arange(size, device=images.device) for size in images.shape[-2:])
    return (y + top).to(torch.float64).unsqueeze(-1), (x + left).to(torch.float64).unsqueeze(-2)


def _neighbours(
    images: Tensor,
    positions: tuple[Tensor, Tensor],
    offsets: tuple[NDArray[np.float64], NDArray[np.float64]],
    corners: NDArray[np.int64],
) -> Iterator[Tensor]:
    """Neighbours (..., y, x) of all pixels, point by point, with scikit-image's operations in their order."""
    (height, width), halo_y, halo_x = images.shape[-2:], *_halo(corners)
    padded = F.pad(images, (halo_x, halo_x, halo_y, halo_y))
    for dy, dx, (top, bottom, left, right) in zip(*(part.tolist() for part in (*offsets, corners)), strict=True):
        rows = padded.narrow(-2, halo_y + top, bottom - top + height)
        west, east = rows.narrow(-1, halo_x + left, width), rows.narrow(-1, halo_x + right, width)
        if top == bottom and left == right:
            yield west
            continue
        y, x = positions[0] + dy, positions[1] + dx
        fy, fx = y - y.floor(), x - x.floor()
        along = (1 - fx) * west + fx * east  # not torch.lerp, which rounds otherwise
        yield (1 - fy) * along.narrow(-2, 0, height) + fy * along.narrow(-2, bottom - top, height)


def _variances(images: Tensor, neighbours: Iterator[Tensor], points: int) -> Tensor:
    """Variance of the neighbours (..., y, x), NaN for 0."""
    sums, squares = torch.zeros_like(images), torch.zeros_like(images)
    for neighbour in neighbours:
        sums += neighbour
        squares += neighbour * neighbour
    variances = _over(squares - _over(sums * sums, points), points)
    return variances.masked_fill_(variances == 0, torch.nan)


def _over(values: Tensor, divisor: int) -> Tensor:
    """Divide, on GPUs too, where PyTorch would multiply by the rounded inverse of a plain number."""
    return values / values.new_full((), divisor)


def _classes(images: Tensor, neighbours: Iterator[Tensor], points: int, method: str) -> Tensor:
    """Codes (..., y, x), int64."""
    code = torch.zeros_like(images, dtype=torch.int64)
    for point, neighbour in enumerate(neighbours):
        code.add_(neighbour >= images, alpha=1 << point)
    if method == "default":
        return code
    if method == "ror":
        return reduce(torch.minimum, (_turned(code, by, points) for by in range(points)))
    turned, ones = _turned(code, 1, points), _count_ones(code)
    rank = ones
    if method == "nri_uniform":
        # By number of ones, then by right turns since the run of ones began at the first point.
        before = _count_ones((turned & ~code) - 1)  # point of the zero before the run, where there is one
        turns = (points - 1 - before).masked_fill(ones == points, 0)
        rank = ((ones - 1) * points + 1 + turns).masked_fill(ones == 0, 0)
    return rank.masked_fill(_count_ones(code ^ turned) > 2, lbp.largest_code(points, method))


def _turned(code: Tensor, by: int, points: int) -> Tensor:
    """Codes so many bits to the right, the bits that leave in front."""
    return (code >> by) | ((code << (points - by)) & ((1 << points) - 1))


def _count_ones(bits: Tensor) -> Tensor:
    """Set bits of int64 below 2**32, by pairwise sums."""
    pairs = bits - ((bits >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    return ((eights * 0x01010101) >> 24) & 0xFF


def _masks(images: Tensor, corners: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Which neighbourhoods lie inside the image (y, x), and which touch a pixel that is not finite (..., y, x)."""
    (height, width), halo_y, halo_x = images.shape[-2:], *_halo(corners)
    broken = ~images.isfinite()
    gap = F.pad(broken, (halo_x, halo_x, halo_y, halo_y))
    for down, right in np.unique(corners[:, [[0, 2], [0, 3], [1, 2], [1, 3]]].reshape(-1, 2), axis=0).tolist():
        broken |= gap.narrow(-2, halo_y + down, height).narrow(-1, halo_x + right, width)
    first, last = corners.min(axis=0, initial=0).tolist(), corners.max(axis=0, initial=0).tolist()
    inside = torch.zeros(height, width, dtype=torch.bool, device=images.device)
    inside[-first[0] : height - last[1], -first[2] : width - last[3]].fill_(True)
    return inside, broken


def _halo(corners: NDArray[np.int64]) -> tuple[int, int]:
    """Pixels that neighbourhoods reach beyond a side, along y and x."""
    return int(np.abs(corners[:, :2]).max()), int(np.abs(corners[:, 2:]).max())
