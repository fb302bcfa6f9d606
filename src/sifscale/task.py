"""The learning task: normalise, predict, conserve, masked loss, pooled scores. One code path for every model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from sifscale.conservation import block_means, conserve
from sifscale.datamodule import Batch, Scaler
from sifscale.losses import PIXEL_LOSSES, aggregate, beta_nll, error_weighted, footprints, pinball, total_variation
from sifscale.metrics import Sums, on_cells
from sifscale.models.ensemble import Ensemble, mean_of
from sifscale.models.interpolation import Mode, upsample
from sifscale.models.mc_dropout import McDropout
from sifscale.models.regression import Fields
from sifscale.task_spec import Optimisation, Origin, TaskSpec, build_model
from sifscale.uncertainty import Calibration, Spread, error_bars

CALIBRATION = "calibration"  # key of a checkpoint
# Of the target's scale, added to what a network learns as a width: the likelihood has no bound at 0.
LEAST_WIDTH = 1e-3
REFERENCES: tuple[Mode, ...] = ("nearest", "bilinear")  # scored beside every model, on the same pixels


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
        self.calibration: Calibration | None = None  # of error bars, once they are fitted
        self.register_buffer("offset", torch.tensor(scaler.offset)[:, None, None])
        self.register_buffer("scale", torch.tensor(scaler.scale)[:, None, None])
        self.train_loss = MeanMetric(nan_strategy="disable")  # which needs no look at the values
        self._sums: dict[str, Sums] = {}
        self._spread: Spread | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the calibration in it, as plain values."""
        if self.calibration:
            checkpoint[CALIBRATION] = asdict(self.calibration)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the calibration from it, if there is any."""
        self.calibration = Calibration(**checkpoint[CALIBRATION]) if CALIBRATION in checkpoint else None

    @classmethod
    def create(cls, spec: TaskSpec, optimisation: Optimisation, keep_positions: bool) -> DownscalingTask:
        """A new task; arguments become plain values, so that a checkpoint loads without this package's classes."""
        return cls(asdict(spec), asdict(optimisation), keep_positions)

    def forward(self, predictors: Tensor, coarse: Tensor, valid: Tensor | None = None) -> Tensor:
        """Prediction (B, 1, H, W) in physical units from predictors (B, C, H, W) and coarse (B, 1, H, W).

        valid (B, 1, H, W) bool: pixels over which coarse was observed; needed where the run conserves.
        """
        raw = self.each(predictors, coarse)
        return mean_of(raw[:, :, :1] if valid is None else self.conserved(raw, coarse, valid))

    def each(self, predictors: Tensor, coarse: Tensor) -> Tensor:
        """What all members say, (members, B, outputs, H, W), in physical units, before they are made to conserve.

        The first channel is the prediction. The others, of a network that learns its own error, are widths above 0:
        one under heteroscedastic, the standard deviation; two under quantile, from the prediction down to the lower and
        up to the upper end of the interval. In evaluation the passes of mc_dropout are its members.
        """
        return self._said_by(self.model, predictors, coarse)

    def _said_by(self, model: nn.Module, predictors: Tensor, coarse: Tensor) -> Tensor:
        inputs, scaler = self._normal(predictors, coarse), self.spec.scaler
        output = model.each(*inputs) if isinstance(model, Ensemble | McDropout) else model(*inputs)[None]
        prediction = output[:, :, :1].float() * scaler.target_scale + scaler.target_offset
        if output.shape[2] == 1:
            return prediction
        # contiguous: of values that lie apart PyTorch computes functions in another way, which rounds differently
        widths = nn.functional.softplus(output[:, :, 1:].float().contiguous()) + LEAST_WIDTH
        return torch.cat([prediction, widths * scaler.target_scale], dim=2)

    def bars(self, raw: Tensor, conserved: Tensor) -> Tensor:
        """Error bars (B, 3, H, W) of predictions, see `error_bars`; ValueError where the task has no uncertainty."""
        if self.spec.uncertainty is None:
            raise ValueError("this model was trained with uncertainty=none; train it with another to have error bars")
        return error_bars(self.spec.uncertainty, raw, conserved, self.calibration)

    def conserved(self, raw: Tensor, coarse: Tensor, valid: Tensor) -> Tensor:
        """Predictions (members, B, 1, H, W); each member conserves, and so does their mean."""
        predictions = raw[:, :, :1]
        coarse, valid = _repeated(len(raw), coarse, valid)
        fields = (predictions.flatten(0, 1), coarse, valid)
        return conserve(self.spec.conservation, *fields, self.spec.block_px).reshape(predictions.shape)

    def _normal(self, predictors: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        scaled = torch.nan_to_num((predictors - self.offset) / self.scale, nan=0.0)
        if all(weights.is_contiguous() for weights in self.model.parameters()):
            scaled = scaled.contiguous()  # else convolutions would take the layout of the batch, channels last
        return scaled, (coarse - self.spec.scaler.target_offset) / self.spec.scaler.target_scale

    def fields(self, batch: Batch) -> Fields:
        """A batch as models that are fitted in one step read it: normalised as in `forward`, scored pixels counted."""
        predictors, coarse = self._normal(batch["predictors"], batch["coarse"])
        target = (batch["target"] - self.spec.scaler.target_offset) / self.spec.scaler.target_scale
        return Fields(predictors, coarse, target, batch["scored"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss over scored pixels, in units of the target's scale."""
        _, loss = self._predict_and_judge(batch)
        # as often as there are crops: a weight is not read where no NaN is looked for (torchmetrics 1.9)
        self.train_loss.update(loss.detach().expand(len(batch["crop"])))
        self.log("train/loss", self.train_loss, on_epoch=True, on_step=False, batch_size=len(batch["crop"]))
        return loss * self.spec.members  # the sum: each member has the gradient that it would have alone

    def _predict_and_judge(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Conserved prediction (B, 1, H, W) and loss, of an ensemble the mean over its members.

        Terms about means of cells read the prediction before it is conserved: afterwards there is nothing to learn.
        MC dropout is validated without its passes, whose mean is nearly that: they would cost more than the training.
        """
        options, scale, block_px = self.optimisation, self.spec.scaler.target_scale, self.spec.block_px
        model = self.model.network if isinstance(self.model, McDropout) else self.model
        raw = self._said_by(model, batch["predictors"], batch["coarse"])
        conserved = self.conserved(raw, batch["coarse"], batch["valid"])
        names = ("coarse", "target", "valid", "scored", "weight")
        coarse, target, valid, scored, weight = _repeated(len(raw), *(batch[name] for name in names))
        every = raw[:, :, :1].flatten(0, 1)
        if raw.shape[2] > 1:
            widths = raw[:, :, 1:].flatten(0, 1) / scale
            loss = self._loss_of_widths(conserved.flatten(0, 1) / scale, widths, target / scale, scored)
        elif options.loss == "aggregate":  # never reads the target
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
        return mean_of(conserved), loss

    def _loss_of_widths(self, prediction: Tensor, widths: Tensor, target: Tensor, scored: Tensor) -> Tensor:
        """The loss of a network that learns its own error, in place of the mean squared error."""
        assert self.spec.uncertainty is not None
        if self.spec.uncertainty["name"] == "quantile":
            return pinball(prediction, widths, target, scored, self.spec.uncertainty["level"])
        return beta_nll(prediction, widths, target, scored, self.spec.uncertainty["beta"])

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
        conserved = self.conserved(members, coarse, batch["valid"])
        raw, prediction = mean_of(members[:, :, :1]), mean_of(conserved)
        if self.calibration:
            bars = self.bars(members, conserved)
            spread = Spread.of(prediction, bars, target, scored, self.calibration.edges)
            self._spread = self._spread + spread if self._spread else spread
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

    def test_spread(self) -> Spread | None:
        """Sums about the error bars of the last test; None where the task has none, or they are not calibrated."""
        return self._tested_spread

    def on_test_epoch_end(self) -> None:
        """Keep the sums of all processes."""
        self._tested = self._finish()
        spread = self._spread
        if spread:
            spread = Spread(self.trainer.strategy.reduce(spread.values, reduce_op="sum").cpu())
        self._tested_spread, self._spread = spread, None

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """What calibration reads, of scored pixels alone, (n, 5): prediction, its error bars and the target."""
        raw = self.each(batch["predictors"], batch["coarse"])
        conserved = self.conserved(raw, batch["coarse"], batch["valid"])
        assert self.spec.uncertainty is not None
        bars = error_bars(self.spec.uncertainty, raw, conserved, None)
        columns = torch.cat([mean_of(conserved), bars, batch["target"]], dim=1)
        return columns.movedim(1, -1)[batch["scored"][:, 0]]

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
        optimiser = kind(self.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True)
        if options.schedule == "constant":
            return optimiser
        if options.schedule == "one_cycle":
            # Trainer.estimated_stepping_batches would make the loader before Lightning knows how far a stopped run came
            data: pl.LightningDataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # set at run time
            steps = options.epochs * len(data.train_dataloader())
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, total_steps=steps)
            return {"optimizer": optimiser, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.epochs)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def _repeated(members: int, *fields: Tensor) -> list[Tensor]:
    """Fields (B, ...) as often as there are members, (members * B, ...)."""
    return [torch.cat([field] * members) if members > 1 else field for field in fields]
