"""Versions come, go and fail under load; processes die; no request is lost that need not be."""

import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.server_bundles import BAD, publish
from ctrkit_serving.scorer import Scorer
from tests.serving.server.harness import (
    Load,
    Server,
    binary_body,
    check_scores,
    has_ended,
    push,
    until,
    version_of,
    versions_of,
)
from tests.serving.tiny import CONTEXT, ITEMS, REQUEST, USER


def request_of(models_dir: Path) -> tuple[bytes, dict[str, str]]:
    feeds = Scorer.load(models_dir / "tiny" / "1").encode(USER, ITEMS, CONTEXT)
    return binary_body(feeds)


def test_new_versions_under_load_six_bad_ones_and_a_rollback(models: Path, tmp_path: Path) -> None:
    """No request fails, and every answer's scores are those of the version that it names."""
    expected: dict[str, Any] = {"1": Scorer.load(models / "tiny" / "1").score_request(REQUEST)}
    with Server(models, "--workers", "2") as server:
        server.wait_ready()
        with Load(server, *request_of(models)) as load:
            load.wait_answers()
            good = 1
            for number, (kind, (spoil, reason)) in enumerate(BAD.items(), start=2):
                publish(models, "tiny", 2 * number, partial(spoil, models / "tiny" / "1"))
                rejected = server.wait("rejected", version=2 * number)
                assert re.search(reason, rejected["reason"]), (kind, rejected)
                assert server.call("GET", "/v2/models/tiny")[1]["parameters"]["version"] == str(good)
                if number % 2:
                    good = 2 * number + 1
                    expected[str(good)] = Scorer.load(push(models, good)).score_request(REQUEST)
                    server.wait("serving", version=good)
                    load.wait_answers()
            assert good == 15
            assert server.manage("models/tiny/load", {"version": 11}) == (200, {})  # rolled back
            load.wait_answers()
            assert server.call("GET", "/v2/models/tiny")[1]["parameters"]["version"] == "11"
            assert server.call("GET", "/v2/health/ready")[0] == 200
        assert load.errors == []
        check_scores(load.answers, expected)
        assert versions_of(load.answers) == expected.keys()
        index = server.index()
        assert index["11"] == "READY serves; pinned"
        assert index["15"] == "READY stands by"
        assert re.match("UNAVAILABLE .*bytes", index["4"])
        assert server.metric('ctrkit_version_checks_total{result="rejected"}') == 6
        assert server.metric('ctrkit_version_checks_total{result="accepted"}') == len(expected)


def test_a_rollback_survives_a_restart(models: Path) -> None:
    push(models, 3)
    with Server(models, "--workers", "1") as server:
        server.wait_ready()
        assert version_of(server) == "3"
        assert server.manage("models/tiny/load", {"version": 1}) == (200, {})
    with Server(models, "--workers", "1") as server:
        server.wait("pinned", versions={"tiny": 1})
        server.wait_ready()
        push(models, 5)
        assert version_of(server) == "1"
        assert server.index() == {
            "1": "READY serves; pinned",
            "3": "UNAVAILABLE not loaded",
            "5": "UNAVAILABLE not loaded",
        }
        assert server.manage("models/tiny/load") == (200, {})  # follows the newest again
        assert version_of(server) == "5"
        assert server.index()["5"] == "READY serves"
        (models / "tiny" / "PINNED").mkdir()  # it cannot be written
        assert server.manage("models/tiny/load", {"version": 1}) == (200, {})
        assert "PINNED" in server.wait("pins are not kept")["reason"]
        assert version_of(server) == "1"
    (models / "tiny" / "PINNED").rmdir()
    (models / "tiny" / "PINNED").write_text("7\n")  # a version that is gone
    with Server(models, "--workers", "1") as server:
        server.wait_ready()
        assert version_of(server) == "5"


