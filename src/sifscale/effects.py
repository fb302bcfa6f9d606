"""Which choice matters? The score of each value of a swept key, over the other choices, and p-values of many tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from sifscale.bootstrap import BlockSums, Difference, averaged, difference_of_seeds
from sifscale.choices import NONE, Settings, grouped
from sifscale.metrics import Sums

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Tried:
    """An arm as effects see it: its settings, and the sums of its test by seed and block."""

    settings: Settings
    seeds: Mapping[str, BlockSums]


@dataclass(frozen=True)
class Level:
    """A value of a key. rmse: root of the mean squared error of its arms; low, high: 95 % interval over blocks.

    difference: RMSE less that of the first level, over the ``matched`` settings of all other choices that both have
    been tried with; None where there are none. p_holm: adjusted over all levels of all keys.
    """

    value: str
    arms: tuple[str, ...]
    rmse: float
    low: float
    high: float
    difference: Difference | None = None
    matched: int = 0
    p_holm: float = float("nan")

    @property
    def matters(self) -> bool:
        """Whether the difference to the first level is more than chance."""
        return self.p_holm < SIGNIFICANCE


@dataclass(frozen=True)
class Effect:
    """A key with its levels, the first being what the others are compared with, and the keys that only follow it."""

    key: str
    follows: tuple[str, ...]
    levels: tuple[Level, ...]

    @property
    def size(self) -> float:
        """From the best to the worst level, as far as they can be compared; 0 where none can."""
        found = [level.difference.difference for level in self.levels if level.difference]
        return max([0.0, *found]) - min([0.0, *found])


def main_effects(arms: Mapping[str, Tried], reference: str | None) -> list[Effect]:
    """The effect of each key that differs between arms, the largest first.

    A level is compared with the first (that of the arm ``reference``, else of the first arm) only over combinations of
    the other choices that both were tried with, each arm weighing the same: a grid with holes is no bias. Arms
    whose test had other blocks than the reference's are left out. Interval and p as ``difference_of_seeds``.
    """
    first = reference if reference in arms else next(iter(arms), None)
    if first is None:
        return []
    arms = {first: arms[first], **{name: arm for name, arm in arms.items() if _blocks(arm) == _blocks(arms[first])}}
    keys = grouped([arm.settings for arm in arms.values()])
    effects = [Effect(key, follows, _levels(key, list(keys), arms)) for key, follows in keys.items()]
    p = holm([level.difference.p if level.difference else float("nan") for e in effects for level in e.levels])
    adjusted = iter(p)
    effects = [replace(e, levels=tuple(replace(level, p_holm=next(adjusted)) for level in e.levels)) for e in effects]
    return sorted(effects, key=lambda effect: -effect.size)


def _blocks(arm: Tried) -> set[str]:
    return {block for blocks in arm.seeds.values() for block in blocks}


def _levels(key: str, keys: Sequence[str], arms: Mapping[str, Tried]) -> tuple[Level, ...]:
    others = [other for other in keys if other != key]
    cells: dict[str, dict[tuple[str, ...], list[Tried]]] = defaultdict(lambda: defaultdict(list))
    names: dict[str, list[str]] = defaultdict(list)
    for name, arm in arms.items():
        value = arm.settings.get(key, NONE)
        cells[value][tuple(arm.settings.get(other, NONE) for other in others)].append(arm)
        names[value].append(name)
    start = next(iter(cells))
    levels = []
    for value, of_value in cells.items():
        mean = averaged([averaged(list(arm.seeds.values())) for of_cell in of_value.values() for arm in of_cell])
        alone = difference_of_seeds({"": mean}, {"": _exact(mean)})  # from an error of 0: the score's own interval
        level = Level(value, tuple(names[value]), alone.difference, alone.low, alone.high)
        shared = [cell for cell in of_value if cell in cells[start]]
        if value != start and shared:
            ours, theirs = (_by_seed([arm for cell in shared for arm in at[cell]]) for at in (of_value, cells[start]))
            level = replace(level, difference=difference_of_seeds(ours, theirs), matched=len(shared))
        levels.append(level)
    return tuple(levels)


def _by_seed(arms: Sequence[Tried]) -> dict[str, BlockSums]:
    """Means over arms by seed, of the seeds that all have; one mean over everything where they have none."""
    shared = [seed for seed in arms[0].seeds if all(seed in arm.seeds for arm in arms)]
    if not shared:
        return {"": averaged([averaged(list(arm.seeds.values())) for arm in arms])}
    return {seed: averaged([arm.seeds[seed] for arm in arms]) for seed in shared}


def _exact(blocks: BlockSums) -> dict[str, Sums]:
    """Sums of a prediction that is the target."""
    exact = {}
    for name, sums in blocks.items():
        n, y, yy = sums.values[:3]
        exact[name] = Sums(torch.stack([n, y, yy, y, yy, yy, torch.zeros_like(n), torch.zeros_like(n)]))
    return exact


def holm(values: Iterable[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979, Scand. J. Statist. 6, 65-70); NaN stays and does not count."""
    found = list(values)
    order = sorted((p, i) for i, p in enumerate(found) if p == p)
    adjusted, least = [float("nan")] * len(found), 0.0
    for rank, (p, i) in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p))
        adjusted[i] = least
    return adjusted
