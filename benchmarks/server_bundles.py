"""Bad versions of a good bundle, as deployments go wrong: what a server must refuse while the old version serves on."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ctrkit.bundle import MODEL, Bundle, write_bundle
from ctrkit.request import Golden, Request


def _truncated(source: Path, place: Path) -> None:
    shutil.copytree(source, place)
    content = (place / MODEL).read_bytes()
    (place / MODEL).write_bytes(content[: len(content) // 2])


def _wrong_hash(source: Path, place: Path) -> None:
    shutil.copytree(source, place)
    content = bytearray((place / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (place / MODEL).write_bytes(content)


def _nan_weights(source: Path, place: Path) -> None:
    def spoil(model: Any) -> None:
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32:
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))

    _rewrite(source, place, spoil)


def _wrong_scores(source: Path, place: Path) -> None:
    golden = Bundle.load(source).golden
    scores = tuple(tuple(1.0 - score for score in scores) for scores in golden.scores)
    _rewrite(source, place, golden=replace(golden, scores=scores))


def _slow(source: Path, place: Path, size: int = 700) -> None:
    """The same scores after a product of matrices that nobody needs."""

    def spoil(model: Any) -> None:
        graph = model.graph
        output = graph.output[0].name
        for node in graph.node:
            node.output[:] = [f"{name}_fast" if name == output else name for name in node.output]
        waste = np.full((size, size), 1e-3, np.float32)
        graph.initializer.extend(
            [numpy_helper.from_array(waste, "waste"), numpy_helper.from_array(np.zeros(1, np.float32), "nothing")]
        )
        graph.node.extend(
            [
                helper.make_node("ReduceMean", [f"{output}_fast"], ["waste_scale"], keepdims=1),
                helper.make_node("Mul", ["waste", "waste_scale"], ["waste_left"]),
                helper.make_node("MatMul", ["waste_left", "waste"], ["waste_product"]),
                helper.make_node("ReduceMean", ["waste_product"], ["waste_sum"], keepdims=0),
                helper.make_node("Mul", ["waste_sum", "nothing"], ["waste_zero"]),
                helper.make_node("Add", [f"{output}_fast", "waste_zero"], [output]),
            ]
        )
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N"]))

    _rewrite(source, place, spoil)


def _wrong_signature(source: Path, place: Path) -> None:
    """A feature of another name: callers of the old version do not give it."""
    bundle = Bundle.load(source)
    schema = bundle.encoding.schema
    feature = next(f for f in schema.features if f.side == "user")
    renamed = feature.model_copy(update={"column": f"{feature.source}_v2"})
    features = tuple(renamed if f.name == feature.name else f for f in schema.features)
    encoding = replace(bundle.encoding, schema=schema.model_copy(update={"features": features}))

    def rename(request: Request) -> Request:
        user = {renamed.source if k == feature.source else k: v for k, v in request.user.items()}
        return replace(request, user=user)

    golden = replace(bundle.golden, requests=tuple(rename(r) for r in bundle.golden.requests))
    _rewrite(source, place, golden=golden, encoding=encoding)


def _rewrite(
    source: Path, place: Path, spoil: Callable[[Any], None] | None = None, *, golden: Golden | None = None,
    encoding: Any = None,
) -> None:  # fmt: skip
    """The bundle again with another graph, golden requests or encoding, and hashes that fit."""
    bundle = Bundle.load(source)
    graph = place.with_name(f".{place.name}.graph")
    graph.mkdir(parents=True)
    model = onnx.load(bundle.model)
    if spoil is not None:
        spoil(model)
    onnx.save_model(model, graph / MODEL)
    manifest = bundle.manifest
    write_bundle(
        place, model=graph, encoding=encoding or bundle.encoding, golden=golden or bundle.golden, name=manifest.name,
        versions=manifest.versions, multiplications=manifest.multiplications,
        parity_max_abs_diff=manifest.parity_max_abs_diff,
    )  # fmt: skip
    shutil.rmtree(graph)


BAD: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "truncated": (_truncated, "bytes, .* were written"),
    "wrong hash": (_wrong_hash, "changed after it was written"),
    "NaN weights": (_nan_weights, "not finite"),
    "wrong signature": (_wrong_signature, "takes other inputs"),
    "slow": (_slow, "slow: "),
    "wrong golden scores": (_wrong_scores, "golden request 0 scores"),
}
"""How each is made of a good bundle, and what the server's reason says (a pattern)."""


def publish(models_dir: Path, name: str, version: int, make: Callable[[Path], Any]) -> Path:
    """Make a bundle aside and move it into its place in one step, as a deployment should."""
    folder = models_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".incoming-{version}"
    make(aside)
    for left in folder.glob(".incoming-*_graph"):
        shutil.rmtree(left)
    place = folder / str(version)
    aside.rename(place)
    for lock in folder.glob(".*.lock"):
        lock.unlink()
    return place


def kinds() -> Sequence[str]:
    """Names of the bad ones."""
    return list(BAD)
