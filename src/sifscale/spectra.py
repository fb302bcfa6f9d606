"""Power spectra of square tiles of a map, and what they say of a prediction: how much texture, and is it right?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

SPECTRA = ("prediction", "target", "error")
SPECTRAL_SCORES = ("spectrum_ratio", "spectral_error", "effective_resolution_px")
MIN_SCORED = 0.9  # share of a tile's pixels; with more gaps than this the spectrum shows their shape
NOISE_TO_SIGNAL = 0.5  # where a wavelength is no longer resolved (Ballarotta et al. 2019)

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


def tile_spectra(
    prediction: Floats, target: Floats, scored: Mask, inside: Mask, block: Numbers, tile_px: int
) -> Iterator[tuple[Numbers, Floats]]:
    """Blocks (tiles,) of the tiles of one sample (y, x) and their power (tiles, 3, tile_px // 2), by row of tiles.

    Welch's method (1967, doi:10.1109/TAU.1967.1161901) in two dimensions: squares with half overlap, the mean
    taken off, a Hann window. Each field's mean is that over the scored pixels and stands in its gaps, so that
    neither a gap nor a constant bias around it is taken for structure.
    """
    if min(target.shape) < tile_px:
        return
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(tile_px) / tile_px)
    window = np.outer(hann, hann) / (hann**2).sum()  # of unit energy
    share = _rings(tile_px)
    fields = (np.where(scored, field, 0) for field in (prediction, target, prediction - target))
    rows = zip(*(_tiles(field, tile_px) for field in (block, inside, scored, *fields)), strict=True)
    for number, within, seen, *tiles in rows:  # a row of tiles at a time keeps memory small
        counts = within.all(axis=(1, 2)) & (seen.mean(axis=(1, 2)) >= MIN_SCORED)
        known = seen[counts]
        spectra = []
        for tile in tiles:
            values = tile[counts]
            mean = values.sum(axis=(1, 2), keepdims=True) / known.sum(axis=(1, 2), keepdims=True)
            density = np.abs(np.fft.fft2(np.where(known, values - mean, 0) * window)) ** 2
            spectra.append(density.reshape(len(known), tile_px**2) @ share)
        yield number[counts, tile_px // 2, tile_px // 2], np.stack(spectra, axis=1)


def _tiles(field: NDArray[Any], tile_px: int) -> NDArray[Any]:
    """Squares of (y, x) with half overlap, a view (rows, columns, tile_px, tile_px)."""
    return sliding_window_view(field, (tile_px, tile_px))[:: tile_px // 2, :: tile_px // 2]


def _rings(tile_px: int) -> Floats:
    """Weight of each coefficient of ``fft2`` in the means over 1 .. tile_px // 2 cycles a tile, (tile_px^2, rings)."""
    cycles = np.fft.fftfreq(tile_px, 1 / tile_px)
    ring = np.rint(np.hypot(cycles[:, None], cycles)).ravel()
    members = (ring[:, None] == np.arange(1, tile_px // 2 + 1)).astype(np.float64)
    return np.asarray(members / members.sum(axis=0))


def spectral_scores(power: Floats, least: float | Floats) -> dict[str, Floats]:
    """Scores, each (...), of power (..., 3, rings) summed over tiles; NaN where the target has no more than ``least``.

    spectrum_ratio: power of the prediction / power of the target in the upper half of the rings; 1 is the right
    amount of fine texture, less is too smooth. spectral_error: power of the error / power of the target in the same
    rings; 0 is perfect, 1 no better than no fine texture at all, and more is worse than that: texture in wrong places.
    effective_resolution_px: see :func:`effective_resolution`.
    """
    prediction, target, error = np.moveaxis(power, -2, 0)
    rings = power.shape[-1]
    p, y, e = (part[..., rings // 2 :].sum(axis=-1) for part in (prediction, target, error))
    known = y > least
    ratio, wrong = (np.divide(part, y, out=np.full_like(y, np.nan), where=known) for part in (p, e))
    resolution = effective_resolution(ring_wavenumber(rings), target, error)
    found = ratio, wrong, np.where(target.sum(axis=-1) > least, resolution, np.nan)
    return dict(zip(SPECTRAL_SCORES, found, strict=True))


def effective_resolution(wavenumber: Floats, target: Floats, error: Floats) -> Floats:
    """Shortest wavelength (px) down to which the error has at most half of the target's power, (...).

    wavenumber (rings,): cycles per px, rising. target, error (..., rings): power. The noise-to-signal ratio of
    Ballarotta et al. 2019 (doi:10.5194/os-15-1091-2019), from long waves to short ones up to the first failure,
    linear in wavenumber between two rings. The shortest wave of all where every ring passes; NaN where even the
    longest fails.
    """
    silent = np.where(error > 0, np.inf, 0.0)  # no power in the target: no error is allowed
    ratio = np.divide(error, target, out=silent, where=target > 0)
    fails = ratio > NOISE_TO_SIGNAL
    first = fails.argmax(axis=-1)[..., None]
    before = np.maximum(first - 1, 0)
    # no ring lies before the first of all: its wave does not count, and must not be one of 0 / 0
    low, high = (np.where(first > 0, np.take_along_axis(ratio, at, -1), at is first) for at in (before, first))
    share = (NOISE_TO_SIGNAL - low) / (high - low)
    wave = (wavenumber[before] + share * (wavenumber[first] - wavenumber[before]))[..., 0]
    partly = np.where(fails[..., 0], np.nan, 1 / wave)
    return np.where(fails.any(axis=-1), partly, 1 / wavenumber[-1])


def ring_wavenumber(rings: int) -> Floats:
    """Cycles per px of 1 .. rings whole cycles in a tile of 2 * rings px, (rings,)."""
    return np.arange(1, rings + 1) / (2 * rings)
