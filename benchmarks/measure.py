"""How things are timed beside each other, and what a row of the table is."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from sifscale.processes import peak_memory_mb

SMALLEST_RUN_S = 0.05  # shorter runs are repeated until they take that long, so that the clocks can tell
PRELOADED = "sifscale.cross_validation"  # what every training run loads

Run = Callable[[], object]
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Setting:
    """How a stage is run: rounds; quick: tiny cases, once; scratch: a folder; data: where cubes of windows lie."""

    rounds: int
    quick: bool
    scratch: Path
    data: Path


@dataclass(frozen=True)
class Way:
    """A way to do it: a call, and how many items of the row's unit it works on.

    run: None where it is not installed. bar: ours shall be at least so many times as fast. agrees: whether its
    results are ours as far as they should be, None where that is not compared; note: what to say of them.
    """

    name: str
    run: Run | None
    items: float = 1.0
    bar: float | None = None
    agrees: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table: our value (a rate unless the unit says otherwise) beside a peer's.

    ratio: how many times as fast as the peer we are, the median over rounds, least and most beside it; per_core:
    the same of processor seconds, which other work on the machine disturbs less. at_least is the bar of the ratio,
    at_most that of the value. to_limit: our time over that of the least that must be done. seconds: of our run.
    """

    stage: str
    case: str
    value: float | None = None
    unit: str = ""
    peer: str = ""
    ratio: float | None = None
    least: float | None = None
    most: float | None = None
    per_core: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    to_limit: float | None = None
    peak_mb: float | None = None
    seconds: float | None = None
    agrees: bool | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one, or without what it is about."""
        if self.at_least is not None and self.ratio is not None:
            return self.ratio >= self.at_least
        if self.at_most is not None and self.value is not None:
            return self.value <= self.at_most
        return None


@dataclass
class Times:
    """Wall and processor seconds an item, round by round."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the wall seconds."""
        return float(np.median(self.wall))

    def over(self, other: Times) -> NDArray[np.float64]:
        """Ratio of wall seconds to those of another way in the same round (round,)."""
        ratios: NDArray[np.float64] = np.array(self.wall) / np.array(other.wall)
        return ratios


def interleaved(ways: Sequence[Way], setting: Setting) -> list[Times]:
    """Times of ways that take turns, so that a busy machine slows all of them.

    Unless it is to be quick, one turn each goes before, unmeasured, for caches and compilers.
    """
    found = [Times() for _ in ways]
    for number in range(setting.rounds if setting.quick else setting.rounds + 1):
        for way, times in zip(ways, found, strict=True):
            assert way.run is not None
            measured = setting.quick or number > 0
            wall, processor = _seconds(way.run, SMALLEST_RUN_S if measured and not setting.quick else 0.0)
            if measured:
                times.wall.append(wall / way.items)
                times.processor.append(processor / way.items)
    return found


def _seconds(run: Run, smallest_run_s: float) -> tuple[float, float]:
    wall, processor, times = time.perf_counter(), time.process_time(), 0
    while not times or time.perf_counter() - wall < smallest_run_s:
        run()
        times += 1
    return (time.perf_counter() - wall) / times, (time.process_time() - processor) / times


def compare(
    stage: str, case: str, unit: str, ours: Way, peers: Sequence[Way], setting: Setting, limit: Way | None = None
) -> list[Row]:
    """A row for each peer of a case, the first one for it all if there is none; rates are in ``unit``, items a second.

    Ours, the peers that are installed and the limit take turns in this process.
    """
    assert ours.run is not None
    peak_mb = peak_of(ours.run)
    there = [way for way in peers if way.run is not None]
    ways = [ours, *there, *([limit] if limit else [])]
    times = {way.name: taken for way, taken in zip(ways, interleaved(ways, setting), strict=True)}
    own = times[ours.name]
    common = Row(
        stage, case, 1 / own.median, unit,
        to_limit=float(np.median(own.over(times[limit.name]))) if limit else None,
        peak_mb=peak_mb, seconds=own.median * ours.items, agrees=ours.agrees, note=ours.note,
    )  # fmt: skip
    return [beside(common, way, times.get(way.name), own) for way in peers] or [common]


def beside(common: Row, peer: Way, theirs: Times | None, ours: Times) -> Row:
    """The row with what a peer is to it; ``theirs`` None: the peer is not installed."""
    values = vars(common) | {"peer": peer.name, "at_least": peer.bar}
    if theirs is None:
        return Row(**values | {"note": "not installed"})
    ratios = theirs.over(ours)
    agrees = [said for said in (common.agrees, peer.agrees) if said is not None]
    values |= {"ratio": float(np.median(ratios)), "least": float(ratios.min()), "most": float(ratios.max())}
    if ours.processor and np.median(ours.processor):  # else the work was done by other processes
        values["per_core"] = float(np.median(theirs.processor) / np.median(ours.processor))
    values |= {"agrees": all(agrees) if agrees else None}
    return Row(**values | {"note": "; ".join(note for note in (common.note, peer.note) if note)})


def peak_of(run: Run) -> float:
    """Most memory, MB, that this process holds at once while it runs (where the system cannot tell: since it began)."""
    with suppress(OSError):  # not Linux, or forbidden there
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: man 5 proc_pid_clear_refs
    run()
    return peak_memory_mb()


def fresh(function: Callable[_Args, _Result], *args: _Args.args, **kwargs: _Args.kwargs) -> tuple[_Result, float]:
    """What the function returns in a process of its own, which has its libraries loaded; and that one's peak, MB."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    with ProcessPoolExecutor(1, context) as process:
        call = process.submit(function, *args, **kwargs)
        return call.result(), process.submit(peak_memory_mb).result()
