"""A training as its directory keeps it: saved after each evaluation, and gone on with after it was killed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from ctrkit.atomic import atomic_file, remove_leftovers
from ctrkit.errors import UserError
from ctrkit.objectives.objective import Objective
from ctrkit.training import state
from ctrkit.training.checkpoints import Checkpoints, Found
from ctrkit.training.progress import Progress
from ctrkit.training.ranks import Ranks
from ctrkit.training.stored_tensors import StoredTensors

CHECKPOINTS = "checkpoints"
"""Folder of a training's checkpoints in its directory."""
_METRICS = "metrics.jsonl"


class SavedTraining:
    """What a training is at a moment, and its copies on disk: `checkpoints` and `metrics.jsonl`.

    All ranks call each method together.

    Args:
        objective: what is trained.
        optimizers: of its parameters.
        schedulers: of their learning rates.
        directory: of the training, its alone.
        fingerprint: of all that it depends on; a checkpoint of another fingerprint is not resumed.
        keep: checkpoints that stay, beside the best one.
        device: where the objective is.
        ranks: that train together.
        say: told what is wrong but stops nothing, a line at a time.
    """

    def __init__(
        self,
        objective: Objective,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[LRScheduler],
        *,
        directory: Path,
        fingerprint: str,
        keep: int = 1,
        device: torch.device | None = None,
        ranks: Ranks | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.objective, self.optimizers, self.schedulers = objective, optimizers, schedulers
        self.directory, self.fingerprint = directory, fingerprint
        self.device, self.ranks, self.say = device or torch.device("cpu"), ranks or Ranks(), say
        self.checkpoints = Checkpoints(directory / CHECKPOINTS, keep=keep, ranks=self.ranks, say=say)
        self.progress = Progress()
        self.history: list[dict[str, Any]] = []

    def save(self, *, best: bool) -> None:
        """Keep weights, optimizers, progress and history as they are now.

        Args:
            best: whether the weights are the best so far.

        Raises:
            UserError: a file cannot be written; what was there before is kept.
        """
        random = state.random_state(self.ranks.rank, self.device)
        try:
            self.checkpoints.save(self.progress.step, {**self._tensors(), **random}, self._values(), best=best)
            self._write_history()
        except OSError as error:
            raise UserError(
                f"{self.checkpoints.directory}: the checkpoint of step {self.progress.step} cannot be written "
                f"({error.strerror}); what was there before is kept"
            ) from error

    def resume(self) -> bool:
        """Load the last whole checkpoint, if it is of this training; else remove what lies there.

        Returns:
            Whether there was one.

        Raises:
            UserError: the best weights are missing or damaged.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ranks.on_first(lambda: remove_leftovers(self.directory))
        self.checkpoints.remove_leftovers()
        checkpoints = self.checkpoints.all()
        for index, found in enumerate(checkpoints):
            if found.values.get("fingerprint") != self.fingerprint:
                break
            try:
                self._restore(found)
            except UserError as error:
                self.say(f"  warning: {error}")
                self.checkpoints.remove(found)  # it would stand for the newest when the next ones are saved
                continue
            self._check_best(checkpoints[index:])
            self._write_history()  # it may have been killed before that
            return True
        if checkpoints and checkpoints[0].values.get("fingerprint") != self.fingerprint:
            self.say("  checkpoints of other settings or another log lie there: they are removed")
        self.checkpoints.clear()
        self.ranks.on_first(lambda: (self.directory / _METRICS).unlink(missing_ok=True))
        return False

    def load_best(self) -> None:
        """Load the best weights into the objective, and tell it which network they are the best of."""
        best = self.checkpoints.best()
        assert best is not None, "there is one after the first evaluation"
        self.checkpoints.load(best, state.weights(self.objective), partial=True)
        self.objective.ship(self.progress.best_role)

    def digest(self) -> str:
        """What identifies the best weights, whoever saved them."""
        best = self.checkpoints.best()
        assert best is not None, "there is one after the first evaluation"
        names = state.weights(self.objective).keys()
        return self.ranks.on_first(lambda: StoredTensors(best.path).digest(names))

    def _values(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "progress": vars(self.progress).copy(),
            "history": self.history,
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "optimizers": [
                [{key: group[key] for key in ("lr", "steps") if key in group} for group in optimizer.param_groups]
                for optimizer in self.optimizers
            ],
            "processes": self.ranks.size,
        }

    def _tensors(self) -> state.Tensors:
        return {**state.weights(self.objective), **state.optimizer_state(self.objective, self.optimizers)}

    def _write_history(self) -> None:
        def write() -> None:
            with atomic_file(self.directory / _METRICS) as file:
                file.write("".join(json.dumps(line) + "\n" for line in self.history).encode())

        self.ranks.on_first(write)

    def _restore(self, found: Found) -> None:
        random = state.random_state(self.ranks.rank, self.device)
        same = found.values["processes"] == self.ranks.size
        self.checkpoints.load(found, {**self._tensors(), **(random if same else {})}, partial=True)
        if same:  # other ranks have other generators: they go on from their seeds
            state.set_random_state(random, self.device)
        for optimizer, groups in zip(self.optimizers, found.values["optimizers"], strict=True):
            for group, saved in zip(optimizer.param_groups, groups, strict=True):
                group.update(saved)
        for scheduler, saved in zip(self.schedulers, found.values["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.progress = Progress(**found.values["progress"])
        self.history = found.values["history"]

    def _check_best(self, checkpoints: Sequence[Found]) -> None:
        """See to it that the best weights are whole; the first checkpoint is the one that has been restored."""
        best = next((found for found in checkpoints if found.is_best), None)
        if best is None or best.step != self.progress.best_step:
            raise UserError(
                f"{self.checkpoints.directory}: the best weights, of step {self.progress.best_step}, are missing or "
                f"damaged; delete {self.directory} to train from the start"
            )
        if best is not checkpoints[0]:
            self.checkpoints.open(best)  # reads every byte: damage is not found only after the last step
