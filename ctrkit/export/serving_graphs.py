"""A network as the graphs that serve it, the first layer split by side.

    model.onnx   the whole network: the user's and the context's part once a request, the items' once an ad
    item.onnx    the items' part of the first layer alone, float32 [N, H]: what an item table keeps
    head.onnx    everything else, from that part on

A sum over the sides, in an order of its own: equal to the network up to the rounding of a sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctrkit.bundle import PART
from ctrkit.export.arrays import Layer, NetworkArrays
from ctrkit.export.graph_builder import MICROSOFT, GraphBuilder
from ctrkit.export.tables import RowwiseInt8
from ctrkit.export.weight_file import WeightFile
from ctrkit.graph import TensorSpec
from ctrkit.schema import SequenceFeature, Side

ITEM = "item"
"""Key of the quantization of the vector that the items' part is computed from; layer i has the key "i"."""


@dataclass(frozen=True)
class Quantization:
    """How one float tensor becomes uint8: round(x / scale) + zero_point, cut to [0, 255]."""

    scale: float
    zero_point: int


Quantizations = Mapping[str, Quantization]
"""By tensor: `ITEM`, and the inputs of the hidden layers after the first by their index."""


def write_model(
    arrays: NetworkArrays, weights: WeightFile, path: Path, quantizations: Quantizations | None = None
) -> None:
    """The whole network, in int8 where it is told how."""
    build = _Build("model", arrays, weights, quantizations)
    build.save(path, build.tail(build.first_layer()))


def write_head(
    arrays: NetworkArrays, weights: WeightFile, path: Path, quantizations: Quantizations | None = None
) -> None:
    """All but the items' part, which is an input."""
    build = _Build("head", arrays, weights, quantizations)
    width = len(arrays.layers[0].bias_O)
    part = build.builder.input(PART, TensorSpec(dtype="float32", shape=(-1, width), side="item"))
    build.save(path, build.tail(build.builder.node("Add", part, build.base())))


def write_item(arrays: NetworkArrays, weights: WeightFile, path: Path) -> None:
    """The items' part of the first layer, without its bias."""
    build = _Build("item", arrays, weights, None)
    part = build.builder.node("MatMul", build.vector("item"), build.weight("item"))
    build.builder.save(path, [(part, PART, ["rows_item", len(arrays.layers[0].bias_O)])])


def write_observed(arrays: NetworkArrays, weights: WeightFile, path: Path) -> list[str]:
    """The whole network with every tensor that int8 would quantize as an output; their names."""
    build = _Build("observed", arrays, weights, None)
    build.tail(build.first_layer())
    build.builder.save(path, [(tensor, f"{key}", ["rows", "width"]) for key, tensor in build.observed.items()])
    return list(build.observed)


