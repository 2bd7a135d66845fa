"""The graphs in int8 of one bundle: the fastest that pass their gate, or none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrkit.export.arrays import NetworkArrays
from ctrkit.export.items import rounding_of, write_int8_part
from ctrkit.export.network_graph import PART, Quantizations
from ctrkit.export.parity import Arrays, Graph, TwoGraphs
from ctrkit.export.quantize import attempts, quantizations
from ctrkit.export.serving_graphs import (
    HEAD_INT8,
    ITEM,
    KeptItems,
    write_head,
    write_model,
    write_observed,
    write_table,
)
from ctrkit.export.weight_file import WeightFile
from ctrkit.manifest import ITEMS, MODEL_INT8, TABLE_INT8, Approximation

AnyGraph = Graph | TwoGraphs


@dataclass(frozen=True)
class KeptTable:
    """An item table that is written."""

    items: KeptItems
    kept_part: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
    """What the table makes of a part."""


@dataclass
class Int8:
    """What int8 graphs are made of, and what decides on them."""

    place: Path
    arrays: NetworkArrays
    weights: WeightFile
    pairs: Sequence[tuple[Arrays, npt.NDArray[np.float32]]]
    """Inputs with the exact probabilities: bounds are taken from them, and the mean."""
    table: KeptTable | None
    judge: Callable[[AnyGraph], Approximation]

    def write(self) -> tuple[list[Approximation], dict[str, AnyGraph]]:
        """Write what passes: what was measured of it, and the ways to a score that it gives.

        If nothing passes, the last thing measured and no way; nothing is left of what did not pass.
        """
        found: list[Approximation] = []
        start = self.weights.mark()
        for how in attempts(self._bounds()):
            graph = self._balanced(how, write_model, self.place / MODEL_INT8, Graph)
            found = [self.judge(graph)]
            if found[0].accepted:
                if self.table is None:
                    return found, {"int8": graph}
                of_table, with_table = self._write_table(how, self.table)
                found = [*found, of_table] if of_table.accepted else [of_table]
                if with_table is not None:
                    return found, {"int8": graph, "item_table_int8": with_table}
            (self.place / MODEL_INT8).unlink()
            self.weights.rewind(start)
        return found, {}

    def _write_table(self, how: Quantizations, table: KeptTable) -> tuple[Approximation, TwoGraphs | None]:
        """The item table's graph, from parts in int8 if that passes."""
        tried, start = [how], self.weights.mark()
        first = self.arrays.layers[0]
        sums = "1" in how and how["1"].zero_point == 0 and first.activation == "Relu" and first.norm is None
        if sums and not self.arrays.kept:
            seen = map(Graph(self.place / ITEM), (inputs for inputs, _ in self.pairs))
            tried.insert(0, {**how, PART: rounding_of(table.items, seen)})
        for quantized in tried:
            graph = self._balanced(
                quantized,
                write_head,
                self.place / HEAD_INT8,
                lambda path: TwoGraphs(path.parent, path.name, table.kept_part),
            )
            found = self.judge(graph)
            if found.accepted:
                kept = table.items
                if PART in quantized:
                    kept = write_int8_part(self.place / ITEMS, kept, quantized[PART])
                write_table(self.arrays, self.weights, self.place / TABLE_INT8, kept, quantized, self._shift)
                return found, graph
            (self.place / HEAD_INT8).unlink()
            self.weights.rewind(start)
        return found, None

    def _bounds(self) -> Quantizations:
        observed, start = self.place / "observed.onnx", self.weights.mark()
        keys = write_observed(self.arrays, self.weights, observed)
        how = quantizations(observed, keys, (inputs for inputs, _ in self.pairs)) if keys else {}
        observed.unlink()
        self.weights.rewind(start)
        return how

    def _balanced(self, how: Quantizations, write: Any, path: Path, load: Callable[[Path], Any]) -> Any:
        """A graph whose mean probability on the rows is the exact one: what is left of the error's mean goes into the
        last bias, which no ranking sees.
        """
        self._shift = 0.0
        write(self.arrays, self.weights, path, how)
        for _ in range(2):  # of Newton's method
            found = np.concatenate([load(path)(inputs) for inputs, _ in self.pairs]).astype(np.float64)
            exact = np.concatenate([probability_N for _, probability_N in self.pairs])
            slope = float(np.sum(found * (1 - found)))
            self._shift += float(np.sum(exact - found)) / slope if slope else 0.0
            write(self.arrays, self.weights, path, how, self._shift)
        return load(path)
