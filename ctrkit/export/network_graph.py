"""A network as nodes of a graph: its inputs, the first layer by side, the layers after it, in float or in int8."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from ctrkit.export.arrays import Float32Array, Layer, NetworkArrays
from ctrkit.export.graph_builder import MICROSOFT, GraphBuilder
from ctrkit.export.tables import RowwiseInt8
from ctrkit.export.weight_file import WeightFile
from ctrkit.graph import TensorSpec
from ctrkit.schema import SequenceFeature, Side

FIRST_LAYER, PART = "item", "item_part"
"""Keys of quantizations: the vector that the items' part is computed from, and that part itself; layer i's is "i"."""


@dataclass(frozen=True)
class Rounding:
    """How floats become uint8: round(x / scale) + zero_point, cut to [0, 255]."""

    scale: float
    zero_point: int

    @classmethod
    def between(cls, low: float, high: float) -> Self:
        """Of all numbers from the smallest to the largest; zero, where most activations lie, is kept exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / 255 or 1.0))
        return cls(scale, round(-low / scale))

    def __call__(self, x: Float32Array) -> npt.NDArray[np.uint8]:
        """The rounded numbers, as QuantizeLinear gives them."""
        level = np.rint(x / np.float32(self.scale)) + np.float32(self.zero_point)
        rounded: npt.NDArray[np.uint8] = np.clip(level, 0, 255).astype(np.uint8)
        return rounded


@dataclass(frozen=True)
class Quantization(Rounding):
    """The rounding of a layer's input, and what it loses."""

    mean_I: Float32Array
    """Mean of each column, as it is."""
    kept_mean_I: Float32Array
    """And of what is kept of it."""


Quantizations = Mapping[str, Rounding]
"""By key; those of layers are `Quantization`."""


