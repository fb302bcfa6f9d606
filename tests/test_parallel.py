"""Work over items: the same results whatever the scheduler, and nothing left running when it ends.

Functions for workers are made inside the tests, so that they travel by value: workers cannot import a test module.
"""

# distributed says that it is typed, but most of its functions are not.
# mypy: allow-untyped-calls

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import pytest
from distributed import LocalCluster
from tqdm import tqdm

from sifscale import parallel
from sifscale.parallel import run_all

LOCAL = ("synchronous", "threads", "processes")


def later_items_first() -> Callable[[int], tuple[int, int, str | None]]:
    """A function whose first items take longest, so that results come in another order than the items."""

    def work(item: int) -> tuple[int, int, str | None]:
        time.sleep(0.1 if item < 2 else 0.005)
        return item, os.getpid(), os.environ.get("OMP_NUM_THREADS")

    return work


def failing_at(bad: int) -> Callable[[int], int]:
    def work(item: int) -> int:
        if item == bad:
            raise LookupError(f"no item {item}")
        return os.getpid()

    return work


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie, whose parent has yet to ask for it, has ended as well.
    return not Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def dead_within(pids: Sequence[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("scheduler", LOCAL)
def test_results_come_in_the_order_of_the_items(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    environment = dict(os.environ)
    results = run_all(later_items_first(), range(12), scheduler=scheduler, workers=2, progress=False)
    assert [item for item, _, _ in results] == list(range(12))
    pids = {pid for _, pid, _ in results}
    assert os.environ == environment
    if scheduler == "processes":
        assert os.getpid() not in pids and len(pids) == 2
        assert {threads for _, _, threads in results} == {"1"}
        assert dead_within(list(pids), 5)
    else:
        assert pids == {os.getpid()}


@pytest.mark.parametrize("scheduler", LOCAL)
def test_an_exception_of_an_item_is_raised_and_everything_closed(scheduler: str) -> None:
    pids: list[int] = []

    def report(pid: int) -> dict[str, int]:
        pids.append(pid)
        return {}

    with pytest.raises(LookupError, match="no item 5"):
        run_all(failing_at(5), range(40), scheduler=scheduler, workers=2, report=report)
    assert pids
    assert scheduler != "processes" or dead_within(pids, 5)


def test_a_fault_in_the_report_closes_the_cluster() -> None:
    pids: list[int] = []

    def report(pid: int) -> dict[str, int]:
        pids.append(pid)
        raise ArithmeticError("the report is wrong")

    with pytest.raises(ArithmeticError):
        run_all(failing_at(-1), range(8), scheduler="processes", workers=1, report=report)
    assert len(pids) == 1 and dead_within(pids, 5)


def test_a_dead_worker_is_one_clear_line() -> None:
    def work(item: str) -> str:
        if item == "c.nc":
            os._exit(1)
        return item

    with pytest.raises(RuntimeError, match=r"worker processes died \(processes, no memory limit\)") as caught:
        run_all(work, ["a.nc", "b.nc", "c.nc"], scheduler="processes", workers=1)
    assert "\n" not in str(caught.value) and "fewer workers" in str(caught.value)


def test_a_worker_above_its_memory_limit_is_ended() -> None:
    def work(item: int) -> int:
        block = bytearray(os.urandom(1)) * (item * 10**6)
        # Memory is looked at ten times a second.
        time.sleep(1.5)
        return len(block)

    with pytest.raises(RuntimeError, match="a memory limit of 500 MB"):
        run_all(work, [600], scheduler="processes", workers=1, memory_limit_mb=500)


def test_a_cluster_elsewhere_is_used_and_left_running() -> None:
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp://", dashboard_address=None
    ) as cluster:
        for _ in range(2):
            results = run_all(later_items_first(), range(6), scheduler=cluster.scheduler_address)
            assert [item for item, _, _ in results] == list(range(6))
        with pytest.raises(LookupError, match="no item 1"):
            run_all(failing_at(1), range(6), scheduler=cluster.scheduler_address)


def test_a_cluster_that_goes_away_is_one_clear_line() -> None:
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp://", dashboard_address=None
    ) as cluster:

        def report(result: tuple[int, int, str | None]) -> dict[str, int]:
            cluster.close()
            return {}

        with pytest.raises(RuntimeError, match=r"the Dask cluster \(tcp://.*\) went away") as caught:
            run_all(later_items_first(), range(40), scheduler=cluster.scheduler_address, report=report)
    assert "\n" not in str(caught.value)


def test_a_scheduler_that_is_not_there_or_has_no_workers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_CONNECT_SECONDS", 0.5)
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 "):
        run_all(str, [1], scheduler="tcp://127.0.0.1:9")
    with LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=None) as cluster:
        with pytest.raises(ValueError, match="has no workers"):
            run_all(str, [1], scheduler=cluster.scheduler_address)


class Watched(Sequence[int]):
    """Items that count how many of them were asked for."""

    def __init__(self, length: int) -> None:
        self.length, self.taken = length, 0

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice) or index >= self.length:
            raise IndexError(index)
        self.taken = max(self.taken, index + 1)
        return index


def test_few_items_are_under_way_at_a_time() -> None:
    items = Watched(200)
    ahead: list[int] = []

    def report(result: int) -> dict[str, int]:
        ahead.append(items.taken - len(ahead))
        return {}

    results = run_all(lambda item: item + 1, items, scheduler="threads", workers=2, report=report)
    assert results == list(range(1, 201))
    # Twice the workers, and the successor of the result at hand.
    assert max(ahead) <= 5


def test_the_bar_shows_running_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()

    def terminal_bar(*args: Any, **options: Any) -> Any:
        return tqdm(*args, **(options | {"disable": options["disable"] is True, "file": shown, "mininterval": 0}))

    monkeypatch.setattr(parallel, "tqdm", terminal_bar)
    report = {"a": {"files": 1, "soundings": 40}, "b": {"files": 1, "soundings": 2}}
    run_all(str, ["a", "b"], description="reading", report=lambda name: report[name], progress=False)
    assert shown.getvalue() == ""
    run_all(str, ["a", "b"], description="reading", report=lambda name: report[name])
    last = shown.getvalue().rsplit("\r", 1)[1]
    assert "reading: 100%" in last and "2/2" in last and "files=2, soundings=42" in last


def test_a_script_works_and_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from sifscale.parallel import run_all\n"
        "def work(item):\n"
        "    time.sleep(60 if item > 1 else 0.2)\n"
        "    return os.getpid()\n"
        "def report(pid):\n"
        "    print(pid, flush=True)\n"
        "    return {}\n"
        'if __name__ == "__main__":\n'
        '    run_all(work, range(100), scheduler="processes", workers=2, report=report)\n'
    )
    # Its own session, as a terminal's: Ctrl-C goes to all processes of it.
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
        errors = process.stderr.read()
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert dead_within(pids, 5)


def test_no_items_start_nothing() -> None:
    assert run_all(str, [], scheduler="tcp://nowhere:1") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "slurm"}, "unknown scheduler 'slurm'; use synchronous, threads, processes or tcp://host:port"),
        ({"workers": 0}, "workers must be at least 1, found 0"),
        ({"memory_limit_mb": 10}, "memory_limit_mb must be at least 300, found 10"),
    ],
)
def test_options_without_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_all(str, [1], **options)
