"""Saves checkpoints and is killed at every file operation, and at random moments; run as a program.

    python -m tests.training.killed_checkpoint DIRECTORY

The process itself never computes, so that it can fork. It prints a JSON line for each kill: the child's fate, and steps
of the latest and the best checkpoint that another process found afterwards, or what was wrong.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ctrkit.training.checkpoints import Checkpoints, Found

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir")


def tensors(step: int, rows: int) -> dict[str, torch.Tensor]:
    """What a step's checkpoint holds."""
    return {"weight": torch.full((rows, 4), float(step)), "step": torch.tensor(step)}


def save(directory: Path, step: int, *, best: bool, rows: int = 10) -> None:
    """Save a step's checkpoint."""
    Checkpoints(directory).save(step, tensors(step, rows), {"step": step}, best=best)


def die_at(number: int) -> None:
    """From now on the process dies at its given file operation."""
    left = number

    def hook(event: str, _: Any) -> None:
        nonlocal left
        if event in OPERATIONS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def step_of(store: Checkpoints, found: Found | None) -> int:
    """The step of a checkpoint whose content is that step's."""
    assert found is not None
    specs = store.open(found).specs
    into = {name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}
    store.load(found, into)
    expected = tensors(found.step, len(into["weight"]))
    assert all(torch.equal(into[name], expected[name]) for name in expected)
    assert found.values == {"step": found.step}
    return found.step


def look(directory: Path) -> list[int]:
    """Steps of the latest and the best."""
    store = Checkpoints(directory)
    return [step_of(store, store.latest()), step_of(store, store.best())]


def in_a_child(work: Callable[[], Any], seconds: float | None = None) -> tuple[int, Any]:
    """Fate and result of work done in a child, which is killed after some time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(writer)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as file:
        result = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), json.loads(result) if result else None


def twice(directory: Path) -> None:
    """Two checkpoints, the first of them the best."""
    for step in (1, 2):
        Checkpoints(directory, keep=2).save(step, tensors(step, 10), {"step": step}, best=step == 1)


def at_operation(directory: Path, number: int) -> dict[str, Any]:
    """Kill the save of a third one."""

    def saves() -> None:
        die_at(number)
        save(directory, 3, best=True)
        os._exit(0)  # whoever comes here was not killed

    def looks_and_goes_on() -> Any:
        found = look(directory)
        save(directory, 4, best=False)
        return found, sorted(path.name for path in directory.iterdir())

    fate, _ = in_a_child(saves)
    found, after = in_a_child(looks_and_goes_on)[1]
    return {"fate": fate, "found": found, "after": after}


def at_random(directory: Path, seconds: float) -> dict[str, Any]:
    """Kill one of many saves that go on from the last one."""

    def saves() -> None:
        found = Checkpoints(directory).latest()
        for step in range(1 if found is None else found.step + 1, 10**6):
            save(directory, step, best=step % 3 == 1, rows=200_000)

    fate, _ = in_a_child(saves, seconds)
    return {"fate": fate, "found": in_a_child(lambda: look(directory))[1]}


def main(directory: Path) -> None:
    """Kill at every operation, then at random."""
    in_a_child(lambda: twice(directory / "two"))
    for number in range(1000):
        shutil.copytree(directory / "two", directory / f"operation {number}")
        found = at_operation(directory / f"operation {number}", number)
        print(json.dumps(found), flush=True)
        if found["fate"] == 0:
            break
    in_a_child(lambda: save(directory / "random", 1, best=True))
    moments = random.Random(0)
    for _ in range(20):
        print(json.dumps(at_random(directory / "random", moments.uniform(0.02, 0.15))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
