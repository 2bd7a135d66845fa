"""Towers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.nn.tower import Lists, Tower

Activation = Literal["relu", "leaky_relu", "prelu", "gelu", "silu", "tanh"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class BatchNorm(nn.BatchNorm1d):
    """Normalises a training batch of one row, the rest of an epoch, as in evaluation: one row has no variance."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalised."""
        if not (self.training and len(input) == 1):
            return super().forward(input)
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class MLP(Tower):
    """The plain tower: x[B, in_features] through hidden layers to one logit.

    Each hidden layer is linear, batch or layer norm if asked, activation, dropout. Weights start as Xavier normal
    (Glorot, Bengio, AISTATS 2010), biases as zero: torch's own default passes a several times smaller gradient to the
    tables, against which their L2 penalty then weighs several times more. The defaults of a recipe are the towers of
    Rocket Launching's Table 5 (Zhou et al., AAAI 2018): light 200-80, booster 720-360-240-180-90.

    Args:
        in_features: width of the input.
        hidden: widths of the hidden layers; none makes it logistic regression.
        activation: name of the non-linearity.
        dropout: probability that a hidden unit is dropped in training.
        batch_norm: normalise each hidden layer before its activation, a unit over the batch.
        layer_norm: the same, an impression over its units (Ba, Kiros, Hinton, arXiv 1607.06450, eq. 3); one or the
            other.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        *,
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if batch_norm and layer_norm:
            raise ValueError("a tower has batch norm or layer norm, not both")
        self.widths = (in_features, *hidden, 1)
        self.activation = activation
        layers: list[nn.Module] = []
        self._ends: list[int] = []  # of each hidden layer, in `layers`
        for width_in, width_out in zip(self.widths[:-2], self.widths[1:-1], strict=True):
            layers.append(nn.Linear(width_in, width_out))
            if batch_norm:
                layers.append(BatchNorm(width_out))
            if layer_norm:
                layers.append(nn.LayerNorm(width_out))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
            self._ends.append(len(layers))
        layers.append(nn.Linear(self.widths[-2], 1))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    @property
    def multiplications(self) -> int:
        """Multiplications an impression: the sum of the products of neighbouring widths, as Table 5 counts."""
        return sum(a * b for a, b in zip(self.widths[:-1], self.widths[1:], strict=True))

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(self.widths[1:-1])

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear layers, lowest first; the last one gives the logit."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def trace(self, x_BX: Tensor, lists: Mapping[str, Lists] | None = None) -> tuple[list[Tensor], Tensor]:
        """Hidden layers, under autocast in its precision, and the logit, in that of the weights."""
        hidden = self.hidden(x_BX)
        return hidden, single_logit(self.layers[-1], hidden[-1] if hidden else x_BX)

    def hidden(self, x_BX: Tensor) -> list[Tensor]:
        """Outputs [B, H] of the hidden layers."""
        found, x, start = [], x_BX, 0
        for end in self._ends:
            x = self.layers[start:end](x)
            found.append(x)
            start = end
        return found


def single_logit(layer: Callable[[Tensor], Tensor], x_BH: Tensor) -> Tensor:
    """logit[B] of a last layer, in the precision of its weights: one of 8 bits would tie impressions within a user."""
    if not torch.is_autocast_enabled(x_BH.device.type):
        return layer(x_BH).squeeze(1)
    with torch.autocast(x_BH.device.type, enabled=False):
        return layer(x_BH.float()).squeeze(1)
