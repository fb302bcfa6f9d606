"""How time and memory grow with the area and the number of composites: building, LBP features, an epoch of training."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Row, Setting, fresh
from benchmarks.training import NETWORK, QUICK, RATE, places, run_config, trained
from sifscale.training import prepare_features
from sifscale.windows import build_cube, build_raw, open_or_build

ROUNDS = 3
SLOPE_BAR = 1.0  # twice as much takes at most twice as long
MEMORY_BAR = 1.1  # of the peak, from the smallest to the largest
GROWING, QUICK_GROWING = (1, 2, 4), (1, 2)  # times the smallest area, and composites
SIDES_M, QUICK_SIDES_M = (512_000, 384_000), (192_000, 192_000)  # of the smallest area, to the east and to the north
SOUTH_WEST_M = (-60_000, 2_466_000)  # EPSG:5070, in Minnesota
ENDS = {1: "2019-05-24", 2: "2019-06-09", 4: "2019-07-11"}  # of periods that hold so many composites
LBP = ("features=lbp", "features.bands=[coarse]")


@dataclass(frozen=True)
class Size:
    """How many times the smallest area, and how many composites."""

    area: int
    composites: int

    def words(self, setting: Setting) -> list[str]:
        """The window of this size, its crops as many as fit its area, and where everything lies."""
        width, height = QUICK_SIDES_M if setting.quick else SIDES_M
        west, south = SOUTH_WEST_M
        east, north = west + width * min(self.area, 2), south + height * max(self.area // 2, 1)
        window = [
            f"window.name=growth_{self.area}_{self.composites}",
            f"window.grid.bounds=[{west}.0,{south}.0,{east}.0,{north}.0]",
            f"window.period.end={ENDS[self.composites]}",
            "window.tile_px=256",  # what the smallest window is larger than: memory goes by tile
        ]
        crops = f"crop.number={(8 if setting.quick else 64) * self.area}"
        return [*(QUICK if setting.quick else NETWORK), *window, crops, *places(setting, setting.scratch / "growth")]


Measure = Callable[[Setting, Size], tuple[float, float]]  # seconds and peak memory, MB


def building(setting: Setting, size: Size) -> tuple[float, float]:
    """Raw files to the cube.

    The process that simulates them, in the first round, needs more memory: the median of the rounds leaves it out.
    """
    return fresh(_build, size.words(setting))


def _build(words: Sequence[str]) -> float:
    config = run_config(words)
    build_raw(config)
    start = time.perf_counter()
    build_cube(config)
    return time.perf_counter() - start


def lbp_features(setting: Setting, size: Size) -> tuple[float, float]:
    """LBP planes of the fine grid into a store."""
    return fresh(_features, setting, size)


def _features(setting: Setting, size: Size) -> float:
    run = run_config([*size.words(setting), *LBP])
    cube = open_or_build(run)
    for old in setting.data.glob("features_*.zarr"):
        shutil.rmtree(old)
    start = time.perf_counter()
    prepare_features(run, cube)
    return time.perf_counter() - start


def epoch(setting: Setting, size: Size) -> tuple[float, float]:
    """An epoch of ``train.py``, by the rate that it logs."""
    run = trained(setting, f"epoch_{size.area}_{size.composites}_{time.time_ns()}", size.words(setting))
    return run.crops / run.metrics[RATE], run.peak_mb


MEASURES: dict[str, Measure] = {"build": building, "LBP features": lbp_features, "training epoch": epoch}


def rows(setting: Setting) -> Iterator[Row]:
    """Slope of time and growth of the peak; sizes take turns, each in a process of its own."""
    setting = replace(setting, data=setting.scratch / "data")  # feature cubes there are removed
    growing = QUICK_GROWING if setting.quick else GROWING
    series = {"area": [Size(n, 1) for n in growing]}
    if not setting.quick:
        series["composites"] = [Size(1, n) for n in growing]
    sizes = dict.fromkeys(itertools.chain(*series.values()))
    # The stage of training has run train.py already.
    for name, measure in list(MEASURES.items())[:2] if setting.quick else MEASURES.items():
        found: dict[Size, list[tuple[float, float]]] = {size: [] for size in sizes}
        for _ in range(1 if setting.quick else ROUNDS):
            for size in sizes:
                found[size].append(measure(setting, size))
        for kind, of_kind in series.items():
            seconds, peaks_mb = np.median([found[size] for size in of_kind], axis=1).T
            yield from slopes(f"{name}, {kind} x {', '.join(map(str, growing))}", seconds, peaks_mb)


def slopes(case: str, seconds: NDArray[np.float64], peaks_mb: NDArray[np.float64]) -> Iterator[Row]:
    """Two rows of a series of sizes, each twice the one before: log2 of how time grows, and growth of the peak."""
    found = np.diff(np.log2(seconds))
    times = ", ".join(f"{one:.2f}" for one in seconds)
    each = ", ".join(f"{one:.2f}" for one in found)
    memory = ", ".join(f"{one:.0f}" for one in peaks_mb)
    yield Row(
        "growth", case, float(found.mean()), "log2(time at 2x / time)", at_most=SLOPE_BAR, peak_mb=float(peaks_mb[-1]),
        seconds=float(seconds[-1]), note=f"{times} s; slopes {each}",
    )  # fmt: skip
    ratio = float(peaks_mb[-1] / peaks_mb[0])
    yield Row("growth", f"{case}: peak memory", ratio, "x the first's", at_most=MEMORY_BAR, note=f"{memory} MB")
