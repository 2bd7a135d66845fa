"""What every objective must keep. A new one is a line in `cases.CASES`."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ctrkit.builders.optimizers import build_optimizers
from ctrkit.config.train import TrainConfig
from ctrkit.data.batch import Batch
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.tower import Vectors
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.objective import Objective
from ctrkit.training import state
from ctrkit.training.checkpoints import Checkpoints
from tests import networks
from tests.objectives.cases import CASES, Case, losses, parts

every_objective = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


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


def test_names_of_cases_are_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@every_objective
def test_every_parameter_is_in_one_part(case: Case) -> None:
    objective = case.make()
    known = [id(p) for parameters in parts(objective).values() for p in parameters]
    assert len(known) == len(set(known))
    assert {id(p) for p in objective.parameters()} == set(known)


@every_objective
def test_losses_are_finite_and_unreduced(case: Case) -> None:
    objective, batch = case.make(), case.batch()
    found = losses(objective, batch)
    assert found.keys() == case.moves.keys()
    for loss_B in found.values():
        assert loss_B.shape == (64,)
        assert loss_B.isfinite().all()
        assert (loss_B >= 0).all()
        assert len(set(loss_B.tolist())) > 32  # one value an impression, not a mean spread over them


@every_objective
def test_logits_look_every_embedding_up_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, read, vectors = case.make(), list[Embedding](), Embedding.vectors

    def watched(self: Embedding, batch: Batch) -> Vectors:
        read.append(self)
        return vectors(self, batch)

    monkeypatch.setattr(Embedding, "vectors", watched)
    objective.logits(case.batch())
    assert sorted(map(id, read)) == sorted(map(id, objective.tables()))


@every_objective
@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_losses_of_extreme_logits_are_finite(case: Case, logit: float) -> None:
    objective, batch = case.make(), case.batch()
    with torch.no_grad():
        for network in objective.networks().values():
            last = [m for m in network.tower.modules() if isinstance(m, torch.nn.Linear)][-1]
            last.bias.fill_(logit)
    total = torch.stack(list(losses(objective, batch).values())).sum()
    torch.autograd.backward(total)
    assert total.isfinite()
    assert all(p.grad.to_dense().isfinite().all() for p in objective.parameters() if p.grad is not None)


@every_objective
def test_gradients_reach_exactly_the_declared_parameters(case: Case) -> None:
    objective = case.make()
    found = losses(objective, case.batch())
    assert {name: moved(loss_B.sum(), objective) for name, loss_B in found.items()} == case.moves


@pytest.mark.parametrize("case", [case for case in CASES if case.memorises], ids=lambda case: case.name)
def test_loss_falls_to_near_zero_on_64_rows(case: Case) -> None:
    objective, batch = case.make(), case.batch()
    config = TrainConfig(lr=0.01, table_lr=0.01, weight_decay=0.0, table_l2=0.0)
    optimizers, _, _ = build_optimizers(objective, config, 1)
    start = end = 0.0
    for step in range(1000):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = torch.stack(list(losses(objective, batch).values())).sum(0).mean()
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
    objective, batch = case.make(), case.batch()
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
    objective, batch = case.make(), case.batch()
    optimizers, _, _ = build_optimizers(objective, TrainConfig(), 1)
    before = {part: [p.detach().clone() for p in found] for part, found in parts(objective).items()}
    torch.autograd.backward(torch.stack(list(losses(objective, batch).values())).sum(0).mean())
    for optimizer in optimizers:
        optimizer.step()
    for part, found in parts(objective).items():
        unchanged = {torch.equal(a, b) for a, b in zip(before[part], found, strict=True)}
        assert unchanged == {part == "frozen"}, part
    assert all(p.isfinite().all() for p in objective.parameters())
    assert all(loss_B.isfinite().all() for loss_B in losses(objective, batch).values())


@every_objective
def test_losses_do_not_depend_on_how_rows_are_batched(case: Case) -> None:
    objective = case.make().eval()
    whole = losses(objective, case.batch())
    cuts = [slice(0, 1), slice(1, 30), slice(30, 64)]
    pieces = [losses(objective, case.batch(take=cut)) for cut in cuts]
    for name, loss_B in whole.items():
        torch.testing.assert_close(torch.cat([piece[name] for piece in pieces]), loss_B, atol=1e-6, rtol=1e-6)


@every_objective
def test_logits_are_those_of_the_networks(case: Case) -> None:
    objective, batch = case.make().eval(), case.batch()
    logits = objective.logits(batch)
    assert logits.keys() == objective.networks().keys()
    for role, network in objective.networks().items():
        assert torch.equal(logits[role], network(batch))


@every_objective
def test_what_ships_is_the_network_of_the_inference_role(case: Case) -> None:
    objective, batch = case.make().eval(), case.batch()
    assert objective.inference_model() is objective.networks()[objective.inference_role()]
    assert torch.equal(objective.inference_model()(batch), objective.logits(batch)[objective.inference_role()])


@every_objective
def test_networks_share_what_they_are_said_to_share(case: Case) -> None:
    objective = case.make()
    embeddings = {id(e) for network in objective.networks().values() for e in network.embeddings}
    assert len(embeddings) == case.tables
    assert {id(e) for e in objective.tables()} == embeddings


@every_objective
def test_a_checkpoint_has_all_that_is_trained_and_nothing_frozen(case: Case) -> None:
    objective = case.make()
    kept = state.weights(objective)
    assert {name.partition(".")[0] for name in kept} <= {"tables", "towers", "objective"}
    storages = {tensor.untyped_storage().data_ptr() for tensor in kept.values() if isinstance(tensor, Tensor)}
    for part, parameters in parts(objective).items():
        assert {p.untyped_storage().data_ptr() in storages for p in parameters} == {part != "frozen"}, part


@every_objective
def test_what_is_frozen_is_in_evaluation_mode_and_has_no_gradient(case: Case) -> None:
    objective = case.make()
    for mode in (True, False, True):
        objective.train(mode)
        assert all(network.training is mode for network in objective.towers.values())
        for module in objective.frozen.modules() if isinstance(objective, CoTraining) else ():
            assert not module.training
    torch.autograd.backward(torch.stack(list(losses(objective, case.batch()).values())).sum())
    assert all(p.grad is None and not p.requires_grad for p in parts(objective).get("frozen", []))


@every_objective
def test_a_copy_has_networks_of_its_own(case: Case) -> None:
    objective, batch = case.make().eval(), case.batch(8)
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
    sets = len([e for e in objective.tables() if any(t.name == "item" for t in e.tables)])
    assert sets * large < sum(path.stat().st_size for path in saved.path.iterdir()) < (sets + 0.5) * large


@every_objective
def test_training_does_not_change_the_batch(case: Case) -> None:
    batch = case.batch(8)
    before = replace(batch, dense_BD=batch.dense_BD.clone(), label_B=batch.label_B.clone())
    torch.autograd.backward(torch.stack(list(losses(case.make(), batch).values())).sum())
    assert torch.equal(batch.dense_BD, before.dense_BD)
    assert torch.equal(batch.label_B, before.label_B)
