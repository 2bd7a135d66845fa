r"""Which version of which model serves: what is wanted, what was tried, what became of it. No process is started here.

    on the disk -> checking -> loading -> serving -> standby (the version before, kept for a rollback) -> on the disk
                       \-> rejected, with the reason, until its folder changes or a management call asks for it again

A model's highest version that is not rejected is wanted; a management call that names a version pins that one.
"""

from dataclasses import dataclass, field
from typing import Any

from ctrkit_serving.server.board import ROWS
from ctrkit_serving.server.store import Found, Stamp

Key = tuple[str, int]


@dataclass
class Target:
    """A version to be brought into service."""

    found: Found
    same_signature: bool = True
    askers: list[tuple[int, int, int]] = field(default_factory=list)
    """Worker slot, its process, and number of the management call, of those who wait for the outcome."""
    pin_before: int | None = None
    """The model's pin when it was asked for, which holds again if it must not serve."""
    stamp: Stamp = ()
    """Of its folder when its check began."""
    bundle: str = ""
    """Hash of what was checked: workers load nothing else under this number."""

    @property
    def key(self) -> Key:
        """Model and number."""
        return self.found.name, self.found.version


class Versions:
    """The versions of every model."""

    def __init__(self, only: tuple[str, ...]) -> None:
        self._only = only
        self.disk: dict[str, dict[int, Found]] = {}
        self.serving: dict[str, int] = {}
        self.standby: dict[str, int] = {}
        self.loaded: dict[Key, Found] = {}
        self.bundles: dict[Key, str] = {}
        """Hashes of those that are loaded."""
        self.rows: dict[Key, int] = {}
        self.rejected: dict[Key, tuple[Stamp, str]] = {}
        self._changed: dict[Key, Stamp] = {}
        self.pins: dict[str, int] = {}
        self.off: set[str] = set()
        """Models that a management call has unloaded."""
        self.required: set[str] | None = set(only) or None

    def see(self, disk: dict[str, dict[int, Found]]) -> None:
        """Take note of what is on the disk. What is there at first is required for readiness.

        What was rejected has another chance once its folder has changed, and is the same at two looks: copied whole.
        """
        self.disk = {name: found for name, found in disk.items() if not self._only or name in self._only}
        if self.required is None:
            self.required = set(self.disk)
        before, self._changed = self._changed, {}
        for key, (stamp, _) in list(self.rejected.items()):
            found = self.disk.get(key[0], {}).get(key[1])
            now = None if found is None else found.stamp()
            if now is None or (now != stamp and now == before.get(key)):
                del self.rejected[key]
            elif now != stamp:
                self._changed[key] = now

    def wanted(self) -> Target | None:
        """The next version to bring into service, None if all is as it should be."""
        for name, found in self.disk.items():
            if name in self.off:
                continue
            number = self.pins.get(name)
            if number is None:
                good = [n for n in found if (name, n) not in self.rejected]
                number = max(good, default=0)
                if number <= self.serving.get(name, 0):
                    continue
            if number in found and number != self.serving.get(name) and (name, number) not in self.rejected:
                return Target(self.loaded.get((name, number), found[number]))
        return None

    def free_row(self) -> int | None:
        """A row of the board that no loaded version has."""
        return next((row for row in range(ROWS) if row not in self.rows.values()), None)

    def reject(self, target: Target, reason: str) -> None:
        """It must not serve. The pin is what it was before somebody asked for it; without one, a pin on it is lifted,
        so that the highest good version is wanted again.
        """
        name, number = target.key
        self.rejected[target.key] = target.stamp, reason
        self.rows.pop(target.key, None)
        if target.pin_before is not None and self.pins.get(name, number) == number:
            self.pins[name] = target.pin_before
        elif self.pins.get(name) == number:
            del self.pins[name]

    def still_wanted(self, target: Target) -> bool:
        """Whether the model was neither unloaded nor pinned to another version since the target was chosen."""
        name, number = target.key
        return name not in self.off and self.pins.get(name, number) == number

    def give_up(self, target: Target) -> None:
        """It is not brought into service now; it may be later."""
        if target.key not in self.loaded:
            self.rows.pop(target.key, None)

    def forget_standby(self, name: str, number: int) -> bool:
        """A version that stands by can no longer be loaded; False if it is not one that stands by."""
        if self.standby.get(name) != number:
            return False
        del self.standby[name]
        self._forget()
        return True

    def serve(self, target: Target) -> None:
        """It serves from now on; the one before stands by, and the one before that is let go."""
        name, number = target.key
        before = self.serving.get(name)
        if before is not None and before != number:
            self.standby[name] = before
        self.serving[name] = number
        if target.key not in self.loaded:
            self.loaded[target.key], self.bundles[target.key] = target.found, target.bundle
        self.off.discard(name)
        if self.required is not None:
            self.required.add(name)
        self._forget()

    def unload(self, name: str) -> None:
        """Take a model out of service."""
        self.off.add(name)
        self.pins.pop(name, None)
        self.serving.pop(name, None)
        self.standby.pop(name, None)
        (self.required or set()).discard(name)
        self._forget()

    def state(self) -> dict[str, Any]:
        """What the workers are to have loaded and to serve."""
        loaded = [self.order(found, self.bundles[key]) for key, found in self.loaded.items()]
        return {"do": "commit", "serving": self.serving, "loaded": loaded}

    def order(self, found: Found, bundle: str) -> dict[str, Any]:
        """What a worker needs to know to load a version."""
        key = found.name, found.version
        return {
            "name": found.name, "version": found.version, "path": str(found.path), "row": self.rows[key],
            "bundle": bundle,
        }  # fmt: skip

    def index(self, *, ready: bool, busy: Target | None) -> list[dict[str, str]]:
        """As the repository extension has it."""
        entries = []
        for name in sorted(self.disk.keys() | self.serving.keys()):
            for number in sorted(self.disk.get(name, {}).keys() | {n for m, n in self.loaded if m == name}):
                state, reason = self._state_of((name, number), busy)
                if state == "READY" or not ready:
                    entries.append({"name": name, "version": str(number), "state": state, "reason": reason})
        return entries

    def _state_of(self, key: Key, busy: Target | None) -> tuple[str, str]:
        name, number = key
        if busy is not None and busy.key == key:
            return "LOADING", ""
        if key in self.rejected:
            return "UNAVAILABLE", self.rejected[key][1]
        if self.serving.get(name) == number:
            changed = self.disk.get(name, {}).get(number)
            replaced = changed is not None and changed.identity != self.loaded[key].identity
            pinned = "; pinned" if self.pins.get(name) == number else ""
            return "READY", f"serves{pinned}" + (
                "; changed on the disk since: give a new number instead" if replaced else ""
            )
        if key in self.loaded:
            return "READY", "stands by"
        return "UNAVAILABLE", "not loaded"

    def _forget(self) -> None:
        for key in self.loaded.keys() - {*self.serving.items(), *self.standby.items()}:
            del self.loaded[key], self.bundles[key], self.rows[key]  # not the row of a version that is being checked
