"""Several networks as one: the mean of their logits, in a form that every serving graph knows."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ctrkit.errors import UserError
from ctrkit.nn.embedding import Embedding, TablePrecision
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network


@torch.no_grad()
def mean_network(networks: Sequence[Network]) -> Network:
    """One network whose logit is the mean of the networks' logits, up to rounding.

    Its MLP has their hidden layers beside each other, as block diagonals; its tables have their rows one behind the
    other, so that one look-up reads all. It exports as any other. Block diagonals are multiplied as if they were full:
    of K networks alike, each with tables of its own, it takes about K^2 times the multiplications of
    one, not K times.

    Args:
        networks: over the same features, each with an MLP of as many layers and the same activation.

    Raises:
        UserError: they cannot be joined.
    """
    towers = [network.tower for network in networks]
    if any(network.privileged is not None for network in networks):
        raise UserError("a network that sees privileged features cannot be part of a mean that ships")
    mlps = [tower for tower in towers if isinstance(tower, MLP)]
    shapes = {_shape(mlp) for mlp in mlps}
    if len(mlps) < len(towers) or len(shapes) > 1 or None in shapes:
        raise UserError(
            "the mean ships as one MLP: give its networks towers of kind mlp with the same number of hidden layers, at "
            "least one, the same activation (not prelu), the same batch_norm and no layer_norm"
        )
    embeddings = list({id(network.embedding): network.embedding for network in networks}.values())
    joined = embeddings[0] if len(embeddings) == 1 else _joined_tables(embeddings)
    tower = _joined_towers(mlps, joined.out_features)
    first = tower.linears[0]
    first.weight.zero_()
    row = 0
    for network, mlp in zip(networks, mlps, strict=True):
        own, rows = mlp.linears[0], slice(row, row + mlp.linears[0].out_features)
        slot = [embedding is network.embedding for embedding in embeddings].index(True)
        for name, columns in network.embedding.columns.items():
            start = joined.columns[name].start + slot * (columns.stop - columns.start)
            first.weight[rows, start : start + columns.stop - columns.start] = own.weight[:, columns]
        dense = network.embedding.num_dense
        if dense:
            first.weight[rows, -dense:] = own.weight[:, -dense:]
        row = rows.stop
    return Network(joined, tower).eval()


def _shape(mlp: MLP) -> tuple[str, ...] | None:
    """What MLPs that can be joined have in common: their layers, dropout left out; None where none can."""
    kinds = [type(layer).__name__ for layer in mlp.layers if not isinstance(layer, nn.Dropout)]
    return None if {"PReLU", "LayerNorm"} & set(kinds) or not mlp.hidden_widths else tuple(kinds)


def _joined_tables(embeddings: Sequence[Embedding]) -> Embedding:
    """Tables whose rows are the embeddings' rows, one behind the other."""
    first, count = embeddings[0], len(embeddings)
    tables = [replace(table, dim=table.dim * count) for table in first.tables]
    precision: TablePrecision = "fp16" if first.dtype == torch.float16 else "fp32"
    joined = Embedding(tables, first.dense_columns or first.num_dense, precision=precision)
    weights = [embedding.table_weights() for embedding in embeddings]
    for name, weight_VE in joined.table_weights().items():
        weight_VE.copy_(torch.cat([each[name] for each in weights], dim=1))
    return joined


def _joined_towers(mlps: Sequence[MLP], in_features: int) -> MLP:
    """The MLPs beside each other, but for the weight of the first layer."""
    hidden = [sum(widths) for widths in zip(*(mlp.hidden_widths for mlp in mlps), strict=True)]
    tower = MLP(in_features, hidden, activation=mlps[0].activation, batch_norm=_has_norm(mlps[0]))
    layers = [[layer for layer in mlp.layers if not isinstance(layer, nn.Dropout)] for mlp in mlps]
    linears = 0
    for place, layer in enumerate(tower.layers.children()):
        of_all = [each[place] for each in layers]
        if isinstance(layer, nn.BatchNorm1d):
            for name, value in layer.state_dict().items():
                if value.ndim:
                    value.copy_(torch.cat([each.state_dict()[name] for each in of_all]))
        elif isinstance(layer, nn.Linear):
            parts = [each for each in of_all if isinstance(each, nn.Linear)]
            last = linears == len(hidden)
            if last:
                layer.weight.copy_(torch.cat([part.weight for part in parts], dim=1) / len(parts))
                layer.bias.copy_(torch.stack([part.bias for part in parts]).mean(0))
            else:
                layer.bias.copy_(torch.cat([part.bias for part in parts]))
                if linears:
                    diagonal = torch.block_diag(*(part.weight for part in parts))  # type: ignore[no-untyped-call]
                    layer.weight.copy_(diagonal)
            linears += 1
    return tower


def _has_norm(mlp: MLP) -> bool:
    return any(isinstance(layer, nn.BatchNorm1d) for layer in mlp.layers)
