"""Optimizers of embedding tables: a step touches the rows that were looked up, however large the tables are."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

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
    gradient = weight.grad
    assert gradient is not None
    gradient = gradient.coalesce()
    row_R, gradient_RE = gradient.indices()[0], gradient.values()
    state["step"] += 1
    if group["l2"]:
        missed_R1 = (state["step"] - state["last"][row_R]).unsqueeze(1)
        gradient_RE = gradient_RE + group["l2"] * missed_R1 * weight[row_R]
        state["last"][row_R] = state["step"]
    if group["method"] == "adam":
        update_RE = _adam(row_R, gradient_RE, state, group)
    else:
        square_R = gradient_RE.square()
        if group["method"] == "rowwise_adagrad":
            square_R = square_R.mean(1, keepdim=True)
        accumulated_R = state["square"][row_R] + square_R
        state["square"][row_R] = accumulated_R
        update_RE = group["lr"] * gradient_RE / (accumulated_R.sqrt() + group["eps"])
    weight[row_R] -= update_RE


def _adam(row_R: Tensor, gradient_RE: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    beta1, beta2 = group["betas"]
    mean_RE = torch.lerp(gradient_RE, state["mean"][row_R], beta1)
    square_RE = torch.lerp(gradient_RE.square(), state["square"][row_R], beta2)
    state["mean"][row_R], state["square"][row_R] = mean_RE, square_RE
    scale: float = group["lr"] * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
    update_RE: Tensor = scale * mean_RE / (square_RE.sqrt() + group["eps"])
    return update_RE
