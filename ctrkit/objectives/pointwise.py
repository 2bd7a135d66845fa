"""One network by itself, on the label."""

from torch import Tensor

from ctrkit.data.batch import Batch
from ctrkit.names import SINGLE
from ctrkit.nn.network import Network
from ctrkit.objectives.objective import Objective, batch_label_loss


class Pointwise(Objective):
    """Binary cross-entropy of one network: the baseline that every other method is measured against.

    Args:
        network: the only one.
        label_smoothing: share of the label that becomes one half (Szegedy et al., CVPR 2016, section 7).
    """

    def __init__(self, network: Network, *, label_smoothing: float = 0.0) -> None:
        super().__init__({SINGLE: network})
        self.label_smoothing = label_smoothing

    def losses(self, batch: Batch, step: int = 0, turn: int = 0) -> dict[str, Tensor]:
        """The label loss."""
        logit_B = self.inference_model()(batch)
        return {"label": batch_label_loss(logit_B, batch, self.label_smoothing)}

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        """The network's logit."""
        return {SINGLE: self.inference_model()(batch)}
