"""The bounds within which int8 keeps each vector of the network, from rows that it has seen."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ctrkit.export.arrays import Float32Array
from ctrkit.export.parity import Arrays, Graph
from ctrkit.export.serving_graphs import Quantization


def quantizations(observed: Path, keys: Iterable[str], rows: Iterable[Arrays]) -> Mapping[str, Quantization]:
    """Scale and zero point of each tensor, from the smallest to the largest number that the rows have there.

    Cutting the largest for the sake of the others has the smaller squared error and ranks worse (measured on public
    logs): a large activation is one that matters.

    Args:
        observed: graph whose outputs are the tensors.
        keys: their names.
        rows: inputs of the graph.
    """
    graph, seen = Graph(observed), {key: list[Float32Array]() for key in keys}
    for inputs in rows:
        for key, values_NI in graph.outputs(inputs).items():
            seen[key].append(values_NI)
    return {key: _full_range(np.concatenate(values)) for key, values in seen.items()}


def _full_range(values_NI: Float32Array) -> Quantization:
    low, high = min(float(values_NI.min(initial=0.0)), 0.0), max(float(values_NI.max(initial=0.0)), 0.0)
    scale = np.float32((high - low) / 255 or 1.0)
    zero_point = round(-low / float(scale))  # zero, which is where most activations lie, is kept exactly
    level_NI = np.clip(np.rint(values_NI / scale) + zero_point, 0, 255)
    kept_NI = (level_NI - np.float32(zero_point)) * scale
    return Quantization(float(scale), zero_point, values_NI.mean(axis=0), kept_NI.mean(axis=0))
