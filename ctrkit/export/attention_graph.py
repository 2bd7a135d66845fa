"""Nodes of a network whose tower looks from the ad at lists: target attention."""

import numpy as np

from ctrkit.export.arrays import Attention, Layer, NetworkArrays
from ctrkit.export.network_graph import NetworkGraph, Quantizations
from ctrkit.export.weight_file import WeightFile


class AttentionGraph(NetworkGraph):
    """An MLP that reads x and attended lists: a sum over the sides, and over the lists.

    The first layer of an activation unit reads q, k, q - k and q * k: what it makes of q is computed once an ad, what
    it makes of k once an element of the list, and only q * k for both together. What an ad makes of its own lists is
    part of the items' part; for the others an item table keeps the ad's target embedding too.
    """

    reads_again = True

    def __init__(
        self,
        name: str,
        arrays: NetworkArrays,
        weights: WeightFile,
        quantizations: Quantizations | None = None,
        shift: float = 0.0,
    ) -> None:
        super().__init__(name, arrays, weights, quantizations, shift)
        self._targets: dict[str, str] = {}

    def first_layer(self) -> str:
        """The first layer before its activation, [N, H]."""
        return self._with_lists(super().first_layer(), of_item=True)

    def base(self) -> str:
        """Bias, the parts of user and context, and what the ad makes of their lists: [N, H]."""
        return self._with_lists(super().base(), of_item=False)

    def item_part(self) -> str:
        """What an item table keeps of an ad: targets of others' lists, and its part of the first layer."""
        part = self._with_lists(super().item_part(), of_item=True)
        kept = [self._target(name) for name in self._arrays.kept]
        return self.builder.node("Concat", *kept, part, axis=1) if kept else part

    def from_part(self, part: str) -> str:
        """The logits, from what an item table keeps."""
        start = 0
        for name in self._arrays.kept:
            width = self._arrays.width([name])
            self._targets[name] = self._columns(part, start, width)
            start += width
        if start:
            part = self._columns(part, start, len(self._arrays.layers[0].bias_O))
        return super().from_part(part)

    def _with_lists(self, total: str, *, of_item: bool) -> str:
        """With what the attended lists, of ads or of the others, add to the first layer."""
        for i, attention in enumerate(self._arrays.attentions):
            if (attention.list.side == "item") is of_item:
                weight = self.builder.weight(f"attended_{i}", attention.weight_IO)
                total = self.builder.node("Gemm", self._attended(i, attention), weight, total)
        return total

    def _attended(self, index: int, attention: Attention) -> str:
        """Sum over the list of the unit's weight times k, then its product with q: [N, 2 E]."""
        build, feature = self.builder, attention.list
        dim = self._arrays.readers[feature.name].dim
        ids, mask, _ = self._list(feature, self._arrays.side(feature.side).inputs())
        k_RLE, q_NE = self._rows(dim, ids), self._target(attention.target)
        weight_NL = self._unit(
            f"attention_{index}", attention.unit, build.node("Unsqueeze", q_NE, build.constant([1])), k_RLE
        )
        weight_N1L = build.node("Reshape", weight_NL, build.constant([-1, 1, feature.max_len]))
        inside_RLE = build.node("Mul", k_RLE, build.node("Transpose", mask, perm=[0, 2, 1]))
        seen_NE = build.node("Reshape", build.node("MatMul", weight_N1L, inside_RLE), build.constant([-1, dim]))
        return build.node("Concat", seen_NE, build.node("Mul", seen_NE, q_NE), axis=1)

    def _unit(self, name: str, layers: tuple[Layer, ...], q_N1E: str, k_RLE: str) -> str:
        """Weights of all elements, [1, N L]."""
        build, first = self.builder, layers[0]
        of_q, of_k, of_difference, of_product = np.split(first.weight_IO, 4)
        ad_N1A = build.node("MatMul", q_N1E, build.weight(f"{name}_ad", of_q + of_difference))
        list_RLA = build.node("MatMul", k_RLE, build.weight(f"{name}_list", of_k - of_difference))
        list_RLA = build.node("Add", list_RLA, build.weight(f"{name}_bias_0", first.bias_O))
        product_NLE = build.node("Mul", q_N1E, k_RLE)
        both_NLA = build.node("MatMul", product_NLE, build.weight(f"{name}_product", of_product))
        hidden = build.node("Add", both_NLA, build.node("Add", ad_N1A, list_RLA))
        hidden = build.node("Reshape", hidden, build.constant([-1, len(first.bias_O)]))
        for i, layer in enumerate(layers[1:], start=1):
            hidden = self._activated(hidden, layers[i - 1], i - 1)
            bias = build.weight(f"{name}_bias_{i}", layer.bias_O)
            if i == len(layers) - 1:  # as a row: see `_logit`
                weight = build.weight(f"{name}_weight_{i}", np.ascontiguousarray(layer.weight_IO.T))
                return build.node("Gemm", weight, hidden, bias, transB=1)
            hidden = build.node("Gemm", hidden, build.weight(f"{name}_weight_{i}", layer.weight_IO), bias)
        return hidden

    def _target(self, name: str) -> str:
        """The embedding of an ad's feature, [N, E]."""
        if name not in self._targets:
            names = self._arrays.names("item")
            start = self._arrays.width(names[: names.index(name)])
            self._targets[name] = self._columns(self.vector("item"), start, self._arrays.width([name]))
        return self._targets[name]

    def _columns(self, x: str, start: int, width: int) -> str:
        build = self.builder
        return build.node("Slice", x, build.constant([start]), build.constant([start + width]), build.constant([1]))
