"""What training makes small: errors over scored pixels, or block means against the observation where there is no truth.

Fields are (B, 1, H, W) and already divided by the scale of the target, so that losses have no unit. A mask, bool,
says which pixels count; what stands in the others, NaN included, is never read. Nothing scored gives 0, no NaN.
Masks choose by `where`, not by index: how many pixels an index takes must be known before anything goes on, so that
a GPU would be waited for in each step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sifscale.conservation import block_means

# The mix of Zhao et al. 2017 (doi:10.1109/TCI.2016.2644865) for SSIM and absolute error.
DSSIM_SHARE = 0.84
# Fixed, so that a loss means the same in every batch; of z-scores: two standard deviations to each side.
DYNAMIC_RANGE = 4.0
# Window and constants of Wang et al. 2004 (doi:10.1109/TIP.2003.819861)
WINDOW_SD_PX, WINDOW_RADIUS_PX = 1.5, 5
C1, C2 = (0.01 * DYNAMIC_RANGE) ** 2, (0.03 * DYNAMIC_RANGE) ** 2
SPECTRAL_SHARE = 0.1
POWER_FLOOR = 1e-6  # of a field of variance 1, far below the noise of any SIF product


def mse(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Mean squared error."""
    return _mean(F.mse_loss, prediction, target, scored)


