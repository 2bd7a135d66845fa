"""Whether the networks of a model fit each other, told before anything is read or trained."""

from collections.abc import Mapping

import torch

from ctrkit.builders.objective import build_objective
from ctrkit.config import Recipe
from ctrkit.nn.network import Network


def check_networks(recipe: Recipe, model: str) -> None:
    """Build the networks of a model, and of those that teach it, without memory and without a log.

    Raises:
        UserError: layers that are shared, hinted at or sampled do not fit, or a lesson that nobody can learn from;
            what building them after hours of another model's training would say.
    """
    one_row = dict.fromkeys(recipe.schema_().tables(), 1)
    with torch.device("meta"):
        build_objective(recipe, model, one_row, frozen=untrained_teachers(recipe, model, one_row))


def untrained_teachers(recipe: Recipe, model: str, num_rows: Mapping[str, int]) -> dict[str, Network]:
    """The networks that teach a model, by the names of `Recipe.frozen_teachers`, as they are before training."""
    found = {}
    for name, (teacher, role) in recipe.frozen_teachers(model).items():
        frozen = untrained_teachers(recipe, teacher, num_rows)
        found[name] = build_objective(recipe, teacher, num_rows, frozen=frozen).networks()[role]
    return found
