"""Trains, is killed at every place where a run may be caught between two files, and goes on; run as a program.

    python -m tests.training.killed_run LOG DIRECTORY

The process itself never computes, so that it can fork: each child trains in its turn. It prints a JSON line for each
place: the child's fate, what lay in the directory then, and whether the run that went on ended equal to an undisturbed
one. (Every file operation of a checkpoint by itself: `tests.training.killed_checkpoint`.)
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from ctrkit.metrics.report import Report
from ctrkit.objectives.objective import Objective
from ctrkit.training import checkpoints, tensor_writer
from ctrkit.training.saved_training import CHECKPOINTS, SavedTraining
from ctrkit.training.trainer import Trainer
from tests.training import small_run

EVALUATIONS = 4


def die() -> NoReturn:
    """As if the machine had lost its power."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die_at(place: str | None, number: int) -> Callable[[], None]:
    """Die at the given time that the run comes by a place; what to call at the place "evaluation"."""
    counts: dict[str, int] = {}

    def passing(name: str) -> bool:
        counts[name] = counts.get(name, 0) + 1
        return name == place and counts[name] == number

    def before(owner: Any, method: str, name: str, act: Callable[..., None] = lambda *_: None) -> None:
        work = getattr(owner, method)

        def watched(*arguments: Any) -> Any:
            if passing(name):
                act(*arguments)
                die()
            return work(*arguments)

        setattr(owner, method, watched)

    def write_half(writer: Any, *_: Any) -> None:
        (writer.directory / "__0_0.distcp").write_bytes(b"half of it")

    before(tensor_writer._Writer, "write_data", "tensors", write_half)
    before(checkpoints, "_complete", "manifest")
    before(checkpoints.Checkpoints, "_remove_superseded", "removal")
    before(SavedTraining, "_write_history", "metrics")
    before(Trainer, "_log", "end of saving")
    return lambda: die() if passing("evaluation") else None


def train(log: Path, directory: Path, place: str | None = None, number: int = 0) -> None:
    """Train; die at the given time that the run comes by a place."""
    at_evaluation = die_at(place, number)
    train_log = small_run.loader(log)
    metric = small_run.mean_logit(log)

    def evaluate(objective: Objective) -> Mapping[str, Report]:
        at_evaluation()
        # the other way round: the first weights are the best, and lie beside the last ones
        return {role: replace(report, gauc=-(report.gauc or 0.0)) for role, report in metric(objective).items()}

    run = small_run.trainer(
        small_run.rocket(), directory, train_log, epochs=2, evaluations_per_epoch=EVALUATIONS // 2, table_l2=1e-3
    )
    run.fit(train_log, evaluate)
    # what the best checkpoint hides: the state at the end
    last = run.saved.checkpoints.latest()
    assert last is not None
    specs = run.saved.checkpoints.open(last).specs
    tensors = {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}
    run.saved.checkpoints.load(last, tensors)
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    last.values["progress"]["seconds"] = 0.0
    for line in (*last.values["history"], *metrics):
        line["seconds"] = 0.0
    torch.save((dict(run.objective.state_dict()), tensors, last.values, metrics), directory / "result.pt")


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


def listing(directory: Path) -> list[str]:
    """What lies in a run's directory and in the folder of its checkpoints."""
    paths = [*directory.iterdir(), *directory.glob(f"{CHECKPOINTS}/*")]
    return sorted(str(path.relative_to(directory)) for path in paths)


def main(log: Path, directory: Path) -> None:
    """Kill at every place."""
    assert in_a_child(lambda: train(log, directory / "undisturbed")) == 0
    expected = result(directory / "undisturbed")
    places = [("evaluation", 1), ("evaluation", 3), ("tensors", 1), ("tensors", 3), ("manifest", 3), ("removal", 3)]
    places += [*(("metrics", i + 1) for i in range(EVALUATIONS)), ("end of saving", 1), ("end of saving", 4)]
    for name, number in places:
        here = directory / f"{name} {number}"

        def killed(here: Path = here, name: str = name, number: int = number) -> None:
            train(log, here, name, number)

        def resumed(here: Path = here) -> None:
            train(log, here)

        fate = in_a_child(killed)
        left = listing(here)
        assert in_a_child(resumed) == 0
        found = {
            "place": f"{name} {number}",
            "fate": fate,
            "left": left,
            "equal": result(here) == expected,
            "after": listing(here) == listing(directory / "undisturbed"),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
