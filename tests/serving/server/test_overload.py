"""More than the server can do: what it accepts it answers in time, the rest it refuses at once, and it recovers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.server_bundles import publish
from ctrkit_serving.scorer import Scorer
from ctrkit_serving.server.admission import Queue
from ctrkit_serving.server.protocol import RequestError
from tests.serving.server.harness import Load, Server, binary_body, check_scores
from tests.serving.tiny import CONTEXT, ITEMS, REQUEST, USER, make_bundle


def test_the_queue_refuses_what_it_cannot_serve_in_time() -> None:
    queue: Queue[int] = Queue(limit=10, deadline_s=1.0)
    queue.took(0.2)
    assert queue.admit(arrived=0.0, now=0.0, timeout_s=None) == 1.0
    for i in range(4):
        queue.push(i)
    assert queue.admit(0.0, 0.0, None) == 1.0  # 4 before it and itself, 0.2 s each: just in time
    with pytest.raises(RequestError, match="the queue takes") as late:
        queue.admit(0.0, 0.1, None)
    assert (late.value.status, late.value.reason, late.value.retry_after) == (503, "deadline", 1)
    assert queue.admit(0.0, 0.1, 2.0) == 2.0  # its sender gives it longer
    assert [queue.pop() for _ in range(4)] == [0, 1, 2, 3]
    assert queue.admit(0.0, 0.0, 0.01) == 0.01  # nobody before it: it is tried, and mends the estimate


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
    assert queue.admit(0.0, 0.0, None) == 0.1


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    publish(models, "tiny", 1, make_bundle)
    return models


def big_request(models: Path, ads: int) -> tuple[bytes, dict[str, str], Any]:
    feeds = Scorer.load(models / "tiny" / "1").encode(USER, ITEMS, CONTEXT)
    big = {name: np.repeat(array, ads // len(ITEMS), axis=0) for name, array in feeds.items()}
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
