"""A storage that is moved or copied takes its records, and its artifacts, with it."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from moving_storage import record, record_each

from krscale.config import TrackingConfig
from krscale.files import write_json
from krscale.tracking import Begun, Tracker, sync
from krscale.tracking.address import follow_uri, sqlite_uri
from krscale.tracking.moving import follow_artifacts

NUM_MOVED = 7
"""Number of tests that take a storage of `recorded`."""


@pytest.fixture
def first(tmp_path, empty_database) -> Path:
    """A storage that has not been moved yet."""
    (tmp_path / "A").mkdir()
    shutil.copy(empty_database, tmp_path / "A" / "mlflow.db")
    return tmp_path / "A"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> list[Path]:
    """Storages in which another process recorded; one for each test, as MLflow remembers runs."""
    folder = tmp_path_factory.mktemp("before")
    storages = [folder / f"A{number}" for number in range(NUM_MOVED)]
    for storage in storages:
        storage.mkdir()
        shutil.copy(empty_database, storage / "mlflow.db")
    in_another_process(record_each, storages)
    return storages


@pytest.fixture
def moved(recorded: list[Path], tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Where a recorded storage was, and the folder in which it is now."""
    first = recorded.pop()
    yield first, first.rename(tmp_path / "B")
    assert not first.exists(), "the old folder is not made again"


def in_another_process(function: Callable[..., object], *arguments: object) -> None:
    """Run as before a move: MLflow keeps folders and open files for as long as a process lives.

    The process is forked from one that has imported MLflow but has not used it.
    """
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload([record.__module__, "mlflow.store.tracking.sqlalchemy_store"])
    process = forking.Process(target=function, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0


def artifact_folders(database: Path) -> set[Path]:
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "select artifact_uri from runs union select artifact_location from experiments "
            "where name = 'digits'"
        )
        return {Path(url2pathname(urlsplit(uri).path)) for (uri,) in rows}


def as_older_versions_wrote_it(run: Path) -> None:
    """Remove what older versions did not write into the state: where the storage was."""
    path = run / "tracking" / "state.json"
    content = json.loads(path.read_text())
    del content["storage"], content["checksum"]
    write_json(path, content)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("how", ["sync", "tracker"])
def test_what_is_recorded_after_a_move_goes_to_the_new_place(moved, by_key, how, older):
    first, second = moved
    if older:
        as_older_versions_wrote_it(second / "run")
    if how == "sync":
        assert sync(second / "run", begun=Begun(TrackingConfig(), first)) == 0
    record(second, "later.txt", 0.75)
    found = by_key(second / "mlflow.db")  # fails where a key has two runs
    assert [value for _, value, _ in found["kr"].metrics] == [0.5, 0.75]
    root = second / "mlartifacts"
    folder = root / found["kr"].id / "artifacts"
    assert {f.name for f in folder.iterdir()} == {"figure.txt", "later.txt"}
    assert artifact_folders(second / "mlflow.db") == {root, folder}


def test_mlflow_itself_finds_the_artifacts(moved):
    from mlflow import MlflowClient

    _, second = moved
    assert sync(second / "run") == 0, "which mends it though there is nothing to send"
    client = MlflowClient(f"sqlite:///{second}/mlflow.db")
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id])
    path = client.download_artifacts(run.info.run_id, "figure.txt", str(second))
    assert Path(path).read_text() == "drawn"


def test_a_copy_records_into_itself_and_leaves_the_first_alone(recorded, tmp_path, by_key):
    first = recorded.pop()
    second = Path(shutil.copytree(first, tmp_path / "B"))
    before = (first / "mlflow.db").read_bytes()
    record(second, "later.txt", 0.75)
    assert (first / "mlflow.db").read_bytes() == before
    assert not list((first / "mlartifacts").rglob("later.txt"))
    assert len(list((second / "mlartifacts").rglob("later.txt"))) == 1
    assert len(by_key(second / "mlflow.db")["kr"].metrics) == 2


def test_moved_twice(moved, tmp_path, by_key):
    first, second = moved
    in_another_process(sync, second / "run")
    third = second.rename(tmp_path / "C")
    # experiment.json still names the first one.
    assert sync(third / "run", begun=Begun(TrackingConfig(), first)) == 0
    record(third, "later.txt", 0.75)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["C"]
    assert len(by_key(third / "mlflow.db")["kr"].metrics) == 2


def test_a_run_that_left_its_storage_is_recorded_where_it_was(first, by_key):
    record(first)
    other = first.with_name("B")
    other.mkdir()
    run = (first / "run").rename(other / "run")
    assert sync(run) == 0
    assert [p.name for p in other.iterdir()] == ["run"]
    assert len(by_key(first / "mlflow.db")["kr"].metrics) == 1


def test_artifacts_of_another_storage_in_this_database_stay_there(first, tmp_path):
    """Two storages may share a database: nothing of it was moved."""
    other = tmp_path / "X" / "run"
    figure = other / "figure.txt"
    figure.parent.mkdir(parents=True)
    figure.write_text("drawn")
    with Tracker(sqlite_uri(first / "mlflow.db"), "digits", other) as tracker:
        tracker.start_run("kr", "digits kr")
        tracker.log_artifact("kr", figure)
        assert tracker.close(30) == 0
    record(first)
    found = artifact_folders(first / "mlflow.db")
    assert all(folder.is_relative_to(tmp_path / "X" / "mlartifacts") for folder in found)
    assert len(list((tmp_path / "X" / "mlartifacts").rglob("figure.txt"))) == 2


def test_a_folder_of_a_similar_name_is_another(tmp_path):
    database = tmp_path / "B" / "mlflow.db"
    database.parent.mkdir()
    rows = ["file:///gone/A/mlartifacts", "file:///gone/A/mlartifacts2", "file:///gone/A/x"]
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("create table experiments (name, artifact_location)")
        connection.execute("create table runs (artifact_uri)")
        connection.executemany("insert into experiments values ('', ?)", [(r,) for r in rows])
        connection.execute("insert into runs values ('file:///gone/A/mlartifacts/1/artifacts')")
    root = tmp_path / "B" / "mlartifacts"
    assert follow_artifacts(database, root) == [Path("/gone/A/mlartifacts")]
    assert follow_artifacts(database, root) == []
    with closing(sqlite3.connect(database)) as connection:
        found = [uri for (uri,) in connection.execute("select artifact_location from experiments")]
        assert found == [root.as_uri(), *rows[1:]]
        (run,) = connection.execute("select artifact_uri from runs").fetchone()
    assert run == f"{root.as_uri()}/1/artifacts"


def test_only_files_in_the_storage_follow_it(tmp_path):
    before, now = tmp_path / "A", tmp_path / "B"
    assert follow_uri(f"sqlite:///{before}/sub/x.db?timeout=5", before, now) == (
        f"sqlite:///{now}/sub/x.db?timeout=5"
    )
    for uri in (
        "http://host:5000",
        "sqlite:////elsewhere/x.db",
        "postgresql://u@h/d",
        "databricks",
    ):
        assert follow_uri(uri, before, now) == uri
