"""Conservation holds for every mask, factor and size; blocks are compared one by one with numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from sifscale.conservation import CONSERVATIONS, LARGEST_RATIO, block_means, conserve

HARD = ("additive", "multiplicative", "softmax", "smooth")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def fields(
    height: int, width: int, factor: int, valid_share: float, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    prediction = rng.normal(size=(2, 1, height, width))
    blocks = rng.normal(size=(2, 1, -(-height // factor), -(-width // factor)))
    coarse = blocks.repeat(factor, -2).repeat(factor, -1)[..., :height, :width]
    valid = rng.random((2, 1, height, width)) < valid_share
    return torch.tensor(prediction, dtype=dtype), torch.tensor(coarse, dtype=dtype), torch.tensor(valid)


def each_block(height: int, width: int, factor: int) -> Iterator[tuple[int, slice, slice]]:
    for sample in range(2):
        for y in range(0, height, factor):
            for x in range(0, width, factor):
                yield sample, slice(y, min(y + factor, height)), slice(x, min(x + factor, width))


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    factor=st.integers(1, 7),
    valid_share=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_each_block_is_shifted_by_one_constant_onto_its_coarse_value(
    height: int, width: int, factor: int, valid_share: float, seed: int, dtype: torch.dtype
) -> None:
    prediction, coarse, valid = fields(height, width, factor, valid_share, seed, dtype)
    conserved = conserve("additive", prediction, coarse, valid, factor)
    assert conserved.dtype == dtype
    tolerance = TOLERANCE[dtype]
    for sample, rows, columns in each_block(height, width, factor):
        before, after, mask = (t[sample, 0, rows, columns].numpy() for t in (prediction, conserved, valid))
        if not mask.any():
            np.testing.assert_array_equal(after, before)
            continue
        assert after[mask].mean(dtype=float) == pytest.approx(
            float(coarse[sample, 0, rows, columns][0, 0]), abs=tolerance
        )
        np.testing.assert_allclose(after - before, (after - before)[0, 0], atol=tolerance)


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(1, 20), width=st.integers(1, 20), factor=st.integers(1, 7), seed=st.integers(0, 999)
)
def test_block_means_and_counts(height: int, width: int, factor: int, seed: int) -> None:
    field, _, valid = fields(height, width, factor, 0.5, seed)
    means, counts = block_means(field.masked_fill(~valid, torch.nan), valid, factor)
    assert means.shape == counts.shape == (2, 1, -(-height // factor), -(-width // factor))
    for sample, rows, columns in each_block(height, width, factor):
        pixels = field[sample, 0, rows, columns][valid[sample, 0, rows, columns]].numpy()
        block = sample, 0, rows.start // factor, columns.start // factor
        assert counts[block] == pixels.size
        assert float(means[block]) == pytest.approx(pixels.mean() if pixels.size else 0.0, abs=1e-12)


SIZES = st.fixed_dictionaries(
    {
        "height": st.integers(1, 20),
        "width": st.integers(1, 20),
        "factor": st.integers(1, 7),
        "valid_share": st.sampled_from([0.0, 0.1, 0.6, 1.0]),
        "seed": st.integers(0, 999),
    }
)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(HARD),
    size=SIZES,
    dtype=st.sampled_from([torch.float64, torch.float32]),
    level=st.sampled_from([-1.0, 0.0, 1e-3, 1.0, 300.0]),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_every_way_gives_the_observed_mean_and_a_finite_gradient_for_any_mask(
    name: str, size: dict[str, Any], dtype: torch.dtype, level: float, scale: float
) -> None:
    """Rounding is that of the pixels, so that where they cancel out the error is measured against their size."""
    prediction, coarse, valid = fields(**size, dtype=dtype)
    prediction, coarse = prediction * scale + level, coarse + level
    holed = prediction.masked_fill(~valid, torch.nan).requires_grad_()
    conserved = conserve(name, holed, coarse, valid, size["factor"])
    assert conserved.dtype == dtype and conserved.isnan().equal(~valid)
    for sample, rows, columns in each_block(size["height"], size["width"], size["factor"]):
        after, mask, wanted = (t[sample, 0, rows, columns].detach() for t in (conserved, valid, coarse))
        if mask.any():
            before = prediction[sample, 0, rows, columns][mask]
            largest = max(float(part.abs().max()) for part in (after[mask], before, wanted))
            mean = float(after[mask].double().mean())
            assert mean == pytest.approx(float(wanted[0, 0]), abs=1e-6 * largest, rel=1e-6)
    conserved[valid].square().sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    assert holed.grad is not None and holed.grad.isfinite().all()
    finite = conserve(name, prediction, coarse, valid, size["factor"])
    torch.testing.assert_close(finite[valid], conserved[valid], rtol=0, atol=0)


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(["multiplicative", "softmax"]), size=SIZES)
def test_a_block_is_multiplied_or_shared_out_or_else_shifted(name: str, size: dict[str, Any]) -> None:
    prediction, coarse, valid = fields(**size)
    conserved = conserve(name, prediction, coarse, valid, size["factor"])
    shifted = conserve("additive", prediction, coarse, valid, size["factor"])
    for sample, rows, columns in each_block(size["height"], size["width"], size["factor"]):
        before, after, added, mask = (
            t[sample, 0, rows, columns].numpy() for t in (prediction, conserved, shifted, valid)
        )
        wanted = float(coarse[sample, 0, rows.start, columns.start])
        if not mask.any():
            np.testing.assert_array_equal(after, before)
        elif name == "multiplicative":
            ratio = wanted / before[mask].mean()
            expected = before * ratio if 0 < ratio <= LARGEST_RATIO else added
            np.testing.assert_allclose(after, expected, atol=1e-9)
        else:
            share = np.exp(before) / np.exp(before[mask]).mean()
            expected = share * wanted if wanted > 0 else added
            np.testing.assert_allclose(after[mask], expected[mask], atol=1e-12)
            assert wanted <= 0 or 0 <= after.min() <= after.max() == after[mask].max()


def across_borders(field: np.ndarray[Any, Any], factor: int) -> float:
    """Mean absolute difference of neighbours across block borders over that within blocks."""
    parts: tuple[list[float], list[float]] = ([], [])
    for axis in (0, 1):
        differences = np.abs(np.diff(field, axis=axis))
        border = np.arange(differences.shape[axis]) % factor == factor - 1
        for part, chosen in zip(parts, (border, ~border), strict=True):
            part += np.compress(chosen, differences, axis).ravel().tolist()
    return float(np.mean(parts[0]) / np.mean(parts[1]))


def smooth_noise(height: int, width: int, px: float, seed: int) -> np.ndarray[Any, Any]:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), px, mode="nearest")
    return np.asarray(noise / noise.std())


@pytest.mark.parametrize("factor", [4, 10])
def test_a_smooth_correction_makes_no_steps_and_takes_those_of_the_prediction_away(factor: int) -> None:
    height, width = 12 * factor, 15 * factor
    truth = smooth_noise(height, width, 2 * factor, 0) + 0.1 * smooth_noise(height, width, factor / 3, 1)
    constants = np.random.default_rng(2).normal(size=(12, 15)).repeat(factor, 0).repeat(factor, 1)
    means = torch.tensor(truth)[None, None]
    valid = torch.ones_like(means, dtype=torch.bool)
    observed, _ = block_means(means, valid, factor)
    coarse = observed.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    prediction = torch.tensor(0.8 * truth)[None, None]
    maps = {}
    for name in ("additive", "smooth"):
        for stepped in (False, True):
            given = prediction + torch.tensor(constants) if stepped else prediction
            maps[name, stepped] = conserve(name, given, coarse, valid, factor).numpy()[0, 0]
    assert across_borders(truth, factor) < 1.1 < 1.3 < across_borders(maps["additive", False], factor)
    for stepped in (False, True):
        assert across_borders(maps["smooth", stepped], factor) < 1.2
    if factor == 10:
        np.testing.assert_allclose(maps["smooth", True], maps["smooth", False], atol=0.1)  # of constants with sd 1


def test_a_smooth_correction_is_no_larger_than_a_few_times_what_is_lacking() -> None:
    signs = torch.ones(1, 1, 12, 12, dtype=torch.float64)
    signs[..., ::2, 1::2] = signs[..., 1::2, ::2] = -1  # the worst of means
    for factor in (2, 3, 10):
        coarse = signs.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        nothing, valid = torch.zeros_like(coarse), torch.ones_like(coarse, dtype=torch.bool)
        largest = float(conserve("smooth", nothing, coarse, valid, factor).abs().max())
        assert 1 < largest < 3
        corners = torch.zeros_like(valid)
        corners[..., ::factor, ::factor] = True
        largest = float(conserve("smooth", nothing, coarse, corners, factor).abs().max())
        assert largest <= 9 + 10  # the smooth field, and what it leaves


@pytest.mark.parametrize("name", HARD)
def test_the_worst_blocks_conserve(name: str) -> None:
    """Zero, opposite and huge values; an invalid pixel a thousand times as large as the valid ones."""
    prediction = torch.tensor([[0.0, 0.0], [1.0, -1.0], [-2.0, -1.0], [1e-30, 0.0], [900.0, -900.0]])
    coarse = torch.tensor([1.0, 1.0, 3.0, 2.0, 0.5])[:, None].expand(5, 2)
    prediction, coarse = (t.reshape(5, 1, 1, 2).repeat(1, 1, 2, 1) for t in (prediction, coarse))
    valid = torch.ones_like(prediction, dtype=torch.bool)
    valid[:, :, 1, 1] = False
    prediction[:, :, 1, 1] = 1e6
    prediction.requires_grad_()
    conserved = conserve(name, prediction, coarse, valid, 2)
    assert conserved.isfinite().all()
    means, _ = block_means(conserved.double(), valid, 2)
    np.testing.assert_allclose(means.flatten().detach(), [1.0, 1.0, 3.0, 2.0, 0.5], atol=1e-6 * 900)
    conserved.sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    assert prediction.grad is not None and prediction.grad.isfinite().all()


def test_a_diverged_network_is_not_hidden() -> None:
    prediction, coarse, valid = fields(6, 6, 3, 1.0, 0)
    prediction[:, :, 0, 0] = torch.nan
    for name in CONSERVATIONS:
        assert conserve(name, prediction, coarse, valid, 3)[:, :, 0, 0].isnan().all()


@pytest.mark.parametrize("name", CONSERVATIONS)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    factor = 4 if name == "smooth" else 3  # from which on it looks for steps
    prediction, coarse, valid = fields(9, 7, factor, 0.7, 0)
    assert torch.autograd.gradcheck(
        lambda p, c: conserve(name, p, c, valid, factor),
        (prediction.requires_grad_(), coarse.requires_grad_()),
        fast_mode=True,
    )


@pytest.mark.parametrize("name", HARD)
def test_half_precision_prediction_conserves_in_the_precision_of_coarse(name: str) -> None:
    prediction, coarse, valid = fields(9, 9, 3, 1.0, 0, torch.float32)
    conserved = conserve(name, prediction.bfloat16(), coarse, valid, 3)
    assert conserved.dtype == torch.float32
    means, _ = block_means(conserved, valid, 3)
    torch.testing.assert_close(means, coarse[..., ::3, ::3], atol=1e-5, rtol=0)


def test_bad_input_is_refused() -> None:
    prediction, coarse, valid = fields(6, 6, 3, 1.0, 0)
    with pytest.raises(ValueError, match="conservation must be one of none, additive, .*, found 'ratio'"):
        conserve("ratio", prediction, coarse, valid, 3)
    with pytest.raises(ValueError, match="factor must be at least 1, found 0"):
        conserve("additive", prediction, coarse, valid, 0)
    with pytest.raises(ValueError, match="valid must be a bool mask, found torch.float64"):
        conserve("additive", prediction, coarse, valid.double(), 3)
    with pytest.raises(ValueError, match="prediction and coarse must have one shape"):
        conserve("additive", prediction, coarse[..., ::3, ::3], valid, 3)
    with pytest.raises(ValueError, match="field and valid must have one shape"):
        conserve("additive", prediction, coarse, valid[:1], 3)
