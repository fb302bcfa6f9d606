"""The comparison of runs says what independent sums say of the files that the runs left, and refuses in one line."""

from __future__ import annotations

import json
import re
import runpy
import sys
from functools import partial
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from scipy import ndimage
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from sifscale import bootstrap
from sifscale.arm_tables import escape, latex
from sifscale.config import PROJECT_ROOT, CompareConfig, Tracking, validate
from sifscale.metrics import Sums
from sifscale.run_comparison import compare_runs
from sifscale.structure import Structure, merged, pooled, to_json
from sifscale.tracking import client, experiment_id

if TYPE_CHECKING:
    from conftest import Workplace

UNITS = "mW m-2 sr-1 nm-1"
EVIL = "<script>alert(1)</script> & $x_1$"
DAY = 1_795_000_000_000
SCALES = {"ridge": 0.5, "U-Net": 0.4, EVIL: 0.6}
FOLDS, SEEDS, BLOCKS, PIXELS = 2, (0, 1), 4, 60


def block(fold: int, number: int, scale: float, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Prediction and target (60,) of a block: one noise times the arm's scale, and a little of the seed's own."""
    target, noise = np.random.default_rng([fold, number]).normal(size=(2, PIXELS))
    own = np.random.default_rng([seed, fold, number, round(100 * scale)]).normal(scale=0.02, size=PIXELS)
    return target + scale * noise + own, target


def png() -> bytes:
    figure, buffer = Figure(figsize=(2, 1)), BytesIO()
    figure.add_subplot().plot([0, 1], [0, 1])
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


class Experiment:
    """An MLflow experiment, and runs as training leaves them."""

    def __init__(self, workplace: Workplace, name: str) -> None:
        self.tracking = Tracking(
            uri=workplace.tracking_uri, experiment=name, artifacts=str(workplace.folder / "artifacts")
        )
        self.mlflow: MlflowClient = client(self.tracking)
        self.folder = workplace.folder / name
        self.folder.mkdir()

    def log(self, arm: str, folds: list[int], seed: int = 0, start: int = DAY, **changes: Any) -> str:
        """A finished run tested on these folds; changes: tags, and ``params``, ``metrics``, ``status``, ``parent``."""
        scale, params = changes.pop("scale", SCALES.get(arm, 0.5)), changes.pop("params", {})
        metrics, status = changes.pop("metrics", {}), changes.pop("status", "FINISHED")
        study: dict[str, Any] = {"name": "tried", "title": f"Study of {EVIL}", "pool": "folds", "baseline": "ridge"}
        study |= {"reference": {}, "score": changes.pop("score", "test")}
        structure = changes.pop("structure", None)
        tags = {"arm": arm, "study": "tried", "audit": "no finding", "window": "here", "cube_hash": "c" * 64}
        tags |= {"git_commit": "1a2b3c4" + "0" * 33, "protocol": "honest", "mlflow.note.content": "`train.py -m`"}
        tags = {key: value for key, value in (tags | changes).items() if value is not None}
        run = self.mlflow.create_run(experiment_id(self.mlflow, self.tracking), start, tags)
        run_id = str(run.info.run_id)
        blocks: dict[str, dict[str, Sums]] = {"model": {}, "bilinear": {}}
        for fold in folds:
            for number in range(BLOCKS):
                for name, wrong in (("model", scale), ("bilinear", 0.8)):
                    p, y = (torch.from_numpy(part).view(1, 1, 1, -1) for part in block(fold, number, wrong, seed))
                    blocks[name][f"b{fold}{number}"] = Sums.of(p, y, torch.ones_like(y, dtype=torch.bool))
        totals = {name: sum(part.values(), start=Sums.zero()) for name, part in blocks.items()}
        found = totals["model"].finish()
        values = {f"test/{key}": found[key] for key in ("r2", "mae", "rmse", "bias")} | {"perf/parameters": 7.0}
        values |= {"test/noise_sd": 0.2, "test/noise_floor_rmse": 0.19, **metrics}
        values |= {"perf/train_s": 3.0 + seed, "perf/samples_per_s": 100.0}
        of_epochs = [Metric("val/rmse", scale + 1 / (1 + e), start, e) for e in range(3)]
        known = {"seed": seed, "split.folds": "all" if len(folds) > 1 else folds[0], "split.k": 2, "model.name": arm}
        self.mlflow.log_batch(
            run_id,
            [*(Metric(k, v, start, 0) for k, v in values.items()), *of_epochs],
            [Param(k, str(v)) for k, v in {**known, **params}.items()],
        )
        groups = {"land cover": {EVIL: {n: part.to_dict() for n, part in totals.items()}}}
        files = {
            "test_sums.json": {"model": totals["model"].to_dict()},
            "test_block_sums.json": bootstrap.to_json(blocks),
            "errors_by.json": groups,
            "config.yaml": {"study": study, "window": {"target": "sif", "units": {"sif": UNITS}}},
        }
        if study["score"] == "truth":
            files["truth_block_sums.json"] = files["test_block_sums.json"]
        if structure is not None:
            files["structure.json"] = structure
        for name, content in files.items():
            path = self.folder / name
            path.write_text(yaml.safe_dump(content) if name.endswith("yaml") else json.dumps(content))
            self.mlflow.log_artifact(run_id, str(path))
        (self.folder / "maps.png").write_bytes(png())
        self.mlflow.log_artifact(run_id, str(self.folder / "maps.png"), "figures")
        self.mlflow.set_terminated(run_id, status, start + 5000)
        return run_id

    def config(self, **changes: Any) -> CompareConfig:
        values: dict[str, Any] = {
            "paths": {"raw": "", "data": "", "output": str(self.folder)}, "study": "tried", "filter": None,
            "baseline": None, "tables": None, "units": "", "output": None, "readme": None,
            "soundings": None, "map": None,
            "check": yaml.safe_load((PROJECT_ROOT / "conf" / "compare.yaml").read_text())["check"],
            "tracking": self.tracking.model_dump(),
        }  # fmt: skip
        return validate(values | changes, CompareConfig)


class Page(HTMLParser):
    """What a page is made of: tags with attributes, the text of cells, and whether tags pair."""

    EMPTY = {"meta", "link", "img", "source"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def compared(workplace: Workplace) -> Experiment:
    """Three arms: one with both folds pooled and its folds as children, one with a run a fold, two seeds of one."""
    runs = Experiment(workplace, "run_comparison")
    whole = runs.log("ridge", [0, 1])
    for fold in (0, 1):
        runs.log("ridge", [fold], study=None, **{"mlflow.parentRunId": whole})
    for seed in SEEDS:
        for fold in (0, 1):
            runs.log("U-Net", [fold], seed=seed, start=DAY + 10)
    runs.log(EVIL, [0, 1], start=DAY + 20, audit="sees the target")
    runs.log("U-Net", [0], scale=9.0, start=DAY + 5)  # older
    runs.log("pruned", [0, 1], pruned="at epoch 3")
    runs.log("trial", [0, 1], trial="4")
    runs.log("broken", [0, 1], status="FAILED")
    return runs


@pytest.fixture(scope="module")
def folder(compared: Experiment) -> Path:
    """What a comparison wrote."""
    compare_runs(compared.config())
    return compared.folder / "comparison" / "tried"


def fields(arm: str, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    parts = [block(fold, n, SCALES[arm], seed) for fold in range(FOLDS) for n in range(BLOCKS)]
    prediction, target = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return prediction, target


def test_rows_equal_what_pandas_and_scikit_learn_make_of_the_pixels(folder: Path) -> None:
    table = pd.read_csv(folder / "comparison.csv", index_col="arm")
    assert list(table.index) == ["ridge", "U-Net", EVIL]  # as they were first tried
    for arm, seeds in (("ridge", [0]), ("U-Net", [0, 1]), (EVIL, [0])):
        prediction, target = (np.concatenate(part) for part in zip(*(fields(arm, s) for s in seeds), strict=True))
        assert table.loc[arm, "r2"] == pytest.approx(r2_score(target, prediction))
        assert table.loc[arm, "mae"] == pytest.approx(mean_absolute_error(target, prediction))
        assert table.loc[arm, "rmse"] == pytest.approx(root_mean_squared_error(target, prediction))
        beside = np.concatenate([block(f, n, 0.8, s)[0] for s in seeds for f in range(FOLDS) for n in range(BLOCKS)])
        skill = 1 - ((prediction - target) ** 2).sum() / ((beside - target) ** 2).sum()
        assert table.loc[arm, "skill_bilinear"] == pytest.approx(skill)
    parts = [
        root_mean_squared_error(*(np.concatenate(part) for part in zip(*blocks, strict=True)))
        for seed in SEEDS
        for fold in range(FOLDS)
        if (blocks := [block(fold, n, SCALES["U-Net"], seed) for n in range(BLOCKS)])
    ]
    assert table.loc["U-Net", "rmse_sd"] == pytest.approx(pd.Series(parts).std())
    assert table.loc["U-Net", "rmse_mean"] == pytest.approx(np.mean(parts))
    assert list(table["parts"]) == [2, 4, 1] and list(table["seeds"]) == [1, 2, 1]  # EVIL's folds are not kept
    assert list(table["train_s"]) == [3.0, 3.5, 3.0] and set(table["parameters"]) == {7.0}
    assert table["skill_ridge"].isna().all() and pd.isna(table.loc["ridge", "baseline_difference"])
    difference = table["rmse"] - table.loc["ridge", "rmse"]
    assert list(table["baseline_difference"][1:]) == pytest.approx(list(difference[1:]))
    low, high = sorted(table["baseline_p"].dropna())
    assert sorted(table["baseline_p_holm"].dropna()) == pytest.approx([2 * low, max(2 * low, high)])
    assert table.loc[EVIL, "findings"] == "sees the target"


def test_effects_are_of_the_one_choice_that_differs(folder: Path) -> None:
    effects = pd.read_csv(folder / "effects.csv").set_index("value")
    table = pd.read_csv(folder / "comparison.csv", index_col="arm")
    assert set(effects["key"]) == {"model.name"} and effects.index[0] == "ridge"
    assert effects.loc["U-Net", "difference"] == pytest.approx(table.loc["U-Net", "baseline_difference"])
    assert effects.loc["U-Net", "low"] == pytest.approx(table.loc["U-Net", "baseline_low"])


def test_the_page_is_well_formed_fetches_nothing_and_says_the_verdict_in_words(folder: Path) -> None:
    text = (folder / "comparison.html").read_text()
    page = Page(text)
    said = " ".join(page.text)
    assert "Lowest RMSE: U-Net" in said and "U-Net is better than ridge: -0.0" in said
    assert f"{EVIL} is worse than ridge: +0.0" in said and "2 comparisons with ridge" in said
    assert [tag for tag, _ in page.tags].count("script") == 1 and "<script>alert" not in text
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name)
        assert tag not in ("iframe", "object", "embed")
        assert tag != "img" or attributes["alt"]
    style_and_script = "".join(re.findall(r"<(?:style|script)>(.*?)</", text, re.DOTALL))
    assert not re.search(r"https?:|url\(|import|fetch", style_and_script)
    headings = [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1" and headings.count("h1") == 1
    assert "Structure" not in page.text, "of which runs left nothing"
    for heading in ("Arms", "Which choice matters", "Learning curves", "Maps", "Audit", "Provenance"):
        assert heading in page.text
    assert "sees the target" in page.text and "c" * 64 in page.text
    assert len(text) < 10_000_000 and not list(folder.glob(".*"))


def test_the_command_prints_the_same(
    compared: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study=tried", "baseline=U-Net", """filter='tags.arm != "trial"'""", f"output={tmp_path}"]
    words += [f"tracking.uri={compared.tracking.uri}", "tracking.experiment=run_comparison", f"paths.output={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    runpy.run_path(str(PROJECT_ROOT / "compare.py"), run_name="__main__")
    names = {"comparison.html", "comparison.csv", "comparison.tex", "effects.csv"}
    assert names == {path.name for path in tmp_path.iterdir() if path.is_file()}
    printed = capsys.readouterr().out
    assert "ridge is worse than U-Net: +0.0" in printed and "noise of the target" in printed
    assert "comparison.html" in printed and "model.name matters" in printed


def test_latex_is_balanced_and_escaped(folder: Path) -> None:
    text = (folder / "comparison.tex").read_text()
    assert text.count(r"\begin{") == text.count(r"\end{") and r"\toprule" in text
    plain = re.sub(r"\\[\\{}$&%#_]|^%.*$", "", text, flags=re.MULTILINE)
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0 and "_" not in plain and "%" not in plain
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4 and len({re.sub(r"\\&", "", row).count("&") for row in rows}) == 1
    assert r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} \& \$x\_1\$" in text
    assert escape("a\\b~^{}") == r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}\{\}"
    assert escape("-0.1 [-1, 2] m-2") == "$-$0.1 [$-$1, 2] m$^{-2}$" and "{tab:a-b}" in latex(["x"], [], "", "a_b")


def test_runs_of_one_sweep_that_share_an_arm_are_told_apart_by_what_was_swept(
    workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Experiment(workplace, "swept")
    sweep = runs.mlflow.create_run(experiment_id(runs.mlflow, runs.tracking), tags={"sweep": "parent"}).info.run_id
    for number, (rate, scale) in enumerate((("0.1", 0.3), ("0.2", 0.6))):
        tags = {"mlflow.parentRunId": sweep}
        runs.log("U-Net", [0], scale=scale, start=DAY - 9 + number, params={"rate": rate}, **tags)
    runs.log("ridge", [0], params={"rate": "9"})
    runs.log("ridge", [0], start=DAY + 1, params={"rate": "8"})  # again, with another setting: replaces the older
    runs.log("ridge", [0], start=DAY + 2, window="there")
    compare_runs(runs.config())
    table = pd.read_csv(runs.folder / "comparison" / "tried" / "comparison.csv")
    assert list(table["arm"]) == ["U-Net, rate=0.1", "U-Net, rate=0.2", "ridge", "ridge"]
    assert table["ground"].nunique() == 2 and table["ground"].iloc[-1].startswith("there")
    page = Page((runs.folder / "comparison" / "tried" / "comparison.html").read_text())
    assert len({attributes["id"] for _, attributes in page.tags if "id" in attributes}) == sum(
        "id" in attributes for _, attributes in page.tags
    )
    compare_runs(runs.config(study=None, filter="tags.arm = 'ridge' and tags.window = 'here'"))
    table = pd.read_csv(runs.folder / "comparison" / "runs" / "comparison.csv")
    assert list(table["arm"]) == ["ridge, rate=9", "ridge, rate=8"]
    assert "No arm is the reference" in capsys.readouterr().out


def structure(fold: int, smooth_px: float, seed: int = 0) -> dict[str, Structure]:
    """Of a fold with four blocks of 16 x 16 px, a tile each: a target with texture, smoothed and with noise added."""
    rng = np.random.default_rng([fold, seed])
    target = np.random.default_rng(fold).normal(size=(1, 32, 32))
    prediction = ndimage.gaussian_filter(target, (0, smooth_px, smooth_px)) + rng.normal(scale=0.1, size=target.shape)
    y, x = np.indices((32, 32)) // 16
    whole, names = np.ones(target.shape, dtype=bool), [f"b{fold}{number}" for number in range(4)]
    options: dict[str, Any] = {"tile_px": 16, "data_range": 3.0}
    return Structure.by_block(prediction, target, whole, whole, (2 * y + x)[None], names, **options)


SMOOTH_PX = {"ridge": 1.0, "U-Net": 0.3}
SIDE = {"pixel_km": {"truth": 1.5, "test": None}}


def test_the_structure_of_the_scored_view_is_compared_with_intervals(
    workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Experiment(workplace, "structured")
    log = partial(runs.log, score="truth", metrics={"truth/rmse": 0.5})
    blocks = {"ridge": [structure(fold, 1.0) for fold in (0, 1)], "U-Net": []}
    log("ridge", [0, 1], structure=to_json({"truth": {"model": merged(blocks["ridge"])}}) | SIDE)
    for seed in (0, 1):
        for fold in (0, 1):
            blocks["U-Net"].append(structure(fold, 0.3, seed))
            log("U-Net", [fold], seed=seed, structure=to_json({"truth": {"model": blocks["U-Net"][-1]}}) | SIDE)
    log("without", [0, 1])
    log("one fold", [0], structure=to_json({"truth": {"model": structure(0, 0.3)}}) | SIDE)
    compare_runs(runs.config())
    table = pd.read_csv(runs.folder / "comparison" / "tried" / "comparison.csv", index_col="arm")
    for arm, parts in blocks.items():
        whole = pooled(merged(parts)).finish(1.5)
        for name in ("ssim", "spectrum_ratio", "spectral_error", "effective_resolution_km"):
            assert table.loc[arm, name] == pytest.approx(whole[name]), (arm, name)
    seeds = {str(seed): merged(blocks["U-Net"][2 * seed : 2 * seed + 2]) for seed in (0, 1)}
    for score in ("spectral_error", "effective_resolution_px"):
        found = bootstrap.structure_of_seeds(seeds, {"0": merged(blocks["ridge"])}, score)
        assert found.high < 0 and found.blocks == 8
        for name in ("difference", "low", "high", "p", "blocks"):
            assert table.loc["U-Net", f"{score}_{name}"] == pytest.approx(getattr(found, name))
    empty = ["ssim", "spectral_error", "spectral_error_difference", "structure_fault"]
    assert table.loc["without", empty].isna().all() and "same blocks" in str(table.loc["one fold", "structure_fault"])
    km = f"{1.5 * found.difference:+.2f} [{1.5 * found.low:+.2f}, {1.5 * found.high:+.2f}]"
    text = Page((runs.folder / "comparison" / "tried" / "comparison.html").read_text()).text
    assert {"Structure", "resolution - ridge [km] [95 %]", "error - ridge [95 %]", km} <= set(text)
    printed = capsys.readouterr().out
    assert "Structure of the maps" in printed and "one fold: both models need structures of the same blocks" in printed


def test_structures_of_runs_of_an_earlier_version_are_told_without_interval(workplace: Workplace) -> None:
    runs = Experiment(workplace, "earlier")
    whole = {arm: structure(0, smooth) for arm, smooth in SMOOTH_PX.items()}
    runs.log("ridge", [0], structure={"model": pooled(whole["ridge"]).to_dict()})
    runs.log("U-Net", [0], structure=to_json({"test": {"model": whole["U-Net"]}}) | SIDE)
    runs.log("legacy", [0])
    runs.log("lost", [0], structure=to_json({"test": {"model": structure(0, 9.0)}}) | SIDE)
    compare_runs(runs.config())
    table = pd.read_csv(runs.folder / "comparison" / "tried" / "comparison.csv", index_col="arm")
    whole["lost"] = structure(0, 9.0)
    error = {arm: pooled(parts).finish()["spectral_error"] for arm, parts in whole.items()}
    assert dict(table["spectral_error"].dropna()) == pytest.approx(error)
    assert table.loc["U-Net", "spectral_error_difference"] == pytest.approx(error["U-Net"] - error["ridge"])
    assert table["spectral_error_low"].isna().all() and table.loc["U-Net", "spectral_error_blocks"] == 1
    text = Page((runs.folder / "comparison" / "tried" / "comparison.html").read_text()).text
    assert "effective resolution [px]" in text and "> 16.00" in text, "it does not resolve the longest wave, of a tile"
    assert f"{error['U-Net'] - error['ridge']:+.4f}" in text


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"study": "nobody"}, ("study: no finished run of 'nobody'", "studies there: tried")),
        ({"study": "it's"}, ("study: no finished run of 'it's'", "studies there: tried")),
        ({"study": None}, ("study: must be given, or filter", "studies there: tried")),
        ({"filter": "no sense ("}, ("filter: is not one of MLflow's run search", "found 'no sense ('")),
        ({"filter": "tags.arm = 'zebra'"}, ("no finished and tested run with", "zebra")),
        ({"baseline": "zebra"}, ("baseline: must be an arm: ridge, U-Net", "found 'zebra'")),
        ({"tracking": {"uri": "sqlite:////nowhere/at/all.db"}}, ("tracking.uri: no such database /nowhere/at/all.db",)),
        ({"tracking": {"uri": "http://127.0.0.1:9"}}, ("tracking.uri: runs cannot be read", "127.0.0.1")),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    compared: Experiment, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if "tracking" in changes:
        changes = {"tracking": {"experiment": "x", "artifacts": "", **changes["tracking"]}}
    with pytest.raises(ValueError) as caught:
        compare_runs(compared.config(**changes))
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_a_study_that_has_only_failed_says_so(compared: Experiment) -> None:
    run = compared.mlflow.create_run(experiment_id(compared.mlflow, compared.tracking), DAY, {"study": "sad"})
    compared.mlflow.log_batch(run.info.run_id, tags=[RunTag("arm", "x")])
    compared.mlflow.set_terminated(run.info.run_id, "FAILED")
    with pytest.raises(ValueError, match=r"no finished run of 'sad' .* \(1 failed\); studies there: tried"):
        compare_runs(compared.config(study="sad"))


