"""Training a U-Net as train.py does it, and its maps, beside eager float32; and how long training waits for data."""

from __future__ import annotations

import copy
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, Setting, Times, Way, beside, compare, fresh
from sifscale.config import PROJECT_ROOT, RunConfig, load
from sifscale.cube import open_cube
from sifscale.datamodule import Scaler
from sifscale.precision import computed_in
from sifscale.task import DownscalingTask
from sifscale.task_spec import Optimisation, TaskSpec
from sifscale.tile_fields import TileFields
from sifscale.tile_prediction import TilePredictor
from sifscale.windows import cube_path, window_digest

TRAINING_BAR, INFERENCE_BAR = 1.8, 2.1  # beside eager float32
WAITING_BAR = 3.0  # % of the training
ROUNDS = 3  # of whole runs
RATE, WAITED, PEAK = "perf/samples_per_s", "perf/data_wait_share", "perf/peak_memory_mb"
SCORE = "test/rmse"

EAGER = ("trainer.precision=32-true", "trainer.channels_last=false")
WIDTHS, BOTTLENECK, CHANNELS, CROP_PX, BATCH = (16, 64, 128, 256), 512, 6, 64, 32
QUIET = (
    "conservation=additive", "evaluation.ridge=null", "evaluation.details=false", "evaluation.figures=false",
    "trainer.patience=null", "trainer.progress=false", "tracking.log_model=false", "tracking.system_metrics=false",
)  # fmt: skip
NETWORK = (
    "model=unet", f"model.widths={list(WIDTHS)}".replace(" ", ""), f"model.bottleneck={BOTTLENECK}", "level=fine",
    f"crop.size={CROP_PX}", "crop.number=64", "features=base", f"trainer.batch_size={BATCH}", "trainer.epochs=2",
    *QUIET,
)  # fmt: skip
# The default window made as small as its rules allow: 48 x 48 cells, one composite. It is `growth`'s smallest, so that
# it is simulated once.
SMALL = (
    "window.name=growth_1_1", "window.grid.bounds=[-60000.0,2466000.0,132000.0,2658000.0]",
    "window.period.end=2019-05-24", "window.simulation.days_per_period=4", "split.block=[12,12]", "split.k=3",
)  # fmt: skip
QUICK = (*SMALL, "model=unet", "level=fine", "features=base", "crop.size=16", "crop.number=8", "trainer.batch_size=4",
         "trainer.epochs=1", "trainer.threads=1", *QUIET)  # fmt: skip
LARGEST = "upper_midwest_osse"
LIMITS_MB = (100_000, 300)  # the features of the largest window take 1 GB


@dataclass(frozen=True)
class Trained:
    """Metrics of a finished run by name, its training crops, and the peak memory of its process, MB."""

    metrics: dict[str, float]
    crops: int
    peak_mb: float


def places(setting: Setting, folder: Path) -> list[str]:
    """Words of a command line: the run in this folder, cubes where the setting says, records beside."""
    scratch = setting.scratch
    tracking = [f"tracking.uri=sqlite:///{scratch / 'mlflow.db'}", f"tracking.artifacts={scratch / 'artifacts'}"]
    return [f"paths.output={folder}", f"hydra.run.dir={folder}", f"paths.data={setting.data}", *tracking]


def trained(setting: Setting, name: str, words: Sequence[str]) -> Trained:
    """One run of ``train.py`` in a process of its own; name: of its folder. RuntimeError where it fails."""
    folder = setting.scratch / name
    metrics, peak_mb = fresh(_train, folder, [*words, *places(setting, folder)])
    crops = (folder / "crops_train.csv").read_text().count("\n") - 1
    return Trained(metrics, crops, peak_mb)


def _train(folder: Path, words: Sequence[str]) -> dict[str, float]:
    from mlflow import MlflowClient

    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    sys.argv = ["train.py", *words]
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "said.log"
    try:
        with said.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            runpy.run_path(str(PROJECT_ROOT / "train.py"), run_name="__main__")
    except SystemExit as end:
        last = said.read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"train.py ended with exit code {end.code}: {' '.join(last)}") from None
    uri = next(word for word in words if word.startswith("tracking.uri=")).removeprefix("tracking.uri=")
    run = MlflowClient(tracking_uri=uri).get_run((folder / "run_id").read_text().strip())
    return dict(run.data.metrics)


def run_config(words: Sequence[str]) -> RunConfig:
    """The typed configuration of a command line of ``train.py``."""
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return load(compose("train", list(words)), RunConfig)


