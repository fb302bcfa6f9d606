"""Losses against numpy, scikit-image and scipy; masks that really mask; training that never sees the fine truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage.metrics import structural_similarity
from sklearn.metrics import mean_pinball_loss
from torch import Tensor
from torch.nn import functional as F

from sifscale import losses

Fields = tuple[Tensor, Tensor, Tensor]


def fields(seed: int, scored_share: float = 0.6, size: int = 16, offset: float = 3.0) -> Fields:
    """Prediction, target (2, 1, size, size) float64 with some structure, and a mask."""
    rng = np.random.default_rng(seed)
    target = ndimage.gaussian_filter(rng.normal(size=(2, 1, size, size)), (0, 0, 1.5, 1.5)) * 3 + offset
    prediction = target + rng.normal(scale=0.4, size=target.shape)
    scored = rng.random(target.shape) < scored_share
    return torch.tensor(prediction), torch.tensor(target), torch.tensor(scored)


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("mse", lambda error: error**2),
        ("mae", np.abs),
        ("huber", lambda error: np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)),
    ],
)
def test_errors_are_means_over_scored_pixels(name: str, by_hand: Callable[..., np.ndarray]) -> None:
    prediction, target, scored = fields(0)
    prediction = target + (prediction - target) * 5  # beyond 1 too
    expected = by_hand((prediction - target).numpy()[scored.numpy()]).mean()
    assert float(losses.PIXEL_LOSSES[name](prediction, target, scored)) == pytest.approx(expected, rel=1e-12)


@given(name=st.sampled_from(sorted(losses.PIXEL_LOSSES)), seed=st.integers(0, 999), share=st.sampled_from([0, 0.3, 1]))
def test_only_scored_pixels_count_and_gradients_are_finite(name: str, seed: int, share: float) -> None:
    prediction, target, scored = fields(seed, share)
    found = []
    for other in (0.0, torch.nan, 1e9):
        guess = prediction.masked_fill(~scored, other).requires_grad_()
        loss = losses.PIXEL_LOSSES[name](guess, target.masked_fill(~scored, other), scored)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        assert guess.grad is not None and guess.grad.isfinite().all() and not guess.grad[~scored].any()
        found.append(float(loss.detach()))
    assert found[0] == found[1] == found[2] >= 0
    assert share or found[0] == 0


@pytest.mark.parametrize("name", sorted(losses.PIXEL_LOSSES))
def test_the_truth_has_no_loss(name: str) -> None:
    prediction, target, scored = fields(1, scored_share=1.0)
    assert float(losses.PIXEL_LOSSES[name](target, target, scored)) == pytest.approx(0, abs=1e-12)
    assert float(losses.PIXEL_LOSSES[name](prediction, target, scored)) > 0.01


def test_the_plain_likelihood_is_torchs_own() -> None:
    prediction, target, scored = fields(0)
    sd = torch.rand(target.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.2
    expected = F.gaussian_nll_loss(prediction[scored], target[scored], sd[scored] ** 2)
    assert float(losses.beta_nll(prediction, sd, target, scored, 0.0)) == pytest.approx(float(expected), rel=1e-12)


@given(seed=st.integers(0, 999), beta=st.floats(0, 1))
def test_beta_scales_gradients_by_the_variance_and_with_1_the_mean_learns_as_by_squares(seed: int, beta: float) -> None:
    prediction, target, scored = fields(seed)
    sd = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2

    def gradients(beta: float) -> list[Tensor]:
        leaves = [field.clone().requires_grad_() for field in (prediction, sd)]
        losses.beta_nll(leaves[0], leaves[1], target, scored, beta).backward()  # type: ignore[no-untyped-call]  # torch's own
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    for plain, weighted in zip(gradients(0.0), gradients(beta), strict=True):
        torch.testing.assert_close(weighted, plain * sd ** (2 * beta))
    mean, _ = gradients(1.0)
    torch.testing.assert_close(mean, torch.where(scored, prediction - target, 0) / scored.sum())


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_pinball_is_that_of_scikit_learn_for_the_three_quantiles(level: float) -> None:
    prediction, target, scored = fields(0)
    distances = torch.rand((2, 2, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    quantiles = {
        (1 - level) / 2: prediction - distances[:, :1],
        0.5: prediction,
        (1 + level) / 2: prediction + distances[:, 1:],
    }
    expected = sum(mean_pinball_loss(target[scored], q[scored], alpha=share) for share, q in quantiles.items())
    assert float(losses.pinball(prediction, distances, target, scored, level)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["beta_nll", "pinball"])
def test_learned_widths_read_scored_pixels_alone(name: str) -> None:
    prediction, target, scored = fields(0)
    widths = torch.rand((2, 1 + (name == "pinball"), 16, 16), generator=torch.Generator().manual_seed(0)).double() + 0.1
    found = []
    for other in (0.0, torch.nan, 1e9):
        leaves = [field.masked_fill(~scored, other).requires_grad_() for field in (prediction, widths)]
        loss = getattr(losses, name)(*leaves, target.masked_fill(~scored, other), scored, 0.5)
        loss.backward()
        assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
        found.append(float(loss.detach()))
    assert found[0] == found[1] == found[2]
    nothing = torch.zeros_like(scored)
    assert float(getattr(losses, name)(prediction, widths, target, nothing, 0.5)) == 0


def test_ssim_of_complete_fields_is_that_of_scikit_image() -> None:
    prediction, target, scored = fields(2, scored_share=1.0, size=32)
    found = losses.ssim_map(prediction, target, scored)
    inner = slice(losses.WINDOW_RADIUS_PX, -losses.WINDOW_RADIUS_PX)
    for sample in range(2):
        _, expected = structural_similarity(  # type: ignore[no-untyped-call]  # scikit-image's own
            prediction[sample, 0].numpy(), target[sample, 0].numpy(), data_range=losses.DYNAMIC_RANGE, full=True,
            gaussian_weights=True, sigma=losses.WINDOW_SD_PX, use_sample_covariance=False,
        )  # fmt: skip
        np.testing.assert_allclose(found[sample, 0, inner, inner], expected[inner, inner], atol=1e-9)


def test_ssim_with_gaps_is_that_of_the_pixels_that_are_there() -> None:
    prediction, target, scored = fields(3, scored_share=0.5, size=14)
    found = losses.ssim_map(prediction, target, scored)
    at = np.arange(14)
    for y, x in ((0, 0), (5, 9), (13, 6)):
        window = np.exp(-((at[:, None] - y) ** 2 + (at - x) ** 2) / (2 * losses.WINDOW_SD_PX**2))
        near = np.maximum(np.abs(at[:, None] - y), np.abs(at - x)) <= losses.WINDOW_RADIUS_PX
        window *= near & scored[0, 0].numpy()
        p, t = prediction[0, 0].numpy(), target[0, 0].numpy()
        a, b = (float(np.average(field, weights=window)) for field in (p, t))
        spread = np.average((p - a) ** 2 + (t - b) ** 2, weights=window)
        common = np.average((p - a) * (t - b), weights=window)
        expected = (2 * a * b + losses.C1) * (2 * common + losses.C2)
        expected /= (a * a + b * b + losses.C1) * (spread + losses.C2)
        if scored[0, 0, y, x]:
            assert float(found[0, 0, y, x]) == pytest.approx(expected, rel=1e-9)


def test_ssim_keeps_its_digits_far_from_zero_and_in_half_precision_training() -> None:
    """Temperatures of 300 K with a standard deviation of 10 K, in float32 and under autocast."""
    prediction, target, scored = fields(4, offset=30.0)
    exact = losses.dssim(prediction, target, scored)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses.dssim(prediction.float(), target.float(), scored)
    assert float(found) == pytest.approx(float(exact), rel=1e-3)


def test_radial_power_is_found_where_a_wave_has_it_and_is_1_for_white_noise() -> None:
    along = torch.arange(32, dtype=torch.float64) * 2 * torch.pi / 32
    wave = torch.cos(5 * along).expand(1, 1, 32, 32)
    power = losses.log_radial_power(wave)
    assert power.shape == (1, 16) and int(power.argmax()) == 5 - 1
    noise = torch.randn(400, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(losses.log_radial_power(noise).exp().mean(dim=0)[2:], 1, atol=0.03)


def test_the_spectral_loss_tells_a_smoothed_field_from_a_noisy_one_of_equal_error() -> None:
    _, target, scored = fields(5, scored_share=1.0, size=32)
    smooth = torch.tensor(ndimage.gaussian_filter(target.numpy(), (0, 0, 1.5, 1.5)))
    moved = target + (smooth - target).flip(-1)  # the same errors elsewhere
    assert float(losses.mse(smooth, target, scored)) == pytest.approx(float(losses.mse(moved, target, scored)))
    assert losses.spectral(smooth, target, scored) > losses.spectral(moved, target, scored) > 0
    gap = scored.clone()
    gap[:, :, 3, 3] = False
    assert losses.spectral(smooth, target, gap) == losses.mse(smooth, target, gap), "no crop is complete"


@given(seed=st.integers(0, 999), factor=st.integers(1, 6), share=st.sampled_from([0.0, 0.2, 1.0]))
def test_aggregate_compares_means_of_valid_pixels_with_the_observation(seed: int, factor: int, share: float) -> None:
    prediction, target, valid = fields(seed, share, size=12)
    scored = valid & (torch.arange(12) < 8)
    coarse, errors = torch.full_like(target, torch.nan), []
    for sample in range(2):
        for y in range(0, 12, factor):
            for x in range(0, 12, factor):
                at = (sample, 0, slice(y, y + factor), slice(x, x + factor))
                if valid[at].any():
                    coarse[at] = target[at][valid[at]].mean()
                    mismatch = float(prediction[at][valid[at]].mean() - coarse[at].flatten()[0])
                    errors += [mismatch**2] * int(scored[at].sum())
    found = losses.aggregate(prediction.masked_fill(~valid, torch.nan), coarse, valid, scored, factor)
    assert float(found) == pytest.approx(np.mean(errors) if errors else 0.0, abs=1e-12)
    exact = losses.aggregate(target, coarse, valid, scored, factor)
    assert float(exact) == pytest.approx(0, abs=1e-20)


@given(seed=st.integers(0, 999), factor=st.sampled_from([2, 3]), share=st.sampled_from([0.0, 0.2, 1.0]))
def test_footprints_compares_weighted_means_of_cells_with_the_observation(
    seed: int, factor: int, share: float
) -> None:
    prediction, coarse, scored = fields(seed, share, size=18)
    cells, support = 18 // factor, 3 * factor
    weights = torch.rand(2, cells, cells, support, support, generator=torch.Generator().manual_seed(seed)).double()
    weights[:, ::3] = 0  # not observed
    observed = coarse[:, 0, ::factor, ::factor]
    errors = []
    for sample, y, x in np.ndindex(2, cells - 2, cells - 2):  # the upper left cell of a support of three
        inside = weights[sample, y + 1, x + 1]
        cell = np.s_[(y + 1) * factor : (y + 2) * factor, (x + 1) * factor : (x + 2) * factor]
        if scored[sample, 0][cell].any() and inside.any():
            seen = prediction[sample, 0, y * factor :, x * factor :][:support, :support]
            errors.append(float((inside * seen).sum() - observed[sample, y + 1, x + 1]) ** 2)
    found = losses.footprints(prediction, coarse, weights, scored, factor)
    assert float(found) == pytest.approx(np.mean(errors) if errors else 0.0, rel=1e-9)


def test_footprints_has_nothing_to_say_of_a_crop_that_holds_no_support() -> None:
    prediction = torch.ones(2, 1, 6, 6, requires_grad=True)
    found = losses.footprints(prediction, prediction, torch.ones(2, 3, 3, 10, 10), torch.ones(2, 1, 6, 6).bool(), 2)
    found.backward()  # type: ignore[no-untyped-call]  # torch's own
    assert found == 0 and prediction.grad is not None and not prediction.grad.any()


def test_total_variation_is_the_mean_step_between_scored_neighbours() -> None:
    ramp = (torch.arange(4.0) * 3).expand(1, 1, 4, 4).clone()
    scored = torch.ones_like(ramp, dtype=torch.bool)
    assert losses.total_variation(ramp, scored) == pytest.approx(12 * 3 / 24)
    scored[..., 2:] = False
    ramp[..., 2:] = torch.nan
    assert losses.total_variation(ramp, scored) == pytest.approx(4 * 3 / (4 + 6))
    assert losses.total_variation(ramp, torch.zeros_like(scored)) == 0


@given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.3, 1.0]), constant=st.floats(1e-3, 1.0))
def test_equal_weights_are_those_of_the_mean_squared_error(seed: int, share: float, constant: float) -> None:
    prediction, target, scored = fields(seed, share)
    found = losses.error_weighted(prediction, target, scored, torch.full_like(target, constant))
    assert float(found) == pytest.approx(float(losses.mse(prediction, target, scored)), rel=1e-9)


@given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_each_scored_pixel_counts_by_its_weight(seed: int, share: float) -> None:
    prediction, target, scored = fields(seed, share)
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed), dtype=target.dtype) + 1e-3
    total, weights = 0.0, 0.0
    for at in np.argwhere(scored.numpy()):
        error = float(prediction[tuple(at)] - target[tuple(at)])
        total, weights = total + float(weight[tuple(at)]) * error**2, weights + float(weight[tuple(at)])
    found = []
    for other in (0.0, torch.nan):  # what is not scored is not read, its weight neither
        guess = prediction.masked_fill(~scored, other).requires_grad_()
        fill = (field.masked_fill(~scored, other) for field in (target, weight))
        loss = losses.error_weighted(guess, next(fill), scored, next(fill))
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        assert guess.grad is not None and guess.grad.isfinite().all() and not guess.grad[~scored].any()
        found.append(float(loss.detach()))
    assert found[0] == found[1] == pytest.approx(total / weights if share else 0.0, rel=1e-9)
