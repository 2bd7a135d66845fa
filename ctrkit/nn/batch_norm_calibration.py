"""Statistics of batch norm, measured after training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrkit.nn.mlp import MLP
from ctrkit.nn.slimmable import SharedNorm, SlimmableMLP, Widths


@torch.no_grad()
def calibrate_batch_norm(tower: MLP, parts: Sequence[Tensor]) -> None:
    """Set the statistics of a tower's batch norms to mean and variance over all rows, as if they were one batch.

    One pass over the rows, layer by layer: a layer is measured on what the layers below give with their new statistics.
    An average over batches of their statistics, as universally slimmable networks take it (Yu, Huang, ICCV 2019,
    section 3.3), misses how the batches' means differ. Memory: the rows at their widest layer, twice.

    Args:
        tower: changed in place.
        parts: x[B, in_features] of the rows.
    """
    training = tower.training
    tower.eval()
    for layer in list(tower.layers)[:-1]:
        if isinstance(layer, nn.BatchNorm1d):
            mean_H, variance_H = pooled_statistics(parts)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.copy_(mean_H)
            layer.running_var.copy_(variance_H)
        parts = [layer(x_BH) for x_BH in parts]
    tower.train(training)


def calibrated_slice(tower: SlimmableMLP, widths: Widths | None, parts: Sequence[Tensor] | None) -> MLP:
    """The plain tower of a width, in evaluation mode.

    Args:
        tower: trained.
        widths: which.
        parts: x[B, in_features] of rows that its batch norm is calibrated on; None: it is not.

    Raises:
        ValueError: the width has no statistics of its own, as switchable batch norm wants them.
    """
    sliced = tower.slice(widths, statistics=False).eval()
    if parts is not None:
        calibrate_batch_norm(sliced, parts)
    return sliced


@torch.no_grad()
def calibrate_widths(tower: SlimmableMLP, parts: Sequence[Tensor]) -> None:
    """Set the statistics of every listed width of a universally slimmable tower; others have nothing to be set."""
    if tower.norm != "universal_batch_norm":
        return
    for widths in tower.widths:
        sliced = calibrated_slice(tower, widths, parts)
        norms = [layer for layer in sliced.layers if isinstance(layer, nn.BatchNorm1d)]
        for norm, own in zip(norms, tower.norms, strict=True):
            assert isinstance(own, SharedNorm)
            for kept_H, found_H in zip(own.statistics(widths), (norm.running_mean, norm.running_var), strict=True):
                assert found_H is not None
                kept_H.copy_(found_H)


def pooled_statistics(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance (of N, not N - 1) of each column over the rows of all parts, float64 [H].

    Parts are merged as Chan, Golub and LeVeque do (1979, eq. 1.5): no difference of large sums of squares.
    """
    rows, mean_H, squares_H = 0, torch.zeros(()), torch.zeros(())
    for part_BH in parts:
        x_BH = part_BH.double()
        if not len(x_BH):
            continue
        variance_H, here_H = torch.var_mean(x_BH, dim=0, correction=0)
        total = rows + len(x_BH)
        step_H = here_H - mean_H.to(here_H)
        squares_H = squares_H.to(here_H) + variance_H * len(x_BH) + step_H.square() * (rows * len(x_BH) / total)
        mean_H, rows = mean_H.to(here_H) + step_H * (len(x_BH) / total), total
    if not rows:
        raise ValueError("batch norm cannot be calibrated without rows")
    return mean_H, squares_H / rows
