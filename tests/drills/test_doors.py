"""Where krscale's processes listen, which requests they answer, and what they write to files.

tests/cluster/test_job_submit.py tests the README's way to start a cluster, with its token.
"""

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
from drilling import Drill
from running import ROOT, SMALL, environment, overrides

pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(900)]
CANARY = "c4n4ry-of-the-doors"
SECRETS = (
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"),
    *("SOME_API_KEY", "SOME_SECRET", "DATABASE_PASSWORD", "SERVICE_CREDENTIALS"),
)
ONE_SIZE = ("ladder.capacities=['1/16']", "search.methods=['plain']")


@pytest.fixture
def temporary() -> Iterator[Path]:
    # Ray's sockets are below it, and the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="kr", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def listening(pid: int) -> set[tuple[str, str]]:
    """Name and address of all processes that listen: this one, and those below it."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                found |= {
                    (process.name(), connection.laddr.ip.removeprefix("::ffff:"))
                    for connection in process.net_connections()
                    if connection.status == psutil.CONN_LISTEN
                }
    return found


def run(arguments: Sequence[str], env: dict[str, str], log: Path) -> set[tuple[str, str]]:
    """Run a command to its end; return all that listened meanwhile."""
    seen: set[tuple[str, str]] = set()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=env, cwd=ROOT, stdout=output, stderr=output
        )
        while process.poll() is None:
            seen |= listening(process.pid)
            time.sleep(0.2)
    assert process.returncode == 0, log.read_text()
    return seen


def elsewhere(seen: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {each for each in seen if each[1] not in ("127.0.0.1", "::1")}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_commands_start_listens_on_this_machine_only(
    workers: int, drill: Drill, tmp_path: Path, temporary: Path
) -> None:
    command = "tune" if workers == 1 else "distill"
    drill.injected(f"krscale {command} with a Ray of its own and {workers} worker(s)", 1, "load")
    drill.must_hold("all that listens, listens on 127.0.0.1")
    settings = (*SMALL, *ONE_SIZE, f"storage_path={tmp_path}", f"train.num_workers={workers}")
    env = environment(RAY_TMPDIR=str(temporary))
    seen = run([f"krscale.{command}", *overrides(*settings)], env, tmp_path / "log.txt")
    assert {"gcs_server", "raylet"} <= {name for name, _ in seen}
    assert elsewhere(seen) == set()
    names = sorted({re.sub(r"\W.*", "", name) for name, _ in seen})
    drill.held(f"all that listened ({', '.join(names)}) listened on 127.0.0.1")


def answer(port: int, method: str, path: str, **headers: str) -> int:
    """The status of an answer of the server on this machine."""
    body = b"{}" if method == "POST" else None
    given = {"Content-Type": "application/json"} if body else {}
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, body, {**given, **headers})
        with connection.getresponse() as found:
            return found.status


def test_the_ui_answers_this_machine_and_its_own_pages_only(drill: Drill, tmp_path: Path) -> None:
    from krscale.tracking import Tracker

    with Tracker("", "krscale", tmp_path / "digits") as tracker:
        tracker.start_run("kr", "digits kr", tags={"krscale.kind": "search"})
        tracker.end_run("kr")
    drill.must_hold("the server of krscale ui listens on 127.0.0.1")
    drill.must_hold("requests of foreign hosts and of foreign pages are refused")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "krscale", "ui", "--storage-path", str(tmp_path),
                "--port", str(port),
            ],
            env=environment(), cwd=ROOT, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 240
            while f":{port}/#/" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            seen = listening(process.pid)
            search = "/api/2.0/mlflow/experiments/search"
            create = "/api/2.0/mlflow/experiments/create"
            own = f"http://127.0.0.1:{port}"
            assert answer(port, "GET", f"{search}?max_results=1") == 200
            assert answer(port, "POST", create, Origin=own) == 400, "a name is missing: it was read"
            foreign = ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example")
            for host in foreign:
                drill.injected("a request for a foreign host (as DNS rebinding makes them)")
                assert answer(port, "GET", f"{search}?max_results=1", Host=host) == 403, host
            for origin in (*(f"http://{host}" for host in foreign), "null"):
                drill.injected("a request of a foreign web page")
                assert answer(port, "POST", create, Origin=origin) == 403, origin
        finally:
            process.terminate()
            process.wait(60)
    assert len(seen) > 0
    assert elsewhere(seen) == set()
    drill.held("it listened on 127.0.0.1")
    drill.held("7 of 7 were refused with 403, and those of its own pages answered")


def leaks(*folders: Path) -> list[str]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if CANARY.encode() in path.read_bytes()]


def test_no_secret_of_the_environment_is_written_down(
    drill: Drill, tmp_path: Path, temporary: Path
) -> None:
    drill.injected("a secret in the environment of tune, distill, report, pick", len(SECRETS))
    drill.injected("a password in tracking.uri")
    drill.must_hold("none of them in a log of Ray, a file of the storage or the home, or a line")
    home = tmp_path / "home"
    home.mkdir()
    env = environment(
        HOME=str(home), RAY_TMPDIR=str(temporary), RAY_AUTH_MODE="token",
        **{name: f"{CANARY}-{name.lower()}" for name in SECRETS},
    )  # fmt: skip
    storage = tmp_path / "storage"
    settings = overrides(*SMALL, *ONE_SIZE, f"storage_path={storage}", "name=small")
    away = overrides(f"tracking.uri=http://user:{CANARY}@127.0.0.1:9", "name=away")
    digits = str(storage / "small")
    steps = (
        ("krscale.tune", *settings, *away, "--dry-run"),
        ("krscale.tune", *settings, *away),
        ("krscale.tune", *settings),
        ("krscale.distill", *settings, *overrides("name=one", "train.num_workers=2")),
        ("krscale.report", digits),
        ("krscale.pick", digits, "--max-params", "1M"),
    )
    for number, step in enumerate(steps):
        run(step, env, tmp_path / f"{number}.txt")
    logs = [path for path in temporary.rglob("*") if path.is_file()]
    assert any(path.name == "runtime_env_agent.log" for path in logs), "Ray logs elsewhere"
    assert leaks(tmp_path, temporary) == []
    assert not (home / ".ray").exists()
    count = sum(path.is_file() for path in tmp_path.rglob("*")) + len(logs)
    drill.held(f"none in {count} files, {len(logs)} of them Ray's; no token was left in ~/.ray")
