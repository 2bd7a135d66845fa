"""The slow reference: the same objective and batches, trained by torch's own means in fp32.

Every row of every table gets a dense gradient and a step of torch.optim.Adam, penalty included, at every step. What is
fast in ctrkit (sparse updates, penalties paid when a row is looked up, bf16) has to reach its quality.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.optim.lr_scheduler import LambdaLR

from ctrkit.builders.optimizers import build_optimizers
from ctrkit.config.train import TrainConfig
from ctrkit.objectives.objective import Objective


class DenseAdam(torch.optim.Adam):
    """torch.optim.Adam that turns sparse gradients into dense ones first."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every row."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight.grad.is_sparse:
                    weight.grad = weight.grad.to_dense()
        super().step(closure)


@contextmanager
def reference() -> Iterator[None]:
    """Models trained inside are the reference's; a run is to be finished in one go."""

    def build(objective: Objective, config: TrainConfig, total_steps: int) -> Any:
        optimizers, schedulers, towers = build_optimizers(objective, config, total_steps)
        tables = [stack for embedding in objective.tables() for stack in embedding.stacks.values()]
        factor = schedulers[0].lr_lambdas[0]  # type: ignore[attr-defined]
        optimizers[1] = DenseAdam(tables, lr=config.table_lr, weight_decay=config.table_l2)
        schedulers[1] = LambdaLR(optimizers[1], factor)
        return optimizers, schedulers, towers

    # its state is not kept: it has no names in a checkpoint
    with (
        patch("ctrkit.train_model.build_optimizers", build),
        patch("ctrkit.training.state.optimizer_state", lambda *_: {}),
    ):
        yield
