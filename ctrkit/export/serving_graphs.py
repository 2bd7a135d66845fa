"""A network as the graphs that serve it, the first layer split by side.

    model.onnx   the whole network: the user's and the context's part once a request, the items' once an ad
    table.onnx   the same for ads of an item table, which has the items' part of each

and, to make an item table and to measure what it changes on rows whose ads it has not:

    item.onnx    the items' part of the first layer alone, float32 [N, H]
    head.onnx    everything else, from that part on

A sum over the sides, in an order of its own: equal to the network up to the rounding of a sum.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrkit.export.arrays import NetworkArrays
from ctrkit.export.network_graph import PART, NetworkGraph, Quantizations
from ctrkit.export.weight_file import WeightFile
from ctrkit.graph import TensorSpec
from ctrkit.manifest import ADS

ITEM, HEAD, HEAD_INT8 = "item.onnx", "head.onnx", "head.int8.onnx"


@dataclass(frozen=True)
class KeptItems:
    """The files of an item table: path beside the graph, the array, and the byte of the file where it begins."""

    part: tuple[str, npt.NDArray[Any], int]
    scale: tuple[str, npt.NDArray[Any], int] | None


def write_model(
    arrays: NetworkArrays,
    weights: WeightFile,
    path: Path,
    quantizations: Quantizations | None = None,
    shift: float = 0.0,
) -> None:
    """The whole network, in int8 where it is told how."""
    build = NetworkGraph("model", arrays, weights, quantizations, shift)
    build.save(path, build.tail(build.first_layer()))


def write_head(
    arrays: NetworkArrays,
    weights: WeightFile,
    path: Path,
    quantizations: Quantizations | None = None,
    shift: float = 0.0,
) -> None:
    """All but the items' part, which is an input; it is rounded first where a table in int8 would keep it so."""
    build = NetworkGraph("head", arrays, weights, quantizations, shift)
    width = len(arrays.layers[0].bias_O)
    part = build.builder.input(PART, TensorSpec(dtype="float32", shape=(-1, width), side="item"))
    if PART in (quantizations or {}):
        build.save(path, build.tail(build.sum_int8(build.part_int8(part)), rounded=True))
    else:
        build.save(path, build.tail(build.builder.node("Add", part, build.base())))


def write_table(
    arrays: NetworkArrays,
    weights: WeightFile,
    path: Path,
    kept: KeptItems,
    quantizations: Quantizations | None = None,
    shift: float = 0.0,
) -> None:
    """The network for ads by their row of an item table that is written already."""
    build = NetworkGraph("table", arrays, weights, quantizations, shift)
    ads = build.builder.input(ADS, TensorSpec(dtype="int64", shape=(-1,), side="item"))
    part = build.builder.node("Gather", build.builder.file(*kept.part), ads, axis=0)
    if PART in (quantizations or {}):
        build.save(path, build.tail(build.sum_int8(part), rounded=True))
        return
    if kept.part[1].dtype != np.float32:
        part = build.builder.node("Cast", part, to=1)
    if kept.scale is not None:
        part = build.builder.node(
            "Mul", part, build.builder.node("Gather", build.builder.file(*kept.scale), ads, axis=0)
        )
    build.save(path, build.tail(build.builder.node("Add", part, build.base())))


def write_item(arrays: NetworkArrays, weights: WeightFile, path: Path) -> None:
    """The items' part of the first layer, without its bias."""
    build = NetworkGraph("item", arrays, weights)
    part = build.builder.node("MatMul", build.vector("item"), build.weight("item"))
    build.builder.save(path, [(part, PART, ["rows_item", len(arrays.layers[0].bias_O)])])


def write_observed(arrays: NetworkArrays, weights: WeightFile, path: Path) -> list[str]:
    """The whole network with every tensor that int8 would quantize as an output; their names."""
    build = NetworkGraph("observed", arrays, weights)
    build.tail(build.first_layer())
    build.builder.save(path, [(tensor, f"{key}", ["rows", "width"]) for key, tensor in build.observed.items()])
    return list(build.observed)
