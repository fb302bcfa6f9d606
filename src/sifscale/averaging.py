"""Averages of weights over training, as Lightning callbacks; validated, kept and tested in place of the last weights.

The checkpoint carries both, and how many went into the average, so that a resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from sifscale.config import Trainer
from sifscale.machine import uses_cuda

SWA_START = 0.75  # share of the epochs before weights are averaged: Izmailov et al. 2018, section 4


def weight_average(options: Trainer) -> list[pl.Callback]:
    """The callback that ``options.average`` names, or none.

    ema: exponential, after each step. Its decay grows to average_decay as min(decay, (1 + n) / (10 + n)) after n
    steps (as TensorFlow's does), so that a short training is no average with its first random weights.
    swa: the plain mean of the weights at the end of each epoch of the last quarter (Izmailov et al. 2018, arXiv
    1803.05407); before it, the weights as they are.
    """
    # unless told, Lightning takes that of a module that it has not moved yet, and copies all weights there each step
    device = "cuda" if uses_cuda(options.accelerator) else None
    if options.average == "ema":
        share = _moved(lambda number: max(1 - options.average_decay, 9 / (10 + number)))
        return [pl.callbacks.WeightAveraging(device, multi_avg_fn=share)]
    if options.average == "swa":
        first = int(SWA_START * options.epochs)
        return [_EpochAveraging(device, multi_avg_fn=_moved(lambda number: 1 / (max(number - first, 0) + 1)))]
    return []


class _EpochAveraging(pl.callbacks.WeightAveraging):
    """Once an epoch, before its validation: Lightning's own end of an epoch comes after it."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def _moved(share: Callable[[int], float]) -> Callable[[Any, Any, Any], None]:
    """Moves an average that was made ``number`` times towards the current weights by ``share(number)``."""

    def move(averaged: Sequence[Tensor], current: Sequence[Tensor], number: Tensor) -> None:
        part = share(int(number))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, part)  # exact for what does not change, such as the scaler
            else:
                mean.copy_(value)

    return move
