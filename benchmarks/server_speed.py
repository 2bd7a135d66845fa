"""How fast the server is: overhead of HTTP, MLServer beside it, the saturation curve."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.latency_tower import LIGHT, write_tower
from benchmarks.latency_ways import write_plain_export
from benchmarks.server_bench import MODEL, Bench, Result, point
from benchmarks.server_bundles import publish
from benchmarks.server_peers import Served, mlserver_p50_ms, triton_inputs
from benchmarks.server_process import Server
from ctrkit_serving.bench.answers import most_within
from ctrkit_serving.bench.http_load import open_loop
from ctrkit_serving.scorer import Scorer

TABLE_MODEL = "tower_with_item_table"


def overhead(bench: Bench) -> Result:
    """p50 of tritonclient's call less that of the scorer in this process, turn by turn.

    From encoded features of each ad; and from rows of an item table, which are a tenth of the bytes.
    """
    publish(bench.models, TABLE_MODEL, 1, partial(write_tower, table=2_000 if bench.quick else 200_000))
    table_scorer = Scorer.load(bench.models / TABLE_MODEL / "1")
    assert table_scorer.item_table is not None
    rng, ads = np.random.default_rng(2), len(table_scorer.item_table)
    user = {n: a for n, a in bench.feeds[0].items() if bench.scorer.inputs[n].side != "item"}
    by_row = [{**user, "ads": rng.integers(ads, size=bench.ads)} for _ in bench.feeds]
    with bench.server("--model", TABLE_MODEL, grpc=True) as server:
        features = _overhead(bench, server, MODEL, bench.scorer, bench.feeds)
        table = _overhead(bench, server, TABLE_MODEL, table_scorer, by_row)
    return {
        "features": features, "item_table": table, "http_overhead_ms": features["http_overhead_ms"],
        "item_table_http_overhead_ms": table["http_overhead_ms"],
    }  # fmt: skip


def _overhead(bench: Bench, server: Server, model: str, scorer: Scorer, feeds: Sequence[dict[str, Any]]) -> Result:
    import tritonclient.grpc as grpc_client
    import tritonclient.http as http_client

    repeats = 500 if bench.quick else 5000
    http = http_client.InferenceServerClient(server.address)
    grpc = grpc_client.InferenceServerClient(server.grpc_address)
    http_inputs = [triton_inputs(http_client, arrays) for arrays in feeds]
    grpc_inputs = [triton_inputs(grpc_client, arrays) for arrays in feeds]
    calls: dict[str, Callable[[int], npt.NDArray[Any]]] = {
        "in_process": lambda i: scorer.score_ids(feeds[i]),
        "http": lambda i: http.infer(model, http_inputs[i]).as_numpy("probability"),
        "grpc": lambda i: grpc.infer(model, grpc_inputs[i]).as_numpy("probability"),
    }
    took: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(-50, repeats):
        scores = {}
        for name, call in calls.items():
            start = time.perf_counter()
            scores[name] = call(i % len(feeds))
            if i >= 0:
                took[name].append((time.perf_counter() - start) * 1e3)
        assert all(np.array_equal(found, scores["in_process"]) for found in scores.values())
    http.close()
    grpc.close()
    p50 = {name: float(np.median(times)) for name, times in took.items()}
    return {
        "request_bytes": sum(a.nbytes for a in feeds[0].values()),
        "p50_ms": p50,
        "p99_ms": {name: float(np.quantile(times, 0.99)) for name, times in took.items()},
        "http_overhead_ms": p50["http"] - p50["in_process"],
        "grpc_overhead_ms": p50["grpc"] - p50["in_process"],
    }


def mlserver(bench: Bench) -> Result:
    """The same client and requests against MLServer: the plain export of the network, and our own graph."""
    if bench.mlserver is None:
        return {"mlserver": "not measured: give --mlserver-python"}
    import tritonclient.http as http_client

    plain = bench.directory / "plain.onnx"
    repeated = [{n: np.repeat(a, bench.ads // len(a), axis=0) for n, a in feeds.items()} for feeds in bench.feeds]
    write_plain_export(LIGHT, repeated[0], plain)
    served = {"plain": Served(plain, repeated), "graph": Served(bench.scorer.bundle.model, bench.feeds)}
    with bench.server() as server:
        client = http_client.InferenceServerClient(server.address)
        inputs = [triton_inputs(http_client, arrays) for arrays in bench.feeds]
        p50 = mlserver_p50_ms(
            bench.mlserver, served, bench.server_cores, 100 if bench.quick else 1000,
            lambda i: client.infer(MODEL, inputs[i]).as_numpy("probability"),
        )  # fmt: skip
        client.close()
    return {
        "mlserver_p50_ms": p50,
        "mlserver_speedup": p50["plain, REST"] / p50["ours"],
        "mlserver_grpc_speedup": p50["plain, gRPC"] / p50["ours"],
        "mlserver_same_graph_speedup": p50["graph, REST"] / p50["ours"],
        "mlserver_same_graph_grpc_speedup": p50["graph, gRPC"] / p50["ours"],
    }


def curve(bench: Bench) -> Result:
    """Latency against load, and the most requests a second whose p99 is below 5 ms."""
    seconds = 2 if bench.quick else 20
    with bench.server() as server:
        capacity = bench.capacity(server)
        points = []
        for share in (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2):
            answers = open_loop(server.place, bench.raw(), rate=share * capacity, seconds=seconds)
            points.append({"share": share, **point(answers)})
        low = most_within(
            lambda rate, seed: open_loop(server.place, bench.raw(), rate=rate, seconds=seconds, seed=seed),
            capacity, 5.0, 3 if bench.quick else 6,
        )  # fmt: skip
    return {"capacity_rps": capacity, "rps_at_p99_5_ms": low, "curve": points}
