"""A tower that starts from a slice of a slimmable one: what AutoSlim found, to be tuned."""

from collections.abc import Iterable

import torch

from ctrkit.data.batch import Batch
from ctrkit.nn.batch_norm_calibration import calibrated_slice
from ctrkit.objectives.objective import Objective
from ctrkit.objectives.slimmable import Slimmable


@torch.no_grad()
def start_from_slice(objective: Objective, source: Slimmable, calibration: Iterable[Batch]) -> None:
    """Give a network the tables of a slimmable model and its tower at the network's widths.

    Args:
        objective: of one network, whose tower is no wider; changed in place.
        source: trained.
        calibration: rows for batch norm; not looked at without.
    """
    network, embedding = objective.inference_model(), source.inference_model().embedding
    known = [embedding.vectors(batch).x_BX for batch in calibration] if source.tower.has_batch_norm else None
    sliced = calibrated_slice(source.tower, network.tower.hidden_widths, known)
    # by order: dropout, of which each may have its own, has no weights but counts in the names
    names, values = network.tower.state_dict().keys(), sliced.state_dict().values()
    network.tower.load_state_dict(dict(zip(names, values, strict=True)))
    tables = embedding.table_weights()
    for part in network.embedding.parts():
        rows = tables[part.table][part.first_row : part.first_row + part.rows]
        part.rows_of(part.stack.detach()).copy_(rows)
