"""The bounds within which int8 keeps each vector of the network, from rows that it has seen."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ctrkit.export.parity import Arrays, Graph
from ctrkit.export.serving_graphs import Quantization

_SHARES = np.linspace(0.3, 1.0, 15)
"""Shares of the full range that are tried: cutting few large numbers may keep many small ones better."""
_MAX_VALUES = 1_000_000


def quantizations(observed: Path, keys: Iterable[str], rows: Iterable[Arrays]) -> Mapping[str, Quantization]:
    """Scale and zero point of each tensor: those of the least squared error on the rows.

    Args:
        observed: graph whose outputs are the tensors.
        keys: their names.
        rows: inputs of the graph.
    """
    graph, seen = Graph(observed), {key: list[npt.NDArray[np.float32]]() for key in keys}
    for inputs in rows:
        for key, values in graph.outputs(inputs).items():
            seen[key].append(values.ravel())
    return {key: _best(np.concatenate(values)) for key, values in seen.items()}


def _best(values: npt.NDArray[np.float32]) -> Quantization:
    step = -(-len(values) // _MAX_VALUES)
    sample = values[::step]
    low, high = min(float(values.min(initial=0.0)), 0.0), max(float(values.max(initial=0.0)), 0.0)
    if low == high:
        return Quantization(1.0, 0)
    candidates = [_within(low * share, high * share) for share in _SHARES]
    return min(candidates, key=lambda how: _squared_error(sample, how))


def _within(low: float, high: float) -> Quantization:
    """Zero, which is where most activations lie, is kept exactly."""
    scale = (high - low) / 255
    return Quantization(float(np.float32(scale)), round(-low / scale))


def _squared_error(values: npt.NDArray[np.float32], how: Quantization) -> float:
    level = np.clip(np.rint(values / np.float32(how.scale)) + how.zero_point, 0, 255)
    error = (level - how.zero_point) * np.float32(how.scale) - values
    return float(np.dot(error, error))
