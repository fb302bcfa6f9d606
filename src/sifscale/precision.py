"""In which numbers a network computes on the machine at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch

from sifscale.machine import uses_cuda

Precision: TypeAlias = Literal["32-true", "bf16-mixed", "16-mixed"]


def computed_in(precision: Literal["auto"] | Precision, accelerator: str) -> Precision:
    """Lightning's name of what ``trainer.precision=auto`` stands for on this machine; any other is returned as it is.

    bf16-mixed where the processor multiplies bfloat16 by itself (CPUs with AVX-512 BF16 or AMX, NVIDIA GPUs from Ampere
    on): a U-Net then trains about twice as fast, to scores that differ less than those of two seeds. 32-true elsewhere,
    where it would be emulated and slower. accelerator: cpu, gpu or auto, as in the configuration.
    """
    if precision != "auto":
        return precision
    if uses_cuda(accelerator):
        half = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.9 cannot tell
        half = accelerator != "gpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return "bf16-mixed" if half else "32-true"


def computed_in_words(precision: Literal["auto"] | Precision, accelerator: str) -> str:
    """What `computed_in` returns, with the reason where it was this machine."""
    found = computed_in(precision, accelerator)
    if precision != "auto":
        return found
    multiplies = "multiplies bfloat16" if found == "bf16-mixed" else "does not multiply bfloat16"
    return f"{found} (auto: the {'GPU' if uses_cuda(accelerator) else 'processor'} {multiplies} by itself)"
