"""Target attention against its equations, an impression and a list element at a time."""

import pytest
import torch
from torch import Tensor, nn

from ctrkit.builders.networks import attended_lists, build_tower
from ctrkit.config.recipe import TowerConfig
from ctrkit.data.batch import Batch
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.network import Network
from ctrkit.nn.target_attention import Attended, TargetAttention
from ctrkit.nn.tower import Lists
from tests import networks

FEATURES = {
    **networks.FEATURES,
    "seller": {"side": "item"},
    "sellers": {"side": "user", "kind": "sequence", "table": "seller", "max_len": 4, "pooling": "sum"},
}
"""Two lists that look at the ad, of tables of the same width or of different ones."""


def made(features: dict[str, dict[str, object]] | None = None) -> Network:
    tables = networks.embedding(FEATURES if features is None else features)
    attended = attended_lists(networks.schema(FEATURES if features is None else features), tables)
    config = TowerConfig(kind="target_attention", hidden=[6], attention_hidden=[5])
    tower = build_tower(config, tables.out_features, attended)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.5)
    return Network(tables, tower)


@pytest.fixture(autouse=True)
def sellers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.NUM_ROWS, "seller", 6)


def lists_of(batch: Batch, feature: str) -> list[list[int]]:
    column = batch.sparse[feature]
    values, lengths = column.values().tolist(), column.lengths().tolist()
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def naive(network: Network, tables: dict[str, Tensor], batch: Batch) -> Tensor:
    """Logits with dense tables, one impression after another (Zhou et al., KDD 2018, eq. 3)."""
    tower, found = network.tower, []
    assert isinstance(tower, TargetAttention)
    rows = {feature: lists_of(batch, feature) for feature in batch.sparse.keys()}  # noqa: SIM118
    of = {lookup.feature: lookup for lookup in network.embedding.lookups}
    target_of = {"recent": "item", "sellers": "seller"}
    for i in range(len(batch)):
        parts = []
        for lookup in network.embedding.lookups:
            vectors = [tables[lookup.table][row] for row in rows[lookup.feature][i]]
            if lookup.pooling is None:
                parts.append(vectors[0])
            else:
                total = sum(vectors, torch.zeros(lookup.dim, dtype=torch.float64))
                parts.append(total / max(1, len(vectors)) if lookup.pooling == "mean" else total)
        parts.append(batch.dense_BD[i].double())
        for pair, unit in zip(tower.attended, tower.units, strict=True):
            table = tables[of[pair.list].table]
            q, seen = table[rows[target_of[pair.list]][i][0]], torch.zeros(pair.dim, dtype=torch.float64)
            for row in rows[pair.list][i]:
                k = table[row]
                seen = seen + unit(torch.cat([q, k, q - k, q * k]).unsqueeze(0))[0] * k
            parts += [seen, seen * q]
        found.append(tower.mlp(torch.cat(parts).unsqueeze(0))[0])
    return torch.stack(found)


def dense_tables(embedding: Embedding) -> dict[str, Tensor]:
    return {name: w.double().clone().requires_grad_() for name, w in embedding.table_weights().items()}


@pytest.mark.parametrize("seller_dim", [4, 3])
def test_logits_and_gradients_are_those_of_a_loop_over_rows(seller_dim: int) -> None:
    tables = networks.embedding(FEATURES, dims={"seller": seller_dim})
    attended = attended_lists(networks.schema(FEATURES), tables)
    assert {pair.list for pair in attended} == {"recent", "sellers"}
    tower = TargetAttention(tables.out_features, (6,), attended, attention_hidden=(5,))
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.5)
    network, batch = Network(tables, tower), networks.batch(24, FEATURES)
    for pair in attended:
        lengths = [len(rows) for rows in lists_of(batch, pair.list)]
        assert 0 in lengths
        assert len(set(lengths)) > 2
    logit_B = network(batch)
    torch.autograd.backward(logit_B.square().sum())
    found = {name: parameter.grad.clone() for name, parameter in tower.named_parameters() if parameter.grad is not None}
    of_stack = {dim: stack.grad.to_dense() for dim, stack in tables.stacks.items() if stack.grad is not None}
    tower.double().zero_grad()
    reference = dense_tables(tables)
    expected_B = naive(network, reference, batch)
    torch.testing.assert_close(logit_B.double(), expected_B, atol=1e-5, rtol=1e-5)
    torch.autograd.backward(expected_B.square().sum())
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name].double(), parameter.grad, atol=1e-3, rtol=1e-4)
    for part in tables.parts():
        dense = reference[part.table].grad
        assert dense is not None
        torch.testing.assert_close(part.rows_of(of_stack[str(part.dim)]).double(), dense, atol=1e-3, rtol=1e-4)


def test_empty_lists_are_zeros() -> None:
    network = made()
    drawn = (networks.batch(1, FEATURES, seed=seed) for seed in range(1000))
    batch = next(b for b in drawn if lists_of(b, "recent") == lists_of(b, "sellers") == [[]])
    vectors = network.embedding.vectors(batch)
    assert isinstance(network.tower, TargetAttention)
    expected = network.tower.mlp(torch.cat([vectors.x_BX, torch.zeros(1, 2 * 8)], 1))
    torch.testing.assert_close(network(batch), expected)


def test_weights_of_a_list_are_not_normalised() -> None:
    # two alike count for two (section 4.3): with a weight of 1 each the list is the sum of its elements
    tower = TargetAttention(2, (), [Attended(slice(0, 2), "list", 2)], attention_hidden=(1,))
    (unit,) = tower.units
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.zero_()
        last = [m for m in unit.modules() if isinstance(m, nn.Linear)][-1]
        last.bias.fill_(1.0)
        tower.mlp.linears[-1].weight.copy_(torch.tensor([[0.0, 0.0, 1.0, 10.0, 0.0, 0.0]]))
        tower.mlp.linears[-1].bias.zero_()
    rows = Lists(torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.5, 0.5]]), torch.tensor([2, 1]))
    assert tower(torch.ones(2, 2), {"list": rows}).tolist() == [2.0 + 40.0, 0.5 + 5.0]


def test_the_rows_of_a_list_are_given_in_its_order() -> None:
    tables = networks.embedding(FEATURES)
    attended_lists(networks.schema(FEATURES), tables)
    batch = networks.batch(16, FEATURES)
    vectors, weights = tables.vectors(batch), tables.table_weights()
    assert vectors.lists.keys() == {"recent", "sellers"}
    for feature, table in (("recent", "item"), ("sellers", "seller")):
        rows = lists_of(batch, feature)
        flat = [row for of_one in rows for row in of_one]
        assert torch.equal(vectors.lists[feature].row_NE, weights[table][flat])
        assert vectors.lists[feature].length_B.tolist() == [len(of_one) for of_one in rows]


def test_giving_rows_one_by_one_does_not_change_the_vector() -> None:
    plain, given = networks.embedding(FEATURES), networks.embedding(FEATURES)
    attended_lists(networks.schema(FEATURES), given)
    batch = networks.batch(16, FEATURES)
    assert torch.equal(plain(batch), given(networks.batch(16, FEATURES)))


def test_hidden_widths_and_multiplications_by_hand() -> None:
    network = made()
    assert network.tower.hidden_widths == (6,)
    x = network.embedding.out_features
    unit, mlp = 4 * 4 * 5 + 5, (x + 16) * 6 + 6
    assert network.multiplications == mlp + 2 * (unit + 3 * 4)
