"""Random schemas and towers: torch, the whole graph, the user's part once, and the item table agree to 1e-6."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.builders.networks import attended_lists, build_embedding, build_tower
from ctrkit.bundle import MODEL, WEIGHTS
from ctrkit.config.recipe import EmbeddingConfig, TowerConfig
from ctrkit.data.batch import Batch
from ctrkit.export.from_torch import network_arrays
from ctrkit.export.parity import Arrays, Graph, TwoGraphs
from ctrkit.export.plain_network import PlainNetwork, graph_inputs, in_torch, repeated
from ctrkit.export.quantize import quantizations
from ctrkit.export.serving_graphs import HEAD, HEAD_INT8, ITEM, write_head, write_item, write_model, write_observed
from ctrkit.export.weight_file import WeightFile
from ctrkit.manifest import MODEL_INT8
from ctrkit.nn.network import Network
from ctrkit.schema import Schema, SequenceFeature, table_of

ROWS = 9
ONCE: list[set[str]] = [set(), {"user"}, {"context"}, {"user", "context"}]
"""Sides that have one row for all ads."""
FEATURE = st.one_of(
    st.fixed_dictionaries({"table": st.sampled_from(["s", "t", "mean", None])}),
    st.fixed_dictionaries({
        "kind": st.just("sequence"), "max_len": st.integers(1, 4), "pooling": st.sampled_from(["mean", "sum"]),
        "table": st.sampled_from(["mean", "sum"]),
    }).map(lambda f: {**f, "pooling": f["table"]}),
    st.fixed_dictionaries({"kind": st.just("dense"), "transform": st.sampled_from(["log", "bucketize"])}),
)  # fmt: skip
SIDED = st.tuples(FEATURE, st.sampled_from(["user", "item", "context"])).map(lambda f: {**f[0], "side": f[1]})
TOWER = st.fixed_dictionaries({
    "hidden": st.lists(st.integers(1, 9), max_size=3), "batch_norm": st.booleans(),
    "activation": st.sampled_from(["relu", "leaky_relu", "prelu", "gelu", "silu", "tanh"]),
})  # fmt: skip
CROSSES = st.fixed_dictionaries({"kind": st.just("dcn_v2"), "cross_layers": st.integers(1, 3)})
ATTENTION = st.fixed_dictionaries({
    "kind": st.just("target_attention"), "attention_hidden": st.lists(st.integers(1, 5), min_size=1, max_size=2),
})  # fmt: skip
TARGET: dict[str, Any] = {"table": "mean", "side": "item"}
LIST: dict[str, Any] = {"kind": "sequence", "max_len": 3, "table": "mean"}


@dataclass
class Drawn:
    """A random network and a batch that fits it."""

    schema: Schema
    network: Network
    batch: Batch


def drawn(features: list[dict[str, Any]], tower: dict[str, Any], seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    named = {f"f{i}": {k: v for k, v in f.items() if v is not None} for i, f in enumerate(features)}
    schema = Schema.from_mapping(named, label="y", group="g")
    tables = schema.tables()
    num_rows = {table: int(rng.integers(3, 30)) for table in tables}
    dims = {table: int(rng.choice([1, 2, 4])) for table in tables}
    embedding = build_embedding(schema, EmbeddingConfig(dim=4, dims=dims, init_std=0.5), num_rows)
    attended = attended_lists(schema, embedding)
    network = Network(embedding, build_tower(TowerConfig(**tower), embedding.out_features, attended))
    values, lengths = [], []
    for feature in schema.sparse_features:
        for _ in range(ROWS):
            length = int(rng.integers(feature.max_len + 1)) if isinstance(feature, SequenceFeature) else 1
            values += rng.integers(num_rows[table_of(feature)], size=length).tolist()
            lengths.append(length)
    names = [f.name for f in schema.sparse_features]
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=names, values=torch.tensor(values, dtype=torch.int64), lengths=torch.tensor(lengths, dtype=torch.int64)
    )
    dense = torch.randn(ROWS, len(schema.dense_features))
    batch = Batch(sparse, dense, torch.zeros(ROWS), torch.ones(ROWS), torch.zeros(ROWS, dtype=torch.int64))
    with torch.no_grad():
        for parameter in network.tower.parameters():
            parameter.normal_(0.0, 0.5 if parameter.dim() < 2 else parameter.shape[1] ** -0.5)
        for stack in embedding.stacks.values():  # the rows of missing values too, which padded lists point to
            stack.normal_(0.0, 0.5)
    for _ in range(3):
        network.train()(batch)  # statistics of the batch norm
    return Drawn(schema, network.eval(), batch)


def once(inputs: Arrays, schema: Schema, sides: set[str]) -> Arrays:
    """What belongs to a side of these in one row: the first."""
    of = {f"{f.name}_{what}": f.side for f in schema.features for what in ("ids", "length")}
    of |= {f"{kind}_{side}": side for kind in ("ids", "dense") for side in ("user", "item", "context")}
    return {name: x[:1] if of[name] in sides else x for name, x in inputs.items()}


def every_way(random: Drawn, folder: Path) -> dict[str, Callable[[Arrays], Any]]:
    arrays = network_arrays(random.network, random.schema)
    with WeightFile(folder / WEIGHTS) as weights:
        write_model(arrays, weights, folder / MODEL)
        ways: dict[str, Callable[[Arrays], Any]] = {"model": Graph(folder / MODEL)}
        if "item" in arrays.sides:
            write_item(arrays, weights, folder / ITEM)
            write_head(arrays, weights, folder / HEAD)
            ways["item table"] = TwoGraphs(folder)
        inputs = {name: x.numpy() for name, x in graph_inputs(random.batch, random.schema).items()}
        keys = write_observed(arrays, weights, folder / "observed.onnx")
        if keys:
            # within its bounds: what a user with other ads may reach is not in the batch
            how = quantizations(folder / "observed.onnx", keys, [once(inputs, random.schema, sides) for sides in ONCE])
            write_model(arrays, weights, folder / MODEL_INT8, how)
            ways["int8"] = Graph(folder / MODEL_INT8)
            if "item" in arrays.sides:
                write_head(arrays, weights, folder / HEAD_INT8, how)
                ways["item table, int8"] = TwoGraphs(folder, HEAD_INT8)
    return ways


@pytest.mark.parametrize("activation", ["relu", "prelu"])
def test_layer_norm_is_kept_every_way(activation: str, tmp_path: Path) -> None:
    sides = ("user", "item", "context")
    features: list[dict[str, Any]] = [{"side": side, "kind": "categorical"} for side in sides]
    random = drawn(features, {"hidden": [12, 8], "layer_norm": True, "activation": activation}, seed=0)
    graph = onnx_nodes(random, tmp_path / "graph")
    assert graph.count("LayerNormalization") == 2
    plain = PlainNetwork(random.network, random.schema)
    inputs = {name: x.numpy() for name, x in graph_inputs(random.batch, random.schema).items()}
    (tmp_path / "ways").mkdir()
    for name, way in every_way(random, tmp_path / "ways").items():
        np.testing.assert_allclose(way(inputs), in_torch(plain, inputs), rtol=0, atol=0.05 if "int8" in name else 1e-6)


def onnx_nodes(random: Drawn, folder: Path) -> list[str]:
    """Operators of the graph of the whole network."""
    folder.mkdir()
    with WeightFile(folder / WEIGHTS) as weights:
        write_model(network_arrays(random.network, random.schema), weights, folder / MODEL)
    return [node.op_type for node in onnx.load(folder / MODEL, load_external_data=False).graph.node]


@given(features=st.lists(SIDED, min_size=1, max_size=7), tower=TOWER, seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_every_way_is_the_network(features: list[dict[str, Any]], tower: dict[str, Any], seed: int) -> None:
    check_every_way(drawn(features, tower, seed))


@given(features=st.lists(SIDED, min_size=1, max_size=7), tower=TOWER, kind=CROSSES, seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_every_way_is_the_network_with_crosses(
    features: list[dict[str, Any]], tower: dict[str, Any], kind: dict[str, Any], seed: int
) -> None:
    check_every_way(drawn(features, {**tower, **kind}, seed))


@given(
    features=st.lists(SIDED, max_size=5),
    side=st.sampled_from(["user", "item", "context"]),
    tower=TOWER,
    kind=ATTENTION,
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_every_way_is_the_network_with_attention(
    features: list[dict[str, Any]], side: str, tower: dict[str, Any], kind: dict[str, Any], seed: int
) -> None:
    check_every_way(drawn([*features, TARGET, {**LIST, "side": side}], {**tower, **kind}, seed))


def check_every_way(random: Drawn) -> None:
    plain = PlainNetwork(random.network, random.schema)
    tensors = graph_inputs(random.batch, random.schema)
    inputs = {name: x.numpy() for name, x in tensors.items()}
    with torch.no_grad():
        expected = torch.sigmoid(random.network(random.batch))
        torch.testing.assert_close(plain(tensors), expected, atol=1e-6, rtol=0)
    with tempfile.TemporaryDirectory() as folder:
        ways = every_way(random, Path(folder))
        for sides in ONCE:
            given = once(inputs, random.schema, sides)
            rows = max(map(len, given.values()))
            with torch.no_grad():
                whole = repeated({name: torch.from_numpy(x) for name, x in given.items()}, rows)
                expected_N = plain(whole).numpy()
            for name, way in ways.items():
                found_N = way(given)
                assert found_N.shape == expected_N.shape
                tolerance = 0.1 if "int8" in name else 1e-6
                np.testing.assert_allclose(found_N, expected_N, rtol=0, atol=tolerance, err_msg=name)
