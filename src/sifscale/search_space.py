"""What a search draws from: Hydra's words for sweeps as Optuna's distributions, and a draw as words again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from sifscale.config import ConfigError


@dataclass(frozen=True)
class SearchSpace:
    """Words of a command line that every trial has, and distributions by key of those that are drawn."""

    fixed: tuple[str, ...]
    distributions: dict[str, BaseDistribution]

    @property
    def description(self) -> dict[str, str]:
        """Distribution by key as text, to be compared with those of a search that goes on."""
        return {key: distribution_to_json(distribution) for key, distribution in self.distributions.items()}


def search_space(params: Mapping[str, Any], words: Sequence[str], loader: ConfigLoader | None = None) -> SearchSpace:
    """Space of ``params`` (key -> sweep) and of a command line's words, which replace params of the same key.

    loader: needed for ``glob(...)`` only. Raises ConfigError for words that are no sweep Optuna can draw from, and
    where nothing is left to draw.
    """
    parser = OverridesParser.create(config_loader=loader)
    try:
        overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *words])
    except HydraException as error:
        raise ConfigError([f"hydra.sweeper.params: {' '.join(str(error).split())}"]) from None
    last = {(override.key_or_group, override.package): override for override in overrides}
    fixed = tuple(str(override.input_line) for override in last.values() if not override.is_sweep_override())
    sweeps = {override.get_key_element(): override for override in last.values() if override.is_sweep_override()}
    if not sweeps:
        raise ConfigError(
            ["hydra.sweeper.params: must name what is searched, as in 'model.kernel_size=choice(3,5,7)' (found none)"]
        )
    return SearchSpace(fixed, {key: _distribution(key, override) for key, override in sweeps.items()})


def _distribution(key: str, override: Override) -> BaseDistribution:
    value, found = override.value(), override.input_line
    tags: set[str] = getattr(value, "tags", set())
    log = "log" in tags
    if tags - {"log"} or (log and override.is_choice_sweep()):
        raise ConfigError([f"{key}: must have no tag but log, on an interval or range of numbers (found {found})"])
    try:
        if override.is_choice_sweep():
            return CategoricalDistribution([_choice(item) for item in override.sweep_iterator()])
        if isinstance(value, RangeSweep):
            return _ordered(list(value.range()), abs(value.step), log)
        assert isinstance(value, IntervalSweep) and value.start is not None and value.end is not None
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(value.start, value.end, log=log)
    except ValueError as error:
        raise ConfigError([f"{key}: {' '.join(str(error).split())} (found {found})"]) from None


def _ordered(items: Sequence[int | float], step: int | float, log: bool) -> BaseDistribution:
    """Of evenly spaced numbers; ``range(2,6)`` has no 6, as in Python and Hydra."""
    if not items:
        raise ValueError("must hold one number or more")
    low, high = min(items), max(items)
    if isinstance(step, int) and isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=step)
    return FloatDistribution(low, high, log=log, step=None if log else step)


def _choice(item: Any) -> bool | int | float | str:
    """Numbers as they are; all else (lists, sections, text) as the words that Hydra reads back."""
    return item if isinstance(item, bool | int | float) else str(Transformer.str(item))


def words_of(drawn: Mapping[str, Any]) -> list[str]:
    """A draw as words of a command line."""
    return [f"{key}={value}" for key, value in drawn.items()]
