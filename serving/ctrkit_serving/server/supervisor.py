"""The first process: starts workers, replaces dead ones, brings versions into service, ends it all in order.

It has one thread and scores nothing, so that it can fork at any time and always answers.
"""

import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ctrkit.errors import UserError
from ctrkit_serving.server import control
from ctrkit_serving.server.board import BEAT_S, Board, State
from ctrkit_serving.server.deploy import Deployer
from ctrkit_serving.server.settings import Settings
from ctrkit_serving.server.versions import Versions
from ctrkit_serving.server.worker import Worker

STALL_S = 10.0
"""A worker whose heart has not beaten for so long is killed and replaced."""
_BACKLOG = 1024


@dataclass
class Slot:
    """A worker's place."""

    number: int
    pid: int = 0
    end: socket.socket | None = None
    failures: int = 0
    """Deaths in a row before it was ready."""
    start_at: float = 0.0
    started: float = 0.0


@dataclass
class Supervisor:
    """Runs until SIGTERM or SIGINT, then drains; a second signal ends it at once."""

    settings: Settings
    slots: list[Slot] = field(default_factory=list)
    _signals: int = 0
    _drain_at: float | None = None
    _kill_at: float | None = None
    _awake_since: float = 0.0
    """When this process last came back from being stopped, as all of a container may be: the workers were too."""

    def run(self) -> None:
        """Serve.

        Raises:
            UserError: the settings cannot be, or a port is taken.
        """
        self.settings.check()
        _allow_files(2 * self.settings.max_connections + 256)
        grpc_port = self.settings.grpc_port
        self._grpc_port = None if grpc_port is None else self._reserve(grpc_port)
        self._listener = _listen(self.settings.host, self.settings.port)
        self.board = Board(self.settings.num_workers)
        self.slots = [Slot(number) for number in range(self.settings.num_workers)]
        self.versions = Versions(self.settings.models)
        self._deployer = Deployer(self)
        self._selector = selectors.DefaultSelector()
        self._catch_signals()
        self._beat()
        host, port = self._listener.getsockname()[:2]
        self.log("listening", http=f"{_bracketed(host)}:{port}", grpc=self._grpc_port, pid=os.getpid())
        next_scan = 0.0
        while not self._ended():
            now = time.monotonic()
            if self._drain_at is None and now >= next_scan:
                self._deployer.look()
                next_scan = now + (self.settings.poll_s or 1e9)
            self._start_workers(now)
            if self._drain_at is None:
                self._deployer.step(now)
            self._wait()
            self._drain(time.monotonic())
        self.log("ended")

    def log(self, event: str, **facts: Any) -> None:
        """One line of JSON on standard error; the server outlives its reader, and a full disk."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts})
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{line}\n")  # at once: `print` writes the newline apart if Python does not buffer
            sys.stderr.flush()

    def ready_slots(self) -> list[Slot]:
        """Slots whose worker serves."""
        return [slot for slot in self.slots if slot.pid and self.board.workers["state"][slot.number] == State.READY]

    def publish(self) -> None:
        """Put onto the board how many models serve, and tell the workers which."""
        required = self.versions.required or set()
        self.board.shared["required"] = len(required)
        self.board.shared["serving"] = len(required & self.versions.serving.keys())
        for slot in self.slots:
            self.send(slot, self.versions.state())

    def send(self, slot: Slot, message: dict[str, Any]) -> bool:
        """Tell a worker something."""
        return slot.end is not None and control.send(slot.end, message)

    def watch(self, file: Any, callback: Any) -> None:
        """Call back when there is something to read."""
        self._selector.register(file, selectors.EVENT_READ, callback)

    def unwatch(self, file: Any) -> None:
        """No longer."""
        self._selector.unregister(file)

    def fork(self) -> int:
        """Fork; the child has none of this process' sockets and signals."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._selector.close()
            for end in self._wakeup:
                end.close()
            for slot in self.slots:
                if slot.end is not None:
                    slot.end.close()  # else a worker would not see the supervisor's death
        return pid

    def close_listeners(self) -> None:
        """In a child: it does not serve."""
        self._listener.close()
        if self._grpc_port is not None:
            self._grpc_socket.close()

    # workers

    def _start_workers(self, now: float) -> None:
        if self._kill_at is not None:
            return
        for slot in self.slots:
            if slot.pid == 0 and now >= slot.start_at:
                self._start(slot, now)
            elif slot.pid and self._stalled(slot, now):
                self.log("worker stalled", worker=slot.number, pid=slot.pid)
                _kill(slot.pid)

    def _stalled(self, slot: Slot, now: float) -> bool:
        starting = self.board.workers["state"][slot.number] == State.STARTING
        patience = self.settings.check_timeout_s if starting else STALL_S
        return bool(now - max(self.board.workers["beat"][slot.number], slot.started, self._awake_since) > patience)

    def _start(self, slot: Slot, now: float) -> None:
        try:
            mine, theirs = control.pair()
            pid = self._fork_worker(slot, mine, theirs)
        except OSError as error:  # no process, memory or file descriptor left
            slot.failures += 1
            slot.start_at = now + backoff_s(slot.failures)
            self.board.workers["state"][slot.number] = State.ABSENT
            self.log("worker cannot start", worker=slot.number, reason=error.strerror)
            return
        if pid == 0:
            mine.close()
            self._work(slot, theirs)
        theirs.close()
        slot.pid, slot.end, slot.started = pid, mine, now
        self.board.workers["pid"][slot.number] = pid
        self.watch(mine, lambda: self._hear(slot))

    def _fork_worker(self, slot: Slot, *ends: socket.socket) -> int:
        self.board.workers["state"][slot.number] = State.STARTING
        self.board.workers["connections"][slot.number] = 0
        try:
            return self.fork()
        except OSError:
            for end in ends:
                end.close()
            raise

    def _work(self, slot: Slot, end: socket.socket) -> NoReturn:
        """Be a worker; never return."""
        code = 1
        try:
            worker = Worker(self.settings, self.board, slot.number, end, self._listener, self._grpc_port)
            worker.run(self.versions.state())
            code = 0
        except UserError as error:
            print(f"ctrkit: worker {slot.number}: {error}", file=sys.stderr, flush=True)
        except BaseException:
            import traceback

            traceback.print_exc(file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _hear(self, slot: Slot) -> None:
        """Read what a worker says."""
        while slot.end is not None:
            try:
                message = control.receive(slot.end)
            except BlockingIOError:
                return
            if message is None:
                self.unwatch(slot.end)
                slot.end.close()
                slot.end = None
            elif "ask" in message:
                self._deployer.ask((slot.number, slot.pid, message.pop("id")), message)
            elif message["did"] == "lack":
                self._lacks(message["name"], message["version"], message["reason"])
            elif message["did"] == "start":
                slot.failures = 0
                self.log("worker ready", worker=slot.number, pid=slot.pid)
            else:
                self._deployer.heard(slot, message)

    def _lacks(self, name: str, version: int, reason: str) -> None:
        """A worker cannot load a version that stands by: then nobody needs it, and it is loaded anew if asked for."""
        if self.versions.forget_standby(name, version):
            self.publish()
            self.log("no longer stands by", model=name, version=version, reason=reason)

    def reply(self, asker: tuple[int, int, int], status: int, answer: Any) -> None:
        """Answer a management call, if the worker that brought it still lives."""
        number, pid, call = asker
        slot = self.slots[number]
        if slot.pid == pid:
            self.send(slot, {"do": "reply", "id": call, "status": status, "answer": answer})

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            slot = next((slot for slot in self.slots if slot.pid == pid), None)
            if slot is None:
                self._deployer.checker_ended(pid, status)
            else:
                self._worker_died(slot, status)

    def _worker_died(self, slot: Slot, status: int) -> None:
        was_ready = self.board.workers["state"][slot.number] == State.READY
        self.board.workers["state"][slot.number] = State.ABSENT
        self.board.workers["connections"][slot.number] = 0
        if slot.end is not None:
            self.unwatch(slot.end)
            slot.end.close()
        pid, slot.pid, slot.end = slot.pid, 0, None
        self._deployer.lost(slot)
        if self._kill_at is not None:
            return
        slot.failures = 0 if was_ready else slot.failures + 1
        slot.start_at = time.monotonic() + backoff_s(slot.failures)
        self.board.shared["restarts"] += 1
        self.log("worker died", worker=slot.number, pid=pid, **how_it_ended(status))

    # the loop

    def _catch_signals(self) -> None:
        self._wakeup = socket.socketpair()
        for end in self._wakeup:
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self.watch(self._wakeup[0], self._signalled)

    def _signalled(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in self._wakeup[0].recv(4096):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._end(number)
                elif number == signal.SIGHUP:
                    self._deployer.look()
        self._reap()

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self.board.shared["beat"] > STALL_S / 2:
            self._awake_since = now
        self.board.shared["beat"] = now

    def _wait(self) -> None:
        for key, _ in self._selector.select(BEAT_S):
            key.data()
        self._beat()

    # the end

    def _end(self, number: int) -> None:
        self._signals += 1
        now = time.monotonic()
        if self._signals > 1:
            self._drain_at = self._kill_at = now
            return
        self.board.shared["draining"] = 1
        self._drain_at = now + self.settings.drain_delay_s
        self._deployer.stop()
        self.log("draining", signal=signal.Signals(number).name)

    def _drain(self, now: float) -> None:
        if self._drain_at is not None and self._kill_at is None and now >= self._drain_at:
            self._kill_at = now + self.settings.grace_s + 1.0
            for slot in self.slots:
                self.send(slot, {"do": "drain"})
        if self._kill_at is not None and now >= self._kill_at:
            for slot in self.slots:
                if slot.pid:
                    _kill(slot.pid)

    def _ended(self) -> bool:
        if self._kill_at is None or any(slot.pid for slot in self.slots):
            return False
        for end in (self._listener, *self._wakeup):
            end.close()
        return True

    def _reserve(self, port: int) -> int:
        """A port for gRPC: bound here, so that it stays the server's; each worker listens on it for itself.

        Binding it so would succeed beside another server that does the same: first it is bound for ourselves alone.
        """
        _bind(self.settings.host, port, "--grpc-port", reuse_port=False).close()
        self._grpc_socket = _bind(self.settings.host, port, "--grpc-port", reuse_port=True)
        return int(self._grpc_socket.getsockname()[1])


def _allow_files(number: int) -> None:
    """Let processes have so many open files, as far as the system's hard limit goes; connections are files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = [limit for limit in (number, hard) if limit != resource.RLIM_INFINITY]
    if soft != resource.RLIM_INFINITY and soft < min(limits):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits), hard))


def backoff_s(failures: int) -> float:
    """Seconds before a worker is started that failed so many times in a row before it was ready."""
    return min(10.0, 0.25 * 2.0 ** min(failures, 10)) if failures else 0.0


def how_it_ended(status: int) -> dict[str, Any]:
    """A process' end, for people."""
    if os.WIFSIGNALED(status):
        return {"signal": signal.Signals(os.WTERMSIG(status)).name}
    return {"exit_code": os.waitstatus_to_exitcode(status)}


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bind(host: str, port: int, option: str, *, reuse_port: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise UserError(f"{_bracketed(host)}:{port}: {error.strerror}; give another {option} or --host") from error
    return bound


def _listen(host: str, port: int) -> socket.socket:
    listener = _bind(host, port, "--port", reuse_port=False)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener
