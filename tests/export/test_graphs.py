"""The exported graphs: equal to torch for every tower and every kind of feature, and nothing but what serves inside."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from ctrkit.bundle import MODEL, WEIGHTS
from ctrkit.errors import UserError
from ctrkit.export.from_torch import network_arrays
from ctrkit.export.graph_builder import OPSET
from ctrkit.export.parity import MAX_DIFFERENCE, Arrays, Graph, TwoGraphs
from ctrkit.export.parity import parity as graph_parity
from ctrkit.export.plain_network import Inputs, PlainNetwork, graph_inputs
from ctrkit.export.serving_graphs import HEAD, ITEM, write_head, write_item, write_model
from ctrkit.export.weight_file import WeightFile
from ctrkit.nn.embedding import Embedding, TableConfig
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.objectives.co_training import CoTraining
from ctrkit.schema import Schema
from tests import networks

EVERY = tuple(networks.FEATURES)


@dataclass(frozen=True)
class Case:
    """A tower over some features."""

    name: str
    features: tuple[str, ...]
    hidden: tuple[int, ...]
    tower: Mapping[str, Any]


CASES = [
    Case("every feature, batch norm, dropout, prelu", EVERY, (8, 4), {
        "batch_norm": True, "dropout": 0.5, "activation": "prelu",
    }),
    Case("every feature, no hidden layer", EVERY, (), {}),
    Case("sequences alone, silu", ("recent", "tags"), (8,), {"activation": "silu"}),
    Case("single values alone, gelu", ("user", "item"), (8,), {"activation": "gelu"}),
    Case("dense alone, tanh", ("price", "bid"), (8,), {"activation": "tanh"}),
    Case("a sequence and a dense feature, leaky relu", ("tags", "price"), (8,), {"activation": "leaky_relu"}),
]  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """A network beside its graph."""

    network: Network
    plain: PlainNetwork
    schema: Schema
    features: Mapping[str, Mapping[str, Any]]
    model: Path


def trained(features: Mapping[str, Mapping[str, Any]], hidden: Sequence[int], **tower: Any) -> Network:
    """A network whose every weight and statistic is other than at the start."""
    network = networks.network(features, hidden, **tower)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.8)
    network.train()
    for seed in range(3):
        network(networks.batch(50, features, seed=seed))
    return network


def export(network: Network, features: Mapping[str, Mapping[str, Any]], folder: Path) -> Exported:
    schema = networks.schema(features)
    arrays = network_arrays(network.eval(), schema)
    with WeightFile(folder / WEIGHTS) as weights:
        write_model(arrays, weights, folder / MODEL)
        if "item" in arrays.sides:
            write_item(arrays, weights, folder / ITEM)
            write_head(arrays, weights, folder / HEAD)
    return Exported(network, PlainNetwork(network, schema), schema, features, folder / MODEL)


def arrays_of(inputs: Inputs) -> Arrays:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def parity(plain: PlainNetwork, model: Path, batches: Sequence[Inputs]) -> float:
    """Of the whole network, and of its two parts."""
    with torch.no_grad():
        pairs = [(arrays_of(inputs), plain.eval()(inputs).numpy()) for inputs in batches]
    found = graph_parity(Graph(model), pairs)
    return max(found, graph_parity(TwoGraphs(model.parent), pairs)) if (model.parent / ITEM).exists() else found


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    case: Case = request.param
    features = {name: networks.FEATURES[name] for name in case.features}
    return export(trained(features, case.hidden, **case.tower), features, tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def rocket(tmp_path_factory: pytest.TempPathFactory) -> tuple[CoTraining, Exported]:
    """A rocket, and the graph of its light network."""
    tables = networks.embedding()
    objective = networks.rocket(tables, MLP(tables.out_features, (8, 4)), MLP(tables.out_features, (33, 17)))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.normal_(0.0, 0.5)
    folder = tmp_path_factory.mktemp("rocket")
    return objective, export(objective.inference_model(), networks.FEATURES, folder)


@pytest.mark.parametrize("rows", [1, 2, 7, 400])
def test_equal_to_torch_for_any_number_of_ads(exported: Exported, rows: int) -> None:
    batch = networks.batch(rows, exported.features, seed=9)
    with torch.no_grad():
        expected = torch.sigmoid(exported.network.eval()(batch))
        found = exported.plain(graph_inputs(batch, exported.schema))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    if rows == 400:
        assert expected.std() > 0.01  # the network tells ads apart
    assert parity(exported.plain, exported.model, [graph_inputs(batch, exported.schema)]) <= 1e-6


def test_the_graph_takes_and_gives_what_the_contract_says(exported: Exported) -> None:
    graph = onnx.load(exported.model, load_external_data=False).graph
    shapes = {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in (*graph.input, *graph.output)
    }
    expected: dict[str, list[Any]] = {"probability": ["rows"]}
    if "user" in exported.features:
        expected["ids_user"] = ["rows_user", 1]
    if "item" in exported.features:
        expected["ids_item"] = ["rows_item", 1]
    dense = [f for f in exported.features if exported.features[f].get("kind") == "dense"]
    if dense:
        expected["dense_item"] = ["rows_item", len(dense)]
    for name, longest, side in (("recent", 3, "user"), ("tags", 2, "item")):
        if name in exported.features:
            expected |= {f"{name}_ids": [f"rows_{side}", longest], f"{name}_length": [f"rows_{side}"]}
    assert shapes == expected


def test_the_opset_is_pinned(exported: Exported) -> None:
    assert {o.domain: o.version for o in onnx.load(exported.model).opset_import} == {"": OPSET, "com.microsoft": 1}


def test_what_lies_beyond_the_length_of_a_list_does_not_matter(tmp_path: Path) -> None:
    features = {name: networks.FEATURES[name] for name in ("recent", "tags")}
    network = networks.network(features, ())
    inputs = graph_inputs(networks.batch(50, features), networks.schema(features))
    plain = PlainNetwork(network, networks.schema(features)).eval()
    before = plain(inputs)
    for name, longest in (("recent", 3), ("tags", 2)):
        beyond = torch.arange(longest) >= inputs[f"{name}_length"].unsqueeze(1)
        assert beyond.any()
        inputs[f"{name}_ids"][beyond] = 5
    assert torch.equal(plain(inputs), before)


def floats(model: Path) -> list[np.ndarray]:
    return [
        array
        for array in map(numpy_helper.to_array, onnx.load(model).graph.initializer)
        if array.dtype == np.float32 and array.size
    ]


def test_nothing_of_the_booster_is_inside(rocket: tuple[CoTraining, Exported]) -> None:
    objective, exported = rocket
    light: list[torch.Tensor] = [
        *objective.networks()["light"].tower.parameters(),
        *objective.networks()["light"].embedding.table_weights().values(),
    ]
    arrays = floats(exported.model)
    assert sum(array.size for array in arrays) == sum(p.numel() for p in light)
    content = exported.model.read_bytes() + exported.model.with_name(WEIGHTS).read_bytes()
    assert b"booster" not in content
    widths = {size for array in arrays for size in array.shape}
    assert not widths & {33, 17}
    for weight in objective.networks()["booster"].tower.parameters():
        assert weight.detach().numpy().tobytes() not in content or weight.numel() < 4
    for tensor in light:
        assert tensor.detach().numpy().tobytes() in content or tensor.dim() == 2  # matrices may be transposed


def test_tables_of_a_width_are_inside_once(rocket: tuple[CoTraining, Exported]) -> None:
    _, exported = rocket
    tables = [array for array in floats(exported.model) if array.shape == (12 + 20 + 7, 4)]
    assert len(tables) == 1
    weights = exported.network.embedding.table_weights()
    np.testing.assert_array_equal(tables[0], np.concatenate([weight.numpy() for weight in weights.values()]))


def test_graphs_share_the_file_of_weights(tmp_path: Path) -> None:
    features = {name: networks.FEATURES[name] for name in ("user", "item")}
    network = networks.network(features, (8,))
    tables = Embedding([TableConfig("item", 50_000, 4, ("item",)), TableConfig("user", 12, 4, ("user",))])
    exported = export(Network(tables, network.tower), features, tmp_path)
    graph = onnx.load(exported.model, load_external_data=False).graph
    table = next(i for i in graph.initializer if list(i.dims) == [50_012, 4])
    assert table.data_location == onnx.TensorProto.EXTERNAL
    assert {entry.key: entry.value for entry in table.external_data}["location"] == WEIGHTS
    assert exported.model.stat().st_size < 100_000
    assert 0 <= exported.model.with_name(WEIGHTS).stat().st_size - 50_012 * 4 * 4 < 50_000
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([MODEL, WEIGHTS, ITEM, HEAD])
    inputs = {"ids_user": torch.tensor([[1], [2]]), "ids_item": torch.tensor([[49_999], [0]])}
    assert parity(exported.plain, exported.model, [inputs]) <= 1e-6


def test_the_graphs_of_an_mlp_have_no_node_more(tmp_path: Path) -> None:
    # its latency is promised (benchmarks/latency.py): what other towers need must not reach it
    features = {name: networks.FEATURES[name] for name in ("user", "item")}
    exported = export(networks.network(features, (8, 4)), features, tmp_path)
    operators = [node.op_type for node in onnx.load(exported.model).graph.node]
    user = ["Gather", "Reshape", "Gemm"]  # its rows are the first of the stacked table
    item = ["Add", "Gather", "Reshape"] * 2  # the same twice: what int8 would read too, which ONNX Runtime leaves out
    rest = ["Gemm", "Relu", "Gemm", "Relu", "Gemm", "Sigmoid", "Reshape", "Identity"]
    assert operators == [*user, *item, *rest]


@contextmanager
def bias_moved_by(exported: Exported, value: float) -> Iterator[None]:
    """Torch's network is not the one that was exported."""
    bias = next(p for p in exported.network.tower.parameters() if p.shape == (1,))
    before = bias.item()
    with torch.no_grad():
        bias.add_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            bias.fill_(before)


def test_parity_is_the_largest_difference(rocket: tuple[CoTraining, Exported]) -> None:
    _, exported = rocket
    batches = [graph_inputs(networks.batch(3, seed=seed), exported.schema) for seed in range(5)]
    with bias_moved_by(exported, 1e-6):
        each = [parity(exported.plain, exported.model, [inputs]) for inputs in batches]
        assert max(each) > min(each)
        assert parity(exported.plain, exported.model, batches) == max(each)
        assert parity(exported.plain, exported.model, batches[::-1]) == max(each)


@pytest.mark.parametrize("value", [0.05, float("nan")])
def test_a_graph_that_differs_is_refused(rocket: tuple[CoTraining, Exported], value: float) -> None:
    _, exported = rocket
    batches = [graph_inputs(networks.batch(20), exported.schema)]
    refused = pytest.raises(UserError, match=r"model\.onnx: ONNX Runtime and torch differ by .*nothing was exported")
    with bias_moved_by(exported, value), refused:
        parity(exported.plain, exported.model, batches)
    assert parity(exported.plain, exported.model, batches) <= MAX_DIFFERENCE
