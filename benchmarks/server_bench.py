"""What the parts of `benchmarks.server` share: a bundle, requests, cores."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency_tower import request_of, write_tower
from benchmarks.server_bundles import publish
from benchmarks.server_peers import encoded
from benchmarks.server_process import Server
from ctrkit_serving.bench.answers import Answers
from ctrkit_serving.bench.http_load import closed_loop
from ctrkit_serving.bench.over_http import Server as Target
from ctrkit_serving.scorer import Scorer

MODEL = "tower"
Result = dict[str, Any]


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


def point(answers: Answers) -> Result:
    """What one load showed: latency since a request was due, of those that were answered."""
    due, sent = answers.latency(), answers.latency(from_due=False)
    quantiles = {f"p{p}_ms": float(np.quantile(due, p / 100)) for p in (50, 95, 99)}
    return {
        "rps": len(answers.status) / answers.seconds, **quantiles, "service_p50_ms": float(np.median(sent)),
        "shed": answers.share(503), "lost": answers.lost,
    }  # fmt: skip
