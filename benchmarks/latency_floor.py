"""The floor under a request: its multiplications at the measured peak of one core, and the bytes it must read.

A floor is no forecast: nothing computes at peak throughout, and nothing that was just computed comes for free.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

_SIZE = 1536
_REPEATS = 12


@dataclass(frozen=True)
class Machine:
    """What one core was measured to do."""

    flops: float
    """Of float32 products, a second."""
    int8_ops: float
    """Of products of uint8 and int8, a second."""
    bandwidth: float
    """Bytes a second that are read from far beyond the caches."""

    def floor(self, *, flops: float, int8_ops: float = 0.0, bytes_read: float = 0.0) -> float:
        """Seconds below which no implementation gets: products one after the other, reading at the same time."""
        return max(flops / self.flops + int8_ops / self.int8_ops, bytes_read / self.bandwidth)


def measure_machine() -> Machine:
    """The best of several attempts of each, one thread."""
    rng = np.random.default_rng(0)
    operations = 2 * _SIZE**3
    a, b = rng.normal(size=(2, _SIZE, _SIZE)).astype(np.float32)
    out = np.empty_like(a)
    products = [lambda: np.matmul(a, b, out=out), _onnx("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, a, b)]
    x, y = rng.integers(0, 255, a.shape).astype(np.uint8), rng.integers(-127, 127, a.shape).astype(np.int8)
    integers = _onnx("MatMulInteger", TensorProto.UINT8, TensorProto.INT8, x, y)
    far = np.ones(1 << 26, np.float32)
    return Machine(
        flops=operations / min(_fastest(product) for product in products),
        int8_ops=operations / _fastest(integers),
        bandwidth=far.nbytes / _fastest(far.sum),
    )


def _onnx(operator: str, left: int, right: int, a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    out = TensorProto.INT32 if operator == "MatMulInteger" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", left, a.shape)],
        [helper.make_tensor_value_info("c", out, [a.shape[0], b.shape[1]])],
        [helper.make_tensor("b", right, b.shape, b.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls."""
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
