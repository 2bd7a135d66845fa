"""From a recipe's values to modules and optimizers, passed as plain arguments: the only place that knows both."""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ctrkit.config import EmbeddingConfig, PointwiseConfig, Recipe, TowerConfig, TrainConfig
from ctrkit.nn.embedding import Embedding, TableConfig
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.objectives.objective import Objective
from ctrkit.objectives.pointwise import Pointwise
from ctrkit.objectives.rocket_launching import RocketLaunching
from ctrkit.schema import Schema, SequenceFeature
from ctrkit.training.table_optimizer import TableOptimizer


def build_objective(recipe: Recipe, model: str, num_rows: Mapping[str, int], *, sharded: bool = False) -> Objective:
    """The objective of one model, initialised from its seed.

    Args:
        recipe: names towers, embedding and objective.
        model: key of [models].
        num_rows: rows of each embedding table, as the encoding has them.
        sharded: the tables are to be held by several processes (`ctrkit.training.sharding`).
    """
    torch.manual_seed(recipe.train_config(model).seed)
    schema = recipe.schema_()
    embedding = build_embedding(schema, recipe.embedding, num_rows, sharded=sharded)
    config = recipe.models[model]
    if isinstance(config, PointwiseConfig):
        return Pointwise(Network(embedding, build_tower(recipe.towers[config.tower], embedding.out_features)))
    return RocketLaunching(
        embedding,
        light=build_tower(recipe.towers[config.light], embedding.out_features),
        booster=build_tower(recipe.towers[config.booster], embedding.out_features),
        hint_weight=config.hint_weight,
        route=config.route,
    )


def build_embedding(
    schema: Schema, config: EmbeddingConfig, num_rows: Mapping[str, int], *, sharded: bool = False
) -> Embedding:
    """The tables of a schema, drawn from torch's global generator."""
    tables = []
    for name, features in schema.tables().items():
        poolings = {f.pooling for f in features if isinstance(f, SequenceFeature)}
        tables.append(
            TableConfig(
                name=name,
                num_rows=num_rows[name],
                dim=config.dims.get(name, config.dim),
                features=tuple(f.name for f in features),
                lists=tuple(f.name for f in features if isinstance(f, SequenceFeature)),
                pooling=poolings.pop() if poolings else "mean",
            )
        )
    seed = int(torch.randint(2**62, (), device="cpu"))
    kind = Embedding
    if sharded:
        from ctrkit.nn.sharded_embedding import ShardedEmbedding  # imports all of torchrec.distributed

        kind = ShardedEmbedding
    return kind(tables, len(schema.dense_features), init_std=config.init_std, seed=seed, precision=config.precision)


def build_tower(config: TowerConfig, in_features: int) -> MLP:
    """An MLP."""
    return MLP(
        in_features,
        config.hidden,
        activation=config.activation,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    )


def build_optimizers(
    objective: Objective, config: TrainConfig, total_steps: int
) -> tuple[list[torch.optim.Optimizer], list[LRScheduler], list[nn.Parameter]]:
    """Optimizers of tables and towers, their schedules, and the towers' parameters (whose gradient is clipped)."""
    tables = [weight for embedding in objective.tables() for weight in embedding.stacks.values()]
    towers = list(objective.towers.parameters())
    tower_optimizer = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    optimizers: list[torch.optim.Optimizer] = [
        tower_optimizer(towers, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    ]
    if any(embedding.tables for embedding in objective.tables()):
        optimizers.append(TableOptimizer(tables, method=config.table_optimizer, lr=config.table_lr, l2=config.table_l2))

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
