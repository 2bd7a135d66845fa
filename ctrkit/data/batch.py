"""One minibatch of impressions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True)
class Batch:
    """B impressions, encoded.

    Shapes: B impressions, F sparse features, D dense features.
    """

    sparse: KeyedJaggedTensor
    """Table rows (int64) of the F sparse features, in schema order, each a list an impression."""
    dense_BD: Tensor
    """Scaled dense features, float32; D may be 0."""
    label_B: Tensor
    """0.0 or 1.0; NaN where it is not known."""
    weight_B: Tensor
    """Weight of each impression in the loss, float32, as the log has it; 1 where the log has none."""
    origin_B: Tensor
    """Index of the row group that each impression was read from (`Loader.origin`), int64."""
    teachers: Mapping[str, Tensor] = field(default_factory=dict)
    """logit[B] of other models, by the column of the log that has their probability (`columns.teachers`)."""
    labelled_share: float | None = None
    """Weight of the impressions with a label among all of the batch, where several processes share it; None: these are
    all."""
    ahead: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)
    """What modules have made of the batch before its step, by module (`ctrkit.nn.embedding.Embedding.address`)."""

    def __len__(self) -> int:
        return len(self.label_B)

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return type(self)(
            sparse=self.sparse.to(device),
            dense_BD=self.dense_BD.to(device),
            label_B=self.label_B.to(device),
            weight_B=self.weight_B.to(device),
            origin_B=self.origin_B,
            teachers={name: logit_B.to(device) for name, logit_B in self.teachers.items()},
            labelled_share=self.labelled_share,
        )
