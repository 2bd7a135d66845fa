"""An objective over several processes: tables sharded, towers replicated."""

import logging
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import PlannerError

from ctrkit.errors import UserError
from ctrkit.nn.sharded_embedding import ShardedEmbedding, TableSharder
from ctrkit.objectives.objective import Objective
from ctrkit.training.ranks import Ranks

_MARGIN = 0.15  # share of the memory that is left free: TorchRec's own default
_COPIES = 6  # of a replicated weight: itself, its gradient, Adam's moments, DistributedDataParallel's buckets; likewise


def shard(
    objective: Objective, ranks: Ranks, device: torch.device, *, batch_size: int, memory: int | None = None
) -> nn.Module:
    """The module to call for the losses of a batch; the objective's own tables are those of this process afterwards.

    TorchRec's planner deals the tables, whole or by rows, by their cost and what fits; DistributedDataParallel keeps
    the towers alike. All processes call it together.

    Args:
        objective: built with sharded embeddings, the same on all ranks.
        ranks: that take part.
        device: of this process.
        batch_size: of this process, for the planner's estimates.
        memory: bytes that tables may take in each process; TorchRec's default if not known.
    """
    for name in ("torchrec.distributed.utils", "torchrec.distributed.planner"):
        logging.getLogger(name).setLevel(logging.ERROR)  # of our kernels it says that TorchRec's caches go unused
    cap = {"ddr_cap" if device.type == "cpu" else "hbm_cap": memory} if memory else {}
    topology = Topology(world_size=ranks.size, local_world_size=ranks.local_size, compute_device=device.type, **cap)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it advises against itself where no estimate is given
        reserved = HeuristicalStorageReservation(_MARGIN, dense_tensor_estimate=_COPIES * _tower_bytes(objective))
    planner = EmbeddingShardingPlanner(topology=topology, batch_size=batch_size, storage_reservation=reserved)
    sharders = [TableSharder()]
    try:
        plan = planner.collective_plan(objective, sharders, dist.group.WORLD)
    except PlannerError as error:
        raise UserError(
            f"TorchRec's planner finds no place for the tables on {ranks.size} processes: {error}; start more of them, "
            'on more machines, lower embedding.dim, or set train.table_optimizer = "rowwise_adagrad"'
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchRec's call of DistributedDataParallel
        model: nn.Module = DistributedModelParallel(objective, device=device, plan=plan, sharders=sharders)
    for embedding in objective.embeddings:
        assert isinstance(embedding, ShardedEmbedding)
        embedding.adopt()
    return model


def _tower_bytes(objective: Objective) -> int:
    """Of the weights that every process has whole and trains: not of frozen teachers, which `memory` is without."""
    return sum(parameter.numel() * parameter.element_size() for parameter in objective.towers.parameters())
