"""What passes between the command and the first training step, by part."""

from __future__ import annotations

import itertools
import time

_starts = itertools.count()  # of this process: the first one had Python and libraries to load


class Start:
    """A clock with a mark after each part: ``parts`` holds seconds by name, in the order in which they passed.

    ``processor_s``: what its threads worked in all parts together; far less where others used the machine.

    The first one of a process begins with the part ``command``: Python, Hydra and the configuration, in seconds of the
    processor, which are those of the clock where nothing else runs. Later ones (jobs of a sweep, folds) begin with
    themselves.
    """

    def __init__(self) -> None:
        self.parts: dict[str, float] = {} if next(_starts) else {"command": time.process_time()}
        self._since = time.perf_counter()
        self._worked_before = 0.0 if self.parts else time.process_time()
        self.processor_s = 0.0

    def mark(self, part: str) -> None:
        """The time since the last mark was ``part``; more of it, where it has been before."""
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._since
        self._since = now
        self.processor_s = time.process_time() - self._worked_before

    @property
    def total_s(self) -> float:
        """All parts together."""
        return sum(self.parts.values())

    def metrics(self) -> dict[str, float]:
        """What of it goes to MLflow: ``start/PART_s``, ``start/total_s`` and ``start/processor_s``."""
        parts = {f"start/{part}_s": seconds for part, seconds in self.parts.items()}
        return parts | {"start/total_s": self.total_s, "start/processor_s": self.processor_s}

    def __str__(self) -> str:
        parts = ", ".join(f"{part.replace('_', ' ')} {seconds:.1f}" for part, seconds in self.parts.items())
        return f"first training step after {self.total_s:.1f} s ({self.processor_s:.1f} of the processor): {parts}"
