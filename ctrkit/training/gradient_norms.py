"""Whose loss moves the tables, and how much."""

import torch
from torch import Tensor

from ctrkit.data.batch import Batch
from ctrkit.objectives.objective import Objective


def table_gradient_norms(objective: Objective, batch: Batch, step: int) -> dict[str, float]:
    """Norm of each loss's gradient on all table rows, of the batch's weighted mean, by the name of the loss.

    Weights of hints cannot be compared across their kinds; what they do to the tables can. In evaluation mode: nothing
    is dropped, no statistics change, and there are no unexposed candidates. Leaves no gradient behind.
    """
    stacks = [stack for embedding in objective.tables() for stack in embedding.stacks.values()]
    if not stacks:
        return {}
    weight, found = batch.weight_B.sum(), dict[str, float]()
    training = objective.training
    objective.eval()
    try:
        for turn in range(objective.turns):
            for name, loss_B in objective.losses(batch, step, turn).items():
                mean = (batch.weight_B * loss_B).sum() / weight
                if not mean.requires_grad:
                    found[name] = 0.0
                    continue
                gradients = torch.autograd.grad(mean, stacks, retain_graph=True, allow_unused=True)
                found[name] = sum(_square(each) for each in gradients if each is not None) ** 0.5
    finally:
        objective.train(training)
    return found


def _square(gradient: Tensor) -> float:
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return float(values.float().square().sum())
