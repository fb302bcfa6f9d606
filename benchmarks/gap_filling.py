"""How well fill_gaps does: native cells of a simulation are hidden, filled, and compared with the truth.

    python benchmarks/gap_filling.py RUN CUBE [--cells 3] [--share 0.2] [--seed 0]

RUN: folder or checkpoint of a run that can map the fine grid of CUBE, which knows ``sif_truth``. Squares of --cells x
--cells native cells are hidden at random until --share of the cells is; cells are as far from the next observed one as
that makes them. Prints RMSE against the truth, over fine pixels, of the hidden cells: of the map, and of the SIF of the
nearest observed cell; and of the same cells when they are not hidden, which is what filling costs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sifscale.checkpoints import Checkpoint, load_checkpoint
from sifscale.config import Tracking
from sifscale.cube import Cube, open_cube
from sifscale.grid import block_repeat, fill_nearest
from sifscale.tile_fields import FieldSource, training_sections
from sifscale.tile_prediction import TilePredictor

Field = NDArray[np.floating]


def hidden_cells(shape: tuple[int, int], cells: int, share: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Squares at random places, (y, x), until ``share`` of the field is hidden."""
    hidden = np.zeros(shape, bool)
    while hidden.mean() < share:
        y, x = (int(random.integers(0, size - cells + 1)) for size in shape)
        hidden[y : y + cells, x : x + cells] = True
    return hidden


def mapped(found: Checkpoint, cube: Cube, sample: int) -> Field:
    """The map of a sample's fine grid with its gaps filled, (y, x)."""
    spec = found.task.spec
    assert spec.origin is not None
    sections = training_sections(spec.origin.features, spec.origin.coarse)
    source = FieldSource(cube, *sections, spec.channels, spec.target, fine=True)
    predictor = TilePredictor(found.task, conservation=spec.conservation, fill_gaps=True)
    layout = predictor.layout(source.shape, 1024)
    values = np.full(layout.shape, np.nan)
    for tile in layout.tiles:
        fields = source.read(sample, tile.window)
        values[tile.core] = predictor.finish(predictor.say(predictor.raw([fields])[:, 0], fields, tile)).values
    return values[: source.shape[0], : source.shape[1]]


def compare(found: Checkpoint, cube: Cube, cells: int, share: float, seed: int) -> dict[str, float]:
    """RMSE over the fine pixels of hidden cells of all samples, in the units of the target."""
    assert cube.fine is not None
    random = np.random.default_rng(seed)
    errors: dict[str, list[Field]] = {"map": [], "nearest cell": [], "map, not hidden": []}
    for sample in range(cube.native.sizes["sample"]):
        sif = cube.native["sif"].isel(sample=sample).values
        truth = cube.fine["sif_truth"].isel(sample=sample).values
        factor = truth.shape[0] // sif.shape[0]
        hidden = hidden_cells(sif.shape, cells, share, random)
        seen = np.where(hidden, np.nan, sif)
        kept = cube.native["sif"].copy(data=cube.native["sif"].values)
        kept[sample] = seen
        holed = replace(cube, native=cube.native.assign(sif=kept))
        maps = {"map": mapped(found, holed, sample), "map, not hidden": mapped(found, cube, sample)}
        maps["nearest cell"] = block_repeat(fill_nearest(seen), factor, *truth.shape)
        scored = block_repeat(hidden & np.isfinite(sif), factor, *truth.shape) & np.isfinite(truth)
        scored &= np.isfinite(maps["map"]) & np.isfinite(maps["map, not hidden"])
        for name, values in maps.items():
            errors[name].append((values - truth)[scored])
    return {name: float(np.sqrt(np.mean(np.concatenate(parts) ** 2))) for name, parts in errors.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("cube", type=Path)
    parser.add_argument("--cells", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    nowhere = Tracking(uri="sqlite://", experiment="none", artifacts="none")
    checkpoint = load_checkpoint(options.run, nowhere)
    rmse = compare(checkpoint, open_cube(options.cube), options.cells, options.share, options.seed)
    side = f"{options.cells} x {options.cells} cells hidden"
    print(side + ": " + ", ".join(f"{name} {value:.4f}" for name, value in rmse.items()))
