"""How far a model reads around a pixel, found out with NaN, which every operation that reads it hands on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LARGEST_PX = 2048  # a model that reads further than half of this is taken for one that reads everything
AT_ONCE = 16  # inputs in one pass of the model


@dataclass(frozen=True)
class Reach:
    """Pixels beyond a part of a field, in each direction, that its prediction depends on.

    For parts that begin and end at multiples of a step: a part that begins elsewhere in a coarse block or pooled pixel
    may read further.
    """

    up: int
    down: int
    left: int
    right: int


def find_reach(model: nn.Module, channels: int, block_px: int, step_px: int) -> Reach | None:
    """The reach of ``model`` (see `models`); None where it is not local, as with statistics of the whole input.

    channels: predictors. block_px: edge of coarse blocks. step_px: a multiple of it and of what pooling needs: how a
    pixel is read depends on where in such a step it lies, so that each place is tried. Parts that begin and end at
    multiples of it are what the reach is for. A row of NaN is put into a
    narrow field, and the rows with NaN in the output are those that read it; then likewise columns. What is read with
    the weight 0 counts. The coarse field is tried in whole blocks, of which a part has all or none. The model is put
    into eval mode, and must be on the CPU.
    """
    probe = _Probe(model.eval(), channels, block_px, pooling_px(model))
    reaches = [probe.along(axis, step_px) for axis in ("y", "x")]
    if reaches[0] is None or reaches[1] is None:
        return None
    return Reach(*reaches[0], *reaches[1])


def pooling_px(model: nn.Module) -> int:
    """2**depth of a model that pools, which fields must be a multiple of; 1 for any other."""
    depths = [int(getattr(part, "depth", 0)) for part in model.modules()]
    return int(2 ** max(depths))


@dataclass(frozen=True)
class _Probe:
    model: nn.Module
    channels: int
    block_px: int
    width_px: int

    def along(self, axis: str, step_px: int) -> tuple[int, int] | None:
        """(towards the start, towards the end) of an axis; None where the model reads as far as `LARGEST_PX`."""
        length = 4 * step_px
        while True:
            length = -(-max(length, 64) // step_px) * step_px
            middle = length // step_px // 2 * step_px
            (touched,) = self._touched(axis, length, [(middle, middle + step_px)] * 2)
            # a margin of one step: other places in it may reach further
            if not (touched[:step_px].any() or touched[-step_px:].any()):
                break
            if length >= LARGEST_PX:
                return None
            length *= 2
        rows = [(middle + place, middle + place + 1) for place in range(step_px)]
        blocks = [(start, start + self.block_px) for start in range(middle, middle + step_px, self.block_px)]
        nowhere = (0, 0)
        tried = [(row, nowhere) for row in rows] + [(nowhere, block) for block in blocks]
        before = after = 0
        for start in range(0, len(tried), AT_ONCE):
            some = tried[start : start + AT_ONCE]
            flat = [pair for pairs in some for pair in pairs]
            for (row, block), touched in zip(some, self._touched(axis, length, flat), strict=True):
                found = np.flatnonzero(touched)
                if len(found):
                    first, last = row if row != nowhere else block
                    # the last part to begin among what reads this row, and the first part to end there
                    begins = int(found[-1]) // step_px * step_px
                    ends = (int(found[0]) // step_px + 1) * step_px
                    before, after = max(before, begins - first), max(after, last - ends)
        return before, after

    def _touched(self, axis: str, length: int, pairs: list[tuple[int, int]]) -> list[NDArray[np.bool_]]:
        """Where along the axis the output has NaN, (length,) for each two pairs: NaN in predictors, and in coarse."""
        fields = torch.zeros(len(pairs) // 2, self.channels, length, self.width_px)
        coarse = torch.zeros(len(pairs) // 2, 1, length, self.width_px)
        for number in range(len(fields)):
            fields[number, :, slice(*pairs[2 * number])] = torch.nan
            coarse[number, :, slice(*pairs[2 * number + 1])] = torch.nan
        with torch.inference_mode():
            found: Tensor = self.model(*((fields, coarse) if axis == "y" else (fields.mT, coarse.mT)))
        touched = found.isnan().any(dim=3 if axis == "y" else 2).any(dim=1)
        return list(touched.numpy())
