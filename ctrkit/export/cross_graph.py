"""Nodes of a network whose tower crosses its input: DCN-v2."""

import numpy as np

from ctrkit.export.arrays import Crosses
from ctrkit.export.network_graph import NetworkGraph


class CrossGraph(NetworkGraph):
    """Cross layers beside an MLP; both read x, so their first layers are one layer, split by side.

    A later cross layer reads a product of user and ad, which no split reaches: it is computed for every ad. An item
    table keeps an ad's x beside its part of the first layer.
    """

    reads_again = True

    def whole(self) -> str:
        """The logits, from all inputs."""
        first = self.first_layer()
        return self._logits(first, [self.vector("item")] if "item" in self._arrays.sides else [])

    def item_part(self) -> str:
        """What an item table keeps of an ad: its x and its part of the first layer, [N, X + H]."""
        return self.builder.node("Concat", self.vector("item"), super().item_part(), axis=1)

    def from_part(self, part: str) -> str:
        """The logits, from what an item table keeps."""
        widths = [self._arrays.width(self._arrays.kept), len(self._arrays.layers[0].bias_O)]
        x, part = self.builder.nodes(2, "Split", part, self.builder.constant(widths), axis=1)
        return self._logits(self.builder.node("Add", part, self.base()), [x])

    def _logits(self, first: str, item: list[str]) -> str:
        """From the first layer, before its activation, and the items' x."""
        build, crosses = self.builder, self._crosses
        width, x0 = len(crosses.weight_X1), self._x(first, item)
        cross, deep = first, x0  # an MLP without a hidden layer: the logit reads x
        units = len(self._arrays.layers[0].bias_O) - width
        if units:
            cross, deep = build.nodes(2, "Split", first, build.constant([width, units]), axis=1)
        x = build.node("Mul", x0, cross)
        for i, layer in enumerate(crosses.layers, start=2):
            x = build.node("Add", build.node("Mul", x0, self.linear(f"cross_{i}", x, layer)), x)
        weight = build.weight("weight_crossed", np.ascontiguousarray(crosses.weight_X1.T))
        return build.node("Gemm", weight, x, self.tail(deep), transB=1)

    def _x(self, first: str, item: list[str]) -> str:
        """All that the features give, a row an ad: [N, X]."""
        build = self.builder
        rows = build.node("Concat", build.node("Shape", first, start=0, end=1), build.constant([1]), axis=0)
        others = [self.vector(side) for side in self._arrays.sides if side != "item"]
        parts = [*(build.node("Expand", x, rows) for x in others), *item]
        return parts[0] if len(parts) == 1 else build.node("Concat", *parts, axis=1)

    @property
    def _crosses(self) -> Crosses:
        assert self._arrays.crosses is not None
        return self._arrays.crosses
