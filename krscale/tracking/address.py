"""The address of MLflow: check a tracking URI before anything runs, and keep its secrets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from krscale.errors import UserError, unknown_name
from krscale.files import follow
from krscale.foreign import user_path
from krscale.redaction import redact

LOCAL_SERVER = "http://127.0.0.1:5000"
"""Default address of `mlflow ui` and `make ui`."""
DATABASE = "mlflow.db"
"""Name of the database in the storage if no URI is configured."""
_WHERE = "tracking.uri"
_SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


@dataclass(frozen=True)
class Address:
    """A tracking URI that has been checked.

    Attributes:
        uri: Passed to MLflow; it may contain credentials, so it is never printed or stored.
        artifact_root: Folder for artifacts of a new experiment; None if a server decides it.
    """

    uri: str
    artifact_root: Path | None

    @property
    def shown(self) -> str:
        """The URI without credentials."""
        return redact(self.uri)

    @property
    def database_file(self) -> Path | None:
        """The SQLite file, if the URI names one."""
        return _sqlite_file(self.uri) if self.uri.startswith("sqlite") else None


def resolve_address(uri: str, storage_path: Path) -> Address:
    """Check a tracking URI; an empty one stands for a SQLite file beside the runs.

    Args:
        uri: As configured.
        storage_path: Absolute folder of all runs.

    Raises:
        UserError: If MLflow could never use the URI.
    """
    artifact_root = storage_path / "mlartifacts"
    if not uri:
        return Address(sqlite_uri(storage_path / DATABASE), artifact_root)
    if uri == "databricks" or uri.startswith("databricks://"):
        return Address(uri, None)
    scheme, separator, _ = uri.partition("://")
    kind = scheme.partition("+")[0].lower()
    if not separator or kind == "file":
        raise UserError(
            f"{_WHERE}: {redact(uri)!r} is a folder, and MLflow no longer keeps runs in folders."
            " Use sqlite:////absolute/path/mlflow.db or http://HOST:PORT."
        )
    if kind in _SERVERS:
        return Address(_checked_server(uri), None)
    if kind in _DATABASES:
        return Address(_checked_database(uri, kind), artifact_root)
    raise unknown_name(
        "MLflow URI scheme", kind, (*_SERVERS, *_DATABASES, "databricks"), where=_WHERE
    )


def sqlite_uri(file: Path, query: str = "") -> str:
    """Return the URI with which SQLAlchemy, and therefore MLflow, opens exactly this file.

    Args:
        file: Absolute path of the database.
        query: What follows the question mark.

    Raises:
        UserError: If no URI names it.
    """
    quoted = str(file).replace("%", "%25").replace("?", "%3F")
    # MLflow creates the parent folder of the path after `sqlite:///` without decoding percents.
    driver = "sqlite" if quoted == str(file) else "sqlite+pysqlite"
    end = f"?{query}" if query else ""
    # SQLAlchemy 2.0 does not decode percents either.
    for path in (quoted, str(file)):
        uri = f"{driver}:///{path}{end}"
        if make_url(uri).database == str(file):
            return uri
    raise UserError(
        f"{_WHERE}: no URI of the installed SQLAlchemy names {file}; use a folder without a "
        f"question mark in its name."
    )


def follow_uri(uri: str, before: Path, now: Path) -> str:
    """Return a tracking URI after the storage was moved; only the URI of a file in it changes.

    Args:
        uri: The URI before the move.
        before: The storage's path before the move.
        now: Where the storage is.
    """
    file = _sqlite_file(uri) if uri.startswith("sqlite") else None
    if file is None or (moved := follow(file, before, now)) == file:
        return uri
    return sqlite_uri(moved, uri.partition("?")[2])


def charts_at(server: str, experiment_id: str) -> str:
    """Return the address that shows an experiment with the curves of its searches.

    Without `workflowType` MLflow 3 opens a page for language models, which is empty here. Without
    the filter it draws only the newest hundred runs, and one search has more trials.

    Args:
        server: Where MLflow is, e.g. `http://127.0.0.1:5000`.
        experiment_id: MLflow's number of the experiment; the server alone is returned when empty.
    """
    if not experiment_id:
        return server
    view = {
        "workflowType": "machine_learning",
        "compareRunsMode": "CHART",
        "searchFilter": "tags.`krscale.kind`='search'",
    }
    return f"{server}/#/experiments/{experiment_id}/runs?{urlencode(view)}"


def _checked_server(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{_WHERE}: {redact(uri)!r} is not a URL: {redact(str(error))}.") from None
    if not host:
        raise UserError(f"{_WHERE}: {redact(uri)!r} names no host. Use http://HOST:PORT.")
    return uri.rstrip("/")


def _checked_database(uri: str, kind: str) -> str:
    try:
        make_url(uri).get_dialect().import_dbapi()
    except (NoSuchModuleError, ImportError) as error:
        raise UserError(
            f"{_WHERE}: {redact(uri)!r} needs a database driver that is not installed: {error}."
        ) from None
    except (ArgumentError, ValueError):
        raise UserError(f"{_WHERE}: {redact(uri)!r} is not a database URI.") from None
    if kind != "sqlite":
        return uri
    file = _sqlite_file(uri)
    if file is None:
        raise UserError(f"{_WHERE}: {uri!r} names no file, so nothing would be kept.")
    if file.is_dir() or not _can_write(file):
        raise UserError(f"{_WHERE}: {file} cannot be written as a database file.")
    # Resolved against the driver's working directory; workers and jobs change theirs.
    return sqlite_uri(file, uri.partition("?")[2])


def _sqlite_file(uri: str) -> Path | None:
    database = make_url(uri).database
    if not database or database == ":memory:" or database.startswith("file:"):
        return None
    return user_path(database, _WHERE).resolve()


def _can_write(file: Path) -> bool:
    if file.exists():
        return os.access(file, os.W_OK)
    folder = next(parent for parent in file.parents if parent.exists())
    return folder.is_dir() and os.access(folder, os.W_OK)
