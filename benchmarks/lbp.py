"""Time LBP against scikit-image, mahotas and a copy of the field, and check that the codes are scikit-image's.

    python benchmarks/lbp.py [--methods default uniform] [--rounds 5] [--json PATH]

Runs of a row are interleaved, so that a busy machine slows all of them. `ratio` is the median over rounds of
time(scikit-image) / time(ours), with the least and the most beside it; `per core` is the same of processor seconds,
which other work on the machine disturbs less: times the number of threads it is about what idle cores give. `mahotas`
is time(mahotas) / time(ours), for `ror`, all it has, where it is installed (it interpolates otherwise: other codes).
`limit` is time(ours) / time(copy of the field). Ours on one thread is called in a worker thread, as Dask does it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import local_binary_pattern

from sifscale import lbp
from sifscale.lbp_kernels import METHODS

SHAPES = ((1, 2048, 2048), (32, 64, 64))
CIRCLES = ((8, 1.0), (24, 3.0))
GROWTH_PX = (512, 1024, 2048, 4096)
SMALLEST_RUN_S = 0.05

Run = Callable[[], Any]


def field_of(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Smooth noise (layer, y, x)."""
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(noise, (0, 2, 2))
    return smooth


def by_scikit_image(field: NDArray[np.float32], points: int, radius: float, method: str) -> NDArray[np.float64]:
    untyped: Any = local_binary_pattern
    return np.stack([untyped(layer, points, radius, method) for layer in field])


def by_mahotas(field: NDArray[np.float32], points: int, radius: float) -> NDArray[np.float64]:
    from mahotas.features.lbp import lbp_transform

    return np.stack([lbp_transform(layer, radius, points, preserve_shape=True) for layer in field])


def seconds(run: Run) -> tuple[float, float]:
    """Wall and processor seconds of a run, repeated until the clocks can tell."""
    wall, processor, times = time.perf_counter(), time.process_time(), 0
    while not times or time.perf_counter() - wall < SMALLEST_RUN_S:
        run()
        times += 1
    return (time.perf_counter() - wall) / times, (time.process_time() - processor) / times


