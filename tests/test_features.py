"""Predictors never read the target, are what their names say, and are stored once."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.feature import local_binary_pattern

from sifscale import feature_store, grid, selection
from sifscale import features as room
from sifscale.config import Coarse, ConfigError, Cover, Features, Select
from sifscale.crops import CropPlan
from sifscale.cube import Cube
from sifscale.datamodule import CropBatches
from sifscale.features import Channel, FeatureCube

BANDS = ("ndvi", "evi", "nir")
SOURCE = str(Path(room.__file__).parents[1])
BLOCKS = Coarse(method="block_mean", factor=3)


def make_cube(bands: dict[str, NDArray[np.float32]], chunks: tuple[int, int, int] = (1, 8, 8)) -> Cube:
    samples = len(next(iter(bands.values())))
    days = np.array(["2019-05-25", "2019-06-10", "2019-06-26"], "datetime64[ns]")[:samples]
    native = xr.Dataset(
        {name: (("sample", "y", "x"), da.from_array(band, chunks=chunks)) for name, band in bands.items()},
        {"time_start": ("sample", days), "place": ("sample", ["minnesota"] * samples)},
    )
    return Cube(Path("test.zarr"), native, None, "hash", {})


def random_bands(
    shape: tuple[int, int, int] = (2, 13, 17), gaps: float = 0.1, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    bands = {name: rng.random(shape, dtype=np.float32) for name in ("sif", *BANDS)}
    # Multiples of 1/256, so that float64 sums are exact whatever their order.
    bands["sif"] = (rng.integers(1, 512, shape) / 256).astype(np.float32)
    for band in bands.values():
        band[rng.random(shape) < gaps] = np.nan
    return bands


def make_features(
    bands: tuple[str, ...] = ("coarse", *BANDS, "nirv"),
    lbp: tuple[dict[str, Any], ...] = (),
    local_stats: dict[str, Any] | None = None,
) -> Features:
    return Features.model_validate(
        {
            "name": "test",
            "bands": bands,
            "select": None,
            "lbp": lbp,
            "local_stats": local_stats,
            "legacy": None,
        }
    )


def pattern(source: str, method: str, encoding: str, points: int = 8, radius: float = 1.0) -> dict[str, Any]:
    return {"source": source, "method": method, "points": points, "radius": radius, "encoding": encoding}


EVERY_OPTION = make_features(
    bands=("coarse", *BANDS, "nirv", "coarse_ndvi", "coarse_nirv"),
    lbp=(
        pattern("coarse", "default", "bits"),
        pattern("coarse", "var", "raw"),
        pattern("coarse", "uniform", "onehot", 16, 2.0),
        pattern("evi", "ror", "scaled"),
        pattern("coarse_evi", "nri_uniform", "scaled"),
    ),
    local_stats={"bands": ("coarse", "evi"), "window_px": 3},
)


@settings(max_examples=15)  # 70 ms each
@given(seed=st.integers(0, 10_000), factor=st.integers(2, 5), gaps=st.sampled_from([0.0, 0.1, 0.5]))
def test_no_predictor_sees_more_of_the_target_than_its_block_means(
    seed: int, factor: int, gaps: float
) -> None:
    bands = random_bands(gaps=gaps, seed=seed)
    rng = np.random.default_rng(seed)
    shuffled = bands["sif"].copy()
    for sample in shuffled:
        for y in range(0, sample.shape[0], factor):
            for x in range(0, sample.shape[1], factor):
                block = sample[y : y + factor, x : x + factor]
                block[...] = rng.permutation(block.ravel()).reshape(block.shape)
    coarse = Coarse(method="block_mean", factor=factor)
    before = room.build(make_cube(bands), EVERY_OPTION, coarse, "sif")
    after = room.build(make_cube(bands | {"sif": shuffled}), EVERY_OPTION, coarse, "sif")
    assert (shuffled != bands["sif"]).any()
    np.testing.assert_array_equal(after.predictors.compute(), before.predictors.compute())
    np.testing.assert_array_equal(after.coarse.compute(), before.coarse.compute())


def test_a_given_coarse_field_leaves_the_target_unread() -> None:
    bands = random_bands() | {
        "coarse_sif": random_bands(seed=1)["sif"],
        "coarse_ndvi": random_bands(seed=2)["ndvi"],
    }
    options = make_features(("coarse", "ndvi", "coarse_ndvi"), (pattern("coarse", "uniform", "onehot"),))
    given_coarse = Coarse(method="given", factor=3)
    cube = room.build(make_cube(bands), options, given_coarse, "sif")
    other = room.build(make_cube(bands | {"sif": bands["sif"] * 2}), options, given_coarse, "sif")
    np.testing.assert_array_equal(other.predictors.compute(), cube.predictors.compute())
    known = np.isfinite(bands["coarse_sif"])
    np.testing.assert_array_equal(cube.coarse.compute()[known], bands["coarse_sif"][known])
    np.testing.assert_array_equal(cube.predictors[:, 2].compute(), bands["coarse_ndvi"])
    assert (cube.block_px, cube.coarse.shape) == (1, (2, 13, 17))


def test_nirv_of_given_coarse_bands_is_their_product() -> None:
    bands = random_bands() | {f"coarse_{name}": band for name, band in random_bands(seed=3).items()}
    cube = room.build(
        make_cube(bands), make_features(("coarse_nirv",)), Coarse(method="given", factor=4), "sif"
    )
    np.testing.assert_array_equal(cube.predictors[:, 0], bands["coarse_ndvi"] * bands["coarse_nir"])


@pytest.mark.parametrize(
    "options",
    [
        make_features(("sif",)),
        make_features(lbp=(pattern("sif", "uniform", "onehot"),)),
        make_features(local_stats={"bands": ("sif",), "window_px": 3}),
    ],
)
def test_reading_the_target_is_refused(options: Features) -> None:
    with pytest.raises(ConfigError, match="must not read the target; use 'coarse' .found 'sif'."):
        room.build(make_cube(random_bands()), options, BLOCKS, "sif")


@pytest.mark.parametrize(
    ("asked", "coarse", "missing"),
    [
        (("mir", "red"), BLOCKS, ["mir", "red"]),
        (("coarse_mir",), BLOCKS, ["coarse_mir"]),
        (("coarse",), Coarse(method="given", factor=3), ["coarse_sif"]),
        (
            ("coarse_ndvi", "coarse_nirv"),
            Coarse(method="given", factor=3),
            ["coarse_sif", "coarse_ndvi", "coarse_nirv"],
        ),
    ],
)
def test_missing_bands_are_named_all_at_once(
    asked: tuple[str, ...], coarse: Coarse, missing: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        room.build(make_cube(random_bands()), make_features(asked), coarse, "sif")
    assert caught.value.faults == [
        f"features: the cube test.zarr has no band '{name}'; build the window again" for name in missing
    ]


def test_bands_are_the_cubes_own_and_padded_with_nothing() -> None:
    bands = random_bands()
    cube = room.build(make_cube(bands), make_features(("evi", "nirv", "coarse_evi")), BLOCKS, "sif")
    assert cube.names == ["evi", "nirv", "coarse_evi"]
    assert cube.shape == (13, 17) and cube.coarse.shape == (2, 15, 18) and cube.block_px == 3
    evi, nirv, coarse_evi = np.moveaxis(cube.predictors.compute(), 1, 0)
    np.testing.assert_array_equal(evi[:, :13, :17], bands["evi"])
    np.testing.assert_allclose(nirv[:, :13, :17], bands["ndvi"] * bands["nir"])
    for y in range(0, 13, 3):
        for x in range(0, 17, 3):
            block = bands["evi"][1, y : y + 3, x : x + 3]
            np.testing.assert_allclose(
                coarse_evi[1, y : y + 3, x : x + 3][: block.shape[0], : block.shape[1]],
                np.nanmean(block),
                rtol=1e-6,
            )
    target, valid = cube.target.compute(), cube.valid.compute()
    np.testing.assert_array_equal(valid[:, :13, :17], np.isfinite(bands["sif"]))
    for beyond in (np.s_[:, 13:], np.s_[:, :, 17:]):
        assert np.isnan(evi[beyond]).all() and np.isnan(target[beyond]).all() and not valid[beyond].any()
    assert all(array.dtype == np.float32 for array in (cube.predictors, cube.coarse, cube.target))
    # One chunk a sample, padding included: what comes next looks at whole layers.
    assert cube.coarse.chunks == cube.target.chunks == cube.valid.chunks == ((1, 1), (15,), (18,))
    assert cube.predictors.chunks[2:] == ((15,), (18,))
    assert cube.places == ("minnesota",) * 2 and str(cube.times[1])[:10] == "2019-06-10"


@given(seed=st.integers(0, 500), factor=st.integers(2, 4), gaps=st.sampled_from([0.1, 0.9]))
def test_coarse_is_constant_on_blocks_and_has_no_gap(seed: int, factor: int, gaps: float) -> None:
    bands = random_bands(gaps=gaps, seed=seed)
    bands["sif"][:, :5, :7] = np.nan  # whole blocks without an observation
    cube = room.build(make_cube(bands), make_features(), Coarse(method="block_mean", factor=factor), "sif")
    coarse, target = cube.coarse.compute(), cube.target.compute()
    rows, columns = coarse.shape[1] // factor, coarse.shape[2] // factor
    blocks = coarse.reshape(2, rows, factor, columns, factor)
    assert np.isfinite(coarse).all()
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))
    for sample, y, x in np.ndindex(2, rows, columns):
        seen = target[sample, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        if np.isfinite(seen).any():
            assert blocks[sample, y, 0, x, 0] == pytest.approx(np.nanmean(seen), rel=1e-6)


def test_samples_without_any_target_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    bands = random_bands((3, 9, 12))
    bands["sif"][1] = np.nan
    found = room.build(make_cube(bands), make_features(), BLOCKS, "sif")
    assert found.target.shape[0] == len(found.places) == len(found.times) == 2
    np.testing.assert_array_equal(np.asarray(found.target)[1, :9, :12], bands["sif"][2])
    assert "1 of 3 samples have no sif and are left out" in caplog.text
    bands["sif"][:] = np.nan
    with pytest.raises(ConfigError, match="no sample of the cube has any sif"):
        room.build(make_cube(bands), make_features(), BLOCKS, "sif")


def test_moving_mean_keeps_the_grid() -> None:
    bands = random_bands()
    cube = room.build(make_cube(bands), make_features(), Coarse(method="moving_mean", factor=3), "sif")
    assert cube.block_px == 1 and cube.coarse.shape == (2, 13, 17)
    y, x = 5, 6
    bands["sif"][0, y, x] = 1.0
    again = room.build(make_cube(bands), make_features(), Coarse(method="moving_mean", factor=3), "sif")
    assert float(again.coarse[0, y, x].compute()) == pytest.approx(np.nanmean(bands["sif"][0, 4:7, 5:8]))


def skimage_lbp(field: NDArray[np.float64], points: int, radius: float, method: str) -> NDArray[np.float64]:
    return np.asarray(local_binary_pattern(field, points, radius, method))  # type: ignore[no-untyped-call]  # untyped library


# scikit-image warns about ties of floats, which are what is compared here.
ABOUT_FLOATS = "ignore:Applying .local_binary_pattern. to floating-point images:UserWarning"


@pytest.mark.filterwarnings(ABOUT_FLOATS)
@pytest.mark.parametrize(
    ("method", "encoding"), [("default", "scaled"), ("uniform", "onehot"), ("var", "raw")]
)
@pytest.mark.parametrize(("points", "radius"), [(8, 1.0), (16, 2.0)])
def test_lbp_channels_hold_scikit_images_codes(
    method: str, encoding: str, points: int, radius: float
) -> None:
    bands = random_bands(gaps=0)
    bands["evi"][0, 4, 5] = np.nan
    options = make_features(("evi",), (pattern("evi", method, encoding, points, radius),))
    cube = room.build(make_cube(bands), options, Coarse(method="moving_mean", factor=3), "sif")
    planes = cube.predictors[:, 1:].compute()
    assert [channel.scaled for channel in cube.channels] == [True] + [encoding == "raw"] * planes.shape[1]
    assert all(name.endswith("(evi)") for name in cube.names[1:])
    for sample in range(2):
        codes = skimage_lbp(np.nan_to_num(bands["evi"][sample]).astype(float), points, radius, method)
        valid = np.isfinite(planes[sample, 0])
        inner = int(np.ceil(radius))
        assert valid[inner:-inner, inner:-inner].mean() > 0.6 and not valid[:inner].any()
        if encoding == "onehot":
            expected = np.arange(points + 2)[:, None, None] == codes
        else:
            expected = (codes / (2**points - 1) if encoding == "scaled" else codes)[None]
        np.testing.assert_allclose(planes[sample][:, valid], expected[:, valid], rtol=1e-6, atol=1e-12)
    assert np.isnan(planes[0, :, 3:6, 4:7]).all() and np.isfinite(planes[1, :, 4, 5]).all()


@pytest.mark.filterwarnings(ABOUT_FLOATS)
def test_lbp_of_coarse_is_taken_between_block_centres() -> None:
    bands = random_bands((2, 12, 15), gaps=0)
    coarse = room.build(make_cube(bands), make_features(("coarse",)), BLOCKS, "sif").coarse.compute()
    smooth = room._textured(make_cube(bands).native, "coarse", BLOCKS, "sif").compute()
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(coarse[:, None, ::3, ::3]), scale_factor=3, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(smooth, expected[:, 0], atol=1e-6)
    options = make_features(("ndvi",), (pattern("coarse", "var", "raw"),))
    texture = room.build(make_cube(bands), options, BLOCKS, "sif").predictors[0, 1].compute()
    reference = skimage_lbp(smooth[0].astype(np.float64), 8, 1.0, "var")
    known = np.isfinite(texture)
    assert known.mean() > 0.5
    np.testing.assert_allclose(texture[known], reference[known], rtol=1e-5)


@pytest.mark.filterwarnings(ABOUT_FLOATS)
def test_local_stats_of_coarse_are_taken_between_block_centres() -> None:
    cube = make_cube(random_bands((1, 12, 15), gaps=0))
    stats = {"bands": ("coarse",), "window_px": 3}
    found = room.build(cube, make_features(("ndvi",), local_stats=stats), BLOCKS, "sif").predictors[0, 1:].compute()
    smooth = room._textured(cube.native, "coarse", BLOCKS, "sif").compute()[0]
    np.testing.assert_allclose(found[0], grid.moving_mean(smooth, 3), atol=1e-6)
    assert (found[1, 1:-1, 1:-1] > 0).all(), "on steps it is 0 inside a block"


@given(seed=st.integers(0, 500), window=st.sampled_from([3, 5]), offset=st.sampled_from([0.0, 300.0]))
def test_local_stats_against_brute_force(seed: int, window: int, offset: float) -> None:
    bands = random_bands((1, 9, 11), seed=seed)
    bands["evi"] += np.float32(offset)
    options = make_features(("ndvi",), local_stats={"bands": ("evi",), "window_px": window})
    cube = room.build(make_cube(bands), options, Coarse(method="moving_mean", factor=3), "sif")
    assert cube.names[1:] == [f"mean{window}(evi)", f"sd{window}(evi)", f"laplacian{window}(evi)"]
    mean, spread, laplacian = cube.predictors[0, 1:].compute().astype(np.float64)
    field, reach = bands["evi"][0].astype(np.float64), window // 2
    for y, x in np.ndindex(field.shape):
        around = field[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
        gap = np.isnan(field[y, x])
        assert mean[y, x] == pytest.approx(np.nan if gap else np.nanmean(around), rel=1e-5, nan_ok=True)
        assert spread[y, x] == pytest.approx(np.nan if gap else np.nanstd(around), abs=1e-5, nan_ok=True)
        curvature = np.nan
        if 0 < y < field.shape[0] - 1 and 0 < x < field.shape[1] - 1:
            curvature = (
                field[y - 1, x] + field[y + 1, x] + field[y, x - 1] + field[y, x + 1] - 4 * field[y, x]
            )
        assert laplacian[y, x] == pytest.approx(curvature, abs=1e-4, nan_ok=True)


def with_fine_bands(native: dict[str, NDArray[np.float32]], fine: dict[str, NDArray[np.float32]]) -> Cube:
    """A cube of native bands, and of fine ones on a grid finer by 3."""
    cube = make_cube(native)
    finer = {name: (("sample", "y", "x"), da.from_array(band, chunks=(1, 9, 9))) for name, band in fine.items()}
    return replace(cube, fine=xr.Dataset(finer))


def fine_bands(shape: tuple[int, int, int] = (2, 39, 51)) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(7)
    bands = {name: rng.random(shape, dtype=np.float32) for name in ("sif_truth", *BANDS)}
    return bands | {"land_cover": rng.integers(0, 3, shape).astype(np.float32)}


COVER = Cover(band="land_cover", classes=("water", "corn", "forest"))


def test_with_a_truth_native_sif_is_the_coarse_field_of_the_fine_grid() -> None:
    native, fine = random_bands(gaps=0.3), fine_bands()
    cube = with_fine_bands(native, fine)
    found = room.build(cube, make_features(("coarse", "evi", "nirv")), BLOCKS, "sif", truth="sif_truth", cover=COVER)
    assert found.block_px == 3 and found.shape == (39, 51) and found.target.shape == (2, 39, 51)
    sif = native["sif"].repeat(3, axis=1).repeat(3, axis=2)
    observed = np.isfinite(sif)
    coarse, target = found.coarse.compute(), found.target.compute()
    np.testing.assert_array_equal(found.valid.compute(), observed)
    np.testing.assert_array_equal(target, np.where(observed, fine["sif_truth"], np.nan))
    np.testing.assert_array_equal(coarse[observed], sif[observed])
    for sample, y, x in np.argwhere(np.isnan(native["sif"])):  # a gap has the value of one of the nearest cells
        known = np.argwhere(np.isfinite(native["sif"][sample]))
        distance = ((known - (y, x)) ** 2).sum(axis=1)
        nearest = native["sif"][sample][tuple(known[distance == distance.min()].T)]
        block = coarse[sample, y * 3 : y * 3 + 3, x * 3 : x * 3 + 3]
        assert (block == block[0, 0]).all() and block[0, 0] in nearest
    predictors = found.predictors.compute()
    np.testing.assert_array_equal(predictors[:, 0], coarse)
    np.testing.assert_array_equal(predictors[:, 1], fine["evi"])
    np.testing.assert_array_equal(predictors[:, 2], fine["ndvi"] * fine["nir"])
    assert found.cover is not None
    np.testing.assert_array_equal(found.cover.compute(), fine["land_cover"].astype(np.int8))
    assert (found.weight.compute() == 1).all() and found.places == ("minnesota",) * 2
    other = room.build(
        with_fine_bands(native, fine | {"sif_truth": fine["sif_truth"] * 2}), EVERY_OPTION, BLOCKS, "sif",
        truth="sif_truth",
    )  # fmt: skip
    same = room.build(cube, EVERY_OPTION, BLOCKS, "sif", truth="sif_truth")
    np.testing.assert_array_equal(other.predictors.compute(), same.predictors.compute(), "no predictor reads the truth")


def test_samples_without_any_target_are_left_out_on_the_fine_grid_too() -> None:
    native, fine = random_bands((3, 13, 17)), fine_bands((3, 39, 51))
    native["sif"][1] = np.nan
    cube = with_fine_bands(native, fine)
    found = room.build(cube, make_features(), BLOCKS, "sif", truth="sif_truth")
    known = found.valid.compute()
    assert known.shape[0] == 2
    np.testing.assert_array_equal(found.target.compute()[known], fine["sif_truth"][[0, 2]][known])
    # classes on the native grid come from the fine bands of the same samples
    cover = room.build(cube, make_features(), BLOCKS, "sif", cover=COVER).cover.compute()
    counts = np.bincount(fine["land_cover"][2, 3:6, 6:9].astype(int).ravel(), minlength=3)
    assert cover.shape == (2, 15, 18) and cover[1, 1, 2] == counts.argmax()


def test_land_cover_is_the_majority_of_fine_pixels_and_reaches_the_padded_edge(tmp_path: Path) -> None:
    fine = fine_bands()
    found = room.build(with_fine_bands(random_bands(), fine), make_features(), BLOCKS, "sif", cover=COVER)
    assert found.cover_names == COVER.classes
    cover = found.cover.compute()
    for sample, y, x in np.ndindex(2, 13, 17):
        pixels = fine["land_cover"][sample, y * 3 : y * 3 + 3, x * 3 : x * 3 + 3]
        assert cover[sample, y, x] == np.bincount(pixels.astype(int).ravel()).argmax()
    assert (cover[:, 13:, :17] == cover[:, 12:13, :17]).all() and (cover[:, :, 17:] == cover[:, :, 16:17]).all()
    opened = feature_store.open_features(feature_store.materialise(found, tmp_path, "cover"), 100)
    np.testing.assert_array_equal(opened.cover, cover)
    assert opened.cover_names == COVER.classes
    assert room.build(make_cube(random_bands()), make_features(), BLOCKS, "sif").cover is None


def test_a_truth_that_is_not_there_or_on_another_grid_is_refused() -> None:
    wrong = Coarse(method="block_mean", factor=2)
    cases: list[tuple[Cube, Coarse, str]] = [
        (make_cube(random_bands()), BLOCKS, "window.truth: the cube has no fine band 'sif_truth'; build the window"),
        (with_fine_bands(random_bands(), {"evi": fine_bands()["evi"]}), BLOCKS, "no fine band 'sif_truth'"),
        (with_fine_bands(random_bands(), fine_bands()), wrong, "block_mean with factor 3 .* .found block_mean, 2"),
    ]
    for cube, coarse, line in cases:
        with pytest.raises(ConfigError, match=line):
            room.build(cube, make_features(), coarse, "sif", truth="sif_truth")


def test_weights_fall_with_the_error_of_the_target_and_an_unknown_one_counts_as_typical() -> None:
    bands = random_bands(gaps=0)
    error = np.random.default_rng(5).uniform(0.05, 0.6, (2, 13, 17)).astype(np.float32)
    error[0, :3] = np.nan
    found = room.build(make_cube(bands | {"sif_error": error}), make_features(), BLOCKS, "sif").weight.compute()
    known = np.isfinite(error)
    expected = 1 / (1 + (error[known].astype(np.float64) / np.median(error[known])) ** 2)
    np.testing.assert_allclose(found[:, :13, :17][known], expected, rtol=1e-5)
    assert (found[0, :3, :17] == 0.5).all() and found.dtype == np.float32
    assert found.shape == (2, 15, 18) and (found > 0).all() and (found <= 1).all()
    assert np.median(found[:, :13, :17][known]) == pytest.approx(0.5, abs=0.01)
    assert (room.build(make_cube(bands), make_features(), BLOCKS, "sif").weight.compute() == 1).all()


def in_memory(
    predictors: NDArray[np.float32], coarse: NDArray[np.float32], scaled: list[bool]
) -> FeatureCube:
    channels = tuple(Channel(f"c{i}", s) for i, s in enumerate(scaled))
    days = np.array(["2019-05-25"] * len(coarse), "datetime64[ns]")
    valid = np.ones(coarse.shape, dtype=bool)
    weight, places = np.ones_like(coarse), ("a",) * len(coarse)
    return FeatureCube(channels, predictors, coarse, coarse, valid, weight, 1, (9, 9), places, days)


def test_correlations_are_those_of_numpy_over_the_given_pixels() -> None:
    rng = np.random.default_rng(0)
    predictors = rng.normal(size=(2, 4, 20, 20)).astype(np.float32)
    coarse = (predictors[:, 0] * 0.7 + rng.normal(size=(2, 20, 20))).astype(np.float32)
    predictors[:, 2] = 0.1  # constant: no correlation
    predictors[0, 0, :5] = np.nan
    cube = in_memory(predictors, coarse, [True, False, True, True])
    inside = rng.random(coarse.shape) < 0.5
    cube.valid[1, 10:] = False
    names, matrix = selection.correlations(cube, inside)
    assert names == ["coarse SIF", "c0", "c2", "c3"]
    at = inside & cube.valid & np.isfinite(predictors[:, 0])
    assert matrix[0, 1] == pytest.approx(np.corrcoef(coarse[at], predictors[:, 0][at])[0, 1])
    at = inside & cube.valid
    assert matrix[3, 0] == pytest.approx(np.corrcoef(coarse[at], predictors[:, 3][at])[0, 1])
    assert np.isnan(matrix[2]).all()


@given(seed=st.integers(0, 999), mean=st.sampled_from([0.0, 300.0]), gaps=st.sampled_from([0.0, 0.3, 0.9]))
def test_correlations_are_those_of_pandas(seed: int, mean: float, gaps: float) -> None:
    rng = np.random.default_rng(seed)
    predictors = rng.normal(mean, 0.5, (3, 3, 7, 5)).astype(np.float32)
    predictors[:, 1] += predictors[:, 0] - np.float32(mean)
    predictors[rng.random(predictors.shape) < gaps] = np.nan
    coarse = rng.normal(1, 0.3, (3, 7, 5)).astype(np.float32)
    _, matrix = selection.correlations(in_memory(predictors, coarse, [True] * 3), np.ones(coarse.shape, bool))
    columns = np.stack([coarse, *predictors.swapaxes(0, 1)]).reshape(4, -1).T.astype(np.float64)
    expected = pd.DataFrame(columns).corr(min_periods=3).to_numpy()  # r of two pixels is 1 or -1 by their rounding
    known = np.isfinite(expected)
    np.testing.assert_allclose(matrix[known], expected[known], atol=1e-7)


def test_pixels_added_in_parts_are_those_added_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    predictors = np.random.default_rng(1).random((2, 2, 9, 9), dtype=np.float32)
    cube, everywhere = in_memory(predictors, predictors[:, 1], [True, True]), np.ones((2, 9, 9), bool)
    _, at_once = selection.correlations(cube, everywhere)
    monkeypatch.setattr(selection, "PIXELS", 7)
    np.testing.assert_allclose(selection.correlations(cube, everywhere)[1], at_once, rtol=1e-12)


def test_a_band_without_values_leaves_the_others_correlated() -> None:
    predictors = np.random.default_rng(0).random((1, 2, 9, 9), dtype=np.float32)
    predictors[:, 1] = np.nan
    _, matrix = selection.correlations(
        in_memory(predictors, predictors[:, 0], [True, True]), np.ones((1, 9, 9), bool)
    )
    assert matrix[0, 1] == pytest.approx(1) and np.isnan(matrix[0, 2])


def test_choose_keeps_the_most_correlated_bands() -> None:
    names = ["coarse SIF", "coarse", "a", "b", "c", "sd3(a)", "flat"]
    matrix = np.eye(7)
    matrix[0] = [1, 1, 0.3, -0.8, 0.5, 0.9, np.nan]
    bands = ("coarse", "a", "b", "c", "flat")
    assert selection.choose(Select(top=2), bands, names, matrix) == ["coarse", "b", "c"]
    assert selection.choose(Select(top=9), bands[1:], names, matrix) == ["b", "c", "a"]
    assert selection.choose(Select(min_correlation=0.5), bands, names, matrix) == ["coarse", "b", "c"]
    with pytest.raises(ConfigError, match="no band is that correlated .* .found b with 0.80."):
        selection.choose(Select(min_correlation=0.95), bands, names, matrix)
    with pytest.raises(ConfigError, match=".found none."):
        selection.choose(Select(top=1), ("coarse", "flat"), names, matrix)


def test_select_keeps_channels_in_the_order_asked_for() -> None:
    predictors = np.random.default_rng(0).random((2, 3, 9, 9), dtype=np.float32)
    chosen = in_memory(predictors, predictors[:, 0], [True, False, True]).select(["c2", "c1"])
    assert chosen.channels == (Channel("c2", True), Channel("c1", False))
    np.testing.assert_array_equal(chosen.predictors, predictors[:, [2, 1]])


def test_a_store_is_written_once_and_read_alike_from_memory_and_disk(tmp_path: Path) -> None:
    lazy = room.build(make_cube(random_bands()), EVERY_OPTION, BLOCKS, "sif")
    path = feature_store.materialise(lazy, tmp_path, "cube", EVERY_OPTION, BLOCKS)
    written = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert feature_store.materialise(lazy, tmp_path, "cube", EVERY_OPTION, BLOCKS) == path
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == written
    assert feature_store.materialise(lazy, tmp_path, "other cube", EVERY_OPTION, BLOCKS) != path
    memory, disk = feature_store.open_features(path, 100), feature_store.open_features(path, 0)
    assert isinstance(memory.predictors, np.ndarray) and not isinstance(disk.predictors, np.ndarray)
    for opened in (memory, disk):
        for name in ("predictors", "coarse", "target", "valid", "weight"):
            np.testing.assert_array_equal(np.asarray(getattr(opened, name)), getattr(lazy, name).compute())
        assert (opened.channels, opened.shape, opened.block_px) == (lazy.channels, lazy.shape, lazy.block_px)
        assert opened.places == lazy.places and (opened.times == lazy.times).all()
    table = np.array([[0, 0, 0, 0, 0, 6, 6], [1, 9, 12, 9, 12, 15, 18]], dtype=np.int32)
    plan = CropPlan(table, np.ones(2, np.float32), 6)
    batches = [CropBatches(opened, plan, None)[[1, 0]] for opened in (memory, disk)]
    for name, field in batches[0].items():
        torch.testing.assert_close(batches[1][name], field, rtol=0, atol=0, equal_nan=True)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(block: NDArray[np.float32]) -> NDArray[np.float32]:
        raise ValueError("disk on fire")

    lazy = room.build(make_cube(random_bands()), make_features(), BLOCKS, "sif")
    broken = replace(lazy, target=lazy.target.map_blocks(fail, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)))
    with pytest.raises(ValueError, match="disk on fire"):
        feature_store.materialise(broken, tmp_path, "key")
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
import dask.array as da
import numpy as np
from sifscale.feature_store import materialise
from sifscale.features import Channel, FeatureCube

field = da.asarray(np.arange(2 * 90 * 90, dtype=np.float32).reshape(2, 90, 90)).rechunk((1, 90, 90))
days = np.array(["2019-05-25"] * 2, "datetime64[ns]")
channels = (Channel("a", True),)
cube = FeatureCube(channels, field[:, None], field, field, field > 9, field, 1, (90, 90), ("a", "a"), days)
print("ready", flush=True)
sys.stdin.readline()
print(materialise(cube, Path(sys.argv[1]), "shared"))
"""


