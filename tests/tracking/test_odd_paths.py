"""Storages whose names mean something in URIs, in SQL or in a shell: the path is as given."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from krscale.tracking import Tracker, sync
from krscale.tracking.address import resolve_address, sqlite_uri

NAMES = (
    "a b", "a%20b", "a%b", "100%", "a%3Fb", "a?b", "a#b", "a'b", 'a"b', "aé ñ 中", "a&b;c", "a+b=c",
    "a@b:c", "a\\b", "a{b}[c]", "~x", "$HOME", "a*b", "a`b", "(a)", "a|b", "-x", "?timeout=1",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_uri_names_the_very_file(name: str, tmp_path: Path) -> None:
    storage = tmp_path / name
    address = resolve_address("", storage)
    assert make_url(address.uri).database == str(storage / "mlflow.db")
    assert address.database_file == storage / "mlflow.db"
    again = resolve_address(address.uri, storage)
    assert again.database_file == storage / "mlflow.db"
    assert address.shown == address.uri, "a path is no credential"


def test_a_query_is_kept(tmp_path: Path) -> None:
    url = make_url(sqlite_uri(tmp_path / "a?b.db", "timeout=5"))
    assert (url.database, dict(url.query)) == (str(tmp_path / "a?b.db"), {"timeout": "5"})


@pytest.mark.parametrize("name", ["a b", "a%20b", "a?b#c", "a'b\"c", "aé%3F 中", "$(echo x);y"])
def test_runs_and_artifacts_are_where_they_were_told(
    name: str, tmp_path: Path, empty_database: Path, by_key
) -> None:
    from mlflow import MlflowClient

    storage = tmp_path / name
    run = storage / "run"
    run.mkdir(parents=True)
    shutil.copy(empty_database, storage / "mlflow.db")
    (run / "figure.txt").write_text("drawn")
    with Tracker("", "digits", run) as tracker:
        tracker.start_run("kr", "digits kr")
        tracker.log_artifact("kr", run / "figure.txt")
        tracker.end_run("kr")
        assert tracker.close(30) == 0
    assert [p.name for p in tmp_path.iterdir()] == [name], "nothing beside it was made"
    with_copy = tmp_path / "copy.db"
    shutil.copy(storage / "mlflow.db", with_copy)
    assert by_key(with_copy)["kr"].status == "FINISHED"
    with_copy.unlink()
    # As a user pastes it into a shell.
    command, _ = tracker.how_to_open()
    words = shlex.split(command)
    assert words[:-1] == ["mlflow", "ui", "--host", "127.0.0.1", "--backend-store-uri"]
    client = MlflowClient(words[-1])
    experiment = client.get_experiment_by_name("digits")
    (found,) = client.search_runs([experiment.experiment_id])
    file = client.download_artifacts(found.info.run_id, "figure.txt", str(run))
    assert Path(file).read_text() == "drawn"
    assert [p.name for p in tmp_path.iterdir()] == [name]
    # And after it was moved to another odd place.
    moved = storage.rename(tmp_path / "moved %41?")
    assert sync(moved / "run") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["moved %41?"]


def test_a_hint_can_be_pasted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "it's a run"
    tracker = Tracker("http://127.0.0.1:9", "digits", run)
    tracker.start_run("kr", "digits kr")
    assert tracker.close(5) > 0
    err = capfd.readouterr().err
    command = err[err.index("krscale sync ") :].strip()
    pasted = command.replace("krscale", "printf '%s\\n'", 1)
    shown = subprocess.run(["sh", "-c", pasted], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == ["sync", str(run)]


@pytest.mark.cluster
def test_mlflow_makes_a_new_database_there(tmp_path: Path, by_key) -> None:
    storage = tmp_path / "new %20? storage"
    with Tracker("", "digits", storage / "run") as tracker:
        tracker.start_run("kr", "digits kr")
        assert tracker.close(120) == 0
    assert [p.name for p in tmp_path.iterdir()] == [storage.name]
    plain = tmp_path / "plain.db"
    shutil.copy(storage / "mlflow.db", plain)
    assert set(by_key(plain)) == {"kr"}
