"""What a network is told of another one's prediction, and how loudly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ctrkit.losses import (
    attention_transfer,
    feature_cosine,
    feature_mse,
    kl_divergence,
    logit_mse,
    probability_mse,
    soft_bce,
)  # fmt: skip

HintLoss = Literal["logit_mse", "probability_mse", "kl", "soft_bce"]
LayerLoss = Literal["mse", "cosine", "attention"]

LAYER_LOSSES: Mapping[LayerLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": feature_mse,
    "cosine": feature_cosine,
    "attention": attention_transfer,
}


@dataclass(frozen=True)
class Hint:
    """A loss between a student's logit and a teacher's, with its weight over time.

    Gradients with respect to the student's logit, for a difference of d in the logit at the probability p:
    logit_mse 2 d, kl and soft_bce p (1 - p) d, probability_mse 2 [p (1 - p)]^2 d. At a click rate of 1 % that is
    1 to 5e-3 to 1e-4: a weight that is right for one of them is wrong for another.
    """

    loss: HintLoss = "logit_mse"
    weight: float = 1.0
    """Lambda."""
    temperature: float = 1.0
    """Of kl."""
    warmup_steps: int = 0
    """Steps in which the weight rises from zero, linearly."""
    decay_steps: int = 0
    """Steps after the warm-up in which it falls to zero again, linearly; 0: it stays."""
    gradient_share: float | None = None
    """Scale the hint so that the norm of its gradient is this share of the label loss's, both with respect to the
    student's logits and measured over the first `MEASURED_STEPS` steps, or until there is something of both, in which
    it is not yet applied."""
    labelled_only: bool = False
    """Only on impressions with a label, its mean taken over them as the label loss's is: what semi-supervised learning,
    where it acts on all, is measured against."""

    def __call__(self, student_B: Tensor, teacher_B: Tensor) -> Tensor:
        """Its loss[B], without its weight."""
        match self.loss:
            case "logit_mse":
                return logit_mse(student_B, teacher_B)
            case "probability_mse":
                return probability_mse(student_B, teacher_B)
            case "kl":
                return kl_divergence(student_B, teacher_B, self.temperature)
            case "soft_bce":
                return soft_bce(student_B, teacher_B)

    def scale(self, squares: Tensor, step: int) -> float:
        """What brings its gradient to its share of the label loss's, given the squared norms of both; at first 0."""
        label, hint = squares.tolist()
        if self.gradient_share is None or step < MEASURED_STEPS or hint == 0:
            return 1.0 if self.gradient_share is None else 0.0
        return float(self.gradient_share * (label / hint) ** 0.5)

    def weight_at(self, step: int) -> float:
        """Its weight in the step after `step` others."""
        if step < self.warmup_steps:
            return self.weight * (step + 1) / self.warmup_steps
        if not self.decay_steps:
            return self.weight
        return self.weight * max(0.0, 1 - (step - self.warmup_steps) / self.decay_steps)


MEASURED_STEPS = 100
"""Steps over which `Hint.gradient_share` measures."""


@dataclass(frozen=True)
class Lesson:
    """One student, its teachers, and the hint."""

    student: str
    """A role."""
    teachers: tuple[str, ...]
    """Roles, frozen networks, or columns of the log."""
    hint: Hint = Hint()
    average: Literal["each", "mean"] = "mean"
    """Of several teachers: the mean of the hints to each, or the hint to the mean of their probabilities."""
    blocked: bool = True
    """The gradient block: the hint does not move the teachers."""
    auxiliary: bool = False
    """The hint acts on a logit of its own, from the student's last hidden layer, that does not serve."""


@dataclass(frozen=True)
class LayerHint:
    """A loss between two hidden layers, counted from 0, the lowest."""

    student: str
    layer: int
    teacher: str
    """A role or a frozen network."""
    teacher_layer: int
    loss: LayerLoss = "mse"
    weight: float = 1.0
