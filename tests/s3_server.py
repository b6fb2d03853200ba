"""An S3 server of this process on loopback, for tests of a storage that is no folder."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

KEY, SECRET = "AKIANOBODY0123456789", "S3cretOfNobody0123456789"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server with a bucket `bucket`; the value is its `host:port`."""
    moto = pytest.importorskip("moto.server", reason="the dev extra brings moto, an S3 server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        where = "{}:{}".format(*server.get_host_and_port())
        with urllib.request.urlopen(urllib.request.Request(f"http://{where}/bucket", method="PUT")):
            pass
        yield where
    finally:
        server.stop()


def query(where: str) -> str:
    """Return the end of a URI that leads to the server at `host:port`."""
    return f"?endpoint_override={where}&scheme=http&region=us-east-1"
