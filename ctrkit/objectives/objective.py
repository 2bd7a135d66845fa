"""What a learning method is to the trainer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from ctrkit.data.batch import Batch
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.network import Network


class Objective(nn.Module, ABC):
    """Which networks train together, by which losses, and which one ships.

    Embeddings and towers are registered here, each once however many networks hold it, so that a checkpoint has every
    table once and sharding finds it at one place; the networks themselves are views of them.
    Every objective passes the contract tests in tests/objectives/test_contract.py.

    Args:
        networks: every network that can predict, by its role; an objective with one network calls it "".
    """

    def __init__(self, networks: Mapping[str, Network]) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(
            {id(network.embedding): network.embedding for network in networks.values()}.values()
        )
        self.towers = nn.ModuleDict({role or "tower": network.tower for role, network in networks.items()})
        self._networks = dict(networks)

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss, by name: loss[B], one value an impression, already multiplied by their weights.

        The trainer minimises the weighted mean over the batch of their sum; kept apart so that each can be logged.
        """

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses: what a wrapper of the module calls."""
        return self.losses(batch)

    @abstractmethod
    def logits(self, batch: Batch) -> dict[str, Tensor]:
        """logit[B] of every network in `networks`, sharing what they share."""

    def tables(self) -> list[Embedding]:
        """Every embedding, each once."""
        return [embedding for embedding in self.embeddings if isinstance(embedding, Embedding)]

    def networks(self) -> Mapping[str, Network]:
        """Every network that can predict, by its role."""
        return self._networks

    @abstractmethod
    def inference_role(self) -> str:
        """Role of the network that ships: the one that early stopping watches and that is exported."""

    def inference_model(self) -> Network:
        """The network that ships."""
        return self.networks()[self.inference_role()]
