"""What the recipe of a learning method becomes: networks, what they share, who teaches whom, at which rates."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctrkit import memory
from ctrkit.builders.check import check_networks
from ctrkit.builders.objective import build_objective
from ctrkit.builders.optimizers import build_optimizers, tower_rates
from ctrkit.config.recipe import Recipe
from ctrkit.errors import UserError
from ctrkit.export.plain_network import PlainNetwork, graph_inputs
from ctrkit.losses import binary_cross_entropy, kl_divergence, logit_mse
from ctrkit.nn.dcn_v2 import DCNv2
from ctrkit.nn.mlp import MLP
from ctrkit.nn.target_attention import TargetAttention
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.hint import Hint, LayerHint
from tests import networks
from tests.objectives.cases import gradient, losses

NUM_ROWS = {**networks.NUM_ROWS, **networks.PRIVILEGED_ROWS}
TOWERS: dict[str, dict[str, Any]] = {
    "light": {"hidden": [8]},
    "bottom": {"hidden": [16, 8], "batch_norm": True},
    "booster": {"hidden": [16, 8, 8], "batch_norm": True},
    "crosses": {"kind": "dcn_v2", "hidden": [8], "cross_layers": 2},
    "attention": {"kind": "target_attention", "hidden": [8], "attention_hidden": [5]},
    "seeing": {"hidden": [8], "privileged": True},
}


def recipe(model: dict[str, Any], *, towers: dict[str, dict[str, Any]] | None = None, **sections: Any) -> Recipe:
    """A recipe whose last model is `model`."""
    return Recipe.model_validate(
        {
            "name": "small",
            "data": {"path": "log"},
            "columns": {"label": "click", "group": "user", "teachers": [networks.TEACHER]},
            "features": dict(networks.PRIVILEGED),
            "embedding": {"dim": 4, "init_std": 0.5},
            "towers": {**TOWERS, **(towers or {})},
            "models": {
                "light": {"objective": "pointwise", "tower": "light"},
                "booster": {"objective": "pointwise", "tower": "booster"},
                "pair": {"objective": "mutual_learning", "peers": ["light", "booster"]},
                "model": model,
            },
            **sections,
        }
    )


def built(model: dict[str, Any], **more: Any) -> CoTraining:
    found = recipe(model, **more)
    frozen = {
        name: build_objective(found, of, NUM_ROWS).networks()[role]
        for name, (of, role) in found.frozen_teachers("model").items()
    }
    objective = build_objective(found, "model", NUM_ROWS, frozen=frozen)
    assert isinstance(objective, CoTraining)
    return objective


def rocket(**keys: Any) -> dict[str, Any]:
    return {"objective": "rocket_launching", "light": "light", "booster": "booster", **keys}


def distilled(**keys: Any) -> dict[str, Any]:
    return {"objective": "distillation", "student": "light", "teachers": ["booster"], **keys}


def mutual(**keys: Any) -> dict[str, Any]:
    return {"objective": "mutual_learning", "peers": ["light", "booster"], **keys}


BOTH = [{"student": "a", "teachers": ["b"]}, {"student": "b", "teachers": ["a"]}]
"""Lessons of two networks that teach each other."""


def mix(**keys: Any) -> dict[str, Any]:
    return {"objective": "co_training", "networks": {"a": "light", "b": "booster"}, "lessons": BOTH[:1], **keys}


BATCH = networks.batch(features=networks.PRIVILEGED)


# --- rockets


def mlp(objective: CoTraining, role: str) -> MLP:
    tower = objective.networks()[role].tower
    assert isinstance(tower, MLP)
    return tower


@pytest.mark.parametrize("pairs", [[[0, 0]], [[0, 0], [1, 1]], [[0, 0], [1, 2]]], ids=["bottom", "two", "interval"])
def test_shared_layers_are_one_and_their_norms_are_private(pairs: list[list[int]]) -> None:
    towers = {"booster": {"hidden": [16, 8, 8], "batch_norm": True}}
    if pairs == [[0, 0], [1, 2]]:  # a layer of the booster's second group: 16 units to 8
        towers["booster"]["hidden"] = [16, 16, 8]
    objective = built(rocket(light="bottom", shared_layers=pairs, route="paper"), towers=towers)
    light, booster = mlp(objective, "light"), mlp(objective, "booster")
    shared = [(i, j) for i, a in enumerate(light.linears) for j, b in enumerate(booster.linears) if a is b]
    assert shared == [tuple(pair) for pair in pairs]
    norms = [{id(m) for m in tower.modules() if isinstance(m, nn.BatchNorm1d)} for tower in (light, booster)]
    assert [len(of_tower) for of_tower in norms] == [2, 3]
    assert not norms[0] & norms[1]


@pytest.mark.parametrize(("route", "share"), [("paper", 1.0), (0.25, 0.25), ("shared", 0.0)])
def test_a_layer_that_is_shared_gets_of_the_light_tower_what_the_route_says(route: Any, share: float) -> None:
    found = {}
    for name in ("none", route):
        objective = built(rocket(light="bottom", shared_layers=[[0, 0]], route=name))
        objective.train()
        weight = mlp(objective, "light").linears[0].weight
        found[name] = {loss: gradient(loss_B, weight) for loss, loss_B in objective.losses(BATCH).items()}
    torch.testing.assert_close(found[route]["light"], share * found["none"]["light"])
    torch.testing.assert_close(found[route]["booster"], found["none"]["booster"])
    assert found["none"]["light"].abs().max() > 1e-4
    assert bool((found[route]["hint"] == 0).all()) == (share == 0)


def test_running_statistics_of_a_light_tower_with_shared_layers_are_kept() -> None:
    objective = built(rocket(light="bottom", shared_layers=[[0, 0]], route="shared"))
    before = {name: buffer.clone() for name, buffer in mlp(objective, "light").named_buffers()}
    objective.train().losses(BATCH)
    after = dict(mlp(objective, "light").named_buffers())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    counted = [value for name, value in after.items() if name.endswith("num_batches_tracked")]
    assert [int(value) for value in counted] == [1, 1]


def test_a_booster_with_tables_of_its_own() -> None:
    objective = built(rocket(share="none"))
    light, booster = objective.networks().values()
    assert light.embedding is not booster.embedding
    weights = [network.embedding.table_weights()["user"] for network in (light, booster)]
    assert not torch.equal(*weights)


def test_several_boosters_of_several_kinds() -> None:
    objective = built(rocket(booster=["crosses", "attention", "seeing"]))
    assert list(objective.networks()) == ["light", "booster0", "booster1", "booster2"]
    kinds = [type(network.tower) for network in objective.networks().values()]
    assert kinds == [MLP, DCNv2, TargetAttention, MLP]
    assert [network.privileged is None for network in objective.networks().values()] == [True, True, True, False]
    for loss_B in objective.losses(BATCH).values():
        assert loss_B.isfinite().all()
        torch.autograd.backward(loss_B.sum(), retain_graph=True)
    assert all(p.grad is not None for p in objective.parameters())


def test_a_model_may_teach_a_rocket_whose_booster_has_its_name() -> None:
    # the natural recipe of rocket + KD: models light, booster and rocket, taught by the model booster
    objective = built(rocket(teachers=["booster"], teacher_hint={"loss": "kl", "weight": 0.7, "temperature": 2.0}))
    objective.eval()
    (frozen,) = objective.frozen.networks().values()
    logits, found = objective.logits(BATCH), objective.losses(BATCH)
    assert not torch.equal(logits["booster"], frozen(BATCH))
    torch.testing.assert_close(found["booster"], binary_cross_entropy(logits["booster"], BATCH.label_B))
    expected = logit_mse(logits["light"], logits["booster"]) + 0.7 * kl_divergence(logits["light"], frozen(BATCH), 2.0)
    torch.testing.assert_close(found["hint"], expected)
    assert gradient(found["booster"], mlp(objective, "booster").linears[0].weight).abs().sum() > 0
    assert gradient(found["hint"], mlp(objective, "booster").linears[0].weight).abs().sum() == 0


def test_a_layer_hint_of_a_rocket_is_its_own_boosters_unless_another_teacher_is_named() -> None:
    hint = {"layer": 0, "teacher_layer": 1}
    objective = built(rocket(teachers=["booster"], layer_hints=[hint, {**hint, "teacher": "booster"}]))
    assert [each.teacher for each in objective.layer_hints] == ["booster", "booster"]
    objective = built(rocket(teachers=["pair_peer1"], layer_hints=[{**hint, "teacher": "pair_peer1"}]))
    assert [each.teacher for each in objective.layer_hints] == ["frozen pair_peer1"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shared_layers": [[0, 0]]}, r"light's layer 0 is \d+ x 8, the booster's 0 \d+ x 16; give them the same"),
        ({"shared_layers": [[1, 0]]}, "shared_layers: light has no hidden layer 1, it has 1"),
        ({"shared_layers": [[0, 3]]}, "shared_layers: booster has no hidden layer 3, it has 3"),
        ({"booster": "crosses", "shared_layers": [[0, 0]]}, "shared_layers: both towers must be of kind mlp"),
        ({"layer_hints": [{"layer": 2, "teacher_layer": 0}]}, "layer hint: 'light' has 1 hidden layers"),
        ({"layer_hints": [{"layer": 0, "teacher_layer": 7}]}, "layer hint: 'booster' has 3 hidden layers"),
        ({"layer_hints": [{"layer": 0, "teacher_layer": 0, "teacher": "x"}]}, "layer hint: 'x' is no network"),
        (
            {"layer_hints": [{"layer": 0, "teacher_layer": 0, "loss": "attention"}]},
            "attention transfer takes layers of one width, not 8 and 16",
        ),
        ({"light": "bare", "auxiliary_head": True}, "'light' has no hidden layer for an auxiliary head"),
    ],
)
def test_layers_that_do_not_fit_are_named_with_the_model(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^model 'model': .*{message}"):
        built(rocket(**keys), towers={"bare": {"hidden": []}})


def test_attention_needs_a_list_that_an_ads_feature_can_look_at() -> None:
    features = {name: spec for name, spec in networks.PRIVILEGED.items() if name != "recent"}
    with pytest.raises(
        UserError, match="model 'model': tower 'attention' is of kind target_attention, but no sequence"
    ):
        built(rocket(booster="attention"), features=features)


def test_networks_that_cannot_be_are_refused_without_a_log_and_without_memory() -> None:
    """What a model would say after hours of training of the one above it."""
    vast = {"vast": {"hidden": [60_000, 60_000]}}  # 14 GiB
    check_networks(recipe(rocket(booster="vast", teachers=["pair", "booster"]), towers=vast), "model")
    with pytest.raises(UserError, match=r"^model 'model': .*light has no hidden layer 9"):
        check_networks(recipe(rocket(shared_layers=[[9, 0]])), "model")
    with pytest.raises(UserError, match=r"^model 'model': a teacher stands there twice: \['light', 'light'\]"):
        check_networks(recipe(distilled(teachers=["light", "light"])), "model")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (rocket(booster="attention"), r"target_attention reads the lists \['recent'\] .*train this model in"),
        (mutual(updates="in_turn"), 'in turn train in one process, not in 3; set updates = "together"'),
        (mutual(across_processes=True), "2 peers over 3 processes: each process trains one"),
        (mutual(across_processes=True, peers=["light"] * 3, share="embeddings"), 'peers over .* need share = "none"'),
    ],
)
def test_networks_that_several_processes_cannot_train_are_refused_there_alone(
    model: dict[str, Any], message: str
) -> None:
    check_networks(recipe(model), "model")
    with pytest.raises(UserError, match=f"^model 'model': .*{message}"):
        check_networks(recipe(model), "model", processes=3)


@pytest.mark.parametrize(
    "model",
    [
        rocket(),
        mutual(),
        mutual(across_processes=True, peers=["light"] * 3),
        mutual(across_processes=True, peers=["attention"] * 3),  # each process has its peer's tables, whole
        {"objective": "distillation", "student": "light", "teachers": ["looks"]},  # a frozen one is whole too
    ],
)
def test_networks_that_several_processes_can_train(model: dict[str, Any]) -> None:
    looks = {"objective": "pointwise", "tower": "attention"}
    models = {"looks": looks, "model": model}
    check_networks(recipe(model, models=models), "model", processes=3)


@pytest.mark.parametrize("name", ["type", "keys"])
def test_a_name_that_torch_uses_is_refused(name: str) -> None:
    lessons = [{"student": name, "teachers": ["b"]}]
    networks_ = {name: "light", "b": "booster"}
    with pytest.raises(UserError, match=f"^model 'model': a network cannot be called '{name}'"):
        built({"objective": "co_training", "networks": networks_, "lessons": lessons})


def test_a_student_of_the_label_or_of_a_hint() -> None:
    built(distilled(label_weight=0.0, hint={"weight": 0.1}))
    with pytest.raises(UserError, match="learns from nothing: its label weight is 0"):
        built(distilled(label_weight=0.0, hint={"weight": 0.0}))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (distilled(label_weight=0.0, auxiliary_head=True), "the student learns from nothing: .* auxiliary head"),
        (mix(label_weight={"a": 0.0, "b": 0.0}, lessons=BOTH), "'a' learns from nothing"),
        (mix(label_weight={"a": 0.0}, lessons=[{**BOTH[0], "auxiliary_head": True}]), "'a' learns from nothing"),
        (mix(gradient_to_shared={"a": 0.0, "b": 0.0}), "gradient_to_shared is 0 for a, b: nobody would train"),
    ],
)
def test_what_the_log_does_not_reach_is_refused(model: dict[str, Any], message: str) -> None:
    """It would be trained, evaluated and shipped as it was drawn."""
    with pytest.raises(UserError, match=f"^model 'model': {message}"):
        built(model)


@pytest.mark.parametrize(
    "model",
    [
        mix(label_weight={"a": 0.0}, lessons=BOTH),
        mix(label_weight={"a": 0.0, "b": 0.0}, lessons=[*BOTH, {"student": "b", "teachers": [networks.TEACHER]}]),
        mix(label_weight={"a": 0.0, "b": 0.0}, lessons=[BOTH[0], {"student": "b", "teachers": ["booster"]}]),
        mix(gradient_to_shared={"a": 0.0}),
    ],
)
def test_what_the_log_reaches_by_others_is_built(model: dict[str, Any]) -> None:
    built(model)


@pytest.mark.parametrize(
    ("networks_", "lessons"),
    [
        ({"hint": "light", "b": "booster"}, [{"student": "hint", "teachers": ["b"]}]),
        (
            {"a": "light", "hint_a": "booster"},
            [{"student": "a", "teachers": ["hint_a"]}, {"student": "hint_a", "teachers": ["a"]}],
        ),
    ],
)
def test_a_name_of_a_hints_loss_is_refused(networks_: dict[str, str], lessons: list[dict[str, Any]]) -> None:
    # the hint would stand in the place of the network's label loss
    with pytest.raises(UserError, match=r"^model 'model': a network cannot be called 'hint"):
        built({"objective": "co_training", "networks": networks_, "lessons": lessons})


def test_a_network_with_the_name_of_an_ensemble_above_teaches_itself() -> None:
    model = {
        "objective": "co_training",
        "networks": {"a": "light", "four": "booster"},
        "lessons": [{"student": "a", "teachers": ["four"]}],
    }
    four = {"objective": "ensemble", "members": ["light", "light"]}
    objective = built(model, models={"four": four, "model": model})
    assert objective.lessons[0].teachers == ("four",)


def test_layers_of_a_mean_that_teaches_are_known_before_training() -> None:
    # two layers of 8 beside each other are one of 16: it would be told after the training of the peers
    model = distilled(teachers=["pair"], layer_hints=[{"layer": 0, "teacher_layer": 0, "loss": "attention"}])
    pair = mutual(peers=["light", "light"])
    check_networks(recipe(model, models={"pair": {**pair, "serve": "best"}, "model": model}), "model")
    found = recipe(model, models={"pair": {**pair, "serve": "mean"}, "model": model})
    with pytest.raises(UserError, match=r"^model 'model': attention transfer takes layers of one width, not 8 and 16"):
        check_networks(found, "model")


# --- distillation


def test_a_student_of_a_frozen_network() -> None:
    objective = built(distilled(label_weight=0.5, hint={"loss": "logit_mse", "weight": 2.0}))
    (frozen,) = objective.frozen.networks().values()
    logits, found = objective.logits(BATCH), objective.losses(BATCH)
    torch.testing.assert_close(found["label"], 0.5 * binary_cross_entropy(logits[""], BATCH.label_B))
    torch.testing.assert_close(found["hint"], 2.0 * logit_mse(logits[""], frozen(BATCH)))


def test_the_defaults_of_distillation_are_kl_at_temperature_1_beside_the_label() -> None:
    (lesson,) = built(distilled()).lessons
    assert lesson.hint == Hint("kl", 1.0, 1.0)
    assert (lesson.average, lesson.blocked, lesson.auxiliary) == ("mean", True, False)


def test_layer_hints_of_a_student_are_of_its_first_network() -> None:
    objective = built(distilled(teachers=[networks.TEACHER, "booster"], layer_hints=[{"layer": 0, "teacher_layer": 1}]))
    assert objective.layer_hints == (LayerHint("", 0, "booster", 1),)


def test_a_column_has_no_layers() -> None:
    with pytest.raises(UserError, match=r"model 'model': layer_hints need a network that teaches, but \['score'\]"):
        built(distilled(teachers=[networks.TEACHER], layer_hints=[{"layer": 0, "teacher_layer": 0}]))


# --- mutual learning


def test_peers_have_tables_of_their_own_unless_they_share() -> None:
    own = built({"objective": "mutual_learning", "peers": ["light", "light", "crosses"]})
    assert len(own.tables()) == 3
    first, second, _ = (mlp_.embedding.table_weights()["user"] for mlp_ in own.networks().values())
    assert not torch.equal(first, second)  # peers of one shape start apart
    weights = [mlp(own, role).linears[0].weight for role in ("peer0", "peer1")]
    assert not torch.equal(*weights)
    shared = built({"objective": "mutual_learning", "peers": ["light", "light"], "share": "embeddings"})
    assert len(shared.tables()) == 1


@pytest.mark.parametrize(("serve", "shipped"), [("best", ("peer0", "peer1")), (0, ("peer0",)), (1, ("peer1",))])
def test_which_peer_ships(serve: Any, shipped: tuple[str, ...]) -> None:
    objective = built({"objective": "mutual_learning", "peers": ["light", "light"], "serve": serve})
    assert objective.candidates() == shipped
    assert objective.inference_role() == shipped[0]


def test_any_mix() -> None:
    objective = built(
        {
            "objective": "co_training",
            "networks": {"small": "light", "large": "seeing", "peer": "light"},
            "lessons": [
                {"student": "small", "teachers": ["large", "peer"], "average": "each", "hint": {"loss": "soft_bce"}},
                {"student": "peer", "teachers": ["small", "booster", networks.TEACHER], "auxiliary_head": True},
            ],
            "own_tables": ["peer"],
            "gradient_to_shared": {"small": 0.5},
            "label_weight": {"small": 0.0},
            "updates": "in_turn",
            "serve": ["small", "peer"],
            "label_smoothing": 0.1,
        }
    )
    assert objective.candidates() == ("small", "peer")
    assert (objective.turns, objective.label_smoothing) == (3, 0.1)
    assert objective.networks()["small"].embedding is objective.networks()["large"].embedding
    assert objective.networks()["peer"].embedding is not objective.networks()["small"].embedding
    assert losses(objective, BATCH).keys() == {"large", "peer", "hint_small", "hint_peer"}
    assert [(each.average, each.auxiliary) for each in objective.lessons] == [("each", False), ("mean", True)]


# --- rates


def rates(objective: CoTraining, model: dict[str, Any], **more: Any) -> dict[str, set[tuple[float, float]]]:
    found = recipe(model, **more)
    own = tower_rates(found, "model", objective)
    optimizers, _, _ = build_optimizers(objective, found.train_config("model"), 1, own)
    of: dict[int, tuple[float, float]] = {
        id(p): (g["lr"], g["weight_decay"]) for g in optimizers[0].param_groups for p in g["params"]
    }
    return {name: {of[id(p)] for p in module.parameters()} for name, module in objective.towers.items()}


OWN = {"light": {"hidden": [8], "lr": 0.5, "weight_decay": 0.0}, "booster": {"hidden": [16], "lr": 0.25}}
TRAIN = {"train": {"lr": 0.1, "weight_decay": 0.2}}


def test_towers_have_rates_of_their_own() -> None:
    model = rocket(auxiliary_head=True, layer_hints=[{"layer": 0, "teacher_layer": 0}])
    assert rates(built(model, towers=OWN), model, towers=OWN, **TRAIN) == {
        "light": {(0.5, 0.0)}, "booster": {(0.25, 0.2)},
        "light-auxiliary": {(0.5, 0.0)}, "light-projection-0": {(0.5, 0.0)},
    }  # fmt: skip


def test_what_belongs_to_a_student_has_its_rates() -> None:
    model = distilled(auxiliary_head=True, layer_hints=[{"layer": 0, "teacher_layer": 0}])
    found = rates(built(model, towers=OWN), model, towers=OWN, **TRAIN)
    assert found == {name: {(0.5, 0.0)} for name in ("tower", "-auxiliary", "-projection-0")}


def test_a_shared_layer_is_in_one_group() -> None:
    model = rocket(light="bottom", shared_layers=[[0, 0]])
    objective = built(model)
    rates = tower_rates(recipe(model), "model", objective)
    optimizers, _, towers = build_optimizers(objective, recipe(model).train, 1, rates)
    members = [id(p) for group in optimizers[0].param_groups for p in group["params"]]
    assert len(members) == len(set(members)) == len(towers)


# --- privileged features


def test_a_privileged_tower_reads_the_columns_that_are_its_own() -> None:
    objective = built(rocket(booster="seeing"))
    light, booster = objective.networks()["light"], objective.networks()["booster"]
    assert light.privileged is None
    assert booster.privileged is not None
    assert light.embedding.dense_columns == [1, 2]  # price, bid; dwell stands before them, scroll behind
    assert booster.privileged.dense_columns == [0, 3]
    dense = BATCH.dense_BD
    x_BX = booster.vectors(lambda embedding: embedding.vectors(BATCH)).x_BX
    width = light.embedding.out_features
    assert torch.equal(x_BX[:, :width], light.embedding(BATCH))
    assert torch.equal(x_BX[:, width - 2 : width], dense[:, 1:3])
    assert torch.equal(x_BX[:, -2:], dense[:, [0, 3]])
    position = booster.privileged.table_weights()["position"][BATCH.sparse["position"].values()]
    assert torch.equal(x_BX[:, width : width + 4], position)


def changed_by(objective: CoTraining, role: str, feature: str | int) -> bool:
    """Whether a network's logits depend on a feature, or on a dense column."""
    dense_BD, sparse = BATCH.dense_BD.clone(), BATCH.sparse.to_dict()
    if isinstance(feature, int):
        dense_BD[:, feature] += 1.0
    values = BATCH.sparse.values().clone()
    if isinstance(feature, str):
        at = list(BATCH.sparse.keys()).index(feature)
        start, stop = BATCH.sparse.offset_per_key()[at : at + 2]
        values[start:stop] = (values[start:stop] + 1) % 5
        assert feature in sparse
    other = type(BATCH)(
        sparse=type(BATCH.sparse)(keys=BATCH.sparse.keys(), values=values, lengths=BATCH.sparse.lengths()),
        dense_BD=dense_BD, label_B=BATCH.label_B, weight_B=BATCH.weight_B, origin_B=BATCH.origin_B,
    )  # fmt: skip
    return not torch.equal(objective.logits(BATCH)[role], objective.logits(other)[role])


