"""The file that all studies of a run are written to: Optuna's journal, by one writer.

The run folder belongs to one process (`provenance.run_folder`), which makes two things simple.
What a killed process left behind, its lock and half a line, is cleared away at once instead of
after Optuna's half a minute, or never. And not every value needs to reach the disk before training
goes on: what was written survives the death of the process; the disk is waited for where a trial
ends (`sync`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock


class Journal:
    """Optuna's storage in a file of its own.

    Args:
        path: The file; continued when it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_away(path)
        self.storage = JournalStorage(_Backend(path))

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())


class _Backend(JournalFileBackend):
    def __init__(self, path: Path) -> None:
        # Other programs, such as optuna-dashboard, lock the file in the same way.
        self._symlink_lock = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._symlink_lock)
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append one JSON document a line, in one write."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._symlink_lock.acquire()
        try:
            with self._path.open("ab") as file:
                file.write(lines.encode("utf-8"))
        finally:
            self._symlink_lock.release()


def _clear_away(path: Path) -> None:
    """Remove what a process left that died while it wrote."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
