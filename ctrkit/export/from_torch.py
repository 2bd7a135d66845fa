"""A trained network as arrays, its batch norm folded into its layers."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ctrkit.errors import UserError
from ctrkit.export.arrays import Activation, Attention, Crosses, Float32Array, Layer, LayerNorm, NetworkArrays, Reader
from ctrkit.nn.dcn_v2 import DCNv2
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.nn.target_attention import TargetAttention
from ctrkit.schema import Schema


def network_arrays(network: Network, schema: Schema) -> NetworkArrays:
    """The arrays of a trained network; tables are views, not copies.

    Raises:
        UserError: the tower has a layer that no serving graph knows.
    """
    embedding, tower = network.embedding, network.tower
    if network.privileged is not None:
        raise UserError("the network sees privileged features, which do not exist where it would serve")
    rows = dict(embedding.columns)
    start = sum(lookup.dim for lookup in embedding.lookups)
    rows |= {feature.name: slice(start + i, start + i + 1) for i, feature in enumerate(schema.dense_features)}
    arrays = NetworkArrays(
        schema=schema,
        stacks={int(dim): stack.detach().cpu().numpy() for dim, stack in embedding.stacks.items()},
        readers={found.feature: Reader(found.dim, found.first_row, found.pooling) for found in embedding.lookups},
        layers=(),
        rows=rows,
    )
    match tower:
        case MLP():
            return replace(arrays, layers=folded_layers(tower.layers))
        case DCNv2():
            return _with_crosses(arrays, tower)
        case TargetAttention():
            return _with_attention(arrays, tower)
    raise UserError(f"the tower is a {type(tower).__name__}, which no serving graph knows; export another model")


def _with_crosses(arrays: NetworkArrays, tower: DCNv2) -> NetworkArrays:
    """The first cross layer in front of the MLP's first one; x in the order of the graphs."""
    order, width = arrays.order, len(arrays.order)
    # columns in the order of the graphs; of the first, `side_weight` will take the rows in that order
    first, *others = (Layer(_array(c.weight.T)[:, order], _array(c.bias)[order]) for c in _linears(tower.crosses))
    joined = Layer(first.weight_IO, first.bias_O + np.float32(1))
    deep, head_I1 = folded_layers(tower.deep.layers), _array(tower.head.weight.T)
    if deep:
        joined = replace(
            deep[0],
            weight_IO=np.concatenate([joined.weight_IO, deep[0].weight_IO], axis=1),
            bias_O=np.concatenate([joined.bias_O, deep[0].bias_O]),
        )
    last_I1 = head_I1[width:] if deep else head_I1[width:][order]
    return replace(
        arrays,
        layers=(joined, *deep[1:], Layer(last_I1, _array(tower.head.bias))),
        crosses=Crosses(tuple(Layer(c.weight_IO[order], c.bias_O) for c in others), head_I1[:width][order]),
    )


def _with_attention(arrays: NetworkArrays, tower: TargetAttention) -> NetworkArrays:
    """The MLP's first layer taken apart: what reads x, and what reads each attended list."""
    first, *rest = folded_layers(tower.mlp.layers)
    start = len(arrays.order)
    x_IO, attentions = first.weight_IO[:start], []
    sequences = {feature.name: feature for side in arrays.sides for feature in arrays.side(side).sequences}
    target = {(rows.start, rows.stop): name for name, rows in arrays.rows.items()}
    for pair, unit in zip(tower.attended, tower.units, strict=True):
        assert isinstance(unit, MLP)
        stop = start + 2 * pair.dim
        attentions.append(
            Attention(
                target[pair.target.start, pair.target.stop],
                sequences[pair.list],
                folded_layers(unit.layers),
                np.ascontiguousarray(first.weight_IO[start:stop]),
            )
        )
        start = stop
    return replace(
        arrays, layers=(replace(first, weight_IO=np.ascontiguousarray(x_IO)), *rest), attentions=tuple(attentions)
    )


def _linears(modules: nn.ModuleList) -> Iterator[nn.Linear]:
    for module in modules:
        assert isinstance(module, nn.Linear)
        yield module


def folded_layers(modules: nn.Sequential) -> tuple[Layer, ...]:
    """Linear layers with what follows each: batch norm folded in, in double precision; dropout gone."""
    found: list[Layer] = []
    for module in modules:
        match module:
            case nn.Linear():
                found.append(Layer(_array(module.weight.T), _array(module.bias)))
            case nn.BatchNorm1d():
                found[-1] = _folded(found[-1], module)
            case nn.LayerNorm():
                norm = LayerNorm(_array(module.weight), _array(module.bias), module.eps)
                found[-1] = replace(found[-1], norm=norm)
            case nn.Dropout() | nn.Identity():
                pass
            case _:
                activation, slope = _activation(module)
                found[-1] = replace(found[-1], activation=activation, slope=slope)
    return tuple(found)


def _folded(layer: Layer, norm: nn.BatchNorm1d) -> Layer:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale_O = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shift_O = norm.bias.detach().double() - norm.running_mean.double() * scale_O
    weight_IO = layer.weight_IO.astype(np.float64) * scale_O.numpy()
    bias_O = layer.bias_O.astype(np.float64) * scale_O.numpy() + shift_O.numpy()
    return Layer(weight_IO.astype(np.float32), bias_O.astype(np.float32))


def _activation(module: nn.Module) -> tuple[Activation, Float32Array | None]:
    match module:
        case nn.ReLU():
            return "Relu", None
        case nn.LeakyReLU():
            return "LeakyRelu", np.array([module.negative_slope], np.float32)
        case nn.PReLU():
            return "PRelu", _array(module.weight)
        case nn.GELU(approximate="none"):
            return "Gelu", None
        case nn.SiLU():
            return "Silu", None
        case nn.Tanh():
            return "Tanh", None
    raise UserError(f"the tower has a {type(module).__name__}, which no serving graph knows; export another model")


def _array(tensor: torch.Tensor) -> Float32Array:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
