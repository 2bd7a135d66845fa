"""The supervisor where the machine fails it: no log, no file descriptors, no processes, time that stood still."""

import asyncio
import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import server_process
from ctrkit.errors import UserError
from ctrkit_serving.server import control
from ctrkit_serving.server.board import Board, State
from ctrkit_serving.server.deploy import Deployer
from ctrkit_serving.server.settings import Settings
from ctrkit_serving.server.supervisor import STALL_S, Slot, Supervisor, backoff_s
from ctrkit_serving.server.versions import Versions
from ctrkit_serving.server.worker import Worker
from tests.serving.server.harness import Server, push, until
from tests.serving.tiny import make_bundle


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drain_delay_s": float("nan")}, "--drain-delay nan"),
        ({"grace_s": -1.0}, "--grace -1"),
        ({"check_timeout_s": 0.0}, "--check-timeout 0"),
        ({"latency_ads": 0}, "--latency-ads 0"),
        ({"poll_s": float("inf")}, "--poll inf"),
        ({"request_timeout_s": 0.0}, "--request-timeout 0"),
        ({"port": 65536}, "--port 65536"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(tmp_path, **settings).check()


def test_a_bundle_is_no_folder_of_models(models: Path) -> None:
    with pytest.raises(UserError, match="is a bundle; put it into MODELS_DIR/NAME/VERSION/"):
        Settings(models / "tiny" / "1").check()


def test_bundles_in_the_wrong_place_are_told(tmp_path: Path) -> None:
    for name in ("tiny", "my model/1", "other/v1", "other/01", "tiny/.new"):
        make_bundle(tmp_path / name)
    with Server(tmp_path, "--workers", "1", "--model", "other") as server:
        server.wait("no version yet", models=["other"])
        found = {Path(e["path"]).relative_to(tmp_path).as_posix(): e["reason"] for e in server.find("ignored")}
        assert found.keys() == {"tiny", "my model/1", "other/v1", "other/01"}
        assert "MODELS_DIR/NAME/VERSION/" in found["tiny"]
        assert "a model's name has" in found["my model/1"]
        assert "whole number" in found["other/v1"]
        make_bundle(tmp_path / "other" / "latest")
        server.wait("ignored", count=5)


def test_waiting_for_a_worker_that_fails_again_and_again() -> None:
    assert [backoff_s(n) for n in (0, 1, 2, 10, 100_000)] == [0.0, 0.5, 1.0, 10.0, 10.0]


def test_workers_that_stood_still_with_the_supervisor_are_not_stalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a container is paused: all of it comes back at once, and who looks first would find the others dead."""
    supervisor = Supervisor(Settings(tmp_path))
    supervisor.board = Board(1)
    slot = Slot(0, pid=1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    supervisor.board.workers["state"][0] = State.READY
    supervisor.board.workers["beat"][0] = now
    supervisor._beat()
    now += 60.0  # paused
    supervisor._beat()
    assert not supervisor._stalled(slot, now)
    for _ in range(int(STALL_S) + 1):  # the worker does not come back
        now += 1.0
        supervisor._beat()
    assert supervisor._stalled(slot, now)


def test_a_worker_that_cannot_be_forked_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fork() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    supervisor = Supervisor(Settings(tmp_path))
    supervisor.board = Board(1)
    slot = Slot(0)
    supervisor.slots = [slot]
    monkeypatch.setattr(os, "fork", no_fork)
    now = time.monotonic()
    supervisor._start_workers(now)
    assert (slot.pid, slot.failures, slot.end) == (0, 1, None)
    assert slot.start_at == now + backoff_s(1)
    assert supervisor.board.workers["state"][0] == State.ABSENT


def test_a_line_of_the_log_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers write to the same place: a newline of its own may come behind theirs."""
    written: list[str] = []

    class Unbuffered(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Unbuffered())
    Supervisor(Settings(tmp_path)).log("listening", pid=1)
    assert len(written) == 1
    assert json.loads(written[0])["event"] == "listening"
    assert written[0].endswith("}\n")


def test_a_disk_that_is_full_is_told_with_its_place(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    supervisor = Supervisor(Settings(models))
    supervisor.versions = Versions(())
    deployer = Deployer(supervisor)
    deployer.look()
    supervisor.versions.pins["tiny"] = 1
    monkeypatch.setattr(Path, "write_text", full)
    deployer._keep_pins()
    told = json.loads(capsys.readouterr().err)
    assert told["reason"] == f"{models}: No space left on device"


def test_a_worker_tells_of_any_failure_to_load_and_is_replaced_when_it_cannot_obey(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a deployment would wait for it for ever, or the worker for no word at all."""
    settings = Settings(models, pin=False)
    ours, theirs = control.pair()
    with socket.create_server(("127.0.0.1", 0)) as listener, ours, theirs:
        listener.setblocking(False)
        worker = Worker(settings, Board(1), 0, theirs, listener, None)
        version = {"name": "tiny", "version": 1, "path": str(models / "tiny" / "1"), "row": 0}
        serves = {"do": "commit", "serving": {"tiny": 2}, "loaded": [{**version, "version": 2}]}

        def fail(_: object) -> None:
            raise MemoryError("no more")

        monkeypatch.setattr(worker, "_load", fail)
        control.send(ours, {"do": "prepare", "version": version})
        control.send(ours, serves)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(MemoryError):
                asyncio.run(asyncio.wait_for(worker._main({"serving": {}, "loaded": []}), 10))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        heard = []
        while (message := control.receive(ours)) is not None:
            heard.append(message)
            if message["did"] == "prepare":
                break
    assert [message["did"] for message in heard] == ["start", "fail", "prepare"]
    assert heard[1]["reason"] == "MemoryError: no more"


def test_the_server_outlives_its_log(models: Path) -> None:
    """Whoever reads it may die, or its disk be full."""
    command = [sys.executable, "-m", "ctrkit.cli", "serve", str(models), "--port", "0", "--poll", "0.05", "--no-pin"]
    command += ["--workers", "1", "--drain-delay", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        place = json.loads(process.stderr.readline())["http"]
        process.stderr.close()
        push(models, 2)
        until(lambda: _version(place) == "2")
        push(models, 3)
        until(lambda: _version(place) == "3")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(server_process.PATIENCE_S)


def _version(place: str) -> str | None:
    import http.client

    client = http.client.HTTPConnection(place, timeout=server_process.PATIENCE_S)
    try:
        client.request("GET", "/v2/models/tiny")
        answer = client.getresponse()
        content = json.loads(answer.read())
        return content["parameters"]["version"] if answer.status == 200 else None
    finally:
        client.close()


_LIMITED = "import os, resource, sys; n = int(sys.argv[1]); m = int(sys.argv[2]); " + (
    "resource.setrlimit(resource.RLIMIT_NOFILE, (n, m)); os.execv(sys.executable, [sys.executable, *sys.argv[3:]])"
)


def limited(models_dir: Path, soft: int, hard: int) -> server_process.Server:
    python = (sys.executable, "-c", _LIMITED, str(soft), str(hard))
    options = ("--workers", "1", "--no-pin", "--drain-delay", "0.1", "--grace", "1")
    return server_process.Server(models_dir, *options, python=python)


def test_more_connections_than_files(models: Path) -> None:
    """Those that are open are served, the others wait; the worker does not spin, and takes them when it can."""
    with limited(models, 64, 64) as server:
        server.wait_ready()
        clients = [socket.create_connection(server.place) for _ in range(80)]
        until(lambda: any("accept" in line for line in server.lines))
        clients[0].settimeout(20)
        clients[0].sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
        assert clients[0].recv(1000).startswith(b"HTTP/1.1 200 OK")
        before, told = _cpu_s(server.pids()[0]), len(server.lines)
        time.sleep(1.0)
        assert _cpu_s(server.pids()[0]) - before < 0.5
        assert len(server.lines) - told <= 3
        for client in clients[:40]:
            client.close()
        clients[79].settimeout(20)
        clients[79].sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
        assert clients[79].recv(1000).startswith(b"HTTP/1.1 200 OK")
        for client in clients[40:]:
            client.close()


def test_as_many_files_as_connections_need(models: Path) -> None:
    with limited(models, 64, 4096) as server:
        server.wait_ready()
        clients = [socket.create_connection(server.place) for _ in range(100)]
        until(lambda: server.metric('ctrkit_connections{worker="0"}') >= 100)
        for client in clients:
            client.close()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
