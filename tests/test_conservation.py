"""Conservation holds for every mask, factor and size; blocks are compared one by one with numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sifscale.conservation import block_means, conserve_additive

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
    conserved = conserve_additive(prediction, coarse, valid, factor)
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


def test_nan_outside_the_mask_reaches_neither_the_valid_pixels_nor_the_gradient() -> None:
    prediction, coarse, valid = fields(7, 8, 3, 0.5, 0)
    holed = prediction.masked_fill(~valid, torch.nan).requires_grad_()
    conserved = conserve_additive(holed, coarse, valid, 3)
    torch.testing.assert_close(conserved[valid], conserve_additive(prediction, coarse, valid, 3)[valid])
    conserved[valid].square().sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    assert holed.grad is not None and holed.grad.isfinite().all()


def test_gradient() -> None:
    prediction, coarse, valid = fields(5, 7, 3, 0.5, 0)
    assert torch.autograd.gradcheck(
        lambda p, c: conserve_additive(p, c, valid, 3), (prediction.requires_grad_(), coarse.requires_grad_())
    )


def test_half_precision_prediction_conserves_in_the_precision_of_coarse() -> None:
    prediction, coarse, valid = fields(9, 9, 3, 1.0, 0, torch.float32)
    conserved = conserve_additive(prediction.bfloat16(), coarse, valid, 3)
    assert conserved.dtype == torch.float32
    means, _ = block_means(conserved, valid, 3)
    torch.testing.assert_close(means, coarse[..., ::3, ::3], atol=1e-5, rtol=0)


def test_bad_input_is_refused() -> None:
    prediction, coarse, valid = fields(6, 6, 3, 1.0, 0)
    with pytest.raises(ValueError, match="factor must be at least 1, found 0"):
        conserve_additive(prediction, coarse, valid, 0)
    with pytest.raises(ValueError, match="valid must be a bool mask, found torch.float64"):
        conserve_additive(prediction, coarse, valid.double(), 3)
    with pytest.raises(ValueError, match="prediction and coarse must have one shape"):
        conserve_additive(prediction, coarse[..., ::3, ::3], valid, 3)
    with pytest.raises(ValueError, match="field and valid must have one shape"):
        conserve_additive(prediction, coarse, valid[:1], 3)
