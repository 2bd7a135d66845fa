"""One look-up of everything that a batch reads of stacked tables, and its sparse gradient."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Pooling = Literal["mean", "sum"]


@dataclass(frozen=True)
class Bags:
    """M lists of rows, pooled alike."""

    row_N: Tensor
    """The lists one after another, int64."""
    length_M: Tensor
    offset_M: Tensor
    """Where each list begins in `row_N`."""
    pooling: Pooling

    @classmethod
    def of(cls, row_N: Tensor, length_M: Tensor, pooling: Pooling) -> "Bags":
        """From the lengths of the lists."""
        return cls(row_N, length_M, length_M.cumsum(0) - length_M, pooling)


@dataclass
class Address:
    """What a batch reads of one weight [V, E]: S single rows an impression, then lists of rows.

    It holds nothing of the weight, so it is made ahead of the step that uses it.
    """

    single_BS: Tensor
    """int64 rows; S may be 0."""
    bags: Sequence[Bags] = ()
    _grouped: tuple[Tensor, Tensor, Tensor] | None = field(default=None, repr=False)

    def grouped(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows[R] that are read, ascending and each once; and of each the outputs that read it.

        Outputs are counted through: the single rows [B * S], then the bags. The outputs[N] of a row lie together; they
        begin at start[R].
        """
        if self._grouped is None:
            self._grouped = self._group()
        return self._grouped

    def _group(self) -> tuple[Tensor, Tensor, Tensor]:
        single_N = self.single_BS.reshape(-1)
        sorted_N, order_N = torch.cat([single_N, *(bags.row_N for bags in self.bags)]).sort()
        if self.bags:
            outputs, count = [torch.arange(len(single_N), device=single_N.device)], len(single_N)
            for bags in self.bags:
                bag_M = torch.arange(count, count + len(bags.length_M), device=single_N.device)
                outputs.append(bag_M.repeat_interleave(bags.length_M))
                count += len(bag_M)
            order_N = torch.cat(outputs)[order_N]
        first_N = torch.ones_like(sorted_N, dtype=torch.bool)
        torch.ne(sorted_N[1:], sorted_N[:-1], out=first_N[1:])
        start_R = first_N.nonzero().squeeze(1)
        return sorted_N[start_R], order_N, start_R


def look_up(weight_VE: Tensor, address: Address) -> tuple[Tensor, ...]:
    """Rows [B, S E] of the single features, then pooled rows [M, E] of each of `address.bags`, in float32.

    An empty list gives zeros. The gradient is a sparse tensor of the rows that were read, each once: a step that uses
    it costs the same however large the table is. It is float32 also where the weight is float16.
    """
    result: tuple[Tensor, ...] = _LookUp.apply(weight_VE, address)  # type: ignore[no-untyped-call]
    return result


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VE: Tensor, address: Address) -> tuple[Tensor, ...]:
        ctx.address, ctx.shape = address, weight_VE.shape
        single = functional.embedding(address.single_BS, weight_VE).flatten(1).float()
        return (single, *(_pool(weight_VE, bags) for bags in address.bags))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        address, (num_rows, dim) = ctx.address, ctx.shape
        by_output = [gradients[0].reshape(-1, dim)]
        for bags, gradient_ME in zip(address.bags, gradients[1:], strict=True):
            mean = bags.pooling == "mean"
            by_output.append(gradient_ME / bags.length_M.unsqueeze(1) if mean else gradient_ME)
        gradient_OE = torch.cat(by_output) if address.bags else by_output[0]
        row_R, output_N, start_R = address.grouped()
        sum_RE = functional.embedding_bag(output_N, gradient_OE, start_R, mode="sum")
        # invariants hold by construction; checking them would read every row
        sparse = torch.sparse_coo_tensor(
            row_R.unsqueeze(0), sum_RE, (num_rows, dim), is_coalesced=True, check_invariants=False
        )
        return sparse, None


def _pool(weight_VE: Tensor, bags: Bags) -> Tensor:
    if weight_VE.dtype == torch.float32:
        return functional.embedding_bag(bags.row_N, weight_VE, bags.offset_M, mode=bags.pooling)
    # read in half precision, pooled in single
    read_NE = functional.embedding(bags.row_N, weight_VE).float()
    each_N = torch.arange(len(bags.row_N), device=bags.row_N.device)
    return functional.embedding_bag(each_N, read_NE, bags.offset_M, mode=bags.pooling)
