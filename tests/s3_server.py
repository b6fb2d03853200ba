"""An S3 server in this process on loopback, for tests of a storage that is not a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import parts.s3_server
import pytest
from parts.s3_server import CREDENTIALS, query

__all__ = ["CREDENTIALS", "KEY", "SECRET", "query", "s3_server"]

KEY, SECRET = CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"]


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server with a bucket `bucket`; the value is its `host:port`."""
    pytest.importorskip("moto.server", reason="the dev extra brings moto, an S3 server")
    with parts.s3_server.s3_server() as where:
        yield where
