"""Memory that supervisor and workers share: who is alive, what serves, what was counted.

Every field has one writer, so no lock is needed; a reader may see a request counted in one field and not yet in the
next. What a worker counted stays when it dies, and its successor goes on from there.
"""

import mmap
import time
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrkit.manifest import MAX_WIDTHS

ROWS = 64
"""Versions that may be loaded at a time, over all models; each counts into a row of its own."""
STALE_S = 1.0
"""A process whose heart has not beaten for so long is taken for stalled."""
BEAT_S = 0.1

COUNTS = ("values", "unseen", "missing", "table_lookups", "table_misses")
"""What became of feature values, and of ads in the item table; in the order of `Model.counts`."""
STAGES = ("queue", "decode", "score", "encode", "total")
STAGE_EDGES = 1e-3 * np.array([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000])
"""Upper bounds of the buckets of stage times, in seconds."""
SCORE_EDGES = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9])
REASONS = (
    "ok", "bad_request", "unauthorized", "not_found", "method", "timeout", "too_large", "queue_full", "deadline",
    "arriving", "not_ready", "draining", "scoring_failed", "internal",
)  # fmt: skip
"""What became of a request, as metrics name it."""


class State(IntEnum):
    """Of a worker."""

    ABSENT = 0
    STARTING = 1
    READY = 2
    DRAINING = 3


_ROW = np.dtype(
    [
        ("requests", np.int64),
        ("ads", np.int64),
        ("widths", np.int64, MAX_WIDTHS),
        *((name, np.int64) for name in COUNTS),
        ("score_sum", np.float64),
        ("scores", np.int64, len(SCORE_EDGES) + 1),
        ("stage_sum", np.float64, len(STAGES)),
        ("stages", np.int64, (len(STAGES), len(STAGE_EDGES) + 1)),
    ]
)
_WORKER = np.dtype(
    [
        ("pid", np.int64),
        ("beat", np.float64),
        ("state", np.int64),
        ("connections", np.int64),
        ("queued", np.int64),
        ("responses", np.int64, len(REASONS)),
        ("rows", _ROW, ROWS),
    ]
)
_SHARED = np.dtype(
    [
        ("beat", np.float64),
        ("draining", np.int64),
        ("serving", np.int64),
        ("required", np.int64),
        ("restarts", np.int64),
        ("accepted", np.int64),
        ("rejected", np.int64),
        ("reference", np.int64, (ROWS, len(SCORE_EDGES) + 1)),
    ]
)


class Board:
    """Made before the workers are forked.

    `shared` is written by the supervisor: its heartbeat, how many models
    serve and are required, and the scores that each row's drift is told from. `workers[slot]` is written by a worker
    (state, pid and beat also by the supervisor while the slot has none).
    """

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, _SHARED.itemsize + workers * _WORKER.itemsize)
        self.shared: npt.NDArray[Any] = np.frombuffer(self._memory, _SHARED, 1)[0:1].reshape(())
        self.workers: npt.NDArray[Any] = np.frombuffer(self._memory, _WORKER, workers, _SHARED.itemsize)

    def not_ready(self) -> str | None:
        """Why the server is not ready, None if it is. No model, no worker, or a stalled one: not ready."""
        shared, workers, now = self.shared, self.workers, time.monotonic()
        if shared["draining"]:
            return "draining"
        if not shared["required"] or shared["serving"] < shared["required"]:
            return f"{shared['serving']} of {shared['required']} models have a version that serves"
        if now - shared["beat"] > STALE_S:
            return "the supervisor has stalled or died"
        for slot in range(len(workers)):
            if workers["state"][slot] != State.READY:
                return f"worker {slot} is not up"
            if now - workers["beat"][slot] > STALE_S:
                return f"worker {slot} has stalled"
        return None

    def clear_row(self, row: int, reference: npt.NDArray[np.int64]) -> None:
        """Give a row to a new version, whose drift is told from `reference`."""
        self.workers["rows"][:, row] = np.zeros((), _ROW)
        self.shared["reference"][row] = reference

    def row_totals(self, row: int) -> Any:
        """Sums of a row over the workers, by field."""
        rows = self.workers["rows"][:, row]
        return {name: rows[name].sum(axis=0) for name in _ROW.names or ()}
