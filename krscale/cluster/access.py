"""Check the address of a Ray cluster and the token before a run joins it.

Ray itself waits many minutes for an address where nothing answers, and reports a missing token as a
failed connection. The checks here find both within seconds and name the cause.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from krscale.cluster.token import (
    check_client_port,
    check_token_file,
    check_token_text,
    refused,
)
from krscale.errors import UserError, first_line

CONNECT_SECONDS = 5.0
"""Limit for an address to answer; a head that has started answers at once."""
_POLL_SECONDS = 0.2
_NUM_ATTEMPTS = 3
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The first bytes that a gRPC client sends: the HTTP/2 preface and an empty settings frame."""
_SETTINGS_FRAME = 4
_DASHBOARD_PORT = 8265
_DASHBOARD = (
    "jobs are submitted to the dashboard (ray job submit --address http://HOST:8265); a run joins "
    "the head's own port, HOST:6379 by default"
)


def use_own_token() -> None:
    """Give the Ray that is started next its own token, which ends with this process.

    Otherwise Ray would write a token to ~/.ray/auth_token, readable by every user of the machine,
    and because of that file a later `ray start` would demand a token that no user has set. The
    processes of this Ray inherit the token through the environment, which other users cannot read.
    A mode or a token that the user has set is not changed.

    Raises:
        UserError: If the user's `RAY_AUTH_TOKEN_PATH` names a file without a token.
    """
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if mode == "token":
        check_token_file()
    if mode != "token" or any(os.environ.get(name) for name in names):
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    AuthenticationTokenLoader.instance().reset_cache()


def check_answers(address: str, where: str) -> None:
    """Make sure that a Ray cluster answers at an address, within `CONNECT_SECONDS`.

    Args:
        address: In Ray's notation: `HOST:PORT`, `auto`, or `ray://HOST:PORT`.
        where: Source of the address, for the error: `cluster.address` or `RAY_ADDRESS`.

    Raises:
        UserError: If the address is invalid, or nothing or something other than Ray listens there.
    """
    if address.startswith(("http://", "https://")):
        raise UserError(f"{where}: {address!r} is no address of a Ray cluster: {_DASHBOARD}.")
    try:
        found = address.removeprefix("ray://")
        if found == address and not address.startswith(":"):  # Ray would print a traceback
            found = canonicalize_bootstrap_address(address) or ""
    except (ConnectionError, ValueError, OSError) as error:
        raise _no_cluster(address, where, first_line(error)) from None
    host, _, port = found.rpartition(":")
    if not host or not port.isdecimal():
        raise _no_cluster(address, where, "an address is HOST:PORT, or 'auto' on the head's node")
    try:
        speaks_grpc = _greet(host.strip("[]"), int(port))
    except (OSError, OverflowError, UnicodeError) as error:  # the last for a name that is too long
        reason = f"{found}: {getattr(error, 'strerror', None) or error}"
        hint = f"; {_DASHBOARD}" if int(port) == _DASHBOARD_PORT else ""
        raise _no_cluster(address, where, reason + hint) from None
    if not speaks_grpc:
        raise _no_cluster(address, where, f"what listens there is not Ray's head: {_DASHBOARD}")


@contextmanager
def joining(address: str, where: str) -> Iterator[None]:
    """Join a cluster in this block, with few attempts and errors that name the cause.

    Args:
        address: Address of the cluster, for the errors.
        where: Source of the address, for the errors.

    Raises:
        UserError: If the cluster demands a token and the local one is missing or wrong, if it runs
            another Ray or Python, or if it cannot be joined for another reason.
    """
    check_token_file()
    check_token_text()
    name = "RAY_gcs_server_port_wait_time_s"  # Ray's number of attempts; by default 20
    given = os.environ.get(name)  # for a Ray that is started here, `connect` sets 120
    os.environ[name] = str(_NUM_ATTEMPTS)
    try:
        if address.startswith("ray://"):
            check_client_port(address, where, CONNECT_SECONDS)
        yield
    except UserError:
        raise
    except AuthenticationError:
        raise refused(address, where) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        if "InvalidAuthToken" in f"{error} {error.__cause__}":
            raise refused(address, where) from None
        if str(error).startswith("Version mismatch"):
            raise _other_versions(address, where, error) from None
        raise _no_cluster(address, where, first_line(error)) from None
    finally:
        del os.environ[name]
        if given is not None:
            os.environ[name] = given


def _greet(host: str, port: int) -> bool:
    """Connect; return whether the listener speaks gRPC, as Ray's head does.

    Raises:
        OSError: If nothing answers in time.
    """
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        left = max(0.1, deadline - time.monotonic())
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                return _encrypted() or _returns_settings(connection)
        except socket.gaierror:
            raise
        except OSError:
            if time.monotonic() + _POLL_SECONDS >= deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _returns_settings(connection: socket.socket) -> bool:
    connection.sendall(_HTTP2_GREETING)
    try:
        answer = connection.recv(9)
    except TimeoutError:
        return False
    return len(answer) > 3 and answer[:1] == b"\0" and answer[3] == _SETTINGS_FRAME


def _encrypted() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _no_cluster(address: str, where: str, reason: str) -> UserError:
    return UserError(
        f"{where}: no Ray cluster at {address!r}: {reason.rstrip('.')}. Start one "
        f"(RAY_AUTH_MODE=token ray start --head), or leave cluster.address and RAY_ADDRESS empty "
        f"for a Ray of this run's own."
    )


def _other_versions(address: str, where: str, error: Exception) -> UserError:
    """Return the error for a cluster of another Ray or Python; Ray lists the versions in lines."""
    listed = " ".join(str(error).removeprefix("Version mismatch:").split())
    return UserError(
        f"{where}: the Ray cluster at {address!r} cannot be joined from here, as versions differ. "
        f"{listed}. Install the same ones on all machines (constraints.txt)."
    )
