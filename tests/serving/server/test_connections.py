"""What the HTTP of a worker does with clients that are odd, slow or hostile: in one event loop, without processes."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ctrkit_serving.server import http
from ctrkit_serving.server.board import REASONS
from ctrkit_serving.server.exchange import Exchange
from ctrkit_serving.server.http import Connection, HttpServer
from ctrkit_serving.server.protocol import RequestError
from ctrkit_serving.server.settings import Settings

BIG = b"x" * 400_000
SMALL_BUFFER = 8192


class Site:
    """A server of one page that tells what it got, `/big`, and pages that are answered when the test says so."""

    def __init__(self, **settings: float) -> None:
        self.waiting: list[Exchange] = []
        self.paths: list[bytes] = []
        self.refused: list[int] = []
        self.server = HttpServer(
            Settings(Path(), **settings),  # type: ignore[arg-type]
            lambda _: None,
            self.handle,
            self.refuse,
        )

    def refuse(self, error: RequestError) -> None:
        """Keep what was answered; metrics must know its reason."""
        assert error.reason in REASONS
        self.refused.append(error.status)

    def handle(self, exchange: Exchange) -> None:
        """Answer, or keep it."""
        self.paths.append(exchange.path)
        if exchange.path == b"/wait":
            self.waiting.append(exchange)
        else:
            exchange.respond(200, BIG if exchange.path == b"/big" else exchange.method + b" " + exchange.body)

    @property
    def unsent(self) -> int:
        """Bytes that the server holds for its clients."""
        transports = [connection._transport for connection in self.server.connections]
        return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)


def talk(site: Site, client: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Run a client with a connection of its own against the site, whose clock ticks fast."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        server = await loop.create_server(lambda: Connection(site.server), sock=listener)
        ticking = asyncio.create_task(_tick(site.server))
        try:
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
                connection.setblocking(False)
                await loop.sock_connect(connection, server.sockets[0].getsockname())
                await asyncio.wait_for(client(connection), 10)
        finally:
            ticking.cancel()
            server.close()
            for each in list(site.server.connections):
                if each._transport is not None:
                    each._transport.abort()
            await asyncio.sleep(0)

    asyncio.run(run())


async def _tick(server: HttpServer) -> None:
    while True:
        server.tick()
        await asyncio.sleep(0.01)


async def send(connection: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)


async def receive(connection: socket.socket, pause_s: float = 0.0) -> bytes:
    """Everything until the server ends the connection."""
    received = b""
    while part := await asyncio.get_running_loop().sock_recv(connection, 65536):
        received += part
        await asyncio.sleep(pause_s)
    return received


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def get(path: str, *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/{version}", "Host: x", *headers, "", ""]).encode()


def test_a_client_that_does_not_read_cannot_make_the_server_hoard() -> None:
    site = Site()

    async def client(connection: socket.socket) -> None:
        for _ in range(20):
            await send(connection, get("/big"))
            await asyncio.sleep(0.01)
        assert 0 < site.unsent < 2 * len(BIG)

    talk(site, client)


def test_a_client_that_never_reads_is_let_go() -> None:
    """Closing waits for what is unsent to leave: it never does, and the connection would count for ever."""
    site = Site(idle_timeout_s=0.2)

    async def client(connection: socket.socket) -> None:
        await send(connection, get("/big"))
        await until(lambda: site.unsent > 0)
        await until(lambda: not site.server.connections)

    talk(site, client)


def test_a_client_that_ends_its_side_and_never_reads_is_let_go() -> None:
    site = Site(idle_timeout_s=0.2)

    async def client(connection: socket.socket) -> None:
        await send(connection, get("/big"))
        connection.shutdown(socket.SHUT_WR)
        await until(lambda: site.unsent > 0)
        await until(lambda: not site.server.connections)

    talk(site, client)


def test_an_answer_that_ends_the_connection_arrives_whole_however_slowly_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site()
    monkeypatch.setattr(http, "LINGER_S", 0.05)

    async def client(connection: socket.socket) -> None:
        await send(connection, get("/big", "Connection: close"))
        received = await receive(connection, pause_s=0.01)
        assert received.endswith(BIG)
        assert len(received) > len(BIG)

    talk(site, client)


def test_an_upgrade_is_ignored_and_the_request_served() -> None:
    """Java's HttpClient asks every server for HTTP/2 so; whoever does not speak it answers as if it had not."""
    site = Site()
    upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA"
    post = f"POST /a HTTP/1.1\r\nHost: x\r\n{upgrade}\r\nContent-Length: 5\r\n\r\n".encode()

    async def client(connection: socket.socket) -> None:
        await send(connection, post + b"he")
        await asyncio.sleep(0.05)
        await send(connection, b"llo" + post + b"again" + get("/b", "Connection: Upgrade, close", "Upgrade: x"))
        received = await receive(connection)
        assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 200 OK") == 3
        assert b"POST hello" in received
        assert b"POST again" in received

    talk(site, client)
    assert site.paths == [b"/a", b"/a", b"/b"]
    assert site.refused == []


