"""Predictions of trained networks on a part of the log."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ctrkit.data.batch import Batch
from ctrkit.data.loader import Loader
from ctrkit.errors import UserError
from ctrkit.names import MEAN
from ctrkit.nn.network import Network, read_embeddings
from ctrkit.objectives.objective import Objective
from ctrkit.training.ranks import Ranks


@torch.no_grad()
def predict(
    objective: Objective, loader: Loader, device: torch.device | None = None, ranks: Ranks | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    """Click probability[rows] of every network of an objective, by role, in the order of the log.

    The objective is in evaluation mode meanwhile, and as it was afterwards. Several processes call it together, each
    with its part of the rows (`Loader(part=...)`); the first one gets all of them, the others their own.

    Raises:
        UserError: a logit is no number.
    """
    ranks = ranks or Ranks()
    more = ranks.largest(loader.num_batches) - loader.num_batches
    batches = chain(loader.epoch(), repeat(loader.empty(), more))
    with _evaluating([objective]):
        logits = _logits(
            objective.logits, objective.networks(), (batch if device is None else batch.to(device) for batch in batches)
        )
    if objective.mean_of:
        logits[MEAN] = np.mean([logits[role] for role in objective.mean_of], axis=0)
    gathered = ranks.gather(logits)
    if gathered is not None and ranks.size > 1:
        logits = {role: np.concatenate([part[role] for part in gathered]) for role in logits}
    return _probabilities(logits)


@torch.no_grad()
def predict_networks(networks: Mapping[str, Network], loader: Loader) -> dict[str, npt.NDArray[np.float64]]:
    """Click probability[rows] of any networks, by the names given, in the order of the log.

    Each embedding is looked up once, however many networks hold it. Their modes are as with `predict`.

    Raises:
        UserError: a logit is no number.
    """

    def logits(batch: Batch) -> dict[str, Tensor]:
        read = read_embeddings(networks.values(), batch)
        return {name: network.logit(read) for name, network in networks.items()}

    with _evaluating(networks.values()):
        return _probabilities(_logits(logits, networks, loader.epoch()))


@contextmanager
def _evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """In evaluation mode meanwhile, and each of their parts as it was afterwards."""
    whole = list(modules)
    before = {part: part.training for module in whole for part in module.modules()}
    for module in whole:
        module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


def _logits(
    logits: Callable[[Batch], Mapping[str, Tensor]], names: Iterable[str], batches: Iterable[Batch]
) -> dict[str, npt.NDArray[np.float64]]:
    """logit[rows] by name; in double precision, so that large ones do not all become 1.0 as probabilities, and tie."""
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    for batch in batches:
        for name, logit_B in logits(batch).items():
            parts[name].append(logit_B.float().cpu().numpy())
    return {name: np.concatenate(part).astype(np.float64) for name, part in parts.items()}


def _probabilities(logits: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, npt.NDArray[np.float64]]:
    if any(np.isnan(logit).any() for logit in logits.values()):  # no value of a prepared log is
        raise UserError("a logit is not a number: the weights have diverged; lower train.lr or train.table_lr")
    return {name: _sigmoid(logit) for name, logit in logits.items()}


def _sigmoid(logit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    small = np.exp(-np.abs(logit))
    return np.where(logit >= 0, 1.0, small) / (1.0 + small)
