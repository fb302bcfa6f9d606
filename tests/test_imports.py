"""The rooms of the house: an import goes only to an earlier one, and configuration loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "sifscale"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room may import those before it; a package is one room. Data goes the same way (DESIGN, section 2).
ROOMS = (
    "config",
    "jobs",
    "start",
    "grid",
    "whole",
    "parallel",
    "sources",
    "compiled",
    "footprint_kernels",
    "footprints",
    "footprint_weights",
    "regrid",
    "simulation",
    "inventory",
    "composites",
    "gridding",
    "cube",
    "export",
    "assembly",
    "windows",
    "lbp_kernels",
    "lbp",
    "lbp_torch",
    "land_cover",
    "texture",
    "features",
    "selection",
    "crop_kernels",
    "quantised",
    "stored_arrays",
    "feature_store",
    "splits",
    "crops",
    "buffers",
    "chunk_pool",
    "batch_order",
    "crop_batches",
    "datamodule",
    "noise_floor",
    "hidden_target",
    "audit",
    "legacy",
    "models",
    "block_steps",
    "histospline",
    "conservation",
    "metrics",
    "losses",
    "uncertainty",
    "block_sums",
    "spectra",
    "structure",
    "bootstrap",
    "evaluation",
    "task_spec",
    "task",
    "receptive_field",
    "convolution_rounding",
    "tiles",
    "tile_fields",
    "tile_prediction",
    "said_tiles",
    "products",
    "mapping",
    "system_metrics",
    "tracking_store",
    "processes",
    "tracking",
    "continuing",
    "sending",
    "served_model",
    "checkpoints",
    "progress",
    "figures",
    "report",
    "evaluation_figures",
    "borders",
    "map_frame",
    "map_figures",
    "map_page",
    "map_fields",
    "map_pictures",
    "prediction_checks",
    "prediction",
    "map_file",
    "soundings_matching",
    "soundings_scores",
    "soundings_figures",
    "soundings_check",
    "comparison",
    "choices",
    "effects",
    "study_runs",
    "study_files",
    "arms",
    "arm_structures",
    "results",
    "arm_tables",
    "comparison_figures",
    "html_report",
    "comparison_page",
    "run_comparison",
    "comparing",
    "trial",
    "machine",
    "averaging",
    "precision",
    "pace",
    "within_epoch",
    "resuming",
    "fitting",
    "testing",
    "run_figures",
    "sweep",
    "run_record",
    "champion",
    "training",
    "cross_validation",
    "importance",
    "attribution",
    "explaining_figures",
    "explaining_report",
    "explaining",
    "search_space",
    "search_results",
    "search",
)
HEAVY = ("torch", "mlflow", "xarray", "pandas", "pytorch_lightning")


def room_of(path: Path) -> str:
    """Name of the room that a file below the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """Rooms that a module imports, at its head or inside a function; '.' stands for a relative import."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            rooms.add(".")
        elif isinstance(node, ast.ImportFrom) and node.module == "sifscale":
            names = [f"sifscale.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        rooms |= {name.split(".")[1] for name in names if name.startswith("sifscale.")}
    return rooms


def faults(room: str, source: str) -> list[str]:
    """One line for each import of `source`, a module of `room`, that the order of the rooms forbids."""
    if room not in ROOMS:
        return [f"room {room!r} has no place in the order; add it to ROOMS in tests/test_imports.py"]
    found = []
    for other in sorted(imported_rooms(source) - {room}):
        if other == ".":
            found.append("imports are absolute here, found a relative one; write `from sifscale...`")
        elif other not in ROOMS:
            found.append(f"{room} imports sifscale.{other}, which is no room in ROOMS; name the room itself")
        elif ROOMS.index(other) > ROOMS.index(room):
            found.append(f"{room} imports the later room {other}; move the shared part to an earlier one")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_only_to_earlier_rooms(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert imported_rooms(path.read_text()) == set(), "sifscale/__init__.py must import no room"
        return
    assert faults(room_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "source", "part"),
    [
        ("grid", "from sifscale.cube import open_cube", "later room cube"),
        ("grid", "import sifscale.models.unet", "later room models"),
        ("sources", "from sifscale import cube", "later room cube"),
        ("config", "def f():\n    from sifscale.training import train", "later room training"),
        ("models", "from .unet import UNet", "relative"),
        ("cube", "from sifscale import utils", "no room"),
        ("helpers", "", "no place in the order"),
    ],
)
def test_a_forbidden_import_is_found(room: str, source: str, part: str) -> None:
    (fault,) = faults(room, source)
    assert part in fault


def test_permitted_imports_pass() -> None:
    source = "import numpy\nfrom sifscale.sources import table\nimport sifscale.cube"
    assert faults("sources", "from sifscale.sources import SourceError") == []
    assert faults("features", source) == []


@pytest.mark.parametrize("room", ["config", "sweep"])
def test_what_every_command_loads_is_light(room: str) -> None:
    """Help and a refused configuration answer in about a second, which one heavy import would spoil.

    Every command imports config; Hydra imports sweep, the callback, before it composes anything.
    """
    program = f"import sys, sifscale.{room}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []
