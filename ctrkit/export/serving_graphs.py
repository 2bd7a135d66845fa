"""A network as the graphs that serve it, the first layer split by side.

    model.onnx   the whole network: the user's and the context's part once a request, the items' once an ad
    table.onnx   the same for ads of an item table, which has the items' part of each

and, to make an item table and to measure what it changes on rows whose ads it has not:

    item.onnx    what the table keeps of an ad: its part of the first layer, [N, H], behind what later layers read too
    head.onnx    everything else, from that on

A sum over the sides, in an order of its own: equal to the network up to the rounding of a sum. Only crosses and target
attention (`cross_graph`, `attention_graph`) read embeddings after the first layer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrkit.export.arrays import NetworkArrays
from ctrkit.export.attention_graph import AttentionGraph
from ctrkit.export.cross_graph import CrossGraph
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


def _graph(
    name: str,
    arrays: NetworkArrays,
    weights: WeightFile,
    quantizations: Quantizations | None = None,
    shift: float = 0.0,
) -> NetworkGraph:
    """A graph of the kind that the tower needs."""
    kind = NetworkGraph
    if arrays.crosses is not None:
        kind = CrossGraph
    elif arrays.attentions:
        kind = AttentionGraph
    return kind(name, arrays, weights, quantizations, shift)


def write_model(
    arrays: NetworkArrays,
    weights: WeightFile,
    path: Path,
    quantizations: Quantizations | None = None,
    shift: float = 0.0,
) -> None:
    """The whole network, in int8 where it is told how."""
    build = _graph("model", arrays, weights, quantizations, shift)
    build.save(path, build.whole())


def write_head(
    arrays: NetworkArrays,
    weights: WeightFile,
    path: Path,
    quantizations: Quantizations | None = None,
    shift: float = 0.0,
) -> None:
    """All but the items' part, which is an input; it is rounded first where a table in int8 would keep it so."""
    build = _graph("head", arrays, weights, quantizations, shift)
    part = build.builder.input(PART, TensorSpec(dtype="float32", shape=(-1, arrays.part_width), side="item"))
    if PART in (quantizations or {}):
        build.save(path, build.tail(build.sum_int8(build.part_int8(part)), rounded=True))
    else:
        build.save(path, build.from_part(part))


def write_table(
    arrays: NetworkArrays,
    weights: WeightFile,
    path: Path,
    kept: KeptItems,
    quantizations: Quantizations | None = None,
    shift: float = 0.0,
) -> None:
    """The network for ads by their row of an item table that is written already."""
    build = _graph("table", arrays, weights, quantizations, shift)
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
    build.save(path, build.from_part(part))


def write_item(arrays: NetworkArrays, weights: WeightFile, path: Path) -> None:
    """What an item table keeps of an ad."""
    build = _graph("item", arrays, weights)
    build.builder.save(path, [(build.item_part(), PART, ["rows_item", arrays.part_width])])


def write_observed(arrays: NetworkArrays, weights: WeightFile, path: Path) -> list[str]:
    """The whole network with every tensor that int8 would quantize as an output; their names."""
    build = _graph("observed", arrays, weights)
    build.whole()
    build.builder.save(path, [(tensor, f"{key}", ["rows", "width"]) for key, tensor in build.observed.items()])
    return list(build.observed)
