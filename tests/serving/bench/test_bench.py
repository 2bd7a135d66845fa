"""`ctrkit bench`: a stall is seen, scores are checked, a slower model fails its gate."""

import argparse
import gc
import json
import socket
import socketserver
import threading
import time
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.server_process import Server
from ctrkit.errors import UserError
from ctrkit_serving import latency
from ctrkit_serving.bench import in_process
from ctrkit_serving.bench.answers import Answers, most_within
from ctrkit_serving.bench.command import add_options, bench_command, compare, text
from ctrkit_serving.bench.figure import curve_svg
from ctrkit_serving.bench.http_load import open_loop
from ctrkit_serving.bench.machine import environment
from ctrkit_serving.bench.over_http import Server as Target
from tests.serving import tiny


class Clock:
    """Time that passes by itself a little with every look, and by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2e-5
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_cores_are_those_that_a_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert environment()["cores"] == 2


def test_the_open_loop_counts_from_the_time_a_request_was_due() -> None:
    clock = Clock()

    def score(i: int) -> None:
        clock.sleep(0.1 if i == 50 else 1e-4)

    found = in_process.open_loop(score, rate=500, seconds=1.0, clock=clock)
    assert 440 < len(found.status) < 560
    assert found.seconds == pytest.approx(1.0, abs=0.1)
    due, sent = np.array(found.from_due_ms), np.array(found.from_sent_ms)
    assert np.count_nonzero(sent > 1) == 1  # service time knows of one slow request
    assert sent[50] == pytest.approx(100, abs=0.1)
    assert 40 < np.count_nonzero(due > 1) < 90  # all that became due meanwhile waited
    assert np.count_nonzero(due > 50) > 15
    point = found.as_dict()
    assert point["latency_ms"]["p95"] > 10 * point["service_ms"]["p95"]
    assert point["max_ms"] >= 100


def test_every_run_tests_itself() -> None:
    clock = Clock()
    seen = in_process.see_a_stall(clock, clock.sleep)
    assert seen["p95_ms"] > 30
    assert seen["p95_service_ms"] < 1
    with pytest.raises(UserError, match="a stall of 100 ms is not seen"):
        in_process.see_a_stall(clock, lambda _: None)


class Stalling(socketserver.StreamRequestHandler):
    """Answers at once, but for request 100."""

    count = 0

    def handle(self) -> None:
        while True:
            length = 0
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if line == b"":
                return
            self.rfile.read(length)
            Stalling.count += 1
            if Stalling.count == 100:
                time.sleep(0.1)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@contextmanager
def serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[tuple[str, int]]:
    """A server in a thread, which ends whatever its clients leave open."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads, server.block_on_close = True, False
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield "127.0.0.1", server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_stall_of_a_server_is_seen() -> None:
    with serving(Stalling) as place:
        request = Target(*place, "m").request({"ids": np.zeros((1, 1), np.int64)})
        found = open_loop(place, [request], rate=400, seconds=1.0, connections=1)
    assert found.share(200) == 1
    due, sent = found.latency(), found.latency(from_due=False)
    assert np.count_nonzero(due > 30) >= 20  # of about forty that became due meanwhile
    assert np.count_nonzero(sent > 30) < np.count_nonzero(due > 30) / 2
    assert due.max() >= 100


def test_the_most_within_a_limit() -> None:
    def load(rate: float, seed: int) -> Answers:
        return Answers(status=[200] * 10, from_due_ms=[1.0 if rate <= 300 else 9.0] * 10, from_sent_ms=[1.0] * 10)

    assert most_within(load, 1000, 5.0, 12) == pytest.approx(300, abs=1)
    refused = Answers(status=[503], from_due_ms=[1.0], from_sent_ms=[1.0])
    assert most_within(lambda *_: refused, 1000, 5.0, 3) == 0


