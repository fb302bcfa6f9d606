"""Rows as a table, as JSON beside those of last time, and in the README."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Row
from sifscale.config import PROJECT_ROOT
from sifscale.processes import available_cores
from sifscale.whole import write_json, write_text

LAST = PROJECT_ROOT / "outputs" / "benchmarks.json"  # which git ignores
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table: begin, written by python -m benchmarks --readme -->", "<!-- table: end -->"
COLUMNS = ("stage", "case", "ours", "beside", "times as fast", "bar", "x limit", "peak MB", "against last", "note")
MACHINE = ("processor", "cores", "system", "libraries", "quick")
LIBRARIES = (
    "numpy", "numba", "torch", "pytorch-lightning", "zarr", "tensorstore", "dask", "xarray", "scipy", "scikit-image",
    "mahotas", "xbatcher", "rasterio", "rioxarray", "odc-geo", "pyresample", "shapely", "exactextract",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Rows of a stage, when they were measured, on which commit, in how many rounds."""

    date: str
    commit: str
    rounds: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Results:
    """Stages by name, and the machine: processor, cores, and versions of libraries."""

    machine: Mapping[str, Any]
    stages: Mapping[str, Measured]

    def last_seconds(self, row: Row) -> float | None:
        """What our run of the same row took, if it is there."""
        key = row.stage, row.case, row.peer
        rows = (old for stage in self.stages.values() for old in stage.rows)
        return next((old.seconds for old in rows if (old.stage, old.case, old.peer) == key), None)


def this_machine(quick: bool) -> dict[str, Any]:
    """Processor, cores that this process may use, system, versions of libraries; and whether the cases are tiny."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    system = f"{platform.system()}, Python {platform.python_version()}"
    cores = available_cores()
    return {"processor": _processor(), "cores": cores, "system": system, "libraries": versions, "quick": quick}


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measured(rows: Sequence[Row], rounds: int) -> Measured:
    """These rows, measured now on the commit that is checked out."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    return Measured(f"{datetime.datetime.now():%Y-%m-%d %H:%M}", asked.stdout.strip() or "unknown", rounds, tuple(rows))


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether times of both may be compared: one kind of processor, as many cores, cases of one size."""
    return all(one.get(key) == other.get(key) for key in ("processor", "cores", "quick"))


def read(path: Path) -> Results:
    """Results from JSON; ValueError where the file holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stages = {
            name: Measured(**stage | {"rows": tuple(Row(**row) for row in stage["rows"])})
            for name, stage in content["stages"].items()
        }
        return Results({key: content["machine"][key] for key in MACHINE}, stages)
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} holds no results of this benchmark ({' '.join(str(error).split())}); remove it, or name another "
            "file by --json"
        ) from None


def write(path: Path, results: Results) -> None:
    """Results as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(results))


def cells(row: Row, last_s: float | None) -> list[str]:
    """A row's texts, one a column of `COLUMNS`; last_s: what our run took last time."""
    ours = f"{_number(row.value)} {row.unit}" if row.value is not None else "-"
    spread = f" [{_number(row.least)}..{_number(row.most)}]" if row.ratio is not None and row.least != row.most else ""
    against = f"{row.seconds / last_s:.2f}" if row.seconds and last_s else ""
    bar = f">= {row.at_least:g}" if row.at_least is not None else f"<= {row.at_most:g}" if row.at_most else ""
    bar += {True: " met", False: " MISSED", None: ""}[row.met]
    note = row.note if row.agrees is not False else f"RESULTS DIFFER: {row.note}"
    peak = "" if row.peak_mb is None else f"{row.peak_mb:.0f}"
    ratio = _number(row.ratio) + spread
    return [row.stage, row.case, ours, row.peer, ratio, bar, _number(row.to_limit), peak, against, note]


def _number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _all_cells(results: Results, last: Results | None) -> list[list[str]]:
    comparable = last if last and same_machine(results.machine, last.machine) else None
    rows = [row for stage in results.stages.values() for row in stage.rows]
    return [cells(row, comparable.last_seconds(row) if comparable else None) for row in rows]


def show(results: Results, last: Results | None) -> None:
    """Print the table; what a row has in common with the one above it is left out."""
    table = Table(title="ours beside its peers", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("stage", "case", "beside", "bar", "note") else "right")
    before = [""] * 3
    for row in _all_cells(results, last):
        ours = (0, 1, 2, 6, 7, 8) if row[:3] == before else ()
        table.add_row(*("" if i in ours else text for i, text in enumerate(row)), style=_style(row))
        before = row[:3]
    console = Console()
    # Redirected output has no width of its own, and cells broken over lines are hard to search.
    (console if console.is_terminal else Console(width=220)).print(table)


def _style(row: Iterable[str]) -> str:
    text = " ".join(row)
    return "red" if "MISSED" in text or "DIFFER" in text else ""


def fill_readme(results: Results, readme: Path = README) -> None:
    """Write the table between the marks in the README; ValueError where it has none."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme} has no place for the table; give it the lines '{BEGIN}' and '{END}'")
    machine = results.machine
    columns = [name for name in COLUMNS if name != "against last"]
    kept = [COLUMNS.index(name) for name in columns]
    lines = [f"{machine['processor']}, {machine['cores']} cores, {machine['system']}.", ""]
    for name, stage in results.stages.items():
        lines.append(f"- {name}: {stage.date}, commit {stage.commit}, {stage.rounds} rounds")
    lines += ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(row[i].replace('|', '/') for i in kept)} |" for row in _all_cells(results, None)]
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(readme, "\n".join([before + BEGIN, "", *lines, "", END + after]))
