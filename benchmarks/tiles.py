"""A map made by tiles beside the same field in one piece: time and bits; and its memory, by size of the field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Row, Setting, Way, compare, fresh
from benchmarks.prediction import CHANNELS, FACTOR, memory, predictor
from sifscale.tile_fields import TileFields
from sifscale.tile_prediction import TilePredictor

Field = NDArray[np.float32]

SIZE_PX, CORE_PX = 2048, 1024
QUICK_SIZE_PX, QUICK_CORE_PX = 128, 64
GROWTH = 4  # of the edge of the field, for memory
TIME_BAR = 1 / 1.15  # beside the whole field
MEMORY_BAR = 1.05  # of the peak, whatever the size: that it is constant


def example(size: int) -> tuple[Field, Field]:
    """Noise: predictors (channel, size, size) and a coarse field (size, size)."""
    generator = np.random.default_rng(0)
    predictors = generator.normal(size=(len(CHANNELS), size, size)).astype(np.float32)
    cells = generator.normal(size=(size // FACTOR, size // FACTOR)).astype(np.float32)
    return predictors, cells.repeat(FACTOR, 0).repeat(FACTOR, 1)


def mapped(model: TilePredictor, predictors: Field, coarse: Field, tile_px: int) -> Field:
    """What the network says of the field (size, size), tile by tile."""
    found = np.empty_like(coarse)
    for tile in model.layout((len(coarse), len(coarse)), tile_px).tiles:
        cut = TileFields(predictors[:, *tile.window], coarse[tile.window], np.ones(tile.shape, bool))
        found[tile.core] = model.raw([cut])[0, 0, 0].numpy()[tile.inner]
    return found


def peak_of_map(size: int, core: int) -> float:
    """Peak memory, MB, of a process that maps a cube of this edge from disk into a store."""
    return fresh(_silent, size, core)[1]


def _silent(size: int, core: int) -> None:
    with redirect_stdout(None):
        memory(size, core)


def rows(setting: Setting) -> Iterator[Row]:
    """Time, then memory."""
    size, core = (QUICK_SIZE_PX, QUICK_CORE_PX) if setting.quick else (SIZE_PX, CORE_PX)
    model, fields = predictor(), example(size)
    same = np.array_equal(mapped(model, *fields, core), mapped(model, *fields, size))
    whole = Way("whole field", partial(mapped, model, *fields, size), size**2 / 1e6, TIME_BAR, same, "same bits" * same)
    ours = Way("ours", partial(mapped, model, *fields, core), size**2 / 1e6)
    yield from compare("tiles", f"{size} x {size} px in tiles of {core}", "Mpx/s", ours, [whole], setting)
    if setting.quick:  # a map from disk takes seconds, however small
        return
    large = size * GROWTH
    peaks = [peak_of_map(edge, core) for edge in (size, large)]
    case = f"peak memory of a map, {size} x {size} to {large} x {large} px, tiles of {core}"
    note = ", ".join(f"{peak:.0f}" for peak in peaks) + " MB"
    yield Row("tiles", case, peaks[1] / peaks[0], "x the first's", at_most=MEMORY_BAR, peak_mb=peaks[1], note=note)
