"""The driver's interface to MLflow: calls that return at once and write to a spool."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from krscale.errors import UserError
from krscale.interruption import received
from krscale.links import refuse_links
from krscale.redaction import redact
from krscale.showing import printable, show
from krscale.tracking.address import LOCAL_SERVER, charts_at, resolve_address
from krscale.tracking.datasets import DatasetUsed
from krscale.tracking.mending import mend_spool
from krscale.tracking.models import Registration
from krscale.tracking.recorded import Recorded
from krscale.tracking.server import prepare_mlflow
from krscale.tracking.spool import Event, Operation, Spool
from krscale.tracking.system import PREFIX, SystemMonitor
from krscale.tracking.writer import Writer

FOLDER = "tracking"
SPOOL_FILE = "spool.jsonl"
_KEY = re.compile(r"[A-Za-z0-9._/=+:,-]+")
_NAME = re.compile(r"[\w\-. :/]+")
_STATES = {
    "COMPLETE": "COMPLETE", "FINISHED": "COMPLETE", "PRUNED": "PRUNED", "FAIL": "FAIL",
    "RUNNING": "RUNNING",
}  # fmt: skip


class Tracker:
    """Records runs in MLflow; every call returns at once and survives a crash.

    Events are written to `run_path/tracking/spool.jsonl`, and one thread sends them to MLflow. A
    new `Tracker` on the same folder, after the first was closed or killed, continues: what was not
    sent is sent, and a key keeps its one MLflow run.

    Args:
        uri: An MLflow tracking URI; empty uses `storage_path/mlflow.db` and artifacts beside it.
        experiment: Name of the MLflow experiment; created if missing.
        run_path: The run's folder.
        storage_path: The folder of all runs; None takes the parent of `run_path`.
        enabled: If False, every call is accepted and nothing is recorded.
        system_metrics: Whether to record how busy this machine is, for runs without a parent.
        warn: Takes one line for the user, from any thread; None prints to stderr.

    Raises:
        UserError: If the URI cannot work, another process records this run, or its folder contains
            links.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_path: Path,
        *,
        storage_path: Path | None = None,
        enabled: bool = True,
        system_metrics: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        run_path = run_path.resolve()
        storage = storage_path.resolve() if storage_path else run_path.parent
        self._address = resolve_address(uri, storage)
        self._run_path, self._folder, self._storage = run_path, run_path / FOLDER, storage
        self._recorded = Recorded()
        self._writer: Writer | None = None
        self._monitor: SystemMonitor | None = None
        if not enabled:
            return
        refuse_links(run_path)
        prepare_mlflow(self._address)
        self._monitor = SystemMonitor(self.log_metrics) if system_metrics else None
        self._lock = _hold(self._folder)
        say = self._say = warn or print_warning
        mended = mend_spool(self._folder / SPOOL_FILE, say)
        self._spool = Spool(self._folder / SPOOL_FILE)
        for event, _ in self._spool.read(0):
            self._recorded.note(event)
        self._writer = Writer(
            self._spool, self._folder, storage, self._address, experiment, say,
            on_end=self._let_go, mended=mended,
            is_former=lambda key: self._recorded.newest(key) != key,
        )  # fmt: skip

    def start_run(
        self,
        key: str,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        datasets: Sequence[DatasetUsed] = (),
        *,
        time_ms: int | None = None,
    ) -> None:
        """Create the run of a key, or set it running again if it exists.

        Args:
            key: Stable name within this folder: `"kr"`, `"kr/1-16/trial-7"`.
            name: What MLflow shows.
            parent: Key of the parent run, started before.
            tags: Tag -> value.
            params: Parameter -> value; MLflow keeps the first value of each for ever.
            datasets: The data that it learns from and is tested on.
            time_ms: Time in milliseconds since 1970; None is now.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"a key is made of letters, digits and ._/=+:,- only: {key!r}")
        if parent is not None:
            self._check(parent)
        content = {
            "name": printable(redact(name)), "parent": parent,
            "tags": _texts(tags), "params": _texts(params),
            "datasets": [dataset.content() for dataset in datasets],
        }  # fmt: skip
        self._append("start", key, content, time_ms)
        if self._monitor and parent is None:
            self._monitor.watch(key, first_step=self._recorded.next_step(key, PREFIX))

    def log_metrics(
        self, key: str, metrics: Mapping[str, float], step: int, *, time_ms: int | None = None
    ) -> None:
        """Record values at a step; for a curve the step is the number of parameters.

        A point that was recorded before with the same value is not recorded twice. NaN and infinity
        would spoil every chart of the metric: they are recorded as the tag
        `krscale.nonfinite.METRIC`, with the value and the step.
        """
        self._check(key)
        finite: dict[str, float] = {}
        tags: dict[str, str] = {}
        for name, number in metrics.items():
            value = float(number)
            if not math.isfinite(value):
                tags[f"krscale.nonfinite.{_named(name)}"] = f"{value} at step {step}"
            elif not self._recorded.has_point(key, name, step, value):
                finite[_named(name)] = value
        if finite or tags:
            content = {"metrics": finite, "step": int(step), "tags": tags}
            self._append("log", key, content, time_ms)

    def set_tags(self, key: str, tags: Mapping[str, Any]) -> None:
        """Set or change tags of a run."""
        self._check(key)
        self._append("log", key, {"metrics": {}, "step": 0, "tags": _texts(tags)})

    def log_artifact(self, key: str, path: Path, artifact_path: str = "") -> None:
        """Upload a file or folder; it is read when it is sent, so do not move it before.

        Args:
            key: The run.
            path: The file or folder, within the run's folder, with which it may move; any other is
                counted as refused.
            artifact_path: Folder among the run's artifacts; empty for its root.
        """
        self._check(key)
        self._append("artifact", key, {"path": self._stored(path), "to": artifact_path})

    def register_model(self, key: str, folder: Path, registration: Registration) -> None:
        """Put a model into MLflow's registry.

        Args:
            key: The run it comes from.
            folder: What `save_onnx_model` wrote in the run's folder; it is read when it is sent, so
                do not move it before.
            registration: Under which name, alias and tags.
        """
        self._check(key)
        content = {"path": self._stored(folder), "registration": registration.content()}
        self._append("model", key, content)

    def has_run(self, key: str) -> bool:
        """Return whether a run of this key was started, here or by an earlier process."""
        return self._recorded.has_run(key)

    def newest(self, key: str) -> str:
        """Return the key of the run that has taken a run's place last; the key itself if none."""
        return self._recorded.newest(key)

    def recorded_points(self, key: str) -> set[tuple[str, int, float]]:
        """Return the metric, step and value of each recorded point of a run."""
        return self._recorded.points(key)

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return self._writer is not None

    def has_ended(self, key: str) -> bool:
        """Whether the end of a run was recorded, and no new start since."""
        return self._recorded.has_ended(key)

    @property
    def num_refused(self) -> int:
        """How many items MLflow has refused, in all starts of this run."""
        return self._writer.refused if self._writer else 0

    def end_run(self, key: str, status: str = "COMPLETE", *, time_ms: int | None = None) -> None:
        """End a run.

        Args:
            key: The run.
            status: `COMPLETE` or `FINISHED`, `PRUNED` (MLflow: KILLED), `FAIL` (MLflow: FAILED),
                or `RUNNING` to revoke an end. The tag `krscale.state` contains it.
            time_ms: Time in milliseconds since 1970; None is now.
        """
        self._check(key)
        if status not in _STATES:
            raise ValueError(f"unknown status {status!r}; allowed: {', '.join(_STATES)}")
        if self._monitor:
            self._monitor.leave(key)
        self._append("end", key, {"status": _STATES[status]}, time_ms)

    def how_to_open(self) -> tuple[str, str]:
        """Return the command and the address with which a user sees the curves.

        Returns:
            The command that serves the runs, empty if a server does so already; and the address of
            their charts. Neither contains credentials.
        """
        experiment = self._writer.experiment_id if self._writer else ""
        if self._address.artifact_root is None:
            return "", charts_at(self._address.shown, experiment)
        uri = shlex.quote(self._address.shown)
        command = f"mlflow ui --host 127.0.0.1 --backend-store-uri {uri}"
        return command, charts_at(LOCAL_SERVER, experiment)

    def connect(self) -> None:
        """Compare MLflow with what was sent; send all of it again if runs or values are missing."""
        if self._writer:
            self._writer.connect()

    def close(self, timeout: float = 30.0) -> int:
        """Send the remaining events, for at most `timeout` seconds.

        Returns:
            Number of events that MLflow does not have yet; they stay in the spool.
        """
        if self._monitor:
            self._monitor.close()
        return self._writer.close(timeout) if self._writer else 0

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _stored(self, path: Path) -> str:
        """Return a path for the spool; in the storage it is relative to the run, which may move."""
        file = path.resolve()
        inside = file.is_relative_to(self._storage)
        return os.path.relpath(file, self._run_path) if inside else str(file)

    def _let_go(self) -> None:
        """Release the folder; only when the thread has ended, so that there is one writer."""
        try:
            self._spool.close()
        except OSError as error:  # a failing disk; the next start sends lost events again
            self._say(f"{self._spool.path}: {error.strerror}")
        finally:
            self._lock.release()

    def _append(
        self, op: Operation, key: str, content: dict[str, Any], time_ms: int | None = None
    ) -> None:
        now = time.time_ns() // 1_000_000
        event = Event(op, key, now if time_ms is None else time_ms, content)
        self._recorded.note(event)
        if self._writer:
            self._spool.append(event)
            self._writer.notify()

    def _check(self, key: str) -> None:
        # Without a record, the runs that an earlier process started are unknown.
        if self._writer and not self._recorded.has_run(key):
            raise ValueError(f"no run was started with the key {key!r}")


def recording_seconds() -> float:
    """Return how long a command may wait for MLflow at its end; shorter after a signal to stop.

    SIGTERM is usually followed by SIGKILL. Events that are not sent stay in the spool.
    """
    return 60.0 if received() is None else 10.0


def _hold(folder: Path) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder.parent}: another process is recording this run; wait for it to end."
        ) from None
    return lock


def _texts(values: Mapping[str, Any] | None) -> dict[str, str]:
    return {_named(name): printable(redact(_text(value))) for name, value in (values or {}).items()}


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, default=str)
    return str(value)


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"MLflow allows letters, digits and _-. :/ in a name: {name!r}")
    return name


def print_warning(line: str) -> None:
    """Print a line for the user of a library on stderr."""
    show(f"krscale: {line}", file=sys.stderr, flush=True)
