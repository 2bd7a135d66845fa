"""What a recipe's values become: each reaches its place, and the learning rate is what the schedule says."""

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ctrkit.builders.networks import build_embedding, build_tower
from ctrkit.builders.objective import build_objective
from ctrkit.builders.optimizers import build_optimizers, learning_rate_factor, tower_rates
from ctrkit.config.models import Model
from ctrkit.config.recipe import EmbeddingConfig, Recipe, TowerConfig, as_dict
from ctrkit.config.train import TrainConfig
from ctrkit.nn.mlp import MLP
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.pointwise import Pointwise
from ctrkit.objectives.slimmable import Slimmable
from ctrkit.training.table_optimizer import TableOptimizer
from tests import networks

NUM_ROWS = networks.NUM_ROWS


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "data": {"path": "log"},
            "columns": {"label": "click", "group": "user"},
            "features": dict(networks.FEATURES),
            "embedding": {"dim": 4, "dims": {"item": 6}, "init_std": 0.5},
            "towers": {
                "light": {"hidden": [8], "activation": "tanh", "dropout": 0.25},
                "booster": {"hidden": [16, 8], "batch_norm": True},
            },
            "models": {
                "light": {"objective": "pointwise", "tower": "light"},
                "rocket": {
                    "objective": "rocket_launching", "light": "light", "booster": "booster",
                    "hint": {"weight": 0.25}, "route": "paper", "train": {"seed": 5},
                },
                "taught": {"objective": "distillation", "student": "light", "teachers": ["light"]},
                "ensemble": {"objective": "ensemble", "members": ["light", "light"]},
                "peers": {"objective": "mutual_learning", "peers": ["light", "booster"]},
                "mix": {
                    "objective": "co_training", "networks": {"small": "light", "large": "booster"},
                    "lessons": [{"student": "small", "teachers": ["large", "light"]}],
                },
                "slim": {"objective": "slimmable", "tower": "booster", "multiple": 2, "booster": ["light", "booster"]},
            },
            **sections,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        # warm-up of 4 steps, 10 in all
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0, 0.0]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.9330127, 0.75, 0.5, 0.25, 0.0669873, 0.0, 0.0]),
    ],
)
def test_learning_rate_factors_by_hand(schedule: str, factors: list[float]) -> None:
    found = [learning_rate_factor(step, 10, 4, schedule) for step in range(12)]
    assert found == pytest.approx(factors, abs=1e-7)


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert learning_rate_factor(0, 10, 0, "linear") == 1.0
    assert learning_rate_factor(0, 1, 0, "cosine") == 1.0


