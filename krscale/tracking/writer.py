"""The only thread that connects to MLflow: it sends the spool in batches and keeps the position."""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from krscale.errors import StorageError
from krscale.foreign import path_problem, real
from krscale.redaction import redact
from krscale.tracking.address import Address
from krscale.tracking.comparing import lacking, refused_points
from krscale.tracking.mending import make_room
from krscale.tracking.position import State
from krscale.tracking.refusals import Refused, ServerAway
from krscale.tracking.server import Kind, Server, longest_value
from krscale.tracking.spool import Event, Spool

REFUSED_FILE = "refused.jsonl"
"""File beside the record with a line for each refusal by MLflow."""
_BATCH_EVENTS = 1000
_BATCH_SECONDS = 5.0
"""Time after which a batch ends: then what a slow or unreliable server has got is not sent again.
All events of an interrupted batch are sent once more."""
_GATHER_SECONDS = 0.2
"""Time to wait after a first event, so that events soon after it are sent in one request."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "RUNNING": "RUNNING"}


class Writer:
    """Sends a spool to MLflow from its own thread.

    Args:
        spool: The events to send.
        folder: Folder of the position and of refused events.
        storage: Folder of all runs.
        address: Where MLflow is.
        experiment: Name of the experiment.
        warn: Takes one line for the user.
        on_end: Called by the thread when it has ended.
        mended: Whether positions in the spool have changed since the last start.
        is_former: Returns whether another run has taken a run's place: the files that it logged
            have been replaced by those of the other.
    """

    def __init__(
        self,
        spool: Spool,
        folder: Path,
        storage: Path,
        address: Address,
        experiment: str,
        warn: Callable[[str], None],
        on_end: Callable[[], None],
        *,
        mended: bool = False,
        is_former: Callable[[str], bool] = lambda key: False,
    ) -> None:
        self._spool, self._folder, self._address = spool, folder, address
        self._warn, self._on_end, self._is_former = warn, on_end, is_former
        self._state = State(uri=address.shown, experiment=experiment, storage=str(storage))
        kept = State.load(folder, warn)
        kept = kept.followed(storage) if kept else None
        # Another server or experiment gets all events from the beginning.
        if kept and (kept.uri, kept.experiment) == (address.shown, experiment):
            here = not mended and spool.is_boundary(kept.position)
            self._state = kept if here else kept.model_copy(update={"position": 0})
        self._state.write(folder)
        self._server: Server | None = None
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._away = False
        self._unasked = False
        self._told_refusal = False
        self._told_cut = False
        self._thread = threading.Thread(target=self._run, name="krscale-tracking", daemon=True)
        self._thread.start()

    def connect(self) -> None:
        """Let the thread check that MLflow has what was sent, even if there is nothing new."""
        with self._changed:
            self._unasked = True
            self._changed.notify()

    def notify(self) -> None:
        """Tell the thread that the spool has grown."""
        with self._changed:
            self._changed.notify()

    @property
    def experiment_id(self) -> str:
        """MLflow's number of the experiment; empty until MLflow has answered once."""
        return self._state.identity.partition("@")[0]

    @property
    def refused(self) -> int:
        """Number of items that MLflow has not accepted."""
        return self._state.refused

    def pending(self) -> int:
        """Return the number of events that MLflow is not known to have."""
        start = 0 if self._unasked else self._state.position
        return sum(1 for event, _ in self._spool.read(start) if event.op != "spool")

    def close(self, timeout: float) -> int:
        """Send what is left for at most `timeout` seconds; return the number of unsent events.

        A server that was away already is tried once more, not for the whole time.
        """
        with self._changed:
            self._deadline = time.monotonic() + timeout
            self._changed.notify()
        self._thread.join(timeout)
        return self.pending()

    def _run(self) -> None:
        try:
            self._send_all()
        except Exception as error:  # noqa: BLE001 - whatever it was, the training goes on
            self._tell_away(redact(f"{type(error).__name__}: {error}"))
            with self._changed:
                self._changed.wait_for(self._closing)
        finally:
            self._on_end()

    def _send_all(self) -> None:
        pause = _FIRST_PAUSE
        while self._wait_for_events():
            try:
                self._send_batch()
            except (ServerAway, OSError, StorageError) as reason:
                was_away, self._away, self._server = self._away, True, None
                if not was_away:
                    self._tell_away(redact(str(reason)))
                elif self._deadline is not None:
                    return
                self._pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if self._away:
                    self._warn(f"MLflow at {self._address.shown} is back; nothing was lost.")
                self._away, pause = False, _FIRST_PAUSE

    def _wait_for_events(self) -> bool:
        """Block until there is something to send; False if closed and sent, or out of time."""
        with self._changed:
            while self._deadline is None and not self._has_work():
                self._changed.wait()
            if self._deadline is None and not self._away:
                self._changed.wait_for(self._closing, _GATHER_SECONDS)
            if self._deadline is None:
                return True
            return self._has_work() and time.monotonic() < self._deadline

    def _has_work(self) -> bool:
        return self._unasked or self._state.position < self._spool.size

    def _pause(self, seconds: float) -> None:
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(self._closing, seconds)
            else:
                left = self._deadline - time.monotonic()
                self._changed.wait(max(0.0, min(_FIRST_PAUSE, left)))

    def _closing(self) -> bool:
        return self._deadline is not None

    def _tell_away(self, reason: str) -> None:
        self._warn(
            f"MLflow at {self._address.shown} cannot be used ({reason}). The run goes on,"
            f" recording to {self._spool.path}; it is replayed when MLflow is back, by the next"
            f" start, or by: krscale sync {shlex.quote(str(self._folder.parent))}"
        )

    def _connect(self) -> Server:
        server = Server(self._address, self._state.experiment)
        if server.identity != self._state.identity:
            anew = {"identity": server.identity, "position": 0, "runs": {}, "refused": 0}
            self._state = self._state.model_copy(update=anew)
        return server

    def _compare(self, server: Server) -> None:
        """Restart from the beginning if MLflow lacks runs or values that were sent to it."""
        there = server.runs_of(self._spool.id)
        events = (event for event, _ in self._spool.read(0))
        refused = refused_points(self._folder / REFUSED_FILE)
        gone, short = lacking(self._state.runs, there, events, refused)
        if not gone and not short:
            return
        runs = {key: run_id for key, run_id in self._state.runs.items() if key not in gone}
        self._state = self._state.model_copy(update={"runs": runs, "position": 0, "refused": 0})
        self._warn(
            f"MLflow at {self._address.shown} lacks {len(gone)} of the runs it was sent, and values"
            f" of {len(short)} others; all of it is sent again, and it keeps what it has."
        )

    def _send_batch(self) -> None:
        server = self._server = self._server or self._connect()
        if self._unasked:
            self._compare(server)
            self._unasked = False
        position, until = self._state.position, time.monotonic() + _BATCH_SECONDS
        waiting: dict[str, list[Event]] = {}
        try:
            for event, end in self._spool.read(position, _BATCH_EVENTS):
                position = end
                if event.op == "log":
                    waiting.setdefault(event.key, []).append(event)
                    continue
                self._send_logs(server, event.key, waiting.pop(event.key, []))
                self._send(server, event)
                if time.monotonic() >= until:
                    break
            for key, events in waiting.items():
                self._send_logs(server, key, events)
            self._state.position = position
        finally:
            self._state.write(self._folder)

    def _send(self, server: Server, event: Event) -> None:
        try:
            if event.op == "start":
                self._start(server, event)
            elif event.op == "artifact" and self._is_former(event.key):
                return  # sent late, or once more: these files are of the search as it is now
            elif event.op == "artifact":
                path = self._file(event.content["path"])
                server.log_artifact(self._run_id(event.key), path, event.content["to"])
            elif event.op == "model":
                path = self._file(event.content["path"])
                server.register(self._run_id(event.key), path, event.content["registration"])
            elif event.op == "end":
                self._end(server, event)
        except Refused as reason:
            self._refuse(event.key, event.op, [event.content], str(reason))

    def _start(self, server: Server, event: Event) -> None:
        key, content = event.key, event.content
        run_id = self._state.runs.get(key) or server.find_run(key, self._spool.id)
        if run_id is None:
            parent = self._run_id(content["parent"]) if content["parent"] else None
            run_id = server.create_run(
                key, self._spool.id, content["name"], parent, content["tags"], event.time_ms
            )
        else:
            server.set_status(run_id, "RUNNING", event.time_ms)
            # The parent may have been deleted in MLflow and created again.
            parent = self._state.runs.get(content["parent"] or "")
            above = {"mlflow.parentRunId": parent} if parent else {}
            self._log(server, key, run_id, "tags", [*content["tags"].items(), *above.items()])
        self._state.runs[key] = run_id
        self._log(server, key, run_id, "params", list(content["params"].items()))
        if datasets := content.get("datasets"):  # spools of older versions have none
            server.log_datasets(run_id, datasets)

    def _end(self, server: Server, event: Event) -> None:
        run_id, status = self._run_id(event.key), event.content["status"]
        self._log(server, event.key, run_id, "tags", [("krscale.state", status)])
        server.set_status(run_id, _STATUS[status], event.time_ms)

    def _send_logs(self, server: Server, key: str, events: Sequence[Event]) -> None:
        if not events:
            return
        metrics = [
            (name, value, event.time_ms, event.content["step"])
            for event in events
            for name, value in event.content["metrics"].items()
        ]
        tags = {name: text for event in events for name, text in event.content["tags"].items()}
        try:
            run_id = self._run_id(key)
        except Refused as reason:
            self._refuse(key, "log", [event.content for event in events], str(reason))
            return
        self._log(server, key, run_id, "metrics", metrics)
        self._log(server, key, run_id, "tags", list(tags.items()))

    def _log(
        self, server: Server, key: str, run_id: str, kind: Kind, items: Sequence[tuple[Any, ...]]
    ) -> None:
        """Log the items; of a refused batch, log all but the items at fault."""
        if not items:
            return
        self._tell_cut(key, kind, items)
        try:
            server.log(run_id, kind, items)
        except Refused as reason:
            if server.is_deleted(run_id):  # if it is restored, they are sent again
                self._refuse(key, f"{kind} of a deleted run", items, str(reason))
                return
            if len(items) == 1:
                self._refuse(key, kind, items, str(reason))
                return
            half = len(items) // 2
            self._log(server, key, run_id, kind, items[:half])
            self._log(server, key, run_id, kind, items[half:])

    def _tell_cut(self, key: str, kind: Kind, items: Sequence[tuple[Any, ...]]) -> None:
        """Warn once that MLflow cuts long values; MLflow itself gives no warning."""
        limit = None if self._told_cut else longest_value(kind)
        if limit is None:
            return
        for name, text in ((item[0], item[1]) for item in items):
            if len(text) > limit:
                self._told_cut = True
                self._warn(
                    f"MLflow keeps the first {limit:,} characters of {kind[:-1]} {name} of {key}, "
                    f"which has {len(text):,}; the whole, and that of others as long, is in "
                    f"{self._spool.path}"
                )
                return

    def _run_id(self, key: str) -> str:
        try:
            return self._state.runs[key]
        except KeyError:
            raise Refused(f"the run {key} was not created") from None

    def _file(self, path: str) -> Path:
        """Return the file that an event names; krscale's own records name files of the run only."""
        folder = self._folder.parent
        if problem := path_problem(path):
            raise Refused(f"{path[:100]!r}: {problem}")
        if not (found := real(folder / path)).is_relative_to(folder):
            raise Refused(f"{path}: outside of the folder of its run")
        return found

    def _refuse(self, key: str, what: str, items: Sequence[Any], reason: str) -> None:
        path = self._folder / REFUSED_FILE
        line = {"key": key, "what": what, "items": list(items), "reason": redact(reason)}
        make_room(path, self._warn, "What it held is asked of MLflow again.")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._state.refused += len(items)
        if not self._told_refusal:
            self._told_refusal = True
            self._warn(f"MLflow refused {what} of {key}: {reason}. All refusals: {path}")
