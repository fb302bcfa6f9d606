"""Which runs of MLflow a table is made of: finished and tested ones, of one arm, seed and fold the newest."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from pydantic import ValidationError

from sifscale import bootstrap, choices
from sifscale.config import Study, Tracking
from sifscale.metrics import pooled
from sifscale.report import Outcome
from sifscale.tracking import artifact_json, client, finished

SUMS, CONFIG = "test_sums.json", "config.yaml"
BLOCK_SUMS = {score: f"{score}_block_sums.json" for score in ("test", "cells", "truth")}
NO_ARM = ("pruned", "trial")  # tags of runs that a search made or gave up
# Words of a command line that say where and in which parts a study ran, not what was run.
PLACES = ("-", "experiment=", "+experiment/", "paths.", "tracking.", "hydra")


@dataclass(frozen=True, eq=False)
class ArmRun:
    """A run and the arm that it belongs to: its tag, and what tells apart runs of one sweep that share the tag."""

    arm: str
    run: Run

    @property
    def seed(self) -> str:
        return str(self.run.data.params.get("seed", ""))


def newest_runs(runs: Sequence[Run], *, one_sweep: bool = False, by_ground: bool = False) -> list[ArmRun]:
    """Of several runs with one arm, seed and fold the newest; those of an arm together, arms as they were first tried.

    runs: oldest first. Runs of one sweep with different settings are different arms, whatever their tag; in another
    sweep a run with other settings replaces the older one. one_sweep: take all as of one sweep. by_ground: a run never
    replaces one that was tested elsewhere. A run of all folds and runs of single ones never count together: what is
    newer does.
    """
    labelled = _labelled(runs, one_sweep)
    arms = list(dict.fromkeys(one.arm for one in labelled))
    newest: dict[tuple[object, ...], ArmRun] = {}
    for one in labelled:
        ground = tuple(sorted(tested_on(one.run).items(), key=str)) if by_ground else ()
        same, folds = (one.arm, one.seed, ground), one.run.data.params.get("split.folds")
        for other in [key for key in newest if key[:3] == same and "all" in (folds, key[3]) and folds != key[3]]:
            del newest[other]
        newest[*same, folds] = one
    return sorted(newest.values(), key=lambda one: (arms.index(one.arm), *age(one.run)))


def _labelled(runs: Sequence[Run], one_sweep: bool) -> list[ArmRun]:
    of_arm: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        of_arm[run.data.tags["arm"]].append(run)
    names: dict[str, str] = {}
    for arm, ours in of_arm.items():
        settings = {run.info.run_id: choices.settings(run.data.params) for run in ours}
        sweeps: dict[str, list[choices.Settings]] = defaultdict(list)
        for run in ours:
            alone = run.info.run_id  # a run of no sweep has no neighbours
            parent = "" if one_sweep else run.data.tags.get(MLFLOW_PARENT_RUN_ID, alone)
            sweeps[parent].append(settings[run.info.run_id])
        keys = dict.fromkeys(key for sweep in sweeps.values() for key in choices.grouped(sweep))
        for run_id, values in settings.items():
            names[run_id] = ", ".join([arm, *(f"{key}={values.get(key, choices.NONE)}" for key in keys)])
    return [ArmRun(names[run.info.run_id], run) for run in runs]


def tested_runs(tracking: Tracking, condition: str) -> list[Run]:
    """All finished and tested runs that meet a condition of MLflow search, oldest first.

    Not a sweep's parent, which tests nothing, not the runs of single folds beside the one that pools them, and not
    what a search tried or pruned.
    """
    mlflow = client(tracking)
    runs = [run for run in finished(tracking, condition) if "arm" in run.data.tags]
    known = {run.info.run_id for run in runs}
    runs = [
        run
        for run in runs
        if run.data.tags.get(MLFLOW_PARENT_RUN_ID) not in known and not any(tag in run.data.tags for tag in NO_ARM)
    ]
    return sorted((run for run in runs if SUMS in artifact_names(mlflow, run)), key=age)


def of_study(study: str, tracking: Tracking) -> list[Run]:
    """The runs of a study, as :func:`tested_runs`; ValueError, one line, where there is none."""
    runs = tested_runs(tracking, f"tags.study = '{study}'") if "'" not in study else []
    if not runs:
        raise ValueError(
            f"no finished run in experiment '{tracking.experiment}' of {tracking.uri}; run "
            f"python train.py -m experiment={study}, or correct tracking"
        )
    return runs


def require_files(runs: Sequence[ArmRun], tracking: Tracking) -> None:
    """ValueError, one line, where a run lacks a file that tables are made from."""
    for one in runs:
        if missing := {BLOCK_SUMS["test"], CONFIG} - artifact_names(client(tracking), one.run):
            raise ValueError(
                f"run {one.run.info.run_id} of {one.arm!r} has no {' and no '.join(sorted(missing))}; "
                "run the arm again, or delete the run in MLflow"
            )


def studies(tracking: Tracking) -> dict[str, int]:
    """Names of the studies in the experiment and how many finished runs carry each."""
    runs = finished(tracking, "tags.study LIKE '%'")
    return dict(sorted(Counter(run.data.tags["study"] for run in runs).items()))


def artifact_names(mlflow: MlflowClient, run: Run, folder: str | None = None) -> set[str]:
    """Paths of a run's artifacts, of one level."""
    return {file.path for file in mlflow.list_artifacts(run.info.run_id, folder)}


