"""How the machine is used: what is refused, what is warned of, and networks that are compiled in place."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

from sifscale import machine
from sifscale.config import ConfigError, Trainer
from sifscale.fitting import known_warnings
from sifscale.machine import compile_networks, compiler_failures_told, described, set_up, slowed_by
from sifscale.models.ensemble import Ensemble
from sifscale.models.mc_dropout import McDropout
from sifscale.models.unet import UNet
from sifscale.processes import available_cores

OPTIONS = Trainer.model_construct(accelerator="cpu", threads=0, channels_last=True, compile=True)


def unet(dropout: float = 0.0) -> UNet:
    return UNet(
        in_channels=2, factor=4, widths=(4,), bottleneck=4, norm="none", upsampling="bilinear",
        upsampling_relu=False, dropout=dropout, residual=True,
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "network": unet,
    "ensemble": lambda: Ensemble(unet, 2),
    "mc_dropout": lambda: McDropout(unet(0.5), 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_networks_are_compiled_in_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)  # and run it as it is: torch's own compiler takes a minute
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=count))
    torch.manual_seed(0)
    model, fields = MODELS[name]().eval(), (torch.rand(2, 2, 8, 8), torch.rand(2, 1, 8, 8))
    plain = copy.deepcopy(model)
    with known_warnings():
        compile_networks(model)
        found = model(*fields)
    assert graphs, "it was compiled"
    assert torch.equal(found, plain(*fields))
    assert list(model.state_dict()) == list(plain.state_dict()), "a checkpoint loads into networks that are not"
    assert torch.equal(copy.deepcopy(model)(*fields), found), "an average of weights begins with a copy"


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_compiling_without_a_compiler_is_refused_in_one_line(
    accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError) as refusal:
        set_up(OPTIONS.model_copy(update={"accelerator": accelerator}))
    (line,) = refusal.value.faults
    assert line.startswith("trainer.compile: must be false") and "'no-such-compiler'" in line
    set_up(OPTIONS.model_copy(update={"compile": False}))


def test_a_gpu_that_is_not_there_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"trainer\.accelerator: must be cpu or auto .* \(found 'gpu'\)"):
        set_up(OPTIONS.model_copy(update={"accelerator": "gpu"}))


def test_a_compiler_that_fails_is_told_in_one_line() -> None:
    def fails(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        raise RuntimeError("Python.h: no such file\nand more")

    network = unet()
    network.compile(backend=fails)
    with pytest.raises(ConfigError) as refusal, known_warnings(), compiler_failures_told():
        network(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8))
    (line,) = refusal.value.faults
    assert line.startswith("trainer.compile: ") and "Python.h: no such file; set it to false" in line
    assert isinstance(refusal.value.__context__, BackendCompilerFailed)


@pytest.mark.parametrize(
    ("variables", "threads", "parts"),
    [
        ({}, 4, []),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, 4, ["OMP_WAIT_POLICY=passive"]),
        ({"OMP_WAIT_POLICY": "active"}, 4, []),
        ({"GOMP_SPINCOUNT": "0"}, 4, ["GOMP_SPINCOUNT=0"]),
        ({"OMP_WAIT_POLICY": "passive"}, 1, []),
        ({}, 5, ["5 threads share 4 cores; set trainer.threads=4"]),
    ],
)
def test_settings_that_make_threads_sleep_are_warned_of(
    variables: dict[str, str], threads: int, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 4)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = slowed_by(threads)
    assert len(found) == len(parts) and all(part in line for part, line in zip(parts, found, strict=True))


def test_one_line_says_how_the_machine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    line = described(OPTIONS.model_copy(update={"compile": False}), "32-true")
    cores = available_cores()
    threads = "1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    assert line == f"cpu, {threads} on {cores} cores, 32-true, channels last, not compiled, OMP_WAIT_POLICY not set"
