"""Clients and MLServer for `benchmarks.server`."""

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.server_process import until
from ctrkit.request import Request
from ctrkit.request_encoder import RequestEncoder
from ctrkit_serving.scorer import Scorer

_TYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32"}
_BURST = 20
_RUNTIME = Path(__file__).parent / "peer_mlserver"


def triton_inputs(module: Any, arrays: Mapping[str, npt.NDArray[Any]], **options: Any) -> list[Any]:
    """Arrays as the inputs of tritonclient's `http` or `grpc`."""
    inputs = []
    for name, array in arrays.items():
        entry = module.InferInput(name, list(array.shape), _TYPES[array.dtype.name])
        entry.set_data_from_numpy(array, **options)
        inputs.append(entry)
    return inputs


def encoded(scorer: Scorer, request: Request) -> dict[str, npt.NDArray[Any]]:
    """The request's inputs of the graph: the user's once, the ads' features a row each."""
    return dict(RequestEncoder(scorer.bundle.encoding, ignore_unknown=True).encode(*_sides(request))[0])


def _sides(request: Request) -> tuple[Any, Any, Any]:
    return request.user, request.items, request.context


@dataclass(frozen=True)
class Served:
    """A graph for MLServer, and its requests."""

    graph: Path
    feeds: Sequence[Mapping[str, npt.NDArray[Any]]]


def mlserver_p50_ms(
    python: Path, served: Mapping[str, Served], cores: set[int], repeats: int, ours: Callable[[int], npt.NDArray[Any]]
) -> dict[str, float]:
    """p50 of MLServer's REST (JSON: it has no binary tensors) and gRPC for each graph, and of ours, turn by turn.

    Request i is the same for all, and so must its scores be.
    """
    import tritonclient.grpc as grpc_client
    import tritonclient.http as http_client

    with tempfile.TemporaryDirectory() as directory:
        http_port, grpc_port = _write_settings(Path(directory), served)
        process = _start(python, Path(directory), cores)
        try:
            rest = http_client.InferenceServerClient(f"127.0.0.1:{http_port}")
            grpc = grpc_client.InferenceServerClient(f"127.0.0.1:{grpc_port}")
            until(lambda: _ready(rest, list(served)))
            calls = {"ours": ours}
            for name, one in served.items():
                as_json = [triton_inputs(http_client, f, binary_data=False) for f in one.feeds]
                raw = [triton_inputs(grpc_client, f) for f in one.feeds]
                calls[f"{name}, REST"] = partial(_rest, http_client, rest, name, as_json)
                calls[f"{name}, gRPC"] = partial(_grpc, grpc, name, raw)
            return _interleaved(calls, repeats, len(next(iter(served.values())).feeds))
        finally:
            process.terminate()
            process.wait(30)


def _rest(module: Any, client: Any, model: str, inputs: Sequence[Any], i: int) -> Any:
    wanted = [module.InferRequestedOutput("probability", binary_data=False)]
    return client.infer(model, inputs[i], outputs=wanted).as_numpy("probability")


def _grpc(client: Any, model: str, inputs: Sequence[Any], i: int) -> Any:
    return client.infer(model, inputs[i]).as_numpy("probability")


def _interleaved(calls: Mapping[str, Callable[[int], Any]], repeats: int, requests: int) -> dict[str, float]:
    """Median milliseconds; bursts in random order, since a server scores one request after the other."""
    rng = np.random.default_rng(0)
    took: dict[str, list[float]] = {name: [] for name in calls}
    for first in range(-_BURST, repeats, _BURST):
        for which in rng.permutation(len(calls)):
            name, call = list(calls.items())[which]
            for i in range(first, first + _BURST):
                start = time.perf_counter()
                call(i % requests)
                if i >= 0:
                    took[name].append((time.perf_counter() - start) * 1e3)
    for i in range(requests):
        scores = {name: call(i).ravel() for name, call in calls.items()}
        for found in scores.values():
            np.testing.assert_allclose(found, scores["ours"], rtol=0, atol=2e-6)
    return {name: float(np.median(times)) for name, times in took.items()}


def _ready(client: Any, models: Sequence[str]) -> bool:
    try:
        return all(client.is_model_ready(model) for model in models)
    except Exception:  # it does not listen yet
        return False


def _write_settings(directory: Path, served: Mapping[str, Served]) -> tuple[int, int]:
    ports = [_free_port() for _ in range(3)]
    server = {"parallel_workers": 0, "host": "127.0.0.1", "http_port": ports[0], "grpc_port": ports[1]}
    server |= {"metrics_port": ports[2], "debug": False}
    (directory / "settings.json").write_text(json.dumps(server))
    for name, one in served.items():
        model = {"name": name, "implementation": "runtime.OnnxRuntime", "parameters": {"uri": str(one.graph)}}
        (directory / name).mkdir()
        (directory / name / "model-settings.json").write_text(json.dumps(model))
    return ports[0], ports[1]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _start(python: Path, directory: Path, cores: set[int]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(_RUNTIME), "OMP_NUM_THREADS": "1"}
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        command = [str(python), "-m", "mlserver.cli", "start", str(directory)]
        if (python.parent / "mlserver").exists():
            command = [str(python.parent / "mlserver"), "start", str(directory)]
        log = (directory / "log").open("wb")
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    finally:
        os.sched_setaffinity(0, before)
