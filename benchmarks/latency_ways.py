"""Ways from encoded ids to probabilities of the same network, each in one thread."""

import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from benchmarks.latency_tower import ITEM, KEY, SCHEMA, USER, network
from ctrkit.export.plain_network import PlainNetwork, repeated
from ctrkit.graph import Feeds
from ctrkit.manifest import ADS
from ctrkit.request import Request
from ctrkit_serving.scorer import Scorer

SIDES = {"user": USER, "item": ITEM}
HOT = 10_000
"""Ads whose parts lie in the caches (8 MB)."""
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prepared:
    """One request as each way takes it; what is done before is nobody's time."""

    once: Feeds
    """The user's inputs once."""
    repeated: Feeds
    """The same with a row an ad."""
    by_key: Feeds
    """Ads as rows of the item table."""
    by_hot_key: Feeds
    """Other ads, of its first `HOT` rows."""


@dataclass(frozen=True)
class Way:
    """What is timed."""

    name: str
    call: Callable[[Prepared], Float32Array]
    same_ads: bool = True
    """Whether it scores the ads of the others."""


@dataclass(frozen=True)
class Absent:
    """A way that cannot be taken here, and why."""

    name: str
    reason: str


def prepared(request: Request, scorer: Scorer) -> Prepared:
    """The inputs of every way; items are by their features and the table's key."""
    by_key = scorer.encode(request.user, request.items)
    items = {name: column for name, column in request.items.items() if name != KEY}  # type: ignore[union-attr]
    once = scorer.encode(request.user, items)
    tensors = repeated({name: torch.from_numpy(x) for name, x in once.items()}, request.num_ads)
    hot = {**by_key, ADS: by_key[ADS] % HOT}
    return Prepared(once, {name: x.numpy() for name, x in tensors.items()}, by_key, hot)


def ctrkit_ways(place: Path) -> list[Way]:
    """Those of a bundle with an item table and int8."""
    exact, int8 = Scorer.load(place), Scorer.load(place, precision="int8")
    return [
        Way("ctrkit, user repeated", lambda p: exact.run(p.repeated)),
        Way("ctrkit, split", lambda p: exact.run(p.once)),
        Way("ctrkit, item table", lambda p: exact.run(p.by_key)),
        Way("ctrkit, item table, hot ads", lambda p: exact.run(p.by_hot_key), same_ads=False),
        Way("ctrkit, split, int8", lambda p: int8.run(p.once)),
        Way("ctrkit, item table, int8", lambda p: int8.run(p.by_key)),
    ]


def plain_export(widths: Sequence[int], example: Prepared) -> Way:
    """What torch.onnx makes of the network: one graph, ids in, the user's features repeated for every ad."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "plain.onnx"
        _export(_plain(widths), example, path)
        session = onnxruntime.InferenceSession(path, _one_thread(), providers=["CPUExecutionProvider"])
    return Way("plain export, ONNX Runtime", lambda p: session.run(None, p.repeated)[0])


def write_plain_export(widths: Sequence[int], example: Feeds, path: Path) -> None:
    """That graph in a file; `example` holds the inputs with a row an ad."""
    _export(_plain(widths), Prepared({}, example, {}, {}), path)


def torch_ways(widths: Sequence[int], example: Prepared) -> list[Way | Absent]:
    """Eager and compiled, one thread."""
    torch.set_num_threads(1)
    plain = _plain(widths)

    def call(run: Callable[[Any], torch.Tensor]) -> Callable[[Prepared], Float32Array]:
        def score(p: Prepared) -> Float32Array:
            with torch.inference_mode():
                return run({name: torch.from_numpy(x) for name, x in p.repeated.items()}).numpy()

        return score

    eager = Way("torch eager", call(plain))
    try:
        compiled = Way("torch.compile", call(torch.compile(plain)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled.call(example)
    except Exception as error:  # no compiler, or one that it cannot use
        return [eager, Absent("torch.compile", str(error).partition("\n")[0])]
    return [eager, compiled]


def openvino_ways(widths: Sequence[int], example: Prepared) -> list[Way | Absent]:
    """The plain export in OpenVINO at a fixed number of ads, in float32 and in bfloat16."""
    try:
        openvino = importlib.import_module("openvino")
    except ImportError:
        return [Absent("OpenVINO", "not installed")]
    found: list[Way | Absent] = []
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "plain.onnx"
        _export(_plain(widths), example, path)
        for precision in ("f32", "bf16"):
            model = openvino.Core().read_model(path)
            model.reshape({name: list(x.shape) for name, x in example.repeated.items()})
            settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
            request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
            found.append(Way(f"OpenVINO {precision}, fixed N", _openvino_call(request)))
    return found


def _openvino_call(request: Any) -> Callable[[Prepared], Float32Array]:
    return lambda p: next(iter(request.infer(p.repeated, share_inputs=True).values()))


def rechub_ways(widths: Sequence[int], example: Prepared) -> list[Way | Absent]:
    """Torch-rechub's own export of a net of the same size: one input a feature."""
    name = "torch-rechub's export, ONNX Runtime"
    try:
        features = importlib.import_module("torch_rechub.basic.features")
        exporter = importlib.import_module("torch_rechub.utils.onnx_export")
        layers = importlib.import_module("torch_rechub.basic.layers")
    except ImportError:
        return [Absent(name, "not installed")]
    fields = [features.SparseFeature(f.name, vocab_size=10_002, embed_dim=16) for f in SCHEMA.features]

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = fields
            self.embedding = layers.EmbeddingLayer(fields)
            self.mlp = layers.MLP(len(fields) * 16, dims=list(widths), activation="relu")

        def forward(self, x: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return torch.sigmoid(self.mlp(self.embedding(x, fields, squeeze_dim=True)).squeeze(1))

    try:
        with tempfile.TemporaryDirectory() as temporary, _quiet():
            path = Path(temporary) / "rechub.onnx"
            exporter.ONNXExporter(Net().eval()).export(str(path), opset_version=20)
            session = onnxruntime.InferenceSession(path, _one_thread(), providers=["CPUExecutionProvider"])
    except Exception as error:  # of whatever version is installed
        return [Absent(name, str(error).partition("\n")[0])]
    columns = {name: (f"ids_{side}", i) for side, names in SIDES.items() for i, name in enumerate(names)}

    def call(p: Prepared) -> Float32Array:
        feeds = {name: np.ascontiguousarray(p.repeated[tensor][:, i]) for name, (tensor, i) in columns.items()}
        probability_N: Float32Array = session.run(None, feeds)[0]
        return probability_N

    return [Way(name, call)]


def _plain(widths: Sequence[int]) -> PlainNetwork:
    return PlainNetwork(network(widths), SCHEMA).eval()


def _export(plain: PlainNetwork, example: Prepared, path: Path) -> None:
    inputs = {name: torch.from_numpy(x) for name, x in example.repeated.items()}
    num_ads = torch.export.Dim("N", min=1)
    with _quiet():
        program = torch.onnx.export(
            plain,
            kwargs={"inputs": inputs},
            dynamic_shapes={"inputs": {name: {0: num_ads} for name in inputs}},
            input_names=list(inputs),
            opset_version=20,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    program.save(path)


def _one_thread() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


class _quiet(warnings.catch_warnings):  # noqa: N801
    """The exporters' advice to their own developers is no news for ours."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
