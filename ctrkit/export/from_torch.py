"""A trained network as arrays, its batch norm folded into its layers."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ctrkit.errors import UserError
from ctrkit.export.arrays import Activation, Float32Array, Layer, LayerNorm, NetworkArrays, Reader
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.schema import Schema


def network_arrays(network: Network, schema: Schema) -> NetworkArrays:
    """The arrays of a trained network; tables are views, not copies.

    Raises:
        UserError: the tower has a layer that no serving graph knows.
    """
    embedding, tower = network.embedding, network.tower
    if network.privileged is not None:
        raise UserError("the network sees privileged features, which do not exist where it would serve")
    if not isinstance(tower, MLP):
        raise UserError(f"the tower is a {type(tower).__name__}, which no serving graph knows; export another model")
    rows = dict(embedding.columns)
    start = sum(lookup.dim for lookup in embedding.lookups)
    rows |= {feature.name: slice(start + i, start + i + 1) for i, feature in enumerate(schema.dense_features)}
    return NetworkArrays(
        schema=schema,
        stacks={int(dim): stack.detach().cpu().numpy() for dim, stack in embedding.stacks.items()},
        readers={found.feature: Reader(found.dim, found.first_row, found.pooling) for found in embedding.lookups},
        layers=folded_layers(tower.layers),
        rows=rows,
    )


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
