"""A trained network as plain gathers and matrix products in torch: what every exported graph must be equal to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ctrkit.data.batch import Batch
from ctrkit.export.tables import Stored, as_float32
from ctrkit.graph import SIDES, side_features
from ctrkit.nn.network import Network
from ctrkit.nn.tower import Lists
from ctrkit.schema import Schema

Inputs = dict[str, Tensor]
"""Inputs of the graph by name (`ctrkit.graph`), each with a row an ad."""


class PlainNetwork(nn.Module):
    """probability[N] from the inputs of the graph, with the weights of a network (no TorchRec in it).

    Args:
        network: trained; its weights are used, not copied.
        schema: of the log that it was trained on.
        stacks: tables that take the place of the network's, by width.
    """

    def __init__(self, network: Network, schema: Schema, stacks: Mapping[int, Stored] | None = None) -> None:
        super().__init__()
        self.tower = network.tower
        given = {str(dim): torch.from_numpy(as_float32(table)) for dim, table in (stacks or {}).items()}
        self.stacks = nn.ParameterDict(
            {
                dim: nn.Parameter(given.get(dim, stack.detach().float()))
                for dim, stack in network.embedding.stacks.items()
            }
        )
        self._lookups = network.embedding.lookups
        self._column: dict[str, tuple[str, int]] = {}
        for side in SIDES:
            features = side_features(schema, side)
            self._column |= {name: (f"ids_{side}", i) for i, name in enumerate(features.single)}
            self._column |= {name: (f"dense_{side}", i) for i, name in enumerate(features.dense)}
        self._dense = [feature.name for feature in schema.dense_features]

    def forward(self, inputs: Inputs) -> Tensor:
        """Click probability of N ads."""
        parts, lists = [], {}
        for lookup in self._lookups:
            weight_VE, name = self.stacks[str(lookup.dim)], lookup.feature
            if lookup.pooling is None:
                tensor, column = self._column[name]
                parts.append(nn.functional.embedding(inputs[tensor][:, column] + lookup.first_row, weight_VE))
            else:
                ids_NL = inputs[f"{name}_ids"] + lookup.first_row
                length_N = inputs[f"{name}_length"]
                parts.append(_pool(weight_VE, ids_NL, length_N, lookup.pooling))
                if name in self.tower.reads_lists:
                    lists[name] = Lists(nn.functional.embedding(ids_NL[_inside(ids_NL, length_N)], weight_VE), length_N)
        for name in self._dense:
            tensor, column = self._column[name]
            parts.append(inputs[tensor][:, column].unsqueeze(1))
        logit_N: Tensor = self.tower(torch.cat(parts, dim=1), lists)
        return torch.sigmoid(logit_N)


def _pool(weight_VE: Tensor, ids_NL: Tensor, length_N: Tensor, pooling: str) -> Tensor:
    total_NE = (nn.functional.embedding(ids_NL, weight_VE) * _inside(ids_NL, length_N).unsqueeze(2)).sum(1)
    return total_NE / length_N.clamp(min=1).unsqueeze(1) if pooling == "mean" else total_NE


def _inside(ids_NL: Tensor, length_N: Tensor) -> Tensor:
    return torch.arange(ids_NL.shape[1]) < length_N.unsqueeze(1)


def graph_inputs(batch: Batch, schema: Schema, dense_columns: Sequence[int] | None = None) -> Inputs:
    """A batch as inputs of the graph.

    Args:
        batch: may have features that the schema has not.
        schema: of the graph.
        dense_columns: of the batch that are its dense features; all if None.
    """
    inputs: Inputs = {}
    jagged = batch.sparse.to_dict()
    columns = range(len(schema.dense_features)) if dense_columns is None else dense_columns
    dense = {feature.name: i for feature, i in zip(schema.dense_features, columns, strict=True)}
    for side in SIDES:
        features = side_features(schema, side)
        if features.single:
            inputs[f"ids_{side}"] = torch.stack([jagged[name].values() for name in features.single], dim=1)
        for feature in features.sequences:
            inputs[f"{feature.name}_ids"] = jagged[feature.name].to_padded_dense(feature.max_len).long()
            inputs[f"{feature.name}_length"] = jagged[feature.name].lengths()
        if features.dense:
            inputs[f"dense_{side}"] = batch.dense_BD[:, [dense[name] for name in features.dense]].contiguous()
    return inputs


def repeated(inputs: Inputs, num_ads: int) -> Inputs:
    """Inputs with a row an ad, those of the user and the context repeated."""
    return {
        name: x.expand(num_ads, *x.shape[1:]).contiguous() if len(x) != num_ads else x for name, x in inputs.items()
    }


def in_torch(plain: PlainNetwork, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Torch's probabilities [N] for inputs as arrays; what is the user's or the context's is repeated."""
    num_ads = max(map(len, inputs.values()))
    with torch.no_grad():
        tensors = repeated({name: torch.from_numpy(array) for name, array in inputs.items()}, num_ads)
        probability_N: npt.NDArray[np.float32] = plain.eval()(tensors).numpy()
    return probability_N
