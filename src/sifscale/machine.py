"""How the machine at hand is used: threads, the compiler, and what the log says of them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed  # torch offers it nowhere else

from sifscale.config import ConfigError, Trainer
from sifscale.models.ensemble import Ensemble
from sifscale.models.mc_dropout import McDropout
from sifscale.processes import available_cores

CXX = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")  # that torch takes unless the variable CXX says


def uses_cuda(accelerator: str) -> bool:
    """Whether Lightning trains on an NVIDIA GPU here; accelerator: cpu, gpu or auto, as in the configuration."""
    return accelerator != "cpu" and torch.cuda.is_available()


def set_up(options: Trainer) -> None:
    """Set threads; ConfigError where options ask for a GPU or a compiler that this machine does not have."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ConfigError(["trainer.accelerator: must be cpu or auto where torch finds no GPU (found 'gpu')"])
    command = os.environ.get("CXX") or CXX
    if options.compile and not uses_cuda(options.accelerator) and not shutil.which(command):
        raise ConfigError(
            [
                f"trainer.compile: must be false where there is no C++ compiler, and '{command}' is none; install it, "
                "or name another in the environment variable CXX (found True)"
            ]
        )


def compile_networks(model: nn.Module) -> None:
    """Have torch compile each network of a model when it is first called, in place: names of weights stay."""
    networks = [model]
    if isinstance(model, Ensemble):
        networks = list(model.members)
    elif isinstance(model, McDropout):
        networks = [model.network]
    for network in networks:
        network.compile()


@contextmanager
def compiler_failures_told() -> Iterator[None]:
    """What keeps torch from compiling a network in this block, as ConfigError in one line."""
    try:
        yield
    except BackendCompilerFailed as error:
        (line, *_) = str(error.inner_exception).splitlines() or [""]
        raise ConfigError(
            [f"trainer.compile: torch cannot compile the network here, {line}; set it to false (found True)"]
        ) from None


def described(options: Trainer, computed: str) -> str:
    """Device, threads, numbers (``computed``, with the reason where it was not given), memory layout and compiling."""
    threads = torch.get_num_threads()
    device = torch.cuda.get_device_name() if uses_cuda(options.accelerator) else options.accelerator
    layout = "channels last" if options.channels_last else "channels first"
    compiled = "compiled (the first steps wait for that)" if options.compile else "not compiled"
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    used = f"{threads} thread{'s' * (threads > 1)} on {available_cores()} cores"
    return f"{device}, {used}, {computed}, {layout}, {compiled}, OMP_WAIT_POLICY {policy}"


def slowed_by(threads: int) -> list[str]:
    """One line for each setting of OpenMP that makes many short tasks slow, as those of a network are.

    Threads that sleep between two tasks must be woken for each. They spin for a while first, unless OMP_WAIT_POLICY or
    GOMP_SPINCOUNT forbid it, or there are more of them than cores (gcc.gnu.org/onlinedocs/libgomp, GOMP_SPINCOUNT).
    OpenMP reads the variables when torch is loaded: they cannot be changed from here.
    """
    if threads == 1:
        return []
    found = []
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        found.append("OMP_WAIT_POLICY=passive sends threads to sleep between two tasks; unset it")
    if os.environ.get("GOMP_SPINCOUNT", "") == "0":
        found.append("GOMP_SPINCOUNT=0 sends threads to sleep between two tasks; unset it")
    if threads > available_cores():
        found.append(f"{threads} threads share {available_cores()} cores; set trainer.threads={available_cores()}")
    return [f"training may take many times as long: {line}" for line in found]
