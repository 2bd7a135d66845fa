"""Networks, and statistics of networks, that stand still."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ctrkit.data.batch import Batch
from ctrkit.nn.network import Network, read_embeddings


@dataclass(frozen=True)
class Traced:
    """What a network has made of a batch."""

    hidden: list[Tensor]
    logit_B: Tensor


class Frozen(nn.Module):
    """Trained networks that only teach: always in evaluation mode, without gradients."""

    def __init__(self, networks: Mapping[str, Network]) -> None:
        super().__init__()
        self._names = tuple(networks)
        self._members = nn.ModuleList(networks.values())
        self.requires_grad_(False)
        self.train(False)

    def networks(self) -> dict[str, Network]:
        """All of them, by name."""
        members = zip(self._names, self._members, strict=True)
        return {name: network for name, network in members if isinstance(network, Network)}

    def traces(self, batch: Batch) -> dict[str, Traced]:
        """What they make of a batch."""
        members = self.networks()
        read = read_embeddings(members.values(), batch)
        given = {name: network.vectors(read) for name, network in members.items()}
        return {
            name: Traced(*network.tower.trace(given[name].x_BX, given[name].lists)) for name, network in members.items()
        }

    def train(self, mode: bool = True) -> "Frozen":
        """Stays as it is."""
        return super().train(False)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch as ever, but their running statistics learn nothing from it."""
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
