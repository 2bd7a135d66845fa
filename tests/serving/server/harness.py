"""A server in processes of its own, its log as events, and clients that load it."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

TOKEN = "a token of the tests"
PATIENCE_S = 30.0


class Server:
    """`ctrkit serve` on free ports; a context manager that ends it."""

    def __init__(self, models_dir: Path, *options: str, grpc: bool = False, token: str | None = TOKEN) -> None:
        command = [sys.executable, "-W", "error", "-m", "ctrkit.cli", "serve", str(models_dir), "--port", "0"]
        command += ["--no-pin", "--poll", "0.05", "--drain-delay", "0.3", *options]
        command += ["--grpc-port", "0"] if grpc else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **({} if token is None else {"CTRKIT_TOKEN": token})}
        if token is None:
            environment.pop("CTRKIT_TOKEN", None)
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            listening = self.wait("listening")
        except BaseException:
            self.stop()
            raise
        self.address = listening["http"]
        self.grpc_address = f"127.0.0.1:{listening['grpc']}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                self.lines.append(line.rstrip())
                if line.startswith("{"):
                    self.events.append(json.loads(line))
                self._heard.notify_all()

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

    def client(self) -> http.client.HTTPConnection:
        """A connection of one's own."""
        return http.client.HTTPConnection(self.address, timeout=PATIENCE_S)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """One request on a connection of its own: status, and the JSON of the answer."""
        status, answer, _ = self.exchange(method, path, body, **headers)
        return status, answer

    def exchange(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """The same with the headers of the answer."""
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

    def wait_ready(self) -> None:
        """Until readiness says so."""
        until(lambda: self.call("GET", "/v2/health/ready")[0] == 200)

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
            self._reader.join()
            assert self.process.stderr is not None
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


def binary_body(inputs: dict[str, npt.NDArray[Any]], **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an infer call with binary tensors, and a binary answer asked for."""
    types = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "float64": "FP64"}
    specs = [
        {
            "name": name, "datatype": types[a.dtype.name], "shape": list(a.shape),
            "parameters": {"binary_data_size": a.nbytes},
        }
        for name, a in inputs.items()
    ]  # fmt: skip
    head = json.dumps({"inputs": specs, "parameters": {"binary_data_output": True, **parameters}}).encode()
    body = head + b"".join(a.tobytes() for a in inputs.values())
    return body, {"Inference-Header-Content-Length": str(len(head))}


def binary_scores(answer: http.client.HTTPResponse) -> tuple[str, npt.NDArray[np.float32]]:
    """Version and scores of a binary answer."""
    content = answer.read()
    head = int(answer.headers["Inference-Header-Content-Length"])
    told = json.loads(content[:head])
    return told["model_version"], np.frombuffer(content[head:], np.float32)


class Load:
    """Clients that send the same request again and again until told to stop; a context manager.

    Each keeps its connection. `answers` holds (version, scores), `errors` what went wrong.
    """

    def __init__(
        self, server: Server, body: bytes, headers: dict[str, str], *, clients: int = 4,
        path: str = "/v2/models/tiny/infer", stop_when_not_ready: bool = False, pause_s: float = 0.002,
    ) -> None:  # fmt: skip
        self.answers: list[tuple[str, npt.NDArray[np.float32]]] = []
        self.errors: list[str] = []
        self.statuses: list[int] = []
        self._server, self._body, self._headers, self._path = server, body, headers, path
        self._stop_when_not_ready, self._pause_s = stop_when_not_ready, pause_s
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        client = self._server.client()
        while not self._end.is_set():
            try:
                if self._stop_when_not_ready:
                    client.request("GET", "/v2/health/ready")
                    ready = client.getresponse()
                    ready.read()
                    if ready.status != 200:
                        break
                client.request("POST", self._path, self._body, self._headers)
                answer = client.getresponse()
                self.statuses.append(answer.status)
                if answer.status == 200:
                    self.answers.append(binary_scores(answer))
                else:
                    self.errors.append(f"{answer.status} {answer.read()!r}")
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(repr(error))
                client.close()
            self._end.wait(self._pause_s)
        client.close()

    def wait_answers(self, more: int = 50) -> None:
        """Until so many more have come."""
        have = len(self.answers)
        until(lambda: len(self.answers) >= have + more)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def versions_of(answers: Iterable[tuple[str, Any]]) -> set[str]:
    """Versions that answered."""
    return {version for version, _ in answers}


def check_scores(answers: Sequence[tuple[str, npt.NDArray[np.float32]]], expected: dict[str, Any]) -> None:
    """Every answer's scores are those of the version that it names."""
    for version, scores in answers:
        np.testing.assert_array_equal(scores, expected[version], err_msg=f"version {version}")
