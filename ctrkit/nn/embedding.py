"""The embedding tables and the vector that they give each impression."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.modules.embedding_configs import PoolingType

from ctrkit.data.batch import Batch
from ctrkit.tables import FIRST_ROW

# TorchRec's jagged tensors make torch warn its own developers, once a process, of a function that they call.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

Pooling = Literal["mean", "sum"]


@dataclass(frozen=True)
class TableConfig:
    """One embedding table: V rows of width E, looked up by `features`."""

    name: str
    num_rows: int
    dim: int
    features: tuple[str, ...]
    lists: tuple[str, ...] = ()
    """Those of `features` that have a list of rows an impression; the others have one."""
    pooling: Pooling = "mean"
    """Of the rows of a list; an empty list gives zeros."""


@dataclass(frozen=True)
class Lookup:
    """What one feature reads: rows of a table, pooled if it has a list of them."""

    feature: str
    table: str
    dim: int
    first_row: int
    """Where the table begins among the stacked tables of its width."""
    pooling: Pooling | None
    """None: one row an impression."""


class Embedding(nn.Module):
    """Pooled embeddings of all sparse features, then the dense features: x[B, X].

    Tables of one width lie in one parameter, one below the other, so that a step has one lookup, one sort and one
    update however many features there are. Gradients are sparse: the cost of a step does not depend on the size of the
    tables (`ctrkit.training.table_optimizer`). Rows start as N(0, init_std^2), those for missing and unseen values as
    zeros: what was never trained says nothing.

    Args:
        tables: at least one table or one dense feature.
        num_dense: number of dense features D.
        init_std: standard deviation of the rows.
        generator: draws the initial rows.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        num_dense: int = 0,
        *,
        init_std: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.tables = tuple(tables)
        self.num_dense = num_dense
        self._first_row: dict[str, int] = {}
        self.stacks = nn.ParameterDict()
        for dim, members in _by_dim(tables).items():
            num_rows = 0
            for table in members:
                self._first_row[table.name] = num_rows
                num_rows += table.num_rows
            self.stacks[str(dim)] = nn.Parameter(torch.empty(num_rows, dim))
        with torch.no_grad():
            for weight in self.table_weights().values():
                weight.normal_(0.0, init_std, generator=generator)
                weight[:FIRST_ROW] = 0.0  # the rows MISSING and UNSEEN
        self.lookups = self._lookups()

    def _lookups(self) -> tuple[Lookup, ...]:
        """By width; within it single rows, then lists to be averaged, then lists to be summed."""
        found = [
            Lookup(feature, t.name, t.dim, self._first_row[t.name], t.pooling if feature in t.lists else None)
            for t in self.tables
            for feature in t.features
        ]
        return tuple(sorted(found, key=_kind))

    @property
    def out_features(self) -> int:
        """Width X of the vector."""
        return sum(lookup.dim for lookup in self.lookups) + self.num_dense

    @property
    def columns(self) -> Mapping[str, slice]:
        """Where each sparse feature stands in x, in the order of `lookups`; the dense features come last."""
        columns, start = {}, 0
        for lookup in self.lookups:
            columns[lookup.feature] = slice(start, start + lookup.dim)
            start += lookup.dim
        return columns

    def table_weights(self) -> dict[str, Tensor]:
        """The [V, E] weights of each table by name: views of `stacks`, so changes in place reach them."""
        return {
            table.name: self.stacks[str(table.dim)].detach().narrow(0, self._first_row[table.name], table.num_rows)
            for table in self.tables
        }

    def embedding_bag_collection(self) -> EmbeddingBagCollection:
        """The same tables, in the same memory, as the module that TorchRec shards."""
        collection = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=_module_name(table.name),
                    num_embeddings=table.num_rows,
                    embedding_dim=table.dim,
                    feature_names=list(table.features),
                    pooling=PoolingType.MEAN if table.pooling == "mean" else PoolingType.SUM,
                )
                for table in self.tables
            ],
            device=torch.device("meta"),
        )
        for name, weight in self.table_weights().items():
            collection.embedding_bags[_module_name(name)].weight = nn.Parameter(weight)
        return collection

    def forward(self, batch: Batch) -> Tensor:
        """x[B, X] of a batch."""
        if not self.lookups:
            return batch.dense_BD
        rows = _rows_by_feature(batch, self.lookups)
        parts = []
        for (dim, _), members in groupby(self.lookups, key=_kind):
            lookups = list(members)
            weight_VE, looked_up = self.stacks[str(dim)], [rows[lookup.feature] for lookup in lookups]
            pooling = lookups[0].pooling
            if pooling is None:
                row_BS = torch.stack([row_B for row_B, _ in looked_up], dim=1)
                parts.append(functional.embedding(row_BS, weight_VE, sparse=True).flatten(1))
            else:
                parts.append(_pooled(weight_VE, looked_up, pooling))
        if self.num_dense:
            parts.append(batch.dense_BD)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _by_dim(tables: Sequence[TableConfig]) -> dict[int, list[TableConfig]]:
    found: dict[int, list[TableConfig]] = {}
    for table in tables:
        found.setdefault(table.dim, []).append(table)
    return found


def _kind(lookup: Lookup) -> tuple[int, str]:
    """Width and pooling: lookups of one kind are done at once."""
    return lookup.dim, lookup.pooling or ""


def _rows_by_feature(batch: Batch, lookups: Sequence[Lookup]) -> dict[str, tuple[Tensor, Tensor]]:
    """Stacked rows and lengths [B] of each feature: row[B] of a single one, else the lists one after another."""
    values, length_FB = batch.sparse.values(), batch.sparse.lengths().view(-1, len(batch))
    offset, position = batch.sparse.offset_per_key(), {key: i for i, key in enumerate(batch.sparse.keys())}
    found = {}
    for lookup in lookups:
        i = position[lookup.feature]
        found[lookup.feature] = values[offset[i] : offset[i + 1]] + lookup.first_row, length_FB[i]
    return found


def _pooled(weight_VE: Tensor, looked_up: Sequence[tuple[Tensor, Tensor]], pooling: Pooling) -> Tensor:
    """Pooled lists [B, L E] of L features."""
    row_N = torch.cat([row for row, _ in looked_up])
    length_LB = torch.cat([length_B for _, length_B in looked_up])
    offset_LB = length_LB.cumsum(0) - length_LB
    pooled = functional.embedding_bag(row_N, weight_VE, offset_LB, mode=pooling, sparse=True)
    return pooled.view(len(looked_up), -1, weight_VE.shape[1]).transpose(0, 1).flatten(1)


def _module_name(table: str) -> str:
    return table.replace("%", "%25").replace(".", "%2E")
