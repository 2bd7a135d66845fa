"""DCN-v2 against its equations, an impression at a time."""

import pytest
import torch
from torch import Tensor, nn

from ctrkit.nn.dcn_v2 import DCNv2


def made(hidden: tuple[int, ...] = (6, 4), cross_layers: int = 3) -> DCNv2:
    torch.manual_seed(0)
    tower = DCNv2(5, hidden, cross_layers=cross_layers)
    for parameter in tower.parameters():  # biases too
        nn.init.normal_(parameter, std=0.5)
    return tower


def naive(tower: DCNv2, x0: Tensor) -> Tensor:
    """The logit of one impression x0[X], with loops (Wang et al., WWW 2021, eq. 1, parallel)."""
    x = x0
    for cross in tower.crosses:
        assert isinstance(cross, nn.Linear)
        product = [sum(w * v for w, v in zip(row, x, strict=True)) for row in cross.weight]
        x = torch.stack([a * (p + b) + c for a, p, b, c in zip(x0, product, cross.bias, x, strict=True)])
    h = x0
    for linear in tower.deep.linears:  # the last one has given way to the joint layer
        h = torch.relu(linear.weight @ h + linear.bias)
    return tower.head.weight[0] @ torch.cat([x, h]) + tower.head.bias[0]


@pytest.mark.parametrize("hidden", [(6, 4), (6,), ()])
@pytest.mark.parametrize("cross_layers", [1, 3])
def test_the_logit_and_its_gradients_are_those_of_the_equations(hidden: tuple[int, ...], cross_layers: int) -> None:
    tower, x_BX = made(hidden, cross_layers).double(), torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    at = [x_BX, *tower.parameters()]
    logit_B = tower(x_BX)
    expected_B = torch.stack([naive(tower, x) for x in x_BX])
    torch.testing.assert_close(logit_B, expected_B)
    found, expected = (torch.autograd.grad(each.square().sum(), at) for each in (logit_B, expected_B))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_crosses_of_zeros_leave_x_as_it_is() -> None:
    tower, x_BX = made(), torch.randn(3, 5)
    for cross in tower.crosses:
        for parameter in cross.parameters():
            nn.init.zeros_(parameter)
    hidden, _ = tower.trace(x_BX)
    assert torch.equal(hidden[-1][:, :5], x_BX)


def test_multiplications_by_hand() -> None:
    # a cross 5 x 5 and its product with x0; 5-6-4; a joint layer of 5 + 4
    assert made().multiplications == 3 * (25 + 5) + 5 * 6 + 6 * 4 + 9


@pytest.mark.parametrize("hidden", [(6, 4), ()])
def test_hidden_widths_are_those_of_the_trace(hidden: tuple[int, ...]) -> None:
    tower = made(hidden)
    traced, logit_B = tower.trace(torch.randn(3, 5))
    assert tuple(layer.shape[1] for layer in traced) == tower.hidden_widths
    assert tower.hidden_widths == ((6, 4, 9) if hidden else (10,))
    torch.testing.assert_close(tower.head(traced[-1]).squeeze(1), logit_B)
