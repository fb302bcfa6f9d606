"""The learning task: normalise, predict, conserve, masked loss, pooled scores. One code path for every model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sifscale.conservation import block_means, conserve_additive
from sifscale.datamodule import Batch, Scaler
from sifscale.metrics import Sums
from sifscale.models import MODELS
from sifscale.models.interpolation import Mode, upsample

REFERENCES: tuple[Mode, ...] = ("nearest", "bilinear")  # scored beside every model, on the same pixels
LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}


@dataclass(frozen=True)
class TaskSpec:
    """Everything that prediction needs beside weights; kept in the checkpoint as plain values.

    channels: predictor names in order. block_px: edge of coarse blocks (1: coarse is a smooth field). factor: by
    which SIF is made finer. target, units: what is predicted.
    """

    model: dict[str, Any]
    channels: tuple[str, ...]
    scaler: Scaler
    block_px: int
    factor: int
    size: int
    conservation: str
    target: str
    units: str


@dataclass(frozen=True)
class Optimisation:
    """How weights are learned; see conf/trainer for the meaning of the values."""

    loss: str
    optimiser: str
    learning_rate: float
    weight_decay: float
    schedule: str
    epochs: int


def build_model(spec: TaskSpec) -> nn.Module:
    """The network or baseline that ``spec.model`` names, freshly initialised."""
    options = {key: value for key, value in spec.model.items() if key not in ("name", "any_size")}
    if spec.model["name"] == "cnn_dense":
        options["size"] = spec.size
    return MODELS[spec.model["name"]](in_channels=len(spec.channels), factor=spec.block_px, **options)


class DownscalingTask(pl.LightningModule):
    """Lightning module around a model; reads physical values, predicts physical values.

    The model itself works on normalised values with gaps filled by 0, the mean of a z-scored channel.
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self, spec: dict[str, Any], optimisation: dict[str, Any], keep_positions: bool = False
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        scaler = Scaler(**spec["scaler"])
        self.spec = TaskSpec(**(spec | {"scaler": scaler}))
        self.optimisation = Optimisation(**optimisation)
        self.keep_positions = keep_positions
        self.model = build_model(self.spec)
        self.register_buffer("offset", torch.tensor(scaler.offset)[:, None, None])
        self.register_buffer("scale", torch.tensor(scaler.scale)[:, None, None])
        self._sums: dict[str, Sums] = {}

    @classmethod
    def create(cls, spec: TaskSpec, optimisation: Optimisation, keep_positions: bool) -> DownscalingTask:
        """A new task; arguments become plain values, so that a checkpoint loads without this package's classes."""
        return cls(asdict(spec), asdict(optimisation), keep_positions)

    def forward(self, predictors: Tensor, coarse: Tensor, valid: Tensor | None = None) -> Tensor:
        """Prediction (B, 1, H, W) in physical units from predictors (B, C, H, W) and coarse (B, 1, H, W).

        valid (B, 1, H, W) bool: pixels over which coarse was observed; needed where the run conserves.
        """
        output: Tensor = self.model(*self._normal(predictors, coarse))
        prediction = output.float() * self.spec.scaler.target_scale + self.spec.scaler.target_offset
        if self.spec.conservation == "additive" and valid is not None:
            prediction = conserve_additive(prediction, coarse, valid, self.spec.block_px)
        return prediction

    def _normal(self, predictors: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        scaled = torch.nan_to_num((predictors - self.offset) / self.scale, nan=0.0)
        return scaled, (coarse - self.spec.scaler.target_offset) / self.spec.scaler.target_scale

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss over scored pixels, in units of the target's scale."""
        loss = self._loss(self.forward(batch["predictors"], batch["coarse"], batch["valid"]), batch)
        self.log("train/loss", loss, on_epoch=True, on_step=False, batch_size=len(batch["crop"]), sync_dist=True)
        return loss

    def _loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        scored, scale = batch["scored"], self.spec.scaler.target_scale
        total = LOSSES[self.optimisation.loss](
            prediction[scored] / scale, batch["target"][scored] / scale, reduction="sum"
        )
        return total / scored.sum().clamp(min=1)  # a batch without a scored pixel teaches nothing, and is no NaN

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up scores; the epoch's end finishes them."""
        prediction = self(batch["predictors"], batch["coarse"], batch["valid"])
        loss = self._loss(prediction, batch)
        self.log("val/loss", loss, batch_size=len(batch["crop"]), sync_dist=True)
        self._add("model", Sums.of(prediction, batch["target"], batch["scored"]))

    def on_validation_epoch_end(self) -> None:
        """Pooled val/r2, val/mae, val/rmse."""
        scores = self._finish()["model"].finish()
        self.log_dict({f"val/{name}": scores[name] for name in ("r2", "mae", "rmse")}, sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up scores of the model, of the references and of coarse consistency."""
        target, coarse, scored = batch["target"], batch["coarse"], batch["scored"]
        prediction = self(batch["predictors"], coarse, batch["valid"])
        self._add("model", Sums.of(prediction, target, scored, by_position=self.keep_positions))
        for name in REFERENCES:
            self._add(name, Sums.of(upsample(coarse, self.spec.block_px, name), target, scored))
        means, _ = block_means(prediction, batch["valid"], self.spec.block_px)
        _, counted = block_means(prediction, scored, self.spec.block_px)
        self._add(
            "coarse", Sums.of(means, coarse[..., :: self.spec.block_px, :: self.spec.block_px], counted > 0)
        )

    def test_sums(self) -> dict[str, Sums]:
        """Sums of the last test: model, each reference, and ``coarse`` (block means against the observation)."""
        return self._tested

    def on_test_epoch_end(self) -> None:
        """Keep the sums of all processes."""
        self._tested = self._finish()

    def _add(self, name: str, sums: Sums) -> None:
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def _finish(self) -> dict[str, Sums]:
        reduced = {
            n: Sums(self.trainer.strategy.reduce(s.values, reduce_op="sum").cpu())
            for n, s in self._sums.items()
        }
        self._sums = {}
        return reduced

    def configure_optimizers(self) -> Any:
        """Adam or AdamW; cosine to zero at the last epoch where asked for."""
        options = self.optimisation
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimiser]
        optimiser = kind(self.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        if options.schedule == "constant":
            return optimiser
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.epochs)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
