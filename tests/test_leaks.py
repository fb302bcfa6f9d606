"""Runs that leak, each honest but for one thing: protocol=honest stops them before training, legacy names the leak.

Everything goes through ``train.py`` and files on disk: a leak is put into the configuration, into the bands of a
cube, into the raw files or into the crop plan. Further forms of a hidden target: test_hidden_target.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from mlflow import MlflowClient
from mlflow.entities import Run
from numpy.typing import NDArray

from sifscale import training
from sifscale.config import RunConfig
from sifscale.crops import CropPlan, Plans
from sifscale.cube import open_cube
from sifscale.features import FeatureCube
from sifscale.grid import moving_mean
from sifscale.splits import TEST

if TYPE_CHECKING:
    from conftest import Workplace

Field: TypeAlias = NDArray[np.floating[Any]]  # (sample, y, x)
Bands: TypeAlias = dict[str, Field]
# Writes a window's raw files or cube, with a leak or without, and returns the words of the command line that name it.
Source: TypeAlias = Callable[["Bench"], list[str]]

SIMULATED = ("window.period.end=2019-06-25", "window.name=tiny")  # as tiny_cube_path was built
TABLES = ("window=minnesota_2019", "split.block=[12,12]", "split.k=3", "crop.size=6", "coarse.factor=3")
PATCHES = ("window=modis_lst_2020", "crop.size=16", "crop.number=1", "window.group_lattice=null", "coarse.factor=4")
NO_LEGACY = (
    "features.legacy={difference: false, lbp: false, lbp_source: coarse, minmax_everything: false, zero_gaps: false}"
)


@dataclass(frozen=True)
class Bench:
    """Where a test may write, and what its window starts from: the tiny cube with its configuration, or tables."""

    workplace: Workplace
    folder: Path
    cube: Path
    simulated: RunConfig
    tables: Callable[[], Path]


@pytest.fixture(scope="module")
def simulated_run(workplace: Workplace) -> RunConfig:
    """The run on the tiny cube; composed once, since that takes as long as the run itself."""
    return workplace.config(*SIMULATED)


@pytest.fixture
def at(
    workplace: Workplace,
    tmp_path: Path,
    tiny_cube_path: Path,
    simulated_run: RunConfig,
    request: pytest.FixtureRequest,
) -> Bench:
    return Bench(workplace, tmp_path, tiny_cube_path, simulated_run, lambda: request.getfixturevalue("tables"))


# Windows: each as it is, or with bands that leak


def simulated(at: Bench, leak: Callable[[Field], Bands] | None = None) -> list[str]:
    """The tiny cube, 3 x 48 x 48 px, with the bands that ``leak`` makes of its target."""
    # With the digest of its window and without raw files it passes for a cube that came from elsewhere.
    shutil.copytree(at.cube, at.folder / "data" / "tiny.zarr")
    if leak:
        native = zarr.open_group(at.folder / "data" / "tiny.zarr", mode="r+", path="native")
        for name, field in leak(open_cube(at.cube).native["sif"].values).items():
            band = native[name]
            assert isinstance(band, zarr.Array)
            band[...] = field.astype(np.float32)
    return [*SIMULATED, f"paths.data={at.folder / 'data'}"]


def given(at: Bench, coarsen: Callable[[Field], Field]) -> list[str]:
    """Tables of the original study's layout whose coarse SIF is made from the target by ``coarsen``."""
    tables = at.tables()
    for fine in tables.rglob("*_3.5x7km_*.csv"):
        coarse = Path(str(fine).replace("3.5x7km", "7x14km"))
        frame = pd.read_csv(fine)
        sif = frame.pivot(index="latitude", columns="longitude", values="sif_mean_743")
        field = pd.DataFrame(coarsen(sif.to_numpy()), sif.index, sif.columns).stack()
        frame["sif_mean_743"] = field.loc[list(zip(frame["latitude"], frame["longitude"], strict=True))].to_numpy()
        frame.to_csv(coarse, index=False)
    return [*TABLES, "coarse.method=given", f"paths.raw={tables}", f"paths.data={at.folder / 'data'}"]


