"""A light tower that learns from trained models."""

from collections.abc import Mapping, Sequence
from typing import Any

from ctrkit.names import SINGLE
from ctrkit.nn.network import Network
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.hint import Hint, LayerHint, Lesson


def distillation(
    student: Network,
    teachers: Sequence[str],
    *,
    frozen: Mapping[str, Network] | None = None,
    hint: Hint = Hint("kl"),  # noqa: B008  frozen
    label_weight: float = 1.0,
    layer_hints: Sequence[LayerHint] = (),
    auxiliary: bool = False,
    **settings: Any,
) -> CoTraining:
    """label_weight BCE(student) + lambda hint(student, mean of the teachers).

    With `kl` knowledge distillation (Hinton et al., 2015), with `logit_mse` SNN-MIMIC (Ba, Caruana, NIPS 2014), with
    `attention` layer hints attention transfer (Zagoruyko, Komodakis, ICLR 2017).

    Args:
        student: the network that ships.
        teachers: names in `frozen`, or columns of the log with a probability.
        frozen: trained networks, by name.
        hint: lambda and loss.
        label_weight: of the label loss.
        layer_hints: between hidden layers of the student and of a frozen network.
        auxiliary: the hint acts on a head of its own (`Lesson.auxiliary`).
        settings: of `CoTraining`.
    """
    return CoTraining(
        {SINGLE: student},
        [Lesson(SINGLE, tuple(teachers), hint, "mean", auxiliary=auxiliary)],
        layer_hints=layer_hints,
        frozen=frozen,
        label_weight={SINGLE: label_weight},
        **settings,
    )
