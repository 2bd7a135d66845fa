"""Trains, is killed at every place where a run may be caught between two files, and goes on; run as a program.

    python -m tests.training.killed_run LOG DIRECTORY

The process itself never computes, so that it can fork: each child trains in its turn. It prints a JSON line for each
place: the child's fate, what lay in the directory then, and whether the run that went on ended equal to an undisturbed
one.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from ctrkit.metrics.report import Report
from ctrkit.objectives.objective import Objective
from ctrkit.training import checkpoint, trainer
from tests.training import small_run

_write = torch.save
EVALUATIONS = 4


def die() -> NoReturn:
    """As if the machine had lost its power."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def train(log: Path, directory: Path, place: str | None = None, number: int = 0) -> None:
    """Train; die at the given time that the run comes by a place."""
    counts: dict[str, int] = {}

    def passing(name: str) -> bool:
        counts[name] = counts.get(name, 0) + 1
        return name == place and counts[name] == number

    def save(path: Path, content: Any) -> None:
        name = path.stem

        def write(content: Any, file: Any) -> None:
            if passing(f"within {name}"):
                file.write(b"half of it")
                file.flush()
                die()
            _write(content, file)

        checkpoint.torch.save = write  # type: ignore[attr-defined]
        checkpoint.save_checkpoint(path, content)
        if passing(f"after {name}"):
            die()

    setattr(trainer, "save_checkpoint", save)  # noqa: B010
    train_log = small_run.loader(log)
    metric = small_run.mean_logit(log)

    def evaluate(objective: Objective) -> Mapping[str, Report]:
        if passing("evaluation"):
            die()
        return metric(objective)

    run = small_run.trainer(
        small_run.rocket(), directory, train_log, epochs=2, evaluations_per_epoch=EVALUATIONS // 2, table_l2=1e-3
    )
    run.fit(train_log, evaluate)
    # what the best checkpoint hides: the state at the end
    state = checkpoint.load_checkpoint(directory / "last.pt")
    assert state is not None
    state["progress"]["seconds"] = 0.0
    for line in state["history"]:
        line["seconds"] = 0.0
    _write((run.objective.state_dict(), state), directory / "result.pt")


def in_a_child(work: Callable[[], None]) -> int:
    """Exit status of work done in a child."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def result(directory: Path) -> list[Any]:
    """Everything in a result, tensors as bytes."""
    flat, _ = torch.utils._pytree.tree_flatten(torch.load(directory / "result.pt", weights_only=True))
    return [value.double().numpy().tobytes() if isinstance(value, torch.Tensor) else value for value in flat]


def main(log: Path, directory: Path) -> None:
    """Kill at every place."""
    assert in_a_child(lambda: train(log, directory / "undisturbed")) == 0
    expected = result(directory / "undisturbed")
    places = [("evaluation", 1), ("evaluation", 3), ("within best", 1), ("after best", 1), ("within last", 1)]
    places += [("within last", 3), *(("after last", i + 1) for i in range(EVALUATIONS))]
    for name, number in places:
        here = directory / f"{name} {number}"

        def killed(here: Path = here, name: str = name, number: int = number) -> None:
            train(log, here, name, number)

        def resumed(here: Path = here) -> None:
            train(log, here)

        fate = in_a_child(killed)
        left = sorted(path.name for path in here.iterdir())
        assert in_a_child(resumed) == 0
        found = {
            "place": f"{name} {number}",
            "fate": fate,
            "left": left,
            "equal": result(here) == expected,
            "after": sorted(path.name for path in here.iterdir()),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
