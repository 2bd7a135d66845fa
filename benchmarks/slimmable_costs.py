"""What towers cost: time of a training step, budgets that have to hold."""

import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.report import table
from ctrkit.builders.objective import build_objective
from ctrkit.builders.optimizers import build_optimizers, tower_rates
from ctrkit.config.recipe import Recipe
from ctrkit.data.loader import Loader
from ctrkit.errors import UserError
from ctrkit.run import Run
from ctrkit.slimming.budget import Budget
from ctrkit.slimming.slim import Slim
from ctrkit.slimming.timing import measured_again

_STEPS = 60
"""Steps of each model that are timed, turn and turn about."""


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


def step_cost(recipe: Recipe, run: Run, model: str, other: str) -> float:
    """Time of a training step of one model over that of another: medians of steps that take turns."""
    loader = Loader(run.log.schema, run.log.files("train"), batch_size=recipe.train.batch_size)
    batches = list(islice(loader.epoch(), 20))
    made = {}
    for name in (model, other):
        objective = build_objective(recipe, name, run.log.encoding.num_rows())
        config = recipe.train_config(name)
        optimizers, _, towers = build_optimizers(objective, config, 1000, tower_rates(recipe, name))
        made[name] = objective, optimizers, towers, config
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for step in range(_STEPS):
        batch = batches[step % len(batches)]
        for name, (objective, optimizers, towers, config) in made.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                losses = objective(batch, step)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(torch.stack(list(losses.values())).sum(0).mean())
            torch.nn.utils.clip_grad_norm_(towers, config.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
            seconds[name].append(time.perf_counter() - start)
    return median(seconds[model][10:]) / median(seconds[other][10:])