def interleaved(runs: dict[str, Run], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Wall and processor seconds (round, 2) of each run."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: np.array(taken) for name, taken in times.items()}


def is_equal(field: NDArray[np.float32], points: int, radius: float, method: str) -> bool:
    """Codes of scikit-image in every pixel, and a mask that leaves out a frame as wide as the radius."""
    found, valid = lbp.codes(field, points, radius, method)
    edge = lbp.halo_px(radius)
    inside = np.zeros_like(valid)
    inside[:, edge:-edge, edge:-edge] = True
    same = np.array_equal(found.astype(np.float64), by_scikit_image(field, points, radius, method), equal_nan=True)
    return same and np.array_equal(valid, inside)


def row_of(
    field: NDArray[np.float32], circle: tuple[int, float], method: str, pool: ThreadPoolExecutor, rounds: int
) -> dict[str, Any]:
    """One row of the table."""
    ours = partial(lbp.codes, field, *circle, method)
    equal = is_equal(field, *circle, method)  # compiles, or loads what was compiled before
    runs: dict[str, Run] = {
        "ours": ours,
        "one": lambda: pool.submit(ours).result(),
        "scikit-image": partial(by_scikit_image, field, *circle, method),
        "copy": field.copy,
    }
    if method == "ror" and importlib.util.find_spec("mahotas"):
        runs["mahotas"] = partial(by_mahotas, field, *circle)
    times = interleaved(runs, rounds)
    ratios = {name: times["scikit-image"] / times[name] for name in ("ours", "one")}
    wall = {name: float(np.median(taken[:, 0])) for name, taken in times.items()}
    return {
        "field": " x ".join(str(size) for size in field.shape if size > 1),
        "points": circle[0],
        "radius_px": circle[1],
        "method": method,
        "mpix_per_s": field.size / wall["ours"] / 1e6,
        "scikit_image_mpix_per_s": field.size / wall["scikit-image"] / 1e6,
        "ratio": float(np.median(ratios["ours"][:, 0])),
        "ratio_least": float(ratios["ours"][:, 0].min()),
        "ratio_most": float(ratios["ours"][:, 0].max()),
        "ratio_one_thread": float(np.median(ratios["one"][:, 0])),
        "ratio_per_core": float(np.median(ratios["ours"][:, 1])),
        "ratio_mahotas": wall["mahotas"] / wall["ours"] if "mahotas" in wall else None,
        "limit": wall["ours"] / wall["copy"],
        "equal": equal,
    }


def growth_of(circle: tuple[int, float], rounds: int) -> dict[str, Any]:
    """Slope of log(processor seconds) over log(area): 1 where twice the area takes twice the time."""
    fields = {size: field_of((1, size, size)) for size in GROWTH_PX}
    runs: dict[str, Run] = {str(size): partial(lbp.codes, field, *circle, "uniform") for size, field in fields.items()}
    times = interleaved(runs, rounds)
    taken = [statistics.median(times[str(size)][:, 1]) for size in GROWTH_PX]
    slope = np.polyfit(np.log([size**2 for size in GROWTH_PX]), np.log(taken), 1)[0]
    return {"points": circle[0], "radius_px": circle[1], "sizes_px": GROWTH_PX, "slope": float(slope)}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_of(shape: tuple[int, int, int]) -> dict[str, float]:
    """Peak memory of a process of its own, with a field and what was compiled in it, before and after its codes."""
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    lbp.codes(noise[..., :9, :9], *CIRCLES[-1], "uniform")
    before = peak_mb()
    lbp.codes(noise, *CIRCLES[-1], "uniform")
    return {"before_mb": before, "after_mb": peak_mb()}


def show(row: dict[str, Any]) -> None:
    mahotas = "-" if row["ratio_mahotas"] is None else f"{row['ratio_mahotas']:.1f}"
    spread = f"{row['ratio_least']:.0f}-{row['ratio_most']:.0f}"
    print(
        f"{row['field']:12} P{row['points']:<2} R{row['radius_px']:<3g} {row['method']:12}{row['mpix_per_s']:8.1f}"
        f"{row['scikit_image_mpix_per_s']:9.2f}{row['ratio']:8.1f} {spread:>8}{row['ratio_one_thread']:8.1f}"
        f"{row['ratio_per_core']:9.1f}{mahotas:>9}{row['limit']:7.1f}  {'equal' if row['equal'] else 'OTHER CODES'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, found {options.rounds}")
    # It advises against floating images because ties are fragile; here they fall as its own do.
    warnings.filterwarnings("ignore", "Applying `local_binary_pattern` to floating-point", UserWarning)
    fields = {shape: field_of(shape) for shape in SHAPES}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        memory = process.submit(memory_of, SHAPES[0]).result()
    print(f"{len(os.sched_getaffinity(0))} cores; medians of {options.rounds} interleaved rounds")
    print(f"{'field':12} circle  {'method':12} Mpix/s  skimage   ratio   spread  one thr per core  mahotas  limit")
    rows = []
    with ThreadPoolExecutor(1) as pool:
        for field in fields.values():
            for circle in CIRCLES:
                for method in options.methods:
                    rows.append(row_of(field, circle, method, pool, options.rounds))
                    show(rows[-1])
    growth = [growth_of(circle, options.rounds) for circle in CIRCLES]
    for found in growth:
        name = f"P{found['points']} R{found['radius_px']:g}"
        print(f"growth {name}: area to the power of {found['slope']:.2f}, {GROWTH_PX[0]} to {GROWTH_PX[-1]} px")
    print(f"peak memory: {memory['before_mb']:.0f} MB, after 2048 x 2048 {memory['after_mb']:.0f} MB")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "growth": growth, "memory": memory}, indent=1) + "\n")


if __name__ == "__main__":
    main()
