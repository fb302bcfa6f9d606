"""Integrated gradients: what each predictor adds to a network's prediction at a pixel.

Sundararajan et al. 2017 (arXiv 1703.01365), by captum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sifscale.crops import CropPlan
from sifscale.datamodule import BatchOrder, CropBatches
from sifscale.features import FeatureCube
from sifscale.task import DownscalingTask

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """One crop: predictors as they are, their attributions (both channel, y, x), and the pixel (y, x) they are for."""

    predictors: NDArray[np.float32]
    attributions: NDArray[np.float32]
    pixel: tuple[int, int]


@dataclass(frozen=True)
class Attribution:
    """Integrated gradients of the prediction at one pixel of each crop, in units of the target.

    by_channel (pixels, channels): what each channel adds, its surroundings of the pixel summed. change (pixels,): the
    prediction less that without predictors. gap (pixels,): what channels together add, less that change; 0 if exact.
    example: the crop whose prediction the predictors change most.
    """

    by_channel: Values
    change: Values
    gap: Values
    example: Example

    @property
    def incompleteness(self) -> float:
        """Root mean square of the gap as a share of that of the change; 0 where nothing changes and nothing is added.

        Infinite where only the prediction stays the same.
        """
        gap, change = (float(np.sqrt(np.mean(values**2))) for values in (self.gap, self.change))
        return gap / change if change > 0 else (0.0 if gap == 0 else float("inf"))


@dataclass(frozen=True)
class Contribution:
    """What channels add to predictions: mean absolute value over pixels, its standard error (NaN for one pixel), share.

    The first two in units of the target; share in 0..1 of all sets that were asked for together, NaN where all are 0.
    """

    mean_absolute: float
    standard_error: float
    share: float


def contributions(attribution: Attribution, sets: Mapping[str, Sequence[int]]) -> dict[str, Contribution]:
    """Contribution of each set of channels, by name; channels of a set are added before their size is taken."""
    sizes = {name: np.abs(attribution.by_channel[:, list(numbers)].sum(axis=1)) for name, numbers in sets.items()}
    total = sum(float(size.mean()) for size in sizes.values())
    found = {}
    for name, size in sizes.items():
        error = float(size.std(ddof=1) / np.sqrt(len(size))) if len(size) > 1 else float("nan")
        share = float(size.mean()) / total if total > 0 else float("nan")
        found[name] = Contribution(float(size.mean()), error, share)
    return found


def is_network(task: DownscalingTask) -> bool:
    """Whether the model has learned by gradients, which it then has along its inputs too."""
    return any(parameter.requires_grad for parameter in task.model.parameters())


def integrated_gradients(
    task: DownscalingTask,
    features: FeatureCube,
    plan: CropPlan,
    parts: NDArray[np.int8],
    *,
    steps: int,
    seed: int,
    batch_size: int,
    progress: bool = False,
) -> Attribution:
    """Attributions at one scored pixel of each crop of ``plan``, drawn at random; each crop has one.

    The path leads from predictors of 0 after normalisation (the training mean of a z-scored band, no class of a
    one-hot code, a gap) to those there are; the coarse field stays. It is the prediction of single pixels, as
    conserved as the run has it: sums over blocks would be constant under conservation. batch_size: crops that the
    network sees at once.
    """
    task.eval()
    crops = CropBatches(features, plan, parts)
    rng = np.random.default_rng(seed)
    method = IntegratedGradients(lambda *inputs: _at(task, *inputs), multiply_by_inputs=True)
    rows: list[tuple[Values, Values]] = []
    example, largest = None, -1.0
    with tqdm(total=len(plan), desc="integrated gradients", unit="crop", disable=None if progress else True) as bar:
        for numbers in BatchOrder(len(plan), batch_size, None):
            batch = crops[numbers]
            pixel = _drawn(batch["scored"], rng)
            given = batch["coarse"], batch["valid"], pixel
            normal = torch.nan_to_num((batch["predictors"] - task.offset) / task.scale, nan=0.0).requires_grad_()
            found = method.attribute(
                normal, baselines=0.0, additional_forward_args=given, n_steps=steps, internal_batch_size=batch_size
            ).detach()
            with torch.no_grad():
                change = _at(task, normal, *given) - _at(task, torch.zeros_like(normal), *given)
            rows.append((found.double().sum(dim=(2, 3)).numpy(), change.double().numpy()))
            most = int(change.abs().argmax())
            if float(change[most].abs()) > largest:
                largest, place = float(change[most].abs()), divmod(int(pixel[most]), plan.size)
                example = Example(batch["predictors"][most].numpy(), found[most].float().numpy(), place)
            bar.update(len(numbers))
    if example is None:
        raise ValueError("test part: must hold a crop with a scored pixel to attribute its prediction (found 0)")
    by_channel, change_of = (np.concatenate(part) for part in zip(*rows, strict=True))
    return Attribution(by_channel, change_of, by_channel.sum(axis=1) - change_of, example)


def _at(task: DownscalingTask, normal: Tensor, coarse: Tensor, valid: Tensor, pixel: Tensor) -> Tensor:
    """Prediction (B,) in physical units at one pixel a crop, by number in the crop; predictors are normalised."""
    field: Tensor = task(normal * task.scale + task.offset, coarse, valid)
    return field.flatten(1).gather(1, pixel[:, None])[:, 0]


def _drawn(scored: Tensor, rng: np.random.Generator) -> Tensor:
    """Number (B,) of a scored pixel of each crop (B, 1, H, W), all equally likely."""
    mask = scored.flatten(1).numpy()
    chosen: NDArray[Any] = np.where(mask, rng.random(mask.shape), -1.0).argmax(axis=1)
    return torch.from_numpy(chosen)
