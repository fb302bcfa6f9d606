"""VI Quality: bits as the table of the product has them, and rules as a slow reading of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sifscale.sources.vi_quality import VegetationQuality, decode_vi_quality

# First and last bit of each field, bit 0 the least significant.
TABLE = {
    "modland": (0, 1), "usefulness": (2, 5), "aerosol": (6, 7), "adjacent_cloud": (8, 8), "brdf_corrected": (9, 9),
    "mixed_clouds": (10, 10), "land_water": (11, 13), "snow": (14, 14), "shadow": (15, 15),
}  # fmt: skip
FLAGS = ("adjacent_cloud", "mixed_clouds", "snow", "shadow")
RULES = st.builds(
    VegetationQuality,
    reliability=st.none(),
    max_usefulness=st.none() | st.integers(0, 15),
    modland=st.none() | st.lists(st.integers(0, 3), min_size=1, unique=True).map(tuple),
    land_only=st.booleans(),
    **{flag: st.booleans() for flag in FLAGS},
)


def fields(value: int) -> dict[str, int]:
    """The fields of one value, from the text of its bits."""
    text = f"{value:016b}"  # bit 0 is the last character
    return {name: int(text[15 - last : 16 - first], 2) for name, (first, last) in TABLE.items()}


@given(value=st.integers(0, 65535))
def test_quality_bits_are_those_of_the_table_read_from_the_right(value: int) -> None:
    bits = decode_vi_quality(np.array([value], np.uint16))
    assert {name: int(found[0]) for name, found in bits.items()} == fields(value)


def test_signed_quality_is_refused() -> None:
    with pytest.raises(ValueError, match="uint16, found int16"):
        decode_vi_quality(np.array([-1], np.int16))


@given(rules=RULES, values=st.lists(st.integers(0, 65535), min_size=1))
def test_a_pixel_breaks_the_rules_that_a_slow_reading_of_the_table_says(
    rules: VegetationQuality, values: list[int]
) -> None:
    broken = rules.broken_by_bits(np.array(values, np.uint16))
    assert rules.reads_bits == bool(broken)
    for index, value in enumerate(values):
        found = fields(value)
        expected = {flag for flag in FLAGS if found[flag] and not getattr(rules, flag)}
        if rules.max_usefulness is not None and found["usefulness"] > rules.max_usefulness:
            expected.add("usefulness")
        if rules.modland is not None and found["modland"] not in rules.modland:
            expected.add("modland")
        if rules.land_only and found["land_water"] != 1:
            expected.add("land_only")
        assert {rule for rule, pixels in broken.items() if pixels[index]} == expected


@pytest.mark.parametrize(
    "rules", [{"reliability": (4,)}, {"reliability": ()}, {"max_usefulness": 16}, {"modland": (-1,)}]
)
def test_rules_that_no_pixel_can_have_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(rules))} takes values from 0 to"):
        VegetationQuality(**rules)