@pytest.mark.parametrize("feature", ["position", 0, 3])
def test_only_the_privileged_tower_sees_privileged_features(feature: str | int) -> None:
    objective = built(rocket(booster="seeing")).eval()
    assert changed_by(objective, "booster", feature)
    assert not changed_by(objective, "light", feature)


@pytest.mark.parametrize("feature", ["user", "item", 1, 2])
def test_both_towers_see_the_others(feature: str | int) -> None:
    objective = built(rocket(booster="seeing")).eval()
    assert changed_by(objective, "booster", feature)
    assert changed_by(objective, "light", feature)


def test_what_is_shared_with_a_privileged_booster_is_the_serving_tables_alone() -> None:
    objective = built(rocket(booster=["seeing", "booster"], route="paper"))
    seeing = objective.networks()["booster0"]
    assert seeing.privileged is not None
    (stack,) = seeing.privileged.stacks.values()
    moved = {name: bool(gradient(loss_B, stack).any()) for name, loss_B in objective.losses(BATCH).items()}
    assert moved == {"light": False, "booster0": True, "booster1": False, "hint": False}


def test_dense_inputs_of_a_graph_are_the_columns_that_serve() -> None:
    light = built(rocket(booster="seeing")).networks()["light"]
    schema = networks.schema(networks.PRIVILEGED).serving()
    inputs = graph_inputs(BATCH, schema, light.embedding.dense_columns)
    assert torch.equal(inputs["dense_item"], BATCH.dense_BD[:, 1:3])  # price and bid, between two privileged ones
    probability = PlainNetwork(light.eval(), schema)(inputs)
    torch.testing.assert_close(probability, light(BATCH).sigmoid())


# --- memory


def test_frozen_teachers_and_their_scores_are_counted() -> None:
    model = rocket(teachers=["booster", networks.TEACHER])
    found = recipe(model)
    held = [*build_objective(found, "booster", NUM_ROWS).parameters()]
    parts = memory.weight_bytes(found, "model", NUM_ROWS)
    assert parts["the frozen teachers"] == sum(p.nbytes for p in held)
    columns = memory.buffer_bytes(found, "model", 1000) - memory.buffer_bytes(found, "light", 1000)
    assert columns == 3 * 4 * 1000


def frozen_tensors(objective: CoTraining) -> list[Tensor]:
    return [*objective.frozen.parameters(), *objective.frozen.buffers()]


def test_frozen_networks_are_in_no_optimizer() -> None:
    objective = built(distilled())
    optimizers, _, towers = build_optimizers(objective, recipe(distilled()).train, 1)
    held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]} | {id(p) for p in towers}
    assert not held & {id(t) for t in frozen_tensors(objective)}
    assert held == {id(p) for p in objective.parameters() if p.requires_grad}
