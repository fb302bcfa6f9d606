"""Studies side by side: what is written is what the sweeps wrote, and anything else is refused in one line."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from matplotlib.image import imread

from sifscale.comparison import compare, draw, read_table
from sifscale.config import PROJECT_ROOT, CompareConfig, ConfigError, validate

REFERENCE = {"nearest": {"r2": 0.5, "rmse": 0.25}, "published": {"r2": 0.9}}
SCORES = {
    "first": {"nearest": (0.5, 0.2, 0.3), "U-Net + LBP": (0.75, 0.1, 0.2)},
    "second": {"nearest": (-0.1, 0.4, 0.5)},
}


def write_table(path: Path, arms: dict[str, tuple[float, float, float]], **changes: Any) -> Path:
    """A table as a sweep writes it (sweep.py)."""
    study = {"name": "tried", "title": "A study", "pool": "none", "reference": REFERENCE} | changes
    rows = [
        {"arm": arm, "runs": 1, "r2": r2, "mae": mae, "rmse": rmse, "n": 9, "r2_positions": None, "findings": ""}
        for arm, (r2, mae, rmse) in arms.items()
    ]
    path.write_text(json.dumps({"study": study, "rows": rows}))
    return path


def config(folder: Path, *labels: str) -> CompareConfig:
    values = {
        "paths": {"raw": "", "data": "", "output": ""},
        "study": "tried",
        "filter": None,
        "baseline": None,
        "tables": [{"label": label, "path": str(folder / f"{label}.json")} for label in labels],
        "units": "K",
        "output": str(folder / "comparison"),
        "readme": None,
        "soundings": None,
        "map": None,
        "check": yaml.safe_load((PROJECT_ROOT / "conf" / "compare.yaml").read_text())["check"],
        "tracking": {"uri": "", "experiment": "", "artifacts": ""},
    }
    return validate(values, CompareConfig)


def test_scores_are_printed_and_written_as_the_sweeps_left_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label, arms in SCORES.items():
        write_table(tmp_path / f"{label}.json", arms)
    compare(config(tmp_path, *SCORES))
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("first: A study", "second: A study", "RMSE [K]", "U-Net + LBP", "0.7500"))
    folder = tmp_path / "comparison"
    metrics = json.loads((folder / "metrics.json").read_text())
    for label, arms in SCORES.items():
        assert {arm: tuple(scores.values()) for arm, scores in metrics[label].items()} == arms
        table = pd.read_csv(folder / f"{label}.csv", index_col="arm")
        assert list(table.columns) == ["r2", "mae", "rmse"]
        assert {arm: tuple(row) for arm, row in table.iterrows()} == arms
    assert imread(folder / "rmse.png").ndim == 3


def test_bars_are_the_rmse_from_zero_in_the_order_of_the_table_beside_the_references(tmp_path: Path) -> None:
    tables = [read_table(label, write_table(tmp_path / "t.json", arms), "tried") for label, arms in SCORES.items()]
    figure = draw(tables, "K")
    for axes, arms in zip(figure.axes, SCORES.values(), strict=True):
        assert [bar.get_width() for bar in axes.patches] == [rmse for _, _, rmse in arms.values()]
        assert [label.get_text() for label in axes.get_yticklabels()] == list(arms)
        assert {bar.get_x() for bar in axes.patches} == {0}
        assert axes.get_ylim()[0] > axes.get_ylim()[1]  # downwards
        (line,) = (line for line in axes.lines if line.get_label() == "reference: nearest")
        assert line.get_xdata()[0] == 0.25
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "no such file"),
        ("not JSON", "is not a study's table"),
        ("[1, 2]", "is not a study's table"),
        ('{"rows": []}', "is not a study's table (KeyError 'study')"),
        ('{"study": {"name": "tried"}, "rows": []}', "is not a study's table"),
        ('{"study": STUDY, "rows": [{"arm": "a", "r2": 1, "mae": null, "rmse": 1}]}', "is not a study's table"),
        ('{"study": STUDY, "rows": 3}', "is not a study's table"),
        ('{"study": STUDY, "rows": []}', "holds no arm"),
    ],
)
def test_what_is_no_table_of_a_study_is_refused_in_one_line(tmp_path: Path, content: str | None, rule: str) -> None:
    path = tmp_path / "t.json"
    if content is not None:
        study = {"name": "tried", "title": "A study", "pool": "none", "reference": {}}
        path.write_text(content.replace("STUDY", json.dumps(study)))
    with pytest.raises(ValueError) as caught:
        read_table("a", path, "tried")
    message = str(caught.value)
    assert message.startswith(f"{path}: {rule}") and "\n" not in message


def test_the_table_of_another_study_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.json", SCORES["first"], name="other")
    with pytest.raises(ValueError, match="is of study 'other', not 'tried'"):
        read_table("a", path, "tried")


def test_nothing_is_written_where_a_table_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "first.json", SCORES["first"])
    with pytest.raises(ValueError, match="no such file"):
        compare(config(tmp_path, "first", "second"))
    assert [path.name for path in tmp_path.iterdir()] == ["first.json"]


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ([], "tables: must hold 1 or more values"),
        (["a", "a"], "tables: must not name anything twice"),
        (["a/b"], "tables[0].label: must be of letters, digits"),
    ],
)
def test_labels_are_distinct_names_of_files(tmp_path: Path, labels: list[str], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, *labels)
    assert caught.value.faults[0].startswith(fault)


def test_the_command_compares_tables_that_are_named_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_table(tmp_path / "t.json", SCORES["first"])
    words = ["study=tried", f"tables=[{{label: mine, path: {path}}}]", f"paths.output={tmp_path / 'outputs'}"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    runpy.run_path(str(PROJECT_ROOT / "compare.py"), run_name="__main__")
    assert (tmp_path / "outputs" / "comparison" / "tried" / "mine.csv").is_file()


def test_a_refusal_loads_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['compare.py', 'tables=[]', 'units=3', 'paths.output={tmp_path}']\n"
        "try:\n"
        f"    runpy.run_path({str(PROJECT_ROOT / 'compare.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    print(*sorted({'torch', 'matplotlib', 'pandas', 'xarray', 'mlflow'} & set(sys.modules)))\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout.split()) == (1, [])
    assert [line.split(": ")[1] for line in answer.stderr.splitlines()] == ["tables", "units"]
