"""What a checkpoint holds of a training, by names that depend neither on how tables are stacked nor on who holds them.

    tables.I.TABLE.weight             [V, E] of the I-th embedding; beside it, row by row, what its optimizer keeps
    tables.I.TABLE.{moments,square,last}    (`ctrkit.training.table_optimizer`)
    towers.ROLE.PARAMETER             and beside each parameter, what its optimizer keeps: `.exp_avg` and others
    objective.BUFFER                  what the objective itself keeps
    rng.RANK                          the random state of each process

Where several processes hold a table, its tensors are ShardedTensors.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharded_tensor.shard import Shard

from ctrkit.nn.embedding import Embedding, TablePart
from ctrkit.objectives.objective import Objective
from ctrkit.training.table_optimizer import TableOptimizer

Tensors = dict[str, Tensor | ShardedTensor]


def weights(objective: Objective) -> Tensors:
    """What the networks compute with; in place of theirs, not copies."""
    found: Tensors = {f"towers.{name}": value for name, value in objective.towers.state_dict().items()}
    found |= {f"objective.{name}": value for name, value in objective.named_buffers(recurse=False)}
    for index, embedding in enumerate(objective.tables()):
        for table in embedding.tables:
            of_parts = {part: part.stack.detach() for part in embedding.parts() if part.table == table.name}
            found[f"tables.{index}.{table.name}.weight"] = _whole(
                embedding,
                table.name,
                of_parts,
                torch.empty(table.num_rows, table.dim, dtype=embedding.dtype, device="meta"),
            )
    return found


def optimizer_state(objective: Objective, optimizers: Sequence[torch.optim.Optimizer]) -> Tensors:
    """What the optimizers keep; in place. Tower optimizers that have taken no step get the state of the first."""
    found: Tensors = {}
    names = {parameter: f"towers.{name}" for name, parameter in objective.towers.named_parameters()}
    of_tables = [each for each in enumerate(objective.tables()) if each[1].tables]
    for optimizer in optimizers:
        if isinstance(optimizer, TableOptimizer):
            found.update(_table_state(*of_tables.pop(0), optimizer))
            continue
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if not state:  # as torch.optim.Adam begins
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                for key, value in state.items():
                    found[f"{names[parameter]}.{key}"] = value
    return found


def _table_state(index: int, embedding: Embedding, optimizer: TableOptimizer) -> Tensors:
    found: Tensors = {}
    for table in embedding.tables:
        parts = [part for part in embedding.parts() if part.table == table.name]
        for key, like in optimizer.state_like(table.num_rows, table.dim).items():
            of_parts = {part: optimizer.state[part.stack][key] for part in parts}
            found[f"tables.{index}.{table.name}.{key}"] = _whole(embedding, table.name, of_parts, like)
    return found


def _whole(
    embedding: Embedding, table: str, of_parts: Mapping[TablePart, Tensor], like: Tensor
) -> Tensor | ShardedTensor:
    """A table's rows of stacked tensors: plain where one process has them all, else of all processes."""
    rows = {part: part.rows_of(stacked) for part, stacked in of_parts.items()}
    shards = embedding.sharded_as(table)
    if shards is None:
        (only,) = rows.values()
        return only
    rest = list(like.shape[1:])
    metadata = {
        first: ShardMetadata([first, *(0 for _ in rest)], [count, *rest], placement)
        for first, count, placement in shards
        if count
    }
    whole = ShardedTensorMetadata(list(metadata.values()), like.shape, TensorProperties(dtype=like.dtype))
    local = [Shard(tensor, metadata[part.first_row]) for part, tensor in rows.items() if part.rows]
    return ShardedTensor._init_from_local_shards_and_global_metadata(local, whole)


def random_state(rank: int, device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators in this process."""
    found = {f"rng.{rank}": torch.get_rng_state()}
    if device.type == "cuda":
        found[f"cuda_rng.{rank}"] = torch.cuda.get_rng_state(device)
    return found


def set_random_state(saved: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on from what `random_state` gave."""
    for name, value in saved.items():
        if name.startswith("cuda_rng."):
            torch.cuda.set_rng_state(value, device)
        else:
            torch.set_rng_state(value)
