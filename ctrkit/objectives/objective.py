"""What a learning method is to the trainer."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from ctrkit.data.batch import Batch
from ctrkit.losses import label_loss
from ctrkit.names import MEAN, tower_name
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.mean import mean_network
from ctrkit.nn.network import Network
from ctrkit.nn.tower import Tower


def batch_label_loss(logit_B: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Label loss[B] of one network: `ctrkit.losses.label_loss`."""
    return label_loss(logit_B, batch.label_B, smoothing, weight_B=batch.weight_B, labelled_share=batch.labelled_share)


class Objective(nn.Module, ABC):
    """Which networks train together, by which losses, and which one ships.

    Embeddings and towers are registered here, each once however many networks hold it, so that a checkpoint has every
    table once and sharding finds it at one place; the networks themselves are views of them. An objective's own buffers
    are kept in checkpoints too.
    Every objective passes the contract tests in tests/objectives/test_contract.py.

    Args:
        networks: every network that can predict, by its role; one network is `SINGLE`.
        shipped: roles that may ship; the first if not given.
        towers: what is trained, by name, where networks are views of one tower.
    """

    mean_of: tuple[str, ...] = ()
    """Roles whose mean logit is judged too, and may ship, by the role `MEAN`."""

    turns = 1
    """Steps that it takes on each batch, one after another; each has losses of its own."""

    calibration_rows = 0
    """Rows of the training part that `calibrate_batch_norm` wants before an evaluation; 0: it has nothing to do."""

    def __init__(
        self,
        networks: Mapping[str, Network],
        shipped: Sequence[str] = (),
        *,
        towers: Mapping[str, Tower] | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(
            {id(e): e for network in networks.values() for e in network.embeddings}.values()
        )
        own = {tower_name(role): network.tower for role, network in networks.items()}
        self.towers = nn.ModuleDict()
        for name, tower in (own if towers is None else dict(towers)).items():
            if hasattr(self.towers, name):
                raise ValueError(f"a network cannot be called '{name}', which torch uses; rename it")
            self.towers[name] = tower
        self._networks = dict(networks)
        self._shipped = tuple(shipped) or (next(iter(networks)),)

    @abstractmethod
    def losses(self, batch: Batch, step: int = 0, turn: int = 0) -> dict[str, Tensor]:
        """The terms of the loss, by name: loss[B], one value an impression, already multiplied by their weights.

        The trainer minimises the weighted mean over the batch of their sum; kept apart so that each can be logged.

        Args:
            batch: in training.
            step: batches before it.
            turn: which of `turns`.
        """

    def forward(self, batch: Batch, step: int = 0, turn: int = 0) -> dict[str, Tensor]:
        """The losses: what a wrapper of the module calls."""
        return self.losses(batch, step, turn)

    @abstractmethod
    def logits(self, batch: Batch) -> dict[str, Tensor]:
        """logit[B] of every network in `networks`, sharing what they share."""

    def tables(self) -> list[Embedding]:
        """Every embedding, each once."""
        return [embedding for embedding in self.embeddings if isinstance(embedding, Embedding)]

    def tower_name(self, role: str) -> str:
        """Name in `towers` of what a network's tower is, or is a view of."""
        return tower_name(role)

    def calibrate_batch_norm(self, batches: Iterable[Batch]) -> None:
        """Measure the statistics that training leaves out, on `calibration_rows` of its rows, before an evaluation."""

    def networks(self) -> Mapping[str, Network]:
        """Every network that can predict, by its role."""
        return self._networks

    def candidates(self) -> tuple[str, ...]:
        """Roles of the networks that may ship: early stopping watches the best of them."""
        return self._shipped

    def inference_role(self) -> str:
        """Role of the network that ships."""
        return self._shipped[0]

    def ship(self, role: str) -> None:
        """Choose the network that ships, one of `candidates`."""
        assert role in self._shipped, role
        self._shipped = (role, *(other for other in self._shipped if other != role))

    def network(self, role: str) -> Network:
        """A network by its role; for `MEAN` a new one that is the mean of those in `mean_of`."""
        if role == MEAN and self.mean_of:
            return mean_network([self.networks()[each] for each in self.mean_of])
        return self.networks()[role]

    def inference_model(self) -> Network:
        """The network that ships."""
        return self.network(self.inference_role())


def scaled(value: Tensor, share: float) -> Tensor:
    """The value, with a share of its gradient."""
    return value.detach() if share == 0 else share * value + (1 - share) * value.detach()
