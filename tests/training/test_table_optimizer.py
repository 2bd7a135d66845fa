"""What the optimizer of the tables promises, whatever its arithmetic."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ctrkit.nn import lookup
from ctrkit.training.table_optimizer import Method, TableOptimizer, stochastically_rounded

METHODS: tuple[Method, ...] = ("adam", "adagrad", "rowwise_adagrad")
every_method = pytest.mark.parametrize("method", METHODS)


def table(rows: int = 30) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, 4, generator=torch.Generator().manual_seed(0)))


def look_up(weight: nn.Parameter, step: int) -> torch.Tensor:
    """A loss of a few rows, some of them twice, others at each step."""
    rows = torch.tensor([3, 3, 5 + step % 4, 20])
    target = torch.randn(4, 4, generator=torch.Generator().manual_seed(step))
    return (nn.functional.embedding(rows, weight, sparse=True) - target).square().sum()


def train(optimizer: TableOptimizer, weight: nn.Parameter, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        torch.autograd.backward(look_up(weight, step))
        optimizer.step()


@every_method
@pytest.mark.parametrize("l2", [0.0, 1e-2])
def test_rows_that_are_not_looked_up_are_not_touched(method: Method, l2: float) -> None:
    weight = table()
    before = weight.detach().clone()
    train(TableOptimizer([weight], method=method, lr=0.1, l2=l2), weight, range(6))
    looked_up = {3, 5, 6, 7, 8, 20}
    changed = {row for row in range(len(weight)) if not torch.equal(weight[row], before[row])}
    assert changed == looked_up


@every_method
@pytest.mark.parametrize("l2", [0.0, 1e-2])
def test_steps_go_down(method: Method, l2: float) -> None:
    weight = table()
    optimizer = TableOptimizer([weight], method=method, lr=0.1, l2=l2)
    first = look_up(weight, 0).item()
    for _ in range(20):
        train(optimizer, weight, range(1))
    assert look_up(weight, 0).item() < 0.5 * first


def test_adagrad_is_that_of_torch() -> None:
    ours, theirs = table(), table()
    optimizer = TableOptimizer([ours], method="adagrad", lr=0.1, l2=0.0)
    reference = torch.optim.Adagrad([theirs], lr=0.1, eps=optimizer.defaults["eps"])
    for step in range(8):
        for each in (optimizer, reference):
            each.zero_grad()
        torch.autograd.backward(look_up(ours, step))
        torch.autograd.backward(look_up(theirs, step))
        assert theirs.grad is not None
        theirs.grad = theirs.grad.to_dense()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@every_method
@pytest.mark.parametrize("l2", [0.0, 1e-2])
def test_a_saved_state_goes_on_bit_for_bit(method: Method, l2: float) -> None:
    undisturbed = table()
    train(TableOptimizer([undisturbed], method=method, lr=0.1, l2=l2), undisturbed, range(9))
    weight = table()
    optimizer = TableOptimizer([weight], method=method, lr=0.1, l2=l2)
    train(optimizer, weight, range(4))
    saved = copy.deepcopy(optimizer.state_dict())
    again = nn.Parameter(weight.detach().clone())
    other = TableOptimizer([again], method=method, lr=0.7, l2=l2)
    other.load_state_dict(saved)
    train(other, again, range(4, 9))
    assert torch.equal(again, undisturbed)


class Touched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements that operations write: a step's work, not its time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        name = func.overloadpacket.__name__.strip("_")
        indexed = func._schema.is_mutable and name.startswith(("index", "scatter"))
        written = args[1:] if indexed else result  # an indexed write touches its operands' rows, not all of its target
        self.elements += sum(
            x.numel() for x in pytree.tree_leaves(written) if isinstance(x, torch.Tensor) and not x.is_sparse
        )
        return result


@every_method
@pytest.mark.parametrize("l2", [0.0, 1e-2])
def test_a_step_costs_the_rows_looked_up_whatever_the_size_of_the_table(method: Method, l2: float) -> None:
    def work(rows: int) -> int:
        weight = table(rows)
        optimizer = TableOptimizer([weight], method=method, lr=0.1, l2=l2)
        torch.autograd.backward(look_up(weight, 0))
        touched = Touched()
        with touched:
            optimizer.step()
        return touched.elements

    assert work(30) == work(30_000)
    dense = Touched()
    with dense:
        table(30_000).data.mul_(2.0)
    assert dense.elements >= 30_000 * 4


@every_method
def test_a_table_that_was_not_looked_up_is_left_alone(method: Method) -> None:
    weight = table()
    before = weight.detach().clone()
    TableOptimizer([weight], method=method, lr=0.1).step()
    assert torch.equal(weight, before)


def test_a_row_gets_the_penalty_that_it_missed_when_it_is_looked_up_again() -> None:
    weight = nn.Parameter(torch.tensor([[2.0], [-1.0]]))
    optimizer = TableOptimizer([weight], method="adagrad", lr=0.5, l2=0.1)
    square, value = 0.0, 2.0
    for step, looked_up in enumerate((0, 1, 1, 1, 0), start=1):
        optimizer.zero_grad()
        torch.autograd.backward(0.3 * nn.functional.embedding(torch.tensor([looked_up]), weight, sparse=True).sum())
        optimizer.step()
        if looked_up == 0:
            gradient = 0.3 + 0.1 * {1: 1, 5: 4}[step] * value  # steps since the last look-up
            square += gradient**2
            value -= 0.5 * gradient / square**0.5
    assert weight[0].item() == pytest.approx(value, abs=1e-6)


def test_the_step_of_the_last_look_up_survives_a_checkpoint_exactly() -> None:
    weight = table(2)
    optimizer = TableOptimizer([weight], method="adagrad", lr=0.1, l2=0.1)
    optimizer.state[weight]["last"][1] = 2**24 + 1
    restored = TableOptimizer([weight], method="adagrad", lr=0.1, l2=0.1)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert restored.state[weight]["last"].dtype == torch.int32
    assert restored.state[weight]["last"].tolist() == [0, 2**24 + 1]


@every_method
@pytest.mark.parametrize("l2", [0.0, 1e-2])
def test_half_precision_learns_what_single_does(method: Method, l2: float) -> None:
    torch.manual_seed(0)
    single, half = table(), nn.Parameter(table().detach().half())
    single.data.copy_(half.data)
    for weight in (single, half):
        optimizer = TableOptimizer([weight], method=method, lr=0.05, l2=l2)
        for step in range(12):
            optimizer.zero_grad()
            weight.grad_dtype = torch.float32
            address = lookup.Address(torch.tensor([[3, 3, 5 + step % 4, 20]]))
            target = torch.randn(1, 16, generator=torch.Generator().manual_seed(step))
            torch.autograd.backward((lookup.look_up(weight, address)[0] - target).square().sum())
            optimizer.step()
    assert (half - table()).abs().max() > 0.1
    torch.testing.assert_close(half.float(), single.detach(), atol=0.02, rtol=0)


@every_method
def test_half_precision_moves_by_steps_that_it_cannot_hold(method: Method) -> None:
    """A step of a twentieth of the last place, made 4,000 times: rounded to the nearest it would never move."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.full((2, 64), 1.0, dtype=torch.float16))
    optimizer = TableOptimizer([weight], method=method, lr=1e-3)
    unit = 2.0**-11
    for group in optimizer.param_groups:
        group["lr"] = unit / 20
    steps = 400
    for _ in range(steps):
        weight.grad_dtype = torch.float32
        weight.grad = torch.sparse_coo_tensor(
            torch.tensor([[1]]), torch.ones(1, 64), (2, 64), is_coalesced=True, check_invariants=False
        )
        optimizer.step()
        if method != "adam":
            optimizer.state[weight]["square"].zero_()  # every step is of the same size: lr
    assert weight.dtype == torch.float16
    assert weight[0].tolist() == [1.0] * 64
    moved = (1.0 - weight[1].float()).mean().item()
    assert moved == pytest.approx(steps * unit / 20, rel=0.1)


