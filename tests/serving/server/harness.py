"""A server for tests, and clients that load it."""

import http.client
import json
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from benchmarks import server_process
from benchmarks.server_bundles import publish
from benchmarks.server_process import TOKEN as TOKEN
from benchmarks.server_process import until as until
from tests.serving.tiny import Weights, make_bundle


class Server(server_process.Server):
    """Warnings are errors; workers share the cores; it drains soon."""

    def __init__(self, models_dir: Path, *options: str, **rest: Any) -> None:
        python = (sys.executable, "-W", "error")
        super().__init__(models_dir, "--no-pin", "--drain-delay", "0.3", *options, python=python, **rest)


def push(models_dir: Path, version: int, name: str = "tiny") -> Path:
    """Publish a version of the small bundle, with weights of its own."""
    return publish(models_dir, name, version, lambda place: make_bundle(place, Weights(version)))


def version_of(server: Server, name: str = "tiny") -> str:
    """The version that serves."""
    return str(server.call("GET", f"/v2/models/{name}")[1]["parameters"]["version"])


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or has ended and only waits for its new parent to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


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
