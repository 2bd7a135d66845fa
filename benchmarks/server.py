"""The server under load: overhead of HTTP, MLServer beside it, saturation, pushes, overload, kills, malformed requests.

36 features of 16, a tower 200-80, 400 ads a request of encoded ids in binary tensors, one worker with one core; the
clients have the others. MLServer serves the plain export of the
same network, and the bundle's graph. Latency under load counts from the time a request was due.
"""

import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import report
from benchmarks.latency_tower import LIGHT, request_of, write_tower
from benchmarks.latency_ways import write_plain_export
from benchmarks.server_bundles import BAD, publish
from benchmarks.server_fuzz import Valid, malformed, send
from benchmarks.server_peers import Served, encoded, mlserver_p50_ms, triton_inputs
from benchmarks.server_process import Server, until
from ctrkit_serving.bench.answers import Answers, most_within
from ctrkit_serving.bench.http_load import closed_loop, open_loop
from ctrkit_serving.bench.over_http import Server as Target
from ctrkit_serving.scorer import Scorer

MODEL, TABLE_MODEL = "tower", "tower_with_item_table"
Result = dict[str, Any]


def main() -> None:
    """Run the parts asked for, print and write the result."""
    parser = report.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this one; can be repeated")
    parser.add_argument("--ads", type=int, default=400, help="ads a request")
    parser.add_argument("--mlserver-python", type=Path, help="Python of an environment with mlserver and onnxruntime")
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), options.ads, quick=options.quick, mlserver=options.mlserver_python)
        found = {}
        for name in options.part or PARTS:
            found[name] = PARTS[name](bench)
            print(name, json.dumps(found[name]), flush=True)
    os.sched_setaffinity(0, cores)
    flat = {key: value for part in found.values() for key, value in part.items() if "speedup" in key or "_ms" in key}
    scalars = {key: value for key, value in flat.items() if isinstance(value, float)}
    report.emit({"benchmark": "server", "quick": options.quick, "ads": options.ads, **scalars, **found}, options.out)


class Bench:
    """What the parts share: a bundle, requests, cores."""

    def __init__(self, directory: Path, ads: int, *, quick: bool, mlserver: Path | None) -> None:
        self.directory, self.ads, self.quick, self.mlserver = directory, ads, quick, mlserver
        self.models = directory / "models"
        self.push(1, partial(write_tower, seed=0))
        self.scorer = Scorer.load(self.models / MODEL / "1")
        rng = np.random.default_rng(1)
        self.requests = [request_of(rng, ads) for _ in range(20)]
        self.feeds = [encoded(self.scorer, r) for r in self.requests]
        cores = sorted(os.sched_getaffinity(0))
        self.server_cores = {cores[0]}
        os.sched_setaffinity(0, set(cores[1:]) or set(cores))

    def push(self, version: int, make: Callable[[Path], Any] | None = None) -> Path:
        """Publish a version: a tower of that seed, unless made otherwise."""
        return publish(self.models, MODEL, version, make or partial(write_tower, seed=version))

    def server(self, *options: str, workers: int = 1, **rest: Any) -> Server:
        """A server on its core."""
        cores = self.server_cores if workers == 1 else None
        fixed = ("--workers", str(workers), "--drain-delay", "0", "--model", MODEL)
        server = Server(self.models, *fixed, *options, cores=cores, **rest)
        server.wait_ready()
        return server

    def raw(self, timeout_ms: int | None = None, which: Sequence[int] = range(20)) -> list[bytes]:
        """Whole HTTP requests."""
        target = Target("127.0.0.1", 0, MODEL)
        return [target.request(self.feeds[i], timeout_ms=timeout_ms) for i in which]

    def capacity(self, server: Server) -> float:
        """Requests a second that a closed loop of 8 gets."""
        closed_loop(server.place, self.raw(), connections=8, seconds=1)
        found = closed_loop(server.place, self.raw(), connections=8, seconds=2 if self.quick else 10)
        return found.status.count(200) / found.seconds


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
            points.append({"share": share, **_point(answers)})
        low = most_within(
            lambda rate, seed: open_loop(server.place, bench.raw(), rate=rate, seconds=seconds, seed=seed),
            capacity, 5.0, 3 if bench.quick else 6,
        )  # fmt: skip
    return {"capacity_rps": capacity, "rps_at_p99_5_ms": low, "curve": points}


