"""Which process writes a run, so that another sees when it is gone; signals; what a process has used and may use."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

CLOCK_S = 5.0  # a process's start, counted from that of the machine, moves with corrections of the clock


def this_process() -> str:
    """Host, number and start (Unix time in s) of this process, as text."""
    process = psutil.Process()
    return f"{socket.gethostname()} {process.pid} {process.create_time():.2f}"


def has_gone(name: str) -> bool:
    """Whether a process named by :func:`this_process` is known to have ended; of another machine nothing is known."""
    try:
        host, number, start = name.split(" ")
        if host != socket.gethostname():
            return False
        process = psutil.Process(int(number))
        other = abs(process.create_time() - float(start)) > CLOCK_S
        return bool(other or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except ValueError:  # not written by us
        return False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM that come in the block act at its end, a second one at once.

    For blocks that must not be left halfway. In threads other than the main one, which alone handles signals, and for
    signals without a handler of Python nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    both = signal.SIGINT, signal.SIGTERM
    handlers = {number: handler for number in both if callable(handler := signal.getsignal(number))}
    waiting: list[int] = []

    def later(number: int, frame: FrameType | None) -> None:
        if waiting:
            waiting.clear()
            handlers[signal.Signals(number)](number, frame)
        else:
            waiting.append(number)

    try:
        for number in handlers:
            signal.signal(number, later)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for arrived in waiting:
            signal.raise_signal(arrived)


def peak_memory_mb() -> float:
    """Most memory that this process has held at once since it began, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3  # bytes there, kB elsewhere


def available_cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_children() -> None:
    """End all processes that this one has started, and theirs."""
    started = psutil.Process().children(recursive=True)
    for process in started:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(started, timeout=5)
