"""Rocket Launching: the hint in closed form, its sign, and what it moves by each route."""

import pytest
import torch
from torch import Tensor

from ctrkit.data.batch import Batch
from ctrkit.losses import binary_cross_entropy, logit_mse
from ctrkit.nn.mlp import MLP
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.rocket_launching import Route
from tests import networks

ROUTES: tuple[Route, ...] = ("none", "paper", "shared")


def rocket(route: Route, hint_weight: float = 1.0) -> CoTraining:
    tables = networks.embedding()
    light, booster = MLP(tables.out_features, (8,)), MLP(tables.out_features, (16, 8))
    return networks.rocket(tables, light, booster, hint_weight=hint_weight, route=route)


def gradient(loss_B: Tensor, at: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss_B.sum(), at, retain_graph=True, materialize_grads=True)
    return found


def test_binary_cross_entropy_by_hand() -> None:
    logit_B, label_B = torch.tensor([0.0, 2.0, -3.0], requires_grad=True), torch.tensor([1.0, 0.0, 0.0])
    loss_B = binary_cross_entropy(logit_B, label_B)
    torch.testing.assert_close(loss_B, torch.tensor([0.693147, 2.126928, 0.048587]), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient(loss_B, logit_B), torch.sigmoid(logit_B) - label_B)


def test_the_hint_in_closed_form() -> None:
    light_B, booster_B = torch.tensor([0.5, -1.0], requires_grad=True), torch.tensor([2.0, -3.0], requires_grad=True)
    hint_B = logit_mse(light_B, booster_B)
    assert hint_B.tolist() == [2.25, 4.0]
    assert gradient(hint_B, light_B).tolist() == [-3.0, 4.0]  # 2 (l - z)
    assert gradient(hint_B, booster_B).tolist() == [3.0, -4.0]
    assert gradient(logit_mse(light_B, booster_B.detach()), booster_B).tolist() == [0.0, 0.0]


def test_half_the_lambda_of_a_two_logit_softmax_is_the_same_hint() -> None:
    light_B, booster_B = torch.tensor([0.5, -1.0]), torch.tensor([2.0, -3.0])
    two_logits = [torch.stack((-u / 2, u / 2), 1) for u in (light_B, booster_B)]
    torch.testing.assert_close((two_logits[0] - two_logits[1]).square().sum(1), 0.5 * logit_mse(light_B, booster_B))


@pytest.mark.parametrize("route", ROUTES)
def test_terms_by_hand(route: Route) -> None:
    objective, batch = rocket(route, hint_weight=0.3), networks.batch(32)
    logits, losses = objective.logits(batch), objective.losses(batch)
    torch.testing.assert_close(losses["hint"], 0.3 * (logits["light"] - logits["booster"]).square())
    torch.testing.assert_close(losses["light"], binary_cross_entropy(logits["light"], batch.label_B))
    torch.testing.assert_close(losses["booster"], binary_cross_entropy(logits["booster"], batch.label_B))


def table_gradient(loss: Tensor, objective: CoTraining) -> Tensor:
    (stack,) = objective.inference_model().embedding.stacks.values()
    (found,) = torch.autograd.grad(loss, stack, retain_graph=True)
    gradient: Tensor = found.to_dense()
    return gradient


def test_by_the_route_none_the_hint_moves_the_tables_through_both_towers() -> None:
    objective, batch = rocket("none"), networks.batch(32)
    light_B, booster_B = objective.networks()["light"](batch), objective.networks()["booster"](batch)
    difference_B = 2 * (light_B - booster_B).detach()
    expected = table_gradient((difference_B * (light_B - booster_B)).sum(), objective)
    torch.testing.assert_close(table_gradient(objective.losses(batch)["hint"].sum(), objective), expected)


def test_by_the_route_of_the_paper_the_hint_moves_the_tables_through_the_light_tower_alone() -> None:
    objective, batch = rocket("paper"), networks.batch(32)
    light_B, booster_B = objective.networks()["light"](batch), objective.networks()["booster"](batch)
    difference_B = 2 * (light_B - booster_B).detach()
    expected = table_gradient((difference_B * light_B).sum(), objective)
    torch.testing.assert_close(table_gradient(objective.losses(batch)["hint"].sum(), objective), expected)


def hint_step(objective: CoTraining, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Logits before and after a small step down the hint alone."""
    before = objective.logits(batch)
    torch.autograd.backward(objective.losses(batch)["hint"].mean())
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.to_dense(), alpha=0.01)
    return before, objective.logits(batch)


@pytest.mark.parametrize("route", ROUTES)
def test_the_hint_draws_the_light_tower_towards_the_booster(route: Route) -> None:
    before, after = hint_step(rocket(route), networks.batch(64))
    distance = (before["light"] - before["booster"]).abs().mean()
    assert (after["light"] - before["booster"]).abs().mean() < distance
    agrees = (after["light"] - before["light"]) * (before["booster"] - before["light"])
    assert (agrees > 0).float().mean() > 0.6


def test_by_the_route_shared_the_hint_leaves_the_booster_where_it_is() -> None:
    before, after = hint_step(rocket("shared"), networks.batch(64))
    assert torch.equal(before["booster"], after["booster"])


def test_no_hint_is_no_hint() -> None:
    objective, batch = rocket("paper", hint_weight=0.0), networks.batch(16)
    assert objective.losses(batch)["hint"].abs().sum() == 0


@pytest.mark.parametrize("route", ROUTES)
def test_the_light_tower_ships(route: Route) -> None:
    objective = rocket(route)
    assert objective.inference_model() is objective.networks()["light"]
    assert list(objective.networks()) == ["light", "booster"]
