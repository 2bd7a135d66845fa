"""Unexposed candidates: the ad of another impression, everything of the user and the context as it was."""

import torch

from ctrkit.data.crossing import Crossing
from ctrkit.schema import Schema
from tests import networks

FEATURES = {**networks.FEATURES, "age": {"side": "user", "kind": "dense"}}
CROSSING = Crossing.of(networks.schema(FEATURES))


def test_the_ad_moves_and_nothing_else() -> None:
    batch = networks.batch(6, FEATURES)
    order = torch.tensor([3, 0, 0, 5, 1, 2])
    crossed = CROSSING(batch, order)
    for feature in batch.sparse.keys():  # noqa: SIM118 (no dict)
        before = [ids.tolist() for ids in batch.sparse[feature].to_dense()]
        after = [ids.tolist() for ids in crossed.sparse[feature].to_dense()]
        of_ad = feature in ("item", "tags")
        assert after == ([before[i] for i in order] if of_ad else before), feature
    torch.testing.assert_close(crossed.dense_BD[:, :2], batch.dense_BD[order, :2])  # price, bid
    torch.testing.assert_close(crossed.dense_BD[:, 2], batch.dense_BD[:, 2])  # age
    assert crossed.label_B.isnan().all()
    assert torch.equal(crossed.weight_B, batch.weight_B)


def test_the_batch_stays_as_it_was() -> None:
    batch = networks.batch(6, FEATURES)
    dense, values = batch.dense_BD.clone(), batch.sparse.values().clone()
    network = networks.network(networks.FEATURES)
    network.embedding.address(batch)
    crossed = CROSSING(batch, torch.arange(6).flip(0))
    assert torch.equal(batch.dense_BD, dense)
    assert torch.equal(batch.sparse.values(), values)
    assert not crossed.ahead  # what was made of the batch ahead is not of the candidates


def test_a_user_keeps_what_is_not_the_ads() -> None:
    schema = Schema.from_mapping({"user": {"side": "user"}, "hour": {"side": "context"}}, label="click", group="user")
    assert Crossing.of(schema) == Crossing(frozenset(), ())


def test_one_ad_makes_no_other_candidates() -> None:
    batch = networks.batch(6, FEATURES)
    assert CROSSING.changes(batch)
    one_ad = CROSSING(batch, torch.zeros(6, dtype=torch.long))
    assert not CROSSING.changes(one_ad)
    one_ad.dense_BD[5, 1] += 1  # but for its bid
    assert CROSSING.changes(one_ad)
