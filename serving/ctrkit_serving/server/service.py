"""What a worker does with a request, whichever protocol brought it."""

import asyncio
import contextlib
import hmac
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ctrkit.errors import UserError
from ctrkit_serving.scorer import Float32Array
from ctrkit_serving.server.admission import Queue
from ctrkit_serving.server.board import COUNTS, REASONS, SCORE_EDGES, STAGE_EDGES, Board
from ctrkit_serving.server.model import Model
from ctrkit_serving.server.protocol import RequestError, short
from ctrkit_serving.server.settings import Settings


class Loaded(NamedTuple):
    """A version in this worker, and its row of the board."""

    model: Model
    row: int
    before: tuple[int, ...]
    """`COUNTS` of that row when it was loaded: of a worker that died."""


class Job:
    """A request that waits for its turn; a protocol's own class says how it is read and answered."""

    def __init__(self, arrived: float, loaded: Loaded) -> None:
        self.arrived, self.loaded = arrived, loaded
        self.deadline = self.queued = 0.0
        self.width: str | None = None
        """That it was scored at; None where there is one only."""

    def score(self) -> tuple[float, Float32Array]:
        """Read the request and score it: the time at which it was read, and the scores."""
        raise NotImplementedError

    def answer(self, scores_N: Float32Array) -> None:
        """Send the scores."""
        raise NotImplementedError

    def refuse(self, error: RequestError) -> None:
        """Send an error."""
        raise NotImplementedError

    def timeout_s(self) -> float | None:
        """What its sender gives it, as far as its body tells; known after `score` has read it."""
        return None

    @property
    def gone(self) -> bool:
        """Whether nobody waits for its answer."""
        return False