def patches(at: Bench, dates: int = 1, renamed: bool = False) -> list[str]:
    """12 places of 16 x 16 px at ``dates`` dates; ``renamed``: half of them are the other half, pixel by pixel."""
    rng = np.random.default_rng(5)
    dims = ("sample", "y", "x")
    fields = {name: rng.normal(size=(12 * dates, 16, 16)) for name in ("lst_day", "red", "nir", "mir")}
    if renamed:
        fields = {name: np.tile(field[: 6 * dates], (2, 1, 1)) for name, field in fields.items()}
    values = {name: (dims, np.float32(0.3 + 0.02 * field)) for name, field in fields.items()}
    values["lst_day"] = (dims, np.float32(290 + 5 * fields["lst_day"]))
    days = np.datetime64("2020-03-01", "ns") + np.arange(dates) * np.timedelta64(16, "D")
    place = np.repeat(np.arange(12), dates)
    along = {"time": np.tile(days, 12), "lattice_row": place // 4, "lattice_col": place % 4}
    raw = at.folder / "raw"
    raw.mkdir()
    xr.Dataset(values | {name: ("sample", column) for name, column in along.items()}).to_netcdf(
        raw / "modis_lst_h18v04_2020.nc", engine="h5netcdf"
    )
    return [*PATCHES, f"paths.raw={raw}", f"paths.data={at.folder / 'data'}"]


# Bands made from the target


def copied(sif: Field) -> Bands:
    return {"evi": 2 * sif + np.random.default_rng(0).normal(scale=1e-3, size=sif.shape)}


def almost_copied(sif: Field) -> Bands:
    """R2 about 0.96: no function of the target, but better than its noise allows."""
    noise = np.random.default_rng(0).normal(scale=0.2 * np.nanstd(sif), size=sif.shape)
    return {"evi": sif + noise}


# Coarse fields of tables, (y, x)


def measured_apart(field: Field) -> Field:
    """As smooth as the moving mean, but with noise of its own."""
    return np.asarray(moving_mean(field, 3) + np.random.default_rng(0).normal(scale=0.05, size=field.shape))


def in_the_test_part(at: Bench) -> list[str]:
    """The tiny cube with an ``evi`` that is the target where it is tested, and itself elsewhere."""
    cube = open_cube(at.cube)
    features = training.prepare_features(at.simulated, cube)
    parts = training.prepare_plans(at.simulated, features).parts
    evi = cube.native["evi"].values
    assert parts is not None and parts.shape == evi.shape
    return simulated(at, lambda sif: {"evi": np.where(parts == TEST, sif, evi)})


def legacy_feature(name: str) -> tuple[str, ...]:
    """Words that turn on one of the notebooks' own features, and no other."""
    return ("features=base", NO_LEGACY, f"features.legacy.{name}=true")


@dataclass(frozen=True)
class Leak:
    """A run that leaks: where its window comes from, further words, and codes and words of what is found."""

    source: Source
    words: tuple[str, ...]
    code: str
    says: str


LEAKS = {
    "difference channel": Leak(
        simulated,
        legacy_feature("difference"),
        "target_derived_predictor",
        "a linear fit of 'target - coarse' and coarse SIF gives the target with R2 1.000000 over the whole field",
    ),
    "band copied from the target": Leak(
        partial(simulated, leak=copied), (), "target_derived_predictor", "'evi' and coarse SIF gives the target"
    ),
    "crops split at random": Leak(
        simulated,
        ("split=legacy", "normalisation.method=none"),  # a scaler would see test pixels of the training crops
        "overlap",
        "of the test pixels lie inside a training crop",
    ),
    "scaler fitted on everything": Leak(
        simulated, ("normalisation.fit=everything",), "scaler", "fitted on 100.0% of the test pixels"
    ),
    "minmax over everything": Leak(
        simulated, legacy_feature("minmax_everything"), "scaler", "fitted on 100.0% of the test pixels"
    ),
    "moving mean by configuration": Leak(
        simulated, ("coarse.method=moving_mean", "coarse.factor=3"), "moving_mean_coarse", "3x3 moving mean"
    ),
    "moving mean in the raw files": Leak(
        partial(given, coarsen=partial(moving_mean, factor=5)), (), "moving_mean_coarse", "5x5 moving mean"
    ),
    "target in the test part only": Leak(
        in_the_test_part, (), "target_derived_predictor", "over the whole field in the test part"
    ),
    "two dates of a place": Leak(
        partial(patches, dates=3), ("split=legacy",), "shared_place", "places are in train and test"
    ),
    "one place under two names": Leak(
        partial(patches, renamed=True), ("split=places",), "shared_place", "are trained on under another name"
    ),
}
# What follows a finding is the same for all; these are the original study's own.
TRAINED = ("difference channel", "crops split at random", "scaler fitted on everything", "moving mean by configuration")

CLEAN: dict[str, tuple[Source, tuple[str, ...]]] = {
    "simulated": (simulated, ()),
    "simulated, split by time": (simulated, ("split=time",)),
    "tables with a coarse field of their own": (partial(given, coarsen=measured_apart), ()),
    "patches of many dates": (partial(patches, dates=3), ("split=places",)),
    "patches split by time": (partial(patches, dates=3), ("split=time",)),
}


def start(at: Bench, source: Source, *words: str) -> Run:
    """``train.py model=bilinear`` on a window, and what MLflow knows of the run."""
    run_folder = at.folder / "run"
    # references and details come after all that is asked here
    plain = ("evaluation.ridge=null", "evaluation.details=false", "window.truth=null")
    at.workplace.train(run_folder, "model=bilinear", *plain, *source(at), *words)
    return logged(at)


def logged(at: Bench) -> Run:
    return MlflowClient(tracking_uri=at.workplace.tracking_uri).get_run((at.folder / "run" / "run_id").read_text())


def warnings_of(at: Bench) -> list[str]:
    """Warnings about the audit in the run's own log."""
    (log,) = (at.folder / "run").glob("*.log")
    return [line for line in log.read_text().splitlines() if "[WARNING] - audit: " in line]


def refusal(at: Bench, capsys: pytest.CaptureFixture[str], source: Source, *words: str) -> list[str]:
    """Lines with which an honest run is refused; nothing was trained or tested before."""
    with pytest.raises(SystemExit, match="1"):
        start(at, source, *words)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    assert not list(at.folder.rglob("*.ckpt")) and not (at.folder / "run" / "metrics.json").exists()
    return [line for line in printed.err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("name", CLEAN)
def test_an_honest_run_has_no_finding(at: Bench, name: str) -> None:
    source, words = CLEAN[name]
    run = start(at, source, *words)
    assert run.info.status == "FINISHED" and run.data.tags["audit"] == "no finding"
    assert not warnings_of(at)


@pytest.mark.parametrize("name", LEAKS)
def test_an_honest_run_that_leaks_is_stopped_before_training(
    at: Bench, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    leak = LEAKS[name]
    (line,) = refusal(at, capsys, leak.source, *leak.words)
    assert line.startswith(f"error: audit: {leak.code}: ") and leak.says in line
    assert line.endswith("; protocol=honest does not train on this")
    run = logged(at)
    assert run.info.status == "FAILED" and all(name.startswith("system/") for name in run.data.metrics)
    assert run.data.tags["audit"].startswith(f"{leak.code}: ")


@pytest.mark.parametrize("name", TRAINED)
def test_a_legacy_run_that_leaks_trains_and_keeps_the_finding(at: Bench, name: str) -> None:
    leak = LEAKS[name]
    run = start(at, leak.source, *leak.words, "protocol=legacy")
    assert run.info.status == "FINISHED" and {"test/rmse", "test/r2_positions"} <= set(run.data.metrics)
    (warning,) = warnings_of(at)
    assert f"audit: {leak.code}: " in warning and leak.says in warning
    assert run.data.tags["audit"] == warning.split("audit: ")[1]


@pytest.mark.parametrize("part", ["train", "validation"])
def test_crops_over_the_test_part_stop_an_honest_run(
    at: Bench, part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = training.prepare_plans

    def leaky(run: RunConfig, features: FeatureCube) -> Plans:
        plans = make(run, features)
        known: CropPlan = getattr(plans, part)
        table = np.concatenate([known.table, plans.test.table[:1]])
        fraction = np.concatenate([known.valid_fraction, plans.test.valid_fraction[:1]])
        changed: dict[str, Any] = {part: CropPlan(table, fraction, known.size)}
        return replace(plans, **changed)

    monkeypatch.setattr(training, "prepare_plans", leaky)
    (line,) = refusal(at, capsys, simulated)
    assert line.startswith("error: audit: overlap: ")
    assert f"of the test pixels lie inside a {part.replace('train', 'training')} crop" in line


def test_a_band_too_good_to_be_true_is_noticed_by_its_score(at: Bench) -> None:
    run = start(at, partial(simulated, leak=almost_copied), "model=ridge")
    assert run.data.tags["audit"].startswith("below_noise_floor: test RMSE ")
    assert any("audit: below_noise_floor: " in warning for warning in warnings_of(at))


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("features.bands=[coarse,sif]", "features.bands[1]: must not be the target of the window"),
        ("features.bands=[sif_truth]", "features.bands[0]: must be coarse, ndvi,"),
        ("features.bands=[coarse_sif]", "features.bands[0]: must be coarse, ndvi,"),
        (
            "features.lbp=[{source: sif, method: uniform, points: 8, radius: 1.0, encoding: onehot}]",
            "features.lbp[0].source: must not be the target of the window",
        ),
        (
            "features.local_stats={bands: [sif], window_px: 3}",
            "features.local_stats.bands[0]: must not be the target of the window",
        ),
        ("split.guard_px=-1", "split.guard_px: must be greater than or equal to 0"),
        ("model=persistence", "split.name: must be time for model.name=persistence"),
    ],
)
def test_a_configuration_that_would_leak_is_refused(
    at: Bench, word: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = refusal(at, capsys, lambda _: [word])
    assert found.startswith(f"error: {line}")


def test_a_window_of_many_places_is_not_split_into_blocks(at: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    # blocks would put each place into all parts
    (line,) = refusal(at, capsys, patches, "split=blocks", "crop.size=4", "split.block=[5,5]", "split.k=3")
    assert line.startswith("error: split.name: blocks needs a window of one place, use places or samples")