def run(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return bench_command(parser.parse_args(arguments))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    tiny.make_bundle(models / "tiny" / "1")
    return models


def test_in_process_and_over_http(models: Path, tmp_path: Path) -> None:
    bundle, out = models / "tiny" / "1", tmp_path / "result.json"
    with Server(models, "--workers", "1", "--no-pin") as server:
        server.wait_ready()
        found = run(
            str(bundle), "--server", server.address, "--model", "tiny", "--ads", "2-6", "--repeats", "30",
            "--seconds", "0.05", "--out", str(out),
        )  # fmt: skip
        with pytest.raises(UserError, match="nothing answers 404"):
            run(str(bundle), "--server", server.address, "--model", "nothing", "--repeats", "1", "--seconds", "0")
    assert found["curves"].keys() == {str(bundle), server.address}
    for curve in found["curves"].values():
        assert curve["capacity_rps"] > 0
        assert [point["share"] for point in curve["points"]] == [0.2, 0.4, 0.6, 0.8, 0.9]
        assert all(point["failed"] == 0 for point in curve["points"])
    assert found["curves"][server.address]["score_difference"] <= 1e-6
    assert 2 <= found["ads"]["min"] <= found["ads"]["max"] <= 6
    assert found["self_test"]["p95_ms"] > 10
    assert "under load: at most" in found["text"]
    written = json.loads(out.read_text())
    assert written["machine"].items() >= environment().items()
    assert written["machine"]["versions"]["ctrkit"]
    labels = [element.text for element in ET.fromstring(Path(f"{out}.svg").read_text()).iter() if element.text]
    assert any(label == f"{server.address}: p50" for label in labels)
    again = run(str(bundle), "--repeats", "30", "--seconds", "0", "--baseline", str(out), "--max-ratio", "1000")
    assert {ratio["percentile"] for ratio in again["baseline"]} == {"p50"}


def test_a_server_with_other_scores_is_refused(models: Path, tmp_path: Path) -> None:
    other = tiny.make_bundle(tmp_path / "other", tiny.Weights(seed=3))
    with Server(models, "--workers", "1", "--no-pin") as server:
        server.wait_ready()
        with pytest.raises(UserError, match=r"its scores differ by .* from the bundle's"):
            run(str(other.directory), "--server", server.address, "--model", "tiny", "--repeats", "1", "--seconds", "0")


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nInference-Header-Content-Length: %d\r\n\r\n"
LIES = {
    "no HTTP": (b"hello world\r\n\r\n", "hello world"),
    "not binary": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "answers no 4 scores in binary"),
    "too few": (_HEAD % (10, 2) + b"{}" + bytes(8), "answers no 4 scores in binary"),
    "cut": (_HEAD % (100, 2) + b"{}", "IncompleteRead|timed out"),
    "NaN": (_HEAD % (18, 2) + b"{}" + np.full(4, np.nan, np.float32).tobytes(), "its scores differ by nan"),
}


class Lying(socketserver.StreamRequestHandler):
    """Answers what it was told to, and ends the connection."""

    answer = b""

    def handle(self) -> None:
        length = 0
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        self.rfile.read(length)
        self.wfile.write(self.answer)


