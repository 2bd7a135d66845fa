"""Brings a version into service: checked in a process of its own, loaded by each worker in turn, then served by all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections import deque
from collections.abc import Set
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrkit_serving.server.board import SCORE_EDGES
from ctrkit_serving.server.check import run_child
from ctrkit_serving.server.control import MAX_MESSAGE
from ctrkit_serving.server.pins import Pins
from ctrkit_serving.server.protocol import short
from ctrkit_serving.server.store import misplaced, scan
from ctrkit_serving.server.versions import Target

if TYPE_CHECKING:
    from ctrkit_serving.server.supervisor import Slot, Supervisor

Asker = tuple[int, int, int]
RETRY_S = 5.0
"""After a check that could not be started for want of memory, processes or file descriptors."""
_DRAINING = {"error": "the server is draining"}


class Deployer:
    """One version at a time. Whatever fails leaves the versions that serve as they are."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._target: Target | None = None
        self._asked: deque[Target] = deque()
        self._checker = 0
        self._pipe: int | None = None
        self._result: dict[str, Any] | None = None
        self._deadline = 0.0
        self._to_load: deque[Slot] | None = None
        self._loading: Slot | None = None
        self._pins: Pins | None = None
        self._stopped = False
        self._not_before = 0.0
        self._strays: Set[str] = set()

    def look(self) -> None:
        """See what is on the disk, and at first what was pinned before a restart."""
        versions, models_dir = self._supervisor.versions, self._supervisor.settings.models_dir
        versions.see(scan(models_dir))
        strays = misplaced(models_dir)
        for path in sorted(strays.keys() - self._strays):
            self._supervisor.log("ignored", path=path, reason=strays[path])
        self._strays = strays.keys()
        if self._pins is None:
            absent = sorted((versions.required or set()) - versions.disk.keys())
            if absent or not versions.disk:
                self._supervisor.log("no version yet", models=absent, reason=f"none in {models_dir}/NAME/VERSION/")
            self._pins = Pins(models_dir)
            versions.pins = self._pins.read(versions.disk)
            if versions.pins:
                self._supervisor.log("pinned", versions=versions.pins)

    def step(self, now: float) -> None:
        """Go on, as far as nothing has to be waited for."""
        if self._target is None and now >= self._not_before:
            target = self._asked.popleft() if self._asked else self._supervisor.versions.wanted()
            if target is not None:
                self._begin(target, now)
        elif self._checker and now > self._deadline:
            limit = self._supervisor.settings.check_timeout_s
            self._result = {"ok": False, "reason": f"its check took longer than {limit:g} s"}
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._checker, signal.SIGKILL)
        elif self._to_load is not None:
            self._load_next()

    def stop(self) -> None:
        """End a check that is under way, and say so to those who wait; nothing is told of the version by that."""
        self._stopped = True
        if self._checker:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._checker, signal.SIGKILL)
        for target in (self._target, *self._asked):
            for asker in target.askers if target is not None else ():
                self._supervisor.reply(asker, 503, _DRAINING)

    # what is asked

    def ask(self, asker: Asker, call: dict[str, Any]) -> None:
        """A management call, whose token a worker has checked."""
        supervisor, versions = self._supervisor, self._supervisor.versions
        if self._stopped:
            supervisor.reply(asker, 503, _DRAINING)
            return
        if call["ask"] == "index":
            start = call.get("start", 0)
            if not start:
                self.look()
            entries, following = _page(versions.index(ready=call["ready"], busy=self._target), start)
            supervisor.reply(asker, 200, {"entries": entries, "next": following})
            return
        self.look()
        name = call["name"]
        if call["ask"] == "load":
            self._ask_load(asker, name, **call["parameters"])
        elif name not in versions.serving:
            supervisor.reply(asker, 404, {"error": f"no model '{name}' serves"})
        elif len(versions.serving) == 1:
            supervisor.reply(asker, 400, {"error": f"'{name}' is the last model; stop the server instead"})
        else:
            versions.unload(name)
            self._keep_pins()
            supervisor.publish()
            supervisor.log("unloaded", model=name)
            supervisor.reply(asker, 200, {})

    def _ask_load(self, asker: Asker, name: str, version: int | None, allow_other_signature: bool) -> None:
        """Load the version named, and stay with it; without one, the highest, and follow new ones again."""
        supervisor, versions = self._supervisor, self._supervisor.versions
        on_disk = versions.disk.get(name, {})
        number = version if version is not None else max(on_disk, default=0)
        found = versions.loaded.get((name, number)) or on_disk.get(number)
        if found is None:
            listed = short(", ".join(map(str, sorted(on_disk, reverse=True)))) or "none"
            supervisor.reply(asker, 404, {"error": f"model '{name}' has no such version on the disk; it has {listed}"})
            return
        versions.off.discard(name)
        versions.rejected.pop((name, number), None)
        pin_before = versions.pins.pop(name, None)
        if version is not None:
            versions.pins[name] = number
        self._keep_pins()
        if versions.serving.get(name) == number:
            supervisor.reply(asker, 200, {})
        elif self._target is not None and self._target.key == (name, number):
            self._target.askers.append(asker)
        else:
            self._asked.append(Target(found, not allow_other_signature, [asker], pin_before))

    def _keep_pins(self) -> None:
        assert self._pins is not None
        try:
            self._pins.keep(self._supervisor.versions.pins)
        except OSError as error:  # they hold all the same, until this server ends
            where = error.filename or self._supervisor.settings.models_dir  # a full disk names no file
            self._supervisor.log("pins are not kept", reason=f"{where}: {error.strerror}")

    # the stages

    def _begin(self, target: Target, now: float) -> None:
        supervisor, versions = self._supervisor, self._supervisor.versions
        self._target = target
        target.stamp = target.found.stamp()
        if target.key in versions.loaded:  # it stands by: nothing to check, nothing to load
            self._serve()
            return
        row = versions.free_row()
        if row is None:
            self._fail("too many versions are loaded; unload a model")
            return
        versions.rows[target.key] = row
        name = target.found.name
        serving = versions.serving.get(name)
        arguments = {
            "name": name, "version": target.found.version, "path": target.found.path,
            "serving": None if serving is None else (serving, versions.loaded[name, serving].path),
            "same_signature": target.same_signature,
        }  # fmt: skip
        supervisor.log("checking", model=name, version=target.found.version)
        try:
            self._pipe, writing = os.pipe()
            pid = supervisor.fork()
        except OSError as error:  # no process, memory or file descriptor left: the version is none the worse for it
            self._not_before = now + RETRY_S
            self._give_up(f"it cannot be checked now: {error.strerror}")
            return
        if pid == 0:
            try:
                supervisor.close_listeners()  # it may outlive a supervisor that is killed
                run_child(writing, supervisor.settings, arguments)
            finally:
                os._exit(0)
        os.close(writing)
        self._checker, self._result = pid, None
        self._deadline = now + supervisor.settings.check_timeout_s

    def checker_ended(self, pid: int, status: int) -> None:
        """The checking process has ended: well, or not."""
        if pid != self._checker or self._pipe is None:
            return
        self._checker = 0
        text = os.read(self._pipe, 65536)
        os.close(self._pipe)
        self._pipe = None
        if self._stopped:
            return
        result = self._result or (json.loads(text) if text else None)
        if result is None:
            ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {status >> 8}"
            result = {"ok": False, "reason": f"its check crashed ({ended}): out of memory, or a broken graph"}
        if not result["ok"]:
            self._fail(result["reason"])
            return
        target = self._target
        assert target is not None
        target.bundle = result.pop("bundle")
        row = self._supervisor.versions.rows[target.key]
        self._supervisor.board.clear_row(row, self._reference(target))
        self._supervisor.board.shared["accepted"] += 1
        self._supervisor.log("checked", model=target.found.name, version=target.found.version, **result)
        self._to_load = deque(self._supervisor.ready_slots())
        self._load_next()

    def _reference(self, target: Target) -> Any:
        """Scores so far of the version that serves: what the new one's drift is told from."""
        versions, board = self._supervisor.versions, self._supervisor.board
        serving = versions.serving.get(target.found.name)
        if serving is None:
            return np.zeros(len(SCORE_EDGES) + 1, np.int64)
        return board.row_totals(versions.rows[target.found.name, serving])["scores"]

    def _load_next(self) -> None:
        """Have the next worker load it; one at a time, so that the others have their cores to themselves."""
        if self._loading is not None or self._to_load is None:
            return
        target, supervisor = self._target, self._supervisor
        assert target is not None
        while self._to_load:
            slot = self._to_load.popleft()
            order = supervisor.versions.order(target.found, target.bundle)
            if supervisor.send(slot, {"do": "prepare", "version": order}):
                self._loading = slot
                return
        self._serve()

    def heard(self, slot: Slot, message: dict[str, Any]) -> None:
        """A worker has loaded it, or has failed to."""
        if slot is not self._loading or self._target is None:
            return
        if message["did"] == "fail" and (message["name"], message["version"]) == self._target.key:
            self._fail(message["reason"])
        elif message["did"] == "prepare":
            self._loading = None
            self._load_next()

    def lost(self, slot: Slot) -> None:
        """A worker died: its successor loads what serves by then."""
        if slot is self._loading:
            self._loading = None
        if self._to_load is not None and slot in self._to_load:
            self._to_load.remove(slot)

    def _serve(self) -> None:
        target, supervisor = self._target, self._supervisor
        assert target is not None
        if not supervisor.versions.still_wanted(target):
            self._give_up("it was unloaded, or another version asked for, meanwhile")
            return
        supervisor.versions.serve(target)
        supervisor.publish()
        supervisor.log("serving", model=target.found.name, version=target.found.version)
        self._finish(200, {})

    def _fail(self, reason: str) -> None:
        target, supervisor = self._target, self._supervisor
        assert target is not None
        supervisor.versions.reject(target, reason)
        self._keep_pins()
        supervisor.board.shared["rejected"] += 1
        supervisor.publish()  # workers that have loaded it already let it go
        supervisor.log("rejected", model=target.found.name, version=target.found.version, reason=reason)
        self._finish(400, {"error": reason})

    def _give_up(self, reason: str) -> None:
        """Let the target be, which is no verdict on it."""
        target, supervisor = self._target, self._supervisor
        assert target is not None
        supervisor.versions.give_up(target)
        supervisor.publish()  # workers that have loaded it already let it go
        supervisor.log("given up", model=target.found.name, version=target.found.version, reason=reason)
        self._finish(503, {"error": reason})

    def _finish(self, status: int, answer: dict[str, Any]) -> None:
        assert self._target is not None
        for asker in self._target.askers:
            self._supervisor.reply(asker, status, answer)
        self._target = self._to_load = self._loading = None


def _page(entries: list[dict[str, str]], start: int) -> tuple[list[dict[str, str]], int | None]:
    """As many entries as a message holds, and where the next page begins."""
    end, size = start, 0
    while end < len(entries) and size < MAX_MESSAGE // 2:
        size += len(json.dumps(entries[end]))
        end += 1
    return entries[start:end], end if end < len(entries) else None
