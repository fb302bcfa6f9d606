"""What the pictures of a map show: its fields, read by parts and made smaller, beside those it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sifscale.grid import block_repeat
from sifscale.map_figures import Composite, Field
from sifscale.tile_fields import FieldSource
from sifscale.tile_prediction import FLAGS

_SHOWN_PX = 800  # the longer side of a field as it is shown
_READ_CELLS = 2**22  # of a field that is read at once: 32 MB
_PATCHES = 6  # places of a patch set that are shown


@dataclass(frozen=True, eq=False)
class MapFields:
    """A map, variables (sample, y, x), and what it is shown beside.

    truth: on the map's grid, (sample, y, x), where it is known; truth_name: "truth", or "observed".
    """

    map: xr.Dataset
    source: FieldSource
    truth: xr.DataArray | None
    truth_name: str = "truth"

    @property
    def target(self) -> str:
        """Name of the quantity."""
        return self.source.target

    @property
    def units(self) -> str:
        """Of the quantity, as CF has them."""
        return str(self.map[self.target].attrs["units"])

    @property
    def quantity(self) -> str:
        """For labels."""
        return self.target.upper().replace("_", " ")

    @property
    def of_one_place(self) -> bool:
        """A region through a season, rather than patches."""
        return len(set(self.map["place"].values.tolist())) == 1

    def place(self, sample: int) -> str:
        """Its name, as a title has it."""
        name = str(self.map["place"].values[sample]).replace("_", " ")
        return name[:1].upper() + name[1:]

    def date(self, sample: int) -> str:
        """First and last day, or the one day there is."""
        days = [np.datetime_as_string(self.map[name].values[sample], "D") for name in ("time_start", "time_end")]
        return " – ".join(dict.fromkeys(days))

    def samples(self) -> list[int]:
        """All of one place; of patches of many places a few."""
        samples = range(self.source.samples)
        return list(samples) if self.of_one_place else spread(samples, _PATCHES)

    def coarse(self, sample: int) -> Field | None:
        """The coarse field as it was observed, None where nothing was.

        It has a value a native cell, or a pixel where the map itself is on the native grid.
        """
        cells = self.source.cells(sample)
        if cells is None:
            return None
        known = np.where(cells[1], cells[0], np.float32(np.nan))
        return known if self.source.fine else block_repeat(known, self.source.block_px, *self.source.shape)

    def composite(self, sample: int, notes: str) -> Composite | None:
        """What is shown of a sample, made smaller; None where the map has no value."""
        shape, bands = self.source.shape, self.map.isel(sample=sample)
        read = partial(_rows, bands[self.target])
        coarse, fine = self.coarse(sample), pooled(read, shape)
        if coarse is None or not np.isfinite(fine).any():
            return None
        truth, error, deviation = None, None, None
        if self.truth is not None:
            known = partial(_rows, self.truth.isel(sample=sample))
            error = pooled(lambda rows: read(rows) - known(rows), shape)
            if np.isfinite(error).any():
                truth = pooled(known, shape)
        if (name := f"{self.target}_standard_error") in bands:
            deviation = pooled(partial(_rows, bands[name]), shape)
        filled = pooled(lambda rows: (_rows(bands["quality"], rows) & FLAGS["gap_filled"]) > 0, shape)
        return Composite(
            f"{self.quantity}, {self.place(sample)}, {self.date(sample)}",
            pooled(coarse.__getitem__, (coarse.shape[0], coarse.shape[1])),
            fine,
            truth,
            error if truth is not None else None,
            deviation if deviation is not None and np.isfinite(deviation).any() else None,
            filled > 0.5,
            notes,
            self.truth_name,
        )

    def middle(self, sample: int, most_px: int) -> dict[str, Field] | None:
        """Coarse field, map and truth, where it is known, a value a pixel, of whole native cells in the middle.

        None where nothing was observed.
        """
        cells = self.coarse(sample)
        if cells is None:
            return None
        block = self.source.block_px if self.source.fine else 1
        counts = [min(most_px, size) // block for size in self.source.shape]
        starts = [(size // block - count) // 2 for size, count in zip(self.source.shape, counts, strict=True)]
        rows, columns = (slice(start, start + count) for start, count in zip(starts, counts, strict=True))
        part = {"sample": sample, "y": slice(rows.start * block, rows.stop * block)}
        part |= {"x": slice(columns.start * block, columns.stop * block)}
        coarse = cells[rows, columns].repeat(block, axis=0).repeat(block, axis=1)
        fields = {"coarse": coarse, "map": self.map[self.target].isel(part).values}
        return fields if self.truth is None else fields | {"truth": self.truth.isel(part).values}


def pooled(read: Callable[[slice], NDArray[Any]], shape: tuple[int, int]) -> NDArray[np.float32]:
    """A field (y, x) with at most `_SHOWN_PX` along its longer side: means of the finite values of near-equal parts.

    read: gives some rows of the field. NaN where a part has no finite value. A smaller field stays as it is.
    """
    if max(shape) <= _SHOWN_PX:
        return np.asarray(read(slice(0, shape[0])), np.float32)
    counts = (max(1, round(size * _SHOWN_PX / max(shape))) for size in shape)
    tops, lefts = (
        np.linspace(0, size, count + 1).round().astype(int) for size, count in zip(shape, counts, strict=True)
    )
    many = max(1, _READ_CELLS // shape[1] * (len(tops) - 1) // shape[0])
    strips = []
    for first in range(0, len(tops) - 1, many):
        edges = tops[first : first + many + 1]
        values = read(slice(int(edges[0]), int(edges[-1]))).astype(np.float64)
        known = np.isfinite(values)
        total, count = (
            np.add.reduceat(np.add.reduceat(part, edges[:-1] - edges[0], axis=0), lefts[:-1], axis=1)
            for part in (np.where(known, values, 0), known.astype(np.float64))
        )
        strips.append(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))
    return np.concatenate(strips).astype(np.float32)


def spread(samples: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the samples, evenly, with the first and the last."""
    return [samples[place] for place in np.unique(np.linspace(0, len(samples) - 1, most).round().astype(int))]


def _rows(band: xr.DataArray, rows: slice) -> NDArray[Any]:
    return np.asarray(band.isel(y=rows).values)
