"""One tower of every width: slimmable networks (Yu et al., ICLR 2019; Yu, Huang, ICCV 2019)."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import floor
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.nn.mlp import ACTIVATIONS, MLP, Activation, BatchNorm, single_logit
from ctrkit.nn.tower import Lists, Tower, Trace

Widths = float | Sequence[int]
"""A fraction of every hidden layer, or the channels of each."""
Norm = Literal["none", "layer_norm", "switchable_batch_norm", "universal_batch_norm", "shared_batch_norm"]
PlainNorm = nn.BatchNorm1d | nn.LayerNorm
PLAIN_NORMS = (nn.BatchNorm1d, nn.LayerNorm)


class SlimmableMLP(Tower):
    """An MLP that runs at any width: a narrower one is the first rows and columns of every matrix.

    The width is an argument of each call. Input and logit stay whole. `slice` is the plain tower of a width, with the
    same outputs. Norms, before the activation:

        none                    needs nothing: every width works as it was trained
        layer_norm              nor does this: over the width's channels; scale and shift shared, their first channels
        switchable_batch_norm   scale, shift and statistics of its own for each of `widths`; no other width works
        universal_batch_norm    scale and shift shared, their first channels; training keeps no statistics: those
                                of each of `widths` are measured afterwards (`ctrkit.nn.batch_norm_calibration`)
        shared_batch_norm       all shared, statistics too: what fails, for the ablation

    Args:
        in_features: width of the input.
        hidden: widths of the hidden layers at most; one or more.
        activation: name of the non-linearity.
        dropout: probability that a hidden unit is dropped in training.
        norm: see above.
        widths: that have statistics.
        multiple: channels of a fraction are rounded to the nearest multiple of it, which the hardware likes.
        rescale: a layer that reads c of its n inputs multiplies their sum by n / c.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        *,
        activation: Activation = "relu",
        dropout: float = 0.0,
        norm: Norm = "none",
        widths: Sequence[Widths] = (),
        multiple: int = 8,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("a slimmable tower needs a hidden layer")
        self.in_features, self.hidden, self.multiple, self.rescale = in_features, tuple(hidden), multiple, rescale
        self.norm: Norm = norm
        self._activation: Activation = activation
        self.widths = tuple(dict.fromkeys(self.channels(each) for each in widths))
        """Channels of those that have statistics."""
        ends = [in_features, *hidden, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(ends))
        for linear in self.layers:
            assert isinstance(linear, nn.Linear)
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        norms = [_norm(norm, index, self.widths, size) for index, size in enumerate(hidden)]
        self.norms = nn.ModuleList(each for each in norms if each is not None)
        self.activations = nn.ModuleList(ACTIVATIONS[activation]() for _ in hidden)
        self.dropout = nn.Dropout(dropout)

    @property
    def has_batch_norm(self) -> bool:
        """Whether a width needs statistics."""
        return self.norm not in ("none", "layer_norm")

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Of the full tower."""
        return self.hidden

    @property
    def multiplications(self) -> int:
        """Of the full tower."""
        return self.multiplications_at(None)

    def multiplications_at(self, widths: Widths | None) -> int:
        """Multiplications an impression at a width."""
        ends = (self.in_features, *self.channels(widths), 1)
        return sum(a * b for a, b in pairwise(ends))

    def channels(self, widths: Widths | None) -> tuple[int, ...]:
        """Channels of each hidden layer; None is the full width.

        Raises:
            ValueError: a fraction that is not in (0, 1], a layer without channels or with more than it has, or another
                number of layers.
        """
        if widths is None:
            return self.hidden
        if isinstance(widths, int | float):
            return tuple(self.rounded(widths, size) for size in self.hidden)
        found = tuple(widths)
        if len(found) != len(self.hidden) or any(not 1 <= c <= n for c, n in zip(found, self.hidden, strict=True)):
            raise ValueError(f"widths {list(found)} do not fit hidden layers of {list(self.hidden)}")
        return found

    def rounded(self, fraction: float, size: int) -> int:
        """Channels of a fraction of one layer."""
        if not 0 < fraction <= 1:
            raise ValueError(f"a width is a fraction in (0, 1], not {fraction:g}")
        return min(size, max(1, floor(fraction * size / self.multiple + 0.5)) * self.multiple)

    def trace(self, x_BX: Tensor, lists: Mapping[str, Lists] | None = None, *, widths: Widths | None = None) -> Trace:
        """Hidden layers and logit at a width, the full one if None."""
        return self.traces(x_BX, [widths])[0]

    def forward(
        self, x_BX: Tensor, lists: Mapping[str, Lists] | None = None, *, widths: Widths | None = None
    ) -> Tensor:
        """logit[B] at a width."""
        return self.trace(x_BX, lists, widths=widths)[1]

    def traces(self, x_BX: Tensor, widths: Sequence[Widths | None]) -> list[Trace]:
        """`trace` at several widths; the first layer, most of the cost, is computed once, at the widest of them.

        Its input is the same at all widths, so its channels are too: products, and in training batch statistics and
        dropped units.
        """
        channels = [self.channels(each) for each in widths]
        widest = max(each[0] for each in channels)
        first_BH = self._product(0, x_BX, widest)
        if self.norm in ("none", "shared_batch_norm") or (self.norm == "universal_batch_norm" and self.training):
            first_BH = self._normed(0, first_BH, self.hidden)
            return [self._from_first(first_BH[:, : each[0]], each) for each in channels]
        return [self._from_first(self._normed(0, first_BH[:, : each[0]], each), each) for each in channels]

    def _from_first(self, first_BH: Tensor, channels: tuple[int, ...]) -> Trace:
        hidden = [first_BH]
        for index in range(1, len(channels)):
            hidden.append(self._normed(index, self._product(index, hidden[-1], channels[index]), channels))
        return hidden, single_logit(partial(self._product, len(channels), channels=1), hidden[-1])

    def _product(self, index: int, x_BI: Tensor, channels: int) -> Tensor:
        weight_OI, bias_O = self._parameters_at(index, x_BI.shape[1], channels)
        return functional.linear(x_BI, weight_OI, bias_O)

    def _parameters_at(self, index: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        linear = self.layers[index]
        assert isinstance(linear, nn.Linear)
        weight_OI = linear.weight[:outputs, :inputs]
        if self.rescale and inputs < linear.in_features:
            weight_OI = weight_OI * (linear.in_features / inputs)
        return weight_OI, linear.bias[:outputs]

    def _normed(self, index: int, x_BH: Tensor, channels: tuple[int, ...]) -> Tensor:
        if self.norm != "none":
            x_BH = self.norms[index](x_BH, channels)
        found: Tensor = self.dropout(self.activations[index](x_BH))
        return found

    def slice(self, widths: Widths | None, *, statistics: bool = True) -> MLP:
        """The plain tower of a width: the same outputs, with weights of its own.

        Args:
            widths: which.
            statistics: False leaves those of its batch norm to `ctrkit.nn.batch_norm_calibration.calibrate_batch_norm`.

        Raises:
            ValueError: the width has no statistics.
        """
        channels, first = self.channels(widths), next(self.parameters())
        tower = MLP(
            self.in_features,
            channels,
            activation=self._activation,
            dropout=self.dropout.p,
            batch_norm=self.has_batch_norm,
            layer_norm=self.norm == "layer_norm",
        ).to(first.device, first.dtype)
        ends = (self.in_features, *channels, 1)
        norms = [layer for layer in tower.layers if isinstance(layer, PLAIN_NORMS)]
        activations = [layer for layer in tower.layers if isinstance(layer, ACTIVATIONS[self._activation])]
        with torch.no_grad():
            for index, linear in enumerate(tower.linears):
                weight_OI, bias_O = self._parameters_at(index, ends[index], ends[index + 1])
                linear.weight.copy_(weight_OI)
                linear.bias.copy_(bias_O)
            for norm, own in zip(norms, self.norms, strict=True):
                assert isinstance(own, SlimmableNorm)
                own.copy_to(norm, channels, statistics=statistics)
        for activation, mine in zip(activations, self.activations, strict=True):
            activation.load_state_dict(mine.state_dict())
        return tower.train(self.training)


class FixedWidth(Tower):
    """A slimmable tower at one of its widths: a view, without weights of its own."""

    def __init__(self, slimmable: SlimmableMLP, widths: Widths | None) -> None:
        super().__init__()
        self.slimmable, self.widths = slimmable, slimmable.channels(widths)

    @property
    def multiplications(self) -> int:
        """At its width."""
        return self.slimmable.multiplications_at(self.widths)

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Its channels."""
        return self.widths

    def trace(self, x_BX: Tensor, lists: Mapping[str, Lists] | None = None) -> Trace:
        """At its width."""
        return self.slimmable.trace(x_BX, lists, widths=self.widths)

    def plain(self) -> MLP:
        """Its slice."""
        return self.slimmable.slice(self.widths)


