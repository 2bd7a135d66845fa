"""What serving needs of a network: tables, what reads them, and layers; numpy alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ctrkit.export.tables import Stored
from ctrkit.graph import SIDES, SideFeatures, side_features
from ctrkit.schema import Schema, Side

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
    scope: str = ""
    """What the names of the layers' weights begin with, where several networks are over the same tables."""

    def side(self, side: Side) -> SideFeatures:
        """The features of one side."""
        return side_features(self.schema, side)

    def side_weight(self, side: Side, *, dense: bool | None = None) -> Float32Array:
        """Rows of the first layer's weight for one side, in the order in which `serving_graphs` joins its parts.

        Args:
            side: whose.
            dense: only those of the dense features, or only the others.
        """
        features = self.side(side)
        names = [] if dense else [*self.by_width(features.single), *(f.name for f in features.sequences)]
        names += [] if dense is False else features.dense
        weight_IO = self.layers[0].weight_IO
        return np.concatenate([weight_IO[self.rows[name]] for name in names] or [weight_IO[:0]])

    def by_width(self, names: tuple[str, ...]) -> list[str]:
        """Features with one id, those of one width together: each width is one look-up."""
        return sorted(names, key=lambda name: self.readers[name].dim)

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that have a feature."""
        return tuple(side for side in SIDES if self.schema.side(side))
