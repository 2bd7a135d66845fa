"""Losses: pure functions on logits, one value an impression, unreduced."""

from torch import Tensor
from torch.nn import functional


def binary_cross_entropy(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """-y log p - (1 - y) log(1 - p) with p = sigmoid(logit), from the logit so that it is finite for any finite one.

    Its gradient with respect to the logit is p - y.
    """
    return functional.binary_cross_entropy_with_logits(logit_B, label_B, reduction="none")


def logit_mse(light_B: Tensor, booster_B: Tensor) -> Tensor:
    """(l - z)^2 between two logits: the hint loss of Rocket Launching (Zhou et al., AAAI 2018, eq. 1 and 3).

    Its gradient is 2 (l - z) for the light logit and the negative of that for the booster's: block it by passing the
    booster's detached. The paper's two-logit softmax gives half of it: one logit with half its lambda is the same loss.
    """
    return (light_B - booster_B).square()
