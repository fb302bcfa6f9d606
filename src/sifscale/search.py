"""A search: Optuna draws the trials, Hydra's launcher runs them, a database keeps them, so that a kill loses no more
than the runs that were under way. Each trial is a training run of its own, judged by the validation part alone.

Draws depend on the seed and on the number of the draw, not on how often the search was started.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState

from sifscale import search_results
from sifscale.config import ConfigError, RunConfig, load, plain, refuse, validate
from sifscale.config.no_result import changes_result
from sifscale.config.search_sections import SearchOptions
from sifscale.jobs import give_variables, share_cores
from sifscale.report import show
from sifscale.search_space import SearchSpace, search_space, words_of
from sifscale.tracking import flat
from sifscale.trial import REASON, make_pruner, open_storage, trial_by_number

log = logging.getLogger(__name__)

INTERRUPTED = "interrupted"  # attribute of trials whose process died; they were drawn again
BASE, SPACE = "base", "space"  # attributes of a study: what all its trials have, and what they are drawn from
REFUSED_AT_START = 10  # so many refusals and nothing else: the fault is not in the draws


def search(config: DictConfig, loader: ConfigLoader, launcher: Launcher, words: Sequence[str]) -> None:
    """Run, or go on with, the search that ``config`` (of a Hydra sweep) and the command line's ``words`` describe.

    Leaves with exit code 1 and one line a fault where it cannot be run or no trial gets a value.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        plan = _plan(config, loader, launcher, words)
        if config.check:
            _check(plan)
            return
        with _alone(plan.folder):
            _run(plan)
    except ValueError as error:
        refuse(error)


@dataclass(frozen=True)
class Plan:
    """All that a search needs: what was asked for, and Hydra's means to do it."""

    name: str
    options: SearchOptions
    space: SearchSpace
    folder: Path
    config: DictConfig
    loader: ConfigLoader
    launcher: Launcher

    @property
    def storage(self) -> str:
        return self.options.storage or f"sqlite:///{self.folder / 'study.db'}"

    @property
    def at_once(self) -> int:
        """Trials that are drawn and started together."""
        launcher = self.config.hydra.launcher
        parallel = launcher.get("n_jobs", 1) if "joblib" in launcher["_target_"] else 1
        return self.options.n_jobs or (parallel if parallel > 0 else os.cpu_count() or 1)

    def compose(self, words: Sequence[str]) -> DictConfig:
        """The configuration of a single run with these words."""
        name = self.config.hydra.job.config_name
        return self.loader.load_configuration(config_name=name, overrides=list(words), run_mode=RunMode.RUN)


def _plan(config: DictConfig, loader: ConfigLoader, launcher: Launcher, words: Sequence[str]) -> Plan:
    try:
        options = validate(OmegaConf.to_container(config.hydra.sweeper, resolve=True), SearchOptions)
    except ConfigError as error:
        raise ConfigError([f"hydra.sweeper.{fault}" for fault in error.faults]) from None
    name = options.study_name or (config.study.name if config.study else None)
    name = name or config.hydra.runtime.choices.get("experiment") or "search"
    folder = Path(config.paths.output).resolve() / "search" / name
    return Plan(name, options, search_space(options.params, words, loader), folder, config, loader, launcher)


def _check(plan: Plan) -> None:
    """``check=true``: validate a dozen random draws, keep nothing."""
    refused: list[str] = []
    study, count = optuna.create_study(), min(plan.options.n_trials, 12)
    for number in range(count):
        study.sampler = optuna.samplers.RandomSampler(_seed(plan.options.seed, number))
        drawn = study.ask(plan.space.distributions).params
        if fault := _refusal(plan, drawn):
            refused.append(fault)
            show(f"refused: {' '.join(words_of(drawn))}: {fault}")
    if len(refused) == count:
        raise ConfigError([f"none of {count} draws is a valid configuration, {refused[0]}"])
    show(f"ok: search {plan.name}, {count - len(refused)} of {count} draws are valid")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process a search: what is running in the database when it starts has died with another one."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "study.lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            [f"hydra.sweeper.study_name: another process runs this search; wait for it, or give another name (found "
             f"'{folder.name}')"]
        ) from None  # fmt: skip


def _run(plan: Plan) -> None:
    variables = share_cores(plan.config, plan.at_once)
    os.environ.update(variables)
    give_variables(plan.config, variables)
    study, storage = _open(plan)
    _requeue(study, storage)
    if len(_ended(study)) >= plan.options.n_trials:
        show(f"search {plan.name}: all {plan.options.n_trials} trials have ended; hydra.sweeper.n_trials asks for more")
    failures = Counter[TrialState]()
    while (left := plan.options.n_trials - len(_ended(study))) > 0:
        failures.update(trial.state for trial in _batch(plan, study, storage, min(left, plan.at_once)))
        if failures[TrialState.FAIL] >= plan.options.max_failures:
            crashed = study.get_trials(states=(TrialState.FAIL,))[-1].user_attrs[REASON]
            raise ConfigError(
                [f"search {plan.name}: {failures[TrialState.FAIL]} runs crashed, the last with {crashed}; mend that "
                 "and start it again to go on"]
            )  # fmt: skip
        _stop_where_all_is_refused(plan, study)

    def words(trial: FrozenTrial) -> list[str]:
        return [*plan.space.fixed, *words_of(trial.params)]

    search_results.publish(study, plan.folder, plan.options.metric, words, plan.compose)


