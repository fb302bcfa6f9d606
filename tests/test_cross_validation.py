"""All folds of a split as one command: a child run each, sums pooled, each pixel scored once, resumed where stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from sifscale import run_figures
from sifscale.config import RunConfig
from sifscale.metrics import SUMS
from sifscale.structure import from_json, pooled
from sifscale.tracking import flat
from sifscale.training import Outcome, prepare_features, train_once
from sifscale.uncertainty import Spread
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

PLAIN = ("evaluation.ridge=null", "evaluation.details=false", "window.truth=null", "split.folds=all")
NETWORK = (*PLAIN, "model.widths=[4,8]", "model.bottleneck=8", "trainer.epochs=1", "uncertainty=quantile")


@dataclass(frozen=True)
class Family:
    """A command's run in MLflow and its children, oldest first."""

    client: MlflowClient
    parent: Run
    children: Sequence[Run]


def family(workplace: Workplace, folder: Path) -> Family:
    client = MlflowClient(tracking_uri=workplace.tracking_uri)
    parent = client.get_run((folder / "run_id").read_text())
    chosen = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'"
    order = ["attributes.start_time ASC"]
    return Family(client, parent, client.search_runs([parent.info.experiment_id], chosen, order_by=order))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def scores(folder: Path) -> dict[str, float]:
    found: dict[str, float] = read(folder / "metrics.json")
    return found


