"""A network into a bundle: exported, proven equal to torch on held-out rows and on raw requests, then written."""

import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ctrkit.bundle import MODEL, Bundle, Golden, write_bundle
from ctrkit.data.batch import Batch
from ctrkit.encoding import Encoding
from ctrkit.export.onnx import MAX_DIFFERENCE, export_onnx, parity
from ctrkit.export.plain_network import Inputs, PlainNetwork, graph_inputs
from ctrkit.nn.network import Network
from ctrkit.request import Request
from ctrkit.request_encoder import RequestEncoder

NUM_GOLDEN = 8
"""Requests that a bundle carries with their scores."""


def export_bundle(
    network: Network,
    encoding: Encoding,
    directory: Path,
    *,
    name: str,
    held_out: Sequence[Batch],
    requests: Sequence[Request],
    metrics: Mapping[str, float] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Bundle:
    """Export the network that ships.

    Args:
        network: trained; nothing but it and its tables is exported.
        encoding: of the log that it was trained on.
        directory: place of the bundle; an old one is replaced.
        name: of the model.
        held_out: batches on which ONNX Runtime and torch must agree to 1e-5 in probability.
        requests: raw requests; a few are kept as golden requests with torch's scores.
        metrics: of the network on held-out data, kept in the manifest.
        recipe: kept in the manifest.

    Raises:
        UserError: ONNX Runtime and torch differ; nothing is written then.
    """
    plain = PlainNetwork(network, encoding.schema)
    encoder = RequestEncoder(encoding)
    inputs = [graph_inputs(batch, encoding.schema) for batch in held_out]
    requests = requests[:NUM_GOLDEN]
    encoded = [_as_tensors(encoder.encode(r.user, r.items, r.context)[0]) for r in requests]
    with tempfile.TemporaryDirectory() as temporary:
        export_onnx(plain, encoding.schema, Path(temporary))
        difference = parity(plain, Path(temporary) / MODEL, (*inputs, *encoded))
        with torch.no_grad():
            scores = tuple(tuple(plain(x).tolist()) for x in encoded)
        return write_bundle(
            directory,
            model=Path(temporary),
            encoding=encoding,
            golden=Golden(tuple(requests), scores, tolerance=MAX_DIFFERENCE),
            name=name,
            versions={package: version(package) for package in ("torch", "torchrec", "onnx", "onnxruntime")},
            multiplications=network.tower.multiplications,
            parity_max_abs_diff=difference,
            metrics=metrics,
            recipe=recipe,
        )


def _as_tensors(feeds: Mapping[str, Any]) -> Inputs:
    return {name: torch.from_numpy(array) for name, array in feeds.items()}
