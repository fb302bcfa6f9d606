"""The stages of dvc.yaml depend on what they run and no more; the original study's files are named by their hashes."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.utils.hydra import apply_overrides
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from sifscale.config import (
    PROJECT_ROOT,
    BuildCommand,
    CompareConfig,
    OsseWindow,
    RunConfig,
    TableWindow,
    load,
)

PACKAGE = PROJECT_ROOT / "src" / "sifscale"
PUBLIC = PROJECT_ROOT / "public"
RAW = Path(os.environ.get("SIFSCALE_RAW", PROJECT_ROOT.parent / "shared" / "data"))
COMMIT = "29bb9b353c09dba13837d408874007fddfb3618a"
TOO_LARGE = {"upper_midwest_osse"}  # a quarter of an hour and 5 GB: built when asked for, not by `dvc repro`
PIPELINE = yaml.safe_load((PROJECT_ROOT / "dvc.yaml").read_text())
SECTIONS = {"build": BuildCommand, "train": RunConfig, "compare": CompareConfig}

SIMULATION = {f"simulation/{path.name}" for path in PACKAGE.glob("simulation/*.py")}
OTHER_READERS = {"sources/caltech.py", "sources/oco.py", "sources/patches.py", "sources/table.py"}
SOUNDINGS = {"sources/granule.py", "sources/soundings.py", "sources/troposif.py"}
MODIS = {f"sources/{name}.py" for name in ("hdf4", "mod13", "mod13_metadata", "vi_quality")}
RASTERS = {"sources/cf_grid.py", "sources/raster.py"}
BUILDING = {f"{name}.py" for name in ("assembly", "footprint_weights", "gridding", "parallel", "regrid")}
READING = SOUNDINGS | MODIS | RASTERS | BUILDING
# refuses or passes values; the values are tracked
VALIDATION = {
    f"config/{name}.py"
    for name in (
        "compare_sections", "explain_sections", "model_sections", "predict_sections", "relations", "sections",
        "uncertainty_sections",
    )  # fmt: skip
}
NOT_RUN = {  # modules that a stage's entry point imports for other steps and windows
    "raw": VALIDATION | OTHER_READERS | READING | {"cube.py", "export.py", "inventory.py", "sources/__init__.py"},
    "cube": VALIDATION | OTHER_READERS | SIMULATION | {"export.py"},
    "study": OTHER_READERS
    | READING
    | SIMULATION
    | {"composites.py", "export.py", "footprint_kernels.py", "footprints.py", "legacy.py", "sources/sinusoidal.py"},
    # for readme=FILE, for runs of MLflow instead of tables, and for a map with soundings
    "comparison": SOUNDINGS - {"sources/troposif.py"} | {
        f"{name}.py"
        for name in (
            "arm_structures", "arm_tables", "arms", "choices", "compiled", "comparison_figures", "comparison_page",
            "config/explain_sections", "config/no_result", "config/predict_sections", "config/uncertainty_sections",
            "effects", "footprint_kernels", "footprints", "grid", "html_report", "map_file", "processes", "results",
            "run_comparison", "soundings_check", "soundings_figures", "soundings_matching", "soundings_scores",
            "sources/__init__", "sources/oco", "spectra", "structure", "study_runs", "system_metrics", "tracking",
            "tracking_store", "whole",
        )  # fmt: skip
    },
}


@cache
def stages() -> dict[str, PipelineStage]:
    """Stages by name, as DVC itself reads them."""
    return {stage.addressing: stage for stage in Repo(str(PROJECT_ROOT)).index.stages}


def kind(name: str) -> str:
    return name.split("@")[0]


def outs(stage: PipelineStage) -> set[str]:
    return {Path(out.fs_path).relative_to(PROJECT_ROOT).as_posix() for out in stage.outs}


def deps(stage: PipelineStage) -> set[str]:
    files = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
    return {Path(dep.fs_path).relative_to(PROJECT_ROOT).as_posix() for dep in files}


def parameter_files(stage: PipelineStage) -> dict[str, list[str]]:
    """Files whose values the stage depends on, and the keys that count; none: all of them."""
    files = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
    return {Path(dep.fs_path).relative_to(PROJECT_ROOT).as_posix(): dep.params for dep in files}


def sources(stage: PipelineStage) -> set[str]:
    """Modules of the package that the stage depends on, below the package; folders are taken file by file."""
    found = [PROJECT_ROOT / dep for dep in deps(stage) if dep.startswith("src/")]
    files = [file for path in found for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return {file.relative_to(PACKAGE).as_posix() for file in files}


def imported(entry: str) -> set[str]:
    """Modules of the package that an entry point imports, directly or not, also inside functions."""
    found: set[Path] = set()
    waiting = [PROJECT_ROOT / f"{entry}.py", *_callbacks(PROJECT_ROOT / "conf" / f"{entry}.yaml")]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(path)
    return {path.relative_to(PACKAGE).as_posix() for path in found if PACKAGE in path.parents} - {"__init__.py"}


def _callbacks(path: Path) -> list[Path]:
    """Modules that Hydra imports by name."""
    names = re.findall(r"_target_: (sifscale[\w.]+)", path.read_text())
    return [file for name in names if (file := _module(name.rpartition(".")[0]))]


def _imports(path: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (file for name in names if (file := _module(name)))


def _module(name: str) -> Path | None:
    if name.split(".")[0] != "sifscale":
        return None
    path = PACKAGE.parent.joinpath(*name.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def composed(entry: str, *words: str) -> DictConfig:
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return compose(entry, list(words), return_hydra_config=True)


def words(stage: PipelineStage) -> tuple[str, list[str]]:
    """Entry point and overrides of a stage's command."""
    python, script, *rest = shlex.split(stage.cmd)
    assert python == "python"
    return script.removesuffix(".py"), [word for word in rest if word != "-m"]


