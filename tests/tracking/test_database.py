"""A process that is killed while it makes MLflow's database leaves none, or a whole one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from running import ROOT, environment

from krscale.tracking.address import DATABASE, resolve_address
from krscale.tracking.refusals import ServerAway, translated
from krscale.tracking.server import Server, prepare_mlflow

MAKE = """
import sys
from pathlib import Path
from krscale.tracking.address import resolve_address
from krscale.tracking.server import Server, prepare_mlflow
address = resolve_address("", Path(sys.argv[1]))
prepare_mlflow(address)
Server(address, "digits")
"""


def open_here(storage: Path) -> Server:
    address = resolve_address("", storage)
    prepare_mlflow(address)
    return Server(address, "digits")


def tables(file: Path) -> int:
    """Number of tables that are in the file so far."""
    if not file.exists():
        return 0
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=60)) as database:
        found = database.execute("select count(*) from sqlite_master where type = 'table'")
        return int(found.fetchone()[0])


def test_killed_while_the_database_is_made(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", MAKE, tmp_path], env=environment(), cwd=ROOT)
    deadline = time.monotonic() + 120
    while not any(tables(file) > 8 for file in tmp_path.glob("*.unfinished")) and (
        tables(tmp_path / DATABASE) <= 8
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    found = open_here(tmp_path)
    assert found.find_run("no such run", "spool") is None
    assert [file.name for file in tmp_path.iterdir() if "unfinished" in file.name] == []


def test_a_database_that_was_left_unfinished_is_named(tmp_path: Path) -> None:
    """As MLflow itself leaves it, or as an older krscale left it."""
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        database.execute("create table experiment_tags (key text)")
    with pytest.raises(ServerAway, match=r"was killed while it made this database.* move the file"):
        open_here(tmp_path)


@pytest.mark.parametrize(
    ("shown", "error", "known"),
    [
        ("sqlite:///a.db", "duplicate column name: deleted_time [SQL: ALTER TABLE", True),
        ("sqlite+pysqlite:///a.db", "index index_params_run_uuid already exists", True),
        ("sqlite:///a.db", "database is locked", False),
        ("postgresql://host/db", 'relation "issues" already exists', False),
        ("http://host:5000", "table issues already exists", False),  # its file is not the user's
    ],
)
def test_what_a_cut_off_migration_leaves_is_told_from_other_errors(
    shown: str, error: str, known: bool
) -> None:
    with pytest.raises(ServerAway) as found, translated(shown, connecting=True):
        raise sqlite3.OperationalError(error)
    assert ("move the file away" in str(found.value)) is known


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / DATABASE).touch()
    assert open_here(tmp_path).experiment_id
