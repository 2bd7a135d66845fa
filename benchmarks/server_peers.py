"""Clients and MLServer for `benchmarks.server`."""

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.server_fuzz import http
from benchmarks.server_process import until
from ctrkit.request import Request
from ctrkit.request_encoder import RequestEncoder
from ctrkit_serving.scorer import Scorer

_TYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32"}
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


def infer_http(path: str, arrays: Mapping[str, npt.NDArray[Any]], timeout_ms: int | None = None) -> bytes:
    """An infer call with binary tensors, all of its bytes."""
    specs = [
        {
            "name": name, "datatype": _TYPES[a.dtype.name], "shape": list(a.shape),
            "parameters": {"binary_data_size": a.nbytes},
        }
        for name, a in arrays.items()
    ]  # fmt: skip
    head = json.dumps({"inputs": specs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    if timeout_ms is not None:
        headers["Timeout-Ms"] = str(timeout_ms)
    return http("POST", path, head + b"".join(a.tobytes() for a in arrays.values()), headers)


def mlserver_p50_ms(
    python: Path, graph: Path, feeds: Sequence[Mapping[str, npt.NDArray[Any]]], cores: set[int], repeats: int,
    our_address: str, our_model: str, http_client: Any,
) -> tuple[dict[str, float], float]:  # fmt: skip
    """p50 of MLServer's REST and gRPC, and of ours over HTTP, turn by turn."""
    import tritonclient.grpc as grpc_client

    with tempfile.TemporaryDirectory() as directory:
        http_port, grpc_port = _write_settings(Path(directory), graph)
        process = _start(python, Path(directory), cores)
        try:
            theirs = http_client.InferenceServerClient(f"127.0.0.1:{http_port}")
            theirs_grpc = grpc_client.InferenceServerClient(f"127.0.0.1:{grpc_port}")
            ours = http_client.InferenceServerClient(our_address)
            until(lambda: _ready(theirs))
            as_json = [triton_inputs(http_client, f, binary_data=False) for f in feeds]
            binary = [triton_inputs(http_client, f) for f in feeds]
            grpc = [triton_inputs(grpc_client, f) for f in feeds]
            wanted = [http_client.InferRequestedOutput("probability", binary_data=False)]
            calls: dict[str, Callable[[int], Any]] = {
                "http": lambda i: theirs.infer("graph", as_json[i], outputs=wanted),
                "grpc": lambda i: theirs_grpc.infer("graph", grpc[i]),
                "ours": lambda i: ours.infer(our_model, binary[i]),
            }
            took: dict[str, list[float]] = {name: [] for name in calls}
            for i in range(-20, repeats):
                scores = {}
                for name, call in calls.items():
                    start = time.perf_counter()
                    scores[name] = call(i % len(feeds)).as_numpy("probability").ravel()
                    if i >= 0:
                        took[name].append((time.perf_counter() - start) * 1e3)
                np.testing.assert_allclose(scores["http"], scores["ours"], rtol=0, atol=1e-6)
                np.testing.assert_allclose(scores["grpc"], scores["ours"], rtol=0, atol=1e-6)
        finally:
            process.terminate()
            process.wait(30)
    p50 = {name: float(np.median(times)) for name, times in took.items()}
    return {"http": p50["http"], "grpc": p50["grpc"]}, p50["ours"]


def _ready(client: Any) -> bool:
    try:
        return bool(client.is_model_ready("graph"))
    except Exception:  # it does not listen yet
        return False


def _write_settings(directory: Path, graph: Path) -> tuple[int, int]:
    ports = [_free_port() for _ in range(3)]
    server = {"parallel_workers": 0, "host": "127.0.0.1", "http_port": ports[0], "grpc_port": ports[1]}
    server |= {"metrics_port": ports[2], "debug": False}
    model = {"name": "graph", "implementation": "runtime.OnnxRuntime", "parameters": {"uri": str(graph)}}
    (directory / "settings.json").write_text(json.dumps(server))
    (directory / "model-settings.json").write_text(json.dumps(model))
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
