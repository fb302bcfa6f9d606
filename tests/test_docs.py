"""The documentation: it builds without a warning, and what it tells people to type works, smaller."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from sifscale.windows import build_raw

if TYPE_CHECKING:
    from conftest import CopyTo, Workplace

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """Lines that a reader of the page types into a shell."""
    return [line for block in blocks(page, "bash") for line in block.splitlines()]


def run(command: str, *more: str) -> None:
    """``python NAME.py words`` in this process and the current directory, with ``more`` words after those."""
    python, name, *words = shlex.split(command)
    assert python == "python"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *words, *more])
        runpy.run_path(str(ROOT / name), run_name="__main__")


@pytest.fixture
def folder(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy_of_empty_database: CopyTo
) -> Path:
    """Where the reader is, with a folder of raw files; what takes longest, simulating some, is done already."""
    (tmp_path / "raw").mkdir()
    simulated = build_raw(workplace.config())
    shutil.copytree(simulated, tmp_path / "data" / "raw" / simulated.name)
    copy_of_empty_database(tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def smaller(command: str, workplace: Workplace, folder: Path) -> list[str]:
    """What makes a command of the documentation a matter of seconds, and keeps it in the reader's folder."""
    name = command.split()[1]
    paths = [f"paths.output={folder / 'outputs'}", f"paths.data={folder / 'data'}"]
    tracking = [f"tracking.uri=sqlite:///{folder / 'mlflow.db'}", f"tracking.artifacts={folder / 'artifacts'}"]
    small = [word for word in workplace.overrides() if not word.startswith(("paths.", "tracking."))]
    embedded = "window=minnesota_osse" in command or "window=" not in command
    window = [word for word in small if word.startswith("window.")] if embedded else []
    given = {word.partition("=")[0] for word in command.split()}
    tiny = [word for word in small if not word.startswith("window.") and word.partition("=")[0] not in given]
    if "split=places" in command:
        tiny = [word for word in tiny if not word.startswith(("split.block", "crop."))]
    return {
        "build.py": [*paths, *window],
        "train.py": [*paths, *tracking, "tracking.log_model=false", "tracking.system_metrics=false", *window, *tiny],
        "predict.py": [*paths, *tracking, *window, "progress=false"],
        "explain.py": [*paths, *tracking, "repeats=1", "progress=false"],
        "compare.py": [*paths[:1], *tracking],
    }[name]


def write_soundings(path: Path) -> None:
    """A table of 300 soundings in the layout of OCO-3's, all over the tiny window, in its first composite."""
    rng = np.random.default_rng(5)
    longitude, latitude = rng.uniform(-96.3, -94.7, 300), rng.uniform(47.3, 48.3, 300)
    frame = pd.DataFrame({"sif740": rng.normal(1, 0.4, 300), "sif740_U": 0.4, "time": "2019-05-12 19:30:00"})
    frame[["sid", "mode", "quality_flag", "cloud_flag"]] = np.arange(300)[:, None] * [1, 0, 0, 0]
    for corner, (east, north) in enumerate(((-1, -1), (1, -1), (1, 1), (-1, 1)), start=1):
        frame[f"lon_{corner}"], frame[f"lat_{corner}"] = longitude + 0.012 * east, latitude + 0.01 * north
    frame.to_csv(path, index=False)


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    sphinx = pytest.importorskip("sphinx.cmd.build")
    assert sphinx.build_main(["-q", "-W", "-b", "html", str(ROOT / "docs"), str(tmp_path / "html")]) == 0
    assert "From files to a map" in (tmp_path / "html" / "tour.html").read_text()


def test_each_command_of_the_tour_works(workplace: Workplace, folder: Path) -> None:
    write_soundings(folder / "raw" / "oco3.csv")
    for command in commands("tour.md"):
        run(command, *smaller(command, workplace, folder))
    (code,) = blocks("tour.md", "python")
    exec(compile(code, "tour.md", "exec"), {})
    made = folder / "outputs" / "tour"
    assert (made / "map.nc").is_file() and (made / "comparison" / "comparison.html").is_file()


def test_each_command_about_data_of_ones_own_works(
    workplace: Workplace, tiny_cube_path: Path, raw: Path, folder: Path
) -> None:
    simulated = workplace.data / "raw" / "tiny"
    for path in (simulated / "troposif", simulated / "mod13a2", raw / "modis_lst_h18v04_2020.nc"):
        (folder / "raw" / path.name).symlink_to(path)
    region, layer = blocks("own_data.md", "yaml")
    own = folder / "mine" / "window" / "my_region.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(region)
    for command in commands("own_data.md"):
        run(command, *smaller(command, workplace, folder))
    assert (folder / "outputs" / "my_region.zarr").is_dir()
    own.write_text(region + layer)
    command = "python train.py --config-dir mine window=my_region paths.raw=raw check=true"
    run(command, *smaller(command, workplace, folder))
