"""Requests that wait: bounded, each with a deadline; one that cannot meet it is refused when it comes."""

import math
from collections import deque
from typing import Generic, TypeVar

from ctrkit_serving.server.protocol import RequestError

T = TypeVar("T")
_WEIGHT = 0.1
_OUTLIER = 4.0


class Queue(Generic[T]):
    """First in, first out.

    How long one request takes is estimated from those before: an exponential mean, in which a single one counts at
    most `_OUTLIER` times the mean, so that one stall does not shed what follows it. Into an empty queue every request
    is let, so the estimate can always mend itself.

    Args:
        limit: requests that may wait.
        deadline_s: of a request that has none of its own.
    """

    def __init__(self, limit: int, deadline_s: float) -> None:
        self._limit, self._deadline_s = limit, deadline_s
        self._waiting: deque[T] = deque()
        self._took_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, arrived: float, now: float, timeout_s: float | None) -> float:
        """Time by which a request must be answered.

        Raises:
            RequestError: 503 with Retry-After: the queue is full, or its turn would come too late.
        """
        deadline = arrived + (self._deadline_s if timeout_s is None else timeout_s)
        wait_s = len(self._waiting) * self._took_s
        if len(self._waiting) >= self._limit:
            raise RequestError(503, "queue_full", f"overloaded: {self._limit} requests wait", _seconds(wait_s))
        if self._waiting and now + wait_s + self._took_s > deadline:
            raise RequestError(503, "deadline", f"overloaded: the queue takes {wait_s:.3f} s", _seconds(wait_s))
        return deadline

    def push(self, job: T) -> None:
        """Add one that was admitted."""
        self._waiting.append(job)

    def pop(self) -> T:
        """Take the one whose turn it is."""
        return self._waiting.popleft()

    def took(self, seconds: float) -> None:
        """Tell how long one has held the queue up."""
        if not self._took_s:
            self._took_s = seconds
        self._took_s += _WEIGHT * (min(seconds, _OUTLIER * self._took_s) - self._took_s)


def _seconds(wait_s: float) -> int:
    return max(1, math.ceil(wait_s))
