"""LBP against scikit-image, brute force and itself in chunks."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numba import config
from numpy.typing import NDArray
from skimage.feature import local_binary_pattern

from sifscale import lbp
from sifscale.config.sections import LBP_ENCODINGS
from sifscale.lbp_kernels import fill_tiles

CIRCLES = [(8, 1.0), (16, 2.0), (24, 3.0)]
ODD_CIRCLES = [(1, 1.0), (2, 0.3), (3, 1.5), (4, 1e-7), (5, 2.2), (12, 1.1), (31, 1.1), (31, 4.7)]
FLAVOURS = [(method, encoding) for encoding in lbp.ENCODINGS for method in lbp.ENCODING_METHODS[encoding]]
SMALL_DTYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]


def reference(field: NDArray[Any], points: int, radius: float, method: str) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        # It advises against floating images because ties are fragile; ties are what is tested here.
        warnings.filterwarnings("ignore", "Applying `local_binary_pattern` to floating-point", UserWarning)
        untyped: Any = local_binary_pattern
        result: NDArray[np.float64] = untyped(field, points, radius, method)
    return result


def assert_equals_scikit_image(field: NDArray[Any], points: int, radius: float, method: str) -> None:
    found, _ = lbp.codes(field, points, radius, method)
    assert found.shape == field.shape
    np.testing.assert_array_equal(found.astype(np.float64), reference(field, points, radius, method))


def brute_force_reach(
    field: NDArray[np.float64], points: int, radius: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixel by pixel: does the neighbourhood stay inside; is all of it that is inside finite."""
    inside, finite = np.ones(field.shape, np.bool_), np.ones(field.shape, np.bool_)
    for y, x in np.ndindex(*field.shape):
        touched = [(y, x)]
        for angle in 2 * np.pi * np.arange(points) / points:
            dy, dx = round(-radius * math.sin(angle), 5), round(radius * math.cos(angle), 5)
            rows, columns = (math.floor(dy), math.ceil(dy)), (math.floor(dx), math.ceil(dx))
            touched += [(y + row, x + column) for row, column in itertools.product(rows, columns)]
        for row, column in touched:
            if not (0 <= row < field.shape[0] and 0 <= column < field.shape[1]):
                inside[y, x] = False
            elif not np.isfinite(field[row, column]):
                finite[y, x] = False
    return inside, finite


@pytest.mark.parametrize("method", lbp.METHODS)
@pytest.mark.parametrize(("points", "radius"), CIRCLES + ODD_CIRCLES)
def test_codes_equal_scikit_image(points: int, radius: float, method: str) -> None:
    rng = np.random.default_rng(points)
    random = rng.normal(size=(37, 41))
    tied = rng.integers(0, 3, (37, 41))
    for field in (random, random.astype(np.float32), tied, tied * 0.1, np.full((20, 23), 7.3)):
        assert_equals_scikit_image(field, points, radius, method)


@settings(max_examples=150, deadline=None)
@given(
    field=st.sampled_from(SMALL_DTYPES).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
            elements={"allow_nan": False, "allow_infinity": False} if dtype in SMALL_DTYPES[-2:] else None,
        )
    ),
    circle=st.sampled_from(CIRCLES + ODD_CIRCLES) | st.tuples(st.integers(1, 31), st.floats(0.01, 15)),
    method=st.sampled_from(lbp.METHODS),
)
def test_codes_equal_scikit_image_on_any_field(
    field: NDArray[Any], circle: tuple[int, float], method: str
) -> None:
    assert_equals_scikit_image(field, *circle, method)


