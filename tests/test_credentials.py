"""No credential is printed by any command, nor written into any file, whatever goes wrong."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from drilling import Drill
from finished_search import SETTINGS, train_here, without_ray
from running import check_exports_here, in_process, overrides

from krscale.config import load
from krscale.progress import Progress
from krscale.redaction import redact, redact_all
from krscale.search.studies.ladder import Ladder
from krscale.search.studies.trial_spec import Assignment
from krscale.tracking import Tracker

CANARY = "c4n4ry-s3cr3t"
URIS = (
    f"http://user:{CANARY}@127.0.0.1:9",
    f"http://127.0.0.1:9/?access_token={CANARY}",
    f"http://{CANARY}@127.0.0.1:9",
)
ADDRESS = f"cluster.address=ray://user:{CANARY}@127.0.0.1:9"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set secrets in the environment, and do not wait long for servers that do not exist."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{CANARY}-1")
    monkeypatch.setenv("SOME_SERVICE_API_KEY", f"{CANARY}-2")
    close = Tracker.close
    monkeypatch.setattr(Tracker, "close", lambda self, timeout=1.0: close(self, 1.0))


def call(monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str) -> int:
    """Run a command as its own process would, including `sys.argv`."""
    monkeypatch.setattr(sys, "argv", [f"krscale.{command}", *arguments])
    with without_ray(train):
        return in_process(command)(arguments)


def train(ladder: Ladder, *others: object) -> None:
    """Fail one trial with an error that quotes a credential, then train the others."""
    upcoming = ladder.next()
    if isinstance(upcoming, Assignment):
        from optuna.trial import TrialState

        error = f"OSError: http://user:{CANARY}@store: unreachable"
        ladder.finish(upcoming, TrialState.FAIL, {}, error)
    train_here(ladder, *others)  # type: ignore[arg-type]


def leaks(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if CANARY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "formats",
    [
        # Each export is checked in a process of its own, which takes seconds.
        pytest.param("safetensors,onnx,pt2", marks=pytest.mark.drill),
        "safetensors",
    ],
)
def test_every_command_and_every_file(
    formats: str,
    drill: Drill,
    searched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    drill.injected("a password or token in tracking.uri", len(URIS))
    drill.injected("a password in cluster.address, and in an error of a trial", 2)
    drill.injected("a secret in the environment", 2)
    drill.must_hold("it is in no line that a command prints, and in no file that it leaves")
    if formats == "safetensors":
        check_exports_here(monkeypatch)
    shutil.copytree(searched / "cache", tmp_path / "cache")  # a teacher and a store take seconds
    run = str(tmp_path / "small")
    secret, other, third = (
        overrides(f"tracking.uri={uri}", ADDRESS, f"storage_path={tmp_path}") for uri in URIS
    )
    small = overrides(*SETTINGS)
    assert call(monkeypatch, "tune", *small, *secret, "--dry-run") == 0
    assert call(monkeypatch, "tune", *small, *secret, "--quiet") == 0
    assert call(monkeypatch, "tune", *small, *other, "--quiet", "--json") == 0
    assert call(monkeypatch, "teach", *small, *third, "--quiet") == 0
    student = overrides("name=tiny", "distill.capacity=1/16", "train.num_epochs=1")
    assert call(monkeypatch, "distill", *small, *student, *third, "--quiet") == 0
    assert call(monkeypatch, "insight", run) == 0
    assert call(monkeypatch, "report", run) == 0
    assert call(monkeypatch, "store", "info", run) == 0
    pick = ("pick", run, "--max-params", "1M", "--quiet")
    assert call(monkeypatch, *pick, "--format", formats) == 0
    assert call(monkeypatch, *pick, "--format", "safetensors", "--uri", URIS[0]) == 0
    assert call(monkeypatch, "sync", run) == 2, "credentials are not kept"
    assert call(monkeypatch, "sync", run, "--uri", URIS[1], "--timeout", "1") == 1
    out, err = capfd.readouterr()
    assert CANARY not in out + err
    assert "***@127.0.0.1:9" in out
    assert "krscale sync" in err
    assert "OSError: http://***@store: unreachable" in err
    assert leaks(tmp_path) == []
    written = json.loads((tmp_path / "small" / "experiment.json").read_text())["experiment"]
    assert written["cluster"]["address"] == "ray://***@127.0.0.1:9"
    assert any(path.name == "spool.jsonl" for path in tmp_path.rglob("*"))
    count = sum(path.is_file() for path in tmp_path.rglob("*"))
    drill.held(f"in none of {count} files, and in no line of any command")


@pytest.mark.parametrize(
    "setting",
    [
        f"tracking=http://user:{CANARY}@host",
        f"tracking.uri=['http://user:{CANARY}@host']",
        f"tracking.urii=http://user:{CANARY}@host",
        f"tracking.uri=htp://user:{CANARY}@host",
        f"tracking.uri=http://user:{CANARY}@host:port",
        f"tracking.uri=http://user:a/{CANARY}@host",
        f"tracking.uri=postgresql://user:{CANARY}@host/db",
        f"cluster.address=['ray://user:{CANARY}@host']",
        f"search.methods=['http://user:{CANARY}@host']",
        f"name=http://user:{CANARY}@host",
        f"http://user:{CANARY}@host",
        f"data.path=s3://user:{CANARY}@host/x",
        f"data.source=s3://user:{CANARY}@host/x",
    ],
)
def test_no_refusal_quotes_one(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = overrides(*SETTINGS, f"storage_path={tmp_path}", setting)
    assert call(monkeypatch, "tune", *settings, "--dry-run") == 2
    assert call(monkeypatch, "tune", *settings, "--quiet") == 2
    out, err = capfd.readouterr()
    assert CANARY not in out + err
    assert leaks(tmp_path) == []


def test_notes_hide_them(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True, planned={}) as progress:
        progress.note(f"http://user:{CANARY}@host is away")
    assert capsys.readouterr().err == "krscale: http://***@host is away\n"


def test_workers_get_none() -> None:
    experiment = load(None, [f"tracking.uri={URIS[0]}", ADDRESS])
    given = experiment.without_credentials()
    assert CANARY not in given.model_dump_json()
    assert given.fingerprint() == experiment.fingerprint()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://u:a/{CANARY}@host:5/x", "http://***@host:5/x"),
        (f"http://u:a'{CANARY}@host/x", "http://***@host/x"),
        (f"http://u:{CANARY}@b@host/x", "http://***@host/x"),
        (f"http://host/#access_token={CANARY}&x=1", "http://host/#access_token=***&x=1"),
        (f"key {CANARY}-2 given", "key *** given"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("http://host:5000 and ann@host", "http://host:5000 and ann@host"),
        ("sqlite:////a:b@c/d.db", "sqlite:////a:b@c/d.db"),
        ('{"a": "http://host:x", "b": "c@d"}', '{"a": "http://host:x", "b": "c@d"}'),
    ],
)
def test_what_is_hidden_and_what_is_not(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown
    assert redact_all({"a": [text, 1, None, {"b": text}]}) == {"a": [shown, 1, None, {"b": shown}]}


def test_a_variable_that_names_a_file_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/ann/key.json")
    monkeypatch.setenv("TOKEN", "short")
    monkeypatch.setenv("MONKEY", "in the middle")
    text = "/home/ann/key.json is short and in the middle"
    assert redact(text) == text
