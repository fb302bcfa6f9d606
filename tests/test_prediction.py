"""``predict.py`` from a trained run to a file: what is in it, what is refused, and a job that was killed."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from mlflow import MlflowClient
from numpy.typing import NDArray

from sifscale import prediction
from sifscale.checkpoints import load_checkpoint
from sifscale.config import ConfigError, PredictConfig, load
from sifscale.cube import open_cube
from sifscale.grid import block_repeat, fill_nearest
from sifscale.models.regression import Ridge
from sifscale.prediction_checks import check
from sifscale.products import Unfinished
from sifscale.said_tiles import SaidTiles
from sifscale.task import DownscalingTask
from sifscale.tile_prediction import FLAGS
from sifscale.windows import cube_path

if TYPE_CHECKING:
    from conftest import Workplace

ROOT = Path(__file__).parents[1]
RIDGE = ("model=ridge", "features=lbp", "evaluation.details=false", "evaluation.ridge=null", "conservation=additive",
         "uncertainty=constant")  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(workplace: Workplace) -> Path:
    return workplace.train(workplace.folder / "ridge", *RIDGE)


def words(workplace: Workplace, *more: str) -> list[str]:
    """The command line of ``predict.py`` for the tiny window; ``more`` win."""
    window = [word for word in workplace.overrides() if word.startswith("window.")]
    return [*window, *workplace.places, "progress=false", "pictures=false", "tile_px=80", *more]


def configured(workplace: Workplace, *more: str) -> PredictConfig:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return load(compose("predict", words(workplace, *more)), PredictConfig)


def predicted(workplace: Workplace, *more: str) -> Path:
    return prediction.predict(configured(workplace, *more))


def cell_means(dataset: xr.Dataset, factor: int) -> NDArray[Any]:
    return dataset["sif"].coarsen(y=factor, x=factor).mean().values


# --- what is in a map -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fine_map(workplace: Workplace, run_folder: Path) -> Path:
    return predicted(workplace, f"run={run_folder}", f"output={workplace.folder / 'fine.zarr'}")


def test_a_map_conserves_and_lies_where_the_fine_bands_do(fine_map: Path, workplace: Workplace) -> None:
    cube = open_cube(cube_path(configured(workplace, "run=any")))
    assert cube.fine is not None
    with xr.open_zarr(fine_map) as found:
        assert found["sif"].dims == ("sample", "y", "x") and found["sif"].attrs["units"] == "mW m-2 sr-1 nm-1"
        for name in ("x", "y", "time_start", "time_end", "place"):
            np.testing.assert_array_equal(found[name].values, cube.fine[name].values)
        assert found["spatial_ref"].attrs["crs_wkt"] == cube.fine["spatial_ref"].attrs["crs_wkt"]
        observed = cube.native["sif"].values
        np.testing.assert_array_equal(np.isfinite(cell_means(found, 4)), np.isfinite(observed))
        np.testing.assert_allclose(cell_means(found, 4), observed.astype(np.float64), rtol=1e-6)
        quality = found["quality"].values
        np.testing.assert_array_equal(
            (quality & FLAGS["observed"]) > 0, np.isfinite(observed).repeat(4, axis=1).repeat(4, axis=2)
        )
        flags = found["quality"].attrs
        assert dict(zip(flags["flag_meanings"].split(), flags["flag_masks"], strict=True)) == FLAGS
        assert (found["residual_rmse"] > 0).all() and (found["residual_max"] >= found["residual_rmse"]).all()
        np.testing.assert_array_equal(found["cells"], np.isfinite(observed).sum(axis=(1, 2)))


def test_a_map_has_the_error_bars_that_its_model_was_trained_with(
    fine_map: Path, run_folder: Path, run_of_two: Path, workplace: Workplace
) -> None:
    checkpoint = torch.load(run_folder / "checkpoints" / "best.ckpt", weights_only=True)
    with xr.open_zarr(fine_map) as found:
        shown = np.isfinite(found["sif"].values)
        for name in ("sif_standard_error", "sif_lower", "sif_upper"):
            assert found[name].dtype == np.float32 and found[name].attrs["interval_level"] == 0.9
            assert "uncertainty=constant, calibrated on validation blocks" in found[name].attrs["comment"]
            np.testing.assert_array_equal(np.isfinite(found[name].values), shown)
        error = found["sif_standard_error"].values[shown]
        np.testing.assert_allclose(error, checkpoint["calibration"]["sd"], rtol=1e-6)
        assert "sif_standard_error" in found["sif"].attrs["ancillary_variables"].split()
    output = f"output={workplace.folder / 'without.zarr'}"
    with xr.open_zarr(predicted(workplace, f"run={run_of_two}", "level=native", "window.factor=2", output)) as found:
        assert set(found.data_vars) == {"sif", "quality", "residual_rmse", "residual_max", "cells"}


def test_a_map_says_where_it_comes_from(fine_map: Path, run_folder: Path) -> None:
    with xr.open_zarr(fine_map) as found:
        about = found.attrs
    assert about["run_id"] == (run_folder / "run_id").read_text()
    resolved = json.loads(about["config"])
    assert (resolved["level"], resolved["conservation"]) == ("fine", "additive")
    assert len(about["checkpoint_hash"]) == len(about["cube_hash"]) == 64
    assert about["trained_on_cube_hash"] == about["cube_hash"]
    assert about["sifscale_version"] and about["git_commit"] and about["date_created"] and about["Conventions"]
    assert not list(fine_map.parent.glob(".fine*unfinished"))


def test_the_checkpoint_alone_says_how_predictors_are_made(run_folder: Path) -> None:
    task = DownscalingTask.load_from_checkpoint(run_folder / "checkpoints" / "best.ckpt", weights_only=True)
    origin = task.spec.origin
    assert origin is not None and origin.features["lbp"][0]["method"] == "uniform"
    low, high = origin.ranges[task.spec.channels.index("ndvi")]
    assert -1 <= low < high <= 1
    assert origin.ranges[-1] == (-np.inf, np.inf)  # a plane of LBP
    assert origin.units["sif"] == "mW m-2 sr-1 nm-1"


def test_the_native_level_is_the_check_of_the_training_itself(workplace: Workplace, run_folder: Path) -> None:
    options = ("level=native", "conservation=none", "missing_predictors=leave_out")
    path = predicted(workplace, f"run={run_folder}", *options)
    assert path.parent == workplace.folder / "outputs" / "maps" and path.name.startswith("minnesota_osse_native_ridge_")
    cube = open_cube(cube_path(configured(workplace, "run=any")))
    with xr.open_zarr(path) as found:
        assert found["sif"].dtype == np.float32
        error = (found["sif"] - cube.native["sif"].values).values
        assert np.sqrt(np.nanmean(error**2)) < 0.8 * float(cube.native["sif"].std())
        missing = (found["quality"].values & FLAGS["predictor_missing"]) > 0
        assert missing.any() and np.isnan(found["sif"].values[missing]).all()


def test_gaps_are_filled_on_demand_and_say_so(workplace: Workplace, run_folder: Path) -> None:
    output = f"output={workplace.folder / 'filled.nc'}"
    path = predicted(workplace, f"run={run_folder}", "fill_gaps=true", output, "format=netcdf")
    with xr.open_dataset(path) as found:
        filled = (found["quality"].values & FLAGS["gap_filled"]) > 0
        assert filled.any() and np.isfinite(found["sif"].values[filled]).all()
        assert ((found["quality"].values[filled] & FLAGS["no_observation"]) > 0).all()
        assert found["quality"].attrs["flag_masks"].dtype == np.uint8
        assert np.isnan(found["sif_standard_error"].values[filled]).all()
        assert "gap_filled: from the nearest observed cell" in found["quality"].attrs["comment"]


def test_filling_gaps_fills_them_wherever_predictors_are_known_and_changes_nothing_else(
    workplace: Workplace, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cube = open_cube(cube_path(configured(workplace, "run=any")))
    random, sif = np.random.default_rng(0), cube.native["sif"].values.copy()
    sif[:, random.random(sif.shape[1:]) < 0.2] = np.nan
    sif[1, 6:20, 30:] = np.nan  # a gap of 14 cells
    hidden = np.isnan(sif).repeat(4, axis=1).repeat(4, axis=2)
    holed = replace(cube, native=cube.native.assign(sif=cube.native["sif"].copy(data=sif)))
    monkeypatch.setattr(prediction, "open_or_build", lambda config: holed)
    found = []
    for number, words in enumerate((("fill_gaps=true",), ("fill_gaps=true", "tile_px=999"), ("fill_gaps=false",))):
        output = f"output={workplace.folder / f'holed{number}.zarr'}"
        with xr.open_zarr(predicted(workplace, f"run={run_folder}", *words, output)) as dataset:
            found.append(dataset.load())
    filled, whole, left = found
    for name in ("sif", "quality", "sif_lower"):
        np.testing.assert_array_equal(filled[name].values, whole[name].values)
    np.testing.assert_array_equal(filled["sif"].values[~hidden], left["sif"].values[~hidden])
    np.testing.assert_array_equal(filled["quality"].values[~hidden], left["quality"].values[~hidden])
    assert np.isnan(left["sif"].values[hidden]).all()
    missing = (filled["quality"].values & FLAGS["predictor_missing"]) > 0
    np.testing.assert_array_equal(np.isfinite(filled["sif"].values[hidden]), ~missing[hidden])
    np.testing.assert_array_equal((filled["quality"].values & FLAGS["gap_filled"]) > 0, hidden & ~missing)
    np.testing.assert_allclose(cell_means(left, 4), sif.astype(np.float64), rtol=1e-6)


def test_a_map_as_geotiffs_opens_in_its_place(workplace: Workplace, run_folder: Path, fine_map: Path) -> None:
    from rio_cogeo.cogeo import cog_validate

    folder = predicted(workplace, f"run={run_folder}", "format=cog", f"output={workplace.folder / 'cogs'}")
    files = sorted(path.name for path in folder.glob("*.tif"))
    days, names = ("2019-05-09", "2019-05-25"), ("sif", "quality", "sif_standard_error", "sif_lower", "sif_upper")
    assert files == sorted(f"{name}_minnesota_{day}.tif" for name in names for day in days)
    with xr.open_zarr(fine_map) as expected, rasterio.open(folder / f"sif_minnesota_{days[1]}.tif") as raster:
        np.testing.assert_array_equal(raster.read(1), expected["sif"].values[1])
        assert raster.crs.to_epsg() == 5070 and np.isnan(raster.nodata) and raster.units == ("mW m-2 sr-1 nm-1",)
        assert raster.xy(0, 0) == (expected["x"].values[0], expected["y"].values[0])
        assert raster.tags()["checkpoint_hash"] == expected.attrs["checkpoint_hash"]
    assert all(cog_validate(folder / name)[0] for name in files)


# --- a model of another factor --------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_of_two(workplace: Workplace) -> Path:
    """Learned to make SIF 2 times finer, on a window whose fine grid is 4 times finer."""
    words = ("model=ridge", "features.bands=[coarse,ndvi]", "window.factor=2", "window.grid.fine_factor=4")
    return workplace.train(workplace.folder / "of_two", *words, "evaluation.details=false", "evaluation.ridge=null")


def test_a_model_of_another_factor_is_applied_on_demand_only(workplace: Workplace, run_of_two: Path) -> None:
    words = (f"run={run_of_two}", "conservation=additive")
    with pytest.raises(ConfigError, match=r"^window.grid.fine_factor: must be 2, .* say factor=any .* \(found 4\)$"):
        predicted(workplace, *words)
    found = []
    for tile_px in (64, 999):
        output = f"output={workplace.folder / f'any{tile_px}.zarr'}"
        with xr.open_zarr(predicted(workplace, *words, "factor=any", output, f"tile_px={tile_px}")) as dataset:
            found.append(dataset.load())
    for name in ("sif", "quality"):
        np.testing.assert_array_equal(found[0][name].values, found[1][name].values)
    assert (found[0].attrs["trained_factor"], found[0].attrs["applied_factor"]) == ("2", "4")
    assert "4 times finer by what was learned from making it 2 times finer" in found[0].attrs["comment"]
    cube = open_cube(cube_path(configured(workplace, "run=any")))
    observed = cube.native["sif"].values.astype(np.float64)
    np.testing.assert_allclose(cell_means(found[0], 4), observed, rtol=1e-6)


def test_another_factor_changes_the_blocks_and_leaves_the_weights(workplace: Workplace, run_of_two: Path) -> None:
    words = (f"run={run_of_two}", "factor=any", "conservation=none", f"output={workplace.folder / 'none.zarr'}")
    with xr.open_zarr(predicted(workplace, *words)) as dataset:
        found = dataset["sif"].values[0]
    task = load_checkpoint(str(run_of_two), configured(workplace, *words).tracking).task
    cube = open_cube(cube_path(configured(workplace, *words)))
    assert cube.fine is not None and isinstance(task.model, Ridge)
    model = Ridge(in_channels=2, factor=4, strengths=[1.0])
    model.weights.copy_(task.model.weights)
    coarse = block_repeat(fill_nearest(cube.native["sif"].values[0]), 4, *found.shape)
    predictors = torch.from_numpy(np.stack([coarse, cube.fine["ndvi"].values[0]])).float()[None]
    scaler = task.spec.scaler
    normal = torch.nan_to_num((predictors - task.offset) / task.scale)
    given = (torch.from_numpy(coarse).float()[None, None] - scaler.target_offset) / scaler.target_scale
    expected = model(normal, given)[0, 0].numpy() * scaler.target_scale + scaler.target_offset
    shown = np.isfinite(found)
    assert shown.any()
    np.testing.assert_allclose(found[shown], expected[shown], atol=1e-5)


def test_another_factor_on_the_native_grid_needs_saying_so_too(workplace: Workplace, run_of_two: Path) -> None:
    words = (f"run={run_of_two}", "level=native", "window.factor=3", "window.grid.fine_factor=4")
    with pytest.raises(ConfigError, match=r"^window.factor: must be 2, .* \(found 3\)$"):
        predicted(workplace, *words)
    with xr.open_zarr(predicted(workplace, *words, "factor=any", "conservation=additive")) as found:
        cube = open_cube(cube_path(configured(workplace, *words)))
        observed = cube.native["sif"].astype(np.float64).coarsen(y=3, x=3).mean().values
        np.testing.assert_allclose(cell_means(found, 3), observed, rtol=1e-5)  # of float32 means


@pytest.mark.parametrize(
    ("model", "block_px", "part"),
    [("deconvolution", 2, "weights of deconvolution belong"), ("cnn_dense", 2, "weights of cnn_dense belong"),
     ("ridge", 1, "level: must be native for a model whose coarse field is no mean of cells")],
)  # fmt: skip
def test_a_model_that_is_tied_to_its_factor_is_refused_another(
    workplace: Workplace, run_of_two: Path, model: str, block_px: int, part: str
) -> None:
    config = configured(workplace, f"run={run_of_two}", "factor=any", "conservation=none")
    spec = load_checkpoint(str(run_of_two), config.tracking).task.spec
    tied = replace(spec, model={"name": model}, block_px=block_px)
    with pytest.raises(ConfigError, match=part) as error:
        check(config, tied, open_cube(cube_path(config)), "fine")
    assert len(error.value.faults) == 1 and "factor=any" not in str(error.value)


# --- from where a model may come ------------------------------------------------------------------


def test_a_model_may_be_named_by_its_run_or_its_file(workplace: Workplace, run_folder: Path, fine_map: Path) -> None:
    run_id = (run_folder / "run_id").read_text()
    for number, run in enumerate((run_id, str(run_folder / "checkpoints" / "best.ckpt"))):
        path = predicted(workplace, f"run={run}", f"output={workplace.folder / f'by{number}.zarr'}", "batch_size=3")
        with xr.open_zarr(path) as found, xr.open_zarr(fine_map) as expected:
            xr.testing.assert_equal(found, expected)
            assert found.attrs["run_id"] == run_id


def test_a_registered_model_is_found_by_its_alias_and_by_its_version(workplace: Workplace, run_folder: Path) -> None:
    mlflow = MlflowClient(workplace.tracking_uri)
    experiment = mlflow.get_run((run_folder / "run_id").read_text()).info.experiment_id
    info = mlflow.create_run(experiment).info
    mlflow.log_artifact(info.run_id, str(run_folder / "checkpoints" / "best.ckpt"), "model/data")
    mlflow.create_registered_model("mine")
    mlflow.create_model_version("mine", f"{info.artifact_uri}/model", info.run_id)
    mlflow.set_registered_model_alias("mine", "champion", "1")
    tracking = configured(workplace, "run=any").tracking
    for name in ("models:/mine@champion", "models:/mine/1", info.run_id):
        found = load_checkpoint(name, tracking)
        assert found.run_id == info.run_id and found.task.spec.model["name"] == "ridge"


@pytest.mark.parametrize(
    ("run", "part"),
    [
        ("nowhere.ckpt", "there is no such checkpoint"),
        ("outputs/nowhere", "there is no such folder"),
        ("abcdef", "abcdef"),
        ("models:/nobody@champion", "nobody"),
        ("models:/nobody", "must be models:/NAME@ALIAS"),
    ],
)
def test_a_model_that_is_not_there_is_one_clear_line(workplace: Workplace, run: str, part: str) -> None:
    with pytest.raises(ValueError, match=r"^run: .*\(found '.*'\)$") as error:
        predicted(workplace, f'run="{run}"')  # Hydra wants quotation marks around @
    assert part in str(error.value) and "\n" not in str(error.value)


def changed(run_folder: Path, path: Path, **changes: Any) -> Path:
    """The run's checkpoint with other values in what it says of itself."""
    state = torch.load(run_folder / "checkpoints" / "best.ckpt", weights_only=True)
    state["hyper_parameters"]["spec"] |= changes
    torch.save(state, path)
    return path