# --- the stages -----------------------------------------------------------------------------------


def test_every_simulated_window_goes_from_raw_files_to_a_comparison() -> None:
    names = [path.stem for path in (PROJECT_ROOT / "conf" / "window").glob("*.yaml")]
    simulated = {name for name in names if composed("build", f"window={name}").window.source == "osse"}
    assert TOO_LARGE < simulated
    wanted = {f"{step}@{window}" for step in ("raw", "cube", "study") for window in simulated - TOO_LARGE}
    assert set(stages()) == wanted | {"comparison"}


@pytest.mark.parametrize("name", sorted(stages()))
def test_everything_a_stage_depends_on_exists(name: str) -> None:
    stage = stages()[name]
    made = set().union(*(outs(other) for other in stages().values() if other is not stage))
    for dep in deps(stage):
        path = Path(dep)
        assert (PROJECT_ROOT / dep).exists() or {str(path), str(path.parent)} & made, dep
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            assert set(dep.params) <= set(yaml.safe_load(Path(dep.fs_path).read_text()))


@pytest.mark.parametrize("name", sorted(stages()))
def test_a_stage_depends_on_the_modules_that_it_runs(name: str) -> None:
    """A module that is new in an import belongs among the stage's deps, or in NOT_RUN if the stage never runs it."""
    stage = stages()[name]
    entry, _ = words(stage)
    assert {f"{entry}.py", f"conf/{entry}.yaml"} <= deps(stage)
    assert imported(entry) - sources(stage) == NOT_RUN[kind(name)]
    assert sources(stage) <= imported(entry), "a dep that the entry point does not import"


@pytest.mark.parametrize("name", sorted(stages()))
def test_the_command_of_a_stage_is_valid(name: str) -> None:
    entry, overrides = words(stages()[name])
    load(composed(entry, *overrides), SECTIONS[entry])


@pytest.mark.parametrize("name", [name for name in sorted(stages()) if kind(name) == "study"])
def test_a_study_depends_on_every_option_of_its_arms(name: str) -> None:
    stage = stages()[name]
    entry, overrides = words(stage)
    params = composed(entry, *overrides).hydra.sweeper.params
    (arms,) = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    tracked = deps(stage) | set(parameter_files(stage))
    for arm in arms.sweep_string_iterator():
        choices = composed(entry, *overrides, f"{arms.get_key_element()}={arm}").hydra.runtime.choices
        groups = {group: option for group, option in choices.items() if not group.startswith("hydra/") and option}
        window = groups.pop("window")
        assert window in name
        for group, option in groups.items():
            folder = Path(group.replace("experiment", "experiments", 1) if "experiment" in group else f"conf/{group}")
            assert {folder.as_posix(), (folder / f"{option}.yaml").as_posix()} & tracked, f"{group}={option}"


@pytest.mark.parametrize("name", [name for name in sorted(stages()) if "@" in name])
def test_raw_files_and_cube_follow_every_value_of_a_window_and_training_those_that_only_it_reads(name: str) -> None:
    stage = stages()[name]
    path = f"conf/window/{name.split('@')[1]}.yaml"
    params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency) and dep.fs_path.endswith(path)]
    keys = {key for dep in params for key in dep.params}
    wanted = {
        "raw": {"name", "source", "grid", "period", "simulation", "factor"},
        "cube": set(OsseWindow.model_fields) - {"truth", "cover", "suggested"},
        "study": {"factor", "truth", "cover", "suggested"},
    }
    assert keys == wanted[kind(name)]


