"""How soon train.py answers where it has nothing to train: help, and a configuration that it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from benchmarks.measure import Row, Setting, Way, compare
from sifscale.config import PROJECT_ROOT

BAR_S = 1.0
TRAIN = str(PROJECT_ROOT / "train.py")
# words, exit code and what the answer says
CASES = {
    "train.py --help": (("--help",), 0, "== Configuration groups =="),
    "train.py, refused": (("trainer.epochs=-1",), 1, "trainer.epochs"),
}


def run(*command: str, code: int = 0, said: str = "") -> None:
    """Python with these arguments, in the project's folder. RuntimeError for another exit code or answer."""
    answer = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=PROJECT_ROOT, check=False)
    if answer.returncode != code or said not in answer.stdout + answer.stderr:
        last = answer.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{' '.join(command)} ended with exit code {answer.returncode}: {' '.join(last)}")


def rows(setting: Setting) -> Iterator[Row]:
    """Seconds from command to answer; the limit is Python with Hydra loaded, which every command needs."""
    for case, (words, code, said) in list(CASES.items())[-1:] if setting.quick else CASES.items():
        ours = Way("ours", partial(run, TRAIN, *words, code=code, said=said), note=f"exit code {code}")
        limit = Way("import hydra", partial(run, "-c", "import hydra"))
        (row,) = compare("start-up", case, "answers/s", ours, [], setting, limit)
        yield replace(row, value=row.seconds, unit="s", at_most=BAR_S, peak_mb=None)