def test_a_checkpoint_of_an_earlier_version_is_one_clear_line(
    workplace: Workplace, run_folder: Path, tmp_path: Path
) -> None:
    old = changed(run_folder, tmp_path / "old.ckpt", origin=None)
    with pytest.raises(ValueError, match=r"^run: its checkpoint does not say how predictors were made, .* train again"):
        predicted(workplace, f"run={old}")
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"^run: .*broken.ckpt cannot be loaded, .*$"):
        predicted(workplace, f"run={tmp_path / 'broken.ckpt'}")


def test_everything_that_does_not_go_together_is_said_at_once(
    workplace: Workplace, run_folder: Path, tmp_path: Path
) -> None:
    spec = torch.load(run_folder / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]["spec"]
    origin = spec["origin"] | {"units": spec["origin"]["units"] | {"ndvi": "percent"}}
    origin["features"] = origin["features"] | {"bands": ["coarse", "ndvi", "lst"]}
    other = changed(run_folder, tmp_path / "other.ckpt", block_px=5, factor=5, units="W m-2", origin=origin)
    with pytest.raises(ConfigError) as error:
        predicted(workplace, f"run={other}")
    lines = error.value.faults
    assert len(lines) == 4
    starts = (
        "window.units: sif",
        "window.grid.fine_factor: must be 5",
        "window: the fine bands must have lst",
        "window.units: ndvi must be in percent",
    )
    for start, line in zip(starts, lines, strict=True):
        assert line.startswith(start) and "(found " in line
    with pytest.raises(ConfigError, match=r"window.factor: must be 5, .* \(found 4\)"):
        predicted(workplace, f"run={other}", "level=native")


