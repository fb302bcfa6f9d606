"""Native cells seen through their footprints, from the window's option to what is learned: on a simulated window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray

from sifscale import feature_store, fitting, testing
from sifscale.config import ConfigError, RunConfig, digest
from sifscale.crops import covering_crops
from sifscale.cube import Cube, open_cube
from sifscale.datamodule import CropBatches, CropDataModule
from sifscale.export import export_cube
from sifscale.features import FeatureCube
from sifscale.footprint_weights import cell_means, on_pixels
from sifscale.models.ratio import CHANNEL
from sifscale.task import DownscalingTask
from sifscale.tracking import RunLog
from sifscale.training import make_task, prepare_features, prepare_plans
from sifscale.windows import build_cube, open_or_build, window_digest

if TYPE_CHECKING:
    from conftest import Workplace

NOWHERE_TO_LOG = RunLog(None, "")
SEEN = ("window.period.end=2019-06-25", "window.name=seen", "window.footprint_weights=1")
BY_LOSS = ("trainer.loss=footprints", "level=fine", "crop.size=24", "crop.augment=false")
BY_RATIO = ("model=nirv_ratio", "model.ratio=footprint", "level=fine", "crop.size=24", "crop.augment=false")
Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def configure(workplace: Workplace, tiny_cube_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """Configurations of the tiny window with footprint weights, from the files of the tiny cube."""
    folder = tmp_path_factory.mktemp("seen")
    (folder / "raw").mkdir()
    (folder / "raw" / "seen").symlink_to(tiny_cube_path.parent / "raw" / "tiny")

    def make(*words: str) -> RunConfig:
        return workplace.config(f"paths.data={folder}", "dask.scheduler=synchronous", *SEEN, *words)

    return make


@pytest.fixture(scope="module")
def cube(configure: Configure) -> Cube:
    return open_or_build(configure())


def test_the_option_adds_the_weights_and_changes_nothing_else(cube: Cube, tiny_cube_path: Path) -> None:
    plain = open_cube(tiny_cube_path)
    xr.testing.assert_identical(cube.native.drop_vars("footprint_weights").load(), plain.native.load())
    weights = cube.native["footprint_weights"]
    assert weights.shape == (3, 48, 48, 12, 12) and weights.dtype == np.float32
    observed = cube.native["sif"].notnull().values
    total = weights.values.sum(axis=(3, 4))
    np.testing.assert_allclose(total[observed], 1, atol=1e-5)
    assert (total[~observed] == 0).all() and (weights.values >= 0).all()


def test_many_small_parts_make_the_same_weights_and_say_what_is_lost(
    configure: Configure, cube: Cube, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "raw").symlink_to(cube.path.parent / "raw")
    caplog.set_level("INFO", "sifscale")
    words = ("window.vegetation=null", "window.suggested.bands=[coarse]", "window.tile_px=100")
    tiled = open_cube(build_cube(configure(*words, f"paths.data={tmp_path}")).path).native["footprint_weights"]
    np.testing.assert_allclose(tiled.values, cube.native["footprint_weights"].values, atol=1e-6)
    (line,) = (line for line in caplog.messages if line.startswith("footprint weights"))
    assert 4 < float(line.split()[2]) < 8 and "beyond 1 native cells around it" in line


def test_the_digest_of_a_window_depends_on_the_option_only_where_it_is_given(configure: Configure) -> None:
    digests = {window_digest(configure(f"window.footprint_weights={choice}")) for choice in ("null", 1, 2)}
    assert len(digests) == 3
    without = configure("window.footprint_weights=null").window
    older = without.model_dump(mode="json", exclude={"factor", "truth", "cover", "suggested", "tile_px"})
    older.pop("footprint_weights")
    assert window_digest(configure("window.footprint_weights=null")) == digest(older)


@pytest.mark.parametrize("format", ["netcdf", "cog", "csv"])
def test_exports_leave_the_weights_in_the_cube(cube: Cube, tmp_path: Path, format: str) -> None:
    first = replace(cube, native=cube.native.isel(sample=[0], y=slice(0, 8), x=slice(0, 8)), fine=None)
    (path,) = export_cube(first, format, tmp_path)
    if format == "netcdf":
        with xr.open_dataset(path, engine="h5netcdf") as found:
            assert "sif" in found and "footprint_weights" not in found
    assert path.stat().st_size > 100


def test_batches_hold_the_weights_of_their_cells(configure: Configure, cube: Cube, tmp_path: Path) -> None:
    features = prepare_features(configure(*BY_LOSS), cube)
    weights = cube.native["footprint_weights"].values
    np.testing.assert_array_equal(features.footprint_weights, weights)
    plan = covering_crops(np.asarray(features.valid), np.asarray(features.valid), 24, features.block_px)
    (store,) = Path(configure().paths.data).glob("features_*.zarr")
    from_disk = feature_store.open_features(store, 0)
    numbers = [5, 0, len(plan) - 1]
    for opened in (features, from_disk):
        batch = CropBatches(opened, plan, None)[numbers]
        for found, (sample, y, x) in zip(batch["footprint_weights"], plan.table[numbers, :3], strict=True):
            at = np.s_[sample, y // 4 : y // 4 + 6, x // 4 : x // 4 + 6]
            np.testing.assert_array_equal(found.numpy(), weights[at])
    assert prepare_features(configure("level=fine", "crop.size=24"), cube).footprint_weights is None
    plans = prepare_plans(configure(*BY_LOSS), features)
    with pytest.raises(ConfigError, match="crop.augment: must be false"):
        CropDataModule(features, plans, batch_size=2, seed=0, augment=True)


def test_a_cube_without_weights_is_refused_in_one_line(configure: Configure, tiny_cube_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^window.footprint_weights: the cube has none; build the window again .*$"):
        prepare_features(configure(*BY_LOSS), open_cube(tiny_cube_path))


def room(run: RunConfig, features: FeatureCube) -> tuple[DownscalingTask, CropDataModule]:
    torch.manual_seed(run.seed)
    plans = prepare_plans(run, features)
    data = CropDataModule(features, plans, batch_size=run.trainer.batch_size, seed=run.seed, augment=run.crop.augment)
    return make_task(run, features, plans), data


def test_the_loss_is_that_of_cells_seen_through_their_footprints(configure: Configure, cube: Cube) -> None:
    run = configure(*BY_LOSS)
    features = prepare_features(run, cube)
    task, data = room(run, features)
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        prediction = task(batch["predictors"], batch["coarse"]).numpy()[:, 0]
    errors = []
    for i, (sample, y, x) in enumerate(data.plans.train.table[batch["crop"].tolist(), :3].tolist()):
        cells = np.s_[sample, y // 4 : y // 4 + 6, x // 4 : x // 4 + 6]
        seen = cell_means(cube.native["footprint_weights"].values[cells], prediction[i])
        inner = np.s_[1:5, 1:5]
        errors.append((seen - cube.native["sif"].values[cells])[inner])
    error = np.stack(errors)[np.isfinite(errors)] / task.spec.scaler.target_scale
    assert float(task.training_step(batch, 0).detach()) == pytest.approx(float((error**2).mean()), rel=1e-4)


def other_truth(features: FeatureCube) -> NDArray[np.float32]:
    """A truth that has nothing in common with the target but where it is known."""
    noise = np.random.default_rng(0).normal(size=features.coarse.shape)
    return np.where(features.valid, noise, np.nan).astype(np.float32)


def test_nothing_of_the_truth_is_learned_from(configure: Configure, cube: Cube, tmp_path: Path) -> None:
    """Any other truth: no bit of the scaler, of the weights and of the chosen epoch changes."""
    run = configure(*BY_LOSS, "conservation=additive", "crop.number=4")
    features = prepare_features(run, cube)
    found = []
    for number, seen in enumerate((features, replace(features, target=other_truth(features)))):
        task, data = room(run, seen)
        folder = tmp_path / str(number)
        folder.mkdir()
        history = fitting.fit(run, task, data, folder, NOWHERE_TO_LOG).history
        epoch = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
        found.append((task.state_dict(), task.spec.scaler, epoch, history["val/loss"], history["val/rmse"]))
    (weights, *same, rmse), (others, *other, other_rmse) = found
    assert all(torch.equal(weights[key], others[key]) for key in weights) and same == other
    assert rmse != other_rmse, "the truth was another one indeed"


@pytest.mark.parametrize("bands", ["[nirv]", "[ndvi,nir]"])
def test_where_sif_is_nirv_times_a_constant_the_ratio_by_footprint_finds_it_and_that_by_block_does_not(
    configure: Configure, cube: Cube, tmp_path: Path, bands: str
) -> None:
    """Without noise: native SIF made of a truth that is 3 NIRv, as the footprints of the window saw it."""
    native, fine = cube.native.load(), cube.fine
    assert fine is not None
    fine = fine.load().fillna(0.7)  # the model knows a gap by the mean of a band
    fine = fine.assign(ndvi=fine["ndvi"].clip(0.2, 1), nir=fine["nir"].clip(0.1, 1))  # nothing is divided by the floor
    truth = 3.0 * fine["ndvi"] * fine["nir"]
    weights = native["footprint_weights"].values
    seen = np.stack([cell_means(w, field) for w, field in zip(weights, truth.values, strict=True)])
    known = native["sif"].copy(data=np.where(native["sif"].notnull(), seen, np.nan).astype(np.float32))
    made = replace(
        cube, native=native.assign(sif=known).chunk(), fine=fine.assign(sif_truth=truth).chunk(), hash=f"3 NIRv {bands}"
    )
    shape = (weights.shape[1], weights.shape[2])
    reached = np.stack([np.isfinite(on_pixels(w, np.ones(shape), 4)) for w in weights])
    errors = {}
    for words in (BY_RATIO, ("model=nirv_ratio", "level=fine", "crop.size=24")):
        run = configure(*words, f"features.bands={bands}", "evaluation.details=false")
        features = prepare_features(run, made)
        assert (CHANNEL in features.names) == (words == BY_RATIO) and features.footprint_weights is None
        assert 0.95 < reached[features.valid].mean() < 1
        task, data = room(run, replace(features, valid=features.valid & reached))
        folder = tmp_path / run.model.model_dump()["ratio"]
        folder.mkdir()
        errors[folder.name] = testing.test(run, task, data, None, folder, NOWHERE_TO_LOG)[0]["test/rmse"]
    assert errors["footprint"] < 1e-5 and errors["block"] > 0.01


def test_the_band_of_a_first_map_is_nirv_times_its_ratio_by_footprint(configure: Configure, cube: Cube) -> None:
    by_ratio = prepare_features(configure(*BY_RATIO, "features.bands=[nirv]"), cube)
    nirv, ratio = by_ratio.predictors[:, 0], by_ratio.predictors[:, by_ratio.names.index(CHANNEL)]
    words = ("level=fine", "crop.size=24", "features.bands=[nirv,sif_by_footprint]")
    features = prepare_features(configure(*words), cube)
    assert features.names == ["nirv", "sif_by_footprint"] and features.footprint_weights is None
    np.testing.assert_allclose(features.predictors[:, 1], nirv * ratio, rtol=1e-6)
    truth = features.target[np.asarray(features.valid)]
    errors = {
        name: np.nanstd(np.asarray(field)[np.asarray(features.valid)] - truth)
        for name, field in (("first map", features.predictors[:, 1]), ("coarse", features.coarse))
    }
    assert errors["first map"] < errors["coarse"]
