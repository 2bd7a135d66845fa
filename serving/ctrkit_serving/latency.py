"""How long a request of N ads takes in process: percentiles with their uncertainty, scorers side by side in one run.

Machines are noisy, so scorers are compared by interleaving them in random order on the same requests, and a control
kernel, fixed numpy work that no model changes, is timed among them: where the control's tail is long, so is everyone's.
This is service time, one request at a time in one thread; what a queue adds under load is the server's matter.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrkit.errors import UserError
from ctrkit.request import Column, Request
from ctrkit_serving.scorer import Scorer

PERCENTILES = (50, 95, 99)
_NORMAL_95 = 1.96
_CONTROL = np.linspace(-3.0, 3.0, 50_000)

Ads = int | tuple[int, int] | None
"""Ads a request: so many, from so many to so many (each number as likely), or as many as the requests have."""


@dataclass(frozen=True)
class Percentile:
    """A percentile of latency and its 95 % interval, in milliseconds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Quantiles:
    """Percentiles of one timing, in milliseconds; None where there are too few samples for an honest number."""

    p50: Percentile | None
    p95: Percentile | None
    p99: Percentile | None

    def as_dict(self) -> dict[str, Any]:
        """`{"p50": ms, ..., "interval": {"p50": [low, high], ...}}`, null for "insufficient"."""
        found = {f"p{p}": getattr(self, f"p{p}") for p in PERCENTILES}
        return {
            **{name: q.value if q else None for name, q in found.items()},
            "interval": {name: [q.low, q.high] if q else None for name, q in found.items()},
        }


@dataclass(frozen=True)
class Latency:
    """What one scorer took."""

    ads: int
    """Their median over the requests."""
    samples: int
    total: Quantiles
    """`Scorer.score`: from raw values to probabilities."""
    graph: Quantiles
    """The graph alone, in ONNX Runtime."""
    control: Quantiles
    """The control kernel in the same run."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it, in milliseconds; the percentiles of the total stand at the top."""
        return {
            "ads": self.ads,
            "samples": self.samples,
            **self.total.as_dict(),
            "graph_ms": self.graph.as_dict(),
            "control_ms": self.control.as_dict(),
        }


def measure(
    scorers: Mapping[str, Scorer],
    requests: Sequence[Request],
    *,
    ads: Ads = 400,
    repeats: int = 1000,
    warmup: int = 50,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Latency]:
    """Latency of each scorer on the same requests, one thread.

    Args:
        scorers: by name.
        requests: real ones; each is resampled to `ads` ads. Rows stay rows, columns columns.
        ads: N.
        repeats: timed calls of each scorer; p99 needs 1000 for a number.
        warmup: calls of each scorer before the clock counts.
        seed: of the resampling and of the order.
        clock: nanoseconds.

    Raises:
        UserError: there is no scorer, no request with an ad, or a request that does not fit a scorer.
    """
    rng = np.random.default_rng(seed)
    sized = sized_requests(requests, ads, rng)
    if not scorers:
        raise UserError("latency needs a scorer")
    median_ads = int(np.median([request.num_ads for request in sized]))
    names = list(scorers)
    total_ns = {name: np.empty(repeats) for name in names}
    graph_ns = {name: np.empty(repeats) for name in names}
    control_ns = np.empty(repeats)
    for step in range(-warmup, repeats):
        request, slot = sized[step % len(sized)], max(step, 0)  # what warm-up writes, step 0 writes over
        for which in rng.permutation(len(names) + 1):
            start = clock()
            if which == len(names):
                control_kernel()
                control_ns[slot] = clock() - start
                continue
            scorer = scorers[names[which]]
            feeds = scorer.encode(request.user, request.items, request.context)
            encoded = clock()
            scorer.run(feeds)
            end = clock()
            total_ns[names[which]][slot] = end - start
            graph_ns[names[which]][slot] = end - encoded
    noise = quantiles(control_ns / 1e6)
    return {
        name: Latency(median_ads, repeats, quantiles(total_ns[name] / 1e6), quantiles(graph_ns[name] / 1e6), noise)
        for name in names
    }


def quantiles(samples_ms: npt.NDArray[np.float64]) -> Quantiles:
    """Percentiles of samples, each with a 95 % interval from order statistics.

    Quantile p of n independent samples lies between those of ranks n p -+ 1.96 sqrt(n p (1 - p)) in 95 of 100 runs.
    Below 10 / (1 - p) samples, fewer than ten lie beyond it: that is too few, and None says so.
    """
    ordered = np.sort(samples_ms)
    return Quantiles(*(_percentile(ordered, p / 100) for p in PERCENTILES))


def _percentile(ordered: npt.NDArray[np.float64], p: float) -> Percentile | None:
    n = len(ordered)
    if n * (1 - p) < 10 - 1e-9:
        return None
    spread = _NORMAL_95 * np.sqrt(n * p * (1 - p))
    low, high = int(max(np.floor(n * p - spread), 1)), int(min(np.ceil(n * p + spread), n))
    rank = int(np.ceil(n * p - 1e-9))
    return Percentile(*(float(ordered[r - 1]) for r in (rank, low, high)))


def control_kernel() -> None:
    """Fixed work that no model changes: no memory to wait for, no thread but the caller's."""
    for _ in range(10):
        np.tanh(_CONTROL)


def sized_requests(requests: Sequence[Request], ads: Ads, rng: np.random.Generator) -> list[Request]:
    """Requests with so many ads each, those without an ad left out; of a range of sizes, at least a hundred requests.

    Raises:
        UserError: no request has an ad, or there is none to score.
    """
    found = [request for request in requests if request.num_ads]
    if not found or (isinstance(ads, int) and ads < 1) or (isinstance(ads, tuple) and not 1 <= ads[0] <= ads[1]):
        raise UserError("latency needs a request with an ad, and at least one ad a request")
    if ads is None:
        return found
    if isinstance(ads, int):
        return [resample(request, ads, rng) for request in found]
    count = max(100, len(found))
    return [resample(found[i % len(found)], int(rng.integers(ads[0], ads[1] + 1)), rng) for i in range(count)]


def resample(request: Request, ads: int, rng: np.random.Generator) -> Request:
    """The same request with `ads` of its ads, drawn without replacement if it has enough; it must have one."""
    n = request.num_ads
    chosen = rng.choice(n, ads, replace=n < ads).tolist()
    items, context = request.items, request.context
    return Request(
        request.user,
        {name: _take(column, chosen) for name, column in items.items()}
        if isinstance(items, Mapping)
        else [items[i] for i in chosen],
        context if isinstance(context, Mapping) else [context[i] for i in chosen],
    )


def _take(column: Column, chosen: list[int]) -> Column:
    return column[chosen] if isinstance(column, np.ndarray) else [column[i] for i in chosen]
