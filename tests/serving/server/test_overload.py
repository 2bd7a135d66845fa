"""More than the server can do: what it accepts it answers in time, the rest it refuses at once, and it recovers."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.server_bundles import publish
from ctrkit_serving.scorer import Scorer
from ctrkit_serving.server.admission import Queue
from ctrkit_serving.server.board import Board
from ctrkit_serving.server.protocol import RequestError
from ctrkit_serving.server.service import Job, Loaded, Service
from ctrkit_serving.server.settings import Settings
from tests.serving.server.harness import Load, Server, binary_body, check_scores
from tests.serving.tiny import CONTEXT, ITEMS, REQUEST, USER, make_bundle


def test_the_queue_refuses_what_it_cannot_serve_in_time() -> None:
    queue: Queue[int] = Queue(limit=10, deadline_s=1.0)
    queue.took(0.16)
    assert queue.admit(arrived=0.0, now=0.0, timeout_s=None) == 0.85  # the rest is for the way here and back
    for i in range(4):
        queue.push(i)
    assert queue.admit(0.0, 0.0, None) == 0.85  # 4 before it and itself, 0.16 s each: just in time
    with pytest.raises(RequestError, match="the queue takes") as late:
        queue.admit(0.0, 0.1, None)
    assert (late.value.status, late.value.reason, late.value.retry_after) == (503, "deadline", 1)
    assert queue.admit(0.0, 0.1, 2.0) == 1.7  # its sender gives it longer
    assert [queue.pop() for _ in range(4)] == [0, 1, 2, 3]
    assert queue.admit(0.0, 0.0, 0.01) == pytest.approx(0.0085)  # nobody before it: it is tried, and mends the estimate


def test_the_queue_is_bounded() -> None:
    queue: Queue[int] = Queue(limit=2, deadline_s=1.0)
    for i in range(2):
        queue.admit(0.0, 0.0, None)
        queue.push(i)
    with pytest.raises(RequestError, match="2 requests wait") as full:
        queue.admit(0.0, 0.0, None)
    assert (full.value.status, full.value.reason) == (503, "queue_full")


def test_one_stall_does_not_shed_what_follows() -> None:
    queue: Queue[int] = Queue(limit=100, deadline_s=0.1)
    for _ in range(50):
        queue.took(0.001)
    queue.took(5.0)
    for i in range(20):
        queue.push(i)
    assert queue.admit(0.0, 0.0, None) == pytest.approx(0.085)


class Instant(Job):
    """A job that is scored at once."""

    def __init__(self, arrived: float) -> None:
        super().__init__(arrived, Loaded(cast(Any, SimpleNamespace()), 0, ()))
        self.outcome: Any = None

    def score(self) -> tuple[float, Any]:
        return time.monotonic(), np.zeros(1, np.float32)

    def answer(self, scores_N: Any) -> None:
        self.outcome = 200

    def refuse(self, error: RequestError) -> None:
        self.outcome = error.status


def test_slow_requests_do_not_shut_out_those_whose_bodies_take_a_while_to_arrive(tmp_path: Path) -> None:
    """Nobody else waits, so each is tried, and mends the estimate; but not one whose deadline is over."""

    async def run() -> list[Any]:
        service = Service(Settings(tmp_path, deadline_ms=500.0), Board(1), 0)
        service._queue.took(30.0)
        outcomes = []
        for late_s in (0.0, 0.02, 0.2, 0.6):
            job = Instant(time.monotonic() - late_s)
            service.submit(job, None)
            await service.idle.wait()
            outcomes.append(job.outcome)
        return outcomes

    assert asyncio.run(run()) == [200, 200, 200, 503]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    publish(models, "tiny", 1, make_bundle)
    return models


def big_request(models: Path, ads: int) -> tuple[bytes, dict[str, str], Any]:
    feeds = Scorer.load(models / "tiny" / "1").encode(USER, ITEMS, CONTEXT)
    sides = Scorer.load(models / "tiny" / "1").inputs
    big = {n: np.repeat(a, ads // len(ITEMS) if sides[n].side == "item" else 1, axis=0) for n, a in feeds.items()}
    return (*binary_body(big), np.repeat(Scorer.load(models / "tiny" / "1").score_request(REQUEST), ads // len(ITEMS)))


@pytest.mark.parametrize("options", [("--deadline-ms", "15"), ("--queue", "2")])
def test_twice_the_capacity(models: Path, options: tuple[str, ...]) -> None:
    """Many clients that never wait: far more than one worker can answer in time."""
    body, headers, expected = big_request(models, 8000)
    with Server(models, "--workers", "1", *options) as server:
        server.wait_ready()
        reason = "deadline" if "--deadline-ms" in options else "queue_full"
        with Load(server, body, headers, clients=16, pause_s=0.0) as load:
            load.wait_answers(150)
        shed = [error for error in load.errors if error.startswith("503")]
        assert shed == load.errors
        assert len(shed) > 10
        np.testing.assert_allclose(load.answers[0][1], expected, rtol=0, atol=1e-6)
        check_scores(load.answers, {"1": load.answers[0][1]})
        assert server.metric(f'ctrkit_requests_total{{reason="{reason}"}}') > 10
        assert server.metric('ctrkit_requests_total{reason="ok"}') == len(load.answers)
        assert server.call("POST", "/v2/models/tiny/score", REQUEST.to_json())[0] == 200  # it recovers


def test_retry_after_and_the_deadline_of_a_request(models: Path) -> None:
    body, headers, _ = big_request(models, 8000)
    with Server(models, "--workers", "1", "--queue", "1000") as server:
        server.wait_ready()
        with Load(server, body, headers, clients=8, pause_s=0.0) as load:
            load.wait_answers(40)
            found = [
                server.exchange("POST", "/v2/models/tiny/infer", body, Timeout_Ms="1", **headers) for _ in range(20)
            ]
        refused = [(answer, told) for status, answer, told in found if status == 503]
        assert refused
        assert all(told["Retry-After"] == "1" and "overloaded" in answer["error"] for answer, told in refused)
        assert load.errors == []  # theirs is a second
        status, answer = server.call("POST", "/v2/models/tiny/infer", body, Timeout_Ms="soon", **headers)
        assert (status, answer["error"]) == (400, "header Timeout-Ms is a whole number of milliseconds above zero")
