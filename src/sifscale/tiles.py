"""Tiles of a field: cores that cover it once, each with the surroundings that its prediction depends on."""

from __future__ import annotations

from dataclasses import dataclass

from sifscale.receptive_field import Reach

Part = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Tile:
    """What is predicted (core) and what is read for it (window), in pixels of the padded field."""

    core: Part
    window: Part

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the window: tiles that share it can be predicted in one batch."""
        rows, columns = self.window
        return rows.stop - rows.start, columns.stop - columns.start

    @property
    def inner(self) -> Part:
        """The core within the window."""
        return _within(self.core[0], self.window[0]), _within(self.core[1], self.window[1])


def padded_shape(shape: tuple[int, int], step_px: int) -> tuple[int, int]:
    """Height and width rounded up to multiples of ``step_px``: fields are continued downwards and to the right."""
    height, width = (-(-size // step_px) * step_px for size in shape)
    return height, width


def make_tiles(
    shape: tuple[int, int], core_px: int, reach: Reach, step_px: int, smallest_px: int = 0
) -> list[Tile]:
    """Tiles of a padded field, row by row; windows begin and end at multiples of ``step_px``, or with the field.

    smallest_px: of a window, as far as the field goes; the last ones then reach back. Raises ValueError where shape or
    core_px are no multiples of step_px.
    """
    if any(size % step_px for size in (*shape, core_px)):
        raise ValueError(f"field and tile must be multiples of {step_px} px, found {shape} and {core_px}: round up")
    rows, columns = (
        [
            (slice(start, min(start + core_px, size)), _around(start, core_px, beyond, step_px, smallest_px, size))
            for start in range(0, size, core_px)
        ]
        for size, beyond in ((shape[0], (reach.up, reach.down)), (shape[1], (reach.left, reach.right)))
    )
    return [Tile((core_y, core_x), (y, x)) for core_y, y in rows for core_x, x in columns]


def crops_of(shape: tuple[int, int], size: int) -> list[Tile]:
    """Windows of one size that cover a field of at least that size; the last ones overlap those before them."""
    rows, columns = (
        [(slice(at, min(at + size, edge)), slice(min(at, edge - size), min(at, edge - size) + size))
         for at in range(0, edge, size)]
        for edge in shape
    )  # fmt: skip
    return [Tile((core_y, core_x), (y, x)) for core_y, y in rows for core_x, x in columns]


def _around(
    start: int, core_px: int, beyond: tuple[int, int], step_px: int, smallest_px: int, size: int
) -> slice:
    first = (start - beyond[0]) // step_px * step_px
    last = -(-(start + core_px + beyond[1]) // step_px) * step_px
    return slice(max(0, min(first, size - smallest_px)), min(size, last))


def _within(core: slice, window: slice) -> slice:
    return slice(core.start - window.start, core.stop - window.start)
