"""The slow reference: torch's dense Adam, every row at every step."""

import pytest
import torch

from benchmarks.reference import DenseAdam, reference
from ctrkit import train_model
from ctrkit.config.train import TrainConfig
from ctrkit.training.table_optimizer import TableOptimizer
from tests import networks
from tests.training import small_run


def test_every_row_of_the_tables_moves_as_torchs_adam_moves_it() -> None:
    objective, batch = small_run.pointwise(), networks.batch(16)
    (stack,) = objective.tables()[0].stacks.values()
    copy = stack.detach().clone().requires_grad_()
    expected = torch.optim.Adam([copy], lr=1e-2, weight_decay=0.1)
    config = TrainConfig(table_lr=1e-2, table_l2=0.1)
    with reference():
        optimizers, schedulers, _ = train_model.build_optimizers(objective, config, 10)  # type: ignore[attr-defined]
    assert isinstance(optimizers[1], DenseAdam)
    assert len(schedulers) == 2
    for _ in range(2):
        torch.autograd.backward(objective(batch)["label"].mean())
        assert stack.grad is not None
        copy.grad = stack.grad.to_dense()
        optimizers[1].step()
        expected.step()
        torch.testing.assert_close(stack.detach(), copy.detach())
        stack.grad = None
    assert (stack != networks.embedding().stacks["4"]).any(1).sum() > 30  # also rows that the batch never read


def test_afterwards_models_train_as_ever() -> None:
    with pytest.raises(KeyError), reference():
        raise KeyError
    optimizers, *_ = train_model.build_optimizers(small_run.pointwise(), TrainConfig(), 10)  # type: ignore[attr-defined]
    assert isinstance(optimizers[1], TableOptimizer)