def test_rounding_is_right_on_average_and_keeps_what_fits() -> None:
    torch.manual_seed(0)
    value = torch.tensor([0.1, -0.3, 1e-3, 2**-24, 1.0, -2.5, 0.0, 1e-8]).repeat(20_000, 1)
    rounded = stochastically_rounded(value).float()
    torch.testing.assert_close(rounded.mean(0)[:3], value[0, :3], rtol=2e-5, atol=0)
    assert torch.equal(rounded[:, 4:7], value[:, 4:7])
    torch.testing.assert_close(rounded.mean(0)[[3, 7]], value[0, [3, 7]], rtol=0.03, atol=0)  # below the normal ones
    assert (rounded[:, :3] != value[:, :3]).all()


@pytest.mark.parametrize(("l2", "tolerance"), [(0.0, 0.005), (1e-2, 0.06)])
def test_adam_on_rows_that_miss_steps_is_dense_adam(l2: float, tolerance: float) -> None:
    """Late in training, when the bias correction stands still; a row of each rhythm, every step to every 40th."""
    ours = nn.Parameter(torch.full((4, 4), 0.5))
    theirs = nn.Parameter(ours.detach().clone())
    optimizer = TableOptimizer([ours], method="adam", lr=1e-3, l2=l2)
    dense = torch.optim.Adam([theirs], lr=1e-3, weight_decay=l2)
    start = 20_000
    optimizer.param_groups[0]["steps"] = start
    optimizer.state[ours]["last"].fill_(start)
    dense.state[theirs] = {
        "step": torch.tensor(float(start)),
        "exp_avg": torch.zeros(4, 4),
        "exp_avg_sq": torch.full((4, 4), 1e-4),
    }
    optimizer.state[ours]["moments"][:, 4:] = 1e-4
    rhythm = (1, 3, 10, 40)
    for step in range(1, 241):
        rows = torch.tensor([row for row, every in enumerate(rhythm) if step % every == 0])
        gradient = 0.1 * torch.randn(len(rows), 4, generator=torch.Generator().manual_seed(step)) + 0.02
        ours.grad = torch.sparse_coo_tensor(
            rows.unsqueeze(0), gradient, (4, 4), is_coalesced=True, check_invariants=False
        )
        theirs.grad = ours.grad.to_dense()
        optimizer.step()
        dense.step()
    moved = (theirs - 0.5).abs().mean(1)
    assert (moved > 0.01).all()
    state = optimizer.state[ours]["moments"]
    torch.testing.assert_close(state[:, 4:], dense.state[theirs]["exp_avg_sq"], rtol=0.02, atol=0)
    error = (ours - theirs).abs().amax(1)
    assert (error < tolerance * moved + 1e-6).all(), (error, moved)