@pytest.fixture(scope="module")
def bicubic(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fold of a model without parameters, with ridge, details, truth and error bars."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_figures, "draw", lambda *args: [])  # those of the folds; test_training looks at a run's
        folder = tmp_path_factory.mktemp("bicubic")
        words = ("split.folds=all", "model=bicubic", "uncertainty=constant", "evaluation.figures=true")
        return workplace.train(folder, *words)


@dataclass(frozen=True)
class Resumed:
    """A command that was killed in its second fold and went on: what it left then, and which folds were begun."""

    folder: Path
    stopped: Family
    first_fold: dict[str, float]
    begun: list[str]


@pytest.fixture(scope="module")
def resumed(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """Every fold of a tiny U-Net, one epoch each."""
    folder, begun = tmp_path_factory.mktemp("network"), list[str]()

    def begin(run: RunConfig, place: Path, **options: Any) -> Outcome:
        begun.append(f"{place.name} resumed" if run.resume else place.name)
        if begun == ["fold_0", "fold_1"]:
            raise KeyboardInterrupt
        return train_once(run, place, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sifscale.cross_validation.train_once", begin)
        with pytest.raises(KeyboardInterrupt):
            workplace.train(folder, *NETWORK)
        stopped, first_fold = family(workplace, folder), scores(folder / "fold_0")
        assert not (folder / "metrics.json").exists()
        workplace.train(tmp_path_factory.mktemp("unused"), *NETWORK, f"resume={folder}")
    return Resumed(folder, stopped, first_fold, begun)


@pytest.fixture(scope="module")
def network(resumed: Resumed) -> Path:
    return resumed.folder


def test_a_command_is_one_run_with_a_child_a_fold(workplace: Workplace, bicubic: Path) -> None:
    found, name = family(workplace, bicubic), "bicubic base, minnesota_osse, seed 0"
    assert found.parent.info.status == "FINISHED" and found.parent.info.run_name == f"{name}, all folds"
    assert [run.info.run_name for run in found.children] == [f"{name}, fold {i}" for i in range(3)]
    assert {run.info.status for run in found.children} == {"FINISHED"}
    assert [run.data.params["split.folds"] for run in found.children] == ["0", "1", "2"]
    for fold, run in enumerate(found.children):
        assert (bicubic / f"fold_{fold}" / "run_id").read_text() == run.info.run_id
        assert run.data.metrics["test/rmse"] == scores(bicubic / f"fold_{fold}")["test/rmse"]


def test_the_parent_says_what_was_run_and_found(workplace: Workplace, bicubic: Path) -> None:
    run = family(workplace, bicubic).parent
    config = yaml.safe_load((bicubic / "config.yaml").read_text())
    wanted = {key: value for key, value in flat(config).items() if key != "study"}
    assert run.data.params == wanted and wanted["split.folds"] == "all"
    expected = {"protocol": "honest", "audit": "no finding", "arm": "bicubic base"}
    expected |= {"window": "minnesota_osse", "model": "bicubic", "features": "base"}
    assert expected.items() <= run.data.tags.items()
    assert run.data.tags["cube_hash"] == open_or_build(workplace.config()).hash
    assert run.data.metrics == scores(bicubic)
    assert {"folds/r2_sd", "folds/mae_sd", "folds/rmse_sd", "perf/parameters"} <= set(run.data.metrics)


@pytest.mark.parametrize("fixture", ["bicubic", "network"])
def test_pooled_scores_are_those_of_the_childrens_sums(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    total, of_folds = np.zeros(len(SUMS)), []
    for fold in range(3):
        kept = read(folder / f"fold_{fold}" / "test_block_sums.json")
        assert tuple(kept["sums"]) == SUMS
        total += (sums := np.sum(list(kept["blocks"]["model"].values()), axis=0))
        count, y, yy, p, pp, yp, *_ = sums
        of_folds.append(np.sqrt((yy - 2 * yp + pp) / count))
    count, y, yy, p, pp, yp, absolute, _ = total
    found = scores(folder)
    assert found["test/rmse"] == pytest.approx(np.sqrt((yy - 2 * yp + pp) / count), rel=1e-9)
    assert found["test/mae"] == pytest.approx(absolute / count, rel=1e-9)
    assert found["test/r2"] == pytest.approx(1 - (yy - 2 * yp + pp) / (yy - y * y / count), rel=1e-9)
    assert found["folds/rmse_sd"] == pytest.approx(np.std(of_folds, ddof=1), rel=1e-6)
    assert found["test/rmse"] != pytest.approx(np.mean(of_folds), rel=1e-6), "which no mean over folds is"


@pytest.mark.parametrize("fixture", ["bicubic", "network"])
def test_all_folds_score_each_valid_pixel_once(
    workplace: Workplace, fixture: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture)
    run = workplace.config()
    valid = np.asarray(prepare_features(run, open_or_build(run)).valid)
    assert read(folder / "test_sums.json")["model"]["n"] == valid.sum()
    kept = read(folder / "test_block_sums.json")["blocks"]["model"]
    assert len(kept) == 16 and sum(numbers[0] for numbers in kept.values()) == valid.sum()
    by_fold = [set(read(folder / f"fold_{i}" / "test_block_sums.json")["blocks"]["model"]) for i in range(3)]
    assert set.union(*by_fold) == set(kept) and sum(map(len, by_fold)) == 16, "and each block in one fold"


def test_groups_structure_and_truth_are_pooled_too(workplace: Workplace, bicubic: Path) -> None:
    folds = [bicubic / f"fold_{i}" for i in range(3)]
    groups = read(bicubic / "errors_by.json")
    n = read(bicubic / "test_sums.json")["model"]["n"]
    for kind in ("level of the target", "distance to training pixels"):
        assert sum(of_group["model"]["n"] for of_group in groups[kind].values()) == n
        for group, of_group in groups[kind].items():
            parts = [read(fold / "errors_by.json")[kind].get(group) for fold in folds]
            for key in ("n", "yp"):
                assert of_group["ridge"][key] == pytest.approx(sum(part["ridge"][key] for part in parts if part))
    structure = read(bicubic / "structure.json")
    parts = [read(fold / "structure.json") for fold in folds]
    for view, count in (("test", n), ("truth", 16 * n)):
        blocks = [from_json(part, view, "model") for part in parts]
        assert sum(map(len, blocks)) == 16, "each block is in one fold"
        found, whole = from_json(structure, view, "model"), {name: one for part in blocks for name, one in part.items()}
        assert {name: one.to_dict() for name, one in found.items()} == {n: one.to_dict() for n, one in whole.items()}
        assert pooled(found).scored_px == count
        logged = {f"{view}/{name}": score for name, score in pooled(found).finish().items() if np.isfinite(score)}
        assert logged.items() <= scores(bicubic).items() and f"{view}/ssim" in logged
    truth = read(bicubic / "truth_block_sums.json")["blocks"]["ridge"]
    assert sum(numbers[0] for numbers in truth.values()) == 16 * n, "1 km pixels of 4 km cells"
    assert {"truth/rmse", "truth/ridge_rmse", "test/ridge_rmse"} <= set(scores(bicubic))


def test_error_bars_are_pooled_too(bicubic: Path) -> None:
    folds = [bicubic / f"fold_{i}" for i in range(3)]
    for view in ("test", "truth"):
        parts = [Spread.from_dict(read(fold / "spread.json")[view]) for fold in folds]
        found = sum(parts[1:], start=parts[0]).finish()
        assert found["coverage"] == pytest.approx(scores(bicubic)[f"{view}/coverage"], rel=1e-12)
        blocks = read(bicubic / f"{view}_block_sums.json")["blocks"]["model"]
        assert sum(float(part.values[0].sum()) for part in parts) == sum(numbers[0] for numbers in blocks.values())
    widths = {scores(fold)["test/interval_width"] for fold in folds}
    assert len(widths) == 3 and min(widths) < scores(bicubic)["test/interval_width"] < max(widths)


def test_the_noise_of_the_pool_is_that_of_all_its_test_pixels(bicubic: Path) -> None:
    folds = [bicubic / f"fold_{i}" for i in range(3)]
    counts = [read(fold / "test_sums.json")["model"]["n"] for fold in folds]
    for name in ("test/noise_sd", "test/noise_floor_rmse"):
        squares = [scores(fold)[name] ** 2 for fold in folds]
        assert scores(bicubic)[name] == pytest.approx(np.sqrt(np.dot(counts, squares) / sum(counts)))


def test_pictures_and_files_of_the_pool_are_kept(workplace: Workplace, bicubic: Path) -> None:
    found = family(workplace, bicubic)
    files = {
        file.path
        for place in ("", "figures")
        for file in found.client.list_artifacts(found.parent.info.run_id, place)
    }
    assert {"config.yaml", "metrics.json", "test_sums.json", "test_block_sums.json", "errors_by.json"} <= files
    drawn = ("maps", "predicted_against_actual", "errors_by", "truth_spectra", "uncertainty")
    pictures = {f"figures/{name}.png" for name in drawn}
    assert pictures <= files and all((bicubic / picture).stat().st_size > 5000 for picture in pictures)


def test_a_command_killed_in_its_second_fold_goes_on_there(workplace: Workplace, resumed: Resumed) -> None:
    assert resumed.begun == ["fold_0", "fold_1", "fold_0 resumed", "fold_1", "fold_2"]
    before, found = resumed.stopped, family(workplace, resumed.folder)
    assert before.parent.info.status == "KILLED" and len(before.children) == 1
    assert found.parent.info.run_id == before.parent.info.run_id and found.parent.info.status == "FINISHED"
    assert [run.info.status for run in found.children] == ["FINISHED"] * 3
    assert found.children[0].info.run_id == before.children[0].info.run_id
    was, now = (
        {name: value for name, value in some.children[0].data.metrics.items() if not name.startswith("system/")}
        for some in (before, found)
    )
    assert was and now == was, "not trained again"
    assert scores(resumed.folder / "fold_0") == resumed.first_fold


def test_a_fold_with_a_finding_makes_the_whole_command_fail(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        workplace.train(tmp_path, *PLAIN, "model=bicubic", "normalisation.fit=everything")
    printed = capsys.readouterr()
    assert "error: audit: scaler: " in printed.err and "Traceback" not in printed.err + printed.out
    found = family(workplace, tmp_path)
    assert found.parent.info.status == "FAILED" and [run.info.status for run in found.children] == ["FAILED"]
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "fold_1").exists()


def test_one_fold_of_all_is_the_run_of_that_fold_alone(workplace: Workplace, network: Path, tmp_path: Path) -> None:
    alone = workplace.train(tmp_path, *NETWORK, "split.folds=1")
    same = {name: value for name, value in scores(alone).items() if name.startswith("test/")}
    assert same == {name: scores(network / "fold_1")[name] for name in same}
    assert not family(workplace, alone).children and not (alone / "fold_0").exists()
