"""Greedy removal of channels: against a search of all towers, and on a trained tower whose channels are known."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from ctrkit.losses import binary_cross_entropy
from ctrkit.nn.batch_norm_calibration import calibrate_batch_norm
from ctrkit.nn.slimmable import Norm, SlimmableMLP
from ctrkit.objectives.pointwise import Pointwise
from ctrkit.objectives.slimmable import Slimmable
from ctrkit.slimming.autoslim import Step, WidthLosses, autoslim, within
from ctrkit.training.slice_start import start_from_slice
from tests import networks


def multiplications(widths: tuple[int, ...]) -> float:
    ends = (10, *widths, 1)
    return sum(a * b for a, b in pairwise(ends))


def test_it_removes_where_the_loss_rises_least_for_the_cost() -> None:
    # the first layer's channels are worth nothing, the second's a lot
    path = autoslim((16, 16), lambda many: [1.0 / second for _, second in many], lambda w: w[0] + w[1], group=4)
    assert [step.widths for step in path[:4]] == [(16, 16), (12, 16), (8, 16), (4, 16)]
    assert path[-1].widths == (4, 4)
    assert [step.cost for step in path] == [32, 28, 24, 20, 16, 12, 8]
    assert path[4] == Step((4, 12), 16, 1 / 12)


def test_cost_decides_between_equal_rises() -> None:
    path = autoslim((16, 16), lambda many: [-float(a + b) for a, b in many], lambda w: 10 * w[0] + w[1], group=8)
    assert path[1].widths == (8, 16)
    path = autoslim((16, 16), lambda many: [-float(a + b) for a, b in many], lambda w: w[0] + 10 * w[1], group=8)
    assert path[1].widths == (16, 8)
    # the loss falls: the more the cheaper the tower gets by it
    path = autoslim((16, 16), lambda many: [float(a + b) for a, b in many], lambda w: w[0] + 10 * w[1], group=8)
    assert path[1].widths == (16, 8)


def test_a_group_that_saves_nothing_is_no_division_by_zero() -> None:
    path = autoslim((16, 16), lambda many: [1.0 for _ in many], lambda w: 5.0, group=8)
    assert path[-1].widths == (8, 8)
    path = autoslim((16, 16), lambda many: [-float(sum(w)) for w in many], lambda w: 0.0, group=8)
    assert path[-1].widths == (8, 8)


def test_odd_sizes_go_to_multiples() -> None:
    path = autoslim((20, 6), lambda many: [0.0 for _ in many], multiplications, group=8)
    assert {step.widths[0] for step in path} == {20, 16, 8}
    assert {step.widths[1] for step in path} == {6}


def test_smallest_widths() -> None:
    path = autoslim((16, 16), lambda many: [0.0 for _ in many], multiplications, group=4, smallest=(8, 12))
    assert path[-1].widths == (8, 12)


def test_one_way_down_serves_every_budget() -> None:
    path = autoslim((16, 16), lambda many: [-multiplications(w) for w in many], multiplications, group=4)
    for budget in (1000.0, 400.0, 200.0, 100.0):
        step = within(path, budget)
        assert step is not None
        assert step.cost <= budget
        wider = [each for each in path if each.cost > step.cost]
        assert all(each.cost > budget for each in wider)
    assert within(path, 10.0) is None


@pytest.mark.parametrize("norm", ["none", "layer_norm", "universal_batch_norm"])
def test_losses_of_widths(norm: Norm) -> None:
    tables = networks.embedding()
    torch.manual_seed(0)
    tower = SlimmableMLP(tables.out_features, (16, 8), norm=norm, widths=[1.0])
    batches = [networks.batch(64, seed=seed) for seed in range(3)]
    for batch in batches[1:]:
        batch.weight_B[::2] = 3.0
    batches[0].label_B[:5] = math.nan  # unknown labels say nothing
    losses = WidthLosses(tower, tables, batches, batches)
    assert losses.rows == 3 * 64 - 5
    widths = [(16, 8), (3, 8), (16, 1)]
    found = losses(widths)
    assert tower.training
    for each, loss in zip(widths, found, strict=True):
        total = weight = 0.0
        sliced = losses.sliced(each) if tower.has_batch_norm else tower.slice(each)
        for batch in batches:
            known = ~batch.label_B.isnan()
            logit_B = sliced.eval()(tables.vectors(batch).x_BX)[known].detach()
            weight_B = batch.weight_B[known]
            total += float((binary_cross_entropy(logit_B, batch.label_B[known]) * weight_B).sum())
            weight += float(weight_B.sum())
        assert loss == pytest.approx(total / weight, rel=1e-5)
    assert len(set(found)) == 3


@pytest.mark.parametrize("norm", ["none", "layer_norm", "universal_batch_norm"])
def test_a_network_starts_from_a_slice(norm: Norm) -> None:
    tables, batches = networks.embedding(), [networks.batch(64, seed=seed) for seed in range(3)]
    tower = SlimmableMLP(tables.out_features, (16, 8), norm=norm, widths=[1.0])
    source = Slimmable(tables, tower, {"w0.5": (8, 4), "w1.0": (16, 8)})
    norms: dict[str, Any] = {"batch_norm": tower.has_batch_norm, "layer_norm": norm == "layer_norm"}
    fresh = networks.network(hidden=(11, 3), seed=5, dropout=0.2, **norms)  # the slimmable one has no dropout
    start_from_slice(Pointwise(fresh), source, batches)
    expected = tower.slice((11, 3), statistics=False).eval()
    if tower.has_batch_norm:
        calibrate_batch_norm(expected, [tables.vectors(batch).x_BX for batch in batches])
    torch.testing.assert_close(fresh.eval()(batches[0]), expected(tables.vectors(batches[0]).x_BX))
    with torch.no_grad():
        next(iter(tables.stacks.values())).zero_()
    assert (next(iter(fresh.embedding.stacks.values())) != 0).any()  # its own tables
