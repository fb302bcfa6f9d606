"""What a model says of all tiles of a sample, on disk until a correction that needs all of them can be made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sifscale.conservation import Blocks, smooth_correction
from sifscale.tile_prediction import Layout, Said
from sifscale.tiles import Tile


class SaidTiles:
    """Tiles on disk by sample, for conservation=smooth: a tile is corrected by what is lacking in others as well.

    Memory goes by the tile, but for the correction, which holds some 30 values a coarse cell of one sample while it is
    made, one member after another. A tile is there as a whole or not at all, so that a stopped job can go on.
    """

    def __init__(self, folder: Path, layout: Layout, block_px: int) -> None:
        self._folder, self._tiles, self._block_px = folder, layout.tiles, block_px
        self._cells = layout.shape[0] // block_px, layout.shape[1] // block_px

    def has(self, sample: int, tile: Tile) -> bool:
        """Whether the tile is there."""
        return self._file(sample, tile).exists()

    def put(self, sample: int, tile: Tile, said: Said, blocks: Blocks) -> None:
        """Keep a tile; blocks: those of its core, for each member."""
        file = self._file(sample, tile)
        file.parent.mkdir(parents=True, exist_ok=True)
        fields: dict[str, NDArray[np.generic]] = {"raw": said.raw, "coarse": said.coarse, "quality": said.quality}
        for name in ("lacking", "counts", "edges", "has_edges"):
            fields[name] = getattr(blocks, name).numpy()
        partly = (blocks.counts > 0) & (blocks.counts < self._block_px**2)
        if blocks.masks is not None and partly.any():
            fields["masks"] = blocks.masks.numpy()
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, **fields)  # type: ignore[arg-type]  # none of them is its option allow_pickle
        partial.replace(file)

    def said(self, sample: int, tile: Tile) -> Said | None:
        """What the model says of a tile; None where it was not asked, as there was no SIF."""
        if not self.has(sample, tile):
            return None
        with np.load(self._file(sample, tile)) as kept:
            return Said(kept["raw"], kept["coarse"], kept["quality"])

    def correct(self, sample: int) -> None:
        """Make the correction of a sample of which all tiles are there that will be, unless it has been made."""
        file = self._correction(sample)
        tiles = [tile for tile in self._tiles if self.has(sample, tile)]
        if not tiles or file.exists():
            return
        with np.load(self._file(sample, tiles[0])) as kept:
            members = len(kept["lacking"])
        partial = file.with_suffix(".partial.npy")
        shape = (members, 2, self._cells[0] + 2, self._cells[1] + 2)
        made = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float64, shape=shape)
        for member in range(members):
            (made[member],) = smooth_correction(self._blocks(sample, tiles, member), self._block_px).numpy()
        made.flush()
        partial.replace(file)

    def correction(self, sample: int, tile: Tile) -> Tensor:
        """What `TilePredictor.finish` takes, once the correction is made."""
        rows, columns = self._part(tile)
        wide = np.load(self._correction(sample), mmap_mode="r")
        part = wide[..., rows.start : rows.stop + 2, columns.start : columns.stop + 2]
        return torch.from_numpy(np.array(part))

    def drop(self, sample: int) -> None:
        """Forget a sample, whose map is complete."""
        shutil.rmtree(self._folder / str(sample), ignore_errors=True)

    def _blocks(self, sample: int, tiles: Sequence[Tile], member: int) -> Blocks:
        """Blocks of the whole sample for one member; those of tiles that are not there lack nothing."""
        fields: dict[str, NDArray[np.float64]] = {}
        for tile in tiles:
            with np.load(self._file(sample, tile)) as kept:
                for name in ("lacking", "counts", "edges", "has_edges", "masks"):
                    if name in kept:
                        values = kept[name]
                        if name not in fields:
                            fields[name] = np.zeros((1, values.shape[1], *self._cells))
                        fields[name][..., *self._part(tile)] = values[member if len(values) > 1 else 0]
        found = {name: torch.from_numpy(values) for name, values in fields.items()}
        return Blocks(found["lacking"], found["counts"], found.get("masks"), found["edges"], found["has_edges"])

    def _part(self, tile: Tile) -> tuple[slice, slice]:
        """The core in coarse cells."""
        rows, columns = (slice(core.start // self._block_px, core.stop // self._block_px) for core in tile.core)
        return rows, columns

    def _file(self, sample: int, tile: Tile) -> Path:
        return self._folder / str(sample) / f"{tile.core[0].start}_{tile.core[1].start}.npz"

    def _correction(self, sample: int) -> Path:
        return self._folder / str(sample) / "correction.npy"
