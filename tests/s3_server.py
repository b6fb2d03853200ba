"""An S3 server of this process on loopback, for tests of a storage that is no folder."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    with pytest.MonkeyPatch.context() as patch:
        _end_uploads_as_s3_does(patch)
        try:
            where = "{}:{}".format(*server.get_host_and_port())
            bucket = urllib.request.Request(f"http://{where}/bucket", method="PUT")
            with urllib.request.urlopen(bucket):
                pass
            yield where
        finally:
            server.stop()


def _end_uploads_as_s3_does(patch: pytest.MonkeyPatch) -> None:
    """Give moto's answer to the end of an upload in parts the name that S3's has.

    Its element is `CompleteMultipartUploadResult` there; moto 5.2 writes `...Response`. Arrow takes
    any other element for an error, tries ten times more, and gives up: no object above 10 MB would
    ever arrive.
    """
    from moto.s3.responses import S3Response

    answer: Any = S3Response.serialized

    def serialized(self: S3Response, action_result: Any) -> Any:
        status, headers, body = answer(self, action_result)
        name = "CompleteMultipartUpload"
        return status, headers, body.replace(f"{name}Response", f"{name}Result")

    patch.setattr(S3Response, "serialized", serialized)


def query(where: str) -> str:
    """Return the end of a URI that leads to the server at `host:port`."""
    return f"?endpoint_override={where}&scheme=http&region=us-east-1"