class Service:
    """Versions, queue and counters of one worker. All of it runs in the worker's event loop.

    One request is scored at a time, in the loop's own thread: what has arrived meanwhile is read before the next one,
    so that it is queued or refused no later than one request's time.
    """

    def __init__(self, settings: Settings, board: Board, slot: int) -> None:
        self.settings, self.board = settings, board
        self.loaded: dict[tuple[str, int], Loaded] = {}
        self.serving: dict[str, int] = {}
        self.draining = False
        self._mine = board.workers[slot : slot + 1]
        self._responses = self._mine["responses"][0]
        self._rows = self._mine["rows"][0]
        self._queue: Queue[Job] = Queue(settings.queue, settings.deadline_ms / 1e3)
        self._pumping = False
        self._turn = 0.0
        self.idle = asyncio.Event()
        self.idle.set()

    def add(self, name: str, version: int, model: Model, row: int) -> None:
        """Have a version, which goes on counting from what its row of the board has."""
        before = tuple(int(self._rows[row][count]) for count in COUNTS)
        self.loaded[name, version] = Loaded(model, row, before)

    def find(self, name: str, version: str | None) -> Loaded:
        """The version that a request means.

        Raises:
            RequestError: 404 for an unknown model or version, 503 for one that is known and not ready.
        """
        if version is None:
            number = self.serving.get(name)
            if number is None:
                raise RequestError(404, "not_found", f"no model '{short(name)}' serves")
        else:
            number = int(version) if version.isascii() and version.isdigit() and len(version) < 19 else -1
        found = self.loaded.get((name, number))
        if found is None:
            versions = ", ".join(self.versions(name)) or "none"
            raise RequestError(
                404, "not_found", f"model '{short(name)}', version {short(version)}: loaded are {versions}"
            )
        return found

    def versions(self, name: str) -> list[str]:
        """Versions of a model that may be asked for, the oldest first."""
        return [str(version) for model, version in sorted(self.loaded) if model == name]

    def check_token(self, authorization: bytes | None) -> None:
        """Raise unless a management call carries the token."""
        token = self.settings.token
        if token is None:
            raise RequestError(403, "unauthorized", "management calls are off: the server was started without a token")
        given = authorization or b""
        if not hmac.compare_digest(given, b"Bearer " + token.encode()):
            raise RequestError(401, "unauthorized", "management calls need the token: 'Authorization: Bearer TOKEN'")

    def admit(self, arrived: float, timeout_s: float | None) -> float:
        """Time by which a request must be answered; raises RequestError if it cannot be."""
        return self._queue.admit(arrived, time.monotonic(), timeout_s)

    def submit(self, job: Job, timeout_s: float | None) -> None:
        """Queue a request, or refuse it at once."""
        try:
            job.deadline = self.admit(job.arrived, timeout_s)
        except RequestError as error:
            self.count(error.reason)
            job.refuse(error)
            return
        job.queued = time.monotonic()
        self._queue.push(job)
        self.idle.clear()
        if not self._pumping:
            self._pumping = True
            self._turn = time.monotonic()
            asyncio.get_running_loop().call_soon(self._pump)

    def count(self, reason: str) -> None:
        """Count an answer by what became of its request."""
        self._responses[REASONS.index(reason)] += 1

    def tick(self) -> None:
        """Put onto the board what is counted elsewhere."""
        self._mine["queued"][0] = len(self._queue)
        for model, row, before in self.loaded.values():
            mine = self._rows[row]
            for name, counted, count in zip(COUNTS, before, model.counts(), strict=True):
                mine[name] = counted + count

    def _pump(self) -> None:
        """Score one request; those that arrive meanwhile are read before the next."""
        job = self._queue.pop()
        tried = True
        try:
            tried = self._serve(job)
        except Exception:  # a defect: this request fails, the next one is served
            self._defect(job)
        now = time.monotonic()
        if tried:  # one that came too late takes no time, which says nothing of the others
            self._queue.took(now - self._turn)
        self._turn = now
        if self._queue:
            asyncio.get_running_loop().call_soon(self._pump)
        else:
            self._pumping = False
            self.idle.set()

    def _serve(self, job: Job) -> bool:
        """Answer a request; False if it was not tried."""
        start = time.monotonic()
        if job.gone:
            return False
        hardly_waited = job.queued + _TRIED_S >= start and job.deadline >= start
        if self._queue.too_late(job.deadline, start) and not hardly_waited:
            self._refuse(job, RequestError(503, "deadline", "overloaded: its deadline passed while it waited", 1))
            return False
        try:
            decoded, scores_N = job.score()
            scored = time.monotonic()
            timeout_s = job.timeout_s()
            if timeout_s is not None and scored > job.arrived + timeout_s:
                raise RequestError(503, "deadline", "overloaded: its timeout passed", 1)
            job.answer(scores_N)
        except UserError as error:
            self._refuse(job, RequestError(400, "bad_request", short(error)))
        except RequestError as error:
            self._refuse(job, error)
        else:
            self._count_scores(job, scores_N, (start, decoded, scored, time.monotonic()))
        return True

    def _refuse(self, job: Job, error: RequestError) -> None:
        self.count(error.reason)
        job.refuse(error)

    def _defect(self, job: Job) -> None:
        with contextlib.suppress(OSError):  # the log may be gone
            traceback.print_exc(file=sys.stderr)
        self._refuse(job, RequestError(500, "internal", "the server failed; its log says how"))

    def _count_scores(self, job: Job, scores_N: Float32Array, times: tuple[float, float, float, float]) -> None:
        start, decoded, scored, end = times
        self._responses[0] += 1
        row = self._rows[job.loaded.row]
        row["requests"] += 1
        row["ads"] += len(scores_N)
        if job.width is not None:
            row["widths"][job.loaded.model.scorer.widths.index(job.width)] += 1
        row["score_sum"] += float(scores_N.sum(dtype=np.float64))
        row["scores"] += np.bincount(np.searchsorted(SCORE_EDGES, scores_N), minlength=len(SCORE_EDGES) + 1)
        took = np.array([start - job.arrived, decoded - start, scored - decoded, end - scored, end - job.arrived])
        row["stage_sum"] += took
        row["stages"][_STAGES, np.searchsorted(STAGE_EDGES, took)] += 1


_STAGES = np.arange(5)
_TRIED_S = 0.001
"""A request that has hardly waited in the queue is tried, however long the last ones took: else nothing would mend the
estimate. How long its body took to arrive says nothing of them.
"""
Manage = Callable[[dict[str, Any], Callable[[int, Any], None]], None]
"""Sends a management call to the supervisor, and calls back with HTTP status and answer."""
