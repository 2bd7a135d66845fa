"""What networks read of their embeddings."""

import pytest
import torch

from ctrkit.data.batch import Batch
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network, read_embeddings
from ctrkit.nn.tower import Vectors
from ctrkit.objectives.frozen import Frozen
from tests import networks


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Embedding]:
    """The embeddings that are looked up, in their order."""
    found, vectors = list[Embedding](), Embedding.vectors

    def watched(self: Embedding, batch: Batch) -> Vectors:
        found.append(self)
        return vectors(self, batch)

    monkeypatch.setattr(Embedding, "vectors", watched)
    return found


def three() -> tuple[Network, Network, Network]:
    """Two over one embedding, of which one sees a privileged one too, and one over its own."""
    shared, own = (networks.embedding(networks.PRIVILEGED, seed=seed) for seed in (0, 1))
    hidden = networks.embedding(networks.PRIVILEGED, seed=2, privileged=True)
    first, last = (Network(e, MLP(e.out_features, (8,))) for e in (shared, own))
    return first, Network(shared, MLP(shared.out_features + hidden.out_features, (8,)), hidden), last


def test_what_several_networks_read_is_looked_up_once(read: list[Embedding]) -> None:
    first, seeing, last = three()
    batch = networks.batch(features=networks.PRIVILEGED)
    given = read_embeddings([first, seeing, last], batch)
    assert read == [*seeing.embeddings, last.embedding]
    for network in (first, seeing, last):
        vectors = network.vectors(given)
        logit_B = network.tower(vectors.x_BX, vectors.lists)
        assert len(read) == 3
        torch.testing.assert_close(logit_B, network(batch))
        del read[3:]


def test_frozen_networks_share_their_look_ups(read: list[Embedding]) -> None:
    first, seeing, last = three()
    batch = networks.batch(features=networks.PRIVILEGED)
    Frozen({"first": first, "seeing": seeing, "last": last}).traces(batch)
    assert read == [*seeing.embeddings, last.embedding]
