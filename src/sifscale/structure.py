"""Has a predicted map the structure of the true one? SSIM, PSNR and power spectra as mergeable sums.

A score by pixel rewards a map that is too smooth: a detail shown in the wrong place costs twice the squared error
of one left out. What is left of the fine texture, and down to which wavelength it is right, is said here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity

SPECTRA = ("prediction", "target", "error")
SSIM_WINDOW_PX = 11  # a Gaussian of sigma 1.5 px, cut at 3.5 sigma (Wang et al. 2004, section III-B)
MIN_SCORED = 0.9  # share of a tile's pixels; with more gaps than this the spectrum shows their shape
NOISE_TO_SIGNAL = 0.5  # where a wavelength is no longer resolved (Ballarotta et al. 2019)
# A power spectral density below this share of data_range^2 px^2 is rounding of a constant field.
ROUNDING = 1e-18

Field = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Structure:
    """Sums over samples; add with +, finish once.

    tile_px: side of the tiles of the spectra, even. data_range: span of the target's values, in its unit.
    ssim, ssim_px: sum of the SSIM index, and over how many pixels. squared_error, scored_px: sum of
    (prediction - target)^2, and over how many pixels. tiles: how many have a spectrum. power: sum over tiles of
    the power spectral density, float64 (3, tile_px // 2): prediction, target, error at 1, 2 ... cycles a tile.
    """

    tile_px: int
    data_range: float
    ssim: float
    ssim_px: int
    squared_error: float
    scored_px: int
    tiles: int
    power: Floats

    @classmethod
    def of(
        cls, prediction: Field, target: Field, scored: Mask, inside: Mask, *, tile_px: int, data_range: float
    ) -> Structure:
        """Sums of some samples; all arrays (sample, y, x), prediction and target in one unit.

        scored: pixels that have a score; elsewhere both fields may be NaN. inside: pixels of the test part,
        scored or a gap of the target. Raises ValueError for unlike shapes, a scored pixel that is NaN or not
        inside, a tile_px that is odd or below 4, and a data_range that is not above 0.
        """
        _require(prediction, target, scored, inside, tile_px, data_range)
        total = cls(tile_px, data_range, 0.0, 0, 0.0, 0, 0, np.zeros((len(SPECTRA), tile_px // 2)))
        for sample in np.flatnonzero(scored.any(axis=(1, 2))):
            box = ndimage.find_objects(inside[sample].astype(np.int8))[0]  # the lattice of tiles starts at its corner
            seen, within = scored[sample][box], inside[sample][box]
            level = target[sample][box][seen].mean(dtype=np.float64)
            p, y = (np.where(seen, field[sample][box], level) for field in (prediction, target))
            ssim, ssim_px = _ssim(p, y, seen, data_range)
            squares = (p[seen] - y[seen]) ** 2
            tiles, power = _spectra(p, y, seen, within, tile_px)
            total += cls(tile_px, data_range, ssim, ssim_px, float(squares.sum()), squares.size, tiles, power)
        return total

    def __add__(self, other: Structure) -> Structure:
        if (self.tile_px, self.data_range) != (other.tile_px, other.data_range):
            raise ValueError(
                f"sums of unlike tile_px or data_range do not add, found {self.tile_px} px and {self.data_range:g}, "
                f"{other.tile_px} px and {other.data_range:g}: take both from the same settings"
            )
        return Structure(
            self.tile_px, self.data_range,
            self.ssim + other.ssim, self.ssim_px + other.ssim_px,
            self.squared_error + other.squared_error, self.scored_px + other.scored_px,
            self.tiles + other.tiles, self.power + other.power,
        )  # fmt: skip

    def finish(self, pixel_km: float | None = None) -> dict[str, float]:
        """The scores, each NaN where nothing could be counted.

        ssim: mean structural similarity, 1 for identical fields (Wang et al. 2004, doi:10.1109/TIP.2003.819861),
        over the pixels whose whole 11 x 11 window is scored. psnr: 20 log10(data_range / rmse) in dB, infinite for
        identical fields. spectrum_ratio: power of the prediction / power of the target in the upper half of the
        rings; 1 is the right amount of fine texture, less is too smooth. effective_resolution_px: see
        :func:`effective_resolution`; effective_resolution_km too where ``pixel_km``, the side of a pixel, is given
        (ValueError unless it is above 0).
        """
        if pixel_km is not None and not pixel_km > 0:
            raise ValueError(f"pixel_km must be above 0, found {pixel_km}: give the side of a pixel in km")
        found = {"ssim": math.nan, "psnr": math.nan, "spectrum_ratio": math.nan, "effective_resolution_px": math.nan}
        if self.ssim_px:
            found["ssim"] = self.ssim / self.ssim_px
        if self.scored_px:
            rmse = math.sqrt(self.squared_error / self.scored_px)
            found["psnr"] = 20 * math.log10(self.data_range / rmse) if rmse > 0 else math.inf
        least = ROUNDING * self.data_range**2 * self.tiles
        prediction, target, error = self.power
        fine = slice(self.tile_px // 4, None)
        if target[fine].sum() > least:
            found["spectrum_ratio"] = float(prediction[fine].sum() / target[fine].sum())
        if target.sum() > least:
            found["effective_resolution_px"] = effective_resolution(self.wavenumber, target, error)
        if pixel_km is not None:
            found["effective_resolution_km"] = found["effective_resolution_px"] * pixel_km
        return found

    @property
    def wavenumber(self) -> Floats:
        """Of each ring, (tile_px // 2,), in cycles per px; the last is 0.5, a wave of 2 px."""
        return np.arange(1, self.tile_px // 2 + 1) / self.tile_px

    def spectra(self) -> dict[str, Floats]:
        """"wavenumber" (cycles per px) and power spectral density of "prediction", "target" and "error".

        Each (tile_px // 2,): mean over the directions of a ring and over all tiles, in the unit of the field
        squared times px^2: the sum over the wavenumbers (ky, kx) of a tile divided by tile_px^2 is a variance.
        NaN where no tile could be counted.
        """
        power = self.power / self.tiles if self.tiles else np.full_like(self.power, np.nan)
        return {"wavenumber": self.wavenumber, **dict(zip(SPECTRA, power, strict=True))}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for a JSON file that a study merges later."""
        return vars(self) | {"power": dict(zip(SPECTRA, self.power.tolist(), strict=True))}

    @classmethod
    def from_dict(cls, sums: Mapping[str, Any]) -> Structure:
        """Inverse of :meth:`to_dict`."""
        return cls(**{**sums, "power": np.array([sums["power"][name] for name in SPECTRA], dtype=np.float64)})


def effective_resolution(wavenumber: Floats, target: Floats, error: Floats) -> float:
    """Shortest wavelength (px) down to which the error has at most half of the target's power.

    wavenumber (cycles per px, rising), target, error: (rings,), the latter two power. The noise-to-signal ratio of
    Ballarotta et al. 2019 (doi:10.5194/os-15-1091-2019), from long waves to short ones up to the first failure,
    linear in wavenumber between two rings. The shortest wave of all where every ring passes; NaN where even the
    longest fails.
    """
    silent = np.where(error > 0, np.inf, 0.0)  # no power in the target: no error is allowed
    ratio = np.divide(error, target, out=silent, where=target > 0)
    failures = np.flatnonzero(ratio > NOISE_TO_SIGNAL)
    if failures.size == 0:
        return float(1 / wavenumber[-1])
    first = failures[0]
    if first == 0:
        return math.nan
    share = (NOISE_TO_SIGNAL - ratio[first - 1]) / (ratio[first] - ratio[first - 1])
    return float(1 / (wavenumber[first - 1] + share * (wavenumber[first] - wavenumber[first - 1])))


def _ssim(prediction: Floats, target: Floats, scored: Mask, data_range: float) -> tuple[float, int]:
    """Sum of the SSIM index of one sample (y, x), gaps filled, and over how many pixels: no gap is in their window."""
    counted = ndimage.minimum_filter(scored, size=SSIM_WINDOW_PX, mode="constant", cval=False)
    if not counted.any():
        return 0.0, 0
    index = structural_similarity(  # type: ignore[no-untyped-call]  # scikit-image has no annotations there
        prediction, target, full=True,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=data_range,
    )[1]  # fmt: skip
    return float(index[counted].sum()), int(counted.sum())


def _spectra(
    prediction: Floats, target: Floats, scored: Mask, inside: Mask, tile_px: int
) -> tuple[int, Floats]:
    """Number of tiles of one sample (y, x), and the sums of their power, (3, tile_px // 2).

    Welch's method (1967, doi:10.1109/TAU.1967.1161901) in two dimensions: squares with half overlap, the mean
    taken off, a Hann window. Each field's mean is that over the scored pixels and stands in its gaps, so that
    neither a gap nor a constant bias around it is taken for structure.
    """
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(tile_px) / tile_px)
    window = np.outer(hann, hann) / (hann**2).sum()  # of unit energy
    ring, members = _rings(tile_px)
    count, power = 0, np.zeros((len(SPECTRA), tile_px // 2))
    if min(target.shape) < tile_px:
        return count, power
    fields = (np.where(scored, field, 0) for field in (prediction, target, prediction - target))
    rows = zip(*(_tiles(field, tile_px) for field in (inside, scored, *fields)), strict=True)
    for within, seen, *tiles in rows:  # a row of tiles at a time keeps memory small
        counts = within.all(axis=(1, 2)) & (seen.mean(axis=(1, 2)) >= MIN_SCORED)
        known = seen[counts]
        count += len(known)
        for total, tile in zip(power, tiles, strict=True):
            values = tile[counts]
            mean = values.sum(axis=(1, 2), keepdims=True) / known.sum(axis=(1, 2), keepdims=True)
            density = (np.abs(np.fft.fft2(np.where(known, values - mean, 0) * window)) ** 2).sum(axis=0)
            total += np.bincount(ring.ravel(), density.ravel())[1 : tile_px // 2 + 1] / members
    return count, power


def _tiles(field: NDArray[Any], tile_px: int) -> NDArray[Any]:
    """Squares of (y, x) with half overlap, a view (rows, columns, tile_px, tile_px)."""
    return sliding_window_view(field, (tile_px, tile_px))[:: tile_px // 2, :: tile_px // 2]


def _rings(tile_px: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole cycles a tile of each coefficient of ``fft2``, (tile_px, tile_px), and how many have 1 .. tile_px // 2."""
    cycles = np.fft.fftfreq(tile_px, 1 / tile_px)
    ring = np.rint(np.hypot(cycles[:, None], cycles)).astype(np.int64)
    return ring, np.bincount(ring.ravel())[1 : tile_px // 2 + 1]


def _require(
    prediction: Field, target: Field, scored: Mask, inside: Mask, tile_px: int, data_range: float
) -> None:
    shapes = [array.shape for array in (prediction, target, scored, inside)]
    if len(set(shapes)) > 1 or target.ndim != 3:
        raise ValueError(f"prediction, target, scored and inside must be alike (sample, y, x), found shapes {shapes}")
    if tile_px < 4 or tile_px % 2:
        raise ValueError(f"tile_px must be even and at least 4, found {tile_px}: tiles overlap by half")
    if not 0 < data_range < math.inf:
        raise ValueError(f"data_range must be above 0, found {data_range}: give the span of the target's values")
    if (outside := int((scored & ~inside).sum())) > 0:
        raise ValueError(f"{outside} scored pixels are not inside the test part: inside must hold every scored pixel")
    if (holes := int((scored & ~(np.isfinite(prediction) & np.isfinite(target))).sum())) > 0:
        raise ValueError(f"{holes} scored pixels have no finite prediction or target: leave them out of scored")