def test_a_warm_up_longer_than_the_run() -> None:
    assert [learning_rate_factor(step, 3, 10, "linear") for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_a_pointwise_model() -> None:
    objective = build_objective(recipe(), "light", NUM_ROWS)
    assert isinstance(objective, Pointwise)
    tower = objective.inference_model().tower
    assert isinstance(tower, MLP)
    assert [type(layer) for layer in tower.layers] == [nn.Linear, nn.Tanh, nn.Dropout, nn.Linear]
    assert tower.widths == (4 + 6 + 6 + 4 + 2, 8, 1)


def test_a_rocket() -> None:
    objective = build_objective(recipe(), "rocket", NUM_ROWS)
    assert isinstance(objective, CoTraining)
    (lesson,) = objective.lessons
    assert (lesson.hint.weight, lesson.blocked, objective.gradient_to_shared) == (0.25, True, {"light": 1.0})
    assert objective.networks()["light"].tower.hidden_widths == (8,)
    assert objective.networks()["booster"].tower.hidden_widths == (16, 8)
    assert any(isinstance(m, nn.BatchNorm1d) for m in objective.networks()["booster"].tower.modules())
    assert not any(isinstance(m, nn.BatchNorm1d) for m in objective.networks()["light"].tower.modules())
    assert objective.networks()["light"].embedding is objective.networks()["booster"].embedding


@pytest.mark.parametrize("model", recipe().models)
def test_a_configuration_knows_the_roles_of_its_networks(model: str) -> None:
    teacher = {"light": build_objective(recipe(), "light", NUM_ROWS).networks()[""]}
    objective = build_objective(recipe(), model, NUM_ROWS, frozen=teacher)
    assert recipe().models[model].shipped == objective.candidates()
    assert recipe().models[model].roles == tuple(objective.networks())


def test_a_slimmable_model() -> None:
    objective = build_objective(recipe(), "slim", NUM_ROWS)
    assert isinstance(objective, Slimmable)
    widths = {role: network.tower.hidden_widths for role, network in objective.networks().items()}
    assert widths == {
        "w0.25": (4, 2), "w0.5": (8, 4), "w0.75": (12, 6), "w1.0": (16, 8), "booster0": (8,), "booster1": (16, 8),
    }  # fmt: skip
    assert objective.tower.norm == "universal_batch_norm"  # its tower has batch norm
    towers = {"light": {"hidden": [8]}, "booster": {"hidden": [16, 8], "layer_norm": True}}
    layer_norm = build_objective(recipe(towers=towers), "slim", NUM_ROWS)
    assert isinstance(layer_norm, Slimmable)
    assert (layer_norm.tower.norm, layer_norm.calibration_rows) == ("layer_norm", 0)
    assert (objective.gradient_to_tables, objective.inference_role()) == (0.0, "w1.0")
    settings = {"tower": "light", "serve": 0.5, "widths": [0.5, 0.125], "multiple": 1}
    settings["label_weight"] = 0.5
    plain = build_objective(recipe(models={"slim": {"objective": "slimmable", **settings}}), "slim", NUM_ROWS)
    assert isinstance(plain, Slimmable)
    assert (plain.tower.norm, plain.calibration_rows, plain.gradient_to_tables) == ("none", 0, 1.0)
    assert (plain.inference_role(), plain.range, plain.label_weight) == ("w0.5", (0.125, 0.5), 0.5)
    assert set(plain.networks()) == {"w0.125", "w0.5"}


def test_a_slimmable_tower_has_the_rates_of_its_recipe() -> None:
    towers = {"light": {"hidden": [16]}, "booster": {"hidden": [16, 8], "lr": 0.5}}
    tuned = recipe(towers=towers)
    objective = build_objective(tuned, "slim", NUM_ROWS)
    assert isinstance(objective, Slimmable)
    optimizers, _, _ = build_optimizers(objective, TrainConfig(), 10, tower_rates(tuned, "slim", objective))
    rates = {id(p): group["lr"] for group in optimizers[0].param_groups for p in group["params"]}
    assert {rates[id(p)] for p in objective.tower.parameters()} == {0.5}
    assert {rates[id(p)] for p in objective.towers["booster0"].parameters()} == {1e-3}
    assert len(rates) == len(list(objective.towers.parameters()))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"serve": 0.3}, "is not one of widths"),
        ({"widths": [0.5, 0.5]}, "has one twice"),
        ({"samples": 1}, "samples = 2 at least"),
        ({"distillation": 0.0}, "learn from nothing"),
        ({"hint": {"weight": 2.0}}, "hint is what a booster says"),
        ({"booster": "light", "hint": {"gradient_share": 0.3}}, "no gradient_share"),
        ({"booster": "light", "hint": {"labelled_only": True}}, "no labelled_only"),
    ],
)
def test_slimmable_models_that_do_not_fit(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(models={"slim": {"objective": "slimmable", "tower": "light", **model}})


@pytest.mark.parametrize(
    ("hidden", "more", "message"),
    [
        ([8, 4], {}, None),
        ([8], {}, "no wider than 'wide'"),
        ([17, 4], {}, "no wider than 'wide'"),
        ([8, 4], {"activation": "tanh"}, "have its activation"),
        ([8, 4], {"layer_norm": True}, "and have its activation, batch_norm and layer_norm"),
        ([8, 4], {"privileged": True}, "must be of kind mlp, not privileged"),
    ],
)
def test_slices(hidden: list[int], more: dict[str, Any], message: str | None) -> None:
    towers = {"wide": {"hidden": [16, 8]}, "found": {"hidden": hidden, **more}}
    features = dict(networks.PRIVILEGED)
    slim = {"slim": {"objective": "slimmable", "tower": "wide"}}
    found = {"found": {"objective": "pointwise", "tower": "found", "slice_of": "slim"}}
    if message is None:
        recipe(towers=towers, models={**slim, **found})
        with pytest.raises(ValidationError, match="no slimmable model above it"):
            recipe(towers=towers, models={**found, **slim})
        return
    with pytest.raises(ValidationError, match=message):
        recipe(towers=towers, features=features, models={**slim, **found})


def test_what_is_kept_of_any_model_is_read_back() -> None:
    """With every default written out, and [train] in every model."""
    found = recipe(train={"warm_start": "yesterday"})
    assert as_dict(Recipe.model_validate(as_dict(found))) == as_dict(found)
    slim = {"objective": "slimmable", "tower": "wide"}
    towers = {"wide": {"hidden": [16, 8]}, "normed": {"hidden": [16, 8], "batch_norm": True}, "cut": {"hidden": [8, 4]}}
    models = {
        "slim": slim,
        "listed": {**slim, "sampling": "list"},
        "switchable": {**slim, "tower": "normed", "sampling": "list", "norm": "switchable_batch_norm"},
        "found": {"objective": "pointwise", "tower": "cut", "slice_of": "slim"},
    }
    found = recipe(towers=towers, models=models, train={"warm_start": "yesterday"})
    assert as_dict(Recipe.model_validate(as_dict(found))) == as_dict(found)


def test_every_kind_of_model_is_among_those_of_the_tests() -> None:
    kinds = get_args(get_args(Model)[0])
    assert {type(model) for model in recipe().models.values()} == set(kinds)


def test_a_model_is_initialised_from_its_seed() -> None:
    first, second = (build_objective(recipe(), "rocket", NUM_ROWS).state_dict() for _ in range(2))
    other = build_objective(recipe(train={"seed": 5}), "light", NUM_ROWS).state_dict()
    changed = recipe()
    changed.models["rocket"].train.__dict__["seed"] = 6
    third = build_objective(changed, "rocket", NUM_ROWS).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    table = "embeddings.0.stacks.6"
    assert torch.equal(first[table], other[table])
    assert not torch.equal(first[table], third[table])


def test_tables() -> None:
    tables = {t.name: t for t in build_embedding(networks.schema(), recipe().embedding, NUM_ROWS).tables}
    assert {name: (t.num_rows, t.dim) for name, t in tables.items()} == {
        "user": (12, 4),
        "item": (20, 6),
        "tags": (7, 4),
    }
    assert tables["item"].features == ("recent", "item")
    assert {name: t.pooling for name, t in tables.items()} == {"user": "mean", "item": "mean", "tags": "sum"}


def test_rows_have_the_spread_asked_for() -> None:
    embedding = build_embedding(networks.schema(), EmbeddingConfig(dim=50, init_std=0.3), {**NUM_ROWS, "item": 2000})
    assert embedding.table_weights()["item"][2:].std().item() == pytest.approx(0.3, rel=0.02)


def test_a_tower_has_the_layers_asked_for() -> None:
    tower = build_tower(TowerConfig(hidden=[5], activation="gelu", dropout=0.5, batch_norm=True), 3)
    assert isinstance(tower, MLP)
    assert [m.__class__.__name__.strip("_") for m in tower.layers] == [
        "Linear", "BatchNorm", "GELU", "Dropout", "Linear",
    ]  # fmt: skip


def test_optimizers_divide_the_parameters_between_them() -> None:
    objective = build_objective(recipe(), "rocket", NUM_ROWS)
    config = TrainConfig(lr=0.1, weight_decay=0.2, table_lr=0.3, table_l2=0.4, table_optimizer="adagrad")
    optimizers, schedulers, towers = build_optimizers(objective, config, 10)
    tower_optimizer, table_optimizer = optimizers
    tower_group = tower_optimizer.param_groups[0]
    assert type(tower_optimizer) is torch.optim.Adam
    assert isinstance(table_optimizer, TableOptimizer)
    assert (tower_group["lr"], tower_group["weight_decay"]) == (0.1, 0.2)
    assert [table_optimizer.defaults[key] for key in ("lr", "l2", "method")] == [0.3, 0.4, "adagrad"]
    of_towers, of_tables = ([p for g in o.param_groups for p in g["params"]] for o in optimizers)
    assert [id(p) for p in of_towers] == [id(p) for p in towers]
    assert {id(p) for p in of_tables} == {id(w) for w in objective.inference_model().embedding.stacks.values()}
    every = [*of_towers, *of_tables]
    assert len({id(p) for p in every}) == len(every) == len(list(objective.parameters()))
    assert len(schedulers) == 2


def test_adamw_decays_apart_from_the_gradient() -> None:
    optimizers, _, _ = build_optimizers(build_objective(recipe(), "light", NUM_ROWS), TrainConfig(optimizer="adamw"), 1)
    assert type(optimizers[0]) is torch.optim.AdamW


def test_both_optimizers_follow_the_schedule() -> None:
    config = TrainConfig(lr=0.1, table_lr=0.2, schedule="linear", warmup_steps=2)
    optimizers, schedulers, _ = build_optimizers(build_objective(recipe(), "light", NUM_ROWS), config, 4)
    rates = []
    for _ in range(5):
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    factors = [0.5, 1.0, 1.0, 0.5, 0.0]
    assert rates == [pytest.approx([0.1 * f, 0.2 * f]) for f in factors]


def test_dense_features_alone_need_no_optimizer_of_tables() -> None:
    features = {name: networks.FEATURES[name] for name in ("price", "bid")}
    bare = recipe(features=features, embedding={})
    objective = build_objective(bare, "light", {})
    optimizers, _, _ = build_optimizers(objective, TrainConfig(), 1)
    assert len(optimizers) == 1
    assert objective.networks()[""](networks.batch(3, features)).shape == (3,)
