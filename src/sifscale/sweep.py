"""A sweep (``train.py -m``): all jobs checked before the first, one MLflow parent run, and at the end a table.

Hydra's callback opens the parent. Whoever runs ``main`` closes it: Hydra calls no callback after a failed job.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sifscale.config import Study, Tracking, plain, refuse
from sifscale.jobs import Record, check_jobs, give_variables, grid, key_of, named, share_cores, swept, take_records

if TYPE_CHECKING:
    from sifscale.report import Outcome

log = logging.getLogger(__name__)

REPEATED = {"seed", "split.folds"}  # sweeping these repeats an arm
TAG_LIMIT = 5000  # characters; MLflow refuses longer tags


@dataclass(frozen=True)
class Sweep:
    """A sweep that runs: where it is logged, its folder, words of each job (None: a search makes them up)."""

    config: DictConfig
    tracking: Tracking
    parent: str
    name: str
    folder: Path
    jobs: list[list[str]] | None
    variables: dict[str, str]


_open: list[Sweep] = []  # the sweep of this process, none or one


class SweepCallback(Callback):
    """Before the first job: validates all of them, creates the database, opens the parent run.

    With ``check=true`` it stops there. MLflow is imported only when a sweep really starts.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Leaves with exit code 1, and a line for each fault, where a job cannot be run."""
        try:
            jobs = grid(config)
            runs = check_jobs(config, jobs or [])
            if not config.check:
                _open[:] = [_start(config, jobs)]
            elif jobs is not None:  # a search checks its own
                for number, run in enumerate(runs):
                    print(f"ok: {named([number], jobs)}: {run.label}")
                sys.exit(0)
        except ValueError as error:
            refuse(error)


@contextmanager
def closed_whatever_happens() -> Iterator[None]:
    """Around ``main``: a sweep's parent run is closed also after failed jobs, Ctrl-C and SIGTERM.

    Leaves with exit code 1 where a job failed, and 128 + the signal's number where one stopped the command.
    """
    signals: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            yield
        except BaseException:
            for number in handlers if signals else ():
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave the sweep open
            _close(stopped=bool(signals), broken=True)
            if signals:
                print(f"stopped by {signal.Signals(signals[0]).name}", file=sys.stderr)
                sys.exit(128 + signals[0])
            raise
        if not _close(stopped=False):
            sys.exit(1)
    except ValueError as error:  # of the table
        refuse(error)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start(config: DictConfig, jobs: list[list[str]] | None) -> Sweep:
    from sifscale.tracking import PARENT_VARIABLE, close_dead, start_parent

    values = plain(config)
    tracking, folder = Tracking.model_validate(values["tracking"]), Path(config.hydra.sweep.dir)
    for run in close_dead(tracking):
        log.info("run %s (%s) was killed: its process is gone", run.info.run_id, run.info.run_name)
    take_records(folder)  # of a killed sweep in the same folder
    keys = ", ".join(swept(jobs or []))
    name = values["study"]["name"] if values["study"] else f"sweep of {keys}" if keys else "sweep"
    if jobs is None:
        name = f"search {config.hydra.sweeper.get('study_name') or ''}".strip()
    parent = start_parent(tracking, name, list(config.hydra.overrides.task))
    # after the database: more workers than cores must not race to make it
    variables = share_cores(config, len(jobs or []))
    os.environ.update(variables)
    give_variables(config, {PARENT_VARIABLE: parent})
    return Sweep(config, tracking, parent, name, folder, jobs, variables)


def _close(*, stopped: bool, broken: bool = False) -> bool:
    """End the parent run of the open sweep, if any, and show its table; whether all jobs came to their end."""
    if not _open:
        return True
    from sifscale.processes import end_children
    from sifscale.tracking import close_dead, end_parent

    sweep = _open.pop()
    for name in sweep.variables:
        os.environ.pop(name, None)
    if stopped:
        end_children()
    jobs, records = sweep.jobs or [], take_records(sweep.folder)
    failed = [record for record in records if record.error]
    lost = sorted(set(range(len(jobs))) - {record.number for record in records})
    lines = [f"{named([record.number], jobs)}: {record.error}" for record in failed]
    tags = {"failed_jobs": "\n".join(lines)[:TAG_LIMIT]} if lines else {}
    if lost:
        tags["unfinished_jobs"] = ", ".join(map(str, lost))[:TAG_LIMIT]
    status = "KILLED" if stopped else "FAILED" if failed or lost or broken else "FINISHED"
    end_parent(sweep.tracking, sweep.parent, status, tags)
    close_dead(sweep.tracking)
    if sweep.jobs is not None and not stopped:
        _show_table(sweep, jobs, [record for record in records if record.run_id])
    if failed or lost:
        log.error("%d of %d jobs failed, %d did not come to their end", len(failed), len(jobs), len(lost))
        for line in lines:
            log.error("failed: %s", line)
        log.error("the same command again repeats none that has finished")
    return status == "FINISHED"


def _show_table(sweep: Sweep, jobs: Sequence[Sequence[str]], records: Sequence[Record]) -> None:
    """Print the table of the sweep's finished runs, in the order of its jobs, and keep it in folder and parent run."""
    from mlflow.exceptions import MlflowException

    from sifscale import report, study_files
    from sifscale.tracking import attached

    values, keys = plain(sweep.config), set(swept(jobs))
    plain_sweep = {"name": "sweep", "title": sweep.name, "pool": "folds" if "split.folds" in keys else "none"}
    study = Study.model_validate(values["study"] or plain_sweep | {"score": "test", "baseline": None, "reference": {}})
    try:
        outcomes = _outcomes(sweep.tracking, study.score, jobs, records)
    except MlflowException as error:
        log.warning("no table: the runs cannot be read from %s (%s)", sweep.tracking.uri, str(error).splitlines()[0])
        return
    if not outcomes:
        log.warning("%s: no run finished, so there is no table", sweep.name)
        return
    rows = report.study_rows(study, outcomes)
    ids = {record.number: str(record.run_id) for record in records}.values()
    runs = zip((outcome.arm for outcome in outcomes), ids, strict=True)
    path = study_files.write(sweep.folder, study, rows, runs, sweep.tracking)
    attached(sweep.tracking, sweep.parent).artifact(path)
    window = values["window"]
    notes = [f"{row['arm']}: audit: {row['findings']}" for row in rows if row["findings"]]
    units = window["units"].get(window["target"], "1")
    report.show(report.study_table(study, rows, units), *notes, f"table: {path}")


def _outcomes(
    tracking: Tracking, score: str, jobs: Sequence[Sequence[str]], records: Sequence[Record]
) -> list[Outcome]:
    """What each finished job left. Jobs of one arm that do not repeat it are arms of their own: ``arm, key=value``."""
    from sifscale.study_runs import outcome
    from sifscale.tracking import client

    mlflow = client(tracking)
    runs = {record.number: mlflow.get_run(str(record.run_id)) for record in records}
    arms = {number: run.data.tags["arm"] for number, run in runs.items()}
    outcomes = []
    for number, run in runs.items():
        same = [jobs[other] for other, arm in arms.items() if arm == arms[number]]
        telling = set(swept(same)) - REPEATED
        words = [word for word in jobs[number] if key_of(word) in telling]
        outcomes.append(outcome(tracking, run, score, ", ".join([arms[number], *words])))
    return outcomes
