"""SSIM, PSNR and spectra against scikit-image, SciPy and brute force, whatever gaps and cuts there are."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, signal
from skimage import metrics

from sifscale.spectra import effective_resolution
from sifscale.structure import Structure, averaged, from_json, merged, pooled, to_json

Field = NDArray[np.float32]
SHAPE = (3, 40, 48)
TILE_PX = 16
RANGE = 2.0


def fields(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[Field, Field]:
    """A prediction with errors and a target with structure on all scales, both (sample, y, x)."""
    rng = np.random.default_rng(seed)
    target = sum(ndimage.gaussian_filter(rng.normal(size=shape), (0, s, s)) * (s + 0.3) for s in (0, 1, 4))
    return (target + rng.normal(0.1, 0.3, shape)).astype(np.float32), np.asarray(target, dtype=np.float32)


def sums(
    prediction: NDArray[Any],
    target: NDArray[Any],
    scored: NDArray[np.bool_] | None = None,
    inside: NDArray[np.bool_] | None = None,
    tile_px: int = TILE_PX,
) -> Structure:
    scored = np.ones(target.shape, dtype=bool) if scored is None else scored
    inside = np.ones(target.shape, dtype=bool) if inside is None else inside
    return Structure.of(prediction, target, scored, inside, tile_px=tile_px, data_range=RANGE)


def masks(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Few gaps in a test part that is not the whole field: scored, inside."""
    rng = np.random.default_rng(seed)
    inside = np.zeros(shape, dtype=bool)
    inside[:, 3:, 5:-1] = True
    inside[0, :20, :30] = False
    return inside & (rng.random(shape) > 0.005), inside


def assert_same(found: Structure, expected: Structure) -> None:
    assert found.finish() == pytest.approx(expected.finish(), rel=1e-9, nan_ok=True)
    for name, values in found.spectra().items():
        np.testing.assert_allclose(values, expected.spectra()[name], rtol=1e-9, atol=1e-14)


def test_ssim_and_psnr_of_a_full_field_are_those_of_scikit_image() -> None:
    prediction, target = (field.astype(np.float64) for field in fields(0))
    found = sums(prediction, target).finish()
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": RANGE}
    # its mean leaves out a border of half a window too
    ssim = [
        metrics.structural_similarity(*pair, **options)  # type: ignore[no-untyped-call]  # scikit-image's own
        for pair in zip(prediction, target, strict=True)
    ]
    assert found["ssim"] == pytest.approx(np.mean(ssim), rel=1e-12)
    psnr = metrics.peak_signal_noise_ratio(  # type: ignore[no-untyped-call]  # scikit-image's own
        target, prediction, data_range=RANGE
    )
    assert found["psnr"] == pytest.approx(psnr, rel=1e-9)


def test_ssim_counts_the_pixels_whose_window_has_no_gap() -> None:
    prediction, target = (field[0] for field in fields(1))
    scored = np.ones(target.shape, dtype=bool)
    scored[7, 30] = scored[25, 9] = scored[0, 0] = False
    gauss = np.outer(*[np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))] * 2)
    gauss /= gauss.sum()
    by_hand = []
    for row, column in np.ndindex(target.shape[0] - 10, target.shape[1] - 10):
        window = (slice(row, row + 11), slice(column, column + 11))
        if scored[window].all():
            p, y = prediction[window].astype(float), target[window].astype(float)
            mp, my = (gauss * p).sum(), (gauss * y).sum()
            vp, vy, vpy = ((gauss * (a * b)).sum() - m for a, b, m in ((p, p, mp**2), (y, y, my**2), (p, y, mp * my)))
            c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
            by_hand.append((2 * mp * my + c1) * (2 * vpy + c2) / ((mp**2 + my**2 + c1) * (vp + vy + c2)))
    found = sums(prediction[None], target[None], scored[None])
    # each gap takes the centres within 5 px of it, as far as they lie 5 px within the field
    assert found.ssim_px == len(by_hand) == 30 * 38 - 8 * 11 - 11 * 10 - 1
    assert found.finish()["ssim"] == pytest.approx(np.mean(by_hand), rel=1e-9)


