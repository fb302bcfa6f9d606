"""Regridding against rioxarray (GDAL), as a user would call it: one MODIS tile, several layers, to 1 km Albers.

    python benchmarks/regrid.py [--layers 8] [--size 1200] [--rounds 7]

Prints the median over interleaved rounds of time(rioxarray) / time(sifscale), once with the plan made for every call
and once with the plan at hand (the case of many composites), and the differences where both have a value: first with
GDAL's default transformer (right to 0.125 px), then on strips four cells wide, for which it transforms every point.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rioxarray  # noqa: F401 (registers the accessor .rio)
import xarray as xr
from rasterio.enums import Resampling
from scipy import ndimage

from sifscale.grid import Grid
from sifscale.regrid import Resampler

SINUSOIDAL = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
PIXEL_M = 926.6254331
THEIRS = {"nearest": Resampling.nearest, "bilinear": Resampling.bilinear, "area": Resampling.average}


def as_xarray(grid: Grid, layers: np.ndarray[Any, Any]) -> xr.DataArray:
    """The layers (layer, y, x) as rioxarray wants them."""
    array = xr.DataArray(layers, {"y": grid.y, "x": grid.x}, ("layer", "y", "x"))
    array.rio.write_crs(grid.crs, inplace=True)
    array.rio.write_nodata(np.nan, inplace=True)
    return array


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(method: str, source: Grid, target: Grid, layers: np.ndarray[Any, Any], rounds: int) -> None:
    """Time and compare one method."""
    given, like = as_xarray(source, layers), as_xarray(target, np.zeros((1, target.height, target.width), np.float32))
    plan = Resampler(source, target, method)
    calls: dict[str, Callable[[], Any]] = {
        "rioxarray": lambda: given.rio.reproject_match(like, resampling=THEIRS[method], num_threads=1),
        "with plan": lambda: Resampler(source, target, method).apply(layers),
        "plan at hand": lambda: plan.apply(layers),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    ratios = {
        name: statistics.median(theirs / ours for theirs, ours in zip(times["rioxarray"], own, strict=True))
        for name, own in times.items()
    }
    print(f"{method}: rioxarray {statistics.median(times['rioxarray']):.3f} s", end="")
    print(f"; faster by {ratios['with plan']:.1f} with the plan made, {ratios['plan at hand']:.1f} with it at hand")
    ours = as_xarray(target, plan.apply(layers))
    report("default", [ours], [calls["rioxarray"]()])
    strips = [ours.isel(x=slice(column, column + 4)) for column in range(0, target.width - 4, target.width // 8)]
    # Without these scales GDAL widens the bilinear kernel where the target is coarser.
    options = {"resampling": THEIRS[method], "XSCALE": 1, "YSCALE": 1}
    report("exact", strips, [given.rio.reproject_match(strip, **options) for strip in strips])


def report(transformer: str, ours: list[xr.DataArray], theirs: list[xr.DataArray]) -> None:
    """Differences where both have a value, and how often only one has."""
    own, other = (np.concatenate([part.to_numpy() for part in parts], axis=-1) for parts in (ours, theirs))
    gap = np.abs(own - other)
    print(
        f"  {transformer} transformer: max difference {np.nanmax(gap):.3g}, median {np.nanmedian(gap):.2g}; "
        f"a value in one only: {np.mean(np.isfinite(own) != np.isfinite(other)):.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--size", type=int, default=1200, help="pixels along a side of the tile h11v04")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    source = Grid(SINUSOIDAL, -7783653.638, 5559752.599, PIXEL_M, PIXEL_M, args.size, args.size)
    side = int(args.size * PIXEL_M / 1000)
    target = Grid("EPSG:5070", -200e3, 2960e3, 1000.0, 1000.0, side, side)
    noise = np.random.default_rng(1).normal(size=(args.layers, args.size, args.size))
    layers = ndimage.gaussian_filter(noise, (0, 2, 2)).astype(np.float32)
    layers[:, ::37, ::11] = np.nan
    print(f"{args.layers} layers, {args.size} x {args.size} -> {side} x {side}")
    for method in THEIRS:
        compare(method, source, target, layers, args.rounds)


if __name__ == "__main__":
    main()
