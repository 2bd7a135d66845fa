"""Load over HTTP: an open loop, whose requests leave at Poisson times whatever the server does, or a closed one."""

import asyncio
import time
from collections import deque
from contextlib import suppress

import numpy as np

from ctrkit_serving.bench.answers import Answers


class _Connection(asyncio.Protocol):
    """A keep-alive connection with one request at a time."""

    def __init__(self, load: "_Load") -> None:
        self.load = load
        self.due = self.sent = 0.0
        self.busy = False
        self.transport: asyncio.Transport | None = None
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.load.made(self)

    def send(self, request: bytes, due: float) -> None:
        assert self.transport is not None
        self.due, self.sent, self.busy = due, time.perf_counter(), True
        self.transport.write(request)

    def abort(self) -> None:
        assert self.transport is not None
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(received[:end]).lower()
        status, length = head[9:12], head.partition(b"content-length:")[2].partition(b"\r\n")[0].strip()
        if not self.busy or not status.isdigit() or not length.isdigit():
            self.abort()  # it is no answer, or nobody's: the request is lost
            return
        if len(received) < end + 4 + int(length):
            return
        body = bytes(received[end + 4 :])
        received.clear()
        self._answered(head, int(status), body)

    def _answered(self, head: bytes, status: int, body: bytes) -> None:
        answers, now = self.load.answers, time.perf_counter()
        answers.status.append(status)
        answers.from_due_ms.append((now - self.due) * 1e3)
        answers.from_sent_ms.append((now - self.sent) * 1e3)
        if self.load.keep_bodies and status == 200:
            answers.bodies.append(body)
        self.busy = False
        if b"connection: close" in head:
            assert self.transport is not None
            self.transport.close()  # a new one is opened when it is gone
        else:
            self.load.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.load.answers.lost += 1
        self.load.lost(self)


class _Load:
    def __init__(self, place: tuple[str, int], requests: list[bytes], *, keep_bodies: bool) -> None:
        self.answers = Answers()
        self.keep_bodies = keep_bodies
        self._place, self._requests = place, requests
        self._idle: deque[_Connection] = deque()
        self._late: deque[float] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._count = 0
        self._open: set[_Connection] = set()
        self._ending = False
        self._until = 0.0  # of a closed loop

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            await loop.create_connection(lambda: _Connection(self), *self._place)

    def made(self, connection: _Connection) -> None:
        self._open.add(connection)
        self.free(connection)

    def free(self, connection: _Connection) -> None:
        if self._late:
            self._send(connection, self._late.popleft())
        elif time.perf_counter() < self._until:
            self._send(connection, time.perf_counter())
        else:
            self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._ending:
            task = asyncio.get_running_loop().create_task(self.connect())
            self._connecting.add(task)  # the loop itself would forget it
            task.add_done_callback(self._connecting.discard)

    def due(self, at: float) -> None:
        if self._idle:
            self._send(self._idle.popleft(), at)
        else:
            self._late.append(at)

    def _send(self, connection: _Connection, due: float) -> None:
        self._count += 1
        connection.send(self._requests[self._count % len(self._requests)], due)

    async def open(self, rate: float, seconds: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        gaps = rng.exponential(1 / rate, size=int(rate * seconds * 1.1) + 10)
        start = time.perf_counter() + 0.01
        dues = (start + np.cumsum(gaps)).tolist()
        for due in dues:
            if due > start + seconds:
                break
            wait = due - time.perf_counter()
            # every so often the loop must run even if requests are late
            await asyncio.sleep(wait if wait > 0 else 0)
            self.due(due)
        await self._finish(start)

    async def closed(self, seconds: float) -> None:
        start = time.perf_counter()
        self._until = start + seconds
        while self._idle:
            self.due(time.perf_counter())
        await asyncio.sleep(seconds)
        await self._finish(start)

    async def _finish(self, start: float) -> None:
        self.answers.seconds = time.perf_counter() - start
        patience = time.perf_counter() + 10
        while (self._late or self._busy()) and (self._open or self._connecting) and time.perf_counter() < patience:
            await asyncio.sleep(0.001)
        self._ending = True
        self.answers.lost += len(self._late) + self._busy()
        self._late.clear()
        self._until = 0.0
        # One that is being made when the event loop ends would stay open, and its server wait for what it will ask.
        for task in self._connecting:
            task.cancel()
        while self._open or self._connecting:
            for connection in self._open:
                connection.busy = False  # it is counted
                connection.abort()
            await asyncio.sleep(0)

    def _busy(self) -> int:
        """Requests under way."""
        return self._count - len(self.answers.status) - self.answers.lost


def open_loop(
    place: tuple[str, int], requests: list[bytes], *, rate: float, seconds: float, connections: int = 32, seed: int = 0,
    keep_bodies: bool = False,
) -> Answers:  # fmt: skip
    """Send so many requests a second, at Poisson times; requests are taken in turn."""
    return asyncio.run(_run(place, requests, connections, keep_bodies, rate=rate, seconds=seconds, seed=seed))


def closed_loop(place: tuple[str, int], requests: list[bytes], *, connections: int, seconds: float) -> Answers:
    """Each connection sends its next request when the one before is answered: what the server can do at most."""
    return asyncio.run(_run(place, requests, connections, False, rate=None, seconds=seconds, seed=0))


async def _run(
    place: tuple[str, int], requests: list[bytes], connections: int, keep_bodies: bool, *, rate: float | None,
    seconds: float, seed: int,
) -> Answers:  # fmt: skip
    load = _Load(place, requests, keep_bodies=keep_bodies)
    for _ in range(connections):
        await load.connect()
    if rate is None:
        await load.closed(seconds)
    else:
        await load.open(rate, seconds, seed)
    return load.answers
