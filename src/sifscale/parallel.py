"""One switch for work over independent items: a plain loop, threads, processes, or a Dask cluster elsewhere."""

# distributed says that it is typed, but most of its functions are not.
# mypy: allow-untyped-calls

from __future__ import annotations

import logging
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import dask
from tqdm import tqdm

if TYPE_CHECKING:  # loaded where it is needed: most trainings find their cube built
    from distributed import Client, Future

Item = TypeVar("Item")
Result = TypeVar("Result")

LOCAL_SCHEDULERS = ("synchronous", "threads", "processes")

_CONNECT_SECONDS = 20
# A worker process that has loaded the readers' libraries has used 260 MB before it reads anything.
_LEAST_MEMORY_MB = 300
_CLUSTER_CONFIG = {
    # Inside an item Dask works in the item's own thread: more threads, or a wait for the cluster, help nobody.
    "scheduler": "synchronous",
    # Items leave nothing to spill, and a worker that pauses because of memory it cannot free never goes on.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # A second try is for a worker that died of something else's memory.
    "distributed.scheduler.allowed-failures": 1,
}


def run_all(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    scheduler: str = "synchronous",
    workers: int = 1,
    memory_limit_mb: int | None = None,
    description: str = "",
    report: Callable[[Result], Mapping[str, int]] | None = None,
    progress: bool = True,
) -> list[Result]:
    """Call `function` on every item and return the results in the order of `items`.

    scheduler: `synchronous` (a loop in this thread), `threads` or `processes` (`workers` of them, on this machine),
    or `tcp://host:port` of a running Dask scheduler, whose workers are used as they are. memory_limit_mb: of each
    process of `processes`; one above it is ended. report: counts of a result (files, soundings), whose totals
    stand behind the bar; progress: a bar with the time left, on a terminal only. function, items and results
    must be picklable unless `synchronous`; a script needs `if __name__ == "__main__"` for `processes`. An item is
    worked on again where its worker died, so that `function` must bear being called twice.

    The first exception of an item is raised, and what was started here is closed, also on Ctrl-C; on a cluster
    elsewhere, waiting items are taken back. Raises ValueError for options that make no sense and where no
    scheduler answers, RuntimeError where workers die (memory) or the cluster goes away.
    """
    _check_options(scheduler, workers, memory_limit_mb)
    if not items:
        return []
    results: dict[int, Result] = {}
    totals: Counter[str] = Counter()
    if scheduler == "synchronous":
        finished = _one_by_one(function, items)
    else:
        finished = _on_cluster(function, items, scheduler, min(workers, len(items)), memory_limit_mb)
    bar = tqdm(total=len(items), desc=description or None, disable=None if progress else True)
    # A fault in `report` must close the cluster, too, not only one inside the generator.
    with bar, closing(finished):
        for index, result in finished:
            results[index] = result
            if report is not None:
                totals.update(report(result))
                bar.set_postfix(totals, refresh=False)
            bar.update()
    return [results[index] for index in range(len(items))]


def _check_options(scheduler: str, workers: int, memory_limit_mb: int | None) -> None:
    if scheduler not in LOCAL_SCHEDULERS and not scheduler.startswith("tcp://"):
        raise ValueError(f"unknown scheduler {scheduler!r}; use {', '.join(LOCAL_SCHEDULERS)} or tcp://host:port")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, found {workers}")
    if memory_limit_mb is not None and memory_limit_mb < _LEAST_MEMORY_MB:
        raise ValueError(
            f"memory_limit_mb must be at least {_LEAST_MEMORY_MB}, found {memory_limit_mb}: the libraries of a worker "
            "alone need nearly that; null is no limit"
        )


def _one_by_one(
    function: Callable[[Item], Result], items: Sequence[Item]
) -> Generator[tuple[int, Result], None, None]:
    for index, item in enumerate(items):
        yield index, function(item)


