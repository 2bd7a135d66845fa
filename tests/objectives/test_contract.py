"""What every objective must keep. A new one is a line in CASES."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrkit.builders.optimizers import build_optimizers
from ctrkit.config_models import TrainConfig
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.nn.slimmable import Norm, SlimmableMLP
from ctrkit.objectives.hint import Hint
from ctrkit.objectives.objective import Objective
from ctrkit.objectives.pointwise import Pointwise
from ctrkit.objectives.rocket_launching import Route
from ctrkit.objectives.slimmable import Slimmable
from ctrkit.training import state
from ctrkit.training.checkpoints import Checkpoints
from tests import networks


@dataclass(frozen=True)
class Case:
    """An objective with the parameters that each of its losses moves: roles of networks (their towers), or "tables"."""

    name: str
    make: Callable[[], Objective]
    moves: Mapping[str, set[str]]


def towers(*hidden: tuple[int, ...]) -> tuple[Embedding, list[MLP]]:
    tables = networks.embedding()
    return tables, [MLP(tables.out_features, widths) for widths in hidden]


def pointwise() -> Objective:
    tables, (tower,) = towers((16, 8))
    return Pointwise(Network(tables, tower))


def rocket(route: Route) -> Callable[[], Objective]:
    def make() -> Objective:
        tables, (light, booster) = towers((8,), (16, 8))
        return networks.rocket(tables, light, booster, hint_weight=0.5, route=route)

    return make


WIDTHS = {"w0.5": 0.5, "w1.0": 1.0}


def slimmable(norm: Norm = "none", *, boosted: bool = False, **settings: Any) -> Callable[[], Objective]:
    def make() -> Objective:
        tables, (booster,) = towers((16, 8))
        tower = SlimmableMLP(tables.out_features, (16, 8), norm=norm, widths=list(WIDTHS.values()), multiple=4)
        boosters = {"booster": Network(tables, booster)} if boosted else None
        return Slimmable(tables, tower, WIDTHS, boosters=boosters, **settings)

    return make


ALL_WIDTHS = {*WIDTHS, "tables"}

CASES = [
    Case("pointwise", pointwise, {"label": {"", "tables"}}),
    Case(
        "rocket_launching, route none",
        rocket("none"),
        {"light": {"light", "tables"}, "booster": {"booster", "tables"}, "hint": {"light", "booster", "tables"}},
    ),
    Case(
        "rocket_launching, route paper",
        rocket("paper"),
        {"light": {"light", "tables"}, "booster": {"booster", "tables"}, "hint": {"light", "tables"}},
    ),
    Case(
        "rocket_launching, route shared",
        rocket("shared"),
        {"light": {"light"}, "booster": {"booster", "tables"}, "hint": {"light"}},
    ),
    Case(
        "slimmable, sandwich",
        slimmable(narrow_to_tables=1.0, distillation=1.0),
        {"widest": ALL_WIDTHS, "narrower": ALL_WIDTHS},
    ),
    Case(
        "slimmable, list with labels",
        slimmable(sampling="list", label_weight=1.0, distillation=0.0, narrow_to_tables=1.0),
        {"widest": ALL_WIDTHS, "narrower": ALL_WIDTHS},
    ),
    Case(
        "slimmable, narrower widths away from the tables",
        slimmable(non_uniform=True, distillation=1.0),
        {"widest": ALL_WIDTHS, "narrower": {*WIDTHS}},
    ),
    Case(
        "slimmable under a booster",
        slimmable(boosted=True, gradient_to_tables=0.0, hint=Hint(weight=0.5)),
        {"widest": {*WIDTHS}, "narrower": {*WIDTHS}, "booster": {"booster", "tables"}, "hint": {*WIDTHS}},
    ),
]

every_objective = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def parts(objective: Objective) -> dict[str, list[Tensor]]:
    """Parameters of the towers by role, and of the tables."""
    towers: dict[str, list[Tensor]] = {role: [*n.tower.parameters()] for role, n in objective.networks().items()}
    tables = [w for n in objective.networks().values() for w in n.embedding.stacks.values()]
    return {**towers, "tables": list(dict.fromkeys(tables))}


def moved(loss: Tensor, objective: Objective) -> set[str]:
    """The parts that a loss has a gradient for: all tensors of a part or none."""
    objective.zero_grad(set_to_none=True)
    torch.autograd.backward(loss, retain_graph=True)
    found = {
        part: {p.grad is not None and bool(p.grad.to_dense().abs().sum() > 0) for p in parameters}
        for part, parameters in parts(objective).items()
    }
    assert all(len(one) == 1 for one in found.values()), found
    return {part for part, (has,) in found.items() if has}


@every_objective
def test_every_parameter_belongs_to_a_network(case: Case) -> None:
    objective = case.make()
    known = {id(p) for parameters in parts(objective).values() for p in parameters}
    assert {id(p) for p in objective.parameters()} == known


@every_objective
def test_losses_are_finite_and_unreduced(case: Case) -> None:
    objective, batch = case.make(), networks.batch(64)
    losses = objective.losses(batch)
    assert losses.keys() == case.moves.keys()
    for loss_B in losses.values():
        assert loss_B.shape == (64,)
        assert loss_B.isfinite().all()
        assert (loss_B >= 0).all()
        assert len(set(loss_B.tolist())) > 32  # one value an impression, not a mean spread over them


@every_objective
@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_losses_of_extreme_logits_are_finite(case: Case, logit: float) -> None:
    objective, batch = case.make(), networks.batch(64)
    with torch.no_grad():
        for network in objective.networks().values():
            last = [m for m in network.tower.modules() if isinstance(m, torch.nn.Linear)][-1]
            last.bias.fill_(logit)
    total = torch.stack(list(objective.losses(batch).values())).sum()
    torch.autograd.backward(total)
    assert total.isfinite()
    assert all(p.grad.to_dense().isfinite().all() for p in objective.parameters() if p.grad is not None)


@every_objective
def test_gradients_reach_exactly_the_declared_parameters(case: Case) -> None:
    objective = case.make()
    losses = objective.losses(networks.batch(64))
    assert {name: moved(loss_B.sum(), objective) for name, loss_B in losses.items()} == case.moves


@every_objective
def test_loss_falls_to_near_zero_on_64_rows(case: Case) -> None:
    objective, batch = case.make(), networks.batch(64)
    config = TrainConfig(lr=0.01, table_lr=0.01, weight_decay=0.0, table_l2=0.0)
    optimizers, _, _ = build_optimizers(objective, config, 1)
    start = end = 0.0
    for step in range(1000):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = torch.stack(list(objective.losses(batch).values())).sum(0).mean()
        start, end = (loss.item() if step == 0 else start), loss.item()
        if end < 0.02:
            break
        torch.autograd.backward(loss)
        for optimizer in optimizers:
            optimizer.step()
    assert start > 0.5
    assert end < 0.02


@every_objective
def test_save_and_load_give_the_same_logits(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(1)
    objective, batch = case.make(), networks.batch(64)
    store = Checkpoints(tmp_path)
    saved = store.save(1, state.weights(objective), {}, best=True)
    other = case.make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    before = other.logits(batch)
    store.load(saved, state.weights(other))
    for role, logit_B in objective.logits(batch).items():
        assert not torch.equal(before[role], logit_B)
        assert torch.equal(other.logits(batch)[role], logit_B)


@every_objective
def test_one_step_with_default_settings(case: Case) -> None:
    objective, batch = case.make(), networks.batch(64)
    optimizers, _, _ = build_optimizers(objective, TrainConfig(), 1)
    before = [p.detach().clone() for p in objective.parameters()]
    torch.autograd.backward(torch.stack(list(objective.losses(batch).values())).sum(0).mean())
    for optimizer in optimizers:
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True))
    assert all(p.isfinite().all() for p in objective.parameters())
    assert all(loss_B.isfinite().all() for loss_B in objective.losses(batch).values())


@every_objective
def test_losses_do_not_depend_on_how_rows_are_batched(case: Case) -> None:
    objective = case.make().eval()
    whole = objective.losses(networks.batch(64))
    cuts = [slice(0, 1), slice(1, 30), slice(30, 64)]
    pieces = [objective.losses(networks.batch(64, take=cut)) for cut in cuts]
    for name, loss_B in whole.items():
        torch.testing.assert_close(torch.cat([piece[name] for piece in pieces]), loss_B, atol=1e-6, rtol=1e-6)


@every_objective
def test_logits_are_those_of_the_networks(case: Case) -> None:
    objective, batch = case.make().eval(), networks.batch(64)
    logits = objective.logits(batch)
    assert logits.keys() == objective.networks().keys()
    for role, network in objective.networks().items():
        assert torch.equal(logits[role], network(batch))


@every_objective
def test_what_ships_is_the_network_of_the_inference_role(case: Case) -> None:
    objective, batch = case.make().eval(), networks.batch(64)
    assert objective.inference_model() is objective.networks()[objective.inference_role()]
    assert torch.equal(objective.inference_model()(batch), objective.logits(batch)[objective.inference_role()])


@every_objective
def test_networks_share_one_embedding(case: Case) -> None:
    objective = case.make()
    assert len({id(network.embedding) for network in objective.networks().values()}) == 1


@every_objective
def test_every_module_is_registered_once(case: Case) -> None:
    state = case.make().state_dict()
    storages = [tensor.data_ptr() for tensor in state.values()]
    assert len(storages) == len(set(storages))
    assert {name.partition(".")[0] for name in state} <= {"embeddings", "towers", "gradient_squares"}


@every_objective
def test_a_copy_has_networks_of_its_own(case: Case) -> None:
    objective, batch = case.make().eval(), networks.batch(8)
    copy = deepcopy(objective)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert all((logit_B == 0).all() for logit_B in copy.logits(batch).values())
    assert all((logit_B != 0).any() for logit_B in objective.logits(batch).values())


@every_objective
def test_shared_tables_are_saved_once(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.NUM_ROWS, "item", 50_000)
    objective = case.make()
    saved = Checkpoints(tmp_path).save(1, state.weights(objective), {}, best=True)
    large = 50_000 * networks.DIM * 4
    assert large < sum(path.stat().st_size for path in saved.path.iterdir()) < 1.5 * large


@every_objective
def test_training_does_not_change_the_batch(case: Case) -> None:
    batch = networks.batch(8)
    before = replace(batch, dense_BD=batch.dense_BD.clone(), label_B=batch.label_B.clone())
    torch.autograd.backward(torch.stack(list(case.make().losses(batch).values())).sum())
    assert torch.equal(batch.dense_BD, before.dense_BD)
    assert torch.equal(batch.label_B, before.label_B)
