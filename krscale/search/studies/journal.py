"""The file that all studies of a run are written to: Optuna's journal, with a single writer.

The run folder belongs to one process (`runs.folder.run_folder`), which has two benefits. The lock
and the partial line of a killed process are removed at once; Optuna itself would wait half a minute
for the lock, and never remove the line. And not every value must reach the disk before training
continues: written values survive the death of the process, and only the end of a trial waits for
the disk (`sync`).

Every line contains its own checksum, which Optuna ignores (`journal_check.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from krscale.files import MOST_OF_A_LOG, append_whole, damaged
from krscale.search.studies.journal_check import encode_line, open_checked

JOURNAL = "journal.log"
_LEFT_BY_A_SEARCH = (
    "curve.json", "curve.before.json", "finished.json", "insight.json", "students", "unfinished",
    "tune",
)  # fmt: skip
_MOST_OF_A_LINE = 1024**2


class Journal:
    """Optuna's storage in one file.

    Args:
        path: The file; continued if it exists. A last line that a crash cut off is removed.

    Raises:
        DamagedFileError: If a line before the last one is not as it was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_away(path)
        self.storage = open_checked(path, _Backend(path))

    def sync(self) -> None:
        """Wait until everything that was written is on the disk."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())


def read_journal(path: Path) -> JournalStorage:
    """Open a journal for reading, while a search may be writing to it.

    Raises:
        DamagedFileError: If a line is not as it was written.
    """
    return open_checked(path, JournalFileBackend(str(path)))


def refuse_lost_journal(run_path: Path) -> None:
    """Refuse to start a search anew if an earlier search has left results but no journal.

    Raises:
        DamagedFileError: With the names of the remaining results.
    """
    path = run_path / JOURNAL
    if path.is_file():
        with path.open("rb") as file:
            if file.readline(_MOST_OF_A_LINE).endswith(b"\n"):
                return
    left = [name for name in _LEFT_BY_A_SEARCH if (run_path / name).exists()]
    if left:
        raise damaged(
            path,
            f"it {'is empty' if path.is_file() else 'is missing'}, though a search has run here: "
            f"{', '.join(left)} {'is' if len(left) == 1 else 'are'} left of it",
            "Restore the journal from a copy. What is left can still be used as it is; to search "
            "anew, choose another name (--set name=...) or remove the folder.",
        )


class _Backend(JournalFileBackend):
    def __init__(self, path: Path) -> None:
        # Other programs, such as optuna-dashboard, lock the file in the same way.
        self._symlink_lock = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._symlink_lock)
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append one JSON document per line, in one write.

        Raises:
            OSError: If the disk is full; then no part of the lines remains.
        """
        lines = b"".join(encode_line(log) for log in logs)
        self._symlink_lock.acquire()
        try:
            with self._path.open("ab", buffering=0) as file:
                append_whole(file.fileno(), lines, self._path)
        finally:
            self._symlink_lock.release()


def _clear_away(path: Path) -> None:
    """Remove the lock and partial line of a process that died while it wrote."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if not path.is_file() or path.stat().st_size > MOST_OF_A_LOG:  # refused when it is opened
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