def test_a_killed_worker_is_replaced_and_readiness_tells(models: Path) -> None:
    with Server(models, "--workers", "2") as server:
        server.wait_ready()
        body, headers = request_of(models)
        expected = {"1": Scorer.load(models / "tiny" / "1").score_request(REQUEST)}
        with Load(server, body, headers) as load:
            load.wait_answers()
            killed = server.pids()[0]
            os.kill(killed, signal.SIGSTOP)  # first it only stalls: its heart stops, and readiness with it
            until(lambda: _not_ready(server, "worker 0 has stalled"))
            os.kill(killed, signal.SIGKILL)
            server.wait("worker ready", count=3)
            server.wait_ready()
            load.wait_answers()
        assert server.find("worker died", pid=killed)[0]["signal"] == "SIGKILL"
        assert len(load.errors) <= 4, load.errors  # one a client at most: those whose request that worker had
        check_scores(load.answers, expected)
        assert server.metric("ctrkit_worker_restarts_total") == 1
        assert killed not in server.pids()


def test_what_a_killed_worker_counted_stays(models: Path) -> None:
    """Its successor goes on from there: a counter that falls would be read as a restart of the server."""
    unseen = {"user": USER, "items": [{**ITEMS[0], "item_id": 31337}], "context": CONTEXT}
    names = [f'ctrkit_{name}_total{{model="tiny",version="1"}}' for name in ("unseen_values", "values")]
    with Server(models, "--workers", "1") as server:
        server.wait_ready()
        assert server.call("POST", "/v2/models/tiny/score", unseen)[0] == 200
        once = [server.metric(name) for name in names]
        assert min(once) > 0
        os.kill(server.pids()[0], signal.SIGKILL)
        server.wait("worker ready", count=2)
        server.wait_ready()
        assert [server.metric(name) for name in names] == once
        assert server.call("POST", "/v2/models/tiny/score", unseen)[0] == 200
        assert [server.metric(name) for name in names] == [2 * value for value in once]


def _not_ready(server: Server, reason: str) -> bool:
    client = server.client()
    client.timeout = 0.3  # a stalled worker may have taken the connection
    try:
        client.request("GET", "/v2/health/ready")
        answer = client.getresponse()
        return answer.status == 503 and reason.encode() in answer.read()
    except TimeoutError:
        return False
    finally:
        client.close()


def test_sigterm_under_load_loses_nothing(models: Path) -> None:
    """Clients that ask for readiness, as a load balancer does, see no error until the end."""
    with Server(models, "--workers", "2") as server:
        server.wait_ready()
        with Load(server, *request_of(models), stop_when_not_ready=True) as load:
            load.wait_answers()
            assert server.stop() == 0
        assert load.errors == []
        assert [len(server.find(event)) for event in ("draining", "ended")] == [1, 1]


def test_never_ready_without_a_model_that_serves(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "1") as server:
        server.wait("worker ready")
        assert server.call("GET", "/v2/health/live")[0] == 200
        status, answer = server.call("GET", "/v2/health/ready")
        assert (status, answer["ready"]) == (503, False)
        push(tmp_path, 1)
        server.wait("serving", version=1)
        server.wait_ready()


def test_a_model_that_is_required_and_broken_is_not_ready(models: Path) -> None:
    publish(models, "other", 1, lambda place: BAD["NaN weights"][0](models / "tiny" / "1", place))
    with Server(models, "--workers", "1") as server:
        server.wait("serving", model="tiny")
        server.wait("rejected", model="other")
        assert server.call("GET", "/v2/health/ready")[0] == 503
        assert server.call("GET", "/v2/models/tiny/ready")[0] == 200
        assert server.call("GET", "/v2/models/other/ready")[0] == 404
    with Server(models, "--workers", "1", "--model", "tiny") as server:
        server.wait_ready()


def test_a_worker_that_cannot_load_what_serves_stays_away(models: Path) -> None:
    """The disk lost the version: the others serve on, the server is not ready, and it says why."""
    with Server(models, "--workers", "2") as server:
        server.wait_ready()
        (models / "tiny" / "1" / "model.onnx").unlink()
        os.kill(server.pids()[0], signal.SIGKILL)
        server.wait("worker died", count=2)
        assert server.call("GET", "/v2/health/ready")[0] == 503
        assert any("model.onnx: missing" in line for line in server.lines)


def test_workers_do_not_outlive_the_supervisor(models: Path) -> None:
    with Server(models, "--workers", "2") as server:
        server.wait_ready()
        pids = server.pids()
        server.process.kill()
        until(lambda: all(map(has_ended, pids)))
