"""Hints on unexposed candidates: the teacher is heard on them, the label is not."""

import torch

from ctrkit.data.crossing import Crossing
from ctrkit.losses import soft_bce
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.distillation import distillation
from ctrkit.objectives.hint import Hint
from tests import networks

CROSSING = Crossing.of(networks.schema())


def student(unexposed: float) -> CoTraining:
    teacher = networks.network(seed=1)
    hint = Hint("soft_bce", weight=0.5)
    return distillation(
        networks.network(), ["teacher"], frozen={"teacher": teacher}, hint=hint, crossing=CROSSING, unexposed=unexposed
    )


def test_the_hint_on_candidates_by_hand() -> None:
    objective, batch, step = student(2.0), networks.batch(32), 7
    order = torch.randperm(32, generator=torch.Generator().manual_seed(step))
    candidates = CROSSING(batch, order)
    found = objective.losses(batch, step)
    assert found.keys() == {"label", "hint", "unexposed_hint"}
    logit_B, teacher_B = objective.networks()[""](candidates), objective.frozen.networks()["teacher"](candidates)
    torch.testing.assert_close(found["unexposed_hint"], 2.0 * 0.5 * soft_bce(logit_B, teacher_B))
    assert not torch.allclose(found["unexposed_hint"], 2.0 * found["hint"])


def test_other_candidates_at_every_step_and_none_in_evaluation() -> None:
    objective, batch = student(1.0), networks.batch(32)
    first, again, other = (objective.losses(batch, step)["unexposed_hint"] for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert objective.eval().losses(batch).keys() == {"label", "hint"}
    assert student(0.0).losses(batch).keys() == {"label", "hint"}