class NetworkGraph:
    """One graph in the making, of a network whose tower is an MLP."""

    reads_again: ClassVar[bool] = False
    """Whether later layers read what features give, as the first one does: then it is made once."""

    def __init__(
        self,
        name: str,
        arrays: NetworkArrays,
        weights: WeightFile,
        quantizations: Quantizations | None = None,
        shift: float = 0.0,
    ) -> None:
        self.builder = GraphBuilder(name, weights, arrays.scope)
        self.observed: dict[str, str] = {}
        self._arrays = arrays
        self._quantizations = quantizations or {}
        self._shift = shift  # of the logit
        self._inputs: set[str] = set()
        self._vectors: dict[tuple[Side, bool | None], str] = {}

    def save(self, path: Path, logit: str) -> None:
        """Write the graph that gives the probabilities [N] of these logits."""
        probability = self.builder.node("Sigmoid", logit)
        flat = self.builder.node("Reshape", probability, self.builder.constant([-1]))
        self.builder.save(path, [(flat, "probability", ["rows"])])

    def whole(self) -> str:
        """The logits, from all inputs."""
        return self.tail(self.first_layer())

    def item_part(self) -> str:
        """What an item table keeps of an ad: its part of the first layer, without the bias, [N, H]."""
        return self.builder.node("MatMul", self.vector("item"), self.weight("item"))

    def from_part(self, part: str) -> str:
        """The logits, from what an item table keeps."""
        return self.tail(self.builder.node("Add", part, self.base()))

    def first_layer(self) -> str:
        """The first layer before its activation, [N, H]."""
        base = self.base()
        if "item" not in self._arrays.sides:
            return base
        features = self._arrays.side("item")
        looked_up = bool(features.single or features.sequences)
        if looked_up and (FIRST_LAYER in self._quantizations or self._arrays.layers[1:]):
            vector = self.vector("item", dense=False)
            self.observed[FIRST_LAYER] = vector
        if FIRST_LAYER not in self._quantizations:
            return self.builder.node("Gemm", self.vector("item"), self.weight("item"), base)
        if features.dense:
            base = self.builder.node("Gemm", self.vector("item", dense=True), self.weight("item", dense=True), base)
        vector = self.builder.node("QuantizeLinear", vector, *self._rounding(FIRST_LAYER))
        part = self._matmul(FIRST_LAYER, vector, self._arrays.side_weight("item", dense=False))
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

    def sum_int8(self, part: str) -> str:
        """The first layer after its ReLU, uint8 [N, H], from an items' part in uint8.

        Both summands are rounded, the other one within the bounds that it has in this request.
        """
        base = self.builder.nodes(3, "DynamicQuantizeLinear", self.base())
        summands = [part, *self._rounding(PART), *base]
        return self.builder.node("QLinearAdd", *summands, *self._rounding("1"), domain=MICROSOFT)

    def part_int8(self, part: str) -> str:
        """The items' part rounded as a table in int8 keeps it."""
        return self.builder.node("QuantizeLinear", part, *self._rounding(PART))

    def _rounding(self, key: str) -> tuple[str, str]:
        how = self._quantizations[key]
        return self.builder.constant(how.scale, np.float32), self.builder.constant(how.zero_point, np.uint8)

    def weight(self, side: Side, *, dense: bool | None = None) -> str:
        """The first layer's weight for a side."""
        name = f"weight_0_{side}" + {None: "", True: "_dense", False: "_looked_up"}[dense]
        return self.builder.weight(name, self._arrays.side_weight(side, dense=dense))

    def vector(self, side: Side, *, dense: bool | None = None) -> str:
        """What the features of a side give, joined: [R, X]; `dense`: only the dense ones, or only the others."""
        if not self.reads_again:
            return self._vector(side, dense)
        if (side, dense) not in self._vectors:
            self._vectors[side, dense] = self._vector(side, dense)
        return self._vectors[side, dense]

    def _vector(self, side: Side, dense: bool | None) -> str:
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
            rows = build.node("Gather", build.table(f"table_{dim}", table.values_VE), ids, axis=0)
            scale = build.node("Gather", build.table(f"scale_{dim}", table.scale_V1), ids, axis=0)
            return build.node("Mul", build.node("Cast", rows, to=1), scale)
        rows = build.node("Gather", build.table(f"table_{dim}", table), ids, axis=0)
        return build.node("Cast", rows, to=1) if table.dtype == np.float16 else rows

    def _pooled(self, feature: SequenceFeature, specs: Mapping[str, TensorSpec]) -> str:
        """Mean or sum of the rows of a list, zeros if it is empty: [R, E]."""
        build, reader = self.builder, self._arrays.readers[feature.name]
        ids, mask, length = self._list(feature, specs)
        pooled = build.node("MatMul", mask, self._rows(reader.dim, ids))
        pooled = build.node("Reshape", pooled, build.constant([-1, reader.dim]))
        if reader.pooling == "sum":
            return pooled
        count = build.node("Cast", build.node("Max", length, build.constant([1])), to=1)
        return build.node("Div", pooled, count)

    def _list(self, feature: SequenceFeature, specs: Mapping[str, TensorSpec]) -> tuple[str, str, str]:
        """Rows of a list in its stacked table [R, L]; 1.0 where there is one, else 0.0 [R, 1, L]; length [R, 1]."""
        build, reader = self.builder, self._arrays.readers[feature.name]
        ids = self._input(f"{feature.name}_ids", specs)
        length = self._input(f"{feature.name}_length", specs)
        if reader.first_row:
            ids = build.node("Add", ids, build.constant(reader.first_row))
        length = build.node("Unsqueeze", length, build.constant([1]))
        inside = build.node("Less", build.constant(np.arange(feature.max_len)[None]), length)
        mask = build.node("Unsqueeze", build.node("Cast", inside, to=1), build.constant([1]))
        return ids, mask, length

    def tail(self, hidden: str, *, rounded: bool = False) -> str:
        """From the first layer, before its activation, to the logits; `rounded` if it is `sum_int8`'s already."""
        layers = self._arrays.layers
        for i, layer in enumerate(layers[1:], start=1):
            before, key, last = layers[i - 1], str(i), i == len(layers) - 1
            quantized = self._quantizations.get(key)
            hidden = self._normed(hidden, before, i - 1)
            # what is below zero becomes zero when it is cut to uint8: that is a ReLU
            if not (quantized and before.activation == "Relu" and quantized.zero_point == 0):
                hidden = self._activated(hidden, before, i - 1)
            if last:
                return self._logit(hidden, layer, i)
            hidden = self.linear(key, hidden, layer, rounded=rounded and i == 1)
        return hidden

    def linear(self, key: str, x: str, layer: Layer, *, rounded: bool = False) -> str:
        """x W + b, in int8 if it is told how; `rounded` if x is in int8 already."""
        self.observed[key] = x
        if key in self._quantizations:
            if not rounded:
                x = self.builder.node("QuantizeLinear", x, *self._rounding(key))
            return self._matmul(key, x, layer.weight_IO, layer.bias_O)
        weight = self.builder.weight(f"weight_{key}", layer.weight_IO)
        return self.builder.node("Gemm", x, weight, self.builder.weight(f"bias_{key}", layer.bias_O))

    def _logit(self, hidden: str, layer: Layer, index: int) -> str:
        """w x' + b, [1, N]: as a row, since ONNX Runtime multiplies a column as if it were sixteen."""
        weight = self.builder.weight(f"weight_{index}", np.ascontiguousarray(layer.weight_IO.T))
        bias = self.builder.constant(layer.bias_O + self._shift, np.float32)
        return self.builder.node("Gemm", weight, hidden, bias, transB=1)

    def _matmul(self, key: str, x: str, weight_IO: Float32Array, bias_O: Float32Array | None = None) -> str:
        """x W (+ b) in int8: x is rounded, W by the largest of each column."""
        build, how = self.builder, self._quantizations[key]
        assert isinstance(how, Quantization)
        scale, zero = self._rounding(key)
        weight_scale_O = np.abs(weight_IO).max(axis=0).astype(np.float32) / np.float32(127)
        weight_scale_O[weight_scale_O == 0] = 1
        rounded_IO = np.rint(weight_IO / weight_scale_O).astype(np.int8)
        # Rounding errs to one side, by a constant on average: that goes into the bias (Nagel et al., ICCV 2019)
        lost_O = how.mean_I @ weight_IO - how.kept_mean_I @ (rounded_IO * weight_scale_O)
        bias_O = lost_O if bias_O is None else bias_O + lost_O
        inputs = [
            x,
            build.weight(f"int8_{key}", rounded_IO),
            scale,
            build.weight(f"int8_scale_{key}", weight_scale_O),
            zero,
            "",
            build.weight(f"int8_bias_{key}", bias_O),
        ]
        return build.node("MatMulIntegerToFloat", *inputs, domain=MICROSOFT)

    def _normed(self, x: str, layer: Layer, index: int) -> str:
        if layer.norm is None:
            return x
        scale = self.builder.weight(f"norm_scale_{index}", layer.norm.scale_O)
        shift = self.builder.weight(f"norm_shift_{index}", layer.norm.shift_O)
        return self.builder.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=layer.norm.epsilon)

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
