"""Which process writes a run, so that another can tell when it is gone; what a process has used and may use."""

from __future__ import annotations

import os
import resource
import socket
import sys

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