class _Build:
    """One graph in the making."""

    def __init__(
        self, name: str, arrays: NetworkArrays, weights: WeightFile, quantizations: Quantizations | None
    ) -> None:
        self.builder = GraphBuilder(name, weights)
        self.observed: dict[str, str] = {}
        self._arrays = arrays
        self._quantizations = quantizations or {}
        self._inputs: set[str] = set()

    def save(self, path: Path, logit: str) -> None:
        probability = self.builder.node("Sigmoid", logit)
        flat = self.builder.node("Reshape", probability, self.builder.constant([-1]))
        self.builder.save(path, [(flat, "probability", ["rows"])])

    def first_layer(self) -> str:
        """The first layer before its activation, [N, H]."""
        base = self.base()
        if "item" not in self._arrays.sides:
            return base
        features = self._arrays.side("item")
        looked_up = bool(features.single or features.sequences)
        if looked_up and (ITEM in self._quantizations or self._arrays.layers[1:]):
            vector = self.vector("item", dense=False)
            self.observed[ITEM] = vector
        if ITEM not in self._quantizations:
            return self.builder.node("Gemm", self.vector("item"), self.weight("item"), base)
        if features.dense:
            base = self.builder.node("Gemm", self.vector("item", dense=True), self.weight("item", dense=True), base)
        part = self._matmul(ITEM, vector, self._arrays.side_weight("item", dense=False))
        return self.builder.node("Add", part, base)

    def base(self) -> str:
        """Bias, and the parts of user and context: [1, H], or a row an ad."""
        total = self.builder.weight("bias_0", self._arrays.layers[0].bias_O)
        first = True
        for side in self._arrays.sides:
            if side == "item":
                continue
            vector, weight = self.vector(side), self.weight(side)
            if first:
                total = self.builder.node("Gemm", vector, weight, total)
            else:  # either may have one row
                total = self.builder.node("Add", self.builder.node("MatMul", vector, weight), total)
            first = False
        return total

    def weight(self, side: Side, *, dense: bool | None = None) -> str:
        """The first layer's weight for a side."""
        name = f"weight_0_{side}" + {None: "", True: "_dense", False: "_looked_up"}[dense]
        return self.builder.weight(name, self._arrays.side_weight(side, dense=dense))

    def vector(self, side: Side, *, dense: bool | None = None) -> str:
        """What the features of a side give, joined: [R, X]."""
        features = self._arrays.side(side)
        parts: list[str] = []
        if not dense:
            if features.single:
                parts += self._looked_up(features.single, self._input(f"ids_{side}", features.inputs()))
            parts += [self._pooled(feature, features.inputs()) for feature in features.sequences]
        if dense is not False and features.dense:
            parts.append(self._input(f"dense_{side}", features.inputs()))
        return parts[0] if len(parts) == 1 else self.builder.node("Concat", *parts, axis=1)

    def _input(self, name: str, specs: Mapping[str, TensorSpec]) -> str:
        if name not in self._inputs:
            self._inputs.add(name)
            self.builder.input(name, specs[name])
        return name

    def _looked_up(self, names: Sequence[str], ids: str) -> list[str]:
        """Features with one id: one look-up for each width of embedding."""
        build, readers, parts = self.builder, self._arrays.readers, []
        for dim in sorted({readers[name].dim for name in names}):
            columns = [i for i, name in enumerate(names) if readers[name].dim == dim]
            chosen = ids
            if len(columns) < len(names):
                chosen = build.node("Gather", ids, build.constant(columns), axis=1)
            first_rows = [readers[names[i]].first_row for i in columns]
            if any(first_rows):
                chosen = build.node("Add", chosen, build.constant(first_rows))
            rows = self._rows(dim, chosen)
            parts.append(build.node("Reshape", rows, build.constant([-1, len(columns) * dim])))
        return parts

    def _rows(self, dim: int, ids: str) -> str:
        """Rows of the stacked table of a width, float32."""
        build, table = self.builder, self._arrays.stacks[dim]
        if isinstance(table, RowwiseInt8):
            rows = build.node("Gather", build.weight(f"table_{dim}", table.values_VE), ids, axis=0)
            scale = build.node("Gather", build.weight(f"scale_{dim}", table.scale_V1), ids, axis=0)
            return build.node("Mul", build.node("Cast", rows, to=1), scale)
        rows = build.node("Gather", build.weight(f"table_{dim}", table), ids, axis=0)
        return build.node("Cast", rows, to=1) if table.dtype == np.float16 else rows

    def _pooled(self, feature: SequenceFeature, specs: Mapping[str, TensorSpec]) -> str:
        """Mean or sum of the rows of a list, zeros if it is empty: [R, E]."""
        build, reader = self.builder, self._arrays.readers[feature.name]
        ids = self._input(f"{feature.name}_ids", specs)
        length = self._input(f"{feature.name}_length", specs)
        if reader.first_row:
            ids = build.node("Add", ids, build.constant(reader.first_row))
        length = build.node("Unsqueeze", length, build.constant([1]))
        inside = build.node("Less", build.constant(np.arange(feature.max_len)[None]), length)
        mask = build.node("Unsqueeze", build.node("Cast", inside, to=1), build.constant([1]))
        pooled = build.node("MatMul", mask, self._rows(reader.dim, ids))
        pooled = build.node("Reshape", pooled, build.constant([-1, reader.dim]))
        if reader.pooling == "sum":
            return pooled
        count = build.node("Cast", build.node("Max", length, build.constant([1])), to=1)
        return build.node("Div", pooled, count)

    def tail(self, hidden: str) -> str:
        """From the first layer, before its activation, to the logit [N, 1]."""
        layers = self._arrays.layers
        for i, layer in enumerate(layers[1:], start=1):
            before, key, last = layers[i - 1], str(i), i == len(layers) - 1
            quantized = self._quantizations.get(key)
            # what is below zero becomes zero when it is cut to uint8: that is a ReLU
            if not (quantized and before.activation == "Relu" and quantized.zero_point == 0):
                hidden = self._activated(hidden, before, i - 1)
            if not last:
                self.observed[key] = hidden
            if quantized:
                hidden = self._matmul(key, hidden, layer.weight_IO, layer.bias_O)
            else:
                weight = self.builder.weight(f"weight_{i}", layer.weight_IO)
                hidden = self.builder.node("Gemm", hidden, weight, self.builder.weight(f"bias_{i}", layer.bias_O))
        return hidden

    def _matmul(self, key: str, x: str, weight_IO: np.ndarray, bias_O: np.ndarray | None = None) -> str:
        """x W (+ b) in int8: x cut to uint8 by known bounds, W by the largest of each column."""
        build, how = self.builder, self._quantizations[key]
        scale, zero = build.constant(how.scale, np.float32), build.constant(how.zero_point, np.uint8)
        weight_scale_O = np.abs(weight_IO).max(axis=0).astype(np.float32) / np.float32(127)
        weight_scale_O[weight_scale_O == 0] = 1
        rounded_IO = np.rint(weight_IO / weight_scale_O).astype(np.int8)
        inputs = [
            build.node("QuantizeLinear", x, scale, zero),
            build.weight(f"int8_{key}", rounded_IO),
            scale,
            build.weight(f"int8_scale_{key}", weight_scale_O),
            zero,
            "",
        ]
        inputs.append("" if bias_O is None else build.weight(f"bias_{key}", bias_O))
        return build.node("MatMulIntegerToFloat", *inputs, domain=MICROSOFT)

    def _activated(self, x: str, layer: Layer, index: int) -> str:
        match layer.activation:
            case None:
                return x
            case "Silu":
                return self.builder.node("Mul", x, self.builder.node("Sigmoid", x))
            case "LeakyRelu":
                assert layer.slope is not None
                return self.builder.node("LeakyRelu", x, alpha=float(layer.slope[0]))
            case "PRelu":
                assert layer.slope is not None
                return self.builder.node("PRelu", x, self.builder.weight(f"slope_{index}", layer.slope))
            case _:
                return self.builder.node(layer.activation, x)
