"""Impressions that were never shown, made of those that were."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.data.batch import Batch
from ctrkit.schema import Schema


@dataclass(frozen=True)
class Crossing:
    """User and context of each impression beside the ad of another one of its batch: an unexposed candidate.

    A log has only what was shown; the net that serves scores all candidates. Nobody knows whether these would have been
    clicked, so they have no label: networks can only tell each other what they think of them.

    Args:
        sparse: the ad's sparse features.
        dense: columns of `Batch.dense_BD` that are the ad's.
    """

    sparse: frozenset[str]
    dense: tuple[int, ...]

    @classmethod
    def of(cls, schema: Schema) -> "Crossing":
        """By the sides of a schema's features."""
        sparse = frozenset(f.name for f in schema.sparse_features if f.side == "item")
        return cls(sparse, tuple(i for i, f in enumerate(schema.dense_features) if f.side == "item"))

    def __call__(self, batch: Batch, order_B: Tensor) -> Batch:
        """The impressions with the ads of the impressions `order_B`, without labels."""
        keys, rows = list(batch.sparse.keys()), len(batch)
        length_FB = batch.sparse.lengths().view(len(keys), rows)
        values = batch.sparse.values().split(length_FB.sum(1).tolist())
        lengths = [length_FB[i][order_B] if key in self.sparse else length_FB[i] for i, key in enumerate(keys)]
        moved = [
            _reordered(values[i], length_FB[i], order_B) if key in self.sparse else values[i]
            for i, key in enumerate(keys)
        ]
        dense_BD = batch.dense_BD
        if self.dense:
            dense_BD = dense_BD.clone()
            dense_BD[:, list(self.dense)] = batch.dense_BD[order_B][:, list(self.dense)]
        sparse = KeyedJaggedTensor(keys=keys, values=torch.cat(moved), lengths=torch.cat(lengths), stride=rows)
        label_B = torch.full_like(batch.label_B, torch.nan)
        return replace(batch, sparse=sparse, dense_BD=dense_BD, label_B=label_B, teachers={}, ahead={})

    def changes(self, batch: Batch) -> bool:
        """Whether any order makes other impressions of these: not if all of them show one ad."""
        next_one = self(batch, torch.arange(len(batch), device=batch.label_B.device).roll(1))
        return not (
            torch.equal(next_one.sparse.values(), batch.sparse.values())
            and torch.equal(next_one.sparse.lengths(), batch.sparse.lengths())
            and torch.equal(next_one.dense_BD, batch.dense_BD)
        )


def _reordered(value_N: Tensor, length_B: Tensor, order_B: Tensor) -> Tensor:
    """The lists of a feature in another order, one after another."""
    if len(value_N) == len(order_B) and bool((length_B == 1).all()):
        return value_N[order_B]
    start_B = (length_B.cumsum(0) - length_B)[order_B]
    taken_B = length_B[order_B]
    first_B = taken_B.cumsum(0) - taken_B
    within_N = torch.arange(int(taken_B.sum()), device=value_N.device) - first_B.repeat_interleave(taken_B)
    return value_N[start_B.repeat_interleave(taken_B) + within_N]
