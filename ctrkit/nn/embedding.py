"""The embedding tables and the vector that they give each impression."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.modules.embedding_configs import DataType, PoolingType

from ctrkit.data.batch import Batch
from ctrkit.nn.lookup import Address, Bags, Pooling, look_up
from ctrkit.nn.tower import Lists, Vectors
from ctrkit.tables import FIRST_ROW

# TorchRec's jagged tensors make torch warn its own developers, once a process, of a function that they call.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

TablePrecision = Literal["fp32", "fp16"]

_BLOCK = 4096
"""Rows drawn at once."""


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


@dataclass(frozen=True, eq=False)
class TablePart:
    """Rows of one table that lie in this process, in a parameter with rows of others."""

    table: str
    num_rows: int
    """Of the whole table."""
    dim: int
    first_row: int
    """Place in the table of the first row that is here."""
    rows: int
    """That are here."""
    stack: nn.Parameter
    """The parameter."""
    start: int
    """Where the rows begin in it."""

    def rows_of(self, stacked: Tensor) -> Tensor:
        """The same rows of a tensor that has as many as `stack`: the weights, or what an optimizer keeps of them."""
        return stacked.narrow(0, self.start, self.rows)


class Embedding(nn.Module):
    """Pooled embeddings of all sparse features, then the dense features: x[B, X].

    Tables of one width lie in one parameter, one below the other, so that a step has one lookup, one sort and one
    update however many features there are. Gradients are sparse: the cost of a step does not depend on the size of the
    tables (`ctrkit.training.table_optimizer`). Rows start as N(0, init_std^2), those for missing and unseen values as
    zeros: what was never trained says nothing.

    Args:
        tables: at least one table or one dense feature.
        dense: columns of `Batch.dense_BD` that it passes on, behind the embeddings; a number D means the first D.
        init_std: standard deviation of the rows.
        seed: of the initial rows.
        precision: of the weights; fp16 halves the tables and their traffic, lookups and gradients stay fp32.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        dense: int | Sequence[int] = 0,
        *,
        init_std: float = 0.01,
        seed: int = 0,
        precision: TablePrecision = "fp32",
    ) -> None:
        super().__init__()
        self.tables = tuple(tables)
        self.num_dense = dense if isinstance(dense, int) else len(dense)
        self.dense_columns = None if isinstance(dense, int) else list(dense)
        """None: all of them."""
        self.init_std, self.seed = init_std, seed
        self.dtype = torch.float16 if precision == "fp16" else torch.float32
        self.unpooled: set[str] = set()
        """Sequence features whose rows are given one by one too (`vectors`); set by who builds the towers."""
        self._first_row: dict[str, int] = {}
        self.stacks = nn.ParameterDict()
        for members in _by_dim(tables).values():
            num_rows = 0
            for table in members:
                self._first_row[table.name] = num_rows
                num_rows += table.num_rows
        self.lookups = self._lookups()
        # how many features of a width are averaged, how many summed: a batch of no rows cannot tell
        self._pooled: dict[int, list[int]] = {dim: [] for dim in _by_dim(tables)}
        for (dim, pooling), alike in groupby(self.lookups, key=lambda each: (each.dim, each.pooling)):
            if pooling is not None:
                self._pooled[dim].append(len(list(alike)))
        self._allocate()

    def _allocate(self) -> None:
        for dim, members in _by_dim(self.tables).items():
            num_rows = sum(table.num_rows for table in members)
            self.stacks[str(dim)] = nn.Parameter(torch.empty(num_rows, dim, dtype=self.dtype))
        for part in self.parts():
            self.draw(part)

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

    def parts(self) -> list["TablePart"]:
        """Where the rows of each table lie."""
        return [
            TablePart(t.name, t.num_rows, t.dim, 0, t.num_rows, self.stacks[str(t.dim)], self._first_row[t.name])
            for t in self.tables
        ]

    def sharded_as(self, table: str) -> list[tuple[int, int, str]] | None:
        """First row, rows and place of every shard of a table, on whatever process; None where it is not sharded."""
        return None

    def draw(self, part: "TablePart") -> None:
        """Fill the rows of a part with what training starts from."""
        draw_rows(
            part.rows_of(part.stack.detach()),
            std=self.init_std,
            seed=self.seed,
            table=part.table,
            first_row=part.first_row,
        )

    def table_weights(self) -> dict[str, Tensor]:
        """The [V, E] weights of each table by name: views of `stacks`, so changes in place reach them."""
        return {part.table: part.rows_of(part.stack.detach()) for part in self.parts()}

    def embedding_bag_collection(self) -> EmbeddingBagCollection:
        """The same tables, in the same memory, as the module that TorchRec shards."""
        collection = EmbeddingBagCollection(tables=self._bag_configs(), device=torch.device("meta"))
        for name, weight in self.table_weights().items():
            collection.embedding_bags[module_name(name)].weight = nn.Parameter(weight)
        return collection

    def _bag_configs(self) -> list[EmbeddingBagConfig]:
        return [
            EmbeddingBagConfig(
                name=module_name(table.name),
                num_embeddings=table.num_rows,
                embedding_dim=table.dim,
                feature_names=list(table.features),
                pooling=PoolingType.MEAN if table.pooling == "mean" else PoolingType.SUM,
                data_type=DataType.FP16 if self.dtype == torch.float16 else DataType.FP32,
            )
            for table in self.tables
        ]

    def address(self, batch: Batch) -> Mapping[str, Address]:
        """What a batch reads of each stack: independent of the weights, so a thread may make it ahead of the step."""
        if self not in batch.ahead:
            batch.ahead[self] = self._address(batch)
        addresses: Mapping[str, Address] = batch.ahead[self]
        return addresses

    def _address(self, batch: Batch) -> Mapping[str, Address]:
        rows = _rows_by_feature(batch, self.lookups)
        found = {}
        for dim, members in groupby(self.lookups, key=lambda lookup: lookup.dim):
            by_pooling = {pooling: list(alike) for pooling, alike in groupby(members, key=lambda each: each.pooling)}
            single = [rows[lookup.feature][0] for lookup in by_pooling.pop(None, [])]
            single_BS = torch.stack(single, dim=1) if single else batch.label_B.new_zeros(len(batch), 0).long()
            bags = []
            for pooling, alike in by_pooling.items():
                assert pooling is not None
                row_N = torch.cat([rows[lookup.feature][0] for lookup in alike])
                bags.append(Bags.of(row_N, torch.cat([rows[lookup.feature][1] for lookup in alike]), pooling))
            for feature in self._unpooled(int(dim)):
                row_N = rows[feature][0]
                bags.append(Bags.of(row_N, torch.ones_like(row_N), "sum"))
            found[str(dim)] = Address(single_BS, bags)
        return found

    def _unpooled(self, dim: int) -> list[str]:
        return [lookup.feature for lookup in self.lookups if lookup.dim == dim and lookup.feature in self.unpooled]

    def forward(self, batch: Batch) -> Tensor:
        """x[B, X] of a batch."""
        return self.vectors(batch).x_BX

    def vectors(self, batch: Batch) -> Vectors:
        """x[B, X] of a batch, and the rows of `unpooled` features; one look-up a width."""
        parts, lists = [], {}
        for dim, address in self.address(batch).items():
            weight_VE = self.stacks[dim]
            if weight_VE.requires_grad:
                weight_VE.grad_dtype = torch.float32  # not kept by copies of a parameter, so said each time
            single_BX, *pooled = look_up(weight_VE, address)
            for feature in reversed(self._unpooled(int(dim))):
                lists[feature] = Lists(pooled.pop(), _length(batch, feature))
            parts.append(single_BX)
            parts += [  # of L features: [L B, E] to [B, L E]
                pooled_ME.view(count, len(batch), int(dim)).transpose(0, 1).flatten(1)
                for count, pooled_ME in zip(self._pooled[int(dim)], pooled, strict=True)
            ]
        parts = [part for part in parts if part.shape[1]]
        if self.num_dense:
            parts.append(self._dense(batch))
        return Vectors(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), lists)

    def _dense(self, batch: Batch) -> Tensor:
        return batch.dense_BD if self.dense_columns is None else batch.dense_BD[:, self.dense_columns]


