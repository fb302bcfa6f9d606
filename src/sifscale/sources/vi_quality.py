"""The quality of MOD13 pixels: the bits of VI Quality, and the rules by which pixels are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Bits of VI Quality: name -> (lowest bit, number of bits), least significant first. Table of the MOD13 user guide.
_QUALITY_BITS: Final = {
    "modland": (0, 2), "usefulness": (2, 4), "aerosol": (6, 2), "adjacent_cloud": (8, 1), "brdf_corrected": (9, 1),
    "mixed_clouds": (10, 1), "land_water": (11, 3), "snow": (14, 1), "shadow": (15, 1),
}  # fmt: skip
_FLAGS: Final = ("adjacent_cloud", "mixed_clouds", "snow", "shadow")
_LAND: Final = 1  # of the land/water flag


@dataclass(frozen=True)
class VegetationQuality:
    """Which pixels to keep: values that are kept, or None for no rule; a flag that is False removes pixels with it.

    reliability: pixel reliability (0 good .. 3 cloudy); max_usefulness: 0 best .. 15; modland: MODLAND (0 good, 1
    check other QA, 2 cloudy, 3 not produced). land_only keeps land/water = land, so not shores and inland water.
    Raises ValueError for values that the bit fields cannot have.
    """

    reliability: tuple[int, ...] | None = (0, 1)
    max_usefulness: int | None = None
    modland: tuple[int, ...] | None = None
    adjacent_cloud: bool = True
    mixed_clouds: bool = True
    snow: bool = True
    shadow: bool = True
    land_only: bool = False

    def __post_init__(self) -> None:
        usefulness = None if self.max_usefulness is None else (self.max_usefulness,)
        for name, values, most in (
            ("reliability", self.reliability, 3), ("max_usefulness", usefulness, 15), ("modland", self.modland, 3),
        ):  # fmt: skip
            if values is not None and (not values or min(values) < 0 or max(values) > most):
                raise ValueError(f"{name} takes values from 0 to {most}, found {values}; give None for no rule")

    @property
    def reads_bits(self) -> bool:
        """Whether any rule needs the VI Quality of the pixels."""
        flags = all(getattr(self, flag) for flag in _FLAGS)
        return self.max_usefulness is not None or self.modland is not None or self.land_only or not flags

    def broken_by_bits(self, vi_quality: NDArray[np.uint16]) -> dict[str, NDArray[np.bool_]]:
        """{rule: which pixels break it}, of the rules about VI Quality (any shape, as stored).

        The fill value decodes to all ones: leave such pixels out. Raises ValueError as `decode_vi_quality` does.
        """
        bits = decode_vi_quality(vi_quality)
        broken = {flag: bits[flag] == 1 for flag in _FLAGS if not getattr(self, flag)}
        if self.max_usefulness is not None:
            broken["usefulness"] = bits["usefulness"] > self.max_usefulness
        if self.modland is not None:
            broken["modland"] = ~np.isin(bits["modland"], self.modland)
        if self.land_only:
            broken["land_only"] = bits["land_water"] != _LAND
        return broken


def decode_vi_quality(values: NDArray[np.uint16]) -> dict[str, NDArray[np.uint8]]:
    """The bit fields of VI Quality (any shape): modland, usefulness, aerosol, adjacent_cloud, brdf_corrected,
    mixed_clouds, land_water, snow, shadow, each uint8 of the same shape. Source: table of the MOD13 user guide,
    repeated in the Legend attribute of the SDS. The fill value 65535 decodes to all ones: mask it first.
    Raises ValueError for other dtypes, because signed integers shift wrongly.
    """
    if values.dtype != np.uint16:
        raise ValueError(f"VI Quality is uint16, found {values.dtype}; decode the stored values")
    return {
        name: (values >> lowest & (1 << bits) - 1).astype(np.uint8) for name, (lowest, bits) in _QUALITY_BITS.items()
    }
