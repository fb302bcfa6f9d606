"""Tables in a Markdown file say what the newest runs in MLflow say, and where that is from; the rest is left alone."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from sifscale import bootstrap
from sifscale.config import Tracking
from sifscale.metrics import Sums
from sifscale.results import update_tables
from sifscale.study_runs import outcome
from sifscale.tracking import client, end_parent, experiment_id, start_parent

if TYPE_CHECKING:
    from conftest import Workplace

FIRST, SECOND = "1a2b3c4" + "0" * 33, "5d6e7f8" + "0" * 33
DAY = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp() * 1000)
HOUR = 3_600_000
UNITS = "mW m-2 sr-1 nm-1"
TEXT = (  # not UTF-8, mixed line ends, other characters that end lines in some places, none at the end
    b"# Caf\xe9\r\nbefore \x0c\x85\r \n<!-- results: tried -->\nold\nolder\n<!-- end of results -->  \n\n"
    b"    <!-- results: STUDY -->\n`<!-- end of results -->` are markers"
)


class Runs:
    """An MLflow experiment of its own, and the runs that jobs of a sweep would leave in it."""

    def __init__(self, workplace: Workplace, name: str) -> None:
        place = str(workplace.folder / "artifacts")
        self.tracking = Tracking(uri=workplace.tracking_uri, experiment=name, artifacts=place)
        self.mlflow: MlflowClient = client(self.tracking)
        self.folder = workplace.folder / name
        self.folder.mkdir()

    def log(self, arm: str, error: float, fold: int = 0, start: int = DAY, **changes: Any) -> str:
        """A finished run, wrong by ``error`` times the same noise on three blocks a fold; returns its id.

        changes: tags by name; besides ``seed``, ``params``, ``study`` (keys that differ), ``status``, ``without``.
        """
        seed, params = changes.pop("seed", 0), changes.pop("params", {})
        study: dict[str, Any] = {"name": "tried", "title": "t", "pool": "folds", "baseline": "ridge"}
        study |= {"reference": {"ridge": {"r2": 0.123}}, **changes.pop("study", {})}
        status, without = changes.pop("status", "FINISHED"), changes.pop("without", None)
        tags = {"arm": arm, "study": study["name"], "audit": "no finding", "window": "here", "cube_hash": "c" * 64}
        tags |= {"git_commit": FIRST, "mlflow.note.content": "`train.py -m experiment=tried paths.raw=/home/me`"}
        tags |= changes
        run = self.mlflow.create_run(experiment_id(self.mlflow, self.tracking), start, tags)
        for key, value in {"seed": seed, "split.folds": fold, "split.k": 3, **params}.items():
            self.mlflow.log_param(run.info.run_id, key, value)
        for key, value in {"noise_sd": 0.22, "noise_floor_rmse": 0.21}.items():
            self.mlflow.log_metric(run.info.run_id, f"test/{key}", value)
        blocks = {f"b{fold}{i}": Sums.of(*pair(fold, i, error)) for i in range(3)}
        files = {
            "test_sums.json": {"model": sum(blocks.values(), start=Sums.zero()).to_dict()},
            "test_block_sums.json": bootstrap.to_json({"model": blocks}),
            "config.yaml": {"study": study, "window": {"target": "sif", "units": {"sif": UNITS}}},
        }
        for name, values in files.items():
            if name != without:
                path = self.folder / name
                path.write_text(yaml.safe_dump(values) if name.endswith("yaml") else json.dumps(values))
                self.mlflow.log_artifact(run.info.run_id, str(path))
        self.mlflow.set_terminated(run.info.run_id, status, start + HOUR)
        return str(run.info.run_id)

    def update(self, content: bytes = TEXT) -> str:
        """The file's text after an update."""
        path = self.folder / "README.md"
        path.write_bytes(content)
        update_tables(path, self.tracking)
        return path.read_bytes().decode("latin-1")


