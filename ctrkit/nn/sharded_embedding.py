"""Embedding tables that several processes hold together, sharded by TorchRec."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection
from torchrec.distributed.batched_embedding_kernel import BatchedDenseEmbeddingBag
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ShardingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.data.batch import Batch
from ctrkit.nn.embedding import Embedding, TablePart, module_name, table_name
from ctrkit.nn.lookup import Address, Bags, Pooling, look_up
from ctrkit.nn.tower import Vectors


class ShardedEmbedding(Embedding):
    """An `Embedding` whose tables several processes hold together.

    Until `TableSharder` has sharded `collection` the tables have shapes but no memory. Gradients of a row come from the
    batches of all processes, divided by their number.
    """

    collection: EmbeddingBagCollection

    def _allocate(self) -> None:
        self.collection = EmbeddingBagCollection(tables=self._bag_configs(), device=torch.device("meta"))

    def adopt(self) -> None:
        """Take the shards that are this process's as `stacks`, with their initial rows; after sharding."""
        for number, shards in enumerate(self._shards()):
            for dim, stack in shards.stacks.items():
                self.stacks[f"{number}_{dim}"] = stack
        for part in self.parts():
            self.draw(part)

    def _shards(self) -> list["TableShards"]:
        # TorchRec leaves a collection without tables as it is
        return [kernel._emb_module for kernel in _kernels(self.collection)] if self.tables else []

    def parts(self) -> list[TablePart]:
        """Where the rows lie that are this process's."""
        return [part for shards in self._shards() for part in shards.parts]

    def sharded_as(self, table: str) -> list[tuple[int, int, str]]:
        """First row, rows and place of every shard of a table, on whatever process."""
        plan: Any = self.collection.module_sharding_plan
        shards = plan[module_name(table)].sharding_spec.shards
        return [(shard.shard_offsets[0], shard.shard_sizes[0], str(shard.placement)) for shard in shards]

    def address(self, batch: Batch) -> Mapping[str, Address]:
        """Nothing: which rows are read here is known when all processes have told theirs."""
        return {}

    def vectors(self, batch: Batch) -> Vectors:
        """x[B, X] of this process's batch; all processes call it together, with batches of any size."""
        if not self.tables:
            return Vectors(self._dense(batch), {})
        assert not self.unpooled  # no shard gives rows one by one yet: `ctrkit.builders.check` refuses such towers
        largest = torch.tensor(len(batch))
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        pooled = self.collection(_padded(batch.sparse, len(batch), int(largest))).to_dict()
        parts = [pooled[lookup.feature][: len(batch)] for lookup in self.lookups]
        if self.num_dense:
            parts.append(self._dense(batch))
        return Vectors(torch.cat(parts, dim=1), {})


def _padded(sparse: KeyedJaggedTensor, rows: int, to: int) -> KeyedJaggedTensor:
    """Impressions without any ids added: TorchRec's row-wise shards want batches of one size."""
    if rows == to:
        return sparse
    keys = list(sparse.keys())
    lengths = sparse.lengths().new_zeros(len(keys), to)
    lengths[:, :rows] = sparse.lengths().view(len(keys), rows)
    return KeyedJaggedTensor(keys=keys, values=sparse.values(), lengths=lengths.view(-1), stride=to)


class TableSharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """TorchRec's sharder with our look-up and its sparse gradients on each shard.

    TorchRec's fused kernels update in the backward pass, on CPU without Adam and anywhere without our L2 penalty; so
    the tables would learn otherwise on several machines than on one. Here `ctrkit.training.table_optimizer` updates
    every shard as it updates a whole table. Tables are sharded whole or by rows.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Whole tables, or parts of their rows: what a row's optimizer state needs."""
        return [ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """What the planner estimates by; `shard` has another."""
        return [EmbeddingComputeKernel.FUSED.value]

    def shard(self, module: EmbeddingBagCollection, params: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A sharded collection whose kernels are `TableShards`."""
        for sharding in params.values():
            sharding.compute_kernel = EmbeddingComputeKernel.DENSE.value
        sharded = super().shard(module, params, *args, **kwargs)
        for kernel in _kernels(sharded):
            kernel._emb_module = TableShards(kernel)
        return sharded


def _kernels(sharded: Any) -> list[Any]:
    """The kernels of a sharded collection: TorchRec's private names, in this one place."""
    found = [kernel for lookup in sharded._lookups for kernel in lookup._emb_modules]
    assert all(isinstance(kernel, BatchedDenseEmbeddingBag) for kernel in found), found
    return found


class TableShards(nn.Module):
    """Shards of several tables and their pooled look-up: what a kernel of TorchRec delegates to.

    Shards of one width lie in one parameter, to which they are copied when the module is made.
    """

    def __init__(self, kernel: BatchedDenseEmbeddingBag) -> None:
        super().__init__()
        self.pooling: Pooling = "mean" if kernel._pooling == PoolingMode.MEAN else "sum"
        self.stacks: dict[int, nn.Parameter] = {}
        self.parts: list[TablePart] = []
        tables = kernel.config.embedding_tables
        weights = kernel.emb_module.split_embedding_weights()
        starts: dict[int, int] = {}
        by_dim: dict[int, list[Tensor]] = {}
        for table, weight in zip(tables, weights, strict=True):
            by_dim.setdefault(table.local_cols, []).append(weight)
        for dim, members in by_dim.items():
            self.stacks[dim] = nn.Parameter(members[0] if len(members) == 1 else torch.cat(members))
        for table in tables:
            dim, start = table.local_cols, starts.get(table.local_cols, 0)
            first = table.local_metadata.shard_offsets[0]
            self.parts.append(
                TablePart(
                    table_name(table.name), table.num_embeddings, dim, first, table.local_rows, self.stacks[dim], start
                )
            )
            starts[dim] = start + table.local_rows
        self._features = [part for part, table in zip(self.parts, tables, strict=True) for _ in table.feature_names]

    def split_embedding_weights(self) -> list[Tensor]:
        """Of each table, views."""
        return [part.rows_of(part.stack.detach()) for part in self.parts]

    def forward(self, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None) -> Tensor:
        """Pooled rows [B, sum of widths] of F features.

        Args:
            indices: rows within this process's shard, feature by feature.
            offsets: [F B + 1] where the list of each feature and impression begins.
            per_sample_weights: none.
        """
        assert per_sample_weights is None
        features = len(self._features)
        length_FB = offsets.diff().view(features, -1)
        per_feature = torch.split(indices, length_FB.sum(1).tolist())
        pooled: list[Tensor] = [indices] * features
        for dim, stack in self.stacks.items():
            members = [i for i, part in enumerate(self._features) if part.dim == dim]
            row_N = torch.cat([per_feature[i] + self._features[i].start for i in members])
            length_M = length_FB[members].view(-1)
            if stack.requires_grad:
                stack.grad_dtype = torch.float32
            none = row_N.new_zeros(length_FB.shape[1], 0)
            _, pooled_ME = look_up(stack, Address(none, [Bags.of(row_N, length_M, self.pooling)]))
            for i, pooled_BE in zip(members, pooled_ME.view(len(members), -1, dim), strict=True):
                pooled[i] = pooled_BE
        return torch.cat(pooled, dim=1)
