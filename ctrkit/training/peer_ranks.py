"""Networks that teach each other from processes of their own."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from ctrkit.names import tower_name, tower_of_part
from ctrkit.objectives.co_training import CoTraining
from ctrkit.training import state
from ctrkit.training.ranks import Ranks
from ctrkit.training.table_optimizer import TableOptimizer


class PeerRanks:
    """Each rank trains one network of an objective on the same batches; only predictions cross between them.

    In Deep Mutual Learning's words every GPU holds a net (Zhang et al., CVPR 2018, section 3.2). All ranks have all
    networks in memory, but only their own moves; `gather` brings the others up to date before they are judged and
    saved, so that a checkpoint is that of one process.

    Args:
        objective: networks with tables of their own, as many as there are ranks; it is told which one is here.
        optimizers: of all its parameters.
        ranks: by rank, the objective's networks in order.
    """

    def __init__(self, objective: CoTraining, optimizers: Sequence[torch.optim.Optimizer], ranks: Ranks) -> None:
        networks = objective.networks()
        assert len(networks) == ranks.size  # `ctrkit.builders.check` refuses others
        self._objective, self._optimizers, self._ranks = objective, optimizers, ranks
        objective.hold(list(networks)[ranks.rank], self._exchange)

    def _exchange(self, logit_B: Tensor) -> list[Tensor]:
        """The logits of all ranks, by rank."""
        sent = logit_B.detach().float().contiguous()
        received = [torch.empty_like(sent) for _ in range(self._ranks.size)]
        distributed.all_gather(received, sent)
        return received

    def gather(self, steps: int) -> None:
        """Bring every network, and what its optimizers keep, up to date on every rank, after so many steps."""
        objective = self._objective
        tensors = {**state.weights(objective), **state.optimizer_state(objective, self._optimizers)}
        index = {id(embedding): i for i, embedding in enumerate(objective.tables())}
        for rank, (role, network) in enumerate(objective.networks().items()):
            prefixes = tuple(f"tables.{index[id(embedding)]}." for embedding in network.embeddings)
            prefixes += tuple(f"towers.{name}." for name in objective.towers if tower_of_part(name) == tower_name(role))
            for name, value in tensors.items():
                if name.startswith(prefixes):
                    assert isinstance(value, Tensor)
                    distributed.broadcast(value, src=rank)
        if "objective.gradient_squares" in tensors:
            squares = tensors["objective.gradient_squares"]
            assert isinstance(squares, Tensor)
            for number, lesson in enumerate(objective.lessons):
                row = squares[number].clone()
                distributed.broadcast(row, src=list(objective.networks()).index(lesson.student))
                squares[number] = row
        for optimizer in self._optimizers:
            if isinstance(optimizer, TableOptimizer):
                for group in optimizer.param_groups:
                    group["steps"] = steps