def test_connect_is_refused_once() -> None:
    site = Site()

    async def client(connection: socket.socket) -> None:
        await send(connection, b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n\x16\x03\x01")
        received = await receive(connection)
        assert received.startswith(b"HTTP/1.1 405 ")
        assert received.count(b"HTTP/1.1 ") == 1

    talk(site, client)


def test_http_1_0_is_told_that_its_connection_stays() -> None:
    """Without it, ab -k waits for the end of the connection; and no interim answer goes to who cannot know it."""
    site = Site()

    async def client(connection: socket.socket) -> None:
        first = b"POST /a HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na"
        await send(connection, first + get("/b", version="1.0"))
        received = await receive(connection)
        heads = [part.partition(b"\r\n\r\n")[0] for part in received.split(b"HTTP/1.1 ")[1:]]
        assert [head[:3] for head in heads] == [b"200", b"200"]
        assert b"\r\nConnection: keep-alive" in heads[0]
        assert b"\r\nConnection: close" in heads[1]

    talk(site, client)


def test_trailers_and_chunk_extensions_without_end_are_refused() -> None:
    """Nothing of them is kept for anybody, but the parser keeps a header until it is whole."""
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for start in (b"3\r\nabc\r\n0\r\nA: ", b"3;a="):
        site = Site(request_timeout_s=5.0)

        async def client(connection: socket.socket, start: bytes = start) -> None:
            await send(connection, head + start)
            received = asyncio.create_task(receive(connection))
            sending = asyncio.create_task(send(connection, b"b" * 2_000_000))
            assert (await received).startswith(b"HTTP/1.1 431 ")
            sending.cancel()

        talk(site, client)


def test_a_long_body_in_chunks_is_no_long_head() -> None:
    site = Site()

    async def client(connection: socket.socket) -> None:
        await send(connection, b"POST /a HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        await send(connection, b"3e8\r\n%s\r\n" % (b"a" * 1000) * 2000 + b"0\r\n\r\n")
        assert (await receive(connection)).endswith(b"POST " + b"a" * 2_000_000)

    talk(site, client)


def test_many_requests_in_one_read_end_the_connection() -> None:
    """All that one read brings is parsed in one go, and nothing else runs meanwhile."""
    site = Site()

    async def client(connection: socket.socket) -> None:
        await send(connection, b"GET / HTTP/1.1\r\n\r\n" * 10_000)
        received = await receive(connection)
        assert received.count(b"HTTP/1.1 200 OK") == http.MAX_AT_ONCE == len(site.paths)
        assert received.count(b"HTTP/1.1 431 ") == 1

    talk(site, client)


def test_pipelined_requests_are_answered_in_order_when_an_early_one_takes_long() -> None:
    site = Site()

    async def client(connection: socket.socket) -> None:
        await send(connection, get("/wait") + get("/1") * 20 + get("/2", "Connection: close"))
        await until(lambda: bool(site.waiting))
        await asyncio.sleep(0.05)
        site.waiting[0].respond(200, b"the first")
        received = await receive(connection)
        assert received.count(b"200 OK") == 22
        assert received.index(b"the first") < received.index(b"GET ")

    talk(site, client)


def test_bodies_that_arrive_at_once_are_bounded() -> None:
    site = Site(max_body=100_000, max_arriving=150_000)
    head = b"POST /x HTTP/1.1\r\nContent-Length: 100000\r\n\r\n"

    async def client(connection: socket.socket) -> None:
        others = [await _beside(connection) for _ in range(2)]
        await send(connection, head + bytes(80_000))
        await until(lambda: site.server.arriving == 80_000)
        await send(others[0], head + bytes(80_000))  # 160,000 in all
        answer = await _answer(others[0])
        assert b" 503 " in answer
        assert b"Retry-After: 1" in answer
        assert site.server.arriving == 80_000  # what was refused is forgotten
        await send(connection, bytes(20_000))
        assert b" 200 " in await _answer(connection)
        assert site.server.arriving == 0
        await send(others[1], head + bytes(80_000))
        await until(lambda: site.server.arriving == 80_000)
        others[1].close()  # so is what nobody will complete
        await until(lambda: site.server.arriving == 0)
        others[0].close()

    talk(site, client)
    assert site.refused == [503, 400]
    assert site.paths == [b"/x"]


async def _beside(connection: socket.socket) -> socket.socket:
    other = socket.socket()
    other.setblocking(False)
    await asyncio.get_running_loop().sock_connect(other, connection.getpeername())
    return other


async def _answer(connection: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(connection, 4096)
