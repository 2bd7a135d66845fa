"""Embeddings: pooling by hand, where each feature stands, and whose rows a step may touch."""

from typing import Any

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.data.batch import Batch
from ctrkit.nn.embedding import Embedding, TableConfig, draw_rows
from tests import networks


def of(features: dict[str, list[list[int]]], dense: list[list[float]] | None = None) -> Batch:
    """A batch from lists of rows."""
    rows = len(next(iter(features.values()))) if features else len(dense or [])
    return Batch(
        sparse=KeyedJaggedTensor.from_lengths_sync(
            keys=list(features),
            values=torch.tensor([row for lists in features.values() for ids in lists for row in ids], dtype=torch.long),
            lengths=torch.tensor([len(ids) for lists in features.values() for ids in lists], dtype=torch.long),
        ),
        dense_BD=torch.tensor(dense) if dense else torch.zeros(rows, 0),
        label_B=torch.zeros(rows),
        weight_B=torch.ones(rows),
        origin_B=torch.zeros(rows, dtype=torch.long),
    )


def two_tables(**settings: Any) -> Embedding:
    return Embedding(
        [
            TableConfig("item", 10, 3, ("recent", "item"), lists=("recent",), pooling="mean"),
            TableConfig("tags", 8, 2, ("tags",), lists=("tags",), pooling="sum"),
        ],
        dense=2,
        init_std=1.0,
        **settings,
    )


def test_pooling_by_hand() -> None:
    tables = two_tables(seed=1)
    item, tags = tables.table_weights()["item"], tables.table_weights()["tags"]
    batch = of(
        {"recent": [[2, 3, 3], [], [9]], "item": [[4], [2], [7]], "tags": [[5, 6], [7], []]},
        dense=[[0.5, -1.0], [2.0, 3.0], [0.0, 0.25]],
    )
    expected = torch.stack(
        [
            torch.cat([tags[5] + tags[6], item[4], (item[2] + 2 * item[3]) / 3, torch.tensor([0.5, -1.0])]),
            torch.cat([tags[7], item[2], torch.zeros(3), torch.tensor([2.0, 3.0])]),
            torch.cat([torch.zeros(2), item[7], item[9], torch.tensor([0.0, 0.25])]),
        ]
    )
    torch.testing.assert_close(tables(batch), expected)


def test_the_order_of_the_batch_does_not_matter() -> None:
    tables = two_tables()
    features = {"recent": [[2, 3], [4]], "item": [[4], [2]], "tags": [[5, 6], [7]]}
    dense = [[0.5, -1.0], [2.0, 3.0]]
    other = dict(reversed(features.items()))
    assert torch.equal(tables(of(features, dense)), tables(of(other, dense)))


def test_columns_say_where_a_feature_stands() -> None:
    tables = two_tables()
    assert tables.out_features == 3 + 3 + 2 + 2
    weights = {name: tables.table_weights()["tags" if name == "tags" else "item"] for name in tables.columns}
    batch = of({"recent": [[5]], "item": [[6]], "tags": [[7]]}, dense=[[8.0, 9.0]])
    x = tables(batch)[0]
    assert list(tables.columns) == ["tags", "item", "recent"]  # by width; single rows before lists
    for feature, row in {"recent": 5, "item": 6, "tags": 7}.items():
        assert torch.equal(x[tables.columns[feature]], weights[feature][row]), feature
    assert x[-2:].tolist() == [8.0, 9.0]


def test_rows_start_small_and_those_of_missing_and_unseen_at_zero() -> None:
    tables = Embedding([TableConfig("item", 20_000, 4, ("item",))], init_std=0.02)
    weight = tables.table_weights()["item"]
    assert torch.equal(weight[:2], torch.zeros(2, 4))
    assert weight[2:].mean().item() == pytest.approx(0.0, abs=5e-4)
    assert weight[2:].std().item() == pytest.approx(0.02, rel=0.02)
    assert weight[2:].abs().min() > 0


def test_a_seed_draws_the_rows_and_each_table_has_its_own() -> None:
    first, second, third = (two_tables(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.table_weights()["item"], second.table_weights()["item"])
    assert not torch.equal(first.table_weights()["item"], third.table_weights()["item"])
    twins = Embedding([TableConfig("a", 5, 2, ("a",)), TableConfig("b", 5, 2, ("b",))]).table_weights()
    assert not torch.equal(twins["a"], twins["b"])


def test_any_part_of_a_table_can_be_drawn_by_itself() -> None:
    whole, part = torch.empty(10_000, 3), torch.empty(5_000, 3)
    draw_rows(whole, std=0.5, seed=3, table="item")
    draw_rows(part, std=0.5, seed=3, table="item", first_row=4_000)
    assert torch.equal(part, whole[4_000:9_000])


def test_half_precision_tables_give_floats_and_float_gradients() -> None:
    tables, halves = networks.embedding(), networks.embedding(precision="fp16")
    weights = halves.table_weights()
    assert all(weight.dtype == torch.float16 for weight in weights.values())
    for name, weight in tables.table_weights().items():
        weight.copy_(weights[name])  # the same numbers
    batch = networks.batch(16)
    x, expected = halves(batch), tables(batch)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, expected)
    for each in (x, expected):
        torch.autograd.backward((each * 1e-9).sum())  # would vanish in float16
    (gradient,), (reference,) = ([w.grad for w in each.stacks.values()] for each in (halves, tables))
    assert gradient is not None
    assert reference is not None
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient.to_dense(), reference.to_dense())
    assert gradient.to_dense().abs().max() > 0


