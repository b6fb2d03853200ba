"""Update the paths of artifacts in MLflow's database after the storage was moved or copied.

MLflow stores the artifact folders of experiments, runs, models and versions as absolute paths. In a
database that was moved with its storage they would still name the old folder, and MLflow would
create it again.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow keeps folders of artifacts."""
_TIMEOUT = 60.0


def follow_artifacts(database: Path, root: Path) -> list[Path]:
    """Rewrite the artifact folders in a moved database; a database that was not moved is only read.

    Args:
        database: A SQLite file of MLflow in the storage; it need not exist.
        root: Folder of all artifacts of the storage, as `resolve_address` names it.

    Returns:
        The former folders of all artifacts, which nothing refers to any more.

    Raises:
        sqlite3.Error: If the file is not a database, or is in use for very long.
    """
    if not database.is_file() or not database.is_relative_to(root.parent):
        return []
    with closing(sqlite3.connect(database, timeout=_TIMEOUT)) as connection:
        known = set(_columns(connection))
        columns = [column for column in _COLUMNS if column in known]
        if ("experiments", "artifact_location") not in columns:
            return []  # a database that MLflow has not filled yet
        with connection:
            moved = [(b, p) for b, p in _roots(connection, root) if _moved(connection, b, p, root)]
            for before, _ in moved:
                for table, column in columns:
                    _replace(connection, table, column, before, root.as_uri())
    return [path for _, path in moved]


def _columns(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    text = (
        "select tables.name, columns.name from sqlite_master as tables, "
        "pragma_table_info(tables.name) as columns where tables.type = 'table'"
    )
    return [(str(table), str(column)) for table, column in connection.execute(text)]


def _roots(connection: sqlite3.Connection, root: Path) -> list[tuple[str, Path]]:
    """Return every other folder that krscale gave to an experiment, as written and as a path."""
    rows = connection.execute("select distinct artifact_location from experiments")
    found = [(str(uri).rstrip("/"), _path(str(uri))) for (uri,) in rows if uri]
    return [(uri, p) for uri, p in found if p is not None and p.name == root.name and p != root]


def _path(uri: str) -> Path | None:
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return Path(uri) if uri.startswith("/") else None


def _moved(connection: sqlite3.Connection, before: str, path: Path, root: Path) -> bool:
    """Whether artifacts that were below `path` are below `root` now, or the old storage is gone."""
    if not path.parent.exists():
        return True
    text = "select artifact_uri from runs where substr(artifact_uri, 1, ?) = ?"
    rows = connection.execute(text, (len(before) + 1, f"{before}/"))
    return any((root / url2pathname(uri[len(before) + 1 :])).exists() for (uri,) in rows)


def _replace(
    connection: sqlite3.Connection, table: str, column: str, before: str, now: str
) -> None:
    for start, end in ((f"{before}/", f"{now}/"), (before, now)):
        whole = start == before  # a prefix without "/" could begin another folder's name
        condition = f"{column} = ?" if whole else f"substr({column}, 1, {len(start)}) = ?"
        connection.execute(
            f"update {table} set {column} = ? || substr({column}, {len(start) + 1}) "  # noqa: S608
            f"where {condition}",
            (end, start),
        )
