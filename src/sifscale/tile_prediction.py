"""A trained model on one tile: what it predicts, made to conserve, with quality flags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sifscale.config import ConfigError
from sifscale.conservation import Blocks, block_means, blocks_of, conserve, conserve_smoothly
from sifscale.convolution_rounding import memory_format, small_px
from sifscale.grid import block_repeat
from sifscale.models.ensemble import mean_of
from sifscale.models.mc_dropout import McDropout
from sifscale.receptive_field import Reach, find_reach, pooling_px
from sifscale.task import DownscalingTask
from sifscale.tile_fields import TileFields
from sifscale.tiles import Tile, crops_of, make_tiles, padded_shape
from sifscale.uncertainty import error_bars

FLAGS = {
    "observed": 1,
    "no_observation": 2,  # of SIF: the map is empty here, or filled where gap_filled says so
    "predictor_missing": 4,  # as in training, its gap counts as the training mean of its channel
    "extrapolated": 8,  # a predictor lies outside the values that the model was trained on
    "conserved": 16,  # the value was changed so that the mean of its native cell is the observation
    "gap_filled": 32,  # with SIF of the nearest cell, perhaps far off; without error bars, which nothing calibrated
}
ERROR_BARS = ("standard_error", "lower", "upper")  # the last two: ends of an interval about the value


@dataclass(frozen=True)
class Residuals:
    """Means of the map over native cells minus their observation, before conservation: number, squares, largest."""

    cells: int = 0
    squares: float = 0.0
    largest: float = 0.0

    def __add__(self, other: Residuals) -> Residuals:
        return Residuals(
            self.cells + other.cells, self.squares + other.squares, max(self.largest, other.largest)
        )

    @property
    def rmse(self) -> float:
        """Root mean square, NaN without cells."""
        return math.sqrt(self.squares / self.cells) if self.cells else math.nan


@dataclass(frozen=True)
class Said:
    """What a model says of the core of a tile, and all else that its map is made of.

    raw (members, outputs, h, w): as `DownscalingTask.each`, before conservation; coarse (h, w); quality (h, w): all of
    `FLAGS` but conserved.
    """

    raw: NDArray[np.float32]
    coarse: NDArray[np.float32]
    quality: NDArray[np.uint8]


@dataclass(frozen=True)
class MappedTile:
    """values (h, w) in units of the target, NaN where there is none; quality (h, w), see FLAGS.

    bars (3, h, w): `ERROR_BARS` in the same units, NaN where there are none; None of a model that has none.
    """

    values: NDArray[np.floating]
    quality: NDArray[np.uint8]
    residuals: Residuals
    bars: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Layout:
    """How a field is cut: the padded shape, edge of the cores and tiles."""

    shape: tuple[int, int]
    core_px: int
    tiles: list[Tile]


class TilePredictor:
    """A trained task that predicts tiles; tiles of any size give the same bits as the whole padded field would.

    Cores begin at multiples of what pooling and coarse blocks need, windows hold all that a core depends on, and on a
    CPU convolutions sum in one order whatever the size, in the layout that `memory_format` chooses and if the same
    library does them: for small inputs PyTorch takes another one, unless there are two in a batch (see `small_px`).
    conservation: one of `CONSERVATIONS`, computed in float64. fill_gaps: predict also where no SIF was observed but
    every predictor is known. leave_out: no value where a predictor is missing. half: bfloat16 in the network.
    """

    def __init__(
        self,
        task: DownscalingTask,
        *,
        conservation: str,
        fill_gaps: bool = False,
        leave_out: bool = False,
        half: bool = False,
        device: str = "cpu",
    ) -> None:
        self.spec = task.spec
        self.conservation, self.fill_gaps, self.leave_out, self.half = conservation, fill_gaps, leave_out, half
        # Before the weights change place: the reach is a property of the model.
        self.reach, self.step_px = _reach_and_step(task)
        self.device = torch.device(device)
        self.task = task.eval().to(self.device)
        self._small_px = small_px(task.model, len(task.spec.channels))
        self._format = memory_format(self.task.model)
        for weights in (parameter for parameter in self.task.model.parameters() if parameter.ndim == 4):
            weights.data = weights.data.contiguous(memory_format=self._format)

    @property
    def dtype(self) -> type[np.floating]:
        """Of the map: float32 rounds a cell's mean by more than 1e-6 of an observation near 0."""
        return np.float32 if self.conservation == "none" else np.float64

    @property
    def crop_px(self) -> int | None:
        """The one size of field that a model with dense layers knows."""
        return self.spec.size if self.spec.model["name"] == "cnn_dense" else None

    def layout(self, shape: tuple[int, int], tile_px: int) -> Layout:
        """Tiles of about ``tile_px`` that cover a field (y, x), continued to a multiple of what the model needs.

        A model that reads everything has one tile; ConfigError where that is larger than tile_px.
        """
        height, width = padded_shape(shape, self.step_px)
        if self.crop_px:
            whole = max(height, self.crop_px), max(width, self.crop_px)
            core = max(1, tile_px // self.crop_px) * self.crop_px
            return Layout(whole, core, make_tiles(whole, core, Reach(0, 0, 0, 0), self.step_px, self.crop_px))
        core = max(1, tile_px // self.step_px) * self.step_px
        if self.reach is None:
            if max(shape) > tile_px:
                raise ConfigError(
                    [
                        f"tile_px: must be at least {max(shape)} for this {self.spec.model['name']}, which reads the "
                        f"whole field for each pixel and so cannot work on parts of it (found {tile_px})"
                    ]
                )
            core = max(height, width)
        reach = self.reach or Reach(0, 0, 0, 0)
        return Layout((height, width), core, make_tiles((height, width), core, reach, self.step_px))

    def raw(self, fields: Sequence[TileFields]) -> Tensor:
        """What members say of windows of one shape, (members, B, outputs, h, w) float32 on the CPU.

        As `DownscalingTask.each`, before conservation.
        """
        predictors = torch.from_numpy(np.stack([field.predictors for field in fields]))
        coarse = torch.from_numpy(np.stack([field.coarse for field in fields]))[:, None]
        if not self.crop_px:
            return self._model(predictors, coarse)
        crops = crops_of((coarse.shape[-2], coarse.shape[-1]), self.crop_px)
        found: Tensor | None = None
        for crop in crops:
            part = self._model(predictors[..., *crop.window], coarse[..., *crop.window])
            if found is None:
                found = part.new_empty((*part.shape[:3], *coarse.shape[-2:]))
            found[..., *crop.core] = part[..., *crop.inner]
        assert found is not None
        return found

    def _model(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        batch = len(coarse)
        if batch == 1 and coarse.numel() <= self._small_px:
            predictors, coarse = torch.cat([predictors] * 2), torch.cat([coarse] * 2)
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)
        with torch.inference_mode(), half:
            given = predictors.to(self.device).contiguous(memory_format=self._format)
            return self.task.each(given, coarse.to(self.device))[:, :batch].float().cpu()

    def say(self, raw: Tensor, fields: TileFields, tile: Tile) -> Said:
        """The core of what members say of the window, (members, outputs, h, w), with its quality."""
        predictors, observed = fields.predictors[:, *tile.inner], fields.observed[tile.inner]
        missing = np.isnan(predictors).any(axis=0)
        quality = np.where(observed, FLAGS["observed"], FLAGS["no_observation"])
        quality |= FLAGS["predictor_missing"] * missing
        quality |= FLAGS["gap_filled"] * (~observed & ~missing & self.fill_gaps)
        quality |= FLAGS["extrapolated"] * self._beyond_training(predictors)
        return Said(raw[..., *tile.inner].numpy(), fields.coarse[tile.inner], quality.astype(np.uint8))

    def blocks(self, said: Said) -> Blocks:
        """What conservation=smooth reads of the coarse cells of a tile, for each member."""
        members, coarse, known = self._fields(said)
        return blocks_of(members, coarse, known, self.spec.block_px)

    def finish(self, said: Said, correction: Tensor | None = None) -> MappedTile:
        """Values, flags and error bars of the core.

        correction (members, 2, h + 2, w + 2): under conservation=smooth the tile's part of `smooth_correction` of the
        whole sample, a value a coarse cell and a margin of one; ValueError without it.
        """
        if correction is None and self.conservation == "smooth":
            raise ValueError("conservation=smooth needs the correction of the whole sample: map it by map_tiles")
        members, coarse, known = self._fields(said)
        block_px = self.spec.block_px
        if correction is None:
            each = (len(members), -1, -1, -1)
            conserved = conserve(self.conservation, members, coarse.expand(each), known.expand(each), block_px)
        else:
            conserved = conserve_smoothly(members, coarse, known, block_px, correction)
        before, fine = mean_of(members)[None], mean_of(conserved)[None]
        means, counts = block_means(before - coarse, known, block_px)
        found = means[counts > 0]
        residuals = Residuals()
        if block_px > 1:
            largest = float(found.abs().max()) if len(found) else 0.0
            residuals = Residuals(len(found), float((found**2).sum()), largest)
        quality, gaps = said.quality, (said.quality & FLAGS["gap_filled"]) > 0
        shown = known.numpy()[0, 0] | gaps
        height, width = shown.shape
        in_cell = block_repeat((counts > 0).numpy()[0, 0], block_px, height, width)
        quality = quality | np.uint8(FLAGS["conserved"]) * (shown & in_cell & (fine != before).numpy()[0, 0])
        values = np.where(shown, fine.numpy()[0, 0], np.nan).astype(self.dtype)
        bars = None
        if self.spec.uncertainty is not None:
            raw, calibration = torch.from_numpy(said.raw).double(), self.task.calibration
            (widths,) = error_bars(self.spec.uncertainty, raw[:, None], conserved[:, None], calibration).numpy()
            ends = np.stack([widths[0], values - widths[1], values + widths[2]])
            bars = np.where(shown & ~gaps, ends, np.nan).astype(np.float32)
        return MappedTile(values, quality, residuals, bars)

    def _fields(self, said: Said) -> tuple[Tensor, Tensor, Tensor]:
        """Members (members, 1, h, w) and coarse (1, 1, h, w) in float64, and where a mean counts (1, 1, h, w)."""
        left_out = FLAGS["predictor_missing"] if self.leave_out else 0
        known = (said.quality & (FLAGS["observed"] | left_out)) == FLAGS["observed"]
        members = torch.from_numpy(said.raw[:, :1]).double()
        return members, torch.from_numpy(said.coarse)[None, None].double(), torch.from_numpy(known)[None, None]

    def _beyond_training(self, predictors: NDArray[np.float32]) -> NDArray[np.bool_]:
        assert self.spec.origin is not None
        low, high = np.array(self.spec.origin.ranges, dtype=np.float64).T[:, :, None, None]
        beyond: NDArray[np.bool_] = ((predictors < low) | (predictors > high)).any(axis=0)  # NaN is neither
        return beyond


def _reach_and_step(task: DownscalingTask) -> tuple[Reach | None, int]:
    spec = task.spec
    if spec.model["name"] == "cnn_dense":
        return None, spec.block_px
    step = math.lcm(spec.block_px, pooling_px(task.model))
    # a pass that lacks channels reads no further than the whole network does
    model = task.model.network if isinstance(task.model, McDropout) else task.model
    return find_reach(model, len(spec.channels), spec.block_px, step), step
