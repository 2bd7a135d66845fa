"""Cross-fitting: who learns from which impressions, who teaches on which, and that labels do not come back."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ctrkit.builders.optimizers import build_optimizers
from ctrkit.config.train import TrainConfig
from ctrkit.data.batch import Batch
from ctrkit.data.crossing import Crossing
from ctrkit.losses import binary_cross_entropy, kl_divergence, mean_probability
from ctrkit.names import DrawnBy
from ctrkit.nn.network import Network
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.distillation import distillation
from ctrkit.objectives.fold import Fold
from ctrkit.objectives.hint import Hint, Lesson
from tests import networks
from tests.objectives.cases import gradient, network

COUNT = 3
FOLDS = {f"member{i}": Fold(i, COUNT, "row") for i in range(COUNT)}


def members() -> dict[str, Network]:
    return {role: networks.network(seed=i) for i, role in enumerate(FOLDS)}


def fold_of() -> Tensor:
    fold_B = (networks.batch().draws["row"] * COUNT).floor()
    assert {0.0, 1.0, 2.0} == set(fold_B.tolist())
    return fold_B


def held(fold: Fold, batch: Batch) -> list[int]:
    return fold.holds(batch).nonzero()[:, 0].tolist()


def test_every_impression_is_in_one_fold() -> None:
    draws = {"row": torch.tensor([0.0, 0.333, 0.334, 0.99999994]), "group": torch.tensor([0.5, 0.5, 0.0, 0.0])}
    batch = replace(networks.batch(4), draws=draws)
    assert [held(fold, batch) for fold in FOLDS.values()] == [[0, 1], [2], [3]]
    assert [held(Fold(i, COUNT, "group"), batch) for i in range(COUNT)] == [[2, 3], [0, 1], []]
    with pytest.raises(KeyError, match="row"):  # a loader that does not give draws must not turn folds off
        FOLDS["member0"].holds(replace(batch, draws={}))


def test_a_member_learns_from_all_but_its_fold() -> None:
    batch, fold_B = networks.batch(), fold_of()
    objective = CoTraining(members(), folds=FOLDS)
    found, logits = objective.losses(batch), objective.logits(batch)
    for i, role in enumerate(FOLDS):
        left_out = fold_B == i
        assert (found[role][left_out] == 0).all()
        expected = 1.5 * binary_cross_entropy(logits[role], batch.label_B)  # as much weight as if it had all of them
        torch.testing.assert_close(found[role][~left_out], expected[~left_out])
        weight = objective.networks()[role].tower.get_parameter("layers.0.weight")
        assert gradient(found[role][left_out], weight).abs().sum() == 0


def test_on_each_impression_the_member_teaches_that_has_not_learnt_it() -> None:
    batch, fold_B, teachers = networks.batch(), fold_of(), members()
    objective = distillation(networks.network(seed=9), list(teachers), frozen=teachers, folds=FOLDS, hint=Hint("kl"))
    found, student_B = objective.losses(batch), objective.logits(batch)[""]
    logits = [teacher(batch) for teacher in teachers.values()]
    for i, teacher_B in enumerate(logits):
        expected = kl_divergence(student_B, teacher_B)
        torch.testing.assert_close(found["hint"][fold_B == i], expected[fold_B == i])
    without = distillation(networks.network(seed=9), list(teachers), frozen=teachers, hint=Hint("kl")).losses(batch)
    torch.testing.assert_close(without["hint"], kl_divergence(student_B, mean_probability(logits)))
    assert not torch.allclose(without["hint"], found["hint"])


def test_a_teacher_without_a_fold_speaks_beside_them() -> None:
    batch, fold_B = networks.batch(), fold_of()
    teachers = {**members(), "other": networks.network(seed=7)}
    objective = distillation(networks.network(seed=9), list(teachers), frozen=teachers, folds=FOLDS, hint=Hint("kl"))
    found, student_B = objective.losses(batch), objective.logits(batch)[""]
    logits = {name: teacher(batch) for name, teacher in teachers.items()}
    expected = kl_divergence(student_B, mean_probability([logits["member1"], logits["other"]]))
    torch.testing.assert_close(found["hint"][fold_B == 1], expected[fold_B == 1])


@pytest.mark.parametrize("by", ["row", "group"])
def test_on_candidates_those_teach_that_have_not_learnt_the_user(by: DrawnBy) -> None:
    """A candidate has the user and the context of an impression; folds of impressions know nothing of that."""
    teachers, folds = members(), {role: Fold(i, COUNT, by) for i, role in enumerate(FOLDS)}
    batch = replace(networks.batch(), draws={by: networks.batch().draws["row"]})
    crossing = Crossing.of(networks.schema())
    objective = distillation(
        networks.network(seed=9), list(teachers), frozen=teachers, folds=folds, crossing=crossing, unexposed=1.0
    )
    candidates = crossing(batch, torch.randperm(len(batch), generator=torch.Generator().manual_seed(5)))
    student_B, said = objective.logits(candidates)[""], [teacher(candidates) for teacher in teachers.values()]
    everybody_B, fold_B = kl_divergence(student_B, mean_probability(said)), fold_of()
    found = objective.losses(batch, step=5)["unexposed_hint"]
    for i in range(COUNT):
        expected = everybody_B if by == "row" else kl_divergence(student_B, said[i])
        torch.testing.assert_close(found[fold_B == i], expected[fold_B == i])


def test_what_teachers_have_learnt_by_heart_does_not_come_back() -> None:
    """Labels by chance, and features of which each impression has its own: there is nothing to learn but the labels."""
    teachers = {role: network(64, 32, seed=i) for i, role in enumerate(FOLDS)}
    batch, fold_B = networks.batch(), fold_of()
    objective = CoTraining(teachers, folds=FOLDS)
    config = TrainConfig(lr=0.01, table_lr=0.01, weight_decay=0.0, table_l2=0.0)
    optimizers, _, _ = build_optimizers(objective, config, 1)
    for _ in range(150):
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(torch.stack([*objective.losses(batch).values()]).sum(0).mean())
        for optimizer in optimizers:
            optimizer.step()
    objective.eval()
    said = torch.stack([logit_B.detach() for logit_B in objective.logits(batch).values()])
    own_B = said.gather(0, fold_B.long()[None]).squeeze(0)
    clicked = batch.label_B == 1

    def told(logit_B: Tensor) -> float:
        return float(logit_B.sigmoid()[clicked].mean() - logit_B.sigmoid()[~clicked].mean())

    assert told(mean_probability(list(said))) > 0.4
    assert abs(told(own_B)) < 0.2


def test_a_lesson_between_members_that_train_goes_by_folds_too() -> None:
    batch, fold_B = networks.batch(), fold_of()
    towers = {"light": networks.network(seed=9), **members()}
    objective = CoTraining(towers, [Lesson("light", tuple(FOLDS), Hint("kl"))], folds=FOLDS)
    found, logits = objective.losses(batch), objective.logits(batch)
    expected = kl_divergence(logits["light"], logits["member2"])
    torch.testing.assert_close(found["hint"][fold_B == 2], expected[fold_B == 2])
