"""LBP codes beside scikit-image and mahotas, and beside a copy of the field."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import local_binary_pattern

from benchmarks.measure import Row, Setting, Way, compare
from sifscale import lbp

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


def rows(setting: Setting) -> Iterator[Row]:
    """Every field, circle and method, on all cores that there are, as a call from the main thread has them."""
    for shape, bar in (QUICK_SHAPES if setting.quick else SHAPES).items():
        field = field_of(shape)
        megapixels = field.size / 1e6
        way = partial(Way, items=megapixels)
        for points, radius in CIRCLES:
            for method in METHODS:
                run = partial(by_scikit_image, field, points, radius, method)
                equal = is_equal(field, points, radius, method)
                peers = [way("scikit-image", run, bar=bar, agrees=equal, note="equal codes and mask" * equal)]
                if method == "ror":
                    there = partial(by_mahotas, field, points, radius) if find_spec("mahotas") else None
                    peers.append(way("mahotas", there, note="interpolates otherwise: not compared"))
                ours = way("ours", partial(lbp.codes, field, points, radius, method))
                case = f"{' x '.join(str(size) for size in shape if size > 1)}, P{points} R{radius:g}, {method}"
                yield from compare("lbp", case, "Mpx/s", ours, peers, setting, way("copy", field.copy))
