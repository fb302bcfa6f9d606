"""The job's side of a search: the trial that this process runs, what it reports, and whether it goes on.

A job learns of its trial from its Hydra configuration, ``hydra.sweeper.trial``, in whatever process it runs. Outside a
search nothing here does anything, and Optuna is not loaded.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sifscale.config import validate
from sifscale.config.search_sections import SearchOptions
from sifscale.tracking import Pruned

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

BUSY_S = 60  # how long a job waits for others to write to the database
REASON = "reason"  # attribute of trials without a value: why


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """The database of a search; workers wait for each other instead of failing."""
    import optuna

    arguments = {"connect_args": {"timeout": BUSY_S}} if url.startswith("sqlite:") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=arguments)


def make_pruner(options: SearchOptions) -> optuna.pruners.BasePruner:
    """Who judges whether a run is hopeless; epochs are Optuna's steps and resources."""
    from optuna import pruners

    if options.pruner == "median":
        return pruners.MedianPruner(options.median.startup_trials, options.median.warmup_epochs)
    if options.pruner == "hyperband":
        hyperband = options.hyperband
        return pruners.HyperbandPruner(hyperband.min_epochs, hyperband.max_epochs, hyperband.reduction_factor)
    return pruners.NopPruner()


def trial_by_number(study: optuna.Study, storage: optuna.storages.BaseStorage, number: int) -> optuna.Trial:
    """A trial that is running, to report to it from any process."""
    import optuna

    study_id = storage.get_study_id_from_name(study.study_name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))


class SearchTrial:
    """The trial of this job. Over folds, its value is the mean of what each fold kept, and so are its reports."""

    def __init__(self, options: SearchOptions, number: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.metric, self.number, self._folds = options.metric, number, list[float]()
        storage = open_storage(str(options.storage))
        self._study = optuna.load_study(
            study_name=options.study_name,
            storage=storage,
            sampler=optuna.samplers.RandomSampler(),  # the search has drawn already; any will do
            pruner=make_pruner(options),
        )
        self._trial = trial_by_number(self._study, storage, number)

    def report(self, scores: Mapping[str, float], epoch: int, epochs: int) -> str:
        """Scores of an epoch (from 0, of ``epochs``) of the fold that is trained; why it is hopeless, empty if not."""
        value = fmean([*self._folds, self._value(scores)])
        self._trial.report(value, len(self._folds) * epochs + epoch)
        if not self._trial.should_prune():
            return ""
        return f"{self.metric} {value:.4g} at epoch {epoch}" + (f" of fold {len(self._folds)}" if self._folds else "")

    def trained(self, kept: Mapping[str, float]) -> None:
        """Validation scores of the epoch that a run, or a fold of it, kept; later reports are of the next fold."""
        self._folds.append(self._value(kept))

    def complete(self) -> None:
        """All is trained and tested: tell the trial's value."""
        value = fmean(self._folds)
        if not math.isfinite(value):
            raise ValueError(f"{self.metric}: must be a number for a search (found {value})")
        self._study.tell(self.number, value)

    def ended_without_value(self, state: str, reason: str) -> None:
        """state: PRUNED, by the search or by a refusal, or FAIL."""
        import optuna

        self._trial.set_user_attr(REASON, reason)
        self._study.tell(self.number, state=optuna.trial.TrialState[state])

    def _value(self, scores: Mapping[str, float]) -> float:
        if self.metric not in scores:
            known = ", ".join(sorted(name for name in scores if name.startswith("val/"))) or "none of them"
            raise ValueError(
                f"hydra.sweeper.metric: must be what this run has, {known} (found '{self.metric}')"
            )
        return float(scores[self.metric])


def trial_tags(trial: SearchTrial | None) -> dict[str, str]:
    """What tells the MLflow run of a trial from its neighbours."""
    return {"trial": str(trial.number)} if trial else {}


@contextmanager
def trial_of_this_job() -> Iterator[SearchTrial | None]:
    """The trial that this process runs, None outside a search; the search learns how the block ends.

    Swallows what ends a trial but not the search: that it is hopeless, and a configuration that the data refuse
    (ValueError). A job that is killed or interrupted leaves its trial running, for the next start to repeat.
    """
    initialised = HydraConfig.initialized()  # not where a run is started from Python
    sweeper = OmegaConf.to_container(HydraConfig.get().sweeper, resolve=True) if initialised else None
    if not isinstance(sweeper, dict) or sweeper.get("trial") is None:
        yield None
        return
    trial = SearchTrial(validate(sweeper, SearchOptions), sweeper["trial"])
    try:
        yield trial
    except (Pruned, ValueError) as stop:
        reason = " ".join(str(stop).split())
        log.info("trial %d: %s: %s", trial.number, "pruned" if isinstance(stop, Pruned) else "refused", reason)
        trial.ended_without_value("PRUNED", reason)
    except Exception as error:
        trial.ended_without_value("FAIL", f"{type(error).__name__}: {error}")
        raise
