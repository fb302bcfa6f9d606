"""Hydra callback of a sweep: one MLflow parent run, its children's table at the end."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sifscale.config import ConfigError, Study, Tracking, plain, refuse

log = logging.getLogger(__name__)


class SweepCallback(Callback):
    """Opens the parent run before the first job, closes it after the last and prints the study's table.

    Does nothing for single runs and for ``check=true``. MLflow is imported only when a sweep really starts.
    """

    def __init__(self) -> None:
        self._parent: str | None = None
        self._failed = False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the database, the experiment and the parent run, so that parallel jobs find them."""
        if config.check:
            return
        try:
            tracking = _tracking(config)
        except ConfigError as error:
            refuse(error)
        from sifscale.tracking import start_parent

        name = config.study.name if config.study else "sweep"
        self._parent = start_parent(tracking, name, list(config.hydra.overrides.task))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Remember whether any job failed."""
        self._failed |= job_return.status != JobStatus.COMPLETED

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close the parent run and show the table of what finished."""
        if self._parent is None:
            return
        from sifscale.tracking import end_parent

        tracking = _tracking(config)
        end_parent(tracking, self._parent, failed=self._failed)
        values = plain(config)
        if values["study"]:
            folder = Path(config.hydra.sweep.dir)
            _show_study(
                Study.model_validate(values["study"]), tracking, self._parent, folder, values["window"]
            )


def _tracking(config: DictConfig) -> Tracking:
    return Tracking.model_validate(plain(config)["tracking"])


def _show_study(study: Study, tracking: Tracking, parent: str, folder: Path, window: dict[str, Any]) -> None:
    from sifscale import report
    from sifscale.results import outcome
    from sifscale.tracking import children, client

    outcomes = [outcome(tracking, run, study.score) for run in children(tracking, parent)]
    if not outcomes:
        log.warning("study %s: no run finished, so there is no table", study.name)
        return
    rows = report.study_rows(study, outcomes)
    path = folder / f"{study.name}.json"
    path.write_text(json.dumps({"study": study.model_dump(), "rows": rows}, indent=1))
    client(tracking).log_artifact(parent, str(path))
    notes = [f"{row['arm']}: audit: {row['findings']}" for row in rows if row["findings"]]
    report.show(
        report.study_table(study, rows, window["units"].get(window["target"], "1")), *notes, f"table: {path}"
    )
