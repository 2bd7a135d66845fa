"""A light tower that learns under its booster, both from scratch."""

from typing import Literal

from torch import Tensor

from ctrkit.data.batch import Batch
from ctrkit.losses import binary_cross_entropy, logit_mse
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.objectives.objective import Objective

Route = Literal["none", "paper", "shared"]


class RocketLaunching(Objective):
    """BCE(light) + BCE(booster) + hint_weight (l - z)^2 over shared embedding tables (Zhou et al., AAAI 2018, eq. 1).

    Gradient routes, that is whose loss moves what:

        route     label(light)     label(booster)   hint
        none      light, shared    booster, shared  light, booster, shared
        paper     light, shared    booster, shared  light, shared: the booster's logit is detached (figure 2)
        shared    light            booster, shared  light: besides, the light tower reads the shared vector detached

    Args:
        embedding: the shared tables.
        light: the tower that ships.
        booster: the tower that teaches it.
        hint_weight: lambda, for one logit (half the lambda of a two-logit softmax gives the same gradient).
        route: gradient route.
    """

    def __init__(
        self, embedding: Embedding, light: MLP, booster: MLP, *, hint_weight: float = 1.0, route: Route = "shared"
    ) -> None:
        super().__init__({"light": Network(embedding, light), "booster": Network(embedding, booster)})
        self.hint_weight = hint_weight
        self.route = route

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        light, booster = self.networks()["light"], self.networks()["booster"]
        x_BX = booster.embedding(batch)
        booster_B = booster.tower(x_BX)
        light_B = light.tower(x_BX.detach() if self.route == "shared" else x_BX)
        return light_B, booster_B

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Both label losses and the weighted hint."""
        light_B, booster_B = self._forward(batch)
        teacher_B = booster_B if self.route == "none" else booster_B.detach()
        return {
            "light": binary_cross_entropy(light_B, batch.label_B),
            "booster": binary_cross_entropy(booster_B, batch.label_B),
            "hint": self.hint_weight * logit_mse(light_B, teacher_B),
        }

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        """Both logits, from one lookup."""
        light_B, booster_B = self._forward(batch)
        return {"light": light_B, "booster": booster_B}

    def inference_role(self) -> str:
        """The light network."""
        return "light"
