"""Tables of a study: folds are pooled, repetitions averaged, arms keep their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score, root_mean_squared_error

from sifscale.config import Study
from sifscale.metrics import Sums
from sifscale.report import Outcome, study_rows, study_table

REFERENCE = {"zebra": {"r2": 0.5, "rmse": 0.25}}


def study(pool: str) -> Study:
    return Study.model_validate({"name": "s", "title": "A study", "pool": pool, "reference": REFERENCE})


def fold(rng: np.random.Generator, pixels: int, arm: str, finding: str = "") -> tuple[Outcome, torch.Tensor]:
    """An arm's outcome on one fold, and its (target, prediction)."""
    pair = torch.from_numpy(rng.normal(loc=rng.normal(scale=3), size=(2, 1, 1, 1, pixels)))
    sums = Sums.of(pair[1], pair[0], torch.ones_like(pair[0], dtype=torch.bool))
    return Outcome(arm, sums.to_dict(), None, (finding,) if finding else ()), pair.flatten(1)


def test_folds_are_pooled_and_rows_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    outcomes, pairs = zip(*(fold(rng, n, arm) for n in (5, 40) for arm in ("zebra", "ant", "mole")), strict=True)
    rows = study_rows(study("folds"), outcomes)
    assert [row["arm"] for row in rows] == ["zebra", "ant", "mole"]
    for i, row in enumerate(rows):
        target, prediction = torch.cat([pairs[i], pairs[i + 3]], dim=1)
        assert row["r2"] == pytest.approx(r2_score(target, prediction), rel=1e-9)
        assert row["rmse"] == pytest.approx(root_mean_squared_error(target, prediction), rel=1e-9)
        assert (row["n"], row["runs"]) == (45, 2)


def test_repeated_runs_are_averaged() -> None:
    rng = np.random.default_rng(1)
    outcomes, pairs = zip(*(fold(rng, n, "ant", finding) for n, finding in ((5, "a"), (40, "b"))), strict=True)
    (row,) = study_rows(study("none"), outcomes)
    assert row["r2"] == pytest.approx(np.mean([r2_score(*pair) for pair in pairs]), rel=1e-9)
    assert row["findings"] == "a; b"


def test_reference_figures_stand_beside_ours() -> None:
    rng = np.random.default_rng(2)
    rows = study_rows(study("none"), [fold(rng, 9, "zebra")[0], fold(rng, 9, "ant")[0]])
    assert rows[0]["reference_r2"] == 0.5 and "reference_r2" not in rows[1]
    columns = {str(column.header): list(column.cells) for column in study_table(study("none"), rows, "1").columns}
    assert columns["reference R2"] == ["0.5000", "-"]
    assert "R2 by position" not in columns
