"""Management calls at unlucky moments, and odd ones: the supervisor lives, and nobody waits for ever."""

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server_bundles import BAD, publish
from ctrkit_serving.scorer import Scorer
from ctrkit_serving.server.check import NICENESS
from tests.serving.server.harness import Server, has_ended, push, until, version_of
from tests.serving.tiny import REQUEST, Weights, make_bundle


def pin(models_dir: Path, version: int) -> None:
    (models_dir / "tiny" / "PINNED").write_text(f"{version}\n")


@contextmanager
def checking(server: Server, version: int) -> Iterator[int]:
    """Hold the check of a version up meanwhile; gives its process."""
    server.wait("checking", version=version)
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")

    def checkers() -> set[int]:
        """Those that have set to work: one just forked still holds the supervisor's sockets, and would for ever."""
        forked = {int(child) for child in children.read_text().split()} - set(server.pids())
        return {child for child in forked if os.getpriority(os.PRIO_PROCESS, child) == NICENESS}

    until(lambda: bool(checkers()))
    (checker,) = checkers()
    os.kill(checker, signal.SIGSTOP)
    try:
        yield checker
    finally:
        with suppress(ProcessLookupError):  # the server may have ended it
            os.kill(checker, signal.SIGCONT)


def in_background(server: Server, path: str, parameters: dict[str, Any]) -> tuple[threading.Thread, list[Any]]:
    """A management call that waits."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(server.manage(path, parameters)))
    thread.start()
    return thread, answers


ODD: tuple[Any, ...] = (
    {"version": "²"}, {"version": True}, {"version": -1}, {"version": 1.0}, {"version": [1]}, {"version": "9" * 40},
    {"version": "x" * 300_000}, {"note": "x" * 300_000}, {"allow_other_signature": 1},
)  # fmt: skip


def test_odd_parameters_are_the_callers_fault(models: Path) -> None:
    with Server(models, "--workers", "1") as server:
        server.wait_ready()
        for parameters in ODD:
            status, answer = server.manage("models/tiny/load", parameters)
            assert (status, answer["error"]) == (400, "parameters are version (a number) and allow_other_signature")
        assert server.manage("models/tiny/load", {"version": "10"})[0] == 404
        assert server.manage("models/tiny/unload", {"note": "x" * 300_000})[0] == 400  # the last model
        assert server.ready()


def test_the_index_of_thousands_of_versions(models: Path) -> None:
    pin(models, 1)
    for version in range(2, 5002):
        (models / "tiny" / str(version)).mkdir()
        (models / "tiny" / str(version) / "manifest.json").write_text("{}")
    with Server(models, "--workers", "1", "--poll", "5") as server:
        server.wait_ready()
        index = server.index()
        assert list(index) == [str(version) for version in range(1, 5002)]
        assert index["1"] == "READY serves; pinned"
        status, answer = server.manage("models/tiny/load", {"version": 6000})
        assert status == 404
        assert len(answer["error"]) < 2000


def test_unloading_one_model_while_another_is_checked(models: Path) -> None:
    push(models, 1, "other")
    with Server(models, "--workers", "1") as server:
        server.wait_ready()
        push(models, 2)
        with checking(server, 2):
            assert server.manage("models/other/unload") == (200, {})
        server.wait("serving", model="tiny", version=2)
        assert version_of(server) == "2"


def test_an_unloaded_model_does_not_come_back_by_a_check_that_was_under_way(models: Path) -> None:
    push(models, 1, "other")
    with Server(models, "--workers", "1") as server:
        server.wait_ready()
        push(models, 2)
        with checking(server, 2):
            assert server.manage("models/tiny/unload") == (200, {})
        server.wait("given up", version=2)
        assert server.call("GET", "/v2/models/tiny/ready")[0] == 404
        assert not server.find("serving", version=2)
        assert server.manage("models/tiny/load") == (200, {})
        assert version_of(server) == "2"


def test_a_pin_holds_against_a_check_that_was_under_way(models: Path) -> None:
    with Server(models, "--workers", "1") as server:
        server.wait_ready()
        push(models, 2)
        with checking(server, 2):
            assert server.manage("models/tiny/load", {"version": 1}) == (200, {})
        server.wait("given up", version=2)
        assert not server.find("serving", version=2)
        assert server.index() == {"1": "READY serves; pinned", "2": "UNAVAILABLE not loaded"}


@pytest.mark.parametrize("parameters", [{"version": 3}, {}])
def test_a_load_that_fails_leaves_the_pin(models: Path, parameters: dict[str, Any]) -> None:
    """Version 2 was rolled back from: that 3 is broken does not bring it back."""
    push(models, 2)
    pin(models, 1)
    with Server(models, "--workers", "1") as server:
        server.wait_ready()
        publish(models, "tiny", 3, lambda place: BAD["truncated"][0](models / "tiny" / "1", place))
        assert server.manage("models/tiny/load", parameters)[0] == 400
        index = server.index()
        assert index["1"] == "READY serves; pinned"
        assert index["2"] == "UNAVAILABLE not loaded"
    assert (models / "tiny" / "PINNED").read_text() == "1\n"


def test_sigterm_answers_a_load_that_waits_and_keeps_the_pin(models: Path) -> None:
    """Its check is ended, as systemd ends every process of a service: that says nothing of the version."""
    pin(models, 1)
    push(models, 2)
    with Server(models, "--workers", "1", "--drain-delay", "1.5") as server:
        server.wait_ready()
        thread, answers = in_background(server, "models/tiny/load", {"version": 2})
        with checking(server, 2) as checker:
            os.kill(checker, signal.SIGTERM)
            server.process.send_signal(signal.SIGTERM)
            thread.join(10)
            assert answers == [(503, {"error": "the server is draining"})]
            assert server.manage("index") == (503, {"error": "the server is draining"})
            assert server.stop() == 0
        assert not server.find("rejected")
    assert (models / "tiny" / "PINNED").read_text() == "2\n"


def test_a_version_that_is_copied_file_by_file_is_taken_once_it_is_whole(models: Path, tmp_path: Path) -> None:
    whole = push(tmp_path / "aside", 2)
    with Server(models, "--workers", "1") as server:
        server.wait_ready()
        place = models / "tiny" / "2"
        place.mkdir()
        shutil.copy(whole / "manifest.json", place)  # its manifest happens to come first
        server.wait("rejected", version=2)
        assert re.match("UNAVAILABLE .*missing", server.index()["2"])
        shutil.copytree(whole, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        server.wait("serving", version=2)


def test_a_loop_of_links_hides_nothing(models: Path) -> None:
    (models / "loop").symlink_to("loop")
    (models / "tiny" / "7").symlink_to("7")
    with Server(models, "--workers", "1") as server:
        server.wait_ready()


def test_a_worker_comes_back_though_the_version_that_stood_by_is_gone(models: Path) -> None:
    push(models, 2)
    pin(models, 1)
    with Server(models, "--workers", "2") as server:
        server.wait_ready()
        assert server.manage("models/tiny/load") == (200, {})
        assert server.index()["1"] == "READY stands by"
        shutil.rmtree(models / "tiny" / "1")
        os.kill(server.pids()[0], signal.SIGKILL)
        assert "manifest.json" in server.wait("no longer stands by", version=1)["reason"]
        server.wait("worker ready", count=3)
        server.wait_ready()
        assert server.manage("models/tiny/load", {"version": 1})[0] == 404
        assert {version_of(server) for _ in range(10)} == {"2"}


def test_a_version_that_was_replaced_in_place_is_not_served_under_its_number(models: Path) -> None:
    """A worker that comes back would give other scores than its neighbour, by a bundle that nobody checked."""
    expected = Scorer.load(models / "tiny" / "1").score_request(REQUEST).tolist()
    with Server(models, "--workers", "2") as server:
        server.wait_ready()
        make_bundle(models / "tiny" / "1", Weights(2))
        os.kill(server.pids()[0], signal.SIGKILL)
        server.wait("worker died", count=2)
        assert any("another bundle than the one that was checked" in line for line in server.lines)
        for _ in range(5):
            assert server.call("POST", "/v2/models/tiny/score", REQUEST.to_json())[1]["scores"] == expected
        push(models, 2)  # the way out
        server.wait("serving", version=2)
        server.wait_ready()


def test_nothing_of_the_server_listens_after_its_supervisor_was_killed(models: Path) -> None:
    """Not even a check that is under way: the port is free for the next server."""
    with Server(models, "--workers", "1") as server:
        server.wait_ready()
        push(models, 2)
        with checking(server, 2):
            server.process.kill()
            until(lambda: all(map(has_ended, server.pids())))
            port = int(server.address.rpartition(":")[2])
            assert not _listeners(port)


def _listeners(port: int) -> list[str]:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"]
