"""Several networks as one: the mean of their logits, whatever they share."""

import pytest
import torch
from torch import nn

from ctrkit.errors import UserError
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.mean import mean_network
from ctrkit.nn.mlp import MLP, Activation
from ctrkit.nn.network import Network
from tests import networks

BATCH = networks.batch(64)


def member(seed: int, hidden: tuple[int, ...], *, shared: Embedding | None = None, **tower: object) -> Network:
    embedding = shared or networks.embedding(seed=seed)
    torch.manual_seed(seed)
    network = Network(embedding, MLP(embedding.out_features, hidden, **tower))  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.bias)
    return network.eval()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_its_logit_is_the_mean(*, shared: bool, activation: Activation, batch_norm: bool) -> None:
    tables = networks.embedding() if shared else None
    settings = {"activation": activation, "batch_norm": batch_norm, "dropout": 0.2}
    members = [member(i, hidden, shared=tables, **settings) for i, hidden in enumerate([(8, 4), (5, 3), (8, 4)])]
    mean = mean_network(members)
    expected = torch.stack([network(BATCH) for network in members]).mean(0)
    torch.testing.assert_close(mean(BATCH), expected, atol=1e-6, rtol=1e-5)
    assert mean.tower.hidden_widths == (21, 11)
    assert mean.embedding is tables or mean.embedding.tables[0].dim == 3 * networks.DIM


def test_changing_the_members_afterwards_changes_nothing() -> None:
    members = [member(i, (8, 4)) for i in range(2)]
    mean = mean_network(members)
    before = mean(BATCH)
    with torch.no_grad():
        for network in members:
            for parameter in network.parameters():
                parameter.zero_()
    assert torch.equal(mean(BATCH), before)


@pytest.mark.parametrize(
    ("first", "second"),
    [((8, 4), (8,)), ((), ()), ((8,), "tanh"), ((8,), "prelu"), ((8,), "layer_norm")],
)
def test_networks_that_cannot_be_joined(first: tuple[int, ...], second: tuple[int, ...] | str) -> None:
    if second == "layer_norm":  # it is over the units of one network
        both = [member(i, first, layer_norm=True) for i in range(2)]
    elif isinstance(second, str):
        both = [
            member(0, first, activation="prelu" if second == "prelu" else "relu"),
            member(1, first, activation=second),
        ]
    else:
        both = [member(0, first), member(1, second)]
    with pytest.raises(UserError, match="the mean ships as one MLP"):
        mean_network(both)