def lying(answer: bytes) -> AbstractContextManager[tuple[str, int]]:
    return serving(type("Handler", (Lying,), {"answer": answer}))


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_is_told_at_once(models: Path, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is measured, in words."""
    monkeypatch.setattr(latency, "measure", lambda *_, **__: pytest.fail("measured"))
    answer, message = LIES[lie]
    with lying(answer) as (host, port), pytest.raises(UserError, match=message):
        run(str(models / "tiny" / "1"), "--server", f"{host}:{port}", "--ads", "4")


@pytest.mark.parametrize("answer", [b"hello world\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b""])
def test_what_is_no_answer_is_a_lost_request(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with lying(answer) as place:
        request = Target(*place, "m").request({"ids": np.zeros((1, 1), np.int64)})
        found = open_loop(place, [request], rate=200, seconds=0.2, connections=4)
    assert found.status == []
    assert found.lost > 10
    assert caplog.records == []  # no traceback of asyncio's


def test_a_load_leaves_no_connection_open() -> None:
    """Nor one that was being made when it ended: its server would wait for a request for ever."""
    with lying(b"hello world\r\n\r\n") as place, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        request = Target(*place, "m").request({"ids": np.zeros((1, 1), np.int64)})
        for seed in range(40):
            found = open_loop(place, [request], rate=2000, seconds=0.02, connections=4, seed=seed)
            gc.collect()  # what is open still is said to be
            due = np.random.default_rng(seed).exponential(1 / 2000, 54).cumsum()
            assert (len(found.status), found.lost) == (0, int((due <= 0.02).sum()))  # each is counted once
    assert [str(warning.message) for warning in seen] == []


def test_a_load_of_a_server_that_is_gone_ends_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = listener.getsockname()
    start = time.monotonic()
    found = open_loop(place, [b"GET / HTTP/1.1\r\n\r\n"], rate=100, seconds=0.2)
    assert time.monotonic() - start < 8  # and not the ten seconds that answers have
    assert (found.status, found.as_dict()["answered_rps"]) == ([], 0)
    assert found.lost > 5


def result(p50: float, p99: float | None, control: float = 1.0) -> dict[str, Any]:
    interval = {"p50": [p50 * 0.9, p50 * 1.1], "p95": None, "p99": None if p99 is None else [p99 * 0.5, p99 * 2]}
    one = {"p50": p50, "p95": None, "p99": p99, "interval": interval, "control_ms": {"p50": control}}
    return {"latency_ms": {"bundle": one}}


def test_the_gate_holds_ratios_against_the_control_kernel() -> None:
    before = result(1.0, 2.0)
    found = compare(result(1.4, None), before, 1.2)
    assert [(one["percentile"], one["ratio"]) for one in found] == [("p50", pytest.approx(1.4 * 0.9 / 1.1))]
    with pytest.raises(UserError, match=r"bundle: p50 is at least 1\.31 times the baseline's"):
        compare(result(1.6, None), before, 1.2)
    compare(result(1.6, None, control=1.6), before, 1.2)  # the machine is slower, the model is not
    with pytest.raises(UserError, match=r"p99 is at least 2\.50 times"):
        compare(result(1.0, 20.0), before, 1.2)
    with pytest.raises(UserError, match="--baseline has 0 bundles, this run 1"):
        compare(before, {"latency_ms": {}}, 1.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ads", "0"], "--ads 0: give 1"),
        (["--ads", "9-3"], "--ads 9-3: give 1"),
        (["--seconds", "-1"], "--seconds -1: give 0 to 3600"),
        (["--repeats", "0"], "--repeats 0: give 1"),
        (["--baseline", "nowhere.json"], r"--baseline nowhere\.json: no result of ctrkit bench"),
        (["--repeats", "1", "--seconds", "0", "--server", "ftp://x:1"], "give http://HOST:PORT"),
        (["--repeats", "1", "--seconds", "0", "--server", "x"], "give http://HOST:PORT"),
        (["--repeats", "1", "--seconds", "0", "--server", "http://[::1"], "give http://HOST:PORT"),
        (["--repeats", "1", "--seconds", "0", "--server", ""], "give http://HOST:PORT"),
        (["--repeats", "1", "--seconds", "0", "--server", "127.0.0.1:9", "--model", "m"], "--server 127.0.0.1:9: "),
    ],
)
def test_refuses(models: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(str(models / "tiny" / "1"), *arguments)


def test_too_few_samples_are_said_and_not_drawn() -> None:
    few = Answers(status=[200] * 30, from_due_ms=[1.0] * 30, from_sent_ms=[0.5] * 30, seconds=1.0).as_dict()
    assert few["latency_ms"]["p99"] is None
    root = ET.fromstring(curve_svg("a < b", {"one": [few]}))
    lines = [e.attrib["points"] for e in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [bool(line) for line in lines] == [False, True, True]
    assert "p99 insufficient" in text(
        {
            "ads": {"p50": 400}, "latency_ms": {"one": {**few["latency_ms"], "control_ms": few["latency_ms"]}},
            "curves": {"one": {"capacity_rps": 1, "rps_at_p99_5_ms": 1, "points": [{**few, "shed": 0.1}]}},
        }
    )  # fmt: skip
