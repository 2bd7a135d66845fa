"""What became of the requests of one load, and when."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrkit_serving.latency import quantiles


@dataclass
class Answers:
    """What came back, one entry a request in the order of the answers; times in milliseconds."""

    status: list[int] = field(default_factory=list)
    """As of HTTP."""
    from_due_ms: list[float] = field(default_factory=list)
    """Since the request was due, whenever it could be sent: what a user waits for."""
    from_sent_ms: list[float] = field(default_factory=list)
    """Since it was sent: what most load generators tell, and where a stall hides."""
    bodies: list[bytes] = field(default_factory=list)
    """Of status 200, if they are kept."""
    lost: int = 0
    """Requests whose connection ended before their answer, or that found none in ten seconds."""
    seconds: float = 0.0

    def latency(self, status: int = 200, *, from_due: bool = True) -> npt.NDArray[np.float64]:
        """Latencies of the answers of one status."""
        chosen = np.array(self.status, np.int64) == status
        found: npt.NDArray[np.float64] = np.array(self.from_due_ms if from_due else self.from_sent_ms)[chosen]
        return found

    def share(self, status: int) -> float:
        """Share of one status among all requests."""
        return self.status.count(status) / max(1, len(self.status) + self.lost)

    def as_dict(self) -> dict[str, Any]:
        """As a point of a curve. Requests that queue behind each other are not independent, so that under a high load
        the intervals of the percentiles are too narrow.
        """
        due, sent = self.latency(), self.latency(from_due=False)
        offered, answered = len(self.status) + self.lost, self.status.count(200)
        return {
            "offered_rps": offered / self.seconds,
            "answered_rps": answered / self.seconds,
            "samples": answered,
            "latency_ms": quantiles(due).as_dict(),
            "service_ms": quantiles(sent).as_dict(),
            "max_ms": float(due.max(initial=0.0)),
            "shed": self.share(503),
            "failed": offered - answered - self.status.count(503),
        }


def most_within(load: Callable[[float, int], Answers], highest: float, limit_ms: float, steps: int) -> float:
    """The most requests a second that are all answered, with a p99 of latency within a limit; by halving.

    Args:
        load: of a rate and a seed.
        highest: rate to search below.
        limit_ms: of p99.
        steps: loads to try.
    """
    low, high = 0.0, highest
    for step in range(steps):
        rate = (low + high) / 2
        answers = load(rate, step)
        good = answers.share(200) == 1 and float(np.quantile(answers.latency(), 0.99)) <= limit_ms
        low, high = (rate, high) if good else (low, rate)
    return low
