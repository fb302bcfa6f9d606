"""What all tests share: one thread, no telemetry, Hypothesis settings, one folder of tiny cubes for all processes."""

from __future__ import annotations

import os

# Set before torch and numba are loaded, and inherited by child processes: on a shared machine two
# threads of one test wait for those of its neighbours.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight more processes a server, for jobs that are not ours

import functools
import gc
import logging
import multiprocessing
import runpy
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import settings

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from sifscale.config import RunConfig
    from sifscale.task import DownscalingTask

CopyTo = Callable[[Path], Path]

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "train.py")
# The default run made as small as its rules allow: 48 x 48 cells, 16 blocks, three folds, two composites.
TINY = (
    "window.grid.bounds=[-60000.0,2658000.0,132000.0,2850000.0]",
    "window.period.end=2019-06-09",
    "window.simulation.days_per_period=4",
    "split.block=[12,12]",
    "split.k=3",
    "crop.size=8",
    "crop.number=8",
    "features=base",
    "trainer.epochs=2",
    "trainer.batch_size=8",
    "trainer.progress=false",
    "trainer.threads=1",
    "trainer.precision=32-true",  # the same on every machine
    "evaluation.figures=false",  # more than half of the time of so small a run
)
# Another window: a window's cube is one a name, and that of the first has two composites.
THREE_COMPOSITES = ("window.period.end=2019-06-25", "window.name=tiny")

LONGEST = (  # files by time, from half a minute to ten seconds; those that are ``TOGETHER`` follow each other
    "test_launchers",
    "test_training",
    "test_continuing",
    "test_search",
    "test_build",
    "test_regression",
    "test_sweep",
    "test_config",
    "test_docs",
    "test_mlflow_ui",
    "test_sending",
    "test_task",
    "test_served_model",
    "test_assembly",
    "test_leaks",
    "test_parallel",
    "test_averaging",
)

TOGETHER = {  # files that start scripts share the server that forks them, others one of MLflow
    **dict.fromkeys(("test_launchers", "test_training", "test_continuing", "test_search"), "scripts"),
    **dict.fromkeys(("test_build", "test_regression"), "scripts"),
    **dict.fromkeys(("test_mlflow_ui", "test_sending"), "served"),
}

WEATHER = {"Rainf_f_tavg": 1e-5, "SWdown_f_tavg": 300.0, "Tair_f_tavg": 295.0}

# As in a terminal, also where a shell has started the tests in the background: it has such processes ignore Ctrl-C,
# and theirs too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The first example of a test may compile a numba kernel or import torch, so that no deadline holds.
settings.register_profile("sifscale", deadline=None, max_examples=int(os.environ.get("SIFSCALE_TEST_EXAMPLES", "25")))
settings.load_profile("sifscale")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One file, one process (``pytest -n 2``), and files ``TOGETHER`` too: what their tests share is made once."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return TOGETHER.get(Path(file).stem, file)

    config.option.loadscopereorder = False  # the files with the most tests first, which are short ones
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: when one of them comes last, the other processes have nothing to do."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """What is loaded by now stays: a tenth of the time went into searching a million objects for garbage, again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def quick_hydra() -> Iterator[None]:
    """Composing takes half of its time: libyaml parses, and no command is composed once more to learn its mode."""
    from hydra._internal.hydra import Hydra
    from omegaconf import _utils

    plain = _utils.get_yaml_loader

    def compiled() -> Any:
        return type("Compiled", (yaml.CSafeLoader, plain()), {})  # OmegaConf's rules, another parser

    with pytest.MonkeyPatch.context() as patch:
        if yaml.__with_libyaml__:
            patch.setattr(_utils, "get_yaml_loader", compiled)
        patch.setattr(Hydra, "get_mode", lambda *args, **options: None)  # no configuration of ours sets hydra.mode
        yield


@pytest.fixture(autouse=True)
def open_log_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """No handler of Hydra outlives the test whose captured stream it writes to."""
    kept = [one for one in logging.root.handlers if not getattr(getattr(one, "stream", None), "closed", False)]
    monkeypatch.setattr(logging.root, "handlers", kept)


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests find and put the tiny windows' cubes and features: one folder for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data"


@pytest.fixture(scope="session")
def tiny_cube_path(workplace: Workplace) -> Path:
    """A simulated cube, only to be read: 3 composites of 48 x 48 native cells of 4 km, fine factor 4."""
    from sifscale.windows import open_or_build

    return open_or_build(workplace.config(*THREE_COMPOSITES)).path


