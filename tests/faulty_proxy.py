"""An HTTP proxy that imitates bad networks and faulty servers."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PASS, ERRORS, SLOW = "pass", "errors", "slow"
_HOP = {"connection", "transfer-encoding", "content-length", "date", "server"}


class FaultyProxy:
    """Passes requests on to a server on this machine, with the faults of its `mode`.

    Args:
        port: Port of the server.
        seed: Seed of the draws.

    Attributes:
        mode: `PASS`; `ERRORS`: half of all requests get a 500, half of those after the server has
            processed them; `SLOW`: each takes two seconds longer.
        faults: How often each fault has happened.
    """

    def __init__(self, port: int, seed: int = 0) -> None:
        self.mode, self.faults = PASS, Counter[str]()
        self._port, self._draws = port, random.Random(seed)
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                proxy._answer(self, self.rfile.read(length))

            def log_message(self, *_: Any) -> None:
                pass

        for method in ("GET", "POST", "PATCH", "PUT", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self) -> str:
        with self._lock:
            draw = self._draws.random()
            if self.mode == SLOW:
                fault = "an answer that takes two seconds more"
            elif self.mode == ERRORS and draw < 0.25:
                fault = "500 instead of an answer"
            elif self.mode == ERRORS and draw < 0.5:
                fault = "500 after the request was obeyed"
            else:
                return ""
            self.faults[fault] += 1
            return fault

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        fault = self._fault()
        if fault.startswith("500 instead"):
            handler.send_error(500)
            return
        if self.mode == SLOW:
            time.sleep(2.0)
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            headers = {k: v for k, v in handler.headers.items() if k.lower() != "host"}
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, HTTPException):
            handler.send_error(502)
            return
        finally:
            connection.close()
        if fault.startswith("500 after"):
            handler.send_error(500)
            return
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
