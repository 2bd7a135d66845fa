"""A trained network as plain gathers and matrix products: what is exported (no TorchRec in it)."""

import torch
from torch import Tensor, nn

from ctrkit.bundle import sequence_features, single_features
from ctrkit.data.batch import Batch
from ctrkit.nn.network import Network
from ctrkit.schema import Schema

Inputs = dict[str, Tensor]
"""Inputs of the graph by name: see `ctrkit.bundle.plain_graph`."""


class PlainNetwork(nn.Module):
    """probability[N] from the inputs of the plain graph, with the weights of a network.

    Args:
        network: trained; its weights are used, not copied.
        schema: of the log that it was trained on.
    """

    def __init__(self, network: Network, schema: Schema) -> None:
        super().__init__()
        self.tower = network.tower
        weights = network.embedding.table_weights()
        self.tables = nn.ParameterList(nn.Parameter(weight.float()) for weight in weights.values())
        self._single = {name: column for column, name in enumerate(single_features(schema))}
        position = {name: index for index, name in enumerate(weights)}
        self._lookups = [(position[found.table], found.feature, found.pooling) for found in network.embedding.lookups]

    def forward(self, inputs: Inputs) -> Tensor:
        """Click probability of N ads."""
        parts = []
        for index, feature, pooling in self._lookups:
            weight_VE = self.tables[index]
            if pooling is not None:
                parts.append(_pool(weight_VE, inputs[f"{feature}_ids"], inputs[f"{feature}_length"], pooling))
            else:
                parts.append(nn.functional.embedding(inputs["ids"][:, self._single[feature]], weight_VE))
        if "dense" in inputs:
            parts.append(inputs["dense"])
        logit_N: Tensor = self.tower(torch.cat(parts, dim=1))
        return torch.sigmoid(logit_N)


def _pool(weight_VE: Tensor, ids_NL: Tensor, length_N: Tensor, pooling: str) -> Tensor:
    inside_NL = torch.arange(ids_NL.shape[1]) < length_N.unsqueeze(1)
    total_NE = (nn.functional.embedding(ids_NL, weight_VE) * inside_NL.unsqueeze(2)).sum(1)
    return total_NE / length_N.clamp(min=1).unsqueeze(1) if pooling == "mean" else total_NE


def graph_inputs(batch: Batch, schema: Schema) -> Inputs:
    """A batch as inputs of the plain graph."""
    inputs: Inputs = {}
    jagged = batch.sparse.to_dict()
    single = single_features(schema)
    if single:
        inputs["ids"] = torch.stack([jagged[name].values() for name in single], dim=1)
    for feature in sequence_features(schema):
        inputs[f"{feature.name}_ids"] = jagged[feature.name].to_padded_dense(feature.max_len).long()
        inputs[f"{feature.name}_length"] = jagged[feature.name].lengths()
    if schema.dense_features:
        inputs["dense"] = batch.dense_BD
    return inputs
