"""Networks that teach each other: values of the hints, who hears whom, what is blocked, what is measured."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrkit.data.batch import Batch
from ctrkit.data.crossing import Crossing
from ctrkit.losses import attention_transfer, binary_cross_entropy, kl_divergence, logit_mse, mean_probability
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.distillation import distillation
from ctrkit.objectives.hint import MEASURED_STEPS, Hint, HintLoss, LayerHint, Lesson
from ctrkit.objectives.mutual_learning import mutual_learning
from ctrkit.objectives.objective import Objective
from ctrkit.objectives.rocket_launching import Route, rocket_launching
from tests import networks
from tests.objectives.cases import distilled, gradient, losses, network, parts, peers, rocket, tower


def made(objective: Objective) -> CoTraining:
    assert isinstance(objective, CoTraining)
    return objective


def gradients(loss_B: Tensor, objective: Objective, part: str) -> list[Tensor]:
    return [gradient(loss_B, parameter) for parameter in parts(objective)[part]]


def assert_times(found: list[Tensor], factor: float, expected: list[Tensor]) -> None:
    assert any(e.abs().max() > 1e-6 for e in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, factor * other, atol=1e-7, rtol=1e-5)


# --- gradient routes


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("loss", ["light", "hint"])
@pytest.mark.parametrize("part", ["tables", "layers"])
def test_a_number_is_the_share_of_the_light_towers_gradient_that_reaches_what_is_shared(
    share: float, loss: str, part: str
) -> None:
    batch = networks.batch()
    by_number, paper = (rocket(route, shared_layer=True)() for route in (share, "paper"))
    of_number, of_paper = by_number.losses(batch), paper.losses(batch)
    assert torch.equal(of_number[loss], of_paper[loss])
    assert_times(gradients(of_number[loss], by_number, part), share, gradients(of_paper[loss], paper, part))
    # what is its own is moved as ever, and so does the booster move all
    for own in ("light", "light head"):
        assert_times(gradients(of_number[loss], by_number, own), 1.0, gradients(of_paper[loss], paper, own))
    for other in ("booster", "tables", "layers"):
        assert_times(
            gradients(of_number["booster"], by_number, other), 1.0, gradients(of_paper["booster"], paper, other)
        )


@pytest.mark.parametrize(("route", "share"), [("shared", 0.0), ("paper", 1.0)])
def test_names_of_routes_are_the_ends_of_the_numbers(route: Route, share: float) -> None:
    batch = networks.batch()
    named, numbered = rocket(route)(), rocket(share)()
    for name, loss_B in named.losses(batch).items():
        for part in parts(named):
            for one, other in zip(
                gradients(loss_B, named, part), gradients(numbered.losses(batch)[name], numbered, part), strict=True
            ):
                assert torch.equal(one, other)


def test_a_layer_that_both_towers_have_computes_alike_in_both() -> None:
    objective = rocket("shared", shared_layer=True)()
    batch, (weight, bias) = networks.batch(8), parts(objective)["layers"]
    tables = objective.tables()[0]
    hidden = torch.relu(tables(batch) @ weight.T + bias)
    for network_ in objective.networks().values():
        torch.testing.assert_close(
            network_.tower.trace(network_.embedding(batch))[0][0], hidden
        )  # the lowest hidden layer


# --- the mean of several teachers


def test_several_boosters_teach_by_the_mean_of_their_probabilities() -> None:
    objective, batch = rocket(boosters=3)(), networks.batch()
    logits = objective.logits(batch)
    mean_B = mean_probability([logits[f"booster{i}"] for i in range(3)])
    torch.testing.assert_close(objective.losses(batch)["hint"], 0.5 * logit_mse(logits["light"], mean_B))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("own_tables", [True, False])
@pytest.mark.parametrize("average", ["each", "mean"])
def test_terms_of_mutual_learning_by_hand(count: int, own_tables: bool, average: str) -> None:
    objective, batch = peers(count, own_tables=own_tables, average=average, hint=Hint("kl", 0.7))(), networks.batch()
    logits, found = objective.logits(batch), objective.losses(batch)
    assert len(found) == 2 * count
    for role, logit_B in logits.items():
        p_B = logit_B.sigmoid()
        others = [other_B.sigmoid() for other, other_B in logits.items() if other != role]
        targets = others if average == "each" else [torch.stack(others).mean(0)]
        kl = [q * (q / p_B).log() + (1 - q) * ((1 - q) / (1 - p_B)).log() for q in targets]
        torch.testing.assert_close(found[f"hint_{role}"], 0.7 * torch.stack(kl).mean(0), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(found[role], binary_cross_entropy(logit_B, batch.label_B))


def test_a_peer_alone_has_nobody_to_hear() -> None:
    objective, batch = mutual_learning({"only": networks.network()}), networks.batch()
    assert objective.losses(batch).keys() == {"only"}


def test_with_two_peers_each_and_mean_are_the_same() -> None:
    batch = networks.batch()
    each, mean = (peers(2, average=average)().losses(batch) for average in ("each", "mean"))
    assert each.keys() == mean.keys()
    assert all(torch.equal(each[name], mean[name]) for name in each)


def test_every_peer_may_ship() -> None:
    objective = peers(3)()
    assert objective.candidates() == ("peer0", "peer1", "peer2")
    objective.ship("peer1")
    assert objective.inference_role() == "peer1"
    assert objective.inference_model() is objective.networks()["peer1"]
    assert set(objective.candidates()) == {"peer0", "peer1", "peer2"}


# --- in turn


def test_in_turn_a_turn_has_the_losses_of_one_peer() -> None:
    objective, batch = peers(3, in_turn=True)(), networks.batch()
    assert objective.turns == 3
    together = peers(3)().losses(batch)
    for turn in range(3):
        found = objective.losses(batch, turn=turn)
        assert found.keys() == {f"peer{turn}", f"hint_peer{turn}"}
        for name, loss_B in found.items():
            torch.testing.assert_close(loss_B, together[name])


# --- frozen teachers and columns of the log


def test_a_frozen_teacher_teaches_without_dropout_and_by_its_running_statistics() -> None:
    teacher = network(16, 8, seed=1)
    with torch.no_grad():
        for _ in range(20):  # statistics other than those of the batch
            teacher.train()(networks.batch(32, seed=7))
    objective, batch = distillation(networks.network(), ["teacher"], frozen={"teacher": teacher}), networks.batch()
    statistics = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    objective.train()
    expected = kl_divergence(objective.logits(batch)[""], teacher.eval()(batch))
    for _ in range(2):
        torch.testing.assert_close(objective.losses(batch)["hint"], expected)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in teacher.named_buffers())


def test_frozen_teachers_are_no_networks_of_the_objective() -> None:
    objective = distilled(frozen=2)()
    assert list(objective.networks()) == [""]
    assert list(objective.logits(networks.batch(4))) == [""]
    assert len(objective.tables()) == 1


def test_without_a_score_there_is_no_hint() -> None:
    objective, batch = distilled(frozen=0, column=True)(), networks.batch()
    score_B = batch.teachers[networks.TEACHER]
    known_B = ~score_B.isnan()
    assert 0 < known_B.sum() < len(batch)
    found = objective.losses(batch)
    expected = kl_divergence(objective.logits(batch)[""], score_B.nan_to_num())
    torch.testing.assert_close(found["hint"], torch.where(known_B, expected, 0.0))
    assert (found["hint"][known_B] > 0).all()
    assert (found["label"] > 0).all()
    assert all(g.isfinite().all() for g in gradients(found["hint"], objective, ""))


@pytest.mark.parametrize("average", ["each", "mean"])
def test_where_a_column_has_no_score_the_other_teacher_teaches_alone(average: Any) -> None:
    """Also one that is not blocked: its gradient is finite."""
    tables = networks.embedding()
    light, booster = Network(tables, tower(tables, 8)), Network(tables, tower(tables, 16))
    lesson = Lesson("light", ("booster", networks.TEACHER), Hint("kl"), average, blocked=False)
    objective, batch = CoTraining({"light": light, "booster": booster}, [lesson]), networks.batch()
    found = objective.losses(batch)["hint"]
    score_B, logits = batch.teachers[networks.TEACHER], objective.logits(batch)
    known_B = ~score_B.isnan()
    assert 0 < known_B.sum() < len(batch)
    booster_B, score_B = logits["booster"], score_B.nan_to_num()
    alone_B = kl_divergence(logits["light"], booster_B)
    both_B = (alone_B + kl_divergence(logits["light"], score_B)) / 2
    if average == "mean":
        both_B = kl_divergence(logits["light"], mean_probability([booster_B, score_B]))
    torch.testing.assert_close(found, torch.where(known_B, both_B, alone_B))
    for part in ("light", "booster", "tables"):
        assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients(found, objective, part))


def test_a_teacher_has_a_name_of_its_own() -> None:
    # else it would be heard, and its label loss learnt, in the place of the booster
    with pytest.raises(ValueError, match="'booster' is the name of a network and of a frozen teacher"):
        rocket(frozen={"booster": network(16, seed=1)}, lessons=[Lesson("light", ("booster",))])()


# --- labels


def unlabelled(batch: Batch) -> Batch:
    """Every other impression without its label."""
    label_B = batch.label_B.clone()
    label_B[::2] = float("nan")
    return replace(batch, label_B=label_B)


def test_impressions_without_a_label_enter_the_mutual_term_only() -> None:
    objective, batch = peers(2)(), networks.batch()
    supervised, found = objective.losses(batch), objective.losses(unlabelled(batch))
    for role in ("peer0", "peer1"):
        assert torch.equal(found[f"hint_{role}"], supervised[f"hint_{role}"])
        assert (found[role][::2] == 0).all()
        torch.testing.assert_close(found[role][1::2], 2 * supervised[role][1::2])


def test_a_hint_for_the_labelled_only() -> None:
    """Supervised mutual learning: its term is there where the label is, and as loud as if all had one."""
    batch = networks.batch()
    whole, some = (Hint("kl", labelled_only=only) for only in (False, True))
    everywhere, found = (peers(2, hint=hint)().losses(unlabelled(batch)) for hint in (whole, some))
    for role in ("hint_peer0", "hint_peer1"):
        assert (found[role][::2] == 0).all()
        torch.testing.assert_close(found[role][1::2], 2 * everywhere[role][1::2])
    all_labelled = (peers(2, hint=hint)().losses(batch)["hint_peer0"] for hint in (whole, some))
    assert torch.equal(*all_labelled)


@pytest.mark.parametrize("in_turn", [True, False])
def test_a_batch_without_labels_still_teaches(in_turn: bool) -> None:
    objective, batch = peers(2, in_turn=in_turn)(), networks.batch()
    found = losses(objective, replace(batch, label_B=torch.full_like(batch.label_B, float("nan"))))
    assert all((found[role] == 0).all() for role in ("peer0", "peer1"))
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients(found["hint_peer0"], objective, "peer0"))


def test_a_network_that_learns_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="'booster' learns from nothing"):
        rocket(label_weight={"booster": 0.0})()


def test_weights_of_label_losses() -> None:
    batch = networks.batch()
    half, whole = rocket(label_weight={"light": 0.5})().losses(batch), rocket()().losses(batch)
    torch.testing.assert_close(half["light"], 0.5 * whole["light"])
    assert torch.equal(half["booster"], whole["booster"])


# --- auxiliary heads and hidden layers


def test_the_auxiliary_head_does_not_serve() -> None:
    objective, batch = made(rocket(auxiliary=True)()), networks.batch()
    light, booster = objective.networks()["light"], objective.networks()["booster"]
    hidden, logit_B = light.tower.trace(light.embedding(batch))
    head = objective.towers["light-auxiliary"]
    expected = 0.5 * logit_mse(head(hidden[-1]).squeeze(1), booster(batch))
    torch.testing.assert_close(objective.losses(batch)["hint"], expected)
    assert torch.equal(objective.logits(batch)["light"], logit_B)
    assert "light-auxiliary" not in dict(light.named_modules())


def hidden(objective: Objective, role: str, batch: Batch) -> list[Tensor]:
    found = objective.networks()[role]
    return found.tower.trace(found.embedding(batch))[0]


def test_layer_hints_by_hand() -> None:
    hints = [LayerHint("light", 0, "booster", 0, "mse", 0.3), LayerHint("light", 0, "booster", 1, "attention", 2.0)]
    objective, batch = made(rocket(layer_hints=hints)()), networks.batch()
    found, (light,), booster = (
        objective.losses(batch),
        hidden(objective, "light", batch),
        hidden(objective, "booster", batch),
    )
    projected = objective.towers["light-projection-0"](light)
    assert projected.shape == (64, 16)
    torch.testing.assert_close(found["layer_hint_0"], 0.3 * (projected - booster[0]).square().mean(1))
    torch.testing.assert_close(found["layer_hint_1"], 2.0 * attention_transfer(light, booster[1]))


@pytest.mark.parametrize("loss", ["mse", "cosine", "attention"])
def test_a_layer_hint_draws_the_light_layer_towards_the_boosters(loss: Any) -> None:
    # EasyRec and TorchEasyRec: the former's feature loss drives the layers apart, the latter needs a switch to be set
    hint = LayerHint("light", 0, "booster", 1, loss)
    objective, batch = rocket(layer_hints=[hint])(), networks.batch()
    before, target = objective.losses(batch)["layer_hint_0"], hidden(objective, "booster", batch)[1]
    torch.autograd.backward(before.mean())
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.to_dense(), alpha=0.1)
    assert objective.losses(batch)["layer_hint_0"].mean() < before.mean()
    assert torch.equal(hidden(objective, "booster", batch)[1], target)


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        (LayerHint("light", 1, "booster", 0), "'light' has 1 hidden layers, the last is 0"),
        (LayerHint("light", 0, "booster", 2), "'booster' has 2 hidden layers, the last is 1"),
        (LayerHint("light", 0, "booster", 0, "attention"), "layers of one width, not 8 and 16"),
        (LayerHint("light", 0, "teacher", 0), "layer hint: 'teacher' is no network: booster, light"),
        (LayerHint("light", 0, "light", 0), "'light' would teach itself"),
    ],
)
def test_layer_hints_that_do_not_fit(hint: LayerHint, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rocket(layer_hints=[hint])()


def test_an_auxiliary_head_needs_a_hidden_layer() -> None:
    with pytest.raises(ValueError, match="'light' has no hidden layer for an auxiliary head"):
        rocket(light=(), auxiliary=True)()


@pytest.mark.parametrize("width", [(16, 8), (8,)])
def test_towers_of_equal_and_unequal_widths_learn_without_layer_hints(width: tuple[int, ...]) -> None:
    # TorchEasyRec's rocket fails for towers with a layer of the same width unless feature distillation is switched on
    found = rocket(light=(8,), booster=width)().losses(networks.batch())
    assert found.keys() == {"light", "booster", "hint"}


# --- the weight of the hint


@pytest.mark.parametrize("step", [0, 1, 2, 3, 10])
def test_the_weight_is_that_of_the_step(step: int) -> None:
    hint, batch = Hint("kl", 2.0, warmup_steps=4, decay_steps=10), networks.batch()
    scheduled, constant = rocket(hint=hint)(), rocket(hint=Hint("kl"))()
    expected = {0: 0.5, 1: 1.0, 2: 1.5, 3: 2.0, 10: 0.8}[step]
    torch.testing.assert_close(scheduled.losses(batch, step)["hint"], expected * constant.losses(batch)["hint"])


@pytest.mark.parametrize("loss", ["logit_mse", "probability_mse", "kl", "soft_bce"])
@pytest.mark.parametrize("share", [0.1, 3.0])
def test_after_the_measured_steps_the_gradients_have_the_share_asked_for(loss: HintLoss, share: float) -> None:
    objective, batch = made(rocket(hint=Hint(loss, gradient_share=share))()), networks.batch()
    for step in range(MEASURED_STEPS):
        assert (objective.losses(batch, step)["hint"] == 0).all()
    light_B, booster_B = (logit_B.detach() for logit_B in objective.logits(batch).values())
    unweighted = gradient(Hint(loss)(light := light_B.requires_grad_(), booster_B), light)
    of_label = gradient(binary_cross_entropy(light, batch.label_B), light)
    weight = share * of_label.norm() / unweighted.norm()
    expected = weight * Hint(loss)(light_B, booster_B)
    torch.testing.assert_close(objective.losses(batch, MEASURED_STEPS)["hint"], expected.detach())


def test_the_measure_is_over_all_measured_steps_and_then_stays() -> None:
    objective = made(rocket(hint=Hint("kl", gradient_share=1.0))())
    for step in range(MEASURED_STEPS):
        objective.losses(networks.batch(16, seed=step % 3), step)
    measured = objective.get_buffer("gradient_squares").clone()
    squares = torch.zeros(2)
    for seed in range(3):
        batch = networks.batch(16, seed=seed)
        light_B, booster_B = (logit_B.detach() for logit_B in objective.logits(batch).values())
        light_B.requires_grad_()
        for i, loss_B in enumerate((binary_cross_entropy(light_B, batch.label_B), kl_divergence(light_B, booster_B))):
            squares[i] += gradient(loss_B, light_B).square().sum() * (34 if seed == 0 else 33)
    torch.testing.assert_close(measured[0], squares)
    objective.losses(networks.batch(seed=9), MEASURED_STEPS)
    objective.eval()
    objective.losses(networks.batch(seed=9), 0)
    assert torch.equal(objective.get_buffer("gradient_squares"), measured)


def test_the_measure_waits_for_the_first_label() -> None:
    """Else a log whose labels begin late would never hear the hint."""
    objective, batch = made(rocket(hint=Hint("kl", gradient_share=1.0))()), networks.batch()
    without = replace(batch, label_B=torch.full_like(batch.label_B, torch.nan))
    for step in range(MEASURED_STEPS + 1):
        assert (objective.losses(without, step)["hint"] == 0).all()
    assert objective.losses(batch, MEASURED_STEPS + 1)["hint"].sum() > 0
    measured = objective.get_buffer("gradient_squares").clone()
    objective.losses(batch, MEASURED_STEPS + 2)
    assert torch.equal(objective.get_buffer("gradient_squares"), measured)


def test_each_lesson_is_measured_by_itself() -> None:
    objective, batch = made(peers(2, in_turn=True, hint=Hint("kl", gradient_share=1.0))()), networks.batch()
    for step in range(MEASURED_STEPS):
        losses(objective, batch, step)
    squares = objective.get_buffer("gradient_squares")
    assert squares.shape == (2, 2)
    assert (squares > 0).all()
    assert squares[0, 0] != squares[1, 0]  # p - q is alike for two peers, the label loss is not


@pytest.mark.parametrize("role_of", [{"booster": "light"}, {"light": "booster"}])
def test_the_gradient_block_is_of_the_teacher_only(role_of: Mapping[str, str]) -> None:
    ((student, teacher),) = role_of.items()
    tables = networks.embedding()
    towers = {role: Network(tables, tower(tables, 8)) for role in ("light", "booster")}
    found = CoTraining(towers, [Lesson(student, (teacher,))]).losses(networks.batch())["hint"]
    for role, network_ in towers.items():
        assert isinstance(network_.tower, MLP)
        moved = gradient(found, network_.tower.linears[0].weight).abs().sum() > 0
        assert moved == (role == student)


def test_rocket_launching_and_distillation_by_hand() -> None:
    teacher, batch = network(16, 8, seed=1), networks.batch()
    objective = rocket(frozen={"teacher": teacher}, lessons=[Lesson("light", ("teacher",), Hint("kl", 0.7, 2.0))])()
    logits = objective.logits(batch)
    expected = 0.5 * logit_mse(logits["light"], logits["booster"])
    expected += 0.7 * kl_divergence(logits["light"], teacher(batch), 2.0)
    torch.testing.assert_close(objective.losses(batch)["hint"], expected)


def test_the_default_rocket_is_the_papers_loss() -> None:
    tables = networks.embedding()
    light, booster = Network(tables, tower(tables, 8)), Network(tables, tower(tables, 16))
    objective, batch = rocket_launching(light, {"booster": booster}, route="paper"), networks.batch()
    total = torch.stack(list(objective.losses(batch).values())).sum(0)
    l_B, z_B, y_B = light(batch), booster(batch), batch.label_B
    torch.testing.assert_close(
        total, binary_cross_entropy(l_B, y_B) + binary_cross_entropy(z_B, y_B) + (l_B - z_B).square()
    )


# --- candidates that nobody saw


def crossed(objective: CoTraining, batch: Batch, step: int) -> Batch:
    """User and context of each impression beside the ad of another one, put together by hand."""
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(step)).tolist()
    item = {feature.name for feature in networks.schema().features if feature.side == "item"}
    values: list[int] = []
    lengths: list[int] = []
    for key in batch.sparse.keys():  # noqa: SIM118
        column = batch.sparse[key]
        ends, of = column.lengths().cumsum(0).tolist(), column.lengths().tolist()
        lists = [column.values()[end - n : end].tolist() for end, n in zip(ends, of, strict=True)]
        lists = [lists[i] for i in order] if key in item else lists
        values += [row for rows in lists for row in rows]
        lengths += [len(rows) for rows in lists]
    sparse = type(batch.sparse)(
        keys=list(batch.sparse.keys()), values=torch.tensor(values), lengths=torch.tensor(lengths)
    )
    dense_BD = batch.dense_BD[order]  # both are the ad's
    return replace(batch, sparse=sparse, dense_BD=dense_BD, ahead={})


def with_candidates(make: Any = rocket, **settings: Any) -> CoTraining:
    return made(make(crossing=Crossing.of(networks.schema()), unexposed=0.3, **settings)())


@pytest.mark.parametrize("step", [0, 5])
def test_hints_on_candidates_by_hand(step: int) -> None:
    objective, batch = with_candidates(), networks.batch()
    logits, found = objective.logits(crossed(objective, batch, step)), objective.losses(batch, step)
    assert found.keys() == {"light", "booster", "hint", "unexposed_hint"}
    expected = 0.3 * 0.5 * logit_mse(logits["light"], logits["booster"])
    torch.testing.assert_close(found["unexposed_hint"], expected)
    without = rocket()().losses(batch, step)
    assert all(torch.equal(found[name], without[name]) for name in without)


def test_hints_on_candidates_move_whom_hints_move() -> None:
    objective = with_candidates()
    found = objective.losses(networks.batch())["unexposed_hint"]
    moved = {part for part in parts(objective) if any(g.any() for g in gradients(found, objective, part))}
    assert moved == {"light", "light head"}


def test_each_peer_hears_the_others_on_candidates() -> None:
    objective = with_candidates(lambda **settings: peers(2, **settings))
    found = objective.losses(networks.batch())
    assert {name for name in found if "unexposed" in name} == {"unexposed_hint_peer0", "unexposed_hint_peer1"}
    for role in ("peer0", "peer1"):
        assert any(g.any() for g in gradients(found[f"unexposed_hint_{role}"], objective, role))
    assert "unexposed_hint_peer0" not in objective.eval().losses(networks.batch())


def test_candidates_are_neither_measured_nor_hinted_at_while_the_hint_is_measured() -> None:
    measured = [
        made(rocket(hint=Hint("kl", gradient_share=1.0))()),
        with_candidates(hint=Hint("kl", gradient_share=1.0)),
    ]
    batch = networks.batch()
    for step in range(MEASURED_STEPS):
        for objective in measured:
            found = objective.losses(batch, step)
            assert all((loss_B == 0).all() for name, loss_B in found.items() if "hint" in name)
    assert torch.equal(*(objective.get_buffer("gradient_squares") for objective in measured))
    assert measured[1].losses(batch, MEASURED_STEPS)["unexposed_hint"].sum() > 0


def test_batches_without_labels_are_measured_too() -> None:
    # else a process whose part has no label would not wait for the others
    objective, batch = made(rocket(hint=Hint("kl", gradient_share=1.0))()), networks.batch()
    found = objective.losses(replace(batch, label_B=torch.full_like(batch.label_B, float("nan"))), 0)
    assert (found["hint"] == 0).all()
    label, hint = objective.get_buffer("gradient_squares")[0].tolist()
    assert label == 0
    assert hint > 0


def test_in_turn_a_teacher_that_is_not_blocked_stays_where_it_is() -> None:
    tables = [networks.embedding(seed=i) for i in range(2)]
    towers = {f"peer{i}": Network(each, tower(each, 8)) for i, each in enumerate(tables)}
    lessons = [Lesson("peer0", ("peer1",), blocked=False), Lesson("peer1", ("peer0",), blocked=False)]
    objective = CoTraining(towers, lessons, in_turn=True)
    for turn, (own, other) in enumerate((("peer0", "peer1"), ("peer1", "peer0"))):
        found = objective.losses(networks.batch(), turn=turn)[f"hint_{own}"]
        assert any(g.any() for g in gradients(found, objective, own))
        assert not any(g.any() for g in gradients(found, objective, other))
