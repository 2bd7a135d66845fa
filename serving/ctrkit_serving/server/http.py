"""HTTP/1.1 on asyncio: what llhttp (by httptools) parses, checked, limited, answered in order."""

import asyncio
import email.utils
import time
from collections import deque
from collections.abc import Callable

import httptools

from ctrkit_serving.server.exchange import Exchange
from ctrkit_serving.server.protocol import RequestError
from ctrkit_serving.server.settings import Settings

MAX_HEAD = 32 * 1024
MAX_HEADERS = 100
MAX_PIPELINED = 8
MAX_READ = 2**18
"""What asyncio reads at a time."""
MAX_AT_ONCE = 256
"""Requests that one read may bring: they are parsed in one go, and nothing else of the worker runs meanwhile."""
LINGER_S = 1.0
"""After an answer that ends a connection, what still arrives is read and dropped for so long: closing at once would
reset the connection, and the answer with it."""

MOMENT_S = 0.05
"""While the server drains, a connection without a request is closed after so long."""


class HttpServer:
    """Connections of one worker.

    Args:
        settings: limits and timeouts.
        early: called when the head of a request is there; raises RequestError to refuse it before its body.
        handle: called with a whole request; answers it now or later.
        refused: called with the error of each request that never reached `handle`.
    """

    def __init__(
        self,
        settings: Settings,
        early: Callable[[Exchange], None],
        handle: Callable[[Exchange], None],
        refused: Callable[[RequestError], None],
    ) -> None:
        self.settings, self.early, self.handle, self.refused = settings, early, handle, refused
        self.connections: set[Connection] = set()
        self.arriving = 0
        """Bytes of bodies that are not whole yet."""
        self.closing = False
        """Whether every answer from now on ends its connection."""
        self.date = b""
        self.tick()

    def tick(self) -> None:
        """Do what time brings, about once a second: the date, connections that are idle or too slow."""
        self.date = email.utils.formatdate(usegmt=True).encode()
        now = time.monotonic()
        for connection in list(self.connections):
            connection.check_time(now)

    def close_idle(self) -> None:
        """Close connections that have had no request for a moment."""
        now = time.monotonic()
        for connection in list(self.connections):
            connection.close_if_idle(now, MOMENT_S)