@pytest.mark.parametrize("name", [name for name in sorted(stages()) if kind(name) == "study"])
def test_a_study_gives_metrics_and_plots(name: str) -> None:
    stage = stages()[name]
    _, overrides = words(stage)
    folder = next(word.split("=")[1] for word in overrides if word.startswith("hydra.sweep.dir="))
    files = ("runs", "osse_demo.json", "metrics.json", "arms.csv", "curves.csv")
    assert outs(stage) == {f"{folder}/{file}" for file in files}
    (metrics,) = (out for out in stage.outs if out.metric)
    assert Path(metrics.fs_path).name == "metrics.json"
    drawn = [plot for entry in PIPELINE["plots"] if isinstance(entry, dict) for plot in entry.values()]
    assert {"x": "epoch", "y": {f"{folder}/curves.csv": "val/rmse"}, "template": "arms"} in drawn
    assert {"x": "rmse", "y": {f"{folder}/arms.csv": "arm"}, "template": "bar_horizontal"} in drawn
    template = json.loads((PROJECT_ROOT / ".dvc" / "plots" / "arms.json").read_text())
    assert template["data"] == {"values": "<DVC_METRIC_DATA>"} and template["encoding"]["color"]["field"] == "arm"


@pytest.mark.parametrize(
    ("file", "change", "key", "value"),
    [
        ("experiments/osse_demo.yaml", "trainer.epochs=2", "trainer.epochs", 2),
        ("conf/trainer/cpu.yaml", "learning_rate=0.01", "learning_rate", 0.01),
        ("conf/model/unet.yaml", "widths=[8,16]", "widths", [8, 16]),
    ],
)
def test_dvc_can_change_parameters_of_a_study(tmp_path: Path, file: str, change: str, key: str, value: object) -> None:
    """``dvc exp run -S FILE:KEY=VALUE`` rewrites the file, and refuses one that refers to others."""
    assert not parameter_files(stages()["study@iowa_osse"])[file], "every key counts"
    path = tmp_path / Path(file).name
    shutil.copy(PROJECT_ROOT / file, path)
    apply_overrides(path, [change])
    assert OmegaConf.select(OmegaConf.load(path), key) == value
    assert path.read_text().splitlines()[0] == (PROJECT_ROOT / file).read_text().splitlines()[0], "Hydra reads comments"


def test_the_comparison_reads_every_study_and_names_what_it_writes() -> None:
    stage = stages()["comparison"]
    entry, overrides = words(stage)
    config = load(composed(entry, *overrides), CompareConfig)
    assert config.tables is not None
    assert {table.path for table in config.tables} == {dep for dep in deps(stage) if dep.startswith("outputs/")}
    made = set().union(*(outs(other) for name, other in stages().items() if kind(name) == "study"))
    assert {table.path for table in config.tables} == {path for path in made if path.endswith("osse_demo.json")}
    names = {"metrics.json", "rmse.png", *(f"{table.label}.csv" for table in config.tables)}
    assert outs(stage) == {f"{config.folder}/{name}" for name in names}


# --- the original study's own files ---------------------------------------------------------------


def imports() -> dict[str, dict[str, object]]:
    return {
        path.relative_to(PUBLIC).as_posix().removesuffix(".dvc"): yaml.safe_load(path.read_text())
        for path in PUBLIC.rglob("*.csv.dvc")
    }


def test_public_files_are_those_of_the_window_at_one_commit() -> None:
    window = load(composed("build", "window=minnesota_2019"), BuildCommand).window
    assert isinstance(window, TableWindow)
    assert set(imports()) == {path for file in window.files for path in (file.path, file.coarse_path)}
    for name, stage in imports().items():
        (source,), (out,) = stage["deps"], stage["outs"]
        assert stage["frozen"] and out["path"] == Path(name).name
        assert source["path"].startswith("https://raw.githubusercontent.com/")
        assert source["path"].endswith(f"/{COMMIT}/{out['path']}")


def test_public_files_are_out_of_the_way_of_the_stages() -> None:
    """A repository of their own: without internet, `dvc repro`, `push` and `pull` of the rest must not fail."""
    assert (PUBLIC / ".dvc" / "config").is_file()
    assert not [name for name in stages() if "public" in name]


@pytest.mark.skipif(not (RAW / "sif_modis_minnesota_2019").is_dir(), reason="needs the original study's tables")
def test_public_files_have_the_hashes_of_the_original_study() -> None:
    for name, stage in imports().items():
        content = (RAW / name).read_bytes()
        (out,) = stage["outs"]
        assert (out["md5"], out["size"]) == (hashlib.md5(content).hexdigest(), len(content))