# --- norms


class SlimmableNorm(nn.Module):
    """The norm of one hidden layer at the widths of a tower."""

    def forward(self, x_BH: Tensor, channels: tuple[int, ...]) -> Tensor:
        """Normalised, of a tower that runs at these widths."""
        raise NotImplementedError

    def copy_to(self, norm: PlainNorm, channels: tuple[int, ...], *, statistics: bool) -> None:
        """What it is at a width, into a plain one."""
        raise NotImplementedError


class _LayerNorm(SlimmableNorm):
    """Over the channels of the width."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x_BH: Tensor, channels: tuple[int, ...]) -> Tensor:
        size = x_BH.shape[1]
        return functional.layer_norm(x_BH, (size,), self.weight[:size], self.bias[:size])

    def copy_to(self, norm: PlainNorm, channels: tuple[int, ...], *, statistics: bool) -> None:
        norm.weight.copy_(self.weight[: len(norm.weight)])
        norm.bias.copy_(self.bias[: len(norm.bias)])


class _Switchable(SlimmableNorm):
    """One batch norm a width."""

    def __init__(self, index: int, widths: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self._place = {each: place for place, each in enumerate(widths)}
        self.members = nn.ModuleList(BatchNorm(each[index]) for each in widths)

    def _member(self, channels: tuple[int, ...]) -> BatchNorm:
        found = self.members[_place(self._place, channels)]
        assert isinstance(found, BatchNorm)
        return found

    def forward(self, x_BH: Tensor, channels: tuple[int, ...]) -> Tensor:
        found: Tensor = self._member(channels)(x_BH)
        return found

    def copy_to(self, norm: PlainNorm, channels: tuple[int, ...], *, statistics: bool) -> None:
        norm.load_state_dict(self._member(channels).state_dict())


class SharedNorm(SlimmableNorm):
    """Scale and shift of all widths; statistics of all of them too, or of each width that is listed."""

    mean_H: Tensor
    variance_H: Tensor

    def __init__(self, index: int, size: int, widths: Sequence[tuple[int, ...]] | None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self._place = None if widths is None else {each: place for place, each in enumerate(widths)}
        """None: all have the same statistics."""
        for name, sizes in self._sizes(size, [each[index] for each in widths or ()]):
            self.register_buffer(f"mean_{name}", torch.zeros(sizes))
            self.register_buffer(f"variance_{name}", torch.ones(sizes))

    def _sizes(self, size: int, listed: Sequence[int]) -> Iterable[tuple[str, int]]:
        return [("all", size)] if self._place is None else [(str(place), each) for place, each in enumerate(listed)]

    def statistics(self, channels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mean and variance of a width, in place."""
        name = "all" if self._place is None else str(_place(self._place, channels))
        return self.get_buffer(f"mean_{name}"), self.get_buffer(f"variance_{name}")

    def forward(self, x_BH: Tensor, channels: tuple[int, ...]) -> Tensor:
        """By the batch in training; else by the statistics of the width."""
        size = x_BH.shape[1]
        weight_H, bias_H = self.weight[:size], self.bias[:size]
        kept = self.statistics(channels) if self._place is None or not self.training else (None, None)
        mean_H, variance_H = (None if each is None else each[:size] for each in kept)
        if self.training and len(x_BH) == 1:  # one row has no variance: it says nothing
            return bias_H + 0 * weight_H * x_BH
        return functional.batch_norm(x_BH, mean_H, variance_H, weight_H, bias_H, training=self.training)

    def copy_to(self, norm: PlainNorm, channels: tuple[int, ...], *, statistics: bool) -> None:
        """The first channels."""
        assert isinstance(norm, nn.BatchNorm1d)
        size = norm.num_features
        norm.weight.copy_(self.weight[:size])
        norm.bias.copy_(self.bias[:size])
        if not statistics:
            return
        mean_H, variance_H = self.statistics(channels)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean_H[:size])
        norm.running_var.copy_(variance_H[:size])


def _norm(norm: Norm, index: int, widths: Sequence[tuple[int, ...]], size: int) -> SlimmableNorm | None:
    match norm:
        case "none":
            return None
        case "layer_norm":
            return _LayerNorm(size)
        case "switchable_batch_norm":
            return _Switchable(index, widths)
        case "universal_batch_norm":
            return SharedNorm(index, size, widths)
        case "shared_batch_norm":
            return SharedNorm(index, size, None)


def _place(places: Mapping[tuple[int, ...], int], channels: tuple[int, ...]) -> int:
    if channels not in places:
        raise ValueError(
            f"the batch norms have no statistics of the widths {list(channels)}; they have them of "
            f"{', '.join(map(str, map(list, places))) or 'none'}"
        )
    return places[channels]