class Connection(asyncio.Protocol):
    """One connection: parses requests, answers them in their order."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.gone = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._exchanges: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._failed: RequestError | None = None
        self._refusal: RequestError | None = None
        self._deaf = self._eof = self._unread = False
        self._ending: float | None = None
        self._since = time.monotonic()
        self._paused = False
        self._at_once = self._held = 0
        self._start()

    def _start(self) -> None:
        """Make ready for the next request of the connection."""
        self._let_go()
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = self._head_lines = self._body_bytes = self._unparsed = 0
        self._in_request = False
        self._refusal = None
        self._current = None

    # of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.gone = True
        self._let_go()
        self.server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        if self._deaf:
            return
        self._at_once = 0
        try:
            self._parse(data)
        except httptools.HttpParserError as error:  # also what a callback below raised
            self._failed = self._failed or RequestError(400, "bad_request", f"not HTTP/1.1: {error}")
        if self._failed is None and self._in_request:
            self._unparsed += len(data)
            if self._unparsed > 2 * MAX_HEAD + MAX_READ:
                self._failed = RequestError(431, "too_large", f"headers of more than {MAX_HEAD} bytes")
        if self._failed is not None:
            self._fail(self._failed)

    def _parse(self, data: bytes) -> None:
        """Feed the parser. It stops behind the head of a request that asks for another protocol, and does not read its
        body: this server speaks none, so the head is read again as that of a request which does not ask.
        """
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stopped:
                version = self._parser.get_http_version().encode()
                lines = [b"%s %s HTTP/%s" % (self._parser.get_method(), self._url, version)]
                lines += [b"%s: %s" % header for header in self._headers.items() if header[0] != b"upgrade"]
                data = b"\r\n".join(lines) + b"\r\n\r\n" + data[stopped.args[0] :]
                self._parser = httptools.HttpRequestParser(self)

    def eof_received(self) -> bool:
        """Keep the connection for answers that are under way; the last of them ends it."""
        self._eof = True
        if self._in_request and not self._deaf:
            self._fail(RequestError(400, "bad_request", "the connection ended before the request did"))
        return bool(self._exchanges) and self._ending is None

    def pause_writing(self) -> None:
        """Read no more from a client that does not read."""
        self._unread = True
        self._regulate()

    def resume_writing(self) -> None:
        """Go on."""
        self._unread = False
        self._regulate()

    # of httptools: what these raise ends `feed_data`

    def on_message_begin(self) -> None:
        """A request begins."""
        self._start()
        self._in_request = True
        self._since = time.monotonic()

    def on_url(self, url: bytes) -> None:
        """Its target."""
        self._url += url
        if len(self._url) > 8192:
            self._stop(RequestError(414, "too_large", "the path has more than 8192 bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers, or of the trailers behind its body, which nobody needs."""
        self._head_bytes += len(name) + len(value)
        self._head_lines += 1
        if self._head_lines > MAX_HEADERS or self._head_bytes > MAX_HEAD:
            self._stop(RequestError(431, "too_large", f"more than {MAX_HEADERS} headers or {MAX_HEAD} bytes of them"))
        if self._current is None:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Its head is there: refuse it early, or wait for its body."""
        headers = self._headers
        if self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT":
            return  # the parser stops here: see `_parse`
        exchange = Exchange(self, self._parser.get_method(), self._url.partition(b"?")[0], headers)
        exchange.keep_alive = self._parser.should_keep_alive()
        exchange.of_http_1_0 = self._parser.get_http_version() == "1.0"
        self._current = exchange
        self._exchanges.append(exchange)
        if exchange.method == b"CONNECT":
            self._stop(RequestError(405, "method", "this server is no proxy"))
        length = headers.get(b"content-length", b"0")
        limit = self.server.settings.max_body
        if int(length) > limit:
            self._stop(RequestError(413, "too_large", f"a body of {int(length)} bytes; this server takes {limit}"))
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._stop(RequestError(415, "bad_request", "compressed bodies are not supported"))
        try:
            self.server.early(exchange)
        except RequestError as error:
            self._refusal = error  # answered once its body has been read and dropped
        expects = headers.get(b"expect", b"").lower() == b"100-continue" and not exchange.of_http_1_0
        if expects and self._transport is not None:
            if self._refusal is not None:
                self._stop(self._refusal)
            if len(self._exchanges) == 1:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._unparsed = 0
        self._body_bytes += len(body)
        if self._body_bytes > self.server.settings.max_body:
            limit = self.server.settings.max_body
            self._stop(RequestError(413, "too_large", f"a body of more than {limit} bytes"))
        if self._refusal is None:
            self._chunks.append(body)
            self._held += len(body)
            self.server.arriving += len(body)
            if self.server.arriving > self.server.settings.max_arriving:
                self._stop(RequestError(503, "arriving", "overloaded: too many large requests arrive at once", 1))

    def on_message_complete(self) -> None:
        """It is whole."""
        exchange, refusal = self._current, self._refusal
        if exchange is None:
            return  # its head is read again: see `_parse`
        self._at_once += 1
        if self._at_once > MAX_AT_ONCE:
            self._stop(RequestError(431, "too_large", f"more than {MAX_AT_ONCE} requests at once; wait for answers"))
        exchange.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._start()
        self._since = time.monotonic()
        if refusal is not None:
            self.server.refused(refusal)
            exchange.respond_error(refusal)
        else:
            self.server.handle(exchange)
        self._regulate()

    # of this module

    def flush(self) -> None:
        """Write the answers whose turn it is."""
        transport, exchanges = self._transport, self._exchanges
        while exchanges and exchanges[0].answer is not None and transport is not None and not self.gone:
            exchange = exchanges.popleft()
            assert exchange.answer is not None
            transport.write(exchange.answer)
            if not exchange.keep_alive:
                self._end()
                return
        if self._eof and not exchanges and transport is not None:
            transport.close()
        else:
            self._regulate()

    def check_time(self, now: float) -> None:
        """End the connection if its time is over."""
        settings, transport = self.server.settings, self._transport
        if transport is None:
            return
        idle, unsent = now - self._since > settings.idle_timeout_s, transport.get_write_buffer_size() > 0
        if idle and unsent and not self._exchanges:
            transport.abort()  # its client does not read: closing would wait for that
        elif self._ending is not None:
            if unsent:
                self._ending = now
            elif now - self._ending > LINGER_S:
                transport.abort()
        elif self._in_request and now - self._since > settings.request_timeout_s:
            self._fail(RequestError(408, "timeout", "the request did not arrive in time"))
        elif idle:
            self.close_if_idle(now, 0.0)

    def close_if_idle(self, now: float, moment: float) -> None:
        """Close if no request is under way, nor was a moment ago."""
        idle = not self._in_request and not self._exchanges and now - self._since >= moment
        if idle and self._transport is not None:
            self._transport.close()

    def _stop(self, error: RequestError) -> None:
        self._failed = error
        raise error

    def _fail(self, error: RequestError) -> None:
        """Answer what cannot be parsed or has grown too large, and end: where the next request begins is not known."""
        self.server.refused(error)
        exchange = self._current
        if exchange is None:
            exchange = Exchange(self, b"", b"", {})
            self._exchanges.append(exchange)
        self._in_request = False
        exchange.keep_alive = False
        self._failed = None
        self._deaf = True  # answers of earlier requests come first; nothing more is read
        self._let_go()
        exchange.respond_error(error)

    def _let_go(self) -> None:
        """Of the part of a body that has arrived."""
        self.server.arriving -= self._held
        self._held = 0
        self._chunks: list[bytes] = []

    def _end(self) -> None:
        self._exchanges.clear()
        self._in_request = False
        self._deaf = True
        self._ending = time.monotonic()
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()

    def _regulate(self) -> None:
        """Read no more from a client that does not read, or waits for many answers; go on reading when it may."""
        pause = self._unread or len(self._exchanges) > MAX_PIPELINED
        if self._transport is None or self._paused == pause or self._transport.is_closing():
            return
        self._paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
