"""What serving needs of a network: tables, what reads them, and layers; numpy alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ctrkit.export.tables import Stored
from ctrkit.graph import SIDES, SideFeatures, side_features
from ctrkit.schema import Schema, SequenceFeature, Side

Float32Array = npt.NDArray[np.float32]
Activation = Literal["Relu", "LeakyRelu", "PRelu", "Gelu", "Silu", "Tanh"]


@dataclass(frozen=True)
class Reader:
    """What one feature reads: rows of the stacked table of a width, pooled if it has a list of them."""

    dim: int
    first_row: int
    """Where its own table begins in the stack."""
    pooling: Literal["mean", "sum"] | None


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift, of each row over its units."""

    scale_O: Float32Array
    shift_O: Float32Array
    epsilon: float


@dataclass(frozen=True)
class Layer:
    """activation(norm(x W + b))."""

    weight_IO: Float32Array
    bias_O: Float32Array
    activation: Activation | None = None
    slope: Float32Array | None = None
    """Of PReLU and leaky ReLU below zero: [1], or one a unit."""
    norm: LayerNorm | None = None


@dataclass(frozen=True)
class Crosses:
    """Cross layers beside the MLP (`ctrkit.nn.dcn_v2`), x in the order of `NetworkArrays.order`.

    The first of them stands in front of the MLP's first layer, as one layer with it; its bias is larger by one, since
    x_0 * (W x_0 + b) + x_0 = x_0 * (W x_0 + b + 1).
    """

    layers: tuple[Layer, ...]
    """After the first."""
    weight_X1: Float32Array
    """Of the last one's output in the logit."""


@dataclass(frozen=True)
class Attention:
    """An ad's feature that looks at a list (`ctrkit.nn.target_attention`)."""

    target: str
    list: SequenceFeature
    unit: tuple[Layer, ...]
    """From q, k, q - k and q * k to the weight of k."""
    weight_IO: Float32Array
    """Of the MLP's first layer, for the attended list and its product with the target."""


@dataclass(frozen=True)
class NetworkArrays:
    """All that serving needs of a network."""

    schema: Schema
    stacks: Mapping[int, Stored]
    """Tables of one width, one below the other, as they are kept."""
    readers: Mapping[str, Reader]
    """By sparse feature."""
    layers: tuple[Layer, ...]
    """The first takes the parts that `first_layer` says; the last gives one logit."""
    rows: Mapping[str, slice]
    """Rows of the first layer's weight that each feature meets."""
    crosses: Crosses | None = None
    attentions: tuple[Attention, ...] = ()
    scope: str = ""
    """What the names of the layers' weights begin with, where several networks are over the same tables."""

    def side(self, side: Side) -> SideFeatures:
        """The features of one side."""
        return side_features(self.schema, side)

    def side_weight(self, side: Side, *, dense: bool | None = None) -> Float32Array:
        """Rows of the first layer's weight for one side, in the order of `names`.

        Args:
            side: whose.
            dense: only those of the dense features, or only the others.
        """
        weight_IO = self.layers[0].weight_IO
        return np.concatenate([weight_IO[self.rows[name]] for name in self.names(side, dense=dense)] or [weight_IO[:0]])

    def names(self, side: Side, *, dense: bool | None = None) -> list[str]:
        """Features of a side in the order in which the graphs join what they give; `dense` as for `side_weight`."""
        features = self.side(side)
        names = [] if dense else [*self.by_width(features.single), *(f.name for f in features.sequences)]
        return names + ([] if dense is False else list(features.dense))

    def width(self, names: Iterable[str]) -> int:
        """Of what some features give, joined."""
        return sum(self.rows[name].stop - self.rows[name].start for name in names)

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """Columns of x, int64 [X], in the order in which the graphs join all sides."""
        columns = np.arange(max((rows.stop for rows in self.rows.values()), default=0))
        return np.concatenate([columns[self.rows[name]] for side in self.sides for name in self.names(side)])

    @property
    def kept(self) -> list[str]:
        """Features of an ad whose values the layers after the first read too, so that an item table has them."""
        if self.crosses is not None:
            return self.names("item")
        looking = {each.target for each in self.attentions if each.list.side != "item"}
        return [name for name in self.names("item") if name in looking]

    @property
    def part_width(self) -> int:
        """Numbers that an item table keeps of an ad: what it gives for `kept`, and its part of the first layer."""
        return self.width(self.kept) + len(self.layers[0].bias_O)

    def by_width(self, names: tuple[str, ...]) -> list[str]:
        """Features with one id, those of one width together: each width is one look-up."""
        return sorted(names, key=lambda name: self.readers[name].dim)

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that have a feature."""
        return tuple(side for side in SIDES if self.schema.side(side))