def training(setting: Setting) -> Iterator[Row]:
    """Whole runs, ours and eager ones in turn; the rates are those that they logged."""
    words, rounds = (QUICK, 1) if setting.quick else (NETWORK, ROUNDS)
    ours, eager = Times(), Times()
    runs: list[Trained] = []
    scores: dict[str, float] = {}
    for number in range(rounds):
        for way, more, times in (("ours", (), ours), ("eager", EAGER, eager)):
            run = trained(setting, f"{way}_{number}", [*words, *more])
            scores[way] = run.metrics[SCORE]
            times.wall.append(1 / run.metrics[RATE])
            runs += [run] if way == "ours" else []
    note = f"RMSE {scores['ours']:.4f}, eager {scores['eager']:.4f}"
    # Scores of two seeds differ by about as much.
    agrees = abs(scores["ours"] - scores["eager"]) <= 0.05 * scores["eager"]
    case = f"U-Net, {runs[0].crops} crops an epoch, rounds of whole runs: {rounds}"
    common = Row(
        "training", case, 1 / ours.median, "crops/s",
        peak_mb=runs[0].peak_mb, seconds=ours.median, agrees=agrees, note=note,
    )  # fmt: skip
    yield beside(common, Way("eager float32", None, bar=TRAINING_BAR), eager, ours)


def network(setting: Setting) -> DownscalingTask:
    """The U-Net of `NETWORK`, with random weights; a small one where that is quick."""
    widths = ["model.widths=[4,8]", "model.bottleneck=8"] if setting.quick else NETWORK[1:3]
    model = run_config(["model=unet", *widths]).model.model_dump()
    scaler = Scaler((0.0,) * CHANNELS, (1.0,) * CHANNELS, 0.0, 1.0)
    names = tuple(f"band{i}" for i in range(CHANNELS))
    spec = TaskSpec(model, names, scaler, 4, 4, CROP_PX, "none", "sif", "1", 1, None)
    task = DownscalingTask.create(spec, Optimisation("mse", "adamw", 0.001, 0.01, "constant", 1), keep_positions=False)
    head = task.model.get_submodule("head")
    torch.nn.init.normal_(head.get_parameter("weight"), std=0.1)  # it begins at 0
    return task.eval()


def inference(setting: Setting) -> Iterator[Row]:
    """A batch as maps are made of it, beside the same network called in float32; the limit is one matrix product."""
    torch.manual_seed(0)
    task, random = network(setting), np.random.default_rng(0)
    predictors = random.normal(size=(BATCH, CHANNELS, CROP_PX, CROP_PX)).astype(np.float32)
    coarse = random.normal(size=(BATCH, CROP_PX // 4, CROP_PX // 4)).astype(np.float32).repeat(4, 1).repeat(4, 2)
    given, cells = torch.from_numpy(predictors), torch.from_numpy(coarse)[:, None]
    plain = copy.deepcopy(task)

    def eager() -> torch.Tensor:
        with torch.inference_mode():
            return plain.each(given, cells)

    half = computed_in("auto", "cpu") == "bf16-mixed"
    predictor = TilePredictor(task, conservation="none", half=half)
    known = np.ones((CROP_PX, CROP_PX), bool)
    fields = [TileFields(bands, cell, known) for bands, cell in zip(predictors, coarse, strict=True)]
    expected, found = eager(), predictor.raw(fields)
    off = float((found - expected).square().mean().sqrt() / expected.std())
    peer = Way("eager float32", eager, BATCH, INFERENCE_BAR, off < 0.02, f"rms difference {off:.4f} of the field's sd")
    with FlopCounterMode(display=False) as counter:
        eager()
    matrix = torch.rand(512, 512, dtype=torch.bfloat16 if half else torch.float32)
    products = Way("matrix product", partial(torch.mm, matrix, matrix), 2 * 512**3 / counter.get_total_flops() * BATCH)
    ours = Way("ours", partial(predictor.raw, fields), BATCH)
    case = f"U-Net, {CHANNELS} channels, {CROP_PX} px, batch {BATCH}, {'bfloat16' if half else 'float32'}"
    yield from compare("inference", case, "crops/s", ours, [peer], setting, products)


def waiting(setting: Setting) -> Iterator[Row]:
    """The share of a training that waits for data, on the largest simulated window, whose cube must be there.

    Of two epochs: the first batch, for which the pool is filled, would be most of a shorter run.
    """
    words = [f"window={LARGEST}", *NETWORK]
    there = _has_cube([*words, f"paths.data={setting.data}"])
    for limit_mb in LIMITS_MB:
        case = f"{LARGEST}, fine level, feature cubes up to {limit_mb:,} MB in memory"
        common = Row("data wait", case, unit="% of the time", at_most=WAITING_BAR)
        if not there:
            yield replace(common, note=f"no cube in {setting.data}: python build.py window={LARGEST}")
            continue
        run = trained(setting, f"waiting_{limit_mb}", [*words, f"trainer.memory_limit_mb={limit_mb}"])
        share, note = 100 * run.metrics[WAITED], f"{run.metrics[RATE]:.0f} crops/s, {run.crops} crops"
        yield replace(common, value=share, peak_mb=run.peak_mb, note=note)


def _has_cube(words: Sequence[str]) -> bool:
    config = run_config(words)
    path = cube_path(config)
    return path.exists() and open_cube(path).attrs.get("window_digest") == window_digest(config)


def rows(setting: Setting) -> Iterator[Row]:
    """Training, inference, waiting for data."""
    yield from training(setting)
    yield from inference(setting)
    yield from waiting(setting)
