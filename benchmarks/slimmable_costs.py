"""What towers cost: time of a training step, budgets that have to hold."""

import contextlib
import tempfile
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.report import table
from benchmarks.training_steps import Given, UsedUpError
from ctrkit.builders.objective import build_objective
from ctrkit.builders.optimizers import build_optimizers, tower_rates
from ctrkit.data.loader import Loader
from ctrkit.errors import UserError
from ctrkit.run import Run
from ctrkit.slimming.budget import Budget
from ctrkit.slimming.slim import Slim
from ctrkit.slimming.timing import measured_again
from ctrkit.training.saved_training import SavedTraining
from ctrkit.training.trainer import Trainer

_TURNS, _STEPS = 7, 10
"""Of each model, turn and turn about: turns that are timed, but for the first, and the steps of one."""


def budgets(slim: Slim, count: int, ads: int, place: Path) -> list[dict[str, Any]]:
    """Budgets around what the towers take, drawn at random: kept when measured once more in a new process, or refused.

    A budget that is kept by multiplications is no matter of the clock, so latencies alone are drawn.
    """
    rng, front = np.random.default_rng(0), slim.front(Budget("p50", 1.0, ads))
    found: list[dict[str, Any]] = []
    (smallest,), (largest,) = (slim.measured([c], Budget("p50", 1.0, ads)).values() for c in (front[-1], front[0]))
    for index in range(count):
        figure: Any = rng.choice(["p50", "p99"])
        around = (0.7 * smallest.value, 1.5 * largest.value) if figure == "p50" else (smallest.value, 3 * largest.value)
        budget = Budget.parse(f"{figure} <= {rng.uniform(*around):.4f} ms @ {ads} ads")
        try:
            result = slim.choose(budget, place / f"bundle{index}", front)
        except UserError as error:
            found.append({"budget": str(budget), "outcome": "refused", "why": str(error)})
            continue
        again = measured_again(Path(result["bundle"]), slim.run.log.requests, budget)
        outcome = "kept" if again["value"] <= budget.limit else "broken"
        found.append({"budget": str(budget), "outcome": outcome, "widths": result["widths"], "again": again})
    rows = [[each["budget"], each["outcome"], str(each.get("widths", "-"))] for each in found]
    table(["budget", "measured again", "widths"], rows)
    return found


def step_cost(run: Run, model: str, other: str) -> float:
    """Time of a training step of one model over that of another: medians of turns that the trainer takes."""
    loader = Loader(run.log.schema, run.log.files("train"), batch_size=run.recipe.train.batch_size)
    batches = list(islice(loader.epoch(), _STEPS))
    seconds: dict[str, list[float]] = {model: [], other: []}
    with tempfile.TemporaryDirectory() as place:
        trainers = {name: _trainer(run, name, Path(place) / name) for name in seconds}
        for _ in range(_TURNS):
            for name, trainer in trainers.items():
                before = trainer.progress.seconds
                with contextlib.suppress(UsedUpError):
                    trainer.fit(Given(run.log.schema, batches), lambda _: {})
                seconds[name].append(trainer.progress.seconds - before)
    return median(seconds[model][1:]) / median(seconds[other][1:])


def _trainer(run: Run, model: str, place: Path) -> Trainer:
    """Of a model as it is drawn, by its own [train]."""
    config = run.recipe.train_config(model)
    objective = build_objective(run.recipe, model, run.log.encoding.num_rows())
    rates = tower_rates(run.recipe, model, objective)
    optimizers, schedulers, towers = build_optimizers(objective, config, 1000, rates)
    saved = SavedTraining(objective, optimizers, schedulers, directory=place, fingerprint="")
    return Trainer(saved, config, clipped=towers, quiet=True)
