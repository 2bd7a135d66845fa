"""The bounds within which int8 keeps each vector of the network, from rows that it has seen."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ctrkit.export.arrays import Float32Array
from ctrkit.export.network_graph import FIRST_LAYER, Quantization, Quantizations, Rounding
from ctrkit.export.parity import Arrays, Graph


def quantizations(observed: Path, keys: Iterable[str], rows: Iterable[Arrays]) -> Quantizations:
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
    how = Rounding.between(float(values_NI.min(initial=0.0)), float(values_NI.max(initial=0.0)))
    kept_NI = (how(values_NI) - np.float32(how.zero_point)) * np.float32(how.scale)
    return Quantization(how.scale, how.zero_point, values_NI.mean(axis=0), kept_NI.mean(axis=0))


def attempts(how: Quantizations) -> list[Quantizations]:
    """Which layers to put in int8, the fastest way first.

    All but the last; if that changes too much, all but the first and the last: embeddings of few impressions are small,
    and rounding hits them most.
    """
    rest = {key: found for key, found in how.items() if key != FIRST_LAYER}
    return [attempt for attempt in ((how, rest) if len(rest) < len(how) else (how,)) if attempt]
