"""Attention of the ad over the user's lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrkit.nn.mlp import MLP, Activation
from ctrkit.nn.tower import Lists, Tower


@dataclass(frozen=True)
class Attended:
    """A list and the feature that looks at it: both read one table."""

    target: slice
    """Where the target's embedding stands in x."""
    list: str
    """The sequence feature."""
    dim: int
    """Width of their table."""


class TargetAttention(Tower):
    """An MLP that also sees each list as the ad looks at it: Deep Interest Network.

    Zhou et al., KDD 2018, section 4.3.
    For a target q and a list's embeddings k_j, an activation unit gives a weight a_j = a(q, k_j, q - k_j, q * k_j), and
    the list is sum_j a_j k_j (eq. 3: weights are not normalised, so that many alike count for more). The MLP reads x,
    each such sum, and its product with the target.

    Args:
        in_features: width of x.
        hidden: of the MLP.
        attended: lists and their targets; at least one.
        attention_hidden: hidden widths of the activation units.
        activation: of the MLP, as are `dropout` and `batch_norm`.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        attended: Sequence[Attended],
        *,
        attention_hidden: Sequence[int] = (36,),
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.attended = tuple(attended)
        self.reads_lists = tuple(pair.list for pair in attended)
        self.units = nn.ModuleList(MLP(4 * pair.dim, attention_hidden, activation="silu") for pair in attended)
        width = in_features + 2 * sum(pair.dim for pair in attended)
        self.mlp = MLP(width, hidden, activation=activation, dropout=dropout, batch_norm=batch_norm)

    @property
    def multiplications(self) -> int:
        """Of the MLP and, for lists of one element, of the activation units."""
        units = sum(unit.multiplications for unit in self.units if isinstance(unit, MLP))
        return self.mlp.multiplications + units + sum(3 * pair.dim for pair in self.attended)

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Of the MLP."""
        return self.mlp.hidden_widths

    def trace(self, x_BX: Tensor, lists: Mapping[str, Lists] | None = None) -> tuple[list[Tensor], Tensor]:
        """Of the MLP over x and the attended lists."""
        assert lists is not None
        parts = [x_BX]
        for pair, unit in zip(self.attended, self.units, strict=True):
            target_BE, rows = x_BX[:, pair.target], lists[pair.list]
            impression_N = torch.arange(len(x_BX), device=x_BX.device).repeat_interleave(rows.length_B)
            q_NE, k_NE = target_BE[impression_N], rows.row_NE
            weight_N = unit(torch.cat([q_NE, k_NE, q_NE - k_NE, q_NE * k_NE], dim=1))
            weighted_NE = (weight_N.unsqueeze(1) * k_NE).to(x_BX.dtype)
            seen_BE = torch.zeros_like(target_BE).index_add(0, impression_N, weighted_NE)
            parts += [seen_BE, seen_BE * target_BE]
        return self.mlp.trace(torch.cat(parts, dim=1))
