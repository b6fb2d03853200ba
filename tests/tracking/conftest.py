import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@pytest.fixture
def storage(tmp_path, empty_database) -> Path:
    """A storage path whose default database is initialised."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def warnings_told() -> list[str]:
    return []


@dataclass
class Recorded:
    """One MLflow run as the database holds it."""

    id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[tuple[str, float, int]] = field(default_factory=list)


def _read_runs(database: Path) -> list[Recorded]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        runs = []
        for run_id, name, status in connection.execute("select run_uuid, name, status from runs"):
            of_run = (run_id,)
            tags = connection.execute("select key, value from tags where run_uuid = ?", of_run)
            params = connection.execute("select key, value from params where run_uuid = ?", of_run)
            metrics = connection.execute(
                "select key, value, step from metrics where run_uuid = ?", of_run
            )
            runs.append(Recorded(run_id, name, status, dict(tags), dict(params), sorted(metrics)))
    return runs


def _by_key(database: Path) -> dict[str, Recorded]:
    runs = _read_runs(database)
    keys = [run.tags["krscale.key"] for run in runs]
    assert len(keys) == len(set(keys)), f"doubled runs: {sorted(keys)}"
    return dict(zip(keys, runs, strict=True))


@pytest.fixture
def read_runs() -> Callable[[Path], list[Recorded]]:
    """Read MLflow's tables directly: an independent view of what was written."""
    return _read_runs


@pytest.fixture
def by_key() -> Callable[[Path], dict[str, Recorded]]:
    """Runs by their krscale key; fails when a key has more than one run."""
    return _by_key
