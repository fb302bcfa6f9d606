"""How busy the machine is while a run lasts: processor, memory, disk, network, graphics cards where there are any."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

INTERVAL_S = 10.0


class SystemMetrics:
    """While the block lasts, ``write(values, step)`` is called every ``interval_s`` and at the end, from a thread.

    Names are MLflow's (``system/cpu_utilization_percentage``, ...), so that its UI shows them on their own page; step:
    seconds since ``started_s`` (Unix time). MLflow's own monitor is not used: it ends without a word when the server is
    away, and leaves nothing of a run that is shorter than its interval.
    """

    def __init__(
        self, write: Callable[[Mapping[str, float], int], None], started_s: float, interval_s: float = INTERVAL_S
    ) -> None:
        self.write, self.started_s, self.interval_s = write, started_s, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="system metrics", daemon=True)

    def __enter__(self) -> SystemMetrics:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            monitors = _monitors()
            for monitor in monitors:  # processor use is counted from one call to the next
                monitor.collect_metrics()
                monitor.clear_metrics()
            stopped = False
            while not stopped:
                stopped = self._stop.wait(self.interval_s)
                values: dict[str, float] = {}
                for monitor in monitors:
                    monitor.collect_metrics()
                    values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                    monitor.clear_metrics()
                self.write(values, round(time.time() - self.started_s))
        except Exception as error:  # of whatever driver or store: no reason to lose a training
            log.warning("no more system metrics: %s", error)


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]
    monitors = [kind() for kind in kinds]
    kinds = [GPUMonitor]
    try:
        return [*monitors, *(kind() for kind in kinds)]
    except (ImportError, RuntimeError):  # no NVIDIA card, or no nvidia-ml-py
        return monitors
