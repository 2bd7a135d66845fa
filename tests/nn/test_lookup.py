"""The look-up of stacked tables: its gradient against torch's own, whatever is read how often."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ctrkit.nn.lookup import Address, Bags, Pooling, look_up

V, E = 7, 3
Lists = list[list[int]]
_lists = st.lists(st.lists(st.integers(0, V - 1), max_size=4), min_size=1, max_size=6)


def bags_of(lists: Lists, pooling: Pooling) -> Bags:
    rows = torch.tensor([row for each in lists for row in each], dtype=torch.int64)
    return Bags.of(rows, torch.tensor([len(each) for each in lists]), pooling)


def by_hand(weight: torch.Tensor, single: Lists, mean: Lists, total: Lists) -> torch.Tensor:
    """All outputs one after another, by plain indexing."""
    parts = [weight[torch.tensor(single, dtype=torch.int64)].flatten()]
    zero = weight[0] * 0.0
    parts += [weight[torch.tensor(each)].mean(0) if each else zero for each in mean]
    parts += [weight[torch.tensor(each)].sum(0) if each else zero for each in total]
    return torch.cat([part.flatten() for part in parts])


@settings(deadline=None)
@given(
    single=st.integers(1, 3).flatmap(
        lambda s: st.lists(st.lists(st.integers(0, V - 1), min_size=s, max_size=s), min_size=1, max_size=5)
    ),
    mean=_lists,
    total=_lists,
)
def test_values_and_gradients_are_those_of_plain_indexing(single: Lists, mean: Lists, total: Lists) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(V, E, generator=generator))
    theirs = ours.detach().clone().requires_grad_()
    address = Address(torch.tensor(single), [bags_of(mean, "mean"), bags_of(total, "sum")])
    x = torch.cat([part.flatten() for part in look_up(ours, address)])
    expected = by_hand(theirs, single, mean, total)
    torch.testing.assert_close(x, expected)
    factor = torch.randn(len(x), generator=generator)
    torch.autograd.backward((x * factor).sum())
    torch.autograd.backward((expected * factor).sum())
    assert ours.grad is not None
    rows = ours.grad._indices()[0].tolist()
    assert rows == sorted({row for each in (*single, *mean, *total) for row in each})
    torch.testing.assert_close(ours.grad.to_dense(), theirs.grad)


def test_two_look_ups_add_up() -> None:
    weight = nn.Parameter(torch.randn(V, E, generator=torch.Generator().manual_seed(0)))
    for rows in ([[1], [2]], [[2], [5]]):
        torch.autograd.backward(look_up(weight, Address(torch.tensor(rows)))[0].sum())
    assert weight.grad is not None
    assert weight.grad.to_dense()[:, 0].tolist() == [0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 0.0]
