"""The learning task: normalise, predict, conserve, masked loss, pooled scores. One code path for every model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from sifscale.conservation import block_means, conserve
from sifscale.datamodule import Batch, Scaler
from sifscale.losses import PIXEL_LOSSES, aggregate, error_weighted, footprints, total_variation
from sifscale.metrics import Sums, on_cells
from sifscale.models import MODELS, PHYSICAL
from sifscale.models.ensemble import Ensemble
from sifscale.models.interpolation import Mode, upsample
from sifscale.models.regression import Fields

REFERENCES: tuple[Mode, ...] = ("nearest", "bilinear")  # scored beside every model, on the same pixels


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as making its predictors again and judging them depends on it.

    features, coarse: those sections of the run's configuration. units: of the cube's bands, by name. ranges: smallest
    and largest value of each channel on the training part, infinite for codes and classes.
    """

    features: dict[str, Any]
    coarse: dict[str, Any]
    units: dict[str, str]
    ranges: tuple[tuple[float, float], ...]
    window: str
    level: str
    cube_hash: str
    git_commit: str


@dataclass(frozen=True)
class TaskSpec:
    """Everything that prediction needs beside weights; kept in the checkpoint as plain values.

    channels: predictor names in order. block_px: edge of coarse blocks (1: coarse is a smooth field). factor: by
    which SIF is made finer. target, units: what is predicted. members: networks of an ensemble. origin: None in
    checkpoints from before there was prediction of maps.
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
    members: int = 1
    origin: Origin | None = None


@dataclass(frozen=True)
class Optimisation:
    """How weights are learned and judged; see conf/trainer and conf/train.yaml for the meaning of the values."""

    loss: str
    optimiser: str
    learning_rate: float
    weight_decay: float
    schedule: str
    epochs: int
    total_variation_weight: float = 0.0
    conservation_weight: float = 0.0
    cell_px: int | None = None
    cell_min_valid: float = 1.0


def build_model(spec: TaskSpec) -> nn.Module:
    """The network, ensemble of networks or baseline that ``spec.model`` names, freshly initialised."""
    options = {key: value for key, value in spec.model.items() if key not in ("name", "any_size")}
    if spec.model["name"] == "cnn_dense":
        options["size"] = spec.size
    if spec.model["name"] in PHYSICAL:
        options |= {"channels": spec.channels, "scaler": spec.scaler}
    make = partial(MODELS[spec.model["name"]], in_channels=len(spec.channels), factor=spec.block_px, **options)
    return Ensemble(make, spec.members) if spec.members > 1 else make()


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
        origin = Origin(**spec["origin"]) if spec.get("origin") else None
        self.spec = TaskSpec(**(spec | {"scaler": scaler, "origin": origin}))
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
        raw = self.each(predictors, coarse)
        return raw.mean(dim=0) if valid is None else self._conserved(raw, coarse, valid).mean(dim=0)

    def each(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """Predictions of all members, (members, B, 1, H, W), before they are made to conserve."""
        inputs = self._normal(predictors, coarse)
        output = self.model.each(*inputs) if isinstance(self.model, Ensemble) else self.model(*inputs)[None]
        return output.float() * self.spec.scaler.target_scale + self.spec.scaler.target_offset

    def _conserved(self, raw: Tensor, coarse: Tensor, valid: Tensor) -> Tensor:
        """Each member conserves, and so does their mean."""
        coarse, valid = _repeated(len(raw), coarse, valid)
        fields = (raw.flatten(0, 1), coarse, valid)
        return conserve(self.spec.conservation, *fields, self.spec.block_px).reshape(raw.shape)

    def _normal(self, predictors: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        scaled = torch.nan_to_num((predictors - self.offset) / self.scale, nan=0.0)
        return scaled, (coarse - self.spec.scaler.target_offset) / self.spec.scaler.target_scale

    def fields(self, batch: Batch) -> Fields:
        """A batch as models that are fitted in one step read it: normalised as in `forward`, scored pixels counted."""
        predictors, coarse = self._normal(batch["predictors"], batch["coarse"])
        target = (batch["target"] - self.spec.scaler.target_offset) / self.spec.scaler.target_scale
        return Fields(predictors, coarse, target, batch["scored"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss over scored pixels, in units of the target's scale."""
        _, loss = self._predict_and_judge(batch)
        self.log("train/loss", loss, on_epoch=True, on_step=False, batch_size=len(batch["crop"]), sync_dist=True)
        return loss * self.spec.members  # the sum: each member has the gradient that it would have alone

    def _predict_and_judge(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Conserved prediction (B, 1, H, W) and loss, of an ensemble the mean over its members.

        Terms about means of cells read the prediction before it is conserved: afterwards there is nothing to learn.
        """
        options, scale, block_px = self.optimisation, self.spec.scaler.target_scale, self.spec.block_px
        raw = self.each(batch["predictors"], batch["coarse"])
        conserved = self._conserved(raw, batch["coarse"], batch["valid"])
        names = ("coarse", "target", "valid", "scored", "weight")
        coarse, target, valid, scored, weight = _repeated(len(raw), *(batch[name] for name in names))
        every = raw.flatten(0, 1)
        if options.loss == "aggregate":  # never reads the target
            loss = aggregate(every / scale, coarse / scale, valid, scored, block_px)
        elif options.loss == "footprints":  # nor does this
            (seen,) = _repeated(len(raw), batch["footprint_weights"])
            loss = footprints(every / scale, coarse / scale, seen, scored, block_px)
        elif options.loss == "cells":
            assert options.cell_px is not None
            loss = aggregate(conserved.flatten(0, 1) / scale, target / scale, scored, scored, options.cell_px)
        else:
            pair = (conserved.flatten(0, 1) / scale, target / scale, scored)
            weighted = options.loss == "error_weighted"
            loss = error_weighted(*pair, weight) if weighted else PIXEL_LOSSES[options.loss](*pair)
        if options.conservation_weight:
            mismatch = aggregate(every / scale, coarse / scale, valid, scored, block_px)
            loss = loss + options.conservation_weight * mismatch
        if options.total_variation_weight:
            loss = loss + options.total_variation_weight * total_variation(every / scale, scored)
        return conserved.mean(dim=0), loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up scores; the epoch's end finishes them."""
        prediction, loss = self._predict_and_judge(batch)
        self.log("val/loss", loss, batch_size=len(batch["crop"]), sync_dist=True)
        fields = (prediction, batch["target"], batch["scored"])
        self._add("model", Sums.of(*fields))
        if self.optimisation.cell_px:
            cells = on_cells(*fields, self.optimisation.cell_px, self.optimisation.cell_min_valid)
            self._add("cells", Sums.of(*cells))

    def on_validation_epoch_end(self) -> None:
        """Pooled val/r2, val/mae, val/rmse, and val/cells_rmse where cells are scored."""
        sums = self._finish()
        scores = sums["model"].finish()
        found = {f"val/{name}": scores[name] for name in ("r2", "mae", "rmse")}
        if "cells" in sums:
            if not sums["cells"].values[0]:
                share = self.optimisation.cell_min_valid
                raise ValueError(
                    f"evaluation.cell_min_valid: no cell of the validation part is filled that far; lower it, or set "
                    f"evaluation.cell_px=null (found {share})"
                )
            found["val/cells_rmse"] = sums["cells"].finish()["rmse"]
        self.log_dict(found, sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Add up scores of the model, of the references and of coarse consistency; returns the predictions by name."""
        target, coarse, scored = batch["target"], batch["coarse"], batch["scored"]
        members = self.each(batch["predictors"], coarse)
        raw, prediction = members.mean(dim=0), self._conserved(members, coarse, batch["valid"]).mean(dim=0)
        self._add("model", Sums.of(prediction, target, scored, by_position=self.keep_positions))
        predictions = {"model": prediction}
        for name in REFERENCES:
            predictions[name] = upsample(coarse, self.spec.block_px, name)
            self._add(name, Sums.of(predictions[name], target, scored))
        observation = coarse[..., :: self.spec.block_px, :: self.spec.block_px]
        _, counted = block_means(prediction, scored, self.spec.block_px)
        for key, field in (("coarse", prediction), ("coarse_raw", raw)):
            means, _ = block_means(field, batch["valid"], self.spec.block_px)
            self._add(key, Sums.of(means, observation, counted > 0))
        return predictions

    def test_sums(self) -> dict[str, Sums]:
        """Sums of the last test: model, each reference, and block means of the prediction against the observation.

        These are ``coarse``, and ``coarse_raw`` before the prediction was made to conserve.
        """
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
        """Adam or AdamW; where asked for, the learning rate falls to zero along a cosine, or rises first (one_cycle).

        one_cycle: Smith & Topin 2019 (doi:10.1117/12.2520589), step by step, as torch has it by default.
        """
        options = self.optimisation
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimiser]
        optimiser = kind(self.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        if options.schedule == "constant":
            return optimiser
        if options.schedule == "one_cycle":
            steps = int(self.trainer.estimated_stepping_batches)
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, total_steps=steps)
            return {"optimizer": optimiser, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.epochs)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def _repeated(members: int, *fields: Tensor) -> list[Tensor]:
    """Fields (B, ...) as often as there are members, (members * B, ...)."""
    return [torch.cat([field] * members) if members > 1 else field for field in fields]
