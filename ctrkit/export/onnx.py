"""The network that ships as an ONNX graph, proven equal to torch before it goes into a bundle."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from ctrkit.bundle import MODEL, plain_graph
from ctrkit.errors import UserError
from ctrkit.export.plain_network import Inputs, PlainNetwork
from ctrkit.schema import Schema

OPSET = 20
MAX_DIFFERENCE = 1e-5
"""Largest difference of probability between torch and ONNX Runtime that an export may have."""


def export_onnx(network: PlainNetwork, schema: Schema, directory: Path) -> None:
    """Write `model.onnx` with its weights as external data (so tables may exceed protobuf's 2 GiB), any N.

    Only what the network reaches is in the graph: no weight of another tower.
    """
    graph = plain_graph(schema)
    example = {
        name: torch.zeros([2 if size == -1 else size for size in spec.shape], dtype=getattr(torch, spec.dtype))
        for name, spec in graph.inputs.items()
    }
    num_ads = torch.export.Dim("N", min=1)
    dynamic = {name: {0: num_ads} for name in graph.inputs}
    network.eval()
    with _quiet():
        program = torch.onnx.export(
            network,
            kwargs={"inputs": example},
            dynamic_shapes={"inputs": dynamic},
            input_names=list(graph.inputs),
            output_names=[graph.output],
            opset_version=OPSET,
            dynamo=True,
            external_data=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    program.save(directory / MODEL, external_data=True)


def parity(network: PlainNetwork, model: Path, batches: Iterable[Inputs]) -> float:
    """Largest absolute difference of probability between torch and ONNX Runtime on CPU.

    Raises:
        UserError: it is above `MAX_DIFFERENCE`, or a probability is not finite.
    """
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    largest = 0.0
    for inputs in batches:
        with torch.no_grad():
            expected_N = network.eval()(inputs).numpy()
        found_N = session.run(None, {name: x.numpy() for name, x in inputs.items()})[0]
        difference = float(np.max(np.abs(found_N - expected_N)))
        if not difference <= MAX_DIFFERENCE:  # NaN too
            raise UserError(
                f"{model}: ONNX Runtime and torch differ by {difference:.3g} in probability (at most "
                f"{MAX_DIFFERENCE:g} is allowed); nothing was exported"
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's advice to its own developers is no news for ours."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
