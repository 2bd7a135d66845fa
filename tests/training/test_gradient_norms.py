"""Gradient norms on the tables: each loss by itself, without a trace in the training."""

from dataclasses import replace

import pytest
import torch

from ctrkit.nn.mlp import MLP
from ctrkit.training.gradient_norms import table_gradient_norms
from tests import networks
from tests.training import small_run


def test_norms_by_hand() -> None:
    objective, batch = small_run.rocket(dropout=0.0).eval(), networks.batch(32)
    batch = replace(batch, weight_B=torch.rand(32) + 0.5)
    found = table_gradient_norms(objective, batch, 0)
    (stack,) = objective.tables()[0].stacks.values()
    for name, loss_B in objective.losses(batch).items():
        mean = (batch.weight_B * loss_B).sum() / batch.weight_B.sum()
        (gradient,) = torch.autograd.grad(mean, stack, retain_graph=True, allow_unused=True)
        expected = 0.0 if gradient is None else gradient.to_dense().norm().item()
        assert found[name] == pytest.approx(expected, rel=1e-5), name
    assert found["booster"] > 0
    assert found["light"] == found["hint"] == 0  # the route `shared`


def test_without_tables_there_is_nothing_to_measure() -> None:
    features = {"price": {"side": "item", "kind": "dense"}, "bid": {"side": "item", "kind": "dense"}}
    tables = networks.embedding(features)
    objective = networks.rocket(tables, MLP(2, [4]), MLP(2, [8]))
    assert table_gradient_norms(objective, networks.batch(8, features), 0) == {}


def test_the_training_notices_nothing() -> None:
    objective, batch = small_run.rocket(), networks.batch(32)
    before, buffers = torch.get_rng_state(), [buffer.clone() for buffer in objective.buffers()]
    table_gradient_norms(objective, batch, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert objective.training
    assert all(torch.equal(a, b) for a, b in zip(objective.buffers(), buffers, strict=True))
    assert all(parameter.grad is None for parameter in objective.parameters())
