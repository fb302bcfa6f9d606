"""The files beside a sweep's table that DVC and spreadsheets read: scores by arm, and learning curves."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from sifscale.comparison import SCORES
from sifscale.config import Study, Tracking
from sifscale.tracking import children, client

CURVE = "val/rmse"  # of each epoch, in units of the target


def write(
    folder: Path,
    study: Study,
    rows: Sequence[Mapping[str, object]],
    runs: Iterable[tuple[str, str]],
    tracking: Tracking,
) -> Path:
    """Write the files of a sweep's table into ``folder``; returns the path of the table, STUDY.json.

    STUDY.json: the study and all rows. metrics.json: R2, MAE and RMSE by arm, bare numbers. arms.csv: the same, one row
    an arm. curves.csv: arm, epoch and ``val/rmse`` of :func:`learning_curves`. ``runs``: arm and MLflow run id of each.
    """
    table = folder / f"{study.name}.json"
    table.write_text(json.dumps({"study": study.model_dump(), "rows": rows}, indent=1))
    scores = {str(row["arm"]): {key: row[key] for key in SCORES} for row in rows}
    (folder / "metrics.json").write_text(json.dumps(scores, indent=1) + "\n")
    _csv(folder / "arms.csv", ("arm", *SCORES), ((arm, *of_arm.values()) for arm, of_arm in scores.items()))
    curves = learning_curves(runs, tracking)
    points = ((arm, epoch, value) for arm, curve in curves.items() for epoch, value in enumerate(curve))
    _csv(folder / "curves.csv", ("arm", "epoch", CURVE), points)
    return table


def learning_curves(runs: Iterable[tuple[str, str]], tracking: Tracking) -> dict[str, list[float]]:
    """Mean ``val/rmse`` by arm and epoch over folds and repetitions; one that stopped early counts on with its last.

    Arms that are not trained by epochs have none.
    """
    mlflow, found = client(tracking), defaultdict[str, list[list[float]]](list)
    for arm, run_id in runs:
        run = mlflow.get_run(run_id)
        for one in [run] if CURVE in run.data.metrics else children(tracking, run_id):  # a pool has none of its own
            if "best_epoch" in one.data.metrics:
                history = mlflow.get_metric_history(one.info.run_id, CURVE)
                found[arm].append([point.value for point in sorted(history, key=lambda point: point.step)])
    return {
        arm: [mean(curve[min(epoch, len(curve) - 1)] for curve in curves) for epoch in range(max(map(len, curves)))]
        for arm, curves in found.items()
    }


def _csv(path: Path, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *lines])
