"""One network by itself, on the label."""

from torch import Tensor

from ctrkit.data.batch import Batch
from ctrkit.losses import binary_cross_entropy
from ctrkit.nn.network import Network
from ctrkit.objectives.objective import Objective


class Pointwise(Objective):
    """Binary cross-entropy of one network: the baseline that every other method is measured against."""

    def __init__(self, network: Network) -> None:
        super().__init__({"": network})

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The label loss."""
        return {"label": binary_cross_entropy(self.inference_model()(batch), batch.label_B)}

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        """The network's logit."""
        return {"": self.inference_model()(batch)}

    def inference_role(self) -> str:
        """The only one."""
        return ""
