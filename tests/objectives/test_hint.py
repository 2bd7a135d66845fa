"""The weight of a hint over time."""

import pytest

from ctrkit.objectives.hint import Hint


def test_a_weight_that_stays() -> None:
    assert [Hint(weight=0.3).weight_at(step) for step in (0, 1, 10**6)] == [0.3] * 3


def test_warm_up_by_hand() -> None:
    hint = Hint(weight=2.0, warmup_steps=4)
    assert [hint.weight_at(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_decay_by_hand() -> None:
    hint = Hint(weight=2.0, decay_steps=4)
    assert [hint.weight_at(step) for step in range(6)] == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]


def test_warm_up_then_decay_by_hand() -> None:
    hint = Hint(weight=1.0, warmup_steps=2, decay_steps=2)
    assert [hint.weight_at(step) for step in range(6)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0, 0.0])
