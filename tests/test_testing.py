"""What a test reports: views by name, references that are runs of their own, scores against the truth by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import interpolate, spatial
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from sifscale import fitting, testing
from sifscale.cube import Cube
from sifscale.datamodule import CropDataModule
from sifscale.models.regression import Fitted
from sifscale.splits import TEST, make_split
from sifscale.structure import Structure, from_json, pooled
from sifscale.tracking import RunLog
from sifscale.training import application, make_task, prepare_features, prepare_plans
from sifscale.windows import open_or_build

if TYPE_CHECKING:
    from conftest import Workplace

Fine = NDArray[np.float64]
SCORES = {"r2", "mae", "rmse", "bias", "correlation", "negative_share", "r2_beyond_bilinear"}
# A halo of one coarse cell, which is what bilinear interpolation reads.
WITH_HALO = ("crop.size=12", "split.guard_px=0")
PLAIN = ("evaluation.ridge=null", "evaluation.details=false")


@dataclass(frozen=True)
class Result:
    """A test without MLflow: its metrics, what they are made of, and where its files lie."""

    metrics: dict[str, float]
    tested: testing.Tested
    data: CropDataModule
    cube: Cube
    folder: Path

    def named(self, view: str) -> set[str]:
        return {name.removeprefix(f"{view}/") for name in self.metrics if name.startswith(f"{view}/")}


def run_test(workplace: Workplace, folder: Path, *words: str, holes: bool = False) -> Result:
    """``testing.test`` on what a run is made of; networks keep their first weights.

    holes: every second pixel of every second row of the target is a gap.
    """
    run = workplace.config(*words)
    cube = open_or_build(run)
    torch.manual_seed(run.seed)
    features = prepare_features(run, cube)
    if holes:
        valid = np.array(features.valid)
        valid[:, ::2, ::2] = False
        features = replace(features, valid=valid)
    plans = prepare_plans(run, features)
    data = CropDataModule(features, plans, batch_size=8, seed=run.seed, augment=False)
    task = make_task(run, features, plans)
    if isinstance(task.model, Fitted):
        fitting.fit_at_once(task, data, run.seed)
    fine = application(run, cube, features.names)
    return Result(*testing.test(run, task, data, fine, folder, RunLog(None, "")), data, cube, folder)


@pytest.fixture(scope="module")
def bilinear(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """All that can be had: details, ridge, cells of 2 px and the truth."""
    folder = tmp_path_factory.mktemp("bilinear")
    return run_test(workplace, folder, *WITH_HALO, "model=bilinear", "evaluation.cell_px=2")


def test_every_view_has_all_scores_of_the_model_and_of_its_references(bilinear: Result) -> None:
    for view in ("test", "cells", "truth"):
        references = {f"{name}_{score}" for name in ("nearest", "bilinear", "ridge") for score in ("r2", "mae", "rmse")}
        assert SCORES | references | {"skill_bilinear", "skill_ridge"} <= bilinear.named(view)
        assert bilinear.metrics[f"{view}/rmse"] == pytest.approx(bilinear.metrics[f"{view}/bilinear_rmse"], rel=1e-6)
        assert bilinear.metrics[f"{view}/skill_bilinear"] == pytest.approx(0, abs=1e-6)
        assert (bilinear.folder / f"{view}_block_sums.json").exists()
    assert "psnr" in bilinear.named("test")
    assert {"ssim", "psnr", "spectrum_ratio", "spectral_error"} <= bilinear.named("truth")
    assert {"coarse_rmse", "coarse_rmse_raw", "noise_sd"} <= bilinear.named("test")
    assert json.loads((bilinear.folder / "metrics.json").read_text()) == bilinear.metrics
    by_group = json.loads((bilinear.folder / "errors_by.json").read_text())
    assert set(by_group) == {"land cover", "level of the target", "distance to training pixels"}
    kept = json.loads((bilinear.folder / "structure.json").read_text())
    assert kept.pop("pixel_km") == {"test": 4.0, "truth": 1.0} and set(kept) == {"test", "truth"}
    blocks = {view: set(bilinear.tested.views[view]["model"]) for view in kept}
    assert all(set(kept[view][name]) == blocks[view] for view in kept for name in bilinear.tested.fields)


def test_cells_are_scored_on_means_of_the_predicted_field(bilinear: Result) -> None:
    features, fields = bilinear.data.features, bilinear.tested.fields
    cells = {}
    for name, field in {"target": np.asarray(features.target), **fields}.items():
        known = np.where(np.isfinite(fields["model"]), field, np.nan).reshape(len(field), 24, 2, 24, 2)
        cells[name] = np.where(np.isfinite(known).all(axis=(2, 4)), known.mean(axis=(2, 4)), np.nan)
    inside = np.isfinite(cells["target"])
    for name, prefix in (("model", ""), ("nearest", "nearest_"), ("ridge", "ridge_")):
        expected = root_mean_squared_error(cells["target"][inside], cells[name][inside])
        assert bilinear.metrics[f"cells/{prefix}rmse"] == pytest.approx(expected, rel=1e-5)


def interpolated(native: NDArray[np.float32], factor: int) -> Fine:
    """A native field (y, x), gaps taken from the nearest cell, linear between cell centres, on the fine grid."""
    at = np.argwhere(np.isfinite(native))
    everywhere = np.argwhere(np.ones(native.shape, dtype=bool))
    nearest = spatial.cKDTree(at).query(everywhere)[1]
    filled = native[tuple(at[nearest].T)].reshape(native.shape).astype(np.float64)
    y, x = (np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1) for size in native.shape)
    linear = interpolate.RegularGridInterpolator(tuple(map(np.arange, native.shape)), filled)
    return np.asarray(linear(np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)))


def truth_and_scored(workplace: Workplace, result: Result) -> tuple[Fine, NDArray[np.bool_]]:
    """True SIF at 1 km, and the fine pixels of the test part in native cells that were observed, (sample, y, x)."""
    assert result.cube.fine is not None
    native, truth = result.cube.native["sif"].to_numpy(), result.cube.fine["sif_truth"].to_numpy()
    split: Any = workplace.config("split.guard_px=0").split
    parts = make_split(split, native.shape[1:], ["a"] * len(native), result.data.features.times, 0)
    scored = (parts == TEST) & np.isfinite(native)
    return truth.astype(np.float64), scored.repeat(4, axis=1).repeat(4, axis=2)


def test_bilinear_against_the_truth_is_scored_as_by_hand(workplace: Workplace, bilinear: Result) -> None:
    truth, scored = truth_and_scored(workplace, bilinear)
    native = bilinear.cube.native["sif"].to_numpy()
    predicted = np.stack([interpolated(field, 4) for field in native])
    actual, guess = truth[scored], predicted[scored]
    kept = json.loads((bilinear.folder / "truth_block_sums.json").read_text())["blocks"]["model"]
    assert sum(numbers[0] for numbers in kept.values()) == scored.sum()
    assert bilinear.metrics["truth/rmse"] == pytest.approx(root_mean_squared_error(actual, guess), rel=1e-3)
    assert bilinear.metrics["truth/mae"] == pytest.approx(mean_absolute_error(actual, guess), rel=1e-3)
    assert bilinear.metrics["truth/r2"] == pytest.approx(r2_score(actual, guess), rel=1e-3)
    coarse = np.stack([field.repeat(4, axis=0).repeat(4, axis=1) for field in native])[scored]
    assert bilinear.metrics["truth/nearest_rmse"] == pytest.approx(root_mean_squared_error(actual, coarse), rel=1e-5)


def test_the_structure_of_bilinear_against_the_truth_is_that_of_one_made_by_hand(
    workplace: Workplace, bilinear: Result
) -> None:
    truth, scored = truth_and_scored(workplace, bilinear)
    predicted = np.stack([interpolated(field, 4) for field in bilinear.cube.native["sif"].to_numpy()])
    split: Any = workplace.config("split.guard_px=0").split
    times = bilinear.data.features.times
    inside = make_split(split, (48, 48), ["a"] * len(truth), times, 0).repeat(4, axis=1).repeat(4, axis=2) == TEST
    kept = json.loads((bilinear.folder / "structure.json").read_text())
    found = pooled(from_json(kept, "truth", "model"))
    assert found.tile_px == 48, "a block of 12 native cells"
    options: dict[str, Any] = {"tile_px": found.tile_px, "data_range": found.data_range}
    expected = Structure.of(predicted, truth, scored, inside, **options)
    assert (found.scored_px, found.ssim_px, found.tiles) == (expected.scored_px, expected.ssim_px, expected.tiles)
    assert found.tiles > 0 and found.ssim_px > 0
    assert found.finish() == pytest.approx(expected.finish(), rel=1e-3, nan_ok=True)
    logged = {name: bilinear.metrics[f"truth/{name}"] for name in ("ssim", "spectrum_ratio", "spectral_error")}
    assert logged == pytest.approx({name: expected.finish()[name] for name in logged}, rel=1e-3)


def test_the_ridge_reference_is_a_run_with_ridge_and_conservation(
    workplace: Workplace, bilinear: Result, tmp_path: Path
) -> None:
    strengths = json.dumps(list(workplace.config().evaluation.ridge or ()))
    words = ("model=ridge", f"model.strengths={strengths}", "conservation=additive", "evaluation.cell_px=2")
    ridge = run_test(workplace, tmp_path, *WITH_HALO, *words)
    for view in ("test", "cells", "truth"):
        for name in ("r2", "mae", "rmse"):
            assert bilinear.metrics[f"{view}/ridge_{name}"] == pytest.approx(ridge.metrics[f"{view}/{name}"], rel=1e-6)
    assert "test/ridge_rmse" not in ridge.metrics, "a ridge regression needs no other beside it"
    np.testing.assert_allclose(bilinear.tested.fields["ridge"], ridge.tested.fields["model"], rtol=1e-5)


def test_what_is_not_asked_for_is_left_out(workplace: Workplace, bilinear: Result, tmp_path: Path) -> None:
    plain = run_test(workplace, tmp_path, *WITH_HALO, *PLAIN, "model=bilinear", "window.truth=null")
    assert set(plain.tested.views) == {"test"} and set(plain.tested.fields) == {"model", "nearest", "bilinear"}
    assert not plain.tested.groups and not plain.tested.structure
    files = {path.name for path in tmp_path.iterdir()}
    assert {"metrics.json", "test_sums.json", "test_block_sums.json"} <= files
    assert not {"errors_by.json", "structure.json", "truth_block_sums.json"} & files
    assert not [name for name in plain.metrics if "ridge" in name or name.split("/")[0] in ("cells", "truth")]
    common = set(plain.metrics) & set(bilinear.metrics)
    assert plain.metrics == {name: bilinear.metrics[name] for name in common}, "and changes nothing else"


def test_the_fine_level_learns_and_is_tested_on_the_truth(workplace: Workplace, tmp_path: Path) -> None:
    fine = run_test(workplace, tmp_path, *WITH_HALO, "model=bilinear", "level=fine")
    truth, scored = truth_and_scored(workplace, fine)
    features, predicted = fine.data.features, fine.tested.fields
    assert fine.data.plans.parts is not None and fine.data.plans.parts.shape == truth.shape
    known = np.asarray(features.valid)
    np.testing.assert_array_equal(np.asarray(features.target)[known], truth.astype(np.float32)[known])
    np.testing.assert_array_equal(np.isfinite(predicted["model"]), scored)
    for view in ("test", "truth"):
        for name, prefix in (("model", ""), ("ridge", "ridge_")):
            expected = root_mean_squared_error(truth[scored], predicted[name][scored])
            assert fine.metrics[f"{view}/{prefix}rmse"] == pytest.approx(expected, rel=1e-5)
    assert fine.tested.views["truth"] is fine.tested.views["test"]
    assert fine.tested.structure["truth"] is fine.tested.structure["test"]
    assert fine.metrics["truth/ssim"] == fine.metrics["test/ssim"]
    assert fine.metrics["test/ridge_rmse"] < fine.metrics["test/bilinear_rmse"], "it has learned"
    assert fine.tested.floor is None, "a simulated truth has no noise that a score could be below"


def test_bilinear_at_both_levels_has_the_same_scores_against_the_truth(
    workplace: Workplace, bilinear: Result, tmp_path: Path
) -> None:
    fine = run_test(workplace, tmp_path, *WITH_HALO, *PLAIN, "model=bilinear", "level=fine")
    for name in ("rmse", "r2", "nearest_rmse"):
        assert fine.metrics[f"truth/{name}"] == pytest.approx(bilinear.metrics[f"truth/{name}"], rel=1e-6)


def test_where_no_cell_is_filled_enough_there_is_no_view_of_cells(workplace: Workplace, tmp_path: Path) -> None:
    words = (*PLAIN, "model=bilinear", "window.truth=null", "evaluation.cell_px=2", "evaluation.cell_min_valid=1.0")
    found = run_test(workplace, tmp_path, *words, holes=True)
    assert set(found.tested.views) == {"test"} and not found.named("cells")
    some = run_test(workplace, tmp_path, *words[:-1], "evaluation.cell_min_valid=0.75", holes=True)
    assert set(some.tested.views) == {"test", "cells"} and np.isfinite(some.metrics["cells/rmse"])
