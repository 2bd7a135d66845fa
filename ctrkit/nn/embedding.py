"""The embedding tables and the vector that they give each impression."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.modules.embedding_configs import PoolingType

from ctrkit.data.batch import Batch
from ctrkit.tables import FIRST_ROW

# TorchRec's lookups make torch warn its own developers, once a process, of a function that they call.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


@dataclass(frozen=True)
class TableConfig:
    """One embedding table: V rows of width E, looked up by `features`."""

    name: str
    num_rows: int
    dim: int
    features: tuple[str, ...]
    pooling: Literal["mean", "sum"] = "mean"
    """Of the rows of a list; a single row is itself under both, an empty list gives zeros."""


class Embedding(nn.Module):
    """Pooled embeddings of all sparse features, then the dense features: x[B, X].

    The tables are TorchRec's EmbeddingBagCollection, so that its sharding applies; their gradients are sparse, so that
    a step's cost does not depend on the size of the tables (`ctrkit.training.table_optimizer`). Rows start as
    N(0, init_std^2), those for missing and unseen values as zeros: what was never trained says nothing.

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
        self.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=table.name.replace("%", "%25").replace(".", "%2E"),  # it becomes a module's name
                    num_embeddings=table.num_rows,
                    embedding_dim=table.dim,
                    feature_names=list(table.features),
                    pooling=PoolingType.MEAN if table.pooling == "mean" else PoolingType.SUM,
                )
                for table in tables
            ]
        )
        for bag in self.bags.embedding_bags.values():
            bag.sparse = True
            with torch.no_grad():
                bag.weight.normal_(0.0, init_std, generator=generator)
                bag.weight[:FIRST_ROW] = 0.0  # the rows MISSING and UNSEEN

    @property
    def out_features(self) -> int:
        """Width X of the vector."""
        return sum(table.dim * len(table.features) for table in self.tables) + self.num_dense

    @property
    def columns(self) -> Mapping[str, slice]:
        """Where each sparse feature stands in x; the dense features come last."""
        columns, start = {}, 0
        for table in self.tables:
            for feature in table.features:
                columns[feature] = slice(start, start + table.dim)
                start += table.dim
        return columns

    def table_weights(self) -> dict[str, nn.Parameter]:
        """The [V, E] weights of each table, by name."""
        bags = self.bags.embedding_bags.values()
        return {table.name: bag.weight for table, bag in zip(self.tables, bags, strict=True)}

    def forward(self, batch: Batch) -> Tensor:
        """x[B, X] of a batch."""
        if not self.tables:
            return batch.dense_BD
        pooled = self.bags(batch.sparse).values()
        return torch.cat((pooled, batch.dense_BD), dim=1) if self.num_dense else pooled
