"""A worker: one process, one event loop, one core; it serves what the supervisor tells it to."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from ctrkit.errors import UserError
from ctrkit_serving.server import control
from ctrkit_serving.server.board import BEAT_S, Board, State
from ctrkit_serving.server.http import Connection, HttpServer
from ctrkit_serving.server.model import Model
from ctrkit_serving.server.protocol import RequestError, short
from ctrkit_serving.server.rest import Rest
from ctrkit_serving.server.service import Service
from ctrkit_serving.server.settings import Settings

SWITCH_S = 0.0005
"""How long a thread that loads a version may keep the interpreter from the one that serves."""
_YIELD_S = 0.001
_STARVED_S = 1.0
"""Without a file descriptor left no connection is taken for so long: the listener stays readable, and the loop would
spin."""


class Worker:
    """Runs until it is told to drain, or the supervisor is gone.

    Args:
        settings: of the server.
        board: shared memory.
        slot: its place on the board.
        end: its end of the control socket.
        listener: the listening socket of HTTP, which all workers share.
        grpc_port: of gRPC, None for none.
    """

    def __init__(
        self, settings: Settings, board: Board, slot: int, end: socket.socket, listener: socket.socket,
        grpc_port: int | None,
    ) -> None:  # fmt: skip
        self._settings, self._board, self._slot = settings, board, slot
        self._end, self._listener, self._grpc_port = end, listener, grpc_port
        self._mine = board.workers[slot : slot + 1]
        self._accepting = self._starved = False
        self._waiting: dict[int, Callable[[int, Any], None]] = {}
        self._calls = 0
        self._loader = ThreadPoolExecutor(1, "loader", lambda: os.setpriority(os.PRIO_PROCESS, 0, 10))

    def run(self, state: dict[str, Any]) -> None:
        """Load what serves, then serve; `state` is the supervisor's last commit."""
        self._pin()
        sys.setswitchinterval(SWITCH_S)
        asyncio.run(self._main(state))

    def _pin(self) -> None:
        cores = self._settings.cores
        if self._settings.pin and self._settings.num_workers <= len(cores):
            os.sched_setaffinity(0, {cores[self._slot]})

    async def _main(self, state: dict[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor's to answer; it tells the workers
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._service = Service(self._settings, self._board, self._slot)
        self._rest = Rest(self._service, self._manage)
        self._http = HttpServer(
            self._settings, self._rest.early, self._rest.handle, lambda error: self._service.count(error.reason)
        )
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._beat()
        await self._commit(state)
        grpc_server = await self._start_grpc()
        self._loop.add_reader(self._end, self._read_control)
        self._accept_again()
        self._mine["state"] = State.READY
        control.send(self._end, {"did": "start"})
        obeying = asyncio.create_task(self._obey())
        obeying.add_done_callback(lambda _: self._done.set())  # a worker that cannot obey is replaced
        await self._done.wait()
        obeying.cancel()
        await asyncio.wait([obeying])
        await self._drain(grpc_server)
        if not obeying.cancelled():
            obeying.result()  # raises

    async def _start_grpc(self) -> Any:
        if self._grpc_port is None:
            return None
        from ctrkit_serving.server.grpc import start  # a package of its own, imported where it is wanted

        return await start(self._service, self._manage, self._settings, self._grpc_port)

    def _beat(self) -> None:
        """Show life, about ten times a second."""
        self._mine["beat"] = time.monotonic()
        self._mine["connections"] = len(self._http.connections)
        self._service.tick()
        self._http.tick()
        if self._board.shared["draining"] and not self._service.draining:
            self._service.draining = self._http.closing = True
        self._loop.call_later(BEAT_S, self._beat)

    # connections

    def _accept(self) -> None:
        """Take one connection, unless another worker has fewer: then leave it for a moment to that one."""
        workers = self._board.workers
        others = workers["connections"][workers["state"] == State.READY]
        mine = len(self._http.connections)
        if mine < self._settings.max_connections and mine <= others.min(initial=mine):
            self._take()
            if not self._starved:
                return
        self._accepting = False
        self._loop.remove_reader(self._listener)
        self._loop.call_later(_STARVED_S if self._starved else _YIELD_S, self._accept_again)

    def _accept_again(self) -> None:
        if self._done.is_set():
            return
        if len(self._http.connections) < self._settings.max_connections:
            self._take()  # whoever has fewer had its moment
        if self._starved:
            self._loop.call_later(_STARVED_S, self._accept_again)
            return
        self._accepting = True
        self._loop.add_reader(self._listener, self._accept)

    def _take(self) -> bool:
        self._starved = False
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:  # no file descriptor left
            self._starved = True
            with contextlib.suppress(OSError):
                sys.stderr.write(f"ctrkit: accept: {error}; no new connection for a moment\n")
                sys.stderr.flush()
            return False
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self._http)
        self._http.connections.add(connection)
        self._mine["connections"] = len(self._http.connections)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, accepted))
        task.add_done_callback(lambda done: self._http.connections.discard(connection) if done.exception() else None)
        return True

    # the supervisor's word

    def _read_control(self) -> None:
        try:
            message = control.receive(self._end)
        except BlockingIOError:
            return
        if message is None:  # the supervisor is gone, and with it whoever would replace this worker
            self._loop.remove_reader(self._end)
            self._service.draining = self._http.closing = True
            self._done.set()
        elif message["do"] == "reply":
            waiting = self._waiting.pop(message["id"], None)
            if waiting is not None:
                waiting(message["status"], message["answer"])
        elif message["do"] == "drain":
            self._done.set()
        else:
            self._messages.put_nowait(message)

    async def _obey(self) -> None:
        while True:
            message = await self._messages.get()
            if message["do"] == "prepare":
                await self._prepare(message["version"])
            else:
                await self._commit(message)
            control.send(self._end, {"did": message["do"], "id": message.get("id")})

    async def _prepare(self, version: dict[str, Any]) -> None:
        """Load a version beside those that serve; that it cannot be is told, and changes nothing."""
        name, number = version["name"], version["version"]
        if (name, number) in self._service.loaded:
            return
        try:
            model = await self._loop.run_in_executor(self._loader, self._load, version)
        except Exception as error:  # the disk or the memory failed since the check
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            control.send(self._end, {"did": "fail", "name": name, "version": number, "reason": short(reason)})
            return
        self._service.add(name, number, model, version["row"])

    async def _add(self, version: dict[str, Any], *, serves: bool) -> None:
        """Load what others have loaded already; a version that only stands by need not be there any more."""
        name, number = version["name"], version["version"]
        try:
            model = await self._loop.run_in_executor(self._loader, self._load, version)
        except UserError as error:
            if serves:
                raise
            control.send(self._end, {"did": "lack", "name": name, "version": number, "reason": short(error)})
        else:
            self._service.add(name, number, model, version["row"])

    def _load(self, version: dict[str, Any]) -> Model:
        model = Model.load(Path(version["path"]), version["name"], version["version"], self._settings)
        if model.bundle_hash() != version["bundle"]:
            raise UserError(
                f"{version['path']}: another bundle than the one that was checked as version {version['version']}; "
                "give it a number of its own"
            )
        return model

    async def _commit(self, state: dict[str, Any]) -> None:
        """Serve these versions from the next request on; requests that wait keep the version they came for."""
        service = self._service
        for version in state["loaded"]:
            if (version["name"], version["version"]) not in service.loaded:
                await self._add(version, serves=state["serving"].get(version["name"]) == version["version"])
        service.serving = dict(state["serving"])
        gc.freeze()  # what a version brought lives long: the collector need not look at it again and again
        kept = {(version["name"], version["version"]) for version in state["loaded"]}
        for key in service.loaded.keys() - kept:
            await self._loop.run_in_executor(self._loader, list.clear, [service.loaded.pop(key)])  # freed there

    def _manage(self, call: dict[str, Any], answer: Callable[[int, Any], None]) -> None:
        """Ask the supervisor: what fits into a message, and the index page by page, however long it is."""
        if call["ask"] == "load":
            call = {**call, "parameters": control.load_parameters(call["parameters"])}
        elif call["ask"] == "unload":
            call = {"ask": "unload", "name": call["name"]}
        else:
            answer = partial(self._index_page, call, [], answer)
        self._ask(call, answer)

    def _index_page(
        self, call: dict[str, Any], found: list[Any], answer: Callable[[int, Any], None], status: int, page: Any
    ) -> None:
        if status != 200:
            answer(status, page)
            return
        found += page["entries"]
        if page["next"] is None:
            answer(200, found)
            return
        try:
            self._ask({**call, "start": page["next"]}, partial(self._index_page, call, found, answer))
        except RequestError as error:
            answer(error.status, {"error": str(error)})

    def _ask(self, call: dict[str, Any], answer: Callable[[int, Any], None]) -> None:
        self._calls += 1
        self._waiting[self._calls] = answer
        if not control.send(self._end, {**call, "id": self._calls}):
            del self._waiting[self._calls]
            raise RequestError(503, "not_ready", "the supervisor does not answer", 1)

    async def _drain(self, grpc_server: Any) -> None:
        """Answer what was accepted, and end."""
        self._mine["state"] = State.DRAINING
        self._service.draining = self._http.closing = True
        if self._accepting:
            self._loop.remove_reader(self._listener)
        while self._take():
            pass
        self._listener.close()  # whoever replaces a supervisor that was killed may have the port
        if grpc_server is not None:
            await grpc_server.stop(self._settings.grace_s)
        end = time.monotonic() + self._settings.grace_s
        while self._http.connections and time.monotonic() < end:
            self._http.close_idle()
            await asyncio.sleep(0.01)
        self._mine["state"] = State.ABSENT
        self._loader.shutdown(wait=False, cancel_futures=True)
