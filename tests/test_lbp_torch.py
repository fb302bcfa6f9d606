"""LBP of tensors against that of arrays, which is held against scikit-image, and against scikit-image itself."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.feature import local_binary_pattern
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sifscale import lbp, lbp_torch

CIRCLES = [(8, 1.0), (16, 2.0), (24, 3.0), (32, 1.1), (1, 1.0), (2, 0.3), (5, 2.2), (4, 1e-7), (12, 30.0)]
FLAVOURS = [(method, encoding) for encoding in lbp.ENCODINGS for method in lbp.ENCODING_METHODS[encoding]]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[NDArray[Any], NDArray[np.bool_]]) -> None:
    codes, valid = (part.numpy() for part in found)
    assert codes.dtype == (np.float64 if expected[0].dtype == np.float64 else np.int64)
    np.testing.assert_array_equal(codes.astype(np.float64), expected[0].astype(np.float64))
    np.testing.assert_array_equal(valid, expected[1])


@settings(max_examples=120, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 2), st.integers(0, 14), st.integers(0, 14)),
    axes=st.integers(0, 2),
    dtype=st.sampled_from([*FLOATS, torch.int16, torch.uint8]),
    levels=st.sampled_from([1, 3, 1000]),
    missing=st.sampled_from([0.0, np.nan, np.inf, -np.inf]),
    circle=st.sampled_from(CIRCLES) | st.tuples(st.integers(1, 32), st.floats(0.01, 15)),
    method=st.sampled_from(lbp.METHODS),
    origin_px=st.tuples(*2 * [st.sampled_from([0, -7, 1000, 10**9])]),
    seed=st.integers(0, 1000),
)
def test_codes_and_masks_equal_those_of_arrays(
    shape: tuple[int, ...], axes: int, dtype: torch.dtype, levels: int, missing: float, circle: tuple[int, float],
    method: str, origin_px: tuple[int, int], seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, levels, shape[2 - axes :]) * (0.1 if dtype.is_floating_point else 1))
    images = images.to(dtype)
    if dtype.is_floating_point and images.numel():
        images.view(-1)[rng.integers(0, images.numel(), 2)] = missing
    field = images.to(torch.float64).numpy()
    expected = lbp.codes(field, *circle, method, origin_px=origin_px)
    assert_same(lbp_torch.codes(images, *circle, method, origin_px=origin_px), expected)


@pytest.mark.parametrize("method", lbp.METHODS)
@pytest.mark.parametrize(("points", "radius"), [(8, 1.0), (24, 3.0), (31, 4.7)])
def test_codes_equal_scikit_image(points: int, radius: float, method: str) -> None:
    rng = np.random.default_rng(points)
    untyped: Any = local_binary_pattern
    for field in (rng.normal(size=(33, 41)).astype(np.float32), rng.integers(0, 3, (37, 29)) * 0.1):
        with warnings.catch_warnings():
            # It advises against floating images because ties are fragile; ties are what is tested here.
            warnings.filterwarnings("ignore", "Applying `local_binary_pattern` to floating-point", UserWarning)
            expected = untyped(field, points, radius, method)
        found, _ = lbp_torch.codes(torch.from_numpy(field), points, radius, method)
        np.testing.assert_array_equal(found.numpy().astype(np.float64), expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), circle=st.sampled_from(CIRCLES[:3]), method=st.sampled_from(lbp.METHODS))
def test_crops_with_their_origins_have_the_codes_of_the_whole_field(
    seed: int, circle: tuple[int, float], method: str
) -> None:
    rng = np.random.default_rng(seed)
    # Small integers: many ties, which hang on the last bit of the interpolation weights.
    field = torch.from_numpy(rng.integers(0, 3, (2, 1100, 60)).astype(np.float32))
    corners = rng.integers(0, [1100 - 15, 60 - 15], (4, 2))
    crops = torch.stack([field[:, y : y + 15, x : x + 15] for y, x in corners])
    found, valid = lbp_torch.codes(crops, *circle, method, origin_px=torch.from_numpy(corners))
    whole, _ = lbp.codes(field.numpy(), *circle, method)
    edge = lbp.halo_px(circle[1])
    inside = slice(edge, 15 - edge)
    assert valid[..., inside, inside].all()
    for crop, (y, x) in zip(found, corners, strict=True):
        expected = whole[:, y : y + 15, x : x + 15][:, inside, inside].astype(np.float64)
        np.testing.assert_array_equal(crop[:, inside, inside].numpy().astype(np.float64), expected)


@pytest.mark.parametrize(("method", "encoding"), FLAVOURS)
def test_channels_equal_those_of_arrays(method: str, encoding: str) -> None:
    images = torch.randn((2, 3, 9, 12), generator=torch.Generator().manual_seed(0))
    images[1, 2, 4, 4] = torch.nan
    planes = lbp_torch.encode(*lbp_torch.codes(images, 8, 1.0, method), 8, method, encoding)
    expected = lbp.encode(*lbp.codes(images.numpy(), 8, 1.0, method), 8, method, encoding)
    assert planes.dtype == torch.float32
    np.testing.assert_array_equal(planes.numpy(), expected)


class Watch(TorchDispatchMode):
    """Refuses what would wait for a GPU, or be done there by other operations than on a processor."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "index", "unique")), name
        assert not name.startswith("aten.div.") or isinstance(args[1], Tensor), "a GPU would multiply by the inverse"
        made = function(*args, **kwargs or {})
        assert not isinstance(made, Tensor) or made.device.type == "meta", f"{name} made a tensor elsewhere"
        return made