@dataclass(frozen=True)
class Workplace:
    """A folder with its own runs and MLflow database, one with cubes, and the project's entry point run in them."""

    folder: Path
    data: Path

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def places(self) -> list[str]:
        """Words of a command line: everything is read from and written to these folders."""
        return [
            f"paths.data={self.data}",
            f"paths.raw={self.folder / 'raw'}",
            f"paths.output={self.folder / 'outputs'}",
            f"tracking.uri={self.tracking_uri}",
            f"tracking.artifacts={self.folder / 'artifacts'}",
        ]

    def overrides(self, *words: str) -> list[str]:
        """A tiny run in this folder as words of a command line; ``words`` win."""
        # the keys of the tiny blocks and field do not fit other splits and windows
        foreign = [group for group in ("split", "window") if any(word.startswith(f"{group}=") for word in words)]
        return [*(word for word in TINY if word.split(".")[0] not in foreign), *self.places, *words]

    def train(self, folder: Path, *words: str) -> Path:
        """``python train.py`` in this process with ``folder`` as run folder, which is returned."""
        self.main(*self.overrides(f"hydra.run.dir={folder}", *words))
        return folder

    def main(self, *words: str) -> None:
        """``python train.py`` in this process; a refusal leaves it as SystemExit."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [TRAIN, *words])
            # Hydra's write to the streams of this test, and must not outlive it
            patch.setattr(logging.root, "handlers", list(logging.root.handlers))
            runpy.run_path(TRAIN, run_name="__main__")

    def start(self, *words: str) -> BaseProcess:
        """``python train.py`` in a process of its own, which may be killed; see ``start_script``."""
        return self.start_script(TRAIN, *words)

    def start_script(self, path: str | Path, *words: str) -> BaseProcess:
        """``python path words`` in a process that has nothing of this one; its libraries are loaded, 5 s once.

        It has the directory of this process, and the environment variables of the first process of its kind.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["sifscale.cross_validation"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(path), *words])  # which the process takes over
            process = context.Process(target=runpy.run_path, args=(str(path),), kwargs={"run_name": "__main__"})
            process.start()
        return process

    def fitted(
        self, run: RunConfig, folder: Path, watch: pl.Callback
    ) -> tuple[DownscalingTask, dict[str, list[tuple[int, float]]]]:
        """A run's training alone, seen by a callback that may end it; what has learned, and metrics by epoch."""
        import torch

        from sifscale import fitting
        from sifscale.datamodule import CropDataModule
        from sifscale.tracking import RunLog
        from sifscale.training import make_task, prepare_features, prepare_plans
        from sifscale.windows import open_or_build

        folder.mkdir(exist_ok=True)
        torch.manual_seed(run.seed)
        features = prepare_features(run, open_or_build(run))
        plans = prepare_plans(run, features)
        data = CropDataModule(features, plans, batch_size=run.trainer.batch_size, seed=run.seed, augment=True)
        task, made = make_task(run, features, plans), fitting.lightning_trainer

        def watched(run: RunConfig, callbacks: list[pl.Callback], folder: Path, **options: Any) -> pl.Trainer:
            return made(run, [watch, *callbacks], folder, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fitting, "lightning_trainer", watched)
            return task, fitting.fit(run, task, data, folder, RunLog(None, "")).history

    @functools.cache  # noqa: B019  # as frozen as what it returns, and composing takes 0.15 s
    def config(self, *words: str) -> RunConfig:
        """The typed configuration of the same command line, without running anything."""
        from hydra import compose, initialize_config_dir

        from sifscale.config import RunConfig, load

        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return load(compose("train", self.overrides(*words)), RunConfig)


@pytest.fixture(scope="session")
def copy_of_empty_database(shared_data: Path) -> CopyTo:
    """Puts a database with MLflow's tables at a path; they take seconds, once for all processes of a test run."""
    from sifscale.config import Tracking
    from sifscale.tracking import client

    empty = shared_data.parent / "empty" / "mlflow.db"
    client(Tracking(uri=f"sqlite:///{empty}", experiment="", artifacts=""))

    def copy(path: Path) -> Path:
        with closing(sqlite3.connect(empty)) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)  # whole, with what is still in its log
        return path

    return copy


@pytest.fixture(scope="session")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, shared_data: Path, copy_of_empty_database: CopyTo
) -> Workplace:
    """One for all tests of a process, which tell their runs apart by experiment or id."""
    folder = tmp_path_factory.mktemp("work")
    copy_of_empty_database(folder / "mlflow.db")
    return Workplace(folder, shared_data)