def test_a_penalty_shrinks_a_row_that_was_long_away_to_zero_and_not_beyond() -> None:
    weight = nn.Parameter(torch.tensor([[0.03], [-0.03], [0.03]]))
    optimizer = TableOptimizer([weight], method="adam", lr=1e-3, l2=1e-3)
    for step, row in enumerate([0, 1] + [2] * 5000 + [0, 1]):
        gradient = torch.zeros(1, 1) if step < 5002 else torch.full((1, 1), 1e-12)
        weight.grad = torch.sparse_coo_tensor(
            torch.tensor([[row]]), gradient, (3, 1), is_coalesced=True, check_invariants=False
        )
        optimizer.step()
    assert weight[:2].abs().max() < 2e-3


@pytest.mark.parametrize("l2", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("gap", [1, 10, 100, 1000, 5000])
def test_a_row_comes_back_from_a_gap_where_dense_adam_is(gap: int, l2: float) -> None:
    """One gradient, a gap, and a gradient that is nearly none: within a seventh of what one gradient moves a row."""
    start = 20_000
    ours, theirs = nn.Parameter(torch.full((2, 1), 0.01)), nn.Parameter(torch.full((2, 1), 0.01))
    optimizer = TableOptimizer([ours], method="adam", lr=1e-3, l2=l2)
    dense = torch.optim.Adam([theirs], lr=1e-3, weight_decay=l2)
    optimizer.param_groups[0]["steps"] = start
    optimizer.state[ours]["last"].fill_(start)
    dense.state[theirs] = {
        "step": torch.tensor(float(start)),
        "exp_avg": torch.zeros(2, 1),
        "exp_avg_sq": torch.zeros(2, 1),
    }
    for step in range(gap + 2):
        gradient = torch.full((1, 1), 1e-3 if step == 0 else 1e-9)
        theirs.grad = torch.zeros(2, 1)
        rows = torch.tensor([0 if step in (0, gap + 1) else 1])
        theirs.grad[rows] = gradient
        ours.grad = torch.sparse_coo_tensor(
            rows.unsqueeze(0), gradient, (2, 1), is_coalesced=True, check_invariants=False
        )
        optimizer.step()
        dense.step()
    largest = 1e-3 * 0.1 / (1 - 0.9) / 0.001**0.5  # what one gradient moves a row by in all
    assert abs(ours[0].item() - theirs[0].item()) < largest / 7
