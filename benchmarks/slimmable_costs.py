"""What towers cost: time of a request fitted to their widths, time of a training step, budgets that have to hold."""

import time
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.report import table
from ctrkit.budget import Budget
from ctrkit.builders.objective import build_objective
from ctrkit.builders.optimizers import build_optimizers, tower_rates
from ctrkit.config import Recipe
from ctrkit.data.loader import Loader
from ctrkit.errors import UserError
from ctrkit.run import Run
from ctrkit.slim import Slim
from ctrkit.towers_timed import measured_again, side_by_side

_STEPS = 60
"""Steps of each model that are timed, turn and turn about."""


class MeasuredCost:
    """Milliseconds of a request as a function of the widths: least squares over towers drawn at random, measured.

    p50 = a + sum b_l c_l + sum d_l c_l c_(l+1): what a layer writes, and what it multiplies; none of it saves time.
    """

    def __init__(self, slim: Slim, ads: int, repeats: int, towers: int = 20) -> None:
        rng = np.random.default_rng(0)
        low, high = (slim.tower.channels(fraction) for fraction in slim.objective.range)
        multiple = slim.tower.multiple
        drawn = {low, high}
        while len(drawn) < min(towers, 4 * len(low) * max(high) // multiple):
            drawn.add(tuple(int(rng.integers(a // multiple, b // multiple + 1)) * multiple or b
                            for a, b in zip(low, high, strict=True)))  # fmt: skip
        widths = sorted(drawn)
        measured = side_by_side(slim.run, slim.networks(widths), ads, repeats)
        p50 = np.array([found.total.p50.value for found in measured.values() if found.total.p50 is not None])
        features = np.stack([self._features(each) for each in widths])
        self._weights = _not_negative(features, p50)
        self.r2 = float(1 - np.var(p50 - features @ self._weights) / np.var(p50))
        self.count = len(widths)

    def _features(self, widths: Sequence[int]) -> np.ndarray[Any, Any]:
        products = [a * b for a, b in pairwise(widths)]
        return np.array([1.0, *widths, *products])

    def __call__(self, widths: tuple[int, ...]) -> float:
        """Milliseconds."""
        return float(self._features(widths) @ self._weights)


def _not_negative(features: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Least squares without the features whose weight would be negative, the most negative one left out first."""
    kept = list(range(features.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(features[:, kept], values, rcond=None)
        worst = int(np.argmin(found))
        if found[worst] >= 0 or len(kept) == 1:
            weights = np.zeros(features.shape[1])
            weights[kept] = found
            return weights
        del kept[worst]


def budgets(slim: Slim, count: int, ads: int, place: Path) -> list[dict[str, Any]]:
    """Budgets around what the towers take, drawn at random: kept when measured once more in a new process, or refused.

    A budget that is kept by multiplications is no matter of the clock, so latencies alone are drawn.
    """
    rng, front = np.random.default_rng(0), slim.front()
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
