"""Deep & Cross Network v2."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ctrkit.nn.mlp import MLP, Activation, single_logit
from ctrkit.nn.tower import Lists, Tower


class DCNv2(Tower):
    """Cross layers beside an MLP, joined by one linear layer (Wang et al., WWW 2021, section 3, parallel).

    x_(l+1) = x_0 * (W_l x_l + b_l) + x_l (eq. 1), W of full rank.

    Args:
        in_features: width of the input.
        hidden: of the MLP.
        cross_layers: number of cross layers.
        activation: of the MLP, as are `dropout` and `batch_norm`.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        *,
        cross_layers: int = 3,
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.crosses = nn.ModuleList(nn.Linear(in_features, in_features) for _ in range(cross_layers))
        self.deep = MLP(in_features, hidden, activation=activation, dropout=dropout, batch_norm=batch_norm)
        self.deep.layers[-1] = nn.Identity()  # the joint layer below takes its place
        self.head = nn.Linear(in_features + self.deep.widths[-2], 1)
        for cross in self.crosses:
            assert isinstance(cross, nn.Linear)
            nn.init.xavier_normal_(cross.weight)
            nn.init.zeros_(cross.bias)
        nn.init.xavier_normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def multiplications(self) -> int:
        """Of crosses (their product with x_0 too), MLP and joint layer."""
        width = self.deep.widths[0]
        deep = self.deep.multiplications - self.deep.widths[-2]
        return len(self.crosses) * (width * width + width) + deep + self.head.in_features

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Of the MLP, then of the joint layer's input."""
        return (*self.deep.hidden_widths, self.head.in_features)

    def trace(self, x_BX: Tensor, lists: Mapping[str, Lists] | None = None) -> tuple[list[Tensor], Tensor]:
        """The MLP's hidden layers, then crosses and MLP joined; and the logit."""
        crossed_BX = x_BX
        for cross in self.crosses:
            crossed_BX = x_BX * cross(crossed_BX) + crossed_BX
        hidden = self.deep.hidden(x_BX)
        joined = torch.cat([crossed_BX, hidden[-1] if hidden else x_BX], dim=1)
        return [*hidden, joined], single_logit(self.head, joined)
