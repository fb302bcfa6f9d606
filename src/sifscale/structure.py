"""Has a predicted map the structure of the true one? SSIM, PSNR and power spectra as mergeable sums.

A score by pixel rewards a map that is too smooth: a detail shown in the wrong place costs twice the squared error
of one left out. What is left of the fine texture, and down to which wavelength it is right, is said here.

Sums are kept by block of the map, the unit that the bootstrap of RMSE draws too: all samples of a place share its
blocks, since what a model does not know about a place stays, and connected test parts would be few. Tiles reach into
the blocks beside theirs, but under a Hann window the powers of two that overlap by half correlate by 1/36 only
(Welch 1967).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity

from sifscale.spectra import SPECTRA, ring_wavenumber, spectral_scores, tile_spectra

SSIM_WINDOW_PX = 11  # a Gaussian of sigma 1.5 px, cut at 3.5 sigma (Wang et al. 2004, section III-B)
# A power spectral density below this share of data_range^2 px^2 is rounding of a constant field.
ROUNDING = 1e-18

Field = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


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
        whole = np.zeros(target.shape, dtype=np.int64)
        parts = cls.by_block(
            prediction, target, scored, inside, whole, [""], tile_px=tile_px, data_range=data_range
        )
        return sum(parts.values(), start=cls.zero(tile_px, data_range))

    @classmethod
    def by_block(
        cls,
        prediction: Field, target: Field, scored: Mask, inside: Mask, block: Numbers, names: Sequence[str],
        *, tile_px: int, data_range: float,
    ) -> dict[str, Structure]:  # fmt: skip
        """As :meth:`of`, kept by block: ``block`` (sample, y, x) is each pixel's place in ``names``.

        SSIM and errors belong to the block of their pixel, a tile to the block of the pixel in its middle. The blocks
        add up to :meth:`of` over everything; those without a scored pixel and without a tile are left out.
        """
        _require(prediction, target, scored, inside, block, tile_px, data_range)
        ssim, ssim_px, squared_error, scored_px, tiles = np.zeros((5, len(names)))
        power = np.zeros((len(names), len(SPECTRA), tile_px // 2))
        for sample in np.flatnonzero(scored.any(axis=(1, 2))):
            box = ndimage.find_objects(inside[sample].astype(np.int8))[0]  # the lattice of tiles starts at its corner
            seen, within, number = scored[sample][box], inside[sample][box], block[sample][box]
            level = target[sample][box][seen].mean(dtype=np.float64)
            p, y = (np.where(seen, field[sample][box], level) for field in (prediction, target))
            index, counted = _ssim(p, y, seen, data_range)
            ssim += np.bincount(number[counted], index[counted], len(names))
            ssim_px += np.bincount(number[counted], minlength=len(names))
            squared_error += np.bincount(number[seen], (p[seen] - y[seen]) ** 2, len(names))
            scored_px += np.bincount(number[seen], minlength=len(names))
            for of_row, spectra in tile_spectra(p, y, seen, within, number, tile_px):
                np.add.at(tiles, of_row, 1)
                np.add.at(power, of_row, spectra)
        sums = zip(names, ssim, ssim_px, squared_error, scored_px, tiles, power, strict=True)
        return {
            name: cls(tile_px, data_range, float(s), int(s_px), float(e), int(e_px), int(count), spectra)
            for name, s, s_px, e, e_px, count, spectra in sums
            if e_px + count > 0
        }

    @classmethod
    def zero(cls, tile_px: int, data_range: float) -> Structure:
        """Nothing seen yet."""
        return cls(tile_px, data_range, 0.0, 0, 0.0, 0, 0, np.zeros((len(SPECTRA), tile_px // 2)))

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
        identical fields. spectrum_ratio, spectral_error, effective_resolution_px: as ``spectra.spectral_scores`` says;
        effective_resolution_km too where ``pixel_km``, the side of a pixel, is given (ValueError unless it is above 0).
        """
        if pixel_km is not None and not pixel_km > 0:
            raise ValueError(f"pixel_km must be above 0, found {pixel_km}: give the side of a pixel in km")
        found = {"ssim": math.nan, "psnr": math.nan}
        if self.ssim_px:
            found["ssim"] = self.ssim / self.ssim_px
        if self.scored_px:
            rmse = math.sqrt(self.squared_error / self.scored_px)
            found["psnr"] = 20 * math.log10(self.data_range / rmse) if rmse > 0 else math.inf
        spectral = spectral_scores(self.power, self.least_power)
        found |= {name: float(score) for name, score in spectral.items()}
        if pixel_km is not None:
            found["effective_resolution_km"] = found["effective_resolution_px"] * pixel_km
        return found

    @property
    def least_power(self) -> float:
        """Of what is no rounding of a constant field, summed as ``power`` is."""
        return ROUNDING * self.data_range**2 * self.tiles

    @property
    def wavenumber(self) -> Floats:
        """Of each ring, (tile_px // 2,), in cycles per px; the last is 0.5, a wave of 2 px."""
        return ring_wavenumber(self.tile_px // 2)

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


Blocks = Mapping[str, Structure]  # by name of the block of the map


def merged(parts: Iterable[Blocks]) -> dict[str, Structure]:
    """Sums by block of all parts together; those that several parts have are added."""
    total: dict[str, Structure] = {}
    for part in parts:
        for block, sums in part.items():
            total[block] = total[block] + sums if block in total else sums
    return total


def pooled(blocks: Blocks) -> Structure:
    """Sums of all blocks, one at least, together."""
    first, *others = blocks.values()
    return sum(others, start=first)


def averaged(parts: Sequence[Blocks]) -> dict[str, Structure]:
    """Mean of the sums of several runs that were tested on the same pixels, block by block."""
    n = len(parts)
    return {
        block: replace(
            sums,
            ssim=sums.ssim / n, ssim_px=sums.ssim_px // n,
            squared_error=sums.squared_error / n, scored_px=sums.scored_px // n,
            tiles=sums.tiles // n, power=sums.power / n,
        )
        for block, sums in merged(parts).items()
    }  # fmt: skip


def to_json(views: Mapping[str, Mapping[str, Blocks]]) -> dict[str, Any]:
    """Sums by view, prediction and block as plain values."""
    return {
        view: {name: {block: sums.to_dict() for block, sums in blocks.items()} for name, blocks in of_view.items()}
        for view, of_view in views.items()
    }


def from_json(values: Mapping[str, Any], view: str, prediction: str) -> dict[str, Structure]:
    """Sums by block of one prediction, from what :func:`to_json` gave; empty where it is not there.

    Files of earlier versions hold the sums of the view "test" by prediction alone: those are one block named "".
    """
    if "tile_px" in values.get(prediction, ()):
        return {"": Structure.from_dict(values[prediction])} if view == "test" else {}
    return {block: Structure.from_dict(sums) for block, sums in values.get(view, {}).get(prediction, {}).items()}


def _ssim(prediction: Floats, target: Floats, scored: Mask, data_range: float) -> tuple[Floats, Mask]:
    """SSIM index of one sample (y, x), gaps filled, and the pixels that count: no gap is in their window."""
    counted = ndimage.minimum_filter(scored, size=SSIM_WINDOW_PX, mode="constant", cval=False)
    if not counted.any():
        return np.zeros(scored.shape), counted
    index = structural_similarity(  # type: ignore[no-untyped-call]  # scikit-image has no annotations there
        prediction, target, full=True,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=data_range,
    )[1]  # fmt: skip
    return index, counted


def _require(
    prediction: Field, target: Field, scored: Mask, inside: Mask, block: Numbers, tile_px: int, data_range: float
) -> None:
    shapes = [array.shape for array in (prediction, target, scored, inside, block)]
    if len(set(shapes)) > 1 or target.ndim != 3:
        raise ValueError(
            f"prediction, target, scored, inside and block must be alike (sample, y, x), found shapes {shapes}"
        )
    if tile_px < 4 or tile_px % 2:
        raise ValueError(f"tile_px must be even and at least 4, found {tile_px}: tiles overlap by half")
    if not 0 < data_range < math.inf:
        raise ValueError(f"data_range must be above 0, found {data_range}: give the span of the target's values")
    if (outside := int((scored & ~inside).sum())) > 0:
        raise ValueError(f"{outside} scored pixels are not inside the test part: inside must hold every scored pixel")
    if (holes := int((scored & ~(np.isfinite(prediction) & np.isfinite(target))).sum())) > 0:
        raise ValueError(f"{holes} scored pixels have no finite prediction or target: leave them out of scored")