def test_gradients_are_sparse_and_of_the_rows_looked_up() -> None:
    tables = two_tables()
    batch = of({"recent": [[2, 3], []], "item": [[3], [9]], "tags": [[5], []]}, dense=[[0.0, 0.0], [0.0, 0.0]])
    torch.autograd.backward(tables(batch).square().sum())
    weights = tables.table_weights()
    for name, rows in (("item", {2, 3, 9}), ("tags", {5})):
        gradient = tables.stacks[str(weights[name].shape[1])].grad
        assert gradient is not None
        assert gradient.is_sparse
        assert set(gradient.coalesce().indices()[0].tolist()) == rows
    # d/dw of ((w2 + w3) / 2)^2 + w3^2 at row 3, both uses of the table together
    item, gradient = weights["item"], tables.stacks["3"].grad
    assert gradient is not None
    torch.testing.assert_close(gradient.to_dense()[3], (item[2] + item[3]) / 2 + 2 * item[3])


def test_tables_of_one_width_lie_one_below_the_other() -> None:
    tables = Embedding([TableConfig("a", 5, 2, ("a",)), TableConfig("b", 4, 3, ("b",)), TableConfig("c", 6, 2, ("c",))])
    assert {width: tuple(stack.shape) for width, stack in tables.stacks.items()} == {"2": (11, 2), "3": (4, 3)}
    weights = tables.table_weights()
    with torch.no_grad():
        weights["c"][4] = 7.0  # a view: the stack has it
    assert tables.stacks["2"][5 + 4].tolist() == [7.0, 7.0]
    x = tables(of({"a": [[3]], "b": [[2]], "c": [[4]]}))[0]
    assert torch.equal(x[tables.columns["a"]], weights["a"][3])
    assert torch.equal(x[tables.columns["b"]], weights["b"][2])
    assert x[tables.columns["c"]].tolist() == [7.0, 7.0]


def test_torchrec_has_the_same_tables_in_the_same_memory() -> None:
    tables, batch = networks.embedding(), networks.batch(16)
    collection = tables.embedding_bag_collection()
    pooled, x = collection(batch.sparse).to_dict(), tables(batch)
    for feature, columns in tables.columns.items():
        torch.testing.assert_close(pooled[feature], x[:, columns])
    with torch.no_grad():
        tables.stacks["4"].add_(1.0)
    assert not torch.equal(collection(batch.sparse).to_dict()["item"], pooled["item"])


@pytest.mark.parametrize("unpooled", [set(), {"recent"}])
def test_no_impressions_have_vectors_of_the_same_width(unpooled: set[str]) -> None:
    """What a process without rows of a batch looks up: single rows, lists of both poolings, dense features."""
    tables = networks.embedding()
    tables.unpooled |= unpooled
    found = tables.vectors(networks.batch(4, take=slice(0, 0)))
    assert found.x_BX.shape == (0, tables.out_features)
    assert {name: rows.row_NE.shape for name, rows in found.lists.items()} == dict.fromkeys(unpooled, (0, networks.DIM))
    torch.autograd.backward(found.x_BX.sum())
    assert all(stack.grad.coalesce().values().numel() == 0 for stack in tables.stacks.values())


def test_dense_features_alone() -> None:
    tables = Embedding([], dense=2)
    batch = of({}, dense=[[1.0, 2.0], [3.0, 4.0]])
    assert tables.out_features == 2
    assert torch.equal(tables(batch), batch.dense_BD)
    assert tables.table_weights() == {}


def test_no_dense_features() -> None:
    features = {name: networks.FEATURES[name] for name in ("user", "item")}
    tables = networks.embedding(features)
    batch = networks.batch(5, features)
    assert tables(batch).shape == (5, 2 * networks.DIM)
    assert torch.equal(tables(batch)[:, :4], tables.table_weights()["user"][batch.sparse["user"].values()])


def test_a_network_is_its_tower_on_its_embedding() -> None:
    network, batch = networks.network(), networks.batch(5)
    assert torch.equal(network(batch), network.tower(network.embedding(batch)))


def test_a_table_may_have_dots_in_its_name() -> None:
    embedding = Embedding([TableConfig("a.b", 5, 2, ("a.b",)), TableConfig("a%2Eb", 6, 2, ("c",))])
    assert {name: len(weight) for name, weight in embedding.table_weights().items()} == {"a.b": 5, "a%2Eb": 6}
