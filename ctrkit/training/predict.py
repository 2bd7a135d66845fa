"""Predictions of a trained objective on a part of the log."""

from itertools import chain, repeat

import numpy as np
import numpy.typing as npt
import torch

from ctrkit.data.loader import Loader
from ctrkit.errors import UserError
from ctrkit.names import MEAN
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
    training = objective.training
    objective.eval()
    parts: dict[str, list[npt.NDArray[np.float32]]] = {role: [] for role in objective.networks()}
    try:
        for batch in chain(loader.epoch(), repeat(loader.empty(), more)):
            for role, logit_B in objective.logits(batch if device is None else batch.to(device)).items():
                parts[role].append(logit_B.float().cpu().numpy())
    finally:
        objective.train(training)
    # in double precision, so that large logits do not all become 1.0 and tie
    logits = {role: np.concatenate(part).astype(np.float64) for role, part in parts.items()}
    if objective.mean_of:
        logits[MEAN] = np.mean([logits[role] for role in objective.mean_of], axis=0)
    gathered = ranks.gather(logits)
    if gathered is not None and ranks.size > 1:
        logits = {role: np.concatenate([part[role] for part in gathered]) for role in logits}
    if any(np.isnan(logit).any() for logit in logits.values()):  # no value of a prepared log is
        raise UserError("a logit is not a number: the weights have diverged; lower train.lr or train.table_lr")
    return {role: _sigmoid(logit) for role, logit in logits.items()}


def _sigmoid(logit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    small = np.exp(-np.abs(logit))
    return np.where(logit >= 0, 1.0, small) / (1.0 + small)
