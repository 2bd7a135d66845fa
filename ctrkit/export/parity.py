"""Is a graph in ONNX Runtime what the network is in torch?"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from ctrkit.errors import UserError
from ctrkit.export.network_graph import PART
from ctrkit.export.serving_graphs import HEAD, ITEM

MAX_DIFFERENCE = 1e-6
"""Largest difference of probability between torch and ONNX Runtime that an exact graph may have."""
Arrays = Mapping[str, npt.NDArray[Any]]


class Graph:
    """A graph in ONNX Runtime on one core."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.path = path
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [i.name for i in self._session.get_inputs()]
        self._outputs = [o.name for o in self._session.get_outputs()]

    def outputs(self, inputs: Arrays) -> dict[str, npt.NDArray[np.float32]]:
        """Every output; inputs that the graph has not are left out."""
        found = self._session.run(None, {name: inputs[name] for name in self._inputs})
        return dict(zip(self._outputs, found, strict=True))

    def __call__(self, inputs: Arrays) -> npt.NDArray[np.float32]:
        """The one output."""
        return next(iter(self.outputs(inputs).values()))


class TwoGraphs:
    """The items' part and the rest, as an item table has them; `kept` is what the table makes of the part."""

    def __init__(self, directory: Path, head: str = HEAD, kept: Any = None, item: str = ITEM) -> None:
        self.path = directory / head
        self._item, self._head, self._kept = Graph(directory / item), Graph(directory / head), kept

    def __call__(self, inputs: Arrays) -> npt.NDArray[np.float32]:
        """Probabilities [N]."""
        part_NH = self._item(inputs)
        return self._head({**inputs, PART: part_NH if self._kept is None else self._kept(part_NH)})


def parity(graph: Graph | TwoGraphs, pairs: Iterable[tuple[Arrays, npt.NDArray[np.float32]]]) -> float:
    """Largest absolute difference of probability between a graph and torch's answers to the same inputs.

    Raises:
        UserError: it is above `MAX_DIFFERENCE`, or a probability is not finite.
    """
    largest = 0.0
    for inputs, expected_N in pairs:
        difference = float(np.max(np.abs(graph(inputs) - expected_N), initial=0.0))
        if not difference <= MAX_DIFFERENCE:  # NaN too
            raise UserError(
                f"{graph.path.name}: ONNX Runtime and torch differ by {difference:.3g} in probability (at most "
                f"{MAX_DIFFERENCE:g} is allowed); nothing was exported"
            )
        largest = max(largest, difference)
    return largest
