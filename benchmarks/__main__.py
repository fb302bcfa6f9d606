"""Every stage beside its peers, as one table and as JSON beside the last:  python -m benchmarks  (see README.md)."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from benchmarks import results
from benchmarks.measure import Row, Setting
from sifscale.config import PROJECT_ROOT

STAGES = ("lbp", "crops", "footprints", "regrid", "training", "startup", "tiles", "growth")
ROUNDS = 5


def options_of(words: Sequence[str]) -> argparse.Namespace:
    """The command line; SystemExit where it is none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--quick", action="store_true", help="tiny cases, one round, no bars: does everything run?")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS}, but for whole runs")
    parser.add_argument("--json", type=Path, help=f"compared with, then replaced: {results.LAST}")
    parser.add_argument("--data", type=Path, default=PROJECT_ROOT / "data", help="where cubes of windows lie")
    parser.add_argument("--readme", action="store_true", help="measure nothing: the table of the JSON into the README")
    options = parser.parse_args(words)
    if options.json is None and not options.quick:
        options.json = results.LAST
    return options


def measured(options: argparse.Namespace) -> dict[str, results.Measured]:
    """Rows of each stage that is asked for."""
    rounds = 1 if options.quick else options.rounds
    found = {}
    with tempfile.TemporaryDirectory(prefix="benchmarks_") as folder:
        data = Path(folder) / "data" if options.quick else options.data.resolve()
        setting = Setting(rounds, options.quick, Path(folder), data)
        for stage in tqdm(options.only, desc="stages", unit="stage"):
            rows = rows_of(stage, setting)
            found[stage] = results.measured(rows, rounds)
    return found


def rows_of(stage: str, setting: Setting) -> list[Row]:
    """Rows of a stage; what fails is a row too, so that it does not cost the other stages."""
    rows: list[Row] = []
    try:
        for row in tqdm(import_module(f"benchmarks.{stage}").rows(setting), desc=stage, unit="row", leave=False):
            rows.append(replace(row, at_least=None, at_most=None) if setting.quick else row)
    except Exception as error:  # peers are others' code: whatever they raise, the other stages are measured
        note = f"{type(error).__name__}: {' '.join(str(error).split())}"
        rows.append(Row(stage, "failed", agrees=False, note=note))
    return rows


def faults(stages: Mapping[str, results.Measured]) -> list[str]:
    """A line for each row whose results are not those of its peer."""
    rows = [row for stage in stages.values() for row in stage.rows]
    return [f"{row.stage}: {row.case}: {row.note}" for row in rows if row.agrees is False]


def main(words: Sequence[str]) -> int:
    """The exit code: 1 where results differ from a peer's that should not, or a stage failed."""
    options = options_of(words)
    try:
        if options.rounds < 1:
            raise ValueError(f"--rounds: must be at least 1, found {options.rounds}")
        last = results.read(options.json) if options.json and options.json.exists() else None
        if options.readme:
            if last is None:
                raise ValueError(f"--readme: there is no {options.json}; run python -m benchmarks first")
            results.fill_readme(last)
            return 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    machine, stages = results.this_machine(options.quick), measured(options)
    found = results.Results(machine, stages)
    results.show(found, last)
    if options.json:
        # Stages that were not asked for stay as they were measured, if it was here.
        older = last.stages if last and results.same_machine(machine, last.machine) else {}
        results.write(options.json, replace(found, stages={**older, **stages}))
        print(f"wrote {options.json}")
    differing = faults(stages)
    for fault in differing:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
