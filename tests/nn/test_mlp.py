"""Towers: the forward pass by hand, what a layer is made of, and what it costs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ctrkit.nn.mlp import MLP, Activation


def by_hand(tower: MLP, x: np.ndarray) -> np.ndarray:
    linear = [layer for layer in tower.layers if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(linear):
        x = x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        x = np.maximum(x, 0.0) if i < len(linear) - 1 else x
    return x[:, 0]


@pytest.mark.parametrize("hidden", [(), (5,), (7, 3)])
def test_forward_by_hand(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tower, x = MLP(4, hidden), torch.randn(6, 4)
    np.testing.assert_allclose(tower(x).detach().numpy(), by_hand(tower, x.double().numpy()), atol=1e-6)


@pytest.mark.parametrize(
    ("hidden", "multiplications", "two_logits"),
    [((200, 80), 131_280, 131_360), ((720, 360, 240, 180, 90), 819_810, 819_900)],
    ids=["light", "booster"],
)
def test_multiplications_of_the_towers_of_the_paper(
    hidden: tuple[int, ...], multiplications: int, two_logits: int
) -> None:
    # Table 5 counts two logits: 131 360 for the light tower. It prints 837 900 for the booster, whose layers as
    # printed have 819 900.
    assert MLP(576, hidden).multiplications == multiplications
    assert multiplications + hidden[-1] == two_logits


def test_multiplications_are_those_of_the_weights() -> None:
    tower = MLP(9, (5, 3), batch_norm=True)
    assert tower.multiplications == sum(m.weight.numel() for m in tower.modules() if isinstance(m, nn.Linear))


def test_layers_in_order() -> None:
    tower = MLP(4, (6, 5), activation="silu", dropout=0.3, batch_norm=True)
    hidden = [nn.Linear, nn.BatchNorm1d, nn.SiLU, nn.Dropout]
    assert all(isinstance(a, b) for a, b in zip(tower.layers, [*hidden, *hidden, nn.Linear], strict=True))
    assert [m.p for m in tower.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    assert [type(m) for m in MLP(4, (6,)).layers] == [nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize(
    ("activation", "at_minus_one"),
    [
        ("relu", 0.0),
        ("leaky_relu", -0.01),
        ("prelu", -0.25),
        ("gelu", -0.158655),
        ("silu", -0.268941),
        ("tanh", -0.761594),
    ],
)
def test_activations(activation: Activation, at_minus_one: float) -> None:
    tower = MLP(1, (1,), activation=activation)
    with torch.no_grad():
        for parameter, value in zip(tower.layers.parameters(), _identity(tower), strict=True):
            parameter.copy_(value)
    assert tower(torch.tensor([[-1.0]])).item() == pytest.approx(at_minus_one, abs=1e-6)


def _identity(tower: MLP) -> list[torch.Tensor]:
    """Linear layers as identities; anything else (the slope of PReLU) as it is."""
    linear = {id(p): p.new_ones(()) if p.dim() == 2 else p.new_zeros(()) for m in tower.layers for p in m.parameters()}
    slopes = {id(p): p.detach() for m in tower.layers if isinstance(m, nn.PReLU) for p in m.parameters()}
    return [{**linear, **slopes}[id(p)].expand_as(p) for p in tower.layers.parameters()]


def test_dropout_in_training_only() -> None:
    torch.manual_seed(0)
    tower, x = MLP(4, (64,), dropout=0.5), torch.randn(3, 4)
    assert not torch.equal(tower(x), tower(x))
    tower.eval()
    assert torch.equal(tower(x), tower(x))


def test_batch_norm_normalises_before_the_activation() -> None:
    torch.manual_seed(0)
    tower = MLP(4, (5,), batch_norm=True)
    seen: list[torch.Tensor] = []
    tower.layers[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tower(torch.randn(200, 4) * 10 + 3)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].var(0, unbiased=False), torch.ones(5), atol=1e-3, rtol=0)


def test_layer_norm_normalises_each_row_before_the_activation() -> None:
    torch.manual_seed(0)
    tower = MLP(4, (5,), layer_norm=True)
    seen: list[torch.Tensor] = []
    tower.layers[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tower(torch.randn(200, 4) * 10 + 3)
    torch.testing.assert_close(seen[0].mean(1), torch.zeros(200), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].var(1, unbiased=False), torch.ones(200), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="not both"):
        MLP(4, (5,), batch_norm=True, layer_norm=True)


def test_a_batch_of_one_row_has_no_statistics_of_its_own() -> None:
    # the last batch of an epoch may have one row: it must not end the run
    torch.manual_seed(0)
    tower = MLP(4, (5,), batch_norm=True)
    tower(torch.randn(100, 4))
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    x = torch.randn(1, 4)
    logit = tower(x)
    assert all(torch.equal(before[name], buffer) for name, buffer in tower.named_buffers())
    torch.testing.assert_close(logit, tower.eval()(x))


def test_widths() -> None:
    tower = MLP(9, (5, 3))
    shapes = [m.weight.shape for m in tower.modules() if isinstance(m, nn.Linear)]
    assert [tuple(s) for s in shapes] == [(b, a) for a, b in pairwise((9, 5, 3, 1))]


def test_under_autocast_the_hidden_layers_are_bf16_and_the_logit_is_not() -> None:
    torch.manual_seed(0)
    tower, x = MLP(4, (64, 32)), torch.randn(200, 4)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, logit = tower.layers[:-1](x), tower(x)
    assert hidden.dtype == torch.bfloat16
    assert logit.dtype == torch.float32
    # exactly the last layer in fp32 on what the hidden layers gave: no bit of the logit is rounded away
    torch.testing.assert_close(logit, tower.layers[-1](hidden.float()).squeeze(1), rtol=0, atol=0)
    assert len(logit.detach().unique()) == 200
    assert 0 < (logit - tower(x)).abs().max() < 0.05


def test_gradients_under_autocast_are_near_those_without() -> None:
    torch.manual_seed(0)
    tower, x = MLP(4, (64, 32)), torch.randn(50, 4)
    tower(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}
    tower.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logit = tower(x)
    logit.square().sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert 0 < (parameter.grad - expected[name]).norm() < 0.03 * expected[name].norm()
