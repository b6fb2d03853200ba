"""An S3 server in this process on loopback: moto, from the dev extra."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any
from unittest.mock import patch

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIANOBODY0123456789",
    "AWS_SECRET_ACCESS_KEY": "S3cretOfNobody0123456789",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server with a bucket `bucket`; the value is its `host:port`.

    Raises:
        ImportError: If moto is not installed.
    """
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with patch.object(S3Response, "serialized", _ends_uploads_as_s3(S3Response.serialized)):
        try:
            where = "{}:{}".format(*server.get_host_and_port())
            connection = HTTPConnection(where)
            # All servers of a process share their objects, including those of an earlier server.
            for method, path in (("POST", "/moto-api/reset"), ("PUT", "/bucket")):
                connection.request(method, path)
                connection.getresponse().read()
            connection.close()
            yield where
        finally:
            server.stop()


def _ends_uploads_as_s3(answer: Any) -> Any:
    """Rename the element in moto's answer to the end of a multipart upload as in S3.

    In S3 it is `CompleteMultipartUploadResult`; moto 5.2 writes `...Response`. Arrow treats any
    other element as an error, retries ten times, and gives up: no object above 10 MB would ever
    arrive.
    """

    def serialized(self: Any, action_result: Any) -> Any:
        status, headers, body = answer(self, action_result)
        name = "CompleteMultipartUpload"
        return status, headers, body.replace(f"{name}Response", f"{name}Result")

    return serialized


def query(where: str) -> str:
    """Return the query of a URI for the server at `host:port`."""
    return f"?endpoint_override={where}&scheme=http&region=us-east-1"