def age(run: Run) -> tuple[int, int]:
    """Sorts runs, oldest first."""
    return run.info.start_time, run.info.end_time or 0


def tested_on(run: Run) -> dict[str, str | None]:
    """What must be equal of two runs that are compared; folds of one split may differ."""
    tags, params = run.data.tags, run.data.params
    split = {key: value for key, value in params.items() if key.startswith("split.") and key != "split.folds"}
    return {"window": tags.get("window"), "cube_hash": tags.get("cube_hash"), **split}


def check_comparable(runs: Sequence[ArmRun]) -> None:
    """ValueError where two runs were tested on different windows, cubes or splits; folds of one split may differ."""
    first, where = runs[0], tested_on(runs[0].run)
    for one in runs[1:]:
        here = tested_on(one.run)
        for key in sorted(where | here, key=lambda key: key != "window"):  # the window first: it says most
            if where.get(key) != here.get(key):
                raise ValueError(
                    f"{first.arm!r} was tested with {key} {where.get(key)}, {one.arm!r} with "
                    f"{here.get(key)}; a table needs one: run the older again, or delete its runs in MLflow"
                )


def study_of(run: Run, tracking: Tracking) -> tuple[Study | None, str]:
    """The study as a run's configuration had it, None without one, and the units of its target."""
    values = yaml.safe_load(Path(client(tracking).download_artifacts(run.info.run_id, CONFIG)).read_text())
    try:
        study = Study.model_validate(values["study"]) if values.get("study") else None
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(
            f"{CONFIG} of run {run.info.run_id}: study.{'.'.join(map(str, fault['loc']))}: {fault['msg']}; run it again"
        ) from None
    return study, values["window"]["units"].get(values["window"]["target"], "1")


def outcome(tracking: Tracking, run: Run, score: str, arm: str | None = None) -> Outcome:
    """What a finished training run left in MLflow: its scores by block, findings and noise; score: as in a study.

    arm: else the run's tag. Noise is known of the target's own pixels only. Raises ValueError where the run was not
    scored so.
    """
    tags, metrics = run.data.tags, run.data.metrics
    arm = arm or tags["arm"]
    own = score == "test"
    if not own and f"{score}/rmse" not in metrics:
        raise ValueError(f"run {run.info.run_id} of {arm!r} has no scores of '{score}'; correct study.score")
    kept = artifact_json(tracking, run, BLOCK_SUMS[score])
    blocks = bootstrap.from_json(kept, "model")
    others = [name for name in kept["blocks"] if name != "model"]
    return Outcome(
        arm=arm,
        # of crops that overlap, a task's own sums count each
        sums=artifact_json(tracking, run, SUMS)["model"] if own else pooled(blocks).to_dict(),
        r2_positions=metrics.get("test/r2_positions"),
        findings=tuple(part for part in tags["audit"].split("; ") if part != "no finding"),
        blocks=blocks,
        seed=str(run.data.params.get("seed", "")),
        references={name: pooled(bootstrap.from_json(kept, name)) for name in others},
        noise_sd=metrics.get("test/noise_sd") if own else None,
        noise_floor_rmse=metrics.get("test/noise_floor_rmse") if own else None,
    )


def commits(runs: Sequence[Run]) -> str:
    """Short hashes, oldest run first; files that differed from the commit are said, as ``git_commit`` says them."""
    tags = [run.data.tags.get("git_commit", "unknown") for run in sorted(runs, key=age)]
    return ", ".join(dict.fromkeys(re.sub(r"^([0-9a-f]{7})[0-9a-f]*", r"\1", tag) for tag in tags))


def words(run: Run) -> list[str]:
    """What a run's command line asked for beyond its study."""
    command = run.data.tags.get("command", run.data.tags.get(MLFLOW_RUN_NOTE, "")).strip("`").split()
    return [word for word in command[1:] if not word.startswith(PLACES)]
