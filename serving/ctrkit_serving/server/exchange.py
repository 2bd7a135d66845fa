"""One HTTP request and its answer."""

import json
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ctrkit_serving.server.protocol import RequestError

if TYPE_CHECKING:
    from ctrkit_serving.server.http import Connection

_HEADS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Exchange:
    """One request and its answer."""

    __slots__ = ("_connection", "answer", "arrived", "body", "headers", "keep_alive", "method", "of_http_1_0", "path")

    def __init__(self, connection: "Connection", method: bytes, path: bytes, headers: dict[bytes, bytes]) -> None:
        self._connection = connection
        self.method, self.path, self.headers = method, path, headers
        self.arrived = time.monotonic()
        self.body = b""
        self.keep_alive, self.of_http_1_0 = True, False
        self.answer: bytes | None = None

    def respond(
        self,
        status: int,
        body: bytes,
        content_type: bytes = b"application/json",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Answer; later calls are ignored."""
        if self.answer is not None:
            return
        close = not self.keep_alive or self._connection.server.closing
        head = [
            _HEADS[status], b"Content-Type: ", content_type, b"\r\nContent-Length: ", str(len(body)).encode(),
            b"\r\nDate: ", self._connection.server.date, b"\r\n",
        ]  # fmt: skip
        for name, value in (extra or {}).items():
            head.append(f"{name}: {value}\r\n".encode())
        if close:
            self.keep_alive = False
            head.append(b"Connection: close\r\n")
        elif self.of_http_1_0:
            head.append(b"Connection: keep-alive\r\n")  # such a client waits for the connection's end without it
        head.append(b"\r\n")
        if self.method != b"HEAD":
            head.append(body)
        self.answer = b"".join(head)
        self._connection.flush()

    def respond_json(self, status: int, content: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Answer with JSON."""
        self.respond(status, json.dumps(content).encode(), extra=extra)

    def respond_error(self, error: RequestError) -> None:
        """Answer with an error, as the protocol has it."""
        extra: dict[str, Any] = {} if error.retry_after is None else {"Retry-After": error.retry_after}
        if error.status == 401:
            extra["WWW-Authenticate"] = "Bearer"
        self.respond_json(error.status, {"error": str(error)}, extra)

    @property
    def gone(self) -> bool:
        """Whether there is nobody left to answer."""
        return self._connection.gone
