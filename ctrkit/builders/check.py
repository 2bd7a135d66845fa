"""Whether the networks of a model fit each other, told before anything is read or trained."""

from collections.abc import Mapping

import torch

from ctrkit.builders.objective import build_objective
from ctrkit.config.models import MutualLearningConfig
from ctrkit.config.recipe import Recipe
from ctrkit.errors import UserError
from ctrkit.nn.network import Network
from ctrkit.objectives.objective import Objective


def check_networks(recipe: Recipe, model: str, processes: int = 1) -> None:
    """Build the networks of a model, and of those that teach it, without memory and without a log.

    Args:
        recipe: that has the model.
        model: key of [models].
        processes: that are to train it together.

    Raises:
        UserError: layers that are shared, hinted at or sampled do not fit, a lesson that nobody can learn from, or
            networks that so many processes cannot train; what would be said after hours of another model's training.
    """
    one_row = dict.fromkeys(recipe.schema_().tables(), 1)
    with torch.device("meta"):
        objective = build_objective(recipe, model, one_row, frozen=untrained_teachers(recipe, model, one_row))
    if processes > 1:
        _check_processes(recipe, model, objective, processes)


def _check_processes(recipe: Recipe, model: str, objective: Objective, processes: int) -> None:
    if objective.turns > 1:  # DistributedDataParallel wants every parameter in every step
        raise UserError(
            f"model '{model}': networks that learn in turn train in one process, not in {processes}; set "
            'updates = "together"'
        )
    networks = objective.networks()
    if peers_apart(recipe, model, processes):
        if len(networks) != processes:
            raise UserError(
                f"model '{model}': {len(networks)} peers over {processes} processes: each process trains one, so start "
                "as many as peers"
            )
        if len(objective.tables()) < sum(len(network.embeddings) for network in networks.values()):
            raise UserError(f"model '{model}': peers over processes need share = \"none\"")
        return
    lists = sorted({name for embedding in objective.tables() for name in embedding.unpooled})
    if lists:
        raise UserError(
            f"model '{model}': a tower of kind target_attention reads the lists {lists} one by one, which tables of "
            "several processes do not give yet; train this model in one process"
        )


def peers_apart(recipe: Recipe, model: str, processes: int) -> bool:
    """Whether each of several processes trains a network of its own."""
    config = recipe.models[model]
    return isinstance(config, MutualLearningConfig) and config.across_processes and processes > 1


def untrained_teachers(recipe: Recipe, model: str, num_rows: Mapping[str, int]) -> dict[str, Network]:
    """The networks that teach a model, by the names of `Recipe.frozen_teachers`, as they are before training."""
    found = {}
    for name, (teacher, role) in recipe.frozen_teachers(model).items():
        frozen = untrained_teachers(recipe, teacher, num_rows)
        objective = build_objective(recipe, teacher, num_rows, frozen=frozen)
        # by its own name a model teaches through what ships, which may be the mean of its networks
        found[name] = objective.inference_model() if name == teacher else objective.networks()[role]
    return found