def by_definition(
    field: NDArray[Any], points: int, radius: float, origin_px: tuple[int, int] = (0, 0)
) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """`default` codes (y, x) and the interpolated neighbours (point, y, x), in float64, whole arrays at a time."""
    rows, columns = field.shape
    reach = math.ceil(radius)
    padded = np.pad(field.astype(np.float64), reach)
    codes, neighbours = np.zeros(field.shape, np.uint64), np.empty((points, *field.shape))
    for point, angle in enumerate(2 * np.pi * np.arange(points, dtype=np.float64) / points):
        dy, dx = np.round(-radius * np.sin(angle), 5), np.round(radius * np.cos(angle), 5)
        y, x = origin_px[0] + np.arange(rows) + dy, origin_px[1] + np.arange(columns) + dx
        fy, fx = (y - np.floor(y))[:, None], x - np.floor(x)

        def corner(down: float, right: float) -> NDArray[np.float64]:
            top, left = reach + int(down), reach + int(right)
            cut: NDArray[np.float64] = padded[top : top + rows, left : left + columns]
            return cut

        north, south, west, east = np.floor(dy), np.ceil(dy), np.floor(dx), np.ceil(dx)
        upper = (1 - fx) * corner(north, west) + fx * corner(north, east)
        lower = (1 - fx) * corner(south, west) + fx * corner(south, east)
        neighbours[point] = (1 - fy) * upper + fy * lower
        codes |= (neighbours[point] - field >= 0).astype(np.uint64) << np.uint64(point)
    return codes, neighbours


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([np.float32, np.float64]),
    circle=st.sampled_from([(8, 1.0), (24, 3.0), (12, 1.1), (5, 2.2)]),
    scale=st.sampled_from([1e-300, 1e-44, 1e-30, 1e-3, 1.0, 1e30, 3e37, 1e300]),
    level=st.sampled_from([0.0, 1.0, 300.0, -1e5]),
    distance=st.sampled_from([0.0, 2.0**-53, 2.0**-24, 2.0**-23, 2.0**-22, 2.0**-21, 2.0**-20, 2.0**-19]),
)
def test_near_ties_fall_as_in_float64(
    seed: int,
    dtype: type[np.floating[Any]],
    circle: tuple[int, float],
    scale: float,
    level: float,
    distance: float,
) -> None:
    points, radius = circle
    rng = np.random.default_rng(seed)
    if dtype == np.float32:
        scale = min(max(scale, 1e-44), 1e30)
    field = ((level + rng.normal(size=(29, 31))) * scale).astype(dtype)
    # Far enough from each other not to be each other's neighbours: as large as one of theirs, or nearly so.
    step = 2 * lbp.halo_px(radius) + 1
    y, x = (i.ravel() for i in np.mgrid[step // 2 : 29 : step, step // 2 : 31 : step])
    neighbours = by_definition(field, points, radius)[1][rng.integers(0, points, y.size), y, x]
    field[y, x] = neighbours + distance * np.abs(field).max() * rng.uniform(-1, 1, y.size)
    assert_equals_scikit_image(field, points, radius, "default")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([np.int16, np.float32, np.float64]),
    circle=st.sampled_from([*CIRCLES, (12, 1.1)]),
    origin_px=st.tuples(*2 * [st.sampled_from([0, 1, -7, 1000, 10**6, 10**9, 10**12])]),
)
def test_codes_far_from_the_origin(
    seed: int, dtype: type[np.generic], circle: tuple[int, float], origin_px: tuple[int, int]
) -> None:
    field = np.random.default_rng(seed).integers(0, 3, (13, 17)).astype(dtype)
    found, _ = lbp.codes(field, *circle, "default", origin_px=origin_px)
    np.testing.assert_array_equal(found, by_definition(field, *circle, origin_px)[0])


@pytest.mark.parametrize("method", lbp.METHODS)
@pytest.mark.parametrize(("tile_px", "tile_width_px"), [(1, 1), (80, 16), (4096, 256)])
def test_tiles_threads_and_worker_threads_leave_no_trace(
    method: str, tile_px: int, tile_width_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = np.random.default_rng(1).integers(0, 5, (2, 71, 43)).astype(np.float32)
    field[0, 40, 3] = np.nan
    monkeypatch.setattr(lbp, "TILE_PX", tile_px)
    monkeypatch.setattr(lbp, "TILE_WIDTH_PX", tile_width_px)
    with ThreadPoolExecutor(1) as pool:
        alone = pool.submit(lbp.codes, field, 8, 1.0, method).result()
    monkeypatch.setattr(lbp, "SHARE", 1)
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", 3)
    shared = lbp.codes(field, 8, 1.0, method)
    for found, valid in (alone, shared):
        for layer in range(2):
            expected, gap = reference(field[layer], 8, 1.0, method), np.zeros((71, 43), np.bool_)
            gap[39:42, 2:5] = layer == 0
            np.testing.assert_array_equal(found[layer], np.where(gap, 0, expected))
            gap[[0, -1]] = gap[:, [0, -1]] = True
            np.testing.assert_array_equal(valid[layer], ~gap)


def test_a_circle_beyond_the_field_reads_zeros() -> None:
    field = np.random.default_rng(4).normal(size=(6, 5))
    for radius in (5.5, 40.0, 1000.0):
        assert_equals_scikit_image(field, 12, radius, "default")
        assert not lbp.codes(field, 12, radius, "default")[1].any()


def test_batch_axes_strides_and_empty_fields() -> None:
    stack = np.random.default_rng(2).normal(size=(9, 11, 2, 3)).transpose(2, 3, 0, 1)[..., ::-1]
    found, valid = lbp.codes(stack, 8, 1.0, "uniform")
    assert found.shape == valid.shape == stack.shape
    for index in np.ndindex(2, 3):
        one, one_valid = lbp.codes(stack[index], 8, 1.0, "uniform")
        np.testing.assert_array_equal(found[index], one)
        np.testing.assert_array_equal(valid[index], one_valid)
    for shape in ((0, 5), (5, 0), (0, 4, 4)):
        assert lbp.codes(np.zeros(shape), 8, 1.0, "var")[0].shape == shape


@pytest.mark.parametrize(
    ("points", "method", "dtype"),
    [
        (8, "default", np.uint8),
        (16, "ror", np.uint16),
        (24, "default", np.uint32),
        (24, "uniform", np.uint8),
        (16, "nri_uniform", np.uint8),
        (24, "nri_uniform", np.uint16),
        (8, "var", np.float64),
    ],
)
def test_smallest_dtype(points: int, method: str, dtype: type[np.generic]) -> None:
    assert lbp.codes(np.zeros((3, 3)), points, 1.0, method)[0].dtype == dtype


def test_32_points_do_not_overflow() -> None:
    flat = np.zeros((5, 5))
    for method in ("default", "ror"):
        assert (lbp.codes(flat, 32, 1.0, method)[0] == 2**32 - 1).all()
    assert (lbp.codes(flat, 32, 1.0, "nri_uniform")[0] == 32 * 31 + 1).all()


@settings(max_examples=60, deadline=None)
@given(
    field=st.sampled_from([np.float32, np.float64]).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=10),
            elements=st.sampled_from([0.0, 1.0, 2.0, 3.0]),
        )
    ),
    holes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4),
    missing=st.sampled_from([np.nan, np.inf, -np.inf]),
    circle=st.sampled_from(CIRCLES + ODD_CIRCLES),
    method=st.sampled_from(lbp.METHODS),
)
def test_mask_is_brute_force_and_nan_never_yields_a_code(
    field: NDArray[np.float64],
    holes: list[tuple[int, int]],
    missing: float,
    circle: tuple[int, float],
    method: str,
) -> None:
    filled = field.copy()
    for y, x in holes:
        field[y % field.shape[0], x % field.shape[1]] = missing
    inside, finite = brute_force_reach(field, *circle)
    found, valid = lbp.codes(field, *circle, method)
    np.testing.assert_array_equal(valid, inside & finite)
    expected = np.where(finite, reference(filled, *circle, method), 0)
    np.testing.assert_array_equal(found.astype(np.float64), expected)