def mae(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Mean absolute error."""
    return _mean(F.l1_loss, prediction, target, scored)


def huber(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Huber's loss: squared up to an error of 1, the scale of the target, linear beyond."""
    return _mean(F.huber_loss, prediction, target, scored)


def error_weighted(prediction: Tensor, target: Tensor, scored: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error, each pixel with its `weight` (B, 1, H, W), above 0; large where the target is precise."""
    weights = torch.where(scored, weight, 0)
    squares = F.mse_loss(*_inside(scored, prediction, target), reduction="none")
    return (weights * squares).sum() / weights.sum().clamp(min=1e-12)


def dssim(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Structural dissimilarity (1 - SSIM) / 2 mixed with the mean absolute error, 0.84 to 0.16."""
    count = scored.sum().clamp(min=1)
    dissimilar = torch.where(scored, (1 - ssim_map(prediction, target, scored)) / 2, 0).sum() / count
    return DSSIM_SHARE * dissimilar + (1 - DSSIM_SHARE) * mae(prediction, target, scored)


def spectral(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Mean squared error plus 0.1 x the mean squared difference of the natural log of radial power.

    The second term keeps a network from smoothing away what it cannot place. It is taken over complete crops: a gap
    would put power of its own at all wavelengths. Where no crop of a batch is complete it is 0.
    """
    error = mse(prediction, target, scored)
    complete = scored.flatten(1).all(dim=1)
    found, wanted = map(log_radial_power, _inside(complete[:, None, None, None], prediction, target))
    mismatch = F.mse_loss(found, wanted, reduction="none").mean(dim=1)  # 0 of the other crops, which are 0 twice
    return error + SPECTRAL_SHARE * mismatch.sum() / complete.sum().clamp(min=1)


def beta_nll(prediction: Tensor, sd: Tensor, target: Tensor, scored: Tensor, beta: float) -> Tensor:
    """Negative log-likelihood of a normal distribution, each pixel weighted by sd^(2 beta), which is held constant.

    Seitzer et al. 2022, arXiv 2203.09168. beta 0 is the plain likelihood, which neglects pixels of large variance; with
    1 the mean is learned as by squared errors. `sd` (B, 1, H, W), above 0; the constant of the density is left out.
    """
    prediction, target = _inside(scored, prediction, target)
    variance = torch.where(scored, sd, 1).square()  # whose log is 0
    likelihood = (variance.log() + (prediction - target).square() / variance) / 2
    return (variance.detach() ** beta * likelihood).sum() / scored.sum().clamp(min=1)


def pinball(prediction: Tensor, distances: Tensor, target: Tensor, scored: Tensor, level: float) -> Tensor:
    """Sum of the pinball losses of the median and of the ends of the central interval that holds `level` (0..1).

    Koenker & Bassett 1978, doi:10.2307/1913643: each is smallest for its quantile. distances (B, 2, H, W): from the
    median down to the lower and up to the upper end, not below 0.
    """
    lower, upper = prediction - distances[:, :1], prediction + distances[:, 1:]
    total = prediction.new_zeros(())
    for quantile, share in ((lower, (1 - level) / 2), (prediction, 0.5), (upper, (1 + level) / 2)):
        error = torch.where(scored, target - quantile, 0)
        total = total + torch.maximum(share * error, (share - 1) * error).sum()
    return total / scored.sum().clamp(min=1)


def aggregate(prediction: Tensor, coarse: Tensor, valid: Tensor, scored: Tensor, factor: int) -> Tensor:
    """Mean squared difference of block means and the coarse observation: learns without any fine truth.

    A prediction is averaged over the valid pixels of its `factor` x `factor` block, those that the observation was
    made of. Each block counts as often as it has scored pixels. `coarse` is constant in each block, or, for the loss
    `cells`, a fine field whose block means are compared. Weak supervision
    by area means: arXiv 2207.08022, arXiv 2502.01204. What a model learns from it is its own: one that reads the
    coarse field can copy it and is at 0.
    """
    mismatch, _ = block_means(prediction - coarse, valid, factor)
    _, counts = block_means(prediction, scored, factor)
    return (counts * mismatch.square()).sum() / counts.sum().clamp(min=1)


def footprints(prediction: Tensor, coarse: Tensor, weights: Tensor, scored: Tensor, factor: int) -> Tensor:
    """Mean squared difference of footprint-weighted means and the native observation: learns without any fine truth.

    A native cell is a block of `factor` x `factor` pixels, where `coarse` is constant. weights (B, H / factor,
    W / factor, k, k): what the k x k pixels about a cell count in its observation, 0 where it was not observed. A cell
    counts once, if any of its pixels is scored and all k x k lie inside. What `aggregate` says of copying holds here.
    """
    support_px = weights.shape[-1]
    if min(prediction.shape[-2:]) < support_px:
        return prediction.sum() * 0  # no cell's pixels all lie inside, and there is nothing to learn
    radius = (support_px // factor - 1) // 2
    inner = (slice(None), *(slice(radius, size - radius) for size in weights.shape[1:3]))
    pixels = F.unfold(prediction, support_px, stride=factor)  # (B, k * k, cells)
    inside = weights[inner].flatten(3).flatten(1, 2).mT.to(pixels.dtype)
    means = (pixels * inside).sum(dim=1)  # no matrix product, which autocast would do in half precision
    observed = coarse[:, 0, ::factor, ::factor][inner].flatten(1)
    counted = F.max_pool2d(scored.to(prediction.dtype), factor)[:, 0][inner].flatten(1) > 0
    counted = counted & (inside.sum(dim=1) > 0)
    return _mean(F.mse_loss, means, observed, counted)


def total_variation(prediction: Tensor, scored: Tensor) -> Tensor:
    """Mean absolute difference of neighbours in a row or column that are both scored (Rudin et al. 1992)."""
    total, count = prediction.new_zeros(()), prediction.new_zeros(())
    for axis in (-2, -1):
        size = prediction.shape[axis] - 1
        first, second = (prediction.narrow(axis, start, size) for start in (0, 1))
        both = scored.narrow(axis, 0, size) & scored.narrow(axis, 1, size)
        total = total + torch.where(both, second - first, 0).abs().sum()
        count = count + both.sum()
    return total / count.clamp(min=1)


# Losses that compare with the fine truth, by the name that the configuration gives them.
PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mse": mse,
    "mae": mae,
    "huber": huber,
    "dssim": dssim,
    "spectral": spectral,
}


def ssim_map(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each pixel, (B, 1, H, W), for a dynamic range of 4.

    Local means, variances and the covariance are weighted by a Gaussian window of the pixels in `mask` alone, so that
    neither gaps nor the border of a crop are taken for structure. Of no meaning outside the mask.
    """
    count = mask.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    p, t = (torch.where(mask, field, 0) for field in (prediction, target))
    # moments about the crop's mean: E[x^2] - E[x]^2 of values far from 0 would be rounding
    middle = t.sum(dim=(1, 2, 3), keepdim=True) / count
    p, t = (torch.where(mask, field - middle, 0) for field in (p, t))
    weight = _blurred(mask.to(p.dtype))
    inside = torch.where(mask, weight, 1)
    mean_p, mean_t, pp, tt, pt = (_blurred(field) / inside for field in (p, t, p * p, t * t, p * t))
    variances = pp - mean_p**2 + tt - mean_t**2
    covariance = pt - mean_p * mean_t
    a, b = mean_p + middle, mean_t + middle
    return (2 * a * b + C1) * (2 * covariance + C2) / ((a**2 + b**2 + C1) * (variances + C2))


def log_radial_power(field: Tensor) -> Tensor:
    """Natural log of the power of square fields (B, 1, M, M) by wavenumber 1 .. M // 2 cycles a field: (B, M // 2).

    Tapered by a Hann window after the mean is taken off; the mean over each ring of wavenumbers.
    """
    size = field.shape[-1]
    taper = torch.hann_window(size, dtype=field.dtype, device=field.device)
    taper = taper[:, None] * taper
    power = torch.fft.fft2((field - field.mean(dim=(-2, -1), keepdim=True)) * taper).abs().square()
    along = torch.fft.fftfreq(size, d=1 / size, device=field.device)
    last = size // 2
    ring = torch.hypot(along[:, None], along).round().long().flatten().clamp(max=last + 1)  # of the corners, left out
    sums = power.new_zeros(len(field), last + 2).index_add(1, ring, power.flatten(1))
    counts = power.new_zeros(last + 2).index_add(0, ring, torch.ones_like(ring, dtype=power.dtype))
    mean_power: Tensor = (sums / counts)[:, 1 : last + 1] / taper.square().sum()
    return (mean_power + POWER_FLOOR).log()


def _mean(of: Callable[..., Tensor], prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    total = of(*_inside(scored, prediction, target), reduction="sum")
    return total / scored.sum().clamp(min=1)


def _inside(mask: Tensor, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both, 0 outside the mask, so that they do not differ there."""
    return torch.where(mask, prediction, 0), torch.where(mask, target, 0)


def _blurred(field: Tensor) -> Tensor:
    """Gaussian sums of a (B, 1, H, W) field, zeros beyond its border; in full precision, whatever the trainer's is."""
    at = torch.arange(-WINDOW_RADIUS_PX, WINDOW_RADIUS_PX + 1, dtype=field.dtype, device=field.device)
    kernel = torch.exp(-(at**2) / (2 * WINDOW_SD_PX**2))
    kernel = kernel / kernel.sum()
    with torch.autocast(field.device.type, enabled=False):
        rows = F.conv2d(field, kernel[None, None, :, None], padding=(WINDOW_RADIUS_PX, 0))
        return F.conv2d(rows, kernel[None, None, None, :], padding=(0, WINDOW_RADIUS_PX))