def draw_rows(weight_RE: Tensor, *, std: float, seed: int, table: str, first_row: int = 0) -> None:
    """Fill rows of a table with what training starts from: N(0, std^2), zeros for missing and unseen values.

    A row's draw depends on seed, table and its place alone, so that any part of a table can be drawn by itself.

    Args:
        weight_RE: the rows, changed in place.
        std: standard deviation.
        seed: of the embedding.
        table: its name.
        first_row: place of the first one in the table.
    """
    if weight_RE.is_meta:
        return
    start, stop = first_row, first_row + len(weight_RE)
    for block in range(start // _BLOCK, -(-stop // _BLOCK)):
        key = hashlib.sha256(f"{seed}/{table}/{block}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
        drawn = torch.empty(_BLOCK, weight_RE.shape[1]).normal_(0.0, std, generator=generator)
        if block == 0:
            drawn[:FIRST_ROW] = 0.0  # the rows MISSING and UNSEEN
        low, high = max(start, block * _BLOCK), min(stop, (block + 1) * _BLOCK)
        weight_RE[low - start : high - start] = drawn[low - block * _BLOCK : high - block * _BLOCK]


def _length(batch: Batch, feature: str) -> Tensor:
    lengths: Tensor = batch.sparse.lengths().view(len(batch.sparse.keys()), len(batch))
    return lengths[list(batch.sparse.keys()).index(feature)]


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
    values, length_FB = batch.sparse.values(), batch.sparse.lengths().view(len(batch.sparse.keys()), len(batch))
    offset, position = batch.sparse.offset_per_key(), {key: i for i, key in enumerate(batch.sparse.keys())}
    found = {}
    for lookup in lookups:
        i = position[lookup.feature]
        found[lookup.feature] = values[offset[i] : offset[i + 1]] + lookup.first_row, length_FB[i]
    return found


def module_name(table: str) -> str:
    """A table's name without dots, as the name of a module must be."""
    return table.replace("%", "%25").replace(".", "%2E")


def table_name(module: str) -> str:
    """The table of a `module_name`."""
    return module.replace("%2E", ".").replace("%25", "%")