def test_two_processes_make_one_store(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    jobs = [subprocess.Popen(command, **pipes, env=os.environ | {"PYTHONPATH": SOURCE}) for _ in range(2)]
    assert [job.stdout.readline() for job in jobs if job.stdout] == ["ready\n"] * 2
    for job in jobs:
        assert job.stdin
        job.stdin.write("go\n")
        job.stdin.flush()
    told = [job.communicate(timeout=60)[0].strip() for job in jobs]
    (store,) = tmp_path.iterdir()
    assert told == [str(store)] * 2 and [job.returncode for job in jobs] == [0, 0]
    expected = np.arange(2 * 90 * 90, dtype=np.float32).reshape(2, 90, 90)
    np.testing.assert_array_equal(feature_store.open_features(store, 100).coarse, expected)


def test_a_second_writer_takes_what_the_first_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = room.build(make_cube(random_bands()), make_features(), BLOCKS, "sif")
    path = feature_store.materialise(lazy, tmp_path, "key")
    content = (path / "zarr.json").read_bytes()
    # As if the first had finished between this writer's look and its rename.
    looks = iter([False])
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: next(looks, True) if self == path else real(self))
    assert feature_store.materialise(lazy, tmp_path, "key") == path
    assert list(tmp_path.iterdir()) == [path] and (path / "zarr.json").read_bytes() == content
