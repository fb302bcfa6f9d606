"""In which numbers a network computes: what is said counts, and auto asks the processor."""

from __future__ import annotations

import pytest
import torch

from sifscale.precision import Precision, computed_in


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("accelerator", ["cpu", "gpu", "auto"])
def test_what_is_said_counts(precision: Precision, accelerator: str) -> None:
    assert computed_in(precision, accelerator) == precision


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16-mixed"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16-mixed"),
        ({"avx512_f": True, "avx512_bf16": False}, "32-true"),
        ({}, "32-true"),
    ],
)
def test_auto_asks_the_cpu(monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert computed_in("auto", "cpu") == computed_in("auto", "auto") == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert computed_in("auto", "cpu") == "32-true", "an older torch cannot tell"


@pytest.mark.parametrize(("able", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_asks_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, able: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    assert computed_in("auto", "gpu") == computed_in("auto", "auto") == expected
