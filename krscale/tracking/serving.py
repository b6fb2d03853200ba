"""Run MLflow's own server for viewing, until the command ends.

One worker and no job runner take 6 s and 0.5 GB instead of 25 s and 2 GB.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from krscale.errors import UserError
from krscale.storage.address import place_of
from krscale.tracking.address import Address, charts_at

_SECONDS_TO_END = 10.0
_SECONDS_BETWEEN_LOOKS = 0.2
_open = build_opener(ProxyHandler({})).open  # the server is local: no proxy is used
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - names, nothing is bound here
"""Hosts that cannot be opened as an address -> this machine's loopback address."""


def check_database(address: Address) -> None:
    """Refuse a SQLite file without runs: MLflow would create it, or add its tables to it.

    Raises:
        UserError: If there is no such file, or it is not MLflow's.
    """
    file = address.database_file
    if file is None:
        return
    if not file.is_file():
        raise UserError(
            f"there is no {file} yet; `krscale tune` (or `make run`) makes it"
            + (", and `krscale sync RUN` from a run of another machine." if place_of(file) else ".")
        )
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
            named = "select 1 from sqlite_master where name = 'experiments'"
            if connection.execute(named).fetchone():
                return
    except sqlite3.Error as error:
        raise UserError(f"{file}: cannot be read as a database: {error}.") from None
    raise UserError(f"{file}: is a database, but not one that MLflow has made.")


def check_port(host: str, port: int) -> None:
    """Refuse a port that nobody can listen on.

    Raises:
        UserError: If the host does not belong to this machine, or the port is in use or reserved.
    """
    problem = _listening_error(host, port)
    if problem is None:
        return
    if problem.errno == errno.EADDRINUSE:
        others = range(port + 1, min(port + 100, 65_536))
        free = next((other for other in others if _listening_error(host, other) is None), None)
        hint = f"; choose another: --port {free}" if free else ""
        raise UserError(f"port {port} is in use{hint}.")
    if problem.errno in (errno.EACCES, errno.EPERM):
        raise UserError(f"--port {port}: only an administrator may use it; take 1024 or higher.")
    raise UserError(
        f"--host {host}: this machine cannot listen there: {problem.strerror or problem}."
    )


def serve(
    address: Address, host: str, port: int, experiment: str, tell: Callable[[str], None]
) -> int:
    """Run MLflow's server until it ends or this process gets a signal; leave nothing running.

    Ctrl-C, SIGTERM and SIGHUP end the server with all its processes. Call it from the main thread,
    which alone can handle signals.

    Args:
        address: The database that is served.
        host: Where to listen.
        port: Where to listen.
        experiment: MLflow's experiment with the searches.
        tell: Called with the address of the curves once the server answers.

    Returns:
        The exit code for the command: 0 after Ctrl-C, 128 plus the number of another signal, or
        else the server's own exit code.
    """
    with _told_to_end() as signals:
        # In a separate session: all its processes can be signalled, and Ctrl-C reaches them only
        # through this process.
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [
                sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port),
                "--workers", "1",
            ],
            env=_environment(address), stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            url = f"http://{_for_url(_EVERYWHERE.get(host, host))}:{port}"
            answered = False
            while process.poll() is None and not signals:
                if not answered and _answers(url):
                    answered = True
                    tell(charts_at(url, _experiment_id(url, experiment)))
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            _end(process)
    if signals:
        return 0 if signals[0] == signal.SIGINT else 128 + signals[0]
    # `Popen` returns the number of a signal as a negative code.
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


@contextmanager
def _told_to_end() -> Iterator[list[int]]:
    """Collect the signals that would end the program, instead of ending at once."""
    found: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        found.append(number)

    before = {number: signal.signal(number, note) for number in _ENDING}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(address: Address) -> dict[str, str]:
    changes = {
        # Not as arguments: every user of a machine can read those, and a URI may hold a password.
        "MLFLOW_BACKEND_STORE_URI": address.uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    if address.artifact_root is not None:
        changes["MLFLOW_ARTIFACTS_DESTINATION"] = str(address.artifact_root)
    # Nothing leaves the machine unless the user allows it.
    return {"MLFLOW_DISABLE_TELEMETRY": "true", **os.environ, **changes}


def _listening_error(host: str, port: int) -> OSError | None:
    """Return the error of listening there now; None if it is possible."""
    try:
        kind, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        return error
    return None


def _for_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _answers(url: str) -> bool:
    try:
        with _open(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def _experiment_id(url: str, experiment: str) -> str:
    """Return MLflow's number of an experiment; empty if there is none."""
    query = f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(experiment)}"
    try:
        with _open(query, timeout=30) as answer:
            return str(json.load(answer)["experiment"]["experiment_id"])
    except (OSError, ValueError, KeyError):
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started; kill those that do not end by themselves."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + _SECONDS_TO_END
        while time.monotonic() < deadline:
            process.poll()  # else it would become a zombie, which is a member of its group
            if not _group_lives(process.pid):
                return
            time.sleep(0.05)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):  # some systems raise the latter for zombies
        return False
    return True
