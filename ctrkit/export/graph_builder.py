"""ONNX graphs, put together node by node."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ctrkit.export.weight_file import WeightFile, external
from ctrkit.graph import TensorSpec

OPSET, IR_VERSION = 20, 10
MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
_TYPES = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}


class GraphBuilder:
    """One graph: inputs, nodes and weights; every method gives the name of the tensor that it made.

    Names of its own begin with a slash, which no feature's name has.

    Args:
        name: of the graph.
        weights: file of its weights.
        scope: what the names of weights begin with, those of tables excepted: these all graphs of the file share.
    """

    def __init__(self, name: str, weights: WeightFile, scope: str = "") -> None:
        self._name, self._weights, self._scope = name, weights, scope
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._initializers: dict[str, Any] = {}

    def input(self, name: str, spec: TensorSpec) -> str:
        """An input; sides differ in their number of rows."""
        shape = [f"rows_{spec.side}" if size == -1 else size for size in spec.shape]
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[spec.dtype], shape))
        return name

    def node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """The first output of a node; an input "" is one left out."""
        return self.nodes(1, operator, *inputs, domain=domain, **attributes)[0]

    def nodes(self, count: int, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        """The first outputs of a node."""
        outputs = [f"/{operator}_{len(self._nodes)}" + (f"_{i}" if i else "") for i in range(count)]
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, domain=domain, **attributes))
        return outputs

    def weight(self, name: str, array: npt.NDArray[Any]) -> str:
        """A weight, shared with the other graphs of its scope that have one of this name."""
        return self.table(self._scope + name, array)

    def table(self, name: str, array: npt.NDArray[Any]) -> str:
        """A weight, shared with the other graphs that have one of this name."""
        self._initializers[f"/{name}"] = self._weights.tensor(f"/{name}", array)
        return f"/{name}"

    def file(self, path: str, array: npt.NDArray[Any], offset: int) -> str:
        """A weight that a file beside the graph holds already, from a byte on; the array says its type and shape."""
        name = f"/{path}"
        self._initializers[name] = external(name, array, path, offset)
        return name

    def constant(self, value: Any, dtype: npt.DTypeLike = np.int64) -> str:
        """A small array of this graph alone."""
        name = f"/constant_{len(self._initializers)}"
        self._initializers[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def save(self, path: Path, outputs: Sequence[tuple[str, str, Sequence[str | int]]]) -> None:
        """Write it beside the weights, with outputs (tensor, name, shape), all float32."""
        for tensor, name, _ in outputs:
            self._nodes.append(helper.make_node("Identity", [tensor], [name]))
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for _, name, shape in outputs]
        graph = helper.make_graph(self._nodes, self._name, self._inputs, made, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="ctrkit")
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(path))
