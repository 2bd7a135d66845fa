"""AutoSlim: which channels a trained slimmable tower can best do without (Yu, Huang, arXiv 1903.11728)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ctrkit.data.batch import Batch
from ctrkit.losses import label_loss
from ctrkit.nn.batch_norm_calibration import calibrated_slice
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.slimmable import SlimmableMLP

Channels = tuple[int, ...]
"""Widths of the hidden layers."""


def channels_name(channels: Channels) -> str:
    """What a tower of these widths is called in bundles and results: 104x40."""
    return "x".join(map(str, channels))


@dataclass(frozen=True)
class Step:
    """A tower on the way from the full one to the smallest."""

    widths: Channels
    cost: float
    loss: float


def autoslim(
    full: Channels,
    losses: Callable[[Sequence[Channels]], Sequence[float]],
    cost: Callable[[Channels], float],
    *,
    group: int = 8,
    smallest: Channels | None = None,
) -> list[Step]:
    """Remove one group of channels after another, where the loss rises least for the cost that it saves.

    The paper takes the least loss alone; groups of different layers save different costs here, so the rise is divided
    by what is saved. One way down serves every budget: see `within`.

    Args:
        full: channels of each hidden layer to begin with.
        losses: of several towers, on rows that nothing was trained on.
        cost: of a tower: multiplications, or measured time. A group that saves nothing by it counts as saving little.
        group: channels removed at once; a layer keeps a multiple of it.
        smallest: channels below which no layer goes; one group each if not given.

    Returns:
        The full tower, then each that the one before became.
    """
    floor = smallest or tuple(min(group, size) for size in full)
    found = [Step(full, cost(full), losses([full])[0])]
    least = 1e-6 * max(found[0].cost, 1e-12)
    while True:
        here = found[-1]
        narrower = [
            each for layer in range(len(full)) if (each := _narrower(here.widths, layer, group, floor)) is not None
        ]
        if not narrower:
            return found
        steps = [Step(each, cost(each), loss) for each, loss in zip(narrower, losses(narrower), strict=True)]
        found.append(min(steps, key=lambda step: _rise_per_cost(step, here, least)))


def _rise_per_cost(step: Step, here: Step, least: float) -> float:
    """A fall of the loss is better the cheaper the tower gets by it, so it is multiplied by what is saved."""
    rise, saved = step.loss - here.loss, max(here.cost - step.cost, least)
    return rise / saved if rise > 0 else rise * saved


def _narrower(widths: Channels, layer: int, group: int, floor: Channels) -> Channels | None:
    """With one group of a layer fewer: the multiple of `group` below."""
    left = (widths[layer] - 1) // group * group
    return None if left < max(floor[layer], 1) else (*widths[:layer], left, *widths[layer + 1 :])


def within(path: Sequence[Step], budget: float) -> Step | None:
    """The first tower on the way that costs no more; None if even the last one costs more."""
    return next((step for step in path if step.cost <= budget), None)


class WidthLosses:
    """Log loss of a slimmable tower's widths on rows whose embeddings are looked up once.

    Memory: the rows' embeddings and first hidden layer. A tower with batch norm is sliced and calibrated for every
    width.

    Args:
        tower: trained.
        embedding: what it reads.
        held_out: rows that nothing was trained on; their labels are known.
        calibration: rows of the training part, for batch norm; not looked at without.
    """

    def __init__(
        self, tower: SlimmableMLP, embedding: Embedding, held_out: Iterable[Batch], calibration: Iterable[Batch] = ()
    ) -> None:
        self.tower = tower
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for batch in held_out:
                known = ~batch.label_B.isnan()
                x_BX = embedding.vectors(batch).x_BX
                self._parts.append((x_BX[known], batch.label_B[known], batch.weight_B[known]))
            self._calibration = [embedding.vectors(batch).x_BX for batch in calibration] if tower.has_batch_norm else []
        self.rows = sum(len(label_B) for _, label_B, _ in self._parts)

    @torch.no_grad()
    def __call__(self, widths: Sequence[Channels]) -> list[float]:
        """Mean log loss of each, weighted as the rows are."""
        sums = np.zeros(len(widths))
        weight = 0.0
        towers = [self.sliced(each) for each in widths] if self.tower.has_batch_norm else []
        training = self.tower.training
        self.tower.eval()
        for x_BX, label_B, weight_B in self._parts:
            logits = [tower(x_BX) for tower in towers] or [logit_B for _, logit_B in self.tower.traces(x_BX, widths)]
            sums += [(label_loss(logit_B, label_B).double() * weight_B).sum().item() for logit_B in logits]
            weight += weight_B.double().sum().item()
        self.tower.train(training)
        return [float(each) for each in sums / weight]

    def sliced(self, widths: Channels) -> nn.Module:
        """The plain tower of a width, calibrated."""
        return calibrated_slice(self.tower, widths, self._calibration)
