"""The token that a Ray cluster may demand: find the local one, and explain a refusal."""

from __future__ import annotations

import os
from pathlib import Path

from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationMode,
    AuthenticationTokenLoader,
    get_authentication_mode,
)
from ray.exceptions import AuthenticationError

from krscale.errors import UserError

PLACES = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token"
"""Where Ray looks for a token, in this order."""
_GET = (
    "On the cluster's head `ray get-auth-token` prints it; store it here in ~/.ray/auth_token "
    "(chmod 600)"
)
_ANY_CALL = "/ray.rpc.RayletDriver/ClusterInfo"
"""A call of the server for `ray://`, which checks the token before the call itself."""


def check_token_file() -> None:
    """Make sure that the file named by `RAY_AUTH_TOKEN_PATH` is readable, if Ray would read it.

    Raises:
        UserError: If it is missing, unreadable or empty.
    """
    try:
        _has_token()
    except AuthenticationError:
        given = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
        whole = " Ray does not replace ~ there; write the whole path." if given[:1] == "~" else ""
        raise UserError(
            f"RAY_AUTH_TOKEN_PATH: {given}: no token can be read there: the file is missing, "
            f"empty, or not readable by you.{whole} A token is looked for in {PLACES}."
        ) from None


def check_token_text() -> None:
    """Make sure that the local token, if it is sent, can be: gRPC ends the process otherwise.

    Raises:
        UserError: If it has characters other than printable ASCII, or white space inside.
    """
    if get_authentication_mode() != AuthenticationMode.TOKEN or not _has_token():
        return
    try:
        given = os.environ.get("RAY_AUTH_TOKEN")
        token = given or Path(_place()).read_text(encoding="ascii")
        is_plain = all("!" <= character <= "~" for character in token.strip())
    except FileNotFoundError:
        return  # Ray has found another, as that of a service account of Kubernetes
    except UnicodeDecodeError:
        is_plain = False
    if not is_plain:
        raise UserError(
            f"{_place()}: what is there is no token of Ray, which has letters, digits and signs on "
            f"one line. {_GET}."
        )


def _has_token() -> bool:
    """Return whether a token is set on this machine, whether or not it is demanded.

    Ray caches a token that it has read. From then on, this process would demand the token from all
    callers, including a cluster without tokens, which would then consider this process dead and end
    its actors. So the cache is reset.
    """
    loader = AuthenticationTokenLoader.instance()
    try:
        return bool(loader.has_token(ignore_auth_mode=True))
    finally:
        loader.reset_cache()


def refused(address: str, where: str) -> UserError:
    """Return the error for a cluster that demands a token: whether mode or token is missing.

    Args:
        address: Address of the cluster.
        where: Source of the address: `cluster.address` or `RAY_ADDRESS`.
    """
    start = f"{where}: the Ray cluster at {address!r} demands a token"
    if not _has_token():
        return UserError(
            f"{start}, and there is none here (looked for in {PLACES}). {_GET} and "
            f"`export RAY_AUTH_MODE=token`."
        )
    here = f"in {_place()}"
    if get_authentication_mode() != AuthenticationMode.TOKEN:
        return UserError(
            f"{start}; there is one here, {here}, but it is not sent. `export RAY_AUTH_MODE=token`."
        )
    return UserError(
        f"{start}, and the one here, {here}, is not the cluster's (looked for in {PLACES}, in "
        f"this order). {_GET}."
    )


def check_client_port(address: str, where: str, timeout: float) -> None:
    """Make sure that the server for `ray://` accepts the local token, if it demands one.

    Ray itself would retry for half a minute and then report a timeout.

    Args:
        address: `ray://HOST:PORT`.
        where: Source of the address, for the error.
        timeout: Seconds to wait for an answer; a missing answer is no error here.

    Raises:
        UserError: If the token is missing or wrong.
    """
    with init_grpc_channel(address.removeprefix("ray://")) as channel:
        error = channel.unary_unary(_ANY_CALL).future(b"", timeout=timeout).exception()
    # Ray raises its own error if a token should be sent but there is none.
    if isinstance(error, AuthenticationError):
        raise refused(address, where)
    if error is not None and error.code().name == "UNAUTHENTICATED":
        raise refused(address, where)


def _place() -> str:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return given or str(Path.home() / ".ray" / "auth_token")
