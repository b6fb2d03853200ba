"""Addresses where no Ray cluster answers: found within seconds, with a clear error."""

import http.server
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import environment

from krscale.cluster import access
from krscale.cluster.access import check_answers, use_own_token
from krscale.errors import UserError

LONGEST_WAIT = 3 * access.CONNECT_SECONDS


def refusal(address: str, where: str = "cluster.address") -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as refused:
        check_answers(address, where)
    assert time.monotonic() - started < LONGEST_WAIT
    message = str(refused.value)
    assert message.startswith(f"{where}: "), message
    assert repr(address) in message
    assert "\n" not in message
    return message


def answering(port_holder: socket.socket, answer: bytes) -> None:
    """Accept one connection, read what comes and send an answer."""
    with port_holder.accept()[0] as connection:
        connection.recv(100)
        connection.sendall(answer)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    # On all interfaces: Ray replaces 127.0.0.1 by the address that other machines use for this one.
    with socket.create_server(("", 0)) as server:
        yield server


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "CONNECT_SECONDS", 1.0)


def test_nothing_listens(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    message = refusal(f"127.0.0.1:{port}")
    assert "refused" in message
    assert "ray start --head" in message
    assert refusal(f"127.0.0.1:{port}", "RAY_ADDRESS").startswith("RAY_ADDRESS: ")
    assert "refused" in refusal(f"ray://127.0.0.1:{port}")


def test_the_port_of_the_dashboard_is_known() -> None:
    message = refusal("no-such-host.invalid:8265")
    assert "a run joins the head's own port, HOST:6379 by default" in message


def test_a_head_that_is_still_starting_is_waited_for(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = listener.getsockname()[1]
    listener.close()
    monkeypatch.setattr(access, "CONNECT_SECONDS", 20.0)
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

    def start_late() -> None:
        time.sleep(0.5)
        with socket.create_server(("", port)) as server:
            answering(server, settings)

    thread = threading.Thread(target=start_late)
    thread.start()
    check_answers(f"127.0.0.1:{port}", "cluster.address")
    thread.join()


def test_something_else_listens() -> None:
    with http.server.HTTPServer(("", 0), http.server.SimpleHTTPRequestHandler) as server:
        server.RequestHandlerClass.log_message = lambda *arguments: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        message = refusal(f"127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert "what listens there is not Ray's head" in message
    assert "HOST:6379" in message


def test_something_listens_and_says_nothing(listener: socket.socket) -> None:
    assert "not Ray's head" in refusal(f"127.0.0.1:{listener.getsockname()[1]}")


@pytest.mark.parametrize("answer", [b"", b"\0\0", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_short_and_other_answers(listener: socket.socket, answer: bytes) -> None:
    thread = threading.Thread(target=answering, args=(listener, answer))
    thread.start()
    assert "not Ray's head" in refusal(f"127.0.0.1:{listener.getsockname()[1]}")
    thread.join()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("no-such-host.invalid:6379", "no-such-host.invalid"),
        ("somewhere", "Invalid address format: somewhere"),
        ("127.0.0.1", "Invalid address format"),
        ("127.0.0.1:port", "an address is HOST:PORT"),
        ("127.0.0.1:99999", "99999"),
        (f"{'x' * 64}:6379", "label too long"),
        ("http://127.0.0.1:8265", "jobs are submitted to the dashboard"),
        ("https://ray.example", "jobs are submitted to the dashboard"),
        ("ray://", "an address is HOST:PORT"),
    ],
)
def test_what_is_no_address(address: str, reason: str) -> None:
    assert reason in refusal(address)


def test_an_address_without_a_host_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    assert "an address is HOST:PORT" in refusal(":6379")
    assert not caplog.records, "Ray's own has a traceback"


def test_auto_without_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(
        access, "canonicalize_bootstrap_address", raising_no_instance
    )  # a cluster of another test may run on this machine
    assert "Could not find any running Ray instance" in refusal("auto")


def raising_no_instance(address: str) -> str:
    raise ConnectionError("Could not find any running Ray instance. Please specify the one.")


def test_a_command_says_it_in_one_line(listener: socket.socket, tmp_path: Path) -> None:
    """The whole command: a UserError, exit code 2, no traceback, and no minutes of waiting."""
    port = listener.getsockname()[1]
    listener.close()
    code = (
        "import sys; from krscale.cli.common import run_command\n"
        "def join(argv):\n"
        "    from krscale.cluster.connect import connect\n"
        "    from krscale.config import ClusterConfig\n"
        f"    connect(ClusterConfig(address='127.0.0.1:{port}'))\n"
        "sys.exit(run_command(join, []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(HOME=str(tmp_path)), capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("krscale: error: cluster.address: no Ray cluster at '127.0.0.1:")


@pytest.mark.parametrize(
    "given",
    [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_TOKEN": "mine"},
        {"RAY_AUTH_TOKEN_PATH": "token", "RAY_AUTH_MODE": "token"},
    ],
)
def test_a_token_or_mode_of_the_user_is_left_alone(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    use_own_token()
    assert dict(os.environ) == before


def test_a_token_of_its_own_is_long_and_new_each_time(tmp_path: Path) -> None:
    code = (
        "import os; from krscale.cluster.access import use_own_token\n"
        "use_own_token(); print(os.environ['RAY_AUTH_TOKEN'])"
    )
    env = environment(HOME=str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        env.pop(name, None)
    # A file of an earlier version, or of the user's cluster, is neither needed nor touched.
    (tmp_path / ".ray").mkdir()
    file = tmp_path / ".ray" / "auth_token"
    file.write_text("a" * 64)
    file.chmod(0o644)
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    }
    assert len(seen) == 2
    assert {len(token) for token in seen} == {64}
    assert file.read_text() == "a" * 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
