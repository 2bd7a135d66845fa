"""Optimizers of embedding tables: a step touches the rows that were looked up, however large the tables are."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

Method = Literal["adam", "adagrad", "rowwise_adagrad"]


class TableOptimizer(torch.optim.Optimizer):
    """Adam, Adagrad or row-wise Adagrad on sparse gradients.

        adam               Kingma, Ba, ICLR 2015; the moments of a row move only when it is looked up, the bias
                           correction counts steps (as torch.optim.SparseAdam)
        adagrad            Duchi, Hazan, Singer, JMLR 2011, an accumulator a weight
        rowwise_adagrad    one accumulator a row, of the mean square of its gradient: E times less state

    L2: the penalty l2/2 ||W||^2 of a whole table has the gradient l2 w for every row at every step. A row gets what it
    has missed since it was last looked up in one go, l2 w (steps since), with its next gradient: rare rows are held
    about as tightly as in a dense optimizer although they are touched as rarely as their ids occur. A row that is not
    looked up again keeps what it has.

    Args:
        params: table weights [V, E], whose gradients are sparse.
        method: see above.
        lr: learning rate.
        l2: weight of the penalty, per step.
        betas: Adam's decay rates.
        eps: added to the root in the denominator.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        method: Method,
        lr: float,
        l2: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(list(params), {"method": method, "lr": lr, "l2": l2, "betas": betas, "eps": eps})
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight] = _initial_state(weight, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read what `state_dict` gave, bit for bit."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for index, saved in state_dict["state"].items():
            if "last" in saved:  # torch casts it to the weights' type, where steps above 2^24 lose digits
                self.state[weights[index]]["last"] = saved["last"].to(weights[index].device, copy=True)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the rows that have a gradient."""
        assert closure is None, "no closure"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    _step(weight, self.state[weight], group)
        return None


def _initial_state(weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {"step": 0}
    match group["method"]:
        case "adam":
            state["mean"] = torch.zeros_like(weight)
            state["square"] = torch.zeros_like(weight)
        case "adagrad":
            state["square"] = torch.zeros_like(weight)
        case "rowwise_adagrad":
            state["square"] = weight.new_zeros(len(weight), 1)
    if group["l2"]:
        state["last"] = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    return state


def _step(weight: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    assert weight.grad is not None
    row_R, gradient_RE = _summed(weight.grad)
    state["step"] += 1
    weight_RE = weight.index_select(0, row_R)
    if group["l2"]:
        missed_R1 = (state["step"] - state["last"].index_select(0, row_R)).unsqueeze(1)
        gradient_RE.addcmul_(weight_RE, missed_R1.to(weight.dtype), value=group["l2"])
        state["last"].index_fill_(0, row_R, state["step"])
    if group["method"] == "adam":
        _adam(weight_RE, row_R, gradient_RE, state, group)
    else:
        square_R = gradient_RE.square()
        if group["method"] == "rowwise_adagrad":
            square_R = square_R.mean(1, keepdim=True)
        square_R += state["square"].index_select(0, row_R)
        state["square"].index_copy_(0, row_R, square_R)
        weight_RE -= gradient_RE.mul_(group["lr"]) / square_R.sqrt_().add_(group["eps"])
    weight.index_copy_(0, row_R, weight_RE)


def _summed(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a sparse gradient, ascending and each once, and its sum over each: row[R], gradient[R, E].

    What `Tensor.coalesce` does, several times as fast: one sort, and sums by the kernel of pooled lookups.
    """
    row_N, order_N = gradient._indices()[0].sort()
    first_N = torch.ones_like(row_N, dtype=torch.bool)
    torch.ne(row_N[1:], row_N[:-1], out=first_N[1:])
    start_R = first_N.nonzero().squeeze(1)
    sum_RE = functional.embedding_bag(order_N, gradient._values(), start_R, mode="sum")
    return row_N[start_R], sum_RE


def _adam(weight_RE: Tensor, row_R: Tensor, gradient_RE: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    mean_RE = state["mean"].index_select(0, row_R).lerp_(gradient_RE, 1 - beta1)
    square_RE = state["square"].index_select(0, row_R).mul_(beta2).addcmul_(gradient_RE, gradient_RE, value=1 - beta2)
    state["mean"].index_copy_(0, row_R, mean_RE)
    state["square"].index_copy_(0, row_R, square_RE)
    scale: float = group["lr"] * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
    weight_RE.addcdiv_(mean_RE, square_RE.sqrt_().add_(group["eps"]), value=-scale)
