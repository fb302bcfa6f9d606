"""A sweep that is started again: which of its jobs have a finished run already, and need none."""

from __future__ import annotations

import hashlib
import logging
import os
from functools import cache
from pathlib import Path

from mlflow.entities import Run

from sifscale.config import PROJECT_ROOT, RunConfig, digest
from sifscale.config.no_result import changes_result
from sifscale.jobs import job_number
from sifscale.tracking import ADOPTED, PARENT_VARIABLE, attached, finished, flat
from sifscale.windows import open_or_build

log = logging.getLogger(__name__)


def config_hash(run: RunConfig) -> str:
    """Short hash of everything in a configuration that can change a run's results or its place in a study."""
    values = flat(run.model_dump(mode="json", exclude={"study"}))
    kept = {key: value for key, value in values.items() if changes_result(key)}
    return digest(kept, run.study.name if run.study else None)


@cache
def code_hash() -> str:
    """Short hash of the package's source as it is on disk: committed or not, and whatever else has changed."""
    total = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        total.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    total.update((PROJECT_ROOT / "train.py").read_bytes() if (PROJECT_ROOT / "train.py").is_file() else b"")
    return total.hexdigest()[:16]


def identity(run: RunConfig, cube_hash: str) -> dict[str, str]:
    """Tags by which two runs are the same: configuration, cube and code."""
    return {"config_hash": config_hash(run), "cube_hash": cube_hash, "code_hash": code_hash()}


def finished_twin(run: RunConfig, cube_hash: str) -> Run | None:
    """The newest finished run of the experiment that is the same as this one would be; None where there is none."""
    same = " and ".join(f"tags.{key} = '{value}'" for key, value in identity(run, cube_hash).items())
    # what a search tried is in no study's table
    runs = [found for found in finished(run.tracking, same) if "trial" not in found.data.tags]
    return runs[-1] if runs else None


def adopt(run: RunConfig, folder: Path) -> Run | None:
    """For a job of a sweep, the finished run that makes it needless, put into the sweep in its place; else None.

    Nothing is skipped outside a sweep, and none with ``again=true``.
    """
    number = job_number()
    if number is None or run.again or run.resume:
        return None
    cube = open_or_build(run)
    try:
        twin = finished_twin(run, cube.hash)
    except ValueError as error:  # the tracking server is away: the run is kept here and sent later
        log.warning("cannot see whether this job has run already: %s", error)
        return None
    if twin is None:
        return None
    why = "has finished with the same configuration, cube and code: not repeated (again=true runs it anyway)"
    log.info("job %d (%s, seed %d): run %s %s", number, run.label, run.seed, twin.info.run_id, why)
    (folder / "run_id").write_text(twin.info.run_id)
    if parent := os.environ.get(PARENT_VARIABLE):
        attached(run.tracking, parent).tags({f"{ADOPTED}{number}": twin.info.run_id})
    return twin