@pytest.fixture(scope="session")
def mlflow_port(workplace: Workplace) -> Iterator[int]:
    """Port of a real ``mlflow ui`` on the database of this process's runs; artifacts that it is sent are its own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    call = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    call += ["--backend-store-uri", workplace.tracking_uri, "--artifacts-destination", str(workplace.folder / "sent")]
    log = workplace.folder / "mlflow_ui.log"
    with (
        log.open("w") as out,
        subprocess.Popen(call, cwd=workplace.folder, stdout=out, stderr=out, start_new_session=True) as process,
    ):
        try:
            for _ in range(600):
                with suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            else:
                pytest.fail(f"the server does not answer: {log.read_text()}")
            yield port
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too


def write_tables(folder: Path) -> Path:
    """Small tables below ``folder`` in the layout and under the names of the original study's; returns ``folder``.

    24 x 24 cells, two composites with some gaps; the "7x14km" tables hold the 3 x 3 moving mean.
    """
    import numpy as np
    import pandas as pd
    from scipy import ndimage

    rng = np.random.default_rng(3)
    bands = "NDVI EVI R_REFL NIR_REFL B_REFL MIR_REFL VZA SZA RAA PXL_REL VIQ COMP".split()
    x, y = np.meshgrid(-100 + 0.046 * np.arange(24), 49 - 0.063 * np.arange(24))
    (folder / "sif_modis_minnesota_2019").mkdir(parents=True)
    for days in ("25_MAY_09_JUNE", "10_JUNE_25_JUNE"):
        smooth = ndimage.gaussian_filter(rng.normal(size=(24, 24)), 2) * 3
        frame = pd.DataFrame({"longitude": x.ravel(), "latitude": y.ravel()})
        for band in bands:
            frame[f"{band}_mean"] = (3000 + 800 * (smooth + rng.normal(size=smooth.shape) / 3)).ravel()
        sif = 0.6 + 0.3 * smooth + rng.normal(scale=0.1, size=smooth.shape)
        for name, field in (("3.5x7km", sif), ("7x14km", ndimage.uniform_filter(sif, 3))):
            frame["sif_mean_743"] = frame["sif_mean_735"] = field.ravel()
            path = folder / "sif_modis_minnesota_2019" / f"SIF_MODIS_Integrated_{name}_{days}.csv"
            frame.drop(index=[30, 31, 200]).to_csv(path, index=False)
    return folder


@pytest.fixture
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of raw tables that may be changed."""
    return write_tables(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of raw tables and patch sets, only to be read."""
    return write_patches(write_tables(tmp_path_factory.mktemp("raw")))


def write_patches(folder: Path) -> Path:
    """Small patch sets below ``folder`` under the names and in the layout of the public ones; returns ``folder``.

    Nine tiles of 100 x 100 px of airborne SIF, a fifth of them flown, at places far apart; 18 patches of 64 x 64 px of
    temperature at nine lattice places that make nine groups.
    """
    import numpy as np
    import xarray as xr
    from scipy import ndimage

    rng = np.random.default_rng(4)
    dims = ("sample", "y", "x")

    def smooth(samples: int, size: int) -> Any:
        return ndimage.gaussian_filter(rng.normal(size=(samples, size, size)), (0, 4, 4)) * 8

    folder.mkdir(parents=True, exist_ok=True)
    green = smooth(9, 100)
    sif = 0.5 + 0.1 * green + rng.normal(scale=0.1, size=green.shape)
    flown = np.zeros(green.shape, dtype=bool)
    flown[:, 20:60, 30:80] = True
    names = ["ref_2", "ref_3", "ref_4", "ref_5", "ref_6", "ref_7"]
    fields = {name: 3000 + 300 * green + rng.normal(scale=100, size=green.shape) for name in names}
    fields |= {name: np.full(green.shape, value) for name, value in WEATHER.items()}
    covers = ["grassland_pasture", "corn", "soybean", "deciduous_forest", "evergreen_forest", "open_water"]
    fields |= {name: (green > 0.3 * number - 1).astype(float) for number, name in enumerate(covers)}
    fields |= {"sif": np.where(flown, sif, np.nan), "soundings": flown * 2.0, "missing_reflectance": 0.0 * sif}
    places = {"lon": ("sample", -95.0 + np.arange(9) % 3), "lat": ("sample", 42.0 + np.arange(9) // 3)}
    day = {"time": ("sample", np.full(9, np.datetime64("2016-06-15", "ns")))}
    bands = {name: (dims, values) for name, values in fields.items()}
    xr.Dataset(bands, coords=places | day).to_netcdf(folder / "cfis_sif_2016.nc")

    green = smooth(18, 64)
    noise = rng.normal(size=green.shape)
    fields = {"lst_day": 295 - 2 * green + noise, "red": 0.08 - 0.01 * green, "nir": 0.3 + 0.05 * green}
    fields["mir"] = 0.1 - 0.01 * green
    number = np.arange(18) % 9
    places = {"lattice_row": ("sample", number // 3 * 3), "lattice_col": ("sample", number % 3 * 3)}
    places |= {name: ("sample", number * 60000.0) for name in ("ul_x", "ul_y")}
    days = np.datetime64("2020-04-05", "ns") + (np.arange(18) // 9) * np.timedelta64(60, "D")
    bands = {name: (dims, values) for name, values in fields.items()}
    xr.Dataset(bands, coords=places | {"time": ("sample", days)}).to_netcdf(folder / "modis_lst_h18v04_2020.nc")
    return folder
