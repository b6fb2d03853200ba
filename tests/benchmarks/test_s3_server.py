"""The S3 server of tests and benchmarks: each one begins empty."""

from __future__ import annotations

from http.client import HTTPConnection

import pytest
from s3_server import s3_server


def answer(where: str, method: str, path: str, body: bytes = b"") -> bytes:
    connection = HTTPConnection(where)
    connection.request(method, path, body)
    read = connection.getresponse().read()
    connection.close()
    return read


@pytest.mark.parametrize("number", [1, 2])
def test_a_server_begins_empty(number: int) -> None:
    """Servers of one process used to share objects: a drill found the run of another drill."""
    with s3_server() as where:
        assert b"<Key>" not in answer(where, "GET", "/bucket?list-type=2")
        answer(where, "PUT", f"/bucket/runs/number-{number}/curve.json", b"{}")
        assert b"<Key>" in answer(where, "GET", "/bucket?list-type=2")
