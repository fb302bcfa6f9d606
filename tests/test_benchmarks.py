"""The benchmarks run, their checks of agreement hold, and their tables say what was measured. Nothing here is timed."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import CopyTo

ROOT = Path(__file__).parents[1]
STAGES = ("lbp", "crops", "footprints", "regrid", "training", "startup", "tiles", "growth")


@pytest.fixture(scope="module")
def benchmark_of() -> Any:
    """Modules of the benchmarks by name; their folder is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield lambda name: import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def setting(benchmark_of: Any, tmp_path_factory: pytest.TempPathFactory, copy_of_empty_database: CopyTo) -> Any:
    """Tiny cases, once; the stages share a folder."""
    scratch = tmp_path_factory.mktemp("benchmarks")
    copy_of_empty_database(scratch / "mlflow.db")
    return benchmark_of("measure").Setting(1, True, scratch, scratch / "data")


@pytest.fixture(scope="module")
def results(benchmark_of: Any) -> ModuleType:
    found: ModuleType = benchmark_of("results")
    return found


@pytest.fixture
def example(benchmark_of: Any, results: ModuleType) -> Any:
    """Results of one stage: a row with a peer, one with a peer that is not there, one without."""
    measure = benchmark_of("measure")
    row = measure.Row("gridding", "1 km", 2e6, "footprints/s", peak_mb=99.0, seconds=0.5)
    ours, theirs = measure.Times([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]), measure.Times([2.0, 4.0, 3.0], [3.0, 3.0, 3.0])
    rows = [
        measure.beside(row, measure.Way("shapely", None, bar=2.5), theirs, ours),
        measure.beside(row, measure.Way("exactextract", None), None, ours),
        measure.Row("gridding", "waiting | in %", 4.0, "%", at_most=3.0),
    ]
    machine = {"processor": "Z80", "cores": 2, "system": "CP/M", "libraries": {}, "quick": False}
    return results.Results(machine, {"footprints": results.Measured("2026-11-21 12:00", "abc", 3, tuple(rows))})


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_and_finds_what_its_peers_find(stage: str, benchmark_of: Any, setting: Any) -> None:
    command = benchmark_of("__main__")
    assert stage in command.STAGES
    rows = command.rows_of(stage, setting)
    assert rows
    for row in rows:
        assert row.agrees is not False, row
        assert row.value is not None or row.note.startswith("no cube"), row
        assert row.ratio is not None or row.note == "not installed" or not row.peer, row


def test_every_stage_is_tested(benchmark_of: Any) -> None:
    assert set(benchmark_of("__main__").STAGES) == set(STAGES)


def test_a_stage_that_fails_is_a_row_and_a_fault(benchmark_of: Any, setting: Any, tmp_path: Path) -> None:
    command = benchmark_of("__main__")
    (tmp_path / "file").touch()
    (row,) = command.rows_of("crops", replace(setting, scratch=tmp_path / "file"))
    assert row.agrees is False and "file" in row.note
    stage = benchmark_of("results").Measured("", "", 1, (row,))
    assert command.faults({"crops": stage}) == [f"crops: failed: {row.note}"]


def test_ways_take_turns_after_one_that_is_not_measured(benchmark_of: Any, setting: Any) -> None:
    measure, calls = benchmark_of("measure"), []
    ways = [measure.Way(name, lambda name=name: calls.append(name), items=2) for name in ("ours", "theirs")]
    times = measure.interleaved(ways, setting)
    assert calls == ["ours", "theirs"] and [len(taken.wall) for taken in times] == [1, 1]
    rows = measure.compare("stage", "case", "things/s", ways[0], [*ways[1:], measure.Way("absent", None)], setting)
    assert [row.peer for row in rows] == ["theirs", "absent"]
    assert rows[0].ratio is not None and rows[1].ratio is None and rows[1].note == "not installed"


def test_ratios_are_taken_round_by_round(example: Any) -> None:
    row = example.stages["footprints"].rows[0]
    assert (row.ratio, row.least, row.most, row.per_core) == (3.0, 2.0, 4.0, 3.0)
    assert row.met is True and replace(row, at_least=3.5).met is False
    assert example.stages["footprints"].rows[2].met is False


def test_results_are_read_as_they_were_written(example: Any, results: ModuleType, tmp_path: Path) -> None:
    results.write(tmp_path / "new" / "last.json", example)
    assert results.read(tmp_path / "new" / "last.json") == example


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"machine": {}, "stages": {}})])
def test_another_file_is_refused_by_one_line(content: str, results: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"holds no results of this benchmark \(.*--json$"):
        results.read(path)


def test_times_are_held_against_the_last_ones_of_this_machine_only(
    example: Any, results: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tuple(replace(row, seconds=0.2) for row in example.stages["footprints"].rows)
    stage = replace(example.stages["footprints"], rows=rows)
    last = replace(example, stages={"footprints": stage})
    results.show(example, last)
    assert "2.50" in capsys.readouterr().out
    results.show(example, replace(last, machine=example.machine | {"cores": 8}))
    assert "2.50" not in capsys.readouterr().out


def test_the_table_goes_between_the_marks_of_the_readme(example: Any, results: ModuleType, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    for _ in range(2):  # as often as one likes
        results.fill_readme(example, readme)
        text = readme.read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
        assert text.count("| gridding | 1 km |") == 2 and "3.00 [2.00..4.00]" in text and ">= 2.5 met" in text
        assert "| waiting / in % | 4.00 % |" in text and "<= 3 MISSED" in text and "not installed" in text
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="has no place for the table"):
        results.fill_readme(example, readme)
    assert (ROOT / "benchmarks" / "README.md").read_text().count(results.BEGIN) == 1


@pytest.mark.parametrize(
    ("words", "said"), [(["--rounds", "0"], "must be at least 1, found 0"), (["--readme"], "run python -m benchmarks")]
)
def test_bad_options_end_with_one_line(
    words: list[str], said: str, benchmark_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark_of("__main__").main([*words, "--json", str(tmp_path / "none.json")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: --") and said in error
