"""What a search found: the best trial as a study file, a table of the best, pictures, and all of it in MLflow."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import DictConfig, OmegaConf
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from sifscale import figures
from sifscale.config import ConfigError, Tracking, plain
from sifscale.report import show
from sifscale.tracking import PARENT_VARIABLE, attached
from sifscale.trial import REASON
from sifscale.whole import write_text

log = logging.getLogger(__name__)

GROUPS = ("window", "split", "crop", "features", "model", "trainer")
ELSEWHERE = ("paths", "dask", "tracking", "study", "arm", "check", "resume")  # who runs it, and where, says these again
SHOWN = 5  # rows of the table
ENOUGH = 5  # trials with a value, below which importances mean nothing

Compose = Callable[[Sequence[str]], DictConfig]


def publish(
    study: optuna.Study, folder: Path, metric: str, words: Callable[[FrozenTrial], list[str]], compose: Compose
) -> None:
    """Write the best trial's study file and the pictures below ``folder``, print the best, log all to the sweep's run.

    words: those of a trial's run; compose: the configuration of words. Raises ValueError where no trial has a value.
    """
    done = best_first(study)
    if not done:
        trials = [trial for trial in study.trials if REASON in trial.user_attrs]
        last = trials[-1].user_attrs[REASON] if trials else "none has ended"
        raise ConfigError([f"search {study.study_name}: no trial has a value, so none is the best; the last: {last}"])
    best, name = done[0], f"{study.study_name}_best"
    composed = compose(words(best))
    head = (
        f"Trial {best.number} of search {study.study_name}, the best of {len(done)} by {metric} = {best.value:.4f} "
        "(validation; not tested against the others)."
    )
    path = folder / "experiment" / f"{name}.yaml"
    write_study_file(path, head, composed, compose)
    pictures = {"history.png": history(study, metric)}
    if importances := _importances(study):
        pictures["importances.png"] = importance_bars(importances, metric)
    for file, picture in pictures.items():
        figures.save(picture, folder / file)
    show(table(study, metric), _counts(study), f"best trial: {path}")
    show(f"run it:     python train.py --config-dir {folder} experiment={name}")
    show(f"keep it:    copy the file to experiments/, then python train.py experiment={name}")
    if parent := os.environ.get(PARENT_VARIABLE):
        tracker = attached(Tracking.model_validate(plain(composed)["tracking"]), parent)
        tracker.tags({"search": study.study_name, "best_trial": str(best.number)})
        for artifact in (path, *(folder / file for file in pictures)):
            tracker.artifact(artifact)


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    """Trials with a value, the best first; of equal ones the earlier."""
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    done = study.get_trials(states=(TrialState.COMPLETE,))
    return sorted(done, key=lambda trial: sign * (trial.value or 0.0))


def write_study_file(path: Path, head: str, composed: DictConfig, compose: Compose) -> None:
    """The configuration ``composed`` as a study file: its groups, and each value that they do not fix.

    Values that the groups take from elsewhere (``${...}``) are written as they were, so that the file alone says them.
    """
    chosen = composed.hydra.runtime.choices
    groups = {group: chosen[group] for group in GROUPS if chosen.get(group)}
    base = compose([f"{group}={option}" for group, option in groups.items()])
    plainly = OmegaConf.to_container(base, resolve=False)
    assert isinstance(plainly, dict)
    wanted = {key: value for key, value in plain(composed).items() if key not in ELSEWHERE}
    values = {"arm": path.stem.replace("_", " "), **beyond(plainly, wanted)}
    lines = [
        "# @package _global_",
        f"# {head}",
        f"#   python train.py --config-dir THE_FOLDER_ABOVE_THIS_ONE experiment={path.stem}",
        "# Copied to experiments/, it needs no --config-dir.",
        "defaults:",
        *(f"  - override /{group}: {option}" for group, option in groups.items()),
        "",
        yaml.safe_dump(values, sort_keys=False, width=120),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines))


def beyond(base: Mapping[Any, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What must be laid over ``base`` to get ``wanted``; sections are taken apart, lists are not."""
    found: dict[str, Any] = {}
    for key, value in wanted.items():
        if key not in base or base[key] != value:
            both = isinstance(value, dict) and isinstance(base.get(key), dict)
            rest = beyond(base[key], value) if both else value
            if rest or not both:
                found[key] = rest
    return found


def table(study: optuna.Study, metric: str) -> Table:
    """The best trials, with what was drawn for them."""
    best = best_first(study)[:SHOWN]
    keys = list(dict.fromkeys(key for trial in best for key in trial.params))
    found = Table(title=f"search {study.study_name}: the best by {metric}")
    for column in ("trial", metric, *keys):
        found.add_column(column, justify="right")
    for trial in best:
        drawn = (_text(trial.params.get(key, "-")) for key in keys)
        found.add_row(str(trial.number), f"{trial.value:.4f}", *drawn)
    return found


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _counts(study: optuna.Study) -> str:
    """How the trials ended, as text."""
    ended = {"with a value": 0, "pruned": 0, "refused": 0, "crashed or interrupted": 0}
    for trial in study.trials:
        if trial.state == TrialState.COMPLETE:
            ended["with a value"] += 1
        elif trial.state == TrialState.PRUNED:
            ended["pruned" if trial.intermediate_values else "refused"] += 1
        elif trial.state == TrialState.FAIL:
            ended["crashed or interrupted"] += 1
    return "trials: " + ", ".join(f"{count} {how}" for how, count in ended.items() if count)


def _importances(study: optuna.Study) -> dict[str, float]:
    """Share of the variance that each key explains (fANOVA, Hutter et al. 2014); empty where nothing can be said."""
    values = {trial.value for trial in best_first(study)}
    if len(values) < ENOUGH:
        log.info("no importances: they need %d trials with different values, there are %d", ENOUGH, len(values))
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def history(study: optuna.Study, metric: str) -> Figure:
    """Value of each trial in their order, the best so far as a line; pruned runs at the value that ended them."""
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    done = sorted(best_first(study), key=lambda trial: trial.number)
    better = max if study.direction == StudyDirection.MAXIMIZE else min
    values = [float(trial.value or 0.0) for trial in done]
    so_far = [better(values[: i + 1]) for i in range(len(values))]
    numbers = [trial.number for trial in done]
    axes.plot(numbers, values, "o", color=figures.BLUE, label="finished")
    axes.step(numbers, so_far, where="post", color=figures.RED, label="best so far")
    stopped = [t for t in study.get_trials(states=(TrialState.PRUNED,)) if t.intermediate_values]
    if stopped:
        ends = [trial.intermediate_values[max(trial.intermediate_values)] for trial in stopped]
        axes.plot([t.number for t in stopped], ends, "x", color="0.5", label="pruned")
    axes.set(xlabel="trial", ylabel=metric, title=f"search {study.study_name}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def importance_bars(importances: Mapping[str, float], metric: str) -> Figure:
    """Importance of each key, the largest on top."""
    figure = Figure(figsize=(7.0, 1.2 + 0.35 * len(importances)), layout="constrained")
    axes = figure.subplots()
    keys = sorted(importances, key=lambda key: importances[key])
    bars = axes.barh(keys, [importances[key] for key in keys], color=figures.BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlabel=f"share of the variance of {metric} (dimensionless)", xlim=(0, 1.1), title="importance (fANOVA)")
    return figure