@pytest.mark.parametrize(("method", "encoding"), FLAVOURS)
def test_encodings_give_the_codes_back(method: str, encoding: str) -> None:
    field = np.random.default_rng(3).normal(size=(2, 9, 12))
    field[1, 4, 4] = np.nan
    found, valid = lbp.codes(field, 8, 1.0, method)
    planes = lbp.encode(found, valid, 8, method, encoding)
    names = lbp.channel_names(8, 1.0, method, encoding)
    assert planes.shape == (2, len(names), 9, 12) and planes.dtype == np.float32
    assert len(set(names)) == len(names)
    np.testing.assert_array_equal(np.isnan(planes), np.broadcast_to(~valid[:, None], planes.shape))
    each = np.moveaxis(planes, 1, -1)[valid]
    if encoding == "bits":
        decoded = each @ (2.0 ** np.arange(8))
    elif encoding == "onehot":
        assert (each.sum(axis=1) == 1).all() and len(names) == {"uniform": 10, "nri_uniform": 59}[method]
        decoded = each.argmax(axis=1)
    elif encoding == "scaled":
        decoded = np.rint(each[:, 0] * {"uniform": 9, "nri_uniform": 58}.get(method, 255))
    else:
        decoded = each[:, 0]
    np.testing.assert_array_equal(decoded, found[valid].astype(np.float32))


def test_channel_names() -> None:
    assert lbp.channel_names(8, 1, "uniform", "scaled") == ["lbp_uniform_p8_r1px_scaled"]
    assert lbp.channel_names(2, 1.5, "ror", "bits") == ["lbp_ror_p2_r1.5px_bit0", "lbp_ror_p2_r1.5px_bit1"]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    circle=st.sampled_from([*CIRCLES, (12, 1.1), (4, 1e-7)]),
    flavour=st.sampled_from(FLAVOURS),
    chunk=st.tuples(st.integers(3, 12), st.integers(3, 12)),
)
def test_chunks_with_halo_equal_the_whole_field(
    seed: int, circle: tuple[int, float], flavour: tuple[str, str], chunk: tuple[int, int]
) -> None:
    points, radius = circle
    method, encoding = flavour
    if (method, encoding) == ("nri_uniform", "onehot"):
        points = 8
    rng = np.random.default_rng(seed)
    # Small integers: many ties, which hang on the last bit of the interpolation weights.
    field = rng.integers(0, 3, (25, 31)).astype(np.float64)
    field[rng.random(field.shape) < 0.01] = np.nan
    whole = lbp.encode(*lbp.codes(field, points, radius, method), points, method, encoding)
    halo = lbp.halo_px(radius)
    padded = np.pad(field, halo, constant_values=np.nan)
    pieced = np.zeros_like(whole)
    for y, x in itertools.product(range(0, 25, chunk[0]), range(0, 31, chunk[1])):
        cut = padded[y : y + chunk[0] + 2 * halo, x : x + chunk[1] + 2 * halo]
        found = lbp.codes(cut, points, radius, method, origin_px=(y - halo, x - halo))
        planes = lbp.encode(*found, points, method, encoding)
        pieced[:, y : y + chunk[0], x : x + chunk[1]] = planes[:, halo:-halo, halo:-halo]
    np.testing.assert_array_equal(pieced, whole)


