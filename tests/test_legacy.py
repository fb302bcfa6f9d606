"""The notebooks' own steps, against plain loops."""

from __future__ import annotations

from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sifscale.config import LegacyFeatures
from sifscale.features import Channel, FeatureCube
from sifscale.legacy import extend, minmax, notebook_lbp
from sifscale.texture import without_steps

SHAPE = (2, 8, 9)


def options(
    difference: bool = False,
    lbp: bool = False,
    minmax_everything: bool = False,
    zero_gaps: bool = False,
    lbp_source: str = "coarse",
) -> LegacyFeatures:
    return LegacyFeatures(
        difference=difference,
        lbp=lbp,
        lbp_source=lbp_source,
        minmax_everything=minmax_everything,
        zero_gaps=zero_gaps,
    )


def fields(
    seed: int = 0, gaps: float = 0.1
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    target, evi = rng.normal(1, 0.5, (2, *SHAPE)).astype(np.float32)
    target[rng.random(SHAPE) < gaps] = np.nan
    evi[rng.random(SHAPE) < gaps] = np.nan
    return target, evi, np.isfinite(target)


def lazy_cube(seed: int = 0, pad: int = 0) -> FeatureCube:
    """A cube of two channels; ``pad`` rows below the field belong to no pixel."""
    target, evi, valid = fields(seed)
    rng = np.random.default_rng(seed)
    coarse = rng.random(SHAPE, dtype=np.float32)
    if pad:
        for field in (target, evi):
            field[:, -pad:] = np.nan
        valid[:, -pad:] = False
    lazy = [da.from_array(field, chunks=(1, -1, -1)) for field in (coarse, evi, target, valid)]
    predictors = da.stack(lazy[:2], axis=1)
    channels = (Channel("coarse", True), Channel("evi", True))
    days = np.array(["2019-05-25", "2019-06-10"], "datetime64[ns]")
    shape = (SHAPE[1] - pad, SHAPE[2])
    weight = da.ones_like(lazy[2])
    return FeatureCube(channels, predictors, lazy[0], lazy[2], lazy[3], weight, 1, shape, ("a", "a"), days)


def lbp_by_loops(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pixel by pixel, bits counter-clockwise from the east on rows that run from south to north."""
    low, high = np.nanmin(field), np.nanmax(field)
    scaled = (field - low) / np.float32(high - low) if high > low else field - low
    grey = np.zeros(field.shape, dtype=int)
    for at in np.ndindex(field.shape):
        grey[at] = 0 if np.isnan(scaled[at]) else int(scaled[at] * np.float32(255))
    north_up = grey[::-1]
    codes = np.zeros(field.shape, dtype=np.float32)
    neighbours = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]
    for y in range(field.shape[0]):
        for x in range(field.shape[1]):
            for bit, (dy, dx) in enumerate(neighbours):
                row, column = y + dy, x + dx
                inside = 0 <= row < field.shape[0] and 0 <= column < field.shape[1]
                if inside and north_up[row, column] > north_up[y, x]:
                    codes[y, x] += 2**bit
    return codes[::-1] * np.float32(0.5)


@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    levels=st.sampled_from([2, 5, 1000]),
    gaps=st.sampled_from([0.0, 0.2]),
)
def test_notebook_lbp_against_loops(seed: int, shape: tuple[int, int], levels: int, gaps: float) -> None:
    rng = np.random.default_rng(seed)
    field = (rng.integers(0, levels, shape) / levels).astype(np.float32)
    field[rng.random(shape) < gaps] = np.nan
    field[0, 0] = 0.5
    codes = notebook_lbp(field)
    np.testing.assert_array_equal(codes, lbp_by_loops(field))
    assert codes.dtype == np.float32 and codes.max() <= 127.5
    np.testing.assert_array_equal(notebook_lbp(np.stack([field, field]))[1], codes)


def test_lbp_bits_name_directions() -> None:
    field = np.zeros((3, 3), dtype=np.float32)
    field[1, 2] = 1  # a brighter neighbour in the east
    assert notebook_lbp(field)[1, 1] == 0.5
    assert notebook_lbp(np.rot90(field))[1, 1] == 2.0  # in the north: bit 2


@given(seed=st.integers(0, 1000))
def test_minmax_of_each_layer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    field = rng.normal(5, 3, (2, 3, 6, 7)).astype(np.float32)
    field[rng.random(field.shape) < 0.3] = np.nan
    field[:, :, 0, :2] = [-10, 20]
    scaled = minmax(field)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(scaled), np.isnan(field))
    np.testing.assert_array_equal(np.nanmin(scaled, axis=(2, 3)), 0)
    np.testing.assert_array_equal(np.nanmax(scaled, axis=(2, 3)), 1)
    np.testing.assert_allclose(scaled, (field + 10) / 30, atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_minmax_of_constant_and_of_empty_layers() -> None:
    field = np.full((2, 4, 4), 3, dtype=np.float32)
    field[1] = np.nan
    scaled = minmax(field)
    assert (scaled[0] == 0).all() and np.isnan(scaled[1]).all()


def test_channels_follow_the_options() -> None:
    cube = lazy_cube()
    assert extend(cube, options()).names == ["coarse", "evi"]
    both = extend(cube, options(difference=True, lbp=True))
    assert both.names == ["coarse", "evi", "notebook LBP x 0.5", "target - coarse"]
    assert [channel.scaled for channel in both.channels] == [True, True, False, True]
    values = both.predictors.compute()
    target, coarse, valid = (getattr(cube, name).compute() for name in ("target", "coarse", "valid"))
    np.testing.assert_array_equal(values[:, :2], cube.predictors.compute())
    np.testing.assert_array_equal(values[:, 3], target - coarse)
    observed = np.where(valid, coarse, np.nan)
    np.testing.assert_array_equal(values[:, 2], [lbp_by_loops(layer) for layer in observed])
    np.testing.assert_array_equal(both.target.compute(), target)


def test_codes_can_be_those_of_another_predictor() -> None:
    cube = lazy_cube()
    found = extend(cube, options(lbp=True, lbp_source="evi"))
    assert found.names == ["coarse", "evi", "notebook LBP x 0.5(evi)"]
    evi, codes = found.predictors[:, 1].compute(), found.predictors[:, 2].compute()
    np.testing.assert_array_equal(codes, [lbp_by_loops(layer) for layer in evi])


def test_codes_of_block_means_are_taken_between_block_centres() -> None:
    """On the steps of block means no neighbour inside a block is greater, whatever the field."""
    means = np.random.default_rng(0).random((2, 2, 3), dtype=np.float32).repeat(4, 1).repeat(4, 2)
    coarse = da.from_array(means, chunks=(1, -1, -1))
    cube = replace(lazy_cube(), predictors=coarse[:, None], coarse=coarse, valid=da.ones_like(coarse, bool), block_px=4)
    codes = extend(cube, options(lbp=True)).predictors[:, -1].compute()
    np.testing.assert_array_equal(codes, [lbp_by_loops(layer) for layer in without_steps(coarse, 4).compute()])
    assert (codes[:, 1:3, 1:3] > 0).any()


def test_minmax_everything_scales_all_channels_but_codes() -> None:
    cube = lazy_cube()
    plain = extend(cube, options(difference=True, lbp=True)).predictors.compute()
    scaled = extend(cube, options(difference=True, lbp=True, minmax_everything=True)).predictors.compute()
    for i in (0, 1, 3):
        np.testing.assert_array_equal(scaled[:, i], minmax(plain[:, i]))
    np.testing.assert_array_equal(scaled[:, 2], plain[:, 2])


def test_minmax_everything_looks_at_whole_layers_of_tiled_predictors() -> None:
    cube = lazy_cube()
    tiled = replace(cube, predictors=cube.predictors.rechunk({2: 3, 3: 4}))
    scaled = [extend(one, options(minmax_everything=True)).predictors.compute() for one in (cube, tiled)]
    np.testing.assert_array_equal(scaled[1], scaled[0])


@pytest.mark.parametrize("pad", [0, 2])
def test_zero_gaps_become_observed_zeros_inside_the_field(pad: int) -> None:
    cube = lazy_cube(pad=pad)
    legacy = options(difference=True, lbp=True, minmax_everything=True, zero_gaps=True)
    filled, plain = extend(cube, legacy), extend(cube, legacy.model_copy(update={"zero_gaps": False}))
    gap = ~cube.valid.compute()
    np.testing.assert_array_equal(filled.predictors.compute(), np.nan_to_num(plain.predictors.compute()))
    for name in ("coarse", "target"):
        values = getattr(filled, name).compute()
        assert (values[gap] == 0).all()
        np.testing.assert_array_equal(values[~gap], getattr(cube, name).compute()[~gap])
    valid = filled.valid.compute()
    assert valid[:, : cube.shape[0]].all() and not valid[:, cube.shape[0] :].any()


def test_everything_stays_float32() -> None:
    cube = extend(lazy_cube(), options(True, True, True, True))
    for array in (cube.predictors, cube.coarse, cube.target):
        assert array.dtype == np.float32 == array.compute().dtype
    assert cube.valid.dtype == bool
