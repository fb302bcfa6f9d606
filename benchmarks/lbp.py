"""LBP codes beside scikit-image and mahotas, and beside a copy of the field."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import local_binary_pattern

from benchmarks.measure import Row, Setting, Way, compare
from sifscale import lbp, lbp_torch

# Fields (layer, y, x) and the bar beside scikit-image.
SHAPES = {(1, 2048, 2048): 50.0, (32, 64, 64): 40.0}
QUICK_SHAPES = {(1, 96, 96): 0.0, (3, 24, 24): 0.0}
CIRCLES = ((8, 1.0), (24, 3.0))
METHODS = ("default", "uniform", "ror", "var")


def field_of(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Smooth noise (layer, y, x)."""
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(noise, (0, 2, 2))
    return smooth


def by_scikit_image(field: NDArray[np.float32], points: int, radius: float, method: str) -> NDArray[np.float64]:
    """Codes (layer, y, x)."""
    untyped: Any = local_binary_pattern
    with warnings.catch_warnings():
        # It advises against floating images because ties are fragile; here they fall as its own do.
        warnings.filterwarnings("ignore", "Applying `local_binary_pattern` to floating-point", UserWarning)
        return np.stack([untyped(layer, points, radius, method) for layer in field])


def by_mahotas(field: NDArray[np.float32], points: int, radius: float) -> NDArray[np.float64]:
    """Codes (layer, y, x) of what is `ror` elsewhere, all that it has."""
    from mahotas.features.lbp import lbp_transform

    return np.stack([lbp_transform(layer, radius, points, preserve_shape=True) for layer in field])


def is_equal(field: NDArray[np.float32], points: int, radius: float, method: str) -> bool:
    """Codes of scikit-image in every pixel, and a mask that leaves out a frame as wide as the radius."""
    found, valid = lbp.codes(field, points, radius, method)
    edge = lbp.halo_px(radius)
    inside = np.zeros_like(valid)
    inside[:, edge:-edge, edge:-edge] = True
    same = np.array_equal(found.astype(np.float64), by_scikit_image(field, points, radius, method), equal_nan=True)
    return same and np.array_equal(valid, inside)


def by_tensors(images: torch.Tensor, points: int, radius: float, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and mask (layer, y, x), once the device of the images has made them."""
    found = lbp_torch.codes(images, points, radius, method)
    if images.is_cuda:
        torch.cuda.synchronize()
    return found


def rows(setting: Setting) -> Iterator[Row]:
    """Every field, circle and method, on all cores that there are, as a call from the main thread has them."""
    for shape, bar in (QUICK_SHAPES if setting.quick else SHAPES).items():
        field = field_of(shape)
        size = " x ".join(str(size) for size in shape if size > 1)
        way = partial(Way, items=field.size / 1e6)
        for points, radius in CIRCLES:
            for method in METHODS:
                run = partial(by_scikit_image, field, points, radius, method)
                equal = is_equal(field, points, radius, method)
                peers = [way("scikit-image", run, bar=bar, agrees=equal, note="equal codes and mask" * equal)]
                if method == "ror":
                    there = partial(by_mahotas, field, points, radius) if find_spec("mahotas") else None
                    peers.append(way("mahotas", there, note="interpolates otherwise: not compared"))
                ours = way("ours", partial(lbp.codes, field, points, radius, method))
                case = f"{size}, P{points} R{radius:g}, {method}"
                yield from compare("lbp", case, "Mpx/s", ours, peers, setting, way("copy", field.copy))
            yield from tensor_rows(field, f"{size}, P{points} R{radius:g}", (points, radius), setting)


def tensor_rows(
    field: NDArray[np.float32], case: str, circle: tuple[int, float], setting: Setting
) -> Iterator[Row]:
    """Codes of tensors by one method, on the processor and on the GPU that they are meant for, if any; no bar."""
    way = partial(Way, items=field.size / 1e6)
    expected = lbp.codes(field, *circle, "uniform")
    peer = way("scikit-image", partial(by_scikit_image, field, *circle, "uniform"))
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        run = partial(by_tensors, torch.from_numpy(field).to(device), *circle, "uniform")
        equal = all(np.array_equal(part.cpu().numpy(), other) for part, other in zip(run(), expected, strict=True))
        ours = way("ours", run, agrees=equal, note="meant for GPUs; " + "equal codes and mask" * equal)
        yield from compare("lbp", f"{case}, uniform, torch on {device}", "Mpx/s", ours, [peer], setting)
