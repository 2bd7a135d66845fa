"""The optimizers of an objective, from a recipe's values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ctrkit.config.recipe import Recipe
from ctrkit.config.train import TrainConfig
from ctrkit.names import tower_of_part
from ctrkit.objectives.objective import Objective
from ctrkit.training.table_optimizer import TableOptimizer


@dataclass(frozen=True)
class TowerRates:
    """Of one tower, where they are not those of [train]."""

    lr: float | None = None
    weight_decay: float | None = None


def tower_rates(recipe: Recipe, model: str, objective: Objective) -> dict[str, TowerRates]:
    """Learning rate and weight decay of a model's towers, by name, where one has its own."""
    found = dict[str, TowerRates]()
    for role, name in recipe.models[model].tower_of.items():
        tower = recipe.towers[name]
        found[objective.tower_name(role)] = TowerRates(tower.lr, tower.weight_decay)
    return found


def build_optimizers(
    objective: Objective, config: TrainConfig, total_steps: int, rates: Mapping[str, TowerRates] | None = None
) -> tuple[list[torch.optim.Optimizer], list[LRScheduler], list[nn.Parameter]]:
    """One optimizer of the towers, one of each embedding's tables, their schedules, and the towers' parameters.

    The gradient of the latter is clipped. Layers that towers share have the rates of the first of them.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for name, tower in objective.towers.items():  # auxiliary heads and projections have the student's rates
        own = (rates or {}).get(tower_of_part(name), TowerRates())
        parameters = [parameter for parameter in tower.parameters() if parameter not in seen]
        seen.update(parameters)
        decay = config.weight_decay if own.weight_decay is None else own.weight_decay
        groups.setdefault((own.lr or config.lr, decay), []).extend(parameters)
    members = [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]
    tower_optimizer = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    optimizers: list[torch.optim.Optimizer] = [
        tower_optimizer(members, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    ]
    optimizers += [
        TableOptimizer(embedding.stacks.values(), method=config.table_optimizer, lr=config.table_lr, l2=config.table_l2)
        for embedding in objective.tables()
        if embedding.tables
    ]
    towers = [parameter for group in groups.values() for parameter in group]

    def factor(step: int) -> float:
        return learning_rate_factor(step, total_steps, config.warmup_steps, config.schedule)

    return optimizers, [LambdaLR(optimizer, factor) for optimizer in optimizers], towers


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """What the learning rate is multiplied by at a step: linear warm-up to 1, then constant, or to 0 at the end."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    match schedule:
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case _:
            return 1.0
