"""Embeddings and tower, joined: what predicts, and what is exported."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ctrkit.data.batch import Batch
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.tower import Tower, Vectors

Read = Callable[[Embedding], Vectors]
"""What an embedding gives of the batch at hand."""


class Network(nn.Module):
    """One logit an impression. Networks that share an embedding hold the same module.

    Args:
        embedding: of the features that there are when it serves.
        tower: reads the embedding's vector, then that of `privileged`.
        privileged: of features that only training has; a network with them cannot ship.
    """

    def __init__(self, embedding: Embedding, tower: Tower, privileged: Embedding | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.tower = tower
        self.privileged = privileged

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """All that it reads."""
        return (self.embedding,) if self.privileged is None else (self.embedding, self.privileged)

    @property
    def multiplications(self) -> int:
        """Of its tower, an impression."""
        return self.tower.multiplications

    def vectors(self, read: Read) -> Vectors:
        """What its tower reads."""
        vectors = read(self.embedding)
        if self.privileged is None:
            return vectors
        return Vectors(torch.cat([vectors.x_BX, read(self.privileged).x_BX], dim=1), vectors.lists)

    def plain(self) -> "Network":
        """The network as it serves: itself, unless its tower is a view of another one."""
        tower = self.tower.plain()
        return self if tower is self.tower else Network(self.embedding, tower, self.privileged)

    def forward(self, batch: Batch) -> Tensor:
        """logit[B] of a batch."""
        return self.logit(lambda embedding: embedding.vectors(batch))

    def logit(self, read: Read) -> Tensor:
        """logit[B] of the batch that its embeddings were looked up in."""
        vectors = self.vectors(read)
        logit_B: Tensor = self.tower(vectors.x_BX, vectors.lists)
        return logit_B


def read_embeddings(networks: Iterable[Network], batch: Batch) -> Read:
    """What the embeddings of some networks give of a batch, each looked up once, now."""
    found = {e: e.vectors(batch) for e in dict.fromkeys(e for network in networks for e in network.embeddings)}
    return found.__getitem__
