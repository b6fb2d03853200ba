"""How busy a machine is: the metrics of MLflow's tab "System metrics"."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from krscale.errors import UserError

PREFIX = "system/"
_SECONDS = 10.0
"""MLflow's default interval; `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL` sets another."""


class _Collector(Protocol):
    """Interface of MLflow's collectors, which have no types."""

    def collect_metrics(self) -> None: ...
    def aggregate_metrics(self) -> dict[str, float]: ...
    def clear_metrics(self) -> None: ...


class SystemMonitor:
    """Samples this machine in a separate thread, for the runs that it watches.

    MLflow's collectors measure, and name the metrics. MLflow's own monitor is not used: it connects
    to the server itself, requests the run before each sample, and ends if there is no answer.

    Args:
        log: Takes a run's key, metrics and their step; called from the thread.

    Raises:
        UserError: If a package that the collectors need is not installed.
    """

    def __init__(self, log: Callable[[str, dict[str, float], int], None]) -> None:
        from mlflow import environment_variables

        asked: Any = environment_variables.MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
        self._collectors = _collectors()
        self._log, self._interval = log, float(asked.get() or _SECONDS)
        self._next_step: dict[str, int] = {}
        self._changing = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="krscale-system", daemon=True)

    def watch(self, key: str, first_step: int) -> None:
        """Log every sample from now on for this run as well."""
        with self._changing:
            self._next_step[key] = first_step
        if self._thread.ident is None:
            self._thread.start()

    def leave(self, key: str) -> None:
        """Stop logging for this run."""
        with self._changing:
            self._next_step.pop(key, None)

    def close(self) -> None:
        """End the thread; nothing is logged afterwards."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._interval):
            sample = self._sample()
            # A full disk; the run gets the same error, and reports it.
            with suppress(OSError), self._changing:
                for key, step in self._next_step.items():
                    self._log(key, sample, step)
                    self._next_step[key] = step + 1

    def _sample(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for collector in self._collectors:
            collector.collect_metrics()
            found |= {PREFIX + name: v for name, v in collector.aggregate_metrics().items()}
            collector.clear_metrics()
        return found


def _collectors() -> list[_Collector]:
    try:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    except ImportError as error:
        raise UserError(
            f"tracking.system_metrics: cannot measure ({error}). "
            f"Install the extra krscale[system], or leave it false."
        ) from None
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    everywhere: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor)
    found: list[_Collector] = [kind() for kind in everywhere]
    somewhere: tuple[Any, ...] = (GPUMonitor, ROCMMonitor)
    for kind in somewhere:
        try:
            found.append(kind())
        except (ImportError, RuntimeError):
            continue  # most machines have no GPU of one kind or of the other
    return found
