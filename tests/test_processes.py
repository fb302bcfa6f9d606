"""Which process writes a run; blocks that a signal must not leave halfway."""

from __future__ import annotations

import signal
import threading

import pytest

from sifscale import processes


def test_a_process_is_told_from_one_that_has_its_number_now() -> None:
    host, number, start = processes.this_process().split()
    assert not processes.has_gone(f"{host} {number} {start}")
    assert processes.has_gone(f"{host} {number} {float(start) - 100:.2f}")
    assert not processes.has_gone("written by somebody else")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_a_block(number: signal.Signals) -> None:
    said: list[str] = []
    before = signal.signal(number, lambda *_: said.append("signal"))
    try:
        with processes.uninterrupted():
            signal.raise_signal(number)
            said.append("block")
        assert said == ["block", "signal"]
        with processes.uninterrupted():
            signal.raise_signal(number)
            signal.raise_signal(number)
            said.append("after the second")
        assert said[2:] == ["signal", "after the second"], "and not a third time at the end"
        signal.raise_signal(number)
        assert said[-1] == "signal", "as it was"
    finally:
        signal.signal(number, before)


def test_a_signal_comes_after_an_error_in_the_block_and_threads_are_left_alone() -> None:
    with pytest.raises(KeyboardInterrupt) as stop, processes.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        raise OSError("disk full")
    assert isinstance(stop.value.__context__, OSError)

    handlers: list[object] = []

    def block() -> None:
        with processes.uninterrupted():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
