"""Embedding and tower, joined: what predicts, and what is exported."""

from torch import Tensor, nn

from ctrkit.data.batch import Batch
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.mlp import MLP


class Network(nn.Module):
    """One logit an impression. Networks that share an embedding hold the same module."""

    def __init__(self, embedding: Embedding, tower: MLP) -> None:
        super().__init__()
        self.embedding = embedding
        self.tower = tower

    def forward(self, batch: Batch) -> Tensor:
        """logit[B] of a batch."""
        logit_B: Tensor = self.tower(self.embedding(batch))
        return logit_B
