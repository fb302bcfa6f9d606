"""The jobs of a sweep: which one runs in this process, what became of each, and all of them checked before the first.

Launchers run jobs in processes of their own, where Hydra's callbacks see nothing of the others: each job leaves a
record in the sweep's folder, which is read at the end.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # the only place that says what its jobs are
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sifscale.config import ConfigError, RunConfig, plain, refuse, validate

log = logging.getLogger(__name__)
# Our options of a launcher have the plugin's name, which is meant: theirs are checked against its types.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

RECORDS = ".jobs"  # folder in that of the sweep
THREAD_VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")  # torch and scikit-learn follow the first


@dataclass(frozen=True)
class Record:
    """What became of a job: its MLflow run, or why there is none."""

    number: int
    run_id: str | None
    error: str | None


# --- inside a job ---------------------------------------------------------------------------------


def job_number() -> int | None:
    """Number of the job of a grid sweep that runs here, from 0; None for single commands and trials of a search."""
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    return int(hydra.job.num) if hydra.mode == RunMode.MULTIRUN and _is_grid(hydra.sweeper) else None


@contextmanager
def errors_reported() -> Iterator[None]:
    """What is wrong in the block: one line each and exit code 1; of a job of a sweep, kept for the end of the sweep.

    So the other jobs run. A trial of a search raises, and its search decides.
    """
    number = job_number()
    try:
        yield
    except ValueError as error:
        if number is not None:
            for line in _lines(error):
                log.error("job %d: %s", number, line)
            _record(number, _lines(error)[0])
        elif HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        else:
            refuse(error)
    except Exception as error:  # whatever it is, it must not end the other jobs; its traceback is in the job's log
        if number is None:
            raise
        log.exception("job %d failed", number)
        _record(number, f"{type(error).__name__}: {_lines(error)[0]}")
    else:
        if number is not None:
            _record(number, None)


def _lines(error: Exception) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]


def _record(number: int, error: str | None) -> None:
    hydra = HydraConfig.get()
    run = Path(hydra.runtime.output_dir) / "run_id"
    run_id = run.read_text().strip() if run.exists() and not error else None
    place = Path(hydra.sweep.dir) / RECORDS / f"{number}.json"
    place.parent.mkdir(exist_ok=True)
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(Record(number, run_id, error))))
    os.replace(partial, place)


# --- in the sweep's own process -------------------------------------------------------------------


def take_records(folder: Path) -> list[Record]:
    """What jobs have left in a sweep's folder, by number; it is removed."""
    found = [Record(**json.loads(path.read_text())) for path in (folder / RECORDS).glob("*.json")]
    shutil.rmtree(folder / RECORDS, ignore_errors=True)
    return sorted(found, key=lambda record: record.number)


def grid(config: DictConfig) -> list[list[str]] | None:
    """Words of the command line of each job; None where the sweeper makes them up as it goes."""
    sweeper = config.hydra.sweeper
    if not _is_grid(sweeper):
        return None
    words = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides([*words, *config.hydra.overrides.task]), None)
    except HydraException as error:
        raise ConfigError([_hydra_line(error)]) from None
    return jobs


def _hydra_line(error: Exception) -> str:
    """What Hydra says, in one line and without the places where it has looked."""
    return " ".join(str(error).partition("Config search path:")[0].split())


def key_of(word: str) -> str:
    """``+experiment/lbp_ablation=none`` -> ``experiment/lbp_ablation``"""
    return word.partition("=")[0].lstrip("+~")


def swept(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Keys that differ between jobs, in order of appearance."""
    words_by_key: dict[str, set[str]] = defaultdict(set)
    for word in (word for words in jobs for word in words):
        words_by_key[key_of(word)].add(word)
    return [key for key, words in words_by_key.items() if len(words) > 1]


def named(numbers: Sequence[int], jobs: Sequence[Sequence[str]]) -> str:
    """``jobs 1, 4 (model=sifnet)``: some of the jobs, and what they have in common but not with all the others."""
    if len(numbers) == len(jobs) > 1:
        return f"all {len(jobs)} jobs"
    keys = set(swept(jobs))
    first, *others = (jobs[number] for number in numbers)
    shared = [word for word in first if key_of(word) in keys and all(word in words for words in others)]
    name = f"job{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
    return f"{name} ({' '.join(shared)})" if shared else name


def check_jobs(config: DictConfig, jobs: Sequence[Sequence[str]]) -> list[RunConfig]:
    """Validated configuration of every job; raises ConfigError with each fault once and the jobs that have it."""
    found: list[RunConfig] = []
    faults: dict[str, list[int]] = defaultdict(list)
    loader = GlobalHydra.instance().config_loader()
    for number, words in enumerate(jobs):
        try:
            run = validate(plain(loader.load_sweep_config(config, list(words))), RunConfig)
            if run.trainer.strategy == "ddp":  # Lightning starts its processes with the words of the whole sweep
                raise ConfigError(["trainer.strategy: must be auto in a sweep (found 'ddp'); run such jobs one by one"])
            found.append(run)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            lines = error.faults if isinstance(error, ConfigError) else [_hydra_line(error)]
            for line in dict.fromkeys(lines):
                faults[line].append(number)
    if faults:
        raise ConfigError([f"{named(numbers, jobs)}: {line}" for line, numbers in faults.items()])
    return found


def share_cores(config: DictConfig, jobs: int) -> dict[str, str]:
    """Variables that give each of the jobs that run at once on this machine its share of the cores.

    Empty where jobs run one after the other or elsewhere. What the user has set stays. Of ``n_jobs: -1`` no more
    workers are made than there are jobs, so that few jobs on many cores have several each.
    """
    launcher = config.hydra.launcher
    kind = str(launcher.get("_target_", "")).rpartition(".")[2]
    if kind not in ("JoblibLauncher", "LocalLauncher") or not jobs:
        return {}
    from joblib import cpu_count  # minds the limits of containers and batch systems

    at_once = min(jobs, config.hydra.sweeper.get("max_batch_size") or jobs)
    if kind == "JoblibLauncher":
        asked = int(launcher.n_jobs)
        at_once = min(at_once, asked if asked > 0 else max(1, cpu_count() + 1 + asked))
        with read_write(config.hydra), open_dict(config.hydra):
            launcher.n_jobs = at_once
    threads = str(max(1, cpu_count() // at_once))
    return {name: threads for name in THREAD_VARIABLES if name not in os.environ}


def give_variables(config: DictConfig, values: Mapping[str, str]) -> None:
    """Set environment variables in each job, in whatever process it runs, also in workers that are there already."""
    with read_write(config.hydra), open_dict(config.hydra):
        for name, value in values.items():
            config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{name}='{value}'")


def _is_grid(sweeper: Any) -> bool:
    return str(sweeper.get("_target_", "")).endswith(".BasicSweeper")
