"""What a tower is to the networks that have one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Lists:
    """The embeddings of one sequence feature, one by one: those of an impression lie together."""

    row_NE: Tensor
    length_B: Tensor


@dataclass(frozen=True)
class Vectors:
    """What an embedding gives of a batch."""

    x_BX: Tensor
    """Pooled embeddings of all sparse features, then the dense features."""
    lists: Mapping[str, Lists]
    """Of the sequence features that a tower asked for (`Tower.reads_lists`)."""


Trace = tuple[list[Tensor], Tensor]
"""The outputs [B, H] of the hidden layers, lowest first, and the logit [B]."""


class Tower(nn.Module, ABC):
    """From the vector that the embeddings give an impression to one logit."""

    reads_lists: tuple[str, ...] = ()
    """Sequence features whose embeddings it reads one by one, not only pooled."""

    @property
    @abstractmethod
    def multiplications(self) -> int:
        """Multiplications an impression, embeddings not counted; lists counted at one element."""

    @property
    @abstractmethod
    def hidden_widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers that `trace` gives; the last one is what the logit is computed from."""

    @abstractmethod
    def trace(self, x_BX: Tensor, lists: Mapping[str, Lists] | None = None) -> tuple[list[Tensor], Tensor]:
        """The outputs [B, H] of the hidden layers, lowest first, and the logit [B]."""

    def forward(self, x_BX: Tensor, lists: Mapping[str, Lists] | None = None) -> Tensor:
        """logit[B]."""
        return self.trace(x_BX, lists)[1]

    def plain(self) -> "Tower":
        """The tower as it serves: itself, unless it is a view of another one."""
        return self