def pair(fold: int, block: int, error: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prediction, target and valid mask (1, 1, 5, 6) of a block."""
    target, noise = torch.randn(2, 1, 1, 5, 6, generator=torch.Generator().manual_seed(10 * fold + block))
    return target + error * noise, target, torch.ones(1, 1, 5, 6, dtype=torch.bool)


def rows(text: str) -> dict[str, list[str]]:
    """Cells of a Markdown table by arm, the head under 'arm'."""
    lines = (line for line in text.splitlines() if line.startswith("| "))
    return {first: others for first, *others in (line[2:-2].split(" | ") for line in lines)}


@pytest.fixture
def runs(workplace: Workplace, request: pytest.FixtureRequest) -> Runs:
    return Runs(workplace, re.sub(r"\W+", "_", request.node.name))


def test_rows_are_the_pooled_scores_of_all_folds_and_no_arm_is_sorted_or_left_out(runs: Runs) -> None:
    errors = {"zebra | bad": 0.9, "ridge": 0.5, "ant": 0.3}
    for number, (arm, error) in enumerate(errors.items()):
        for fold in (0, 1):
            runs.log(arm, error, fold, DAY + number)
    text = runs.update()
    head, *lines = rows(text.replace(r"\|", "/")).values()
    assert head == ["R2", f"MAE [{UNITS}]", f"RMSE [{UNITS}]", "RMSE - ridge [95 %]", "skill over ridge"]
    assert list(rows(text.replace(r"\|", "/"))) == ["arm", "zebra / bad", "ridge", "ant"]
    rmse = {}
    for (arm, error), cells in zip(errors.items(), lines, strict=True):
        blocks = [pair(fold, block, error) for fold in (0, 1) for block in range(3)]
        prediction, target = (torch.cat([block[part] for block in blocks]).flatten() for part in (0, 1))
        rmse[arm] = root_mean_squared_error(target, prediction)
        expected = [r2_score(target, prediction), mean_absolute_error(target, prediction), rmse[arm]]
        assert cells[:3] == [f"{value:.4f}" for value in expected]
    assert lines[1][3:] == ["-", "-"]
    assert re.fullmatch(r"\+0\.\d{4} \[\+0\.\d{4}, \+0\.\d{4}\]", lines[0][3])
    assert float(lines[2][3].split()[0]) == pytest.approx(rmse["ant"] - rmse["ridge"], abs=1e-4)
    assert float(lines[2][4]) == pytest.approx(1 - (rmse["ant"] / rmse["ridge"]) ** 2, abs=1e-4)
    assert (
        "\nGenerated on the runs of 2026-11-20 at commit 1a2b3c4 with `python train.py -m experiment=tried`, cube "
        "cccccccc; each arm: 2 runs, 6 blocks, 180 pixels; noise of the target about 0.220" in text
    )
    assert "/home" not in text and "0.123" not in text and "\n- " not in text


def test_outside_the_markers_the_file_stays_byte_for_byte_and_a_second_update_changes_nothing(runs: Runs) -> None:
    runs.log("ridge", 0.5)
    path = runs.folder / "README.md"
    path.write_bytes(TEXT)
    path.chmod(0o640)
    link = runs.folder / "link.md"
    link.symlink_to(path)
    assert update_tables(link, runs.tracking) == ["tried"]
    written = path.read_bytes()
    (before, _), (_, after) = (TEXT.split(mark) for mark in (b"old\n", b"older\n"))
    assert written.startswith(before) and written.endswith(after) and b"old" not in written
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    assert update_tables(path, runs.tracking) == ["tried"]
    assert path.read_bytes() == written
    assert not [file for file in runs.folder.iterdir() if file.name.startswith(".")]


def test_several_tables_are_written_with_the_line_ends_of_their_file(runs: Runs) -> None:
    runs.log("ridge", 0.5)
    runs.log("mole", 0.5, study={"name": "other", "baseline": None})
    marks = [f"<!-- results: {study} -->\r\n<!-- end of results -->\r\n" for study in ("other", "tried", "other")]
    path = runs.folder / "README.md"
    path.write_bytes("between\r\n".join(marks).encode())
    assert update_tables(path, runs.tracking) == ["other", "tried"]
    text = path.read_bytes().decode()
    assert re.findall(r"^(?:\| (?:ridge|mole)|between)", text, re.MULTILINE) == [
        "| mole", "between", "| ridge", "between", "| mole",
    ]  # fmt: skip
    assert text.count("\n") == text.count("\r\n")


def test_only_the_newest_run_of_an_arm_seed_and_fold_counts_and_a_repeated_arm_keeps_its_place(runs: Runs) -> None:
    new = runs.log("nearest", 0.5, start=DAY + 5 * HOUR)  # logged first, started last
    old = runs.log("nearest", 0.9, start=DAY)
    runs.log("ridge", 0.4, start=DAY + HOUR)
    runs.log("ridge", 0.1, start=DAY + 9 * HOUR, status="FAILED")
    runs.log("ridge", 0.1, seed=7, without="test_sums.json")
    end_parent(runs.tracking, start_parent(runs.tracking, "tried", []), "FINISHED")
    table = rows(runs.update())
    assert list(table) == ["arm", "nearest", "ridge"]
    expected = Sums.from_dict(outcome(runs.tracking, runs.mlflow.get_run(new), "test").sums).finish()
    assert table["nearest"][2] == f"{expected['rmse']:.4f}"
    runs.log("nearest", 0.5, seed=1, start=DAY)
    assert "- nearest: 2 runs\n- ridge: 1 run\n" in runs.update()
    runs.mlflow.delete_run(new)
    before = Sums.from_dict(outcome(runs.tracking, runs.mlflow.get_run(old), "test").sums)
    other = Sums.of(*map(torch.cat, zip(*(pair(0, i, 0.5) for i in range(3)), strict=True)))
    assert rows(runs.update())["nearest"][2] == f"{(before + other).finish()['rmse']:.4f}"


def test_a_run_of_all_folds_and_runs_of_single_ones_never_count_together(runs: Runs) -> None:
    for fold in (0, 1):
        runs.log("ridge", 0.9, fold, DAY + fold)
    whole = runs.log("ridge", 0.5, start=DAY + HOUR, params={"split.folds": "all"})
    expected = Sums.from_dict(outcome(runs.tracking, runs.mlflow.get_run(whole), "test").sums).finish()
    assert rows(runs.update())["ridge"][2] == f"{expected['rmse']:.4f}"
    again = runs.log("ridge", 0.7, 1, DAY + 2 * HOUR)
    expected = Sums.from_dict(outcome(runs.tracking, runs.mlflow.get_run(again), "test").sums).finish()
    assert rows(runs.update())["ridge"][2] == f"{expected['rmse']:.4f}"


def test_the_study_is_that_of_the_newest_run(runs: Runs) -> None:
    runs.log("ridge", 0.5, start=DAY + HOUR, study={"baseline": "nearest"})
    runs.log("nearest", 0.5)
    assert rows(runs.update())["arm"][3] == "RMSE - nearest [95 %]"


def test_commits_days_and_options_that_only_some_arms_have_are_marked(runs: Runs) -> None:
    runs.log("bicubic", 0.5)
    runs.log("nearest", 0.6, start=DAY + 1)
    runs.log("ridge", 0.4, start=DAY + 48 * HOUR, git_commit=f"{SECOND}+changes")
    words = "experiment=tried +experiment/tried=U trainer.epochs=1 tracking.uri=x"
    note: dict[str, Any] = {"mlflow.note.content": f"`train.py -m {words}`"}
    runs.log("U-Net", 0.3, start=DAY + 72 * HOUR, git_commit="unknown", **note)
    text = runs.update()
    assert "runs of 2026-11-20 to 2026-11-23 at commits 1a2b3c4, 5d6e7f8+changes, unknown with" in text
    items = [line for line in text.splitlines() if line.startswith("- ")]
    assert items == [
        "- bicubic, nearest: commit 1a2b3c4",
        "- ridge: commit 5d6e7f8+changes",
        "- U-Net: commit unknown",
        "- U-Net: with `trainer.epochs=1`",
    ]
    runs.log("ridge", 0.4, fold=1, start=DAY + 49 * HOUR)
    text = runs.update()
    assert "- ridge: commit 5d6e7f8+changes, 1a2b3c4\n" in text and "\n- ridge: 180 pixels\n" in text
    assert "bicubic: both models need sums of the same blocks" in text


def test_findings_and_the_notebooks_score_are_not_left_out(runs: Runs) -> None:
    run = runs.log("U-Net", 0.1, audit="sees the target; and scales on it", study={"baseline": None})
    runs.mlflow.log_metric(run, "test/r2_positions", 0.75)
    assert "; each arm: 1 run, 3 blocks, 90 pixels, audit: sees the target; and scales on it; noise" in runs.update()
    runs.log("nearest", 0.5, study={"baseline": None})
    text = runs.update()
    assert rows(text)["arm"][:2] == ["R2", "R2 by position"] and rows(text)["U-Net"][1] == "0.7500"
    assert rows(text)["nearest"][1] == "-"
    assert "- U-Net: audit: sees the target; and scales on it\n" in text
    assert outcome(runs.tracking, runs.mlflow.get_run(run), "test").findings == ("sees the target", "and scales on it")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"window": "there", "cube_hash": "d" * 64}, ("window here", "there")),
        ({"cube_hash": "d" * 64}, ("cube_hash " + "c" * 64, "d" * 64)),
        ({"params": {"split.guard_px": 9}}, ("split.guard_px None", "9")),
    ],
)
def test_arms_that_were_tested_on_different_ground_are_refused(
    runs: Runs, changes: dict[str, Any], parts: tuple[str, str]
) -> None:
    runs.log("ridge", 0.5)
    runs.log("U-Net", 0.5, start=DAY + HOUR, **changes)
    with pytest.raises(ValueError) as caught:
        runs.update()
    message = str(caught.value)
    assert f"study tried: 'ridge' was tested with {parts[0]}, 'U-Net' with {parts[1]};" in message
    assert "\n" not in message
    assert (runs.folder / "README.md").read_bytes() == TEXT


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"without": "test_block_sums.json"}, "'ridge' has no test_block_sums.json; run the arm again"),
        ({"study": {"pool": "all"}}, "study.pool: Input should be 'folds' or 'none'; run it again"),
        ({"status": "RUNNING"}, "no finished run in experiment .*; run python train.py -m experiment=tried"),
        ({"study": {"name": "other"}}, "no finished run in experiment"),
    ],
)
def test_a_study_without_usable_runs_is_refused_in_one_line(runs: Runs, changes: dict[str, Any], fault: str) -> None:
    runs.log("ridge", 0.5, **changes)
    with pytest.raises(ValueError, match=fault) as caught:
        runs.update()
    assert str(caught.value).startswith(f"{runs.folder / 'README.md'}: study tried: ")
    assert "\n" not in str(caught.value)


def test_an_experiment_that_does_not_exist_has_no_runs_and_is_not_created(runs: Runs) -> None:
    with pytest.raises(ValueError, match="no finished run in experiment"):
        runs.update()
    assert runs.mlflow.get_experiment_by_name(runs.tracking.experiment) is None


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([], "no table is marked"),
        (["text", "    <!-- results: a -->"], "no table is marked"),
        (["text", "<!-- results: a -->"], "line 2: table without an end"),
        (["<!-- results: a -->", "", "<!-- results: b -->"], "line 3: a table begins inside that of line 1"),
        (["", "<!-- end of results -->"], "line 2: a table ends that has no beginning"),
        (["<!-- results: -->"], "line 1: unknown marker '<!-- results: -->'"),
        (["<!--results: a-->"], "line 1: unknown marker"),
        (["<!-- results: a b -->"], "line 1: unknown marker"),
        (["<!-- results: a' or '1 -->"], "line 1: unknown marker"),
        (["<!-- results: a --> text"], "line 1: unknown marker"),
        (["<!-- results: a -->", " <!-- end of results -->"], "line 2: unknown marker"),
    ],
)
def test_markers_that_do_not_pair_are_refused_with_their_line(
    workplace: Workplace, tmp_path: Path, lines: list[str], fault: str
) -> None:
    path = tmp_path / "README.md"
    path.write_text("\n".join(lines))
    tracking = Tracking(uri=workplace.tracking_uri, experiment="none", artifacts="")
    with pytest.raises(ValueError) as caught:
        update_tables(path, tracking)
    assert str(caught.value).startswith(f"{path}: {fault}") and "\n" not in str(caught.value)


def test_a_file_that_does_not_exist_is_refused(workplace: Workplace, tmp_path: Path) -> None:
    tracking = Tracking(uri=workplace.tracking_uri, experiment="none", artifacts="")
    with pytest.raises(ValueError, match="no such file; name the Markdown file"):
        update_tables(tmp_path / "absent.md", tracking)
