"""A server in processes of its own, its log as events: what the benchmark and the tests of the server share."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

TOKEN = "a token of the tests"
PATIENCE_S = 180.0  # on a busy machine a check, at the lowest priority, hardly gets a turn


class Server:
    """`ctrkit serve` on free ports; a context manager that ends it.

    Args:
        models_dir: its folder of bundles.
        options: of the command line.
        grpc: whether to serve gRPC too.
        token: of management calls; None for none.
        cores: that it may use; None for all.
    """

    def __init__(
        self, models_dir: Path, *options: str, grpc: bool = False, token: str | None = TOKEN,
        cores: set[int] | None = None, python: Sequence[str] = (sys.executable,),
    ) -> None:  # fmt: skip
        command = [*python, "-m", "ctrkit.cli", "serve", str(models_dir), "--port", "0", "--poll", "0.05", *options]
        command += ["--grpc-port", "0"] if grpc else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **({} if token is None else {"CTRKIT_TOKEN": token})}
        if token is None:
            environment.pop("CTRKIT_TOKEN", None)
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores or before)  # the server inherits it
        try:
            self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        finally:
            os.sched_setaffinity(0, before)
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            listening = self.wait("listening")
        except BaseException:
            self.stop()
            raise
        self.address: str = listening["http"]
        self.grpc_address = f"127.0.0.1:{listening['grpc']}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                self.lines.append(line.rstrip())
                if line.startswith("{"):
                    self.events.append(json.loads(line))
                self._heard.notify_all()

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of HTTP."""
        host, _, port = self.address.rpartition(":")
        return host, int(port)

    def find(self, event: str, **facts: Any) -> list[dict[str, Any]]:
        """Events of the log so far."""
        wanted = {"event": event, **facts}
        return [found for found in list(self.events) if wanted.items() <= found.items()]

    def wait(self, event: str, count: int = 1, **facts: Any) -> dict[str, Any]:
        """The event, once the log has it so many times."""
        with self._heard:
            there = self._heard.wait_for(lambda: len(self.find(event, **facts)) >= count, PATIENCE_S)
        assert there, f"no {event} {facts} in\n" + "\n".join(self.lines)
        return self.find(event, **facts)[count - 1]

    def pids(self) -> list[int]:
        """Processes of the workers that became ready last, by slot."""
        last = {found["worker"]: found["pid"] for found in self.find("worker ready")}
        return [last[slot] for slot in sorted(last)]

    def memory_mib(self) -> float:
        """Resident memory of the workers that is theirs alone."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Private_Clean", "Private_Dirty")):
                    total += int(line.split()[1])
        return total / 1024

    def client(self) -> http.client.HTTPConnection:
        """A connection of one's own."""
        return http.client.HTTPConnection(self.address, timeout=PATIENCE_S)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """One request on a connection of its own: status, and the JSON of the answer."""
        status, answer, _ = self.exchange(method, path, body, **headers)
        return status, answer

    def exchange(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """The same with the headers of the answer; in names of headers, _ stands for -."""
        client = self.client()
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            client.request(method, path, sent, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = client.getresponse()
            content = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(content) if is_json else content.decode(), dict(answer.headers)
        finally:
            client.close()

    def manage(self, path: str, parameters: dict[str, Any] | None = None) -> tuple[int, Any]:
        """A management call, with the token."""
        body = None if parameters is None else {"parameters": parameters}
        return self.call("POST", f"/v2/repository/{path}", body, Authorization=f"Bearer {TOKEN}")

    def index(self) -> dict[str, str]:
        """State and reason of each version."""
        return {entry["version"]: f"{entry['state']} {entry['reason']}" for entry in self.manage("index")[1]}

    def ready(self) -> bool:
        """What readiness says."""
        return self.call("GET", "/v2/health/ready")[0] == 200

    def wait_ready(self) -> None:
        """Until readiness says so."""
        until(self.ready)

    def metric(self, name: str) -> float:
        """A sample of `/metrics`, by its name with labels."""
        for line in self.call("GET", "/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(PATIENCE_S)
            assert self.process.stderr is not None
            if not self._reader.is_alive():  # a worker that outlives its server would hold the pipe
                self.process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def until(holds: Callable[[], bool]) -> None:
    """Wait for what has no event."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