@pytest.mark.parametrize("method", lbp.METHODS)
def test_nothing_leaves_the_device_of_the_images_or_waits_for_it(method: str) -> None:
    images = torch.empty((2, 3, 20, 21), dtype=torch.float16, device="meta")  # which has no values that could be read
    origins = torch.empty((2, 2), dtype=torch.int32, device="meta")
    with Watch(), torch.inference_mode():
        found, valid = lbp_torch.codes(images, 5, 1.5, method, origin_px=origins)
        for encoding in (encoding for name, encoding in FLAVOURS if name == method):
            planes = lbp_torch.encode(found, valid, 5, method, encoding)
            assert planes.shape == (2, 3, planes.shape[2], 20, 21)
    assert found.shape == valid.shape == images.shape


@pytest.mark.parametrize("method", lbp.METHODS)
def test_autocast_inference_and_gradients_change_nothing(method: str) -> None:
    images = torch.randn((2, 15, 17), generator=torch.Generator().manual_seed(1))
    expected = lbp.codes(images.numpy(), 24, 3.0, method)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert_same(lbp_torch.codes(images, 24, 3.0, method), expected)
    found, valid = lbp_torch.codes(images.requires_grad_().mT.contiguous().mT, 24, 3.0, method)
    assert not found.requires_grad
    assert_same((found, valid), expected)


def test_compiled_code_calls_it_as_it_is() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (2, 12, 13)) * 0.1)
    compiled: list[str] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        compiled.extend(str(node.target) for node in module.graph.nodes if node.op.startswith("call"))
        return module

    twice = torch.compile(lambda images: lbp_torch.codes(images * 2, 24, 3.0, "default"), backend=backend)
    assert_same(twice(images), lbp.codes(images.numpy() * 2, 24, 3.0, "default"))
    assert len(compiled) == 1 and "mul" in compiled[0]


def test_bad_arguments() -> None:
    images = torch.zeros((3, 4, 5, 5))
    with pytest.raises(ValueError, match="dtype torch.bool: convert"):
        lbp_torch.codes(images > 0, 8, 1.0, "var")
    with pytest.raises(ValueError, match="dtype torch.complex64"):
        lbp_torch.codes(images + 0j, 8, 1.0, "var")
    with pytest.raises(ValueError, match=r"found shape \(3,\)"):
        lbp_torch.codes(images[:, 0, 0, 0], 8, 1.0, "var")
    with pytest.raises(ValueError, match="radius"):
        lbp_torch.codes(images, 8, -1.0, "var")
    for shape in ((4, 2), (3,), (3, 4, 1, 2), (3, 4, 3)):
        with pytest.raises(ValueError, match=r"\(3, 4\) images on cpu, found torch.int64 .* on cpu"):
            lbp_torch.codes(images, 8, 1.0, "var", origin_px=torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="found torch.float32"):
        lbp_torch.codes(images, 8, 1.0, "var", origin_px=torch.zeros(2))
    with pytest.raises(ValueError, match="on meta"):
        lbp_torch.codes(images, 8, 1.0, "var", origin_px=torch.zeros(2, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="share one shape"):
        lbp_torch.encode(torch.zeros((3, 3)), torch.ones((3, 4), dtype=torch.bool), 8, "var", "raw")
    with pytest.raises(ValueError, match="'bits' does not go with"):
        lbp_torch.encode(images, images > 0, 8, "var", "bits")
