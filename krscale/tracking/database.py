"""Create MLflow's SQLite database completely or not at all, by one process at a time.

MLflow fills a new database by some forty migrations, which SQLite does not undo. A process killed
during these would leave a file that MLflow cannot open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from krscale.files import sync
from krscale.tracking.address import sqlite_uri

_SECONDS_TO_WAIT = 120.0
_SIDES = ("", "-journal", "-wal", "-shm")
"""Suffixes of the files that SQLite keeps for one database."""


@contextmanager
def opening(database: Path | None) -> Iterator[None]:
    """Let one process at a time open a database; create it if there is none.

    Args:
        database: Its file; None if a server keeps the runs.

    Raises:
        filelock.Timeout: If another process takes very long to open it.
    """
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=_SECONDS_TO_WAIT):
        if not database.exists() or database.stat().st_size == 0:
            _make(database)
        yield


def _make(database: Path) -> None:
    """Fill a database under a temporary name, then rename it.

    The temporary name is always the same, so that the next process removes what a killed one left.
    """
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    unfinished = database.with_name(f".{database.name}.unfinished")
    for side in _SIDES:
        unfinished.with_name(unfinished.name + side).unlink(missing_ok=True)
    store = SqlAlchemyStore(  # type: ignore[no-untyped-call]
        sqlite_uri(unfinished), DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    )
    store.engine.dispose()
    sync(unfinished)
    unfinished.replace(database)
    sync(database.parent)