def _on_cluster(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    scheduler: str,
    workers: int,
    memory_limit_mb: int | None,
) -> Generator[tuple[int, Result], None, None]:
    """Index and result of each item, as they come; two items a worker thread are under way, never all."""
    from distributed import as_completed

    # Its reports of every connection are for those who debug a cluster.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with ExitStack() as stack:
        client = _connect(stack, scheduler, workers, memory_limit_mb)
        slots = 2 * sum(client.nthreads().values())
        waiting = enumerate(items)
        # Not pure: equal items are worked on each by itself, and none is hashed.
        index_of = {client.submit(function, item, pure=False): index for index, item in islice(waiting, slots)}
        completed = as_completed(list(index_of), loop=client.loop)
        for future in completed:
            index = index_of.pop(future)
            result = _result(future, items[index], scheduler, workers, memory_limit_mb)
            # The next one starts before this one is looked at, so that no worker waits for the caller.
            for next_index, item in islice(waiting, 1):
                successor = client.submit(function, item, pure=False)
                index_of[successor] = next_index
                completed.add(successor)
            yield index, result


def _connect(stack: ExitStack, scheduler: str, workers: int, memory_limit_mb: int | None) -> Client:
    """A client of the scheduler; what was started for it is closed with the stack."""
    from distributed import Client, LocalCluster

    if scheduler.startswith("tcp://"):
        return _connect_elsewhere(stack, scheduler)
    stack.enter_context(dask.config.set(_CLUSTER_CONFIG))
    stack.enter_context(_one_thread_a_process())
    processes = scheduler == "processes"
    cluster = LocalCluster(
        n_workers=workers if processes else 1,
        threads_per_worker=1 if processes else workers,
        processes=processes,
        # 0 is no limit; threads share this process, which no one could end and start again.
        memory_limit=memory_limit_mb * 10**6 if processes and memory_limit_mb is not None else 0,
        dashboard_address=None,
        silence_logs=logging.WARNING,
        **({"env": {"NUMBA_NUM_THREADS": "1"}} if processes else {}),
    )
    stack.enter_context(cluster)
    # Not the default client, or the caller's own Dask arrays would be computed on this cluster.
    client: Client = stack.enter_context(Client(cluster, set_as_default=False))
    return client


def _connect_elsewhere(stack: ExitStack, address: str) -> Client:
    from distributed import Client

    try:
        client: Client = stack.enter_context(Client(address, timeout=_CONNECT_SECONDS, set_as_default=False))
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise ValueError(
            f"no Dask scheduler answers at {address} ({detail}); start one there with `dask scheduler`"
        ) from None
    try:
        client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
    except TimeoutError:
        raise ValueError(f"the Dask scheduler at {address} has no workers; start some with `dask worker`") from None
    return client


def _result(
    future: Future[Result], item: object, scheduler: str, workers: int, memory_limit_mb: int | None
) -> Result:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        result: Result = future.result()
    except KilledWorker:
        if scheduler == "processes":
            # A cluster cannot be closed (distributed 2026.8: "can only join a started process") while it starts the
            # successor of a worker that died as soon as it had started.
            with suppress(TimeoutError):
                future.client.wait_for_workers(workers, timeout=_CONNECT_SECONDS)
        limit = "no memory limit" if memory_limit_mb is None else f"a memory limit of {memory_limit_mb} MB"
        raise RuntimeError(
            f"worker processes died ({scheduler}, {limit}) on item {reprlib.repr(item)}; give each more memory or "
            "use fewer workers"
        ) from None
    except FutureCancelledError:
        raise RuntimeError(
            f"the Dask cluster ({scheduler}) went away before all items were done; start it again"
        ) from None
    return result


@contextmanager
def _one_thread_a_process() -> Iterator[None]:
    """OMP_NUM_THREADS=1 for the processes started meanwhile, whatever it is here; they start again after a death."""
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        # Starting a worker leaves variables of its own in this process, too.
        os.environ.clear()
        os.environ.update(before)
