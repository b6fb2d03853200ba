"""A cluster that demands a token: the error says which one is missing, where, and how to get it."""

import os
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray._private import utils as ray_utils
from ray._private.authentication import authentication_utils
from ray._private.authentication import grpc_authentication_client_interceptor as interceptor
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader
from ray.exceptions import AuthenticationError

from krscale.cluster import token
from krscale.cluster.access import joining, use_own_token
from krscale.cluster.token import PLACES, check_token_file
from krscale.errors import UserError

GIVEN = "t0ken-of-the-cluster-t0ken-of-the-cluster"
ADDRESS = "127.0.0.1:6379"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    # Ray reads the mode once per process, and another test may have started a Ray with a token.
    monkeypatch.setattr(token, "get_authentication_mode", lambda: AuthenticationMode.DISABLED)
    monkeypatch.setattr(authentication_utils, "is_token_auth_enabled", lambda: False)
    monkeypatch.setenv("HOME", str(tmp_path))
    AuthenticationTokenLoader.instance().reset_cache()
    yield tmp_path
    AuthenticationTokenLoader.instance().reset_cache()


def message(address: str, error: Exception | None) -> str:
    """Return what a user reads when joining fails with this error."""
    try:
        with joining(address, "cluster.address"):
            if error is not None:
                raise error
    except UserError as found:
        return str(found)
    pytest.fail("joined")


def test_a_token_that_was_looked_for_is_not_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ~/.ray/auth_token here, all trials on a cluster without tokens used to die at once."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", GIVEN)
    check_token_file()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another-t0ken-another-t0ken-another-t0ken")
    assert AuthenticationTokenLoader.instance().get_raw_token() != GIVEN, "Ray has kept it"


def send_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the effect of RAY_AUTH_MODE=token, which Ray reads once per process."""
    monkeypatch.setattr(token, "get_authentication_mode", lambda: AuthenticationMode.TOKEN)
    monkeypatch.setattr(authentication_utils, "is_token_auth_enabled", lambda: True)
    monkeypatch.setattr(
        interceptor,
        "_get_authentication_metadata_tuple",
        lambda: (("authorization", f"Bearer {os.environ['RAY_AUTH_TOKEN']}"),),
    )


class Demanding(grpc.ServerInterceptor):  # type: ignore[misc]
    """Accepts only calls with the token, as Ray's server for `ray://` does."""

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        if ("authorization", f"Bearer {GIVEN}") in details.invocation_metadata:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        )


@pytest.fixture(scope="module")
def client_port() -> Iterator[str]:
    with futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, interceptors=[Demanding()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"ray://127.0.0.1:{port}"
        server.stop(None).wait()


REFUSED = (AuthenticationError("none"), RuntimeError("RPC error: InvalidAuthToken: missing"))


@pytest.mark.parametrize("error", REFUSED)
def test_no_token(error: Exception) -> None:
    found = message(ADDRESS, error)
    assert found.startswith(f"cluster.address: the Ray cluster at '{ADDRESS}' demands a token, ")
    assert f"and there is none here (looked for in {PLACES})" in found
    assert "`ray get-auth-token`" in found
    assert "`export RAY_AUTH_MODE=token`" in found


@pytest.mark.parametrize("error", REFUSED)
def test_another_token_is_said_to_be_that_of_its_place(
    error: Exception, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, given = home / ".ray" / "auth_token", home / "given"
    file.parent.mkdir()
    file.write_text("of-another-cluster")
    given.write_text("of-another-cluster")
    assert f"there is one here, in {file}, but it is not sent" in message(ADDRESS, error)
    send_tokens(monkeypatch)
    assert f"the one here, in {file}, is not the cluster's" in message(ADDRESS, error)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(given))
    assert f"the one here, in {given}, is not the cluster's" in message(ADDRESS, error)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-another-cluster")
    found = message(ADDRESS, error)
    assert "the one here, in RAY_AUTH_TOKEN, is not the cluster's" in found
    assert PLACES in found
    assert "of-another-cluster" not in found


def test_a_cluster_of_other_versions_is_said_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's error has them in lines of their own; the first line alone names none."""
    monkeypatch.setattr(ray_utils, "compute_version_info", lambda: ("2.60.0", "3.12.9"))
    of_cluster = {"ray_version": "2.59.1", "python_version": "3.11.7"}
    with pytest.raises(RuntimeError) as raised:
        ray_utils.check_version_info(of_cluster, "node 10.0.0.2")
    found = message(ADDRESS, raised.value)
    assert found == (
        f"cluster.address: the Ray cluster at '{ADDRESS}' cannot be joined from here, as versions "
        "differ. The cluster was started with: Ray: 2.59.1 Python: 3.11.7 This process on node "
        "10.0.0.2 was started with: Ray: 2.60.0 Python: 3.12.9. Install the same ones on all "
        "machines (constraints.txt)."
    )


@pytest.mark.parametrize("content", [b"\xff\xfet\0", "tökens".encode(), b"two tokens", b"a\nb"])
@pytest.mark.parametrize("is_named", [True, False])
def test_a_file_that_is_no_text_is_no_token(
    content: bytes, is_named: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC ends the process where such a token is sent."""
    file = home / "of-windows" if is_named else home / ".ray" / "auth_token"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    if is_named:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    with joining(ADDRESS, "cluster.address"):
        pass  # it is not sent
    send_tokens(monkeypatch)
    assert message(ADDRESS, None).startswith(f"{file}: what is there is no token of Ray, which has")
    file.write_bytes(b"Some-t0ken_of/base64==\n")
    with joining(ADDRESS, "cluster.address"):
        pass


def test_a_token_that_ray_finds_elsewhere_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a service account of Kubernetes."""
    send_tokens(monkeypatch)
    monkeypatch.setattr(token, "_has_token", lambda: True)
    with joining(ADDRESS, "cluster.address"):
        pass


def test_a_token_path_with_a_tilde_says_that_ray_does_not_replace_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "token").write_text(GIVEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "~/token")
    found = message(ADDRESS, None)
    assert found.startswith("RAY_AUTH_TOKEN_PATH: ~/token: no token can be read there")
    assert "Ray does not replace ~ there; write the whole path." in found
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))
    check_token_file()


@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("address", [ADDRESS, "local"])
def test_a_token_path_without_a_token(
    content: str | None, address: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home / "nothing"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    if address == "local":
        with pytest.raises(UserError) as raised:
            use_own_token()
        found = str(raised.value)
    else:
        found = message(address, None)
    assert found.startswith(f"RAY_AUTH_TOKEN_PATH: {file}: no token can be read there")
    assert PLACES in found


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "and there is none here"),
        ({"RAY_AUTH_TOKEN": GIVEN}, "but it is not sent"),
        ({"send": "yes", "RAY_AUTH_TOKEN": "another"}, "is not the cluster's"),
    ],
)
def test_the_port_for_clients_says_it_too_before_ray_waits_half_a_minute(
    env: dict[str, str], expected: str, client_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if env.pop("send", None):
        send_tokens(monkeypatch)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = message(client_port, None)
    assert found.startswith(f"cluster.address: the Ray cluster at '{client_port}' demands a token")
    assert expected in found


def test_the_port_for_clients_is_joined_with_the_token(
    client_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_tokens(monkeypatch)
    monkeypatch.setenv("RAY_AUTH_TOKEN", GIVEN)
    with joining(client_port, "cluster.address"):
        pass