def _point(answers: Answers) -> Result:
    due, sent = answers.latency(), answers.latency(from_due=False)
    quantiles = {f"p{p}_ms": float(np.quantile(due, p / 100)) for p in (50, 95, 99)}
    return {
        "rps": len(answers.status) / answers.seconds, **quantiles, "service_p50_ms": float(np.median(sent)),
        "shed": answers.share(503), "lost": answers.lost,
    }  # fmt: skip


def pushes(bench: Bench) -> Result:
    """20 versions, 6 of them bad, pushed under a constant load of half the capacity."""
    good, bad, apart = (4, 2, 1.5) if bench.quick else (14, 6, 3.0)
    kinds = list(BAD)[-bad:]
    aside = bench.directory / "aside"
    numbers = list(range(2, 2 + good + bad))
    bad_numbers = dict(zip(numbers[1 :: max(2, len(numbers) // bad)], kinds, strict=False))
    expected = {1: bench.scorer.score_ids(bench.feeds[0])}
    for number in numbers:
        if number in bad_numbers:
            spoil = BAD[bad_numbers[number]][0]
            publish(aside, MODEL, number, partial(spoil, bench.models / MODEL / "1"))
        else:
            place = publish(aside, MODEL, number, partial(write_tower, seed=number))
            expected[number] = Scorer.load(place).score_ids(bench.feeds[0])
    with bench.server() as server:
        rate = bench.capacity(server) / 2
        raw, seconds = bench.raw(which=[0]), apart * len(numbers) + 3
        quiet = open_loop(server.place, raw, rate=rate, seconds=seconds / 3)

        def decided(number: int) -> bool:
            return bool(server.find("serving", version=number) or server.find("rejected", version=number))

        def push() -> None:
            for number in numbers:
                (aside / MODEL / str(number)).rename(bench.models / MODEL / str(number))
                time.sleep(apart)
                until(partial(decided, number))

        pusher = threading.Thread(target=push)
        pusher.start()
        answers = open_loop(server.place, raw, rate=rate, seconds=seconds, keep_bodies=True)
        pusher.join()
        until(lambda: len(server.find("serving")) + len(server.find("rejected")) == 1 + len(numbers))
        reasons = {bad_numbers[event["version"]]: event["reason"] for event in server.find("rejected")}
        served = sorted(event["version"] for event in server.find("serving"))
    wrong, seen = 0, Counter[int]()
    for body in answers.bodies:
        version = int(json.loads(body[: len(body) - 4 * bench.ads])["model_version"])
        seen[version] += 1
        wrong += not np.array_equal(np.frombuffer(body[-4 * bench.ads :], np.float32), expected[version])
    return {
        "pushed": len(numbers), "rejected": reasons, "expected_bad": sorted(bad_numbers), "served": served,
        "requests": len(answers.status),
        "failed_requests": len(answers.status) - answers.status.count(200) + answers.lost,
        "wrong_version_scores": wrong, "versions_that_answered": len(seen),
        "p99_quiet_ms": float(np.quantile(quiet.latency(), 0.99)),
        "p99_pushing_ms": float(np.quantile(answers.latency(), 0.99)),
        "p50_quiet_ms": float(np.median(quiet.latency())), "p50_pushing_ms": float(np.median(answers.latency())),
    }  # fmt: skip


def reloads(bench: Bench) -> Result:
    """Resident memory over reloads: three versions in turn, so that each is checked and loaded anew."""
    count = 12 if bench.quick else 200
    for version in (1001, 1002, 1003):
        bench.push(version)
    memory = []
    with bench.server("--poll", "0", "--latency-ads", "50", "--max-latency-ratio", "0") as server:
        for i in range(count):
            status, answer = server.manage(f"models/{MODEL}/load", {"version": 1001 + i % 3})
            assert status == 200, answer
            memory.append(server.memory_mib())
    third = count // 3
    return {
        "reloads": count, "memory_mib_first": float(np.median(memory[third : third + 6])),
        "memory_mib_last": float(np.median(memory[-6:])), "memory_mib": memory[:: max(1, count // 20)],
    }  # fmt: skip


def overload(bench: Bench) -> Result:
    """Twice the capacity; each request has 50 ms. Then half the capacity again."""
    deadline, seconds = 50, 5 if bench.quick else 60
    with bench.server() as server:
        capacity = bench.capacity(server)
        raw = bench.raw(deadline)
        answers = open_loop(server.place, raw, rate=2 * capacity, seconds=seconds, connections=200)
        after = open_loop(server.place, raw, rate=capacity / 2, seconds=seconds / 6)
        restarts = server.metric("ctrkit_worker_restarts_total")
    accepted, shed = answers.latency(), answers.latency(503)
    accepted_sent, shed_sent = answers.latency(from_due=False), answers.latency(503, from_due=False)
    return {
        "capacity_rps": capacity, "offered_rps": (len(answers.status) + answers.lost) / answers.seconds,
        "deadline_ms_of_requests": deadline, "accepted": answers.share(200),
        "goodput_rps": len(accepted) / answers.seconds,
        "accepted_p99_ms": float(np.quantile(accepted, 0.99)), "shed_p99_ms": float(np.quantile(shed, 0.99)),
        "accepted_p99_from_sent_ms": float(np.quantile(accepted_sent, 0.99)),
        "shed_p50_from_sent_ms": float(np.median(shed_sent)),
        "shed_p99_from_sent_ms": float(np.quantile(shed_sent, 0.99)),
        "other_statuses": len(answers.status) - len(accepted) - len(shed), "lost": answers.lost,
        "after": _point(after), "restarts": restarts,
    }  # fmt: skip


def kill(bench: Bench) -> Result:
    """kill -9 of one of two workers under load: until not ready, until ready again, requests lost."""
    rounds = 2 if bench.quick else 10
    with bench.server("--no-pin", workers=2) as server:
        rate = 200.0
        lost, not_ready_ms, back_ms = 0, [], []
        for round_ in range(rounds):
            found: list[Answers] = []
            loader = threading.Thread(
                target=lambda seed=round_, found=found: found.append(
                    open_loop(server.place, bench.raw(), rate=rate, seconds=3, seed=seed, connections=8)
                )
            )
            loader.start()
            time.sleep(0.5)
            starts = len(server.find("worker ready"))
            killed = time.perf_counter()
            os.kill(server.pids()[round_ % 2], 9)
            until(lambda: _not_ready(server))
            not_ready_ms.append((time.perf_counter() - killed) * 1e3)
            server.wait("worker ready", count=starts + 1)
            until(lambda: not _not_ready(server))
            back_ms.append((time.perf_counter() - killed) * 1e3)
            loader.join()
            lost += found[0].lost + len(found[0].status) - found[0].status.count(200)
    return {
        "kills": rounds, "lost_requests": lost, "not_ready_after_ms_max": max(not_ready_ms),
        "ready_after_ms_median": float(np.median(back_ms)), "ready_after_ms_max": max(back_ms),
    }  # fmt: skip


def _not_ready(server: Server) -> bool:
    try:
        return not server.ready()
    except OSError:  # a connection that the killed worker had taken
        return True


def malformed_requests(bench: Bench) -> Result:
    """10,000 requests that are wrong; the server's memory before and after, and every 5xx."""
    count = 1000 if bench.quick else 10_000
    rng = np.random.default_rng(0)
    small = request_of(rng, 4)
    valid = Valid(MODEL, encoded(bench.scorer, small), small.to_json())
    statuses: Counter[str] = Counter()
    with bench.server() as server:
        for i in range(2 * count):  # the first half warms every path
            if i == count:
                before = server.memory_mib()
                statuses.clear()
            status = send(server.place, malformed(rng, valid)[1])
            statuses[str(status)] += 1
        after = server.memory_mib()
        restarts = server.metric("ctrkit_worker_restarts_total")
    return {
        "malformed": count, "statuses": dict(sorted(statuses.items())), "restarts": restarts,
        "5xx": sum(number for status, number in statuses.items() if status.startswith("5")),
        "memory_mib_before": before, "memory_mib_after": after,
    }  # fmt: skip


PARTS: dict[str, Callable[[Bench], Result]] = {
    "overhead": overhead, "mlserver": mlserver, "curve": curve, "overload": overload, "pushes": pushes, "kill": kill,
    "malformed": malformed_requests, "reloads": reloads,
}  # fmt: skip
if __name__ == "__main__":
    main()
