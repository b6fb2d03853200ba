"""`krscale ui`: one clear message where nothing can be served, and no process left behind."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from running import PATHS, environment, in_process

from krscale.tracking import Tracker

main = in_process("ui")
SIGNALS = [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]

# Stands in for MLflow: answers like its server, and starts a child process, as that does.
FAKE = """
import http.server, json, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
print("fake", os.getpid(), child.pid, os.environ["MLFLOW_BACKEND_STORE_URI"], flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"experiment": {"experiment_id": "7"}}).encode())
    def log_message(self, *args): pass
arguments = sys.argv
if "--die" in os.environ.get("FAKE", ""):
    os._exit(9)
host, port = arguments[arguments.index("--host") + 1], arguments[arguments.index("--port") + 1]
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A storage whose database looks like MLflow's."""
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("create table experiments (experiment_id integer, name text)")
    return tmp_path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def refusal(capsys, *arguments) -> str:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line.removeprefix("krscale: error: ")


def test_a_storage_without_a_database(tmp_path, capsys) -> None:
    error = refusal(capsys, "--storage-path", str(tmp_path / "new"))
    assert error.startswith(f"there is no {tmp_path / 'new' / 'mlflow.db'} yet; ")
    assert "krscale tune" in error
    assert list(tmp_path.iterdir()) == [], "nothing is made by looking"


def test_a_machine_that_has_recorded_nothing_of_a_shared_storage(
    tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("KRSCALE_CACHE_PATH", str(tmp_path / "machine"))
    error = refusal(capsys, "--storage-path", f"file://{tmp_path / 'bucket'}")
    assert "krscale sync" in error


@pytest.mark.parametrize("content", [None, b"no database at all, but long enough to be one" * 99])
def test_what_is_not_mlflows_is_left_alone(tmp_path, capsys, content) -> None:
    file = tmp_path / "mlflow.db"
    if content is None:
        with sqlite3.connect(file) as connection:
            connection.execute("create table mine (a integer)")
    else:
        file.write_bytes(content)
    before = file.read_bytes()
    assert refusal(capsys, "--storage-path", str(tmp_path)).startswith(f"{file}: ")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--uri", "http://user:password@mlflow.example:8080"],
        ["--set", "tracking.uri=http://user:password@mlflow.example:8080"],
    ],
)
def test_a_server_elsewhere_is_named_without_its_password(storage, capsys, arguments) -> None:
    error = refusal(capsys, "--storage-path", str(storage), *arguments)
    assert error.startswith("the runs are recorded on an MLflow server; open it at http://")
    assert error.endswith("mlflow.example:8080")
    assert "password" not in error


def test_an_experiment_file_says_where_the_runs_are(tmp_path, capsys) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[tracking]\nuri = "http://mlflow.example:8080"\n')
    assert refusal(capsys, str(file)).endswith("http://mlflow.example:8080")


def test_a_port_in_use_names_a_free_one(storage, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refusal(capsys, "--storage-path", str(storage), "--port", str(port))
    found = re.fullmatch(rf"port {port} is in use; choose another: --port (\d+)\.", error)
    assert found, error
    with socket.create_server(("127.0.0.1", int(found[1]))):
        pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_this_machine(storage, capsys, host) -> None:
    error = refusal(capsys, "--storage-path", str(storage), "--host", host)
    assert error.startswith(f"--host {host}: this machine cannot listen there: ")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_a_port_out_of_range(storage, capsys, port) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--storage-path", str(storage), f"--port={port}"])
    assert f"must be 1 to 65535 (got {port})" in capsys.readouterr().err


class Ui:
    """`krscale ui` as a process of its own."""

    def __init__(self, log: Path, storage: Path, *arguments: str, **env: str) -> None:
        self.port, self.log = free_port(), log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "krscale", "ui", "--storage-path", str(storage),
                    "--port", str(self.port), *arguments,
                ],
                stdout=file, stderr=file, env=environment(**env),
            )  # fmt: skip

    def wait_for(self, pattern: str, seconds: float = 120.0) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.log.read_text(), re.MULTILINE)):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        return found

    def __enter__(self) -> "Ui":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def fake(tmp_path_factory) -> str:
    """A path on which `mlflow` is the stand-in."""
    folder = tmp_path_factory.mktemp("fake")
    (folder / "mlflow").mkdir()
    (folder / "mlflow" / "__init__.py").touch()
    (folder / "mlflow" / "__main__.py").write_text(FAKE)
    return f"{folder}{os.pathsep}{PATHS}"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_no_process_is_left_when_it_is_ended(storage, tmp_path, fake, number, code) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}  # it must not be used locally
    with Ui(tmp_path / "log.txt", storage, PYTHONPATH=fake, **proxy) as ui:
        started = ui.wait_for(r"^fake (\d+) (\d+) (.*)$")
        assert started[3] == f"sqlite:///{storage}/mlflow.db"
        ui.wait_for(rf"^ +http://127\.0\.0\.1:{ui.port}/#/experiments/7/runs\?", 30)
        ui.process.send_signal(number)
        assert ui.process.wait(30) == code
    assert not runs(int(started[1]))
    assert not runs(int(started[2])), "what the server has started"
    assert "Traceback" not in ui.log.read_text()


def test_it_ends_with_the_server_and_leaves_none_of_its_processes(storage, tmp_path, fake) -> None:
    with Ui(tmp_path / "log.txt", storage, PYTHONPATH=fake, FAKE="--die") as ui:
        assert ui.process.wait(30) == 9
    child = re.search(r"^fake \d+ (\d+)", ui.log.read_text(), re.MULTILINE)
    assert child
    assert not runs(int(child[1]))


def test_a_password_is_no_argument_of_the_server(storage, tmp_path, fake) -> None:
    with Ui(tmp_path / "log.txt", storage, PYTHONPATH=fake) as ui:
        started = ui.wait_for(r"^fake (\d+)")
        arguments = Path(f"/proc/{started[1]}/cmdline").read_bytes()
    assert b"mlflow" in arguments
    assert b"mlflow.db" not in arguments


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_real_server_shows_the_searches_that_were_recorded(tmp_path) -> None:
    storage = tmp_path / "a folder"  # a space in a path is no special case
    with Tracker("", "krscale", storage / "digits") as tracker:
        tracker.start_run("kr", "digits kr", tags={"krscale.kind": "search"})
        tracker.end_run("kr")
    with Ui(tmp_path / "log.txt", storage) as ui:
        address = ui.wait_for(r"^ +(http://\S+)$", 240)[1]
        server, _, view = address.partition("/#/")
        assert server == f"http://127.0.0.1:{ui.port}"
        number = re.match(r"experiments/(\d+)/runs\?", view)
        assert number
        with urlopen(f"{server}/api/2.0/mlflow/experiments/get?experiment_id={number[1]}") as found:
            assert json.load(found)["experiment"]["name"] == "krscale"
        ui.process.send_signal(signal.SIGTERM)
        assert ui.process.wait(60) == 143
    with socket.create_server(("127.0.0.1", ui.port)):
        pass  # nobody listens any more