@pytest.mark.parametrize(("radius", "halo"), [(0.2, 1), (1, 1), (1.01, 2), (3.0, 3)])
def test_halo(radius: float, halo: int) -> None:
    assert lbp.halo_px(radius) == halo


@pytest.mark.parametrize(
    ("points", "radius", "method", "encoding", "message"),
    [
        (0, 1.0, "uniform", "onehot", "points .* found 0"),
        (33, 1.0, "uniform", "onehot", "points .* found 33"),
        (8, 0.0, "uniform", "onehot", "radius .* found 0.0"),
        (8, float("nan"), "uniform", "onehot", "radius .* found nan"),
        (8, 1e300, "uniform", "onehot", "radius .* found 1e[+]300"),
        (8, float("inf"), "uniform", "onehot", "radius .* found inf"),
        (8, 1.0, "Uniform", "onehot", "method, found 'Uniform'"),
        (8, 1.0, "uniform", "one-hot", "encoding, found 'one-hot'"),
        (8, 1.0, "uniform", "bits", "'bits' does not go with method 'uniform': choose onehot or scaled"),
        (8, 1.0, "default", "onehot", "choose bits or scaled"),
        (8, 1.0, "var", "scaled", "choose raw"),
        (9, 1.0, "nri_uniform", "onehot", "at most 64 planes, found 75"),
    ],
)
def test_bad_settings(points: int, radius: float, method: str, encoding: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lbp.channel_names(points, radius, method, encoding)


def test_bad_fields() -> None:
    with pytest.raises(ValueError, match="dtype complex128"):
        lbp.codes(np.zeros((3, 3), np.complex128), 8, 1.0, "var")
    with pytest.raises(ValueError, match=r"found shape \(3,\)"):
        lbp.codes(np.zeros(3), 8, 1.0, "var")
    with pytest.raises(ValueError, match="share one shape"):
        lbp.encode(np.zeros((3, 3)), np.ones((3, 4), np.bool_), 8, "var", "raw")
    with pytest.raises(ValueError, match="radius"):
        lbp.codes(np.zeros((3, 3)), 8, -1.0, "var")


def run_python(code: str, **environment: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={**os.environ, **environment})


def test_import_does_not_compile() -> None:
    run_python("from sifscale import lbp, lbp_kernels; assert not lbp_kernels.fill_tiles.signatures")


def test_import_where_no_folder_can_keep_compiled_code() -> None:
    # The one place left to numba is a zip file's, which this package is not.
    run_python("from sifscale import lbp_kernels", NUMBA_CACHE_LOCATOR_CLASSES="ZipCacheLocator")


def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lbp, "SHARE", 1)
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", 2)
    field = np.random.default_rng(0).normal(size=(2, 99, 99))
    found, _ = lbp.codes(field, 8, 1.0, "default")
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends it, should it wait for threads that it does not have
        os._exit(0 if np.array_equal(lbp.codes(field, 8, 1.0, "default")[0], found) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_shapes_dtypes_and_strides_share_compiled_code() -> None:
    kernel: Any = fill_tiles
    for field in (np.zeros((4, 4), np.float32), np.zeros((4, 4))):
        lbp.codes(field, 8, 1.0, "default")
    compiled = len(kernel.signatures)
    for dtype in (*SMALL_DTYPES, np.float16, np.int64, np.uint64, np.dtype(">f4")):
        for shape in ((3, 3), (0, 4, 4), (2, 3, 4, 5)):
            lbp.codes(np.zeros(shape, dtype)[..., ::-1, ::2], 8, 1.5, "uniform")
    assert len(kernel.signatures) == compiled


def test_configuration_offers_what_the_code_can_do() -> None:
    # the configuration may not import numba, so it states the pairs a second time
    pairs = {(method, encoding) for encoding, methods in lbp.ENCODING_METHODS.items() for method in methods}
    assert {(method, encoding) for method, all_ in LBP_ENCODINGS.items() for encoding in all_} == pairs
