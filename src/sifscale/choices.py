"""The choices of runs: which configuration keys differ between them, and which of these only follow another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from sifscale.config.no_result import changes_result

# What makes the ground of a test, which numbers tell runs of one arm apart, and on what they ran.
NO_CHOICE = ("window.", "split.", "evaluation.")
NO_CHOICE_KEYS = {"arm", "seed", "channels", "protocol", "trainer.accelerator", "trainer.devices"}
NONE = "none"  # what a run that lacks the key has

Settings = Mapping[str, str]  # value by key of the configuration, what is null left out


def settings(params: Mapping[str, str]) -> dict[str, str]:
    """What of a run's parameters, flat as MLflow keeps them, is a choice; a list of sections is taken apart.

    ``features.lbp: '[{"source": "evi"}]'`` becomes ``features.lbp.source: evi``, a second section
    ``features.lbp[1].source``. Null is the same as absent, so that a choice can be to leave something out.
    """
    whole: dict[str, str] = {}
    for name in sorted(params, key=_part):  # values that MLflow keeps in parts are joined
        key = name.partition("/")[0]
        whole[key] = whole.get(key, "") + params[name]
    found: dict[str, str] = {}
    for key in dict.fromkeys(name.partition("/")[0] for name in params):
        value = whole[key]
        if changes_result(key) and key not in NO_CHOICE_KEYS and not key.startswith(NO_CHOICE):
            found |= _apart(key, value)
    return {key: value for key, value in found.items() if value not in ("None", "null", "")}


def _part(name: str) -> int:
    """Number of a part of a parameter, ``key/2`` (see ``tracking.fitting``)."""
    number = name.partition("/")[2]
    return int(number) if number.isdigit() else 0


def _apart(key: str, value: str) -> dict[str, str]:
    if not value.startswith("[{"):
        return {key: value}
    try:
        sections = json.loads(value)
    except ValueError:  # cut to what MLflow takes
        return {key: value}
    found: dict[str, str] = {}
    for number, section in enumerate(sections):
        place = f"{key}[{number}]" if number else key
        for name, part in section.items():
            found[f"{place}.{name}"] = part if isinstance(part, str) else json.dumps(part)
    return {name: NONE if part == "null" else part for name, part in found.items()}


def differing(runs: Sequence[Settings]) -> list[str]:
    """Keys of which the runs have more than one value, in order of appearance."""
    keys = dict.fromkeys(key for run in runs for key in run)
    return [key for key in keys if len({run.get(key, NONE) for run in runs}) > 1]


def grouped(runs: Sequence[Settings]) -> dict[str, tuple[str, ...]]:
    """Keys that differ, each with those that only follow it: their values are known where its value is.

    A key of many values leads one of few; of keys that say the same the one that names its section (``model.name``).
    Keys that follow cannot be told from their leader by these runs.
    """
    keys = differing(runs)
    values = {key: [run.get(key, NONE) for run in runs] for key in keys}
    order = sorted(keys, key=lambda key: (-len(set(values[key])), not key.endswith(".name"), key.count(".")))
    leaders: dict[str, list[str]] = {}
    for key in order:
        for leader, followers in leaders.items():
            if len(set(zip(values[leader], values[key], strict=True))) == len(set(values[leader])):
                followers.append(key)
                break
        else:
            leaders[key] = []
    return {key: tuple(followers) for key, followers in leaders.items()}
