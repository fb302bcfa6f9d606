"""What a trained model reads from a cube, cut by cut: memory goes by the cut, not by the region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sifscale import grid
from sifscale.config import Coarse, ConfigError, Features
from sifscale.cube import Cube
from sifscale.features import OBSERVED, make_predictors
from sifscale.tiles import Part

_ROWS_PX = 1024  # of the native field read at once where it is averaged


@dataclass(frozen=True)
class TileFields:
    """predictors (C, h, w), gaps NaN; coarse (h, w) without gaps; observed (h, w): where coarse is no filling."""

    predictors: NDArray[np.float32]
    coarse: NDArray[np.float32]
    observed: NDArray[np.bool_]


class FieldSource:
    """Predictors and coarse field of each sample of a cube, equal to those that training makes of the whole sample.

    fine: native SIF is the coarse field of the fine bands; otherwise it is averaged, and the bands are native. Beyond
    the lower and right edge predictors are NaN and coarse has its edge values, so that any multiple of a block can be
    read. Of native SIF so much is read about a part as holds the nearest cell of each of its gaps. Raises ConfigError
    where a coarse field of this kind cannot be read by parts.
    """

    def __init__(
        self, cube: Cube, features: Features, coarse: Coarse, channels: Sequence[str], target: str, *, fine: bool
    ) -> None:
        bands = cube.fine if fine else cube.native
        assert bands is not None
        self.bands = bands.drop_vars([name for name, band in bands.data_vars.items() if band.ndim != 3])
        self.native, self.target, self.fine = cube.native[target], target, fine
        self.features, self.coarse, self.channels = features, coarse, list(channels)
        self.shape = self.bands.sizes["y"], self.bands.sizes["x"]
        self.block_px = self.shape[0] // self.native.sizes["y"] if fine else coarse.block_px
        if not fine and coarse.method == "given":
            self._averaged = cube.native[f"coarse_{target}"]
        self.cells_shape = self.native.sizes["y"], self.native.sizes["x"]
        if not fine:
            self.cells_shape = -(-self.cells_shape[0] // self.block_px), -(-self.cells_shape[1] // self.block_px)
        self.has_sif = cache(self._has_sif)

    @property
    def samples(self) -> int:
        """Samples of the cube, with and without SIF."""
        return int(self.bands.sizes["sample"])

    def cells(self, sample: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """Coarse values without gaps and whether they were observed, (cells down, cells across); None without any."""
        whole = slice(0, self.cells_shape[0]), slice(0, self.cells_shape[1])
        return self._cells(sample, whole) if self.has_sif(sample) else None

    def _has_sif(self, sample: int) -> bool:
        """Whether SIF was observed anywhere in a sample."""
        step = max(1, _ROWS_PX // self.block_px)
        strips = (slice(top, min(top + step, self.cells_shape[0])) for top in range(0, self.cells_shape[0], step))
        return any(np.isfinite(self._known(sample, (rows, slice(0, self.cells_shape[1])))).any() for rows in strips)

    def _cells(self, sample: int, part: Part) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`cells` of a part of them, of a sample that has any."""
        margin = 0
        while True:
            wide = tuple(
                slice(max(0, along.start - margin), min(size, along.stop + margin))
                for along, size in zip(part, self.cells_shape, strict=True)
            )
            known = self._known(sample, (wide[0], wide[1]))
            inside = tuple(slice(i.start - w.start, i.stop - w.start) for i, w in zip(part, wide, strict=True))
            observed = np.isfinite(known)
            if observed[inside].all():
                return known[inside], observed[inside]
            if not observed.any():
                margin = 2 * margin + max(observed.shape)
                continue
            needed = math.ceil(ndimage.distance_transform_edt(~observed)[inside].max())
            if needed <= margin or observed.shape == self.cells_shape:  # whatever lies outside is farther off
                return grid.fill_nearest(known).astype(np.float32)[inside], observed[inside]
            margin = needed

    def _known(self, sample: int, part: Part) -> NDArray[np.float32]:
        """Coarse values of a part of the cells, gaps NaN."""
        native = self.native.isel(sample=sample)
        if self.fine:
            return native.isel(y=part[0], x=part[1]).values.astype(np.float32)
        if self.coarse.method == "given":
            return self._averaged.isel(sample=sample, y=part[0], x=part[1]).values.astype(np.float32)
        factor = self.coarse.factor
        if self.coarse.method == "block_mean":
            y, x = (slice(along.start * factor, along.stop * factor) for along in part)
            return grid.block_mean(native.isel(y=y, x=x).values.astype(np.float32), factor).astype(np.float32)
        y, x = (slice(max(0, along.start - factor // 2), along.stop + factor // 2) for along in part)
        means = grid.moving_mean(native.isel(y=y, x=x).values.astype(np.float32), factor).astype(np.float32)
        rows, columns = (slice(i.start - w.start, i.stop - w.start) for i, w in zip(part, (y, x), strict=True))
        return means[rows, columns]

    def observed(self, sample: int, part: Part) -> NDArray[np.bool_]:
        """Where SIF was observed in a part of the field (h, w); no pixel of the padding was."""
        found = np.zeros([along.stop - along.start for along in part], dtype=bool)
        inside = self._inside(part)
        if not self.fine:
            known = np.isfinite(self.native.isel(sample=sample, y=inside[0], x=inside[1]).values)
        else:
            part = self._cells_of(inside)
            known = np.isfinite(self._known(sample, part))[self._at(inside, part)]
        found[: known.shape[0], : known.shape[1]] = known
        return found

    def read(self, sample: int, part: Part) -> TileFields:
        """What the model reads of a part of the field, which begins with a block. ValueError without any SIF."""
        if not self.has_sif(sample):
            raise ValueError(f"sample {sample} has no {self.target}, so that there is nothing to predict from")
        predictors = np.full((len(self.channels), *(s.stop - s.start for s in part)), np.nan, np.float32)
        inside = self._inside(part)
        wide = tuple(self._widened(along, size) for along, size in zip(inside, self.shape, strict=True))
        cut = self.bands.isel(sample=[sample], y=wide[0], x=wide[1])
        within = self._cells_of(wide, part)
        cells, observed = self._cells(sample, within)
        cut = cut.assign({OBSERVED: (("sample", "y", "x"), cells[self._at(wide, within)][None])})
        if self.fine:  # what averages of SIF among the predictors are made of
            known = np.where(observed, cells, np.float32(np.nan))
            cut = cut.assign({self.target: (("sample", "y", "x"), known[self._at(wide, within)][None])})
        origin_px = wide[0].start, wide[1].start
        made, lazy = make_predictors(cut, self.features, self.coarse, self.target, origin_px=origin_px)
        names = [channel.name for channel in made]
        y, x = (slice(i.start - w.start, i.stop - w.start) for i, w in zip(inside, wide, strict=True))
        # one thread: that of the network, which works meanwhile, has the others
        found = lazy[0, [names.index(name) for name in self.channels], y, x].compute(scheduler="synchronous")
        predictors[:, : found.shape[1], : found.shape[2]] = found
        return TileFields(predictors, cells[self._at(part, within)], self.observed(sample, part))

    def _inside(self, part: Part) -> Part:
        """Without what lies in the padding."""
        rows, columns = (
            slice(min(along.start, size), min(along.stop, size)) for along, size in zip(part, self.shape, strict=True)
        )
        return rows, columns

    def _cells_of(self, *parts: Sequence[slice]) -> Part:
        """The cells that parts lie in; the last one goes on into the padding."""
        rows, columns = (
            slice(
                min(min(along.start for along in axis) // self.block_px, size - 1),
                min(-(-max(along.stop for along in axis) // self.block_px), size),
            )
            for axis, size in zip(zip(*parts, strict=True), self.cells_shape, strict=True)
        )
        return rows, columns

    def _at(self, part: Sequence[slice], cells: Part) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Index, among ``cells``, of the cell of each pixel."""
        rows, columns = (
            np.minimum(np.arange(along.start, along.stop) // self.block_px, size - 1) - of.start
            for along, of, size in zip(part, cells, self.cells_shape, strict=True)
        )
        return rows[:, None], columns[None, :]

    def _widened(self, along: slice, size: int) -> slice:
        """A part with the surroundings that its features look at, in whole blocks or up to the edge of the field."""
        halo, block = self._halo_px(), self.block_px
        return slice(max(0, (along.start - halo) // block * block), min(size, -(-(along.stop + halo) // block) * block))

    def _halo_px(self) -> int:
        """How far features look; the coarse field without its steps reaches into the next block."""
        features = self.features
        texture = [math.ceil(pattern.radius) + 1 for pattern in features.lbp]
        texture += [features.local_stats.window_px // 2 + 1] if features.local_stats else []
        averaged = self.coarse.factor // 2 if self.coarse.method == "moving_mean" else self.block_px
        return max(texture, default=0) + averaged


def training_sections(features: dict[str, object], coarse: dict[str, object]) -> tuple[Features, Coarse]:
    """Sections of a run's configuration as its checkpoint keeps them; ConfigError where no map can be made of them."""
    found = Features.model_validate(features), Coarse.model_validate(coarse)
    if found[0].legacy:
        rule = "must not be from protocol=legacy, whose features read the target or scale whole fields"
        raise ConfigError([f"run: {rule} (found features={found[0].name})"])
    return found
