"""Latency of a light and a booster tower in process: 36 features of 16, 400 ads a request, one thread.

The towers are random ones on the graph contract of `ctrkit.bundle.plain_graph`: a gather a feature from its table,
then Gemm and ReLU, the user's features repeated for every ad. Requests hold raw ids, 26 of the user and 10 an ad.
"""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import report
from ctrkit.bundle import Golden, write_bundle
from ctrkit.encoding import Encoding, Vocabulary
from ctrkit.request import Request
from ctrkit.schema import CategoricalFeature, Schema
from ctrkit_serving.latency import PERCENTILES, Latency, Quantiles, measure
from ctrkit_serving.scorer import Scorer

TOWERS = {"light 200-80": (200, 80), "booster 720-360-240-180-90": (720, 360, 240, 180, 90)}
USER_FEATURES, ITEM_FEATURES, DIM, IDS = 26, 10, 16, 10_000


def main() -> None:
    """Build both towers, measure them interleaved, print and write the result."""
    parser = report.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--ads", type=int, default=400, help="ads a request")
    options = parser.parse_args()
    repeats = 1_000 if options.quick else 20_000
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        scorers = {}
        for name, widths in TOWERS.items():
            place = Path(directory) / name
            _write(place, widths, rng)
            scorers[name] = Scorer.load(place)
        requests = [_request(rng, options.ads) for _ in range(50)]
        latency = measure(scorers, requests, ads=options.ads, repeats=repeats)
    report.table(
        ["tower", "multiplications", "part", *(f"p{p} ms [95 % interval]" for p in PERCENTILES)],
        [row for name, measured in latency.items() for row in _rows(name, measured)],
    )
    light, booster = latency.values()
    report.emit(
        {
            "benchmark": "latency",
            "quick": options.quick,
            "ads": options.ads,
            "threads": 1,
            "latency_ms": {name: measured.as_dict() for name, measured in latency.items()},
            "multiplications": {name: multiplications(widths) for name, widths in TOWERS.items()},
            "booster_to_light": _p50(booster.total) / _p50(light.total),
            "booster_to_light_graph": _p50(booster.graph) / _p50(light.graph),
        },
        options.out,
    )


def multiplications(widths: Sequence[int]) -> int:
    """Multiplications of a tower for one ad."""
    sizes = [(USER_FEATURES + ITEM_FEATURES) * DIM, *widths, 1]
    return sum(a * b for a, b in itertools.pairwise(sizes))


def _p50(quantiles: Quantiles) -> float:
    assert quantiles.p50 is not None
    return quantiles.p50.value


def _rows(name: str, latency: Latency) -> list[list[str]]:
    parts = {"raw values to scores": latency.total, "graph": latency.graph, "control kernel": latency.control}
    size = f"{multiplications(TOWERS[name]):,}"
    return [[name, size, part, *_cells(quantiles)] for part, quantiles in parts.items()]


def _cells(quantiles: Quantiles) -> list[str]:
    found = (quantiles.p50, quantiles.p95, quantiles.p99)
    return [f"{q.value:.3f} [{q.low:.3f}, {q.high:.3f}]" if q else "insufficient" for q in found]


def _schema() -> Schema:
    user = [CategoricalFeature(name=f"u{i}", side="user") for i in range(USER_FEATURES)]
    item = [CategoricalFeature(name=f"i{i}", side="item") for i in range(ITEM_FEATURES)]
    return Schema(label="click", group="user_id", features=(*user, *item))


def _request(rng: np.random.Generator, ads: int) -> Request:
    user = {f"u{i}": int(rng.integers(IDS)) for i in range(USER_FEATURES)}
    return Request(user, {f"i{i}": rng.integers(IDS, size=ads) for i in range(ITEM_FEATURES)})


def _write(place: Path, widths: Sequence[int], rng: np.random.Generator) -> None:
    schema = _schema()
    ids = Vocabulary(np.arange(IDS, dtype=np.int64), np.ones(IDS, np.int64))
    names = [feature.name for feature in schema.features]
    encoding = Encoding(schema, dict.fromkeys(names, "int"), dict.fromkeys(names, ids), {})
    model = place.with_name(f"{place.name} graph")
    model.mkdir()
    onnx.save_model(_graph(names, widths, rng), model / "model.onnx")
    request = _request(rng, 2)
    facts: dict[str, Any] = {
        "name": place.name,
        "versions": {"onnx": onnx.__version__},
        "multiplications": multiplications(widths),
        "parity_max_abs_diff": 0.0,
    }
    # the towers are random: their scores are whatever the graph gives, and the golden check is not what is measured
    unchecked = Golden((request,), ((0.5, 0.5),))
    write_bundle(place, model=model, encoding=encoding, golden=unchecked, **facts)
    scores = Scorer.load(place, verify_golden=False).score_request(request).tolist()
    write_bundle(place, model=model, encoding=encoding, golden=Golden((request,), (tuple(scores),)), **facts)


def _graph(names: Sequence[str], widths: Sequence[int], rng: np.random.Generator) -> Any:
    nodes, weights = [], {}
    for i, name in enumerate(names):
        weights[f"table_{name}"] = rng.normal(scale=0.1, size=(IDS + 2, DIM)).astype(np.float32)
        weights[f"column_{name}"] = np.array(i, np.int64)
        nodes.append(helper.make_node("Gather", ["ids", f"column_{name}"], [f"row_{name}"], axis=1))
        nodes.append(helper.make_node("Gather", [f"table_{name}", f"row_{name}"], [f"x_{name}"], axis=0))
    nodes.append(helper.make_node("Concat", [f"x_{name}" for name in names], ["h0"], axis=1))
    sizes = [len(names) * DIM, *widths, 1]
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{layer}"] = rng.normal(scale=fan_in**-0.5, size=(fan_in, fan_out)).astype(np.float32)
        weights[f"b{layer}"] = np.zeros(fan_out, np.float32)
        last = layer == len(widths)
        nodes.append(helper.make_node("Gemm", [f"h{layer}", f"w{layer}", f"b{layer}"], [f"z{layer}"]))
        nodes.append(helper.make_node("Sigmoid" if last else "Relu", [f"z{layer}"], [f"h{layer + 1}"]))
    weights["flat"] = np.array([-1], np.int64)
    nodes.append(helper.make_node("Reshape", [f"h{len(sizes) - 1}", "flat"], ["probability"]))
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", len(names)])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


if __name__ == "__main__":
    main()
