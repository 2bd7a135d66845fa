"""Losses: pure functions on logits, one value an impression, unreduced."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def binary_cross_entropy(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """-y log p - (1 - y) log(1 - p) with p = sigmoid(logit), from the logit so that it is finite for any finite one.

    Its gradient with respect to the logit is p - y.
    """
    return functional.binary_cross_entropy_with_logits(logit_B, label_B, reduction="none")


def label_loss(
    logit_B: Tensor,
    label_B: Tensor,
    smoothing: float = 0.0,
    *,
    weight_B: Tensor | None = None,
    labelled_share: float | None = None,
) -> Tensor:
    """Binary cross-entropy where there is a label, zero where it is NaN.

    In a batch with labels for some, theirs weigh as much more as there are fewer: its (weighted) mean is that over the
    labelled.

    Args:
        logit_B: of one network.
        label_B: 0, 1 or NaN.
        smoothing: share of the label that becomes one half.
        weight_B: of the impressions in that mean; alike if not given.
        labelled_share: see `labelled`.
    """
    if not label_B.isnan().any() and labelled_share is None:
        return binary_cross_entropy(logit_B, label_B * (1 - smoothing) + smoothing / 2 if smoothing else label_B)
    target_B = label_B.nan_to_num() * (1 - smoothing) + smoothing / 2
    return binary_cross_entropy(logit_B, target_B) * labelled(label_B, weight_B, labelled_share)


def labelled(label_B: Tensor, weight_B: Tensor | None = None, share: float | None = None) -> Tensor:
    """Makes the mean of losses that over the labelled: zero where the label is NaN, elsewhere one over their share.

    Args:
        label_B: 0, 1 or NaN; if all are NaN, it is zero.
        weight_B: of the impressions in the mean; alike if not given.
        share: weight of the labelled among all of the mean, where these impressions are only a part of it.
    """
    known_B = ~label_B.isnan()
    if share is not None:
        return known_B / (share or 1.0)
    weight_B = torch.ones_like(label_B) if weight_B is None else weight_B
    here = (weight_B * known_B).sum() / weight_B.sum()
    return known_B / torch.where(here > 0, here, 1.0)


def logit_mse(student_B: Tensor, teacher_B: Tensor) -> Tensor:
    """(l - z)^2 between two logits: the hint loss of Rocket Launching (Zhou et al., AAAI 2018, eq. 1 and 3).

    Its gradient is 2 (l - z) for the student's logit l and the negative of that for the teacher's z: block it by
    passing the teacher's detached. The paper's two-logit softmax gives half of it: one logit with half its lambda is
    the same loss.
    """
    return (student_B - teacher_B).square()


def probability_mse(student_B: Tensor, teacher_B: Tensor) -> Tensor:
    """(p - q)^2 between two click probabilities: L_MSE of Rocket Launching (eq. 2).

    Its gradient 2 (p - q) p (1 - p) vanishes with p: at a click rate of 1 % it is some 10^-4 of the logit MSE's.
    """
    return (student_B.sigmoid() - teacher_B.sigmoid()).square()


def soft_bce(student_B: Tensor, teacher_B: Tensor) -> Tensor:
    """Cross-entropy with the teacher's probability q as the label: its gradient for the student's logit is p - q.

    Pass the teacher's detached: the gradient for it, -l q (1 - q), is not zero where both agree.
    """
    return functional.binary_cross_entropy_with_logits(student_B, teacher_B.sigmoid(), reduction="none")


def kl_divergence(student_B: Tensor, teacher_B: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(q || p) with q = sigmoid(z / T), p = sigmoid(l / T), for click and no click together.

    The loss between peers in Deep Mutual Learning (Zhang et al., CVPR 2018, D_KL(p2 || p1), at T = 1) and of knowledge
    distillation (Hinton et al., 2015), whose T^2 keeps the gradient, T (p - q), in scale as T grows; Rocket Launching's
    L_KD (eq. 4) has no T^2.
    """
    student_B, teacher_B = student_B / temperature, teacher_B / temperature
    q_B = teacher_B.sigmoid()
    click_B = functional.logsigmoid(teacher_B) - functional.logsigmoid(student_B)
    none_B = functional.logsigmoid(-teacher_B) - functional.logsigmoid(-student_B)
    loss_B = q_B * click_B + (1 - q_B) * none_B
    # no smaller than zero, but for its rounding error, which is taken off: a clamp would take off the gradient too
    return (loss_B - loss_B.detach().clamp(max=0.0)) * temperature**2


def mean_probability(logits: Sequence[Tensor], known_KB: Tensor | None = None) -> Tensor:
    """The logit[B] of the mean of several click probabilities.

    Args:
        logits: K of [B].
        known_KB: which of them count; of each impression at least one.
    """
    if len(logits) == 1:
        return logits[0]
    stacked_KB = torch.stack(list(logits))
    click_KB, none_KB = functional.logsigmoid(stacked_KB), functional.logsigmoid(-stacked_KB)
    if known_KB is not None:
        click_KB, none_KB = (each_KB.masked_fill(~known_KB, -math.inf) for each_KB in (click_KB, none_KB))
    return click_KB.logsumexp(0) - none_KB.logsumexp(0)


def attention_transfer(student_BH: Tensor, teacher_BH: Tensor) -> Tensor:
    """|| a / ||a|| - b / ||b|| ||^2 of squared activations a and b: activation-based attention transfer.

    Zagoruyko, Komodakis, ICLR 2017, eq. 2, with the units of a layer in the place of an image's positions.
    """
    student_BH = functional.normalize(student_BH.float().square(), dim=1, eps=1e-6)
    teacher_BH = functional.normalize(teacher_BH.float().square(), dim=1, eps=1e-6)
    return (student_BH - teacher_BH).square().sum(1)


def feature_mse(student_BH: Tensor, teacher_BH: Tensor) -> Tensor:
    """Mean over the units of the squared difference of two hidden layers (Romero et al., FitNets, ICLR 2015, eq. 3)."""
    return (student_BH.float() - teacher_BH.float()).square().mean(1)


def feature_cosine(student_BH: Tensor, teacher_BH: Tensor) -> Tensor:
    """1 - cos of two hidden layers: zero where they point the same way."""
    return 1.0 - functional.cosine_similarity(student_BH.float(), teacher_BH.float(), dim=1)