# --- jobs that were stopped -----------------------------------------------------------------------


class Killed(Exception):
    pass


def test_a_killed_job_goes_on_where_it_was_and_another_one_starts_anew(
    workplace: Workplace, run_folder: Path, fine_map: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workplace.folder / "stopped.zarr"
    command = (f"run={run_folder}", f"output={path}")
    written: list[int] = []
    write = Unfinished.write

    def one_of(allowed: int) -> Any:
        def stop_after(self: Unfinished, *args: Any) -> None:
            if len(written) == allowed:
                raise Killed
            written.append(1)
            write(self, *args)

        return stop_after

    monkeypatch.setattr(Unfinished, "write", one_of(4))
    with pytest.raises(Killed):
        predicted(workplace, *command)
    assert not path.exists()
    (ledger,) = path.parent.glob(".stopped.zarr.*.unfinished/ledger.jsonl")
    ledger.write_text(ledger.read_text() + '\n{"tile": [1')  # cut off in the middle of a line
    monkeypatch.setattr(Unfinished, "write", one_of(10**6))
    predicted(workplace, *command)
    with xr.open_zarr(path) as found, xr.open_zarr(fine_map) as expected:
        xr.testing.assert_equal(found, expected)
        tiles = 2 * 3 * 3
        assert len(written) == tiles  # none twice
    monkeypatch.setattr(Unfinished, "write", one_of(tiles + 2))
    with pytest.raises(Killed):
        predicted(workplace, *command, "conservation=none")
    with xr.open_zarr(path) as found:  # the old one is there until the new one is complete
        assert found.attrs["conservation"] == "additive"
    monkeypatch.setattr(Unfinished, "write", one_of(10**6))
    written.clear()
    predicted(workplace, *command, "conservation=multiplicative")
    assert len(written) == tiles
    assert not list(path.parent.glob(".stopped.zarr.*.unfinished"))


def test_a_smooth_map_that_was_stopped_in_either_pass_is_the_one_made_at_once(
    workplace: Workplace, run_of_two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"run={run_of_two}", "factor=any", "conservation=smooth")
    path = workplace.folder / "smooth.zarr"
    passes: list[str] = []

    def stopping(patched: pytest.MonkeyPatch, kind: type, name: str, allowed: int) -> None:
        do = getattr(kind, name)

        def stop_after(self: Any, *args: Any) -> None:
            if passes.count(name) == allowed:
                raise Killed
            passes.append(name)
            do(self, *args)

        patched.setattr(kind, name, stop_after)

    for kind, name in ((SaidTiles, "put"), (Unfinished, "write")):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            stopping(patched, kind, name, 3)
            predicted(workplace, *words, f"output={path}")
    predicted(workplace, *words, f"output={path}")
    whole = predicted(workplace, *words, f"output={workplace.folder / 'at_once.zarr'}", "tile_px=999")
    observed = open_cube(cube_path(configured(workplace, "run=any"))).native["sif"].values.astype(np.float64)
    with xr.open_zarr(path) as found, xr.open_zarr(whole) as expected:
        xr.testing.assert_equal(found, expected)
        np.testing.assert_allclose(cell_means(found, 4), observed, rtol=1e-6)
    assert not list(path.parent.glob(".smooth.zarr.*.unfinished"))


def test_something_else_in_the_place_of_a_map_is_left_alone(
    workplace: Workplace, run_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.tif").touch()
    with pytest.raises(ValueError, match=r"^output: .* exists and is no map, thus not replaced"):
        predicted(workplace, f"run={run_folder}", f"output={tmp_path / 'mine'}", "format=cog")
    assert (tmp_path / "mine" / "photo.tif").exists()


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_where_the_map_is_and_refuses_with_one_line_a_fault(
    workplace: Workplace, run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = workplace.folder / "printed.zarr"
    folder = f"hydra.run.dir={workplace.folder / 'predict'}"
    monkeypatch.setattr(sys, "argv", ["predict.py", *words(workplace, f"run={run_folder}", f"output={out}", folder)])
    runpy.run_path(str(ROOT / "predict.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(out) and "before conservation" in printed
    monkeypatch.setattr(sys, "argv", ["predict.py", *words(workplace, "run=x", "tile_px=0", "output=a.tif", folder)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "predict.py"), run_name="__main__")
    refused = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in refused] == ["output", "tile_px"]
    shutil.rmtree(out)