@pytest.mark.parametrize(("ky", "kx"), [(0, 3), (5, 0), (3, 4), (6, 4)])
def test_a_plane_wave_has_its_power_in_its_ring(ky: int, kx: int) -> None:
    y, x = np.mgrid[:32, :32]
    wave = np.cos(2 * np.pi * (ky * y + kx * x) / 32)[None]
    power = sums(0.5 * wave, wave, tile_px=32).spectra()
    ring = round(math.hypot(ky, kx))
    assert power["target"].argmax() == ring - 1 and power["wavenumber"][ring - 1] == pytest.approx(ring / 32)
    assert power["target"][ring - 1] > 0.5 * power["target"].sum()
    for name in ("prediction", "error"):
        np.testing.assert_allclose(power[name], power["target"] / 4, rtol=1e-9, atol=1e-20)


def test_a_tile_has_the_power_of_a_brute_force_periodogram() -> None:
    n = 8
    prediction, target = (field.astype(float) for field in fields(2, (1, n, n)))
    found = sums(prediction, target, tile_px=n).spectra()
    hann = signal.get_window("hann", n)
    window = np.outer(hann, hann)
    at, fine = np.arange(n), dict[str, float]()
    for name, field in {"prediction": prediction, "target": target, "error": prediction - target}.items():
        values = window * (field[0] - field[0].mean())
        rings: dict[int, list[float]] = {}
        for ky in range(-n // 2, n // 2):
            for kx in range(-n // 2, n // 2):
                wave = np.exp(-2j * np.pi * (ky * at[:, None] + kx * at) / n)
                density = abs((values * wave).sum()) ** 2 / (window**2).sum()
                rings.setdefault(round(math.hypot(ky, kx)), []).append(density)
        # Parseval: over all wavenumbers the density adds up to the windowed mean square
        whole = sum(sum(ring) for ring in rings.values()) / n**2
        assert whole == pytest.approx((values**2).sum() / (window**2).sum(), rel=1e-12)
        np.testing.assert_allclose(found[name], [np.mean(rings[k]) for k in range(1, n // 2 + 1)], rtol=1e-9)
        fine[name] = sum(float(np.mean(rings[k])) for k in range(n // 4 + 1, n // 2 + 1))
    scores = sums(prediction, target, tile_px=n).finish()
    assert scores["spectral_error"] == pytest.approx(fine["error"] / fine["target"], rel=1e-9)
    assert scores["spectrum_ratio"] == pytest.approx(fine["prediction"] / fine["target"], rel=1e-9)


def test_white_noise_has_its_variance_at_every_wavenumber() -> None:
    noise = np.random.default_rng(3).normal(0, 0.7, (4, 128, 128))
    power = sums(0 * noise, noise, tile_px=16).spectra()
    # the mean that is taken off holds, through the window, 1/9 of the four waves (0, +-1), (+-1, 0) of the first
    # ring and 1/36 of its other four, (+-1, +-1)
    expected = 0.49 * np.array([1 - (1 / 9 + 1 / 36) / 2, *[1] * 7])
    np.testing.assert_allclose(power["target"], expected, rtol=0.03)
    assert (power["prediction"] == 0).all()


@given(seed=st.integers(0, 1000), cut=st.integers(0, 3))
@settings(max_examples=20)
def test_any_cut_into_samples_adds_up_to_the_whole(seed: int, cut: int) -> None:
    prediction, target = fields(seed)
    scored, inside = masks(seed)
    first, second = (
        sums(prediction[at], target[at], scored[at], inside[at]) for at in (slice(0, cut), slice(cut, None))
    )
    whole = sums(prediction, target, scored, inside)
    assert whole.tiles > 0 and whole.ssim_px > 0
    assert_same(first + second, whole)
    assert_same(second + first, whole)
    assert_same(Structure.from_dict(json.loads(json.dumps(first.to_dict()))) + second, whole)


def in_blocks(seed: int, edge: int = 12) -> dict[str, Structure]:
    """Sums by block, squares of ``edge`` px of the map; the second sample is of another place."""
    prediction, target = fields(seed)
    scored, inside = masks(seed)
    columns = -(-SHAPE[2] // edge)
    y, x = np.indices(SHAPE[1:]) // edge
    number = np.stack([y * columns + x] * SHAPE[0])
    per_place = int(number.max()) + 1
    number[1] += per_place
    names = [f"{place}:{i}" for place in "ab" for i in range(per_place)]
    return Structure.by_block(prediction, target, scored, inside, number, names, tile_px=TILE_PX, data_range=RANGE)


@given(seed=st.integers(0, 1000), edge=st.integers(1, 60))
@settings(max_examples=20)
def test_blocks_add_up_to_one_structure_over_everything(seed: int, edge: int) -> None:
    prediction, target = fields(seed)
    blocks = in_blocks(seed, edge)
    whole = sums(prediction, target, *masks(seed))
    assert_same(pooled(blocks), whole)
    assert (pooled(blocks).tiles, pooled(blocks).ssim_px) == (whole.tiles, whole.ssim_px)
    assert all(part.scored_px + part.tiles > 0 for part in blocks.values())


def test_a_block_has_its_own_pixels_and_the_tiles_whose_middle_is_in_it() -> None:
    prediction, target = fields(11, (1, 32, 48))
    number = np.zeros(target.shape, dtype=np.int64)
    number[0, 16:, 24:] = 1
    whole = np.ones(target.shape, dtype=bool)
    options: dict[str, Any] = {"tile_px": 16, "data_range": RANGE}
    blocks = Structure.by_block(prediction, target, whole, whole, number, ["a", "b", "none"], **options)
    assert set(blocks) == {"a", "b"} and blocks["b"].scored_px == 16 * 24 and blocks["b"].ssim_px == 11 * 19
    # of 3 x 5 tiles those with their middle at row 16 or 24 and at column 24, 32 or 40
    assert (blocks["a"].tiles, blocks["b"].tiles) == (9, 6)
    error = (prediction[0, 16:, 24:].astype(float) - target[0, 16:, 24:]) ** 2
    assert blocks["b"].squared_error == pytest.approx(error.sum())
    corner = (slice(None), slice(8, 32), slice(16, 48))  # what the tiles of b cover
    np.testing.assert_allclose(blocks["b"].power, sums(prediction[corner], target[corner]).power, rtol=1e-9)


def test_blocks_are_merged_by_name_averaged_and_brought_back_from_a_file() -> None:
    first, second = in_blocks(0), in_blocks(1)
    both = merged([first, second, {"new": first["a:0"]}])
    assert set(both) == {*first, "new"}
    assert_same(both["b:5"], first["b:5"] + second["b:5"])
    mean = averaged([first, first, first])
    assert {name: part.tiles for name, part in mean.items()} == {name: part.tiles for name, part in first.items()}
    assert_same(pooled(mean), pooled(first))
    kept = json.loads(json.dumps(to_json({"test": {"model": first, "ridge": second}, "truth": {"model": second}})))
    for view, name, expected in (("test", "model", first), ("test", "ridge", second), ("truth", "model", second)):
        found = from_json(kept, view, name)
        assert {block: part.to_dict() for block, part in found.items()} == {
            block: part.to_dict() for block, part in expected.items()
        }
    assert from_json(kept, "truth", "ridge") == from_json(kept, "cells", "model") == {}


def test_a_file_of_an_earlier_version_is_one_block_of_the_test_view() -> None:
    whole = pooled(in_blocks(0))
    kept = json.loads(json.dumps({"model": whole.to_dict(), "bilinear": whole.to_dict()}))
    (found,) = from_json(kept, "test", "model").values()
    assert found.to_dict() == whole.to_dict() and set(from_json(kept, "test", "bilinear")) == {""}
    assert from_json(kept, "truth", "model") == from_json(kept, "test", "ridge") == {}


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_identical_fields_are_perfect(seed: int) -> None:
    _, target = fields(seed)
    scored, inside = masks(seed)
    found = sums(target, target, scored, inside).finish(pixel_km=1.5)
    assert found.pop("psnr") == math.inf
    assert found == pytest.approx(
        {
            "ssim": 1, "spectrum_ratio": 1, "spectral_error": 0,
            "effective_resolution_px": 2, "effective_resolution_km": 3,
        }  # fmt: skip
    )


def test_a_smoother_prediction_has_less_fine_texture_and_resolves_less() -> None:
    _, target = fields(4, (2, 96, 96))
    found = [
        sums(ndimage.gaussian_filter(target, (0, sigma, sigma)), target).finish() for sigma in (0.4, 0.8, 1.6, 3.2)
    ]
    worse = {"spectrum_ratio": -1, "spectral_error": 1, "effective_resolution_px": 1, "ssim": -1, "psnr": -1}
    for name, sign in worse.items():
        assert (np.diff([sign * scores[name] for scores in found]) > 0).all(), name
    assert found[0]["spectrum_ratio"] < 1 and found[0]["effective_resolution_px"] >= 2


def test_a_low_pass_resolves_down_to_its_cut() -> None:
    _, target = fields(5, (4, 128, 128))
    wavenumber = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
    prediction = np.fft.ifft2(np.fft.fft2(target) * (wavenumber < 1 / 6)).real
    found = sums(prediction, target, tile_px=64).finish()
    assert found["effective_resolution_px"] == pytest.approx(6, rel=0.1)


@given(seed=st.integers(0, 1000), bias=st.floats(-3, 3))
@settings(max_examples=20)
def test_what_stands_in_a_gap_or_outside_does_not_matter(seed: int, bias: float) -> None:
    prediction, target = fields(seed)
    scored, inside = masks(seed)
    found = sums(np.where(scored, prediction, np.nan), np.where(scored, target, np.nan), scored, inside)
    assert_same(sums(prediction, target, scored, inside), found)
    # nor does a gap become structure of the error where the prediction is off by a constant
    shifted = sums((target + bias).astype(float), target, scored, inside).spectra()
    assert (shifted["error"] < 1e-9).all()


def test_tiles_with_many_gaps_or_beyond_the_test_part_do_not_count() -> None:
    prediction, target = fields(6, (1, 24, 32))
    inside = np.zeros(target.shape, dtype=bool)
    inside[0, 5:21, 3:32] = True  # 16 rows from (5, 3) on: tiles at columns 3 and 11, the next is cut off
    assert sums(prediction, target, inside, inside).tiles == 2
    part = sums(prediction[:, 5:21, 3:27], target[:, 5:21, 3:27])
    assert_same_spectra(sums(prediction, target, inside, inside), part)
    scored = inside.copy()
    scored[0, 5:7, 3:16] = False  # 26 of 256 px of the first, 10 of the second
    assert sums(prediction, target, scored, inside).tiles == 1
    scored[0, 5, 3] = True  # 25 of 256: less than a tenth
    assert sums(prediction, target, scored, inside).tiles == 2
    inside[0, 10, 20] = scored[0, 10, 20] = False  # a hole in the test part, in the second only
    assert sums(prediction, target, scored, inside).tiles == 1


def assert_same_spectra(found: Structure, expected: Structure) -> None:
    for name, values in found.spectra().items():
        np.testing.assert_allclose(values, expected.spectra()[name], rtol=1e-9)


@pytest.mark.parametrize("shape", [(0, 20, 20), (2, 1, 1), (2, 0, 5), (1, 10, 40)])
def test_samples_smaller_than_window_and_tile_have_no_structure(shape: tuple[int, int, int]) -> None:
    prediction, target = fields(7, (2, 20, 40))
    at = tuple(slice(0, n) for n in shape)
    found = sums(prediction[at], target[at]).finish()
    assert math.isnan(found.pop("psnr")) == (0 in shape)
    assert len(found) == 4 and all(map(math.isnan, found.values()))
    assert np.isnan(sums(prediction[at], target[at]).spectra()["error"]).all()


def test_nothing_scored_is_nan_and_adds_nothing() -> None:
    prediction, target = fields(8)
    nothing = sums(np.full_like(target, np.nan), np.full_like(target, np.nan), np.zeros(target.shape, dtype=bool))
    assert all(map(math.isnan, nothing.finish(1.0).values()))
    whole = sums(prediction, target)
    assert_same(nothing + whole, whole)


@pytest.mark.parametrize("value", [0.0, 0.1, 300.1])
def test_a_constant_target_has_no_spectrum_to_compare_with(value: float) -> None:
    prediction, target = fields(9)
    flat = np.full_like(target, value)
    for guess in (flat, prediction, flat + 0.1):
        found = sums(guess, flat).finish()
        spectral = (found[name] for name in ("spectrum_ratio", "spectral_error", "effective_resolution_px"))
        assert all(map(math.isnan, spectral))
        assert math.isfinite(found["ssim"])
    none = sums(flat, target).finish()
    assert none["spectrum_ratio"] == pytest.approx(0, abs=1e-12)
    assert none["spectral_error"] == pytest.approx(1), "which is what no texture at all has"


@pytest.mark.parametrize(
    ("error", "resolution_px"),
    [
        ([0.0, 0.2, 0.4, 0.5], 2.0),  # half is still resolved
        ([0.1, 0.4, 0.6, 0.1], 8 / 2.5),  # half-way between 2 and 3 cycles in 8 px; the later pass is luck
        ([0.1, 0.7, 0.9, 0.9], 8 / (1 + 4 / 6)),
        ([0.6, 0.1, 0.1, 0.1], math.nan),
    ],
)
def test_resolution_ends_at_the_first_failure(error: list[float], resolution_px: float) -> None:
    found = effective_resolution(np.arange(1, 5) / 8, np.ones(4), np.array(error))
    assert found == pytest.approx(resolution_px, nan_ok=True)


def test_error_where_the_target_has_no_power_is_not_resolved() -> None:
    target = np.array([1.0, 1.0, 0.0, 0.0])
    assert effective_resolution(np.arange(1, 5) / 8, target, np.array([0.1, 0.1, 0.0, 0.1])) == pytest.approx(8 / 3)
    assert effective_resolution(np.arange(1, 5) / 8, target, np.array([0.1, 0.1, 0.0, 0.0])) == 2


def one_by_one(target: NDArray[Any], error: NDArray[Any]) -> float:
    """The definition in words, ring after ring."""
    before = None
    for ring, (t, e) in enumerate(zip(target, error, strict=True), 1):
        ratio = e / t if t > 0 else (math.inf if e > 0 else 0.0)
        if ratio > 0.5:
            cycles = math.nan if before is None else ring - 1 + (0.5 - before) / (ratio - before)
            return 2 * len(target) / cycles
        before = ratio
    return 2.0


@given(
    power=st.lists(
        st.lists(st.tuples(*[st.floats(0, 4).map(lambda v: round(v, 1))] * 2), min_size=5, max_size=5), min_size=1
    )
)
def test_resolutions_of_many_spectra_at_once_are_those_of_each(power: list[list[tuple[float, float]]]) -> None:
    target, error = np.moveaxis(np.array(power), 2, 0)
    found = effective_resolution(np.arange(1, 6) / 10, target, error)
    expected = [one_by_one(*pair) for pair in zip(target, error, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_wrong_input_is_refused_in_one_line() -> None:
    prediction, target = fields(10)
    whole = np.ones(target.shape, dtype=bool)
    holed = np.where(np.arange(48) == 5, np.nan, target)
    outside = whole.copy()
    outside[0, 0, 0] = False
    refused: list[tuple[tuple[Any, ...], int, float, str]] = [
        ((prediction[:2], target, whole, whole), 16, 1.0, r"alike .*\(2, 40, 48\)"),
        ((prediction[0], target[0], whole[0], whole[0]), 16, 1.0, r"\(sample, y, x\)"),
        ((prediction, target, whole, whole), 15, 1.0, "found 15"),
        ((prediction, target, whole, whole), 2, 1.0, "at least 4, found 2"),
        ((prediction, target, whole, whole), 16, 0.0, "data_range must be above 0"),
        ((prediction, target, whole, whole), 16, math.nan, "found nan"),
        ((prediction, target, whole, outside), 16, 1.0, "1 scored pixels are not inside"),
        ((prediction, holed, whole, whole), 16, 1.0, "120 scored pixels have no finite"),
    ]
    for arrays, tile_px, data_range, message in refused:
        with pytest.raises(ValueError, match=message):
            Structure.of(*arrays, tile_px=tile_px, data_range=data_range)
    with pytest.raises(ValueError, match="16 px and 2, 8 px and 2"):
        sums(prediction, target) + sums(prediction, target, tile_px=8)
    with pytest.raises(ValueError, match="pixel_km must be above 0, found 0"):
        sums(prediction, target).finish(pixel_km=0.0)