def _open(plan: Plan) -> tuple[optuna.Study, optuna.storages.RDBStorage]:
    """The study in its database, new or the same search as before; ValueError where it is another one."""
    try:
        storage = open_storage(plan.storage)
    except Exception as error:  # each database fails in the way of its libraries
        raise ConfigError(
            [f"hydra.sweeper.storage: cannot be opened, {str(error).splitlines()[0]} (found '{plan.storage}')"]
        ) from None
    study = optuna.create_study(
        storage=storage,
        study_name=plan.name,
        direction=plan.options.direction,
        pruner=make_pruner(plan.options),
        load_if_exists=True,
    )
    now = {
        BASE: {key: value for key, value in flat(plain(plan.config)).items() if _is_fixed(key)},
        SPACE: {"metric": plan.options.metric} | plan.space.description,
    }
    for part, values in now.items():
        was = study.user_attrs.get(part, values)
        changed = sorted(key for key in was | values if was.get(key) != values.get(key))
        if changed:
            raise ConfigError(
                [f"{key}: must be as in search {plan.name}, which goes on: {was.get(key)}; or give another "
                 f"hydra.sweeper.study_name (found {values.get(key)})" for key in changed]
            )  # fmt: skip
        study.set_user_attr(part, values)
    return study, storage


def _is_fixed(key: str) -> bool:
    """Whether a search that goes on must have the value that it had; not what it is called."""
    return changes_result(key) and key not in ("arm", "study") and not key.startswith("study.")


def _requeue(study: optuna.Study, storage: optuna.storages.RDBStorage) -> None:
    """What was running when the process died failed, and is to be run again with the same draw."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        trial_by_number(study, storage, trial.number).set_user_attr(INTERRUPTED, True)
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)
        log.info("trial %d was interrupted and is run again", trial.number)


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count: with a value, pruned, refused or crashed, but not interrupted."""
    return [trial for trial in study.trials if trial.state.is_finished() and INTERRUPTED not in trial.user_attrs]


def _batch(plan: Plan, study: optuna.Study, storage: optuna.storages.RDBStorage, count: int) -> list[FrozenTrial]:
    """Draw, run and judge ``count`` trials at once; draws that the configuration refuses end without a run."""
    numbers: list[int] = []
    jobs: list[list[str]] = []
    for _ in range(count):
        study.sampler = sampler_of_draw(plan.options, len(_ended(study)) + len(jobs))
        asked = study.ask(plan.space.distributions)
        numbers.append(asked.number)
        if fault := _refusal(plan, asked.params):
            log.info("trial %d: refused: %s", asked.number, fault)
            asked.set_user_attr(REASON, fault)
            study.tell(asked, state=TrialState.PRUNED)
        else:
            jobs.append(_job_words(plan, asked.number, asked.params))
    returned = plan.launcher.launch(jobs, initial_job_idx=numbers[0]) if jobs else []
    for job in returned:
        try:
            _ = job.return_value
        except Exception:
            log.exception("a run crashed; the search goes on")
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # its job died without a word
        trial_by_number(study, storage, trial.number).set_user_attr(REASON, "the run ended without a value")
        study.tell(trial.number, state=TrialState.FAIL)
    ended = [study.trials[number] for number in numbers]
    for trial in ended:
        if trial.state == TrialState.COMPLETE:
            log.info("trial %d: %s %.4g", trial.number, plan.options.metric, trial.value)
    log.info("search %s: %d of %d trials", plan.name, len(_ended(study)), plan.options.n_trials)
    return ended


def sampler_of_draw(options: SearchOptions, draw: int) -> optuna.samplers.BaseSampler:
    """A sampler for one draw (from 0): with one for all, a search that goes on would repeat its first draws."""
    seed = _seed(options.seed, draw)
    if options.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    return optuna.samplers.TPESampler(n_startup_trials=options.startup_trials, seed=seed, constant_liar=True)


def _seed(seed: int, draw: int) -> int:
    return int(np.random.SeedSequence((seed, draw)).generate_state(1)[0])


def _refusal(plan: Plan, drawn: Mapping[str, Any]) -> str:
    """Why the configuration of a draw cannot be run, in one line; empty where it can."""
    try:
        run = load(plan.compose([*plan.space.fixed, *words_of(drawn)]), RunConfig)
        if run.trainer.strategy == "ddp":  # Lightning starts its processes with the words of the whole search
            return "trainer.strategy: must be auto in a search (found 'ddp')"
    except ConfigError as error:
        return "; ".join(error.faults)
    except HydraException as error:
        return " ".join(str(error).split())
    return ""


def _job_words(plan: Plan, number: int, drawn: Mapping[str, Any]) -> list[str]:
    """Words of a trial's run; it has a folder and a name of its own, and is told its trial."""
    return [
        *plan.space.fixed,
        *words_of(drawn),
        f"arm='trial {number}'",
        f"hydra.sweep.subdir=trial_{number}",
        f"hydra.sweeper.trial={number}",
        f"hydra.sweeper.study_name={plan.name}",
        f"hydra.sweeper.storage={QuotedString(plan.storage, Quote.single).with_quotes()}",
    ]


def _stop_where_all_is_refused(plan: Plan, study: optuna.Study) -> None:
    ended = _ended(study)
    if len(ended) >= REFUSED_AT_START and not any(trial.intermediate_values or trial.values for trial in ended):
        last = ended[-1].user_attrs.get(REASON)
        raise ConfigError([f"search {plan.name}: none of {len(ended)} trials could be run; the last: {last}"])
