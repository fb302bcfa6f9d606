"""A trained model on one tile: what it predicts, made to conserve, with quality flags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sifscale.config import ConfigError
from sifscale.conservation import block_means, conserve
from sifscale.models.ensemble import mean_of
from sifscale.models.mc_dropout import McDropout
from sifscale.receptive_field import Reach, find_reach, pooling_px
from sifscale.task import DownscalingTask
from sifscale.tile_fields import TileFields
from sifscale.tiles import Tile, crops_of, make_tiles, padded_shape
from sifscale.uncertainty import error_bars

_NOT_ONEDNN = 20480  # values; use_mkldnn in PyTorch's aten/src/ATen/native/Convolution.cpp

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
    CPU convolutions sum in one order whatever the size, in the layout that `_memory_format` chooses and if the same
    library does them: for small inputs PyTorch takes another one, unless there are two in a batch (see `_small_px`).
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
        self._small_px = _small_px(task.model, len(task.spec.channels))
        self._format = _memory_format(self.task.model)
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

    def finish(self, raw: Tensor, fields: TileFields, tile: Tile) -> MappedTile:
        """Values, flags and error bars of the core from what members say of the window, (members, outputs, h, w)."""
        predictors, observed = fields.predictors[:, *tile.inner], fields.observed[tile.inner]
        coarse = torch.from_numpy(fields.coarse[tile.inner])[None, None].double()
        missing = np.isnan(predictors).any(axis=0)
        kept = ~missing if self.leave_out else np.ones_like(missing)
        gaps = ~observed & ~missing if self.fill_gaps else np.zeros_like(missing)
        said = raw[..., *tile.inner].double()
        members = said[:, :1]
        known = torch.from_numpy(observed & kept)[None, None]
        before = mean_of(members)[None]
        residuals = self._residuals(before, coarse, known) if self.spec.block_px > 1 else Residuals()
        each = (len(members), -1, -1, -1)
        conserved = conserve(
            self.conservation, members, coarse.expand(each), known.expand(each), self.spec.block_px
        )
        fine = mean_of(conserved)[None]
        shown = (observed & kept) | gaps
        quality = np.where(observed, FLAGS["observed"], FLAGS["no_observation"])
        quality |= FLAGS["predictor_missing"] * missing | FLAGS["gap_filled"] * gaps
        quality |= FLAGS["extrapolated"] * self._beyond_training(predictors)
        quality |= FLAGS["conserved"] * (shown & (fine != before).numpy()[0, 0])
        values = np.where(shown, fine.numpy()[0, 0], np.nan).astype(self.dtype)
        bars = None
        if self.spec.uncertainty is not None:
            calibration = self.task.calibration
            (widths,) = error_bars(self.spec.uncertainty, said[:, None], conserved[:, None], calibration).numpy()
            ends = np.stack([widths[0], values - widths[1], values + widths[2]])
            bars = np.where(shown & ~gaps, ends, np.nan).astype(np.float32)
        return MappedTile(values, quality.astype(np.uint8), residuals, bars)

    def _residuals(self, fine: Tensor, coarse: Tensor, known: Tensor) -> Residuals:
        means, counts = block_means(fine - coarse, known, self.spec.block_px)
        found = means[counts > 0]
        return Residuals(len(found), float((found**2).sum()), float(found.abs().max()) if len(found) else 0.0)

    def _beyond_training(self, predictors: NDArray[np.float32]) -> NDArray[np.bool_]:
        assert self.spec.origin is not None
        low, high = np.array(self.spec.origin.ranges, dtype=np.float64).T[:, :, None, None]
        beyond: NDArray[np.bool_] = ((predictors < low) | (predictors > high)).any(axis=0)  # NaN is neither
        return beyond


def _memory_format(model: nn.Module) -> torch.memory_format:
    """In which convolutions round alike in a tile and in the whole field: channels last up to 3 x 3, else first.

    Measured (oneDNN 3 on AVX-512): 5 x 5 convolutions of 128 channels and 7 x 7 ones of 96 or more sum in another order
    when the width changes, if channels are last; bilinear up-sampling does if they are first, and so is done as before.
    """
    if all(max(part.kernel_size) <= 3 for part in model.modules() if isinstance(part, nn.Conv2d)):
        return torch.channels_last
    for part in (part for part in model.modules() if isinstance(part, nn.Upsample)):
        part.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous(memory_format=torch.channels_last))
        part.register_forward_hook(lambda _, inputs, output: output.contiguous())
    return torch.contiguous_format


def _small_px(model: nn.Module, channels: int) -> float:
    """Fields of up to so many pixels have an input of a convolution that PyTorch does not leave to oneDNN.

    These are inputs of up to `_NOT_ONEDNN` values; deep in a network they are those with the fewest a pixel of the
    field. One pass of a small field finds them.
    """
    densities: list[float] = []
    edge = pooling_px(model)

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        densities.append(inputs[0][0].numel() / edge**2)

    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)]
    if any(isinstance(part, nn.Linear) for part in model.modules()) or not convolutions:
        return 0.0  # of one size, or without a convolution
    hooks = [part.register_forward_pre_hook(note) for part in convolutions]
    weights = next(model.parameters())
    field = torch.zeros(2, channels + 1, edge, edge, device=weights.device)
    with torch.inference_mode():
        model(field[:, 1:], field[:, :1])
    for hook in hooks:
        hook.remove()
    return _NOT_ONEDNN / min(densities)


def _reach_and_step(task: DownscalingTask) -> tuple[Reach | None, int]:
    spec = task.spec
    if spec.model["name"] == "cnn_dense":
        return None, spec.block_px
    step = math.lcm(spec.block_px, pooling_px(task.model))
    # a pass that lacks channels reads no further than the whole network does
    model = task.model.network if isinstance(task.model, McDropout) else task.model
    return find_reach(model, len(spec.channels), spec.block_px, step), step
