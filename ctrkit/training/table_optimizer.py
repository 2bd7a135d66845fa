"""Optimizers of embedding tables: a step touches the rows that were looked up, however large the tables are."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

Method = Literal["adam", "adagrad", "rowwise_adagrad"]


class TableOptimizer(torch.optim.Optimizer):
    """Adam, Adagrad or row-wise Adagrad on sparse gradients.

        adam               Kingma, Ba, ICLR 2015; a row that was not looked up for some steps makes them when it is, in
                           one go: its moments decay, and it moves as dense Adam would have moved it meanwhile
        adagrad            Duchi, Hazan, Singer, JMLR 2011, an accumulator a weight
        rowwise_adagrad    one accumulator a row, of the mean square of its gradient: E times less state

    L2: the penalty l2/2 ||W||^2 of a whole table has the gradient l2 w for every row at every step. A row gets what it
    has missed since it was last looked up in one go: Adam shrinks it as far as these steps would have, at most to zero;
    the others add l2 w (steps since) to its next gradient. Rare rows are held about as tightly as in a dense optimizer
    although they are touched as rarely as their ids occur. A row that is not looked up again keeps what it has.

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
        # a group, though it be empty: a process may hold no table
        super().__init__(
            [{"params": list(params)}], {"method": method, "lr": lr, "l2": l2, "betas": betas, "eps": eps, "steps": 0}
        )
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight] = _initial_state(weight, group)

    def state_like(self, num_rows: int, dim: int) -> dict[str, Tensor]:
        """Shapes and types of what is kept, row by row, of a table; on the meta device."""
        weight = torch.empty(num_rows, dim, device="meta")
        state = _initial_state(weight, self.param_groups[0])
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}

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
            group["steps"] += 1
            for weight in group["params"]:
                if weight.grad is not None:
                    _step(weight, self.state[weight], group)
        return None


def _initial_state(weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    match group["method"]:
        case "adam":
            # both moments of a row lie together: half as many places of memory to go to in a step
            state["moments"] = _zeros(weight, 2 * weight.shape[1])
        case "adagrad":
            state["square"] = _zeros(weight, weight.shape[1])
        case "rowwise_adagrad":
            state["square"] = _zeros(weight, 1)
    if group["l2"] or group["method"] == "adam":
        state["last"] = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    return state


def _zeros(weight: Tensor, width: int) -> Tensor:
    return torch.zeros(len(weight), width, dtype=torch.float32, device=weight.device)


def _step(weight: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    assert weight.grad is not None
    row_R, gradient_RE = _summed(weight.grad)
    weight_RE = weight.index_select(0, row_R).float()
    if "last" in state:
        since_R1 = (group["steps"] - state["last"].index_select(0, row_R)).unsqueeze(1).float()
        state["last"].index_fill_(0, row_R, group["steps"])
    if group["method"] == "adam":
        _adam(weight_RE, row_R, gradient_RE, since_R1 - 1, state, group)
    else:
        if group["l2"]:
            gradient_RE.addcmul_(weight_RE, since_R1, value=group["l2"])
        square_R = gradient_RE.square()
        if group["method"] == "rowwise_adagrad":
            square_R = square_R.mean(1, keepdim=True)
        square_R += state["square"].index_select(0, row_R)
        state["square"].index_copy_(0, row_R, square_R)
        weight_RE -= gradient_RE.mul_(group["lr"]) / square_R.sqrt_().add_(group["eps"])
    if weight.dtype == torch.float16:
        weight_RE = stochastically_rounded(weight_RE)
    weight.index_copy_(0, row_R, weight_RE)


def stochastically_rounded(value: Tensor) -> Tensor:
    """float32 to float16, up or down by chance so that the mean is the value (Gupta et al., ICML 2015, section 3).

    Rounded to the nearest, a step below half a unit of the last place would never move a weight.
    """
    smallest = 2.0**-14  # normal float16; below it they stand 2^-24 apart
    small = value + (torch.rand(value.shape, device=value.device) - 0.5) * 2.0**-24
    below = 13  # bits of a float32's significand that a float16 has not
    bits = value.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << below, bits.shape, dtype=torch.int32, device=bits.device)
    kept = (bits + noise) & -(1 << below)
    return torch.where(value.abs() < smallest, small, kept.view(torch.float32)).to(torch.float16)


def _summed(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a sparse gradient, ascending and each once, and its sum over each: row[R], gradient[R, E]."""
    row_R = gradient._indices()[0]
    if not (row_R[1:] > row_R[:-1]).all():  # autograd forgets the mark; of several look-ups they are not
        gradient = gradient.coalesce()
    return gradient._indices()[0], gradient._values()


def _adam(
    weight_RE: Tensor,
    row_R: Tensor,
    gradient_RE: Tensor,
    missed_R1: Tensor,
    state: dict[str, Any],
    group: dict[str, Any],
) -> None:
    """The steps that each row has missed, then one with its gradient; changes weight_RE and gradient_RE."""
    beta1, beta2 = group["betas"]
    moments_RM = state["moments"].index_select(0, row_R)
    mean_RE, square_RE = moments_RM.chunk(2, dim=1)
    if missed_R1.any():
        _catch_up(weight_RE, mean_RE, square_RE, missed_R1, group)
    if group["l2"]:
        gradient_RE.add_(weight_RE, alpha=group["l2"])
    mean_RE.lerp_(gradient_RE, 1 - beta1)
    square_RE.mul_(beta2).addcmul_(gradient_RE, gradient_RE, value=1 - beta2)
    state["moments"].index_copy_(0, row_R, moments_RM)
    correction1, correction2 = 1 - beta1 ** group["steps"], 1 - beta2 ** group["steps"]
    scale = group["lr"] * correction2**0.5 / correction1
    weight_RE.addcdiv_(mean_RE, square_RE.contiguous().sqrt_().add_(group["eps"]), value=-scale)


def _catch_up(weight_RE: Tensor, mean_RE: Tensor, square_RE: Tensor, missed_R1: Tensor, group: dict[str, Any]) -> None:
    """What dense Adam would have done in the steps that a row has missed, at today's learning rate; all in place.

    The last gradients first: without another one the j-th step moves a row by lr m b1^j / sqrt(v b2^j), a geometric
    series of ratio b1 / sqrt(b2), most of it at once. Then the penalty, which pulls by lr l2 w / sqrt(v) at each step,
    here at most to zero, and whose square is what v tends to.
    """
    (beta1, beta2), lr, l2 = group["betas"], group["lr"], group["l2"]
    correction1, correction2 = 1 - beta1 ** group["steps"], 1 - beta2 ** group["steps"]
    ratio = beta1 / beta2**0.5
    series_R1 = (1 - torch.exp(math.log(ratio) * missed_R1)) * (lr / correction1 * ratio / (1 - ratio))
    weight_RE.sub_((mean_RE * series_R1).div_(_root(square_RE, correction2, group["eps"])))
    mean_RE.mul_(torch.exp(math.log(beta1) * missed_R1))
    kept_R1 = torch.exp(math.log(beta2) * missed_R1)
    square_RE.mul_(kept_R1)
    if l2:
        square_RE.addcmul_((l2 * weight_RE).square_(), 1 - kept_R1)
        pull_RE = lr * l2 * missed_R1 / _root(square_RE, correction2, group["eps"])
        weight_RE.mul_(1 - pull_RE.clamp_(max=1.0))


def _root(square_RE: Tensor, correction2: float, eps: float) -> Tensor:
    return (square_RE / correction2).sqrt_().add_(eps)
