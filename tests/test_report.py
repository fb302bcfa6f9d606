"""Tables of a study: folds are pooled, repetitions averaged, arms keep their order and are set against a baseline."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score, root_mean_squared_error

from sifscale import report
from sifscale.bootstrap import Difference, paired_difference
from sifscale.config import Study
from sifscale.metrics import Sums, skill
from sifscale.report import Outcome, interval, run_table, study_rows, study_table

REFERENCE = {"zebra": {"r2": 0.5, "rmse": 0.25}}


UNITS = "mW m-2 sr-1 nm-1"


def study(pool: str, baseline: str | None = None) -> Study:
    values = {"name": "s", "title": "A study", "pool": pool, "baseline": baseline, "reference": REFERENCE}
    return Study.model_validate(values)


def on_blocks(arm: str, error: float, names: str, seed: int = 0, floor: float | None = None) -> Outcome:
    """An outcome on one block of 30 px a letter of ``names``, the same target for all arms."""
    rng = np.random.default_rng(seed)
    blocks = {}
    for name in names:
        target = torch.from_numpy(rng.normal(size=(1, 1, 5, 6)))
        wrong = torch.from_numpy(rng.normal(size=(1, 1, 5, 6))) * error * rng.uniform(0.8, 1.2)
        blocks[name] = Sums.of(target + wrong, target, torch.ones_like(target, dtype=torch.bool))
    pooled = sum(blocks.values(), start=Sums.zero())
    return Outcome(arm, pooled.to_dict(), None, (), blocks, noise_sd=floor, noise_floor_rmse=floor)


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


def test_arms_are_compared_with_the_baseline_over_the_blocks_of_all_folds() -> None:
    arms = {"zebra": 0.5, "ant": 0.3}
    folds = ("abc", "def", "gh")
    outcomes = [on_blocks(arm, error, names, i) for arm, error in arms.items() for i, names in enumerate(folds)]
    zebra, ant = study_rows(study("folds", "zebra"), outcomes)
    assert not any(key.startswith("baseline") for key in zebra), "the baseline is not compared with itself"
    merged = {arm: {n: s for o in outcomes if o.arm == arm for n, s in o.blocks.items()} for arm in arms}
    found = paired_difference(merged["ant"], merged["zebra"])
    assert found.blocks == 8 and found.high < 0
    for name in ("difference", "low", "high", "p", "blocks"):
        assert ant[f"baseline_{name}"] == getattr(found, name)
    rmse, reference = (float(str(row["rmse"])) for row in (ant, zebra))
    assert found.difference == pytest.approx(rmse - reference, rel=1e-9)
    assert ant["baseline_skill"] == pytest.approx(skill(rmse, reference), rel=1e-9)

    rows = json.loads(json.dumps([zebra, ant]))  # as the study's file keeps them
    table = study_table(study("folds", "zebra"), rows, "1")
    columns = {str(column.header): list(column.cells) for column in table.columns}
    expected = f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    assert columns["RMSE - zebra [95 %]"] == ["-", expected]
    assert columns["skill over zebra"] == ["-", f"{skill(rmse, reference):.4f}"]


def test_without_the_baseline_its_columns_are_left_out_and_a_line_says_so() -> None:
    rows = study_rows(study("folds", "ridge"), [on_blocks("ant", 0.3, "abc")])
    table = study_table(study("folds", "ridge"), rows, "1")
    assert table.caption == "no differences: the baseline arm 'ridge' has not run"
    assert not any("ridge" in str(column.header) for column in table.columns)
    assert study_table(study("folds"), rows, "1").caption is None


def test_an_arm_on_other_pixels_than_the_baseline_is_not_compared() -> None:
    outcomes = [on_blocks("zebra", 0.5, "abc"), on_blocks("ant", 0.3, "ab"), on_blocks("mole", 0.3, "abc")]
    rows = study_rows(study("folds", "zebra"), outcomes)
    assert "baseline_difference" not in rows[1] and "baseline_difference" in rows[2]
    caption = str(study_table(study("folds", "zebra"), rows, "1").caption)
    assert caption.startswith("ant: both models need sums of the same blocks, found 2 and 3, 2 in common")


def test_the_noise_floor_of_all_folds_stands_below_the_table_once() -> None:
    outcomes = [
        on_blocks(arm, 0.3, names, i, floor)
        for arm in ("zebra", "ant")
        for i, (names, floor) in enumerate((("ab", 0.2), ("cdef", 0.3)))
    ]
    rows = study_rows(study("folds"), outcomes)
    expected = np.sqrt((2 * 0.2**2 + 4 * 0.3**2) / 6)
    assert [row["noise_floor_rmse"] for row in rows] == pytest.approx([expected] * 2, rel=1e-12)
    caption = str(study_table(study("folds"), rows, UNITS).caption)
    suspect = 1 - (0.9 * expected / float(str(rows[0]["target_sd"]))) ** 2
    assert caption.count("noise of the target") == 1 and f"treat R2 above {suspect:.2f} as a leak alarm" in caption
    outcomes[0] = on_blocks("zebra", 0.3, "ab")  # a run that knows of no noise
    assert "noise_floor_rmse" not in study_rows(study("folds"), outcomes)[0]


def test_a_table_is_printed_with_its_units_and_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"unet": Sums.from_dict(on_blocks("unet", 0.3, "ab").sums).finish()}
    report.show(run_table(scores, UNITS, "unet on a window", ["a note [m]", "another"]))
    printed = capsys.readouterr().out
    assert all(text in printed for text in (f"RMSE [{UNITS}]", f"MAE [{UNITS}]", "a note [m]", "another"))


def test_a_difference_is_said_with_interval_blocks_and_p() -> None:
    assert interval(Difference(-0.0117, -0.0145, -0.009, 0.00371, 24)) == (
        "-0.0117 [-0.0145, -0.0090] (95 %, 24 blocks, p 0.0037)"
    )
    nan = float("nan")
    assert interval(Difference(0.01, nan, nan, nan, 1)) == "+0.0100 (one block: no interval)"
