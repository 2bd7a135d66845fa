"""One tower trained at many widths: slimmable and universally slimmable networks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ctrkit.config.models import CALIBRATION_ROWS
from ctrkit.data.batch import Batch
from ctrkit.losses import mean_probability, soft_bce
from ctrkit.names import SLIMMABLE
from ctrkit.nn.batch_norm_calibration import calibrate_widths
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.network import Network, Read, read_embeddings
from ctrkit.nn.slimmable import FixedWidth, SlimmableMLP, Widths
from ctrkit.objectives.hint import Hint
from ctrkit.objectives.objective import Objective, batch_label_loss, scaled

Sampling = Literal["sandwich", "list", "random"]


class Slimmable(Objective):
    """The losses of one tower at several widths, a step for all of them.

    sandwich    the largest width, the smallest, and others drawn anew for every batch: universally slimmable networks
                (Yu, Huang, ICCV 2019, section 3.2)
    list        the listed widths: slimmable networks (Yu et al., ICLR 2019, algorithm 1)
    random      all widths drawn, for the ablation

    The widest of a step learns from the label, the narrower ones from its probability, detached, by cross-entropy:
    in-place distillation (ICCV 2019, section 4); from the label too, or instead, as the weights say. The sum of the
    widths' losses is divided by the sum of their label weights, as far as they reach the tables: those then feel
    labels as loudly as one tower alone lets them, against their L2 penalty. Boosters, trained along, give every width
    their hint (Rocket Launching).

    Losses by name: `widest`, `narrower`, and with boosters their roles and `hint`.

    Args:
        embedding: what the tower reads.
        tower: slimmable.
        widths: that are evaluated and may ship, by role; of `list` also those that are trained.
        sampling: see above. Widths are drawn in training only: in evaluation the losses are those of `widths`.
        samples: widths a step, of `sandwich` and `random`.
        non_uniform: drawn widths have a fraction of its own for every layer.
        distillation: weight of what the narrower widths learn from the widest. The paper's is 1; the widths share
            weights, and the louder the narrower ones are, the more slowly the widest learns (docs/log.md).
        label_weight: of the label in the losses of the narrower widths.
        narrow_to_tables: share of the narrower widths' gradient that reaches the tables.
        boosters: that teach, by role.
        hint: of the boosters to every width; of several boosters, their mean probability teaches.
        gradient_to_tables: share of the gradient of all widths that reaches the tables; 0 leaves them to the boosters.
        label_smoothing: share of the label that becomes one half.
        calibration_rows: rows on which a universally slimmable batch norm is calibrated.
        shipped: role of the width that ships; the widest if not given.
        seed: with the number of a step it says which widths are drawn, in every process that trains and in one that
            goes on.
    """

    def __init__(
        self,
        embedding: Embedding,
        tower: SlimmableMLP,
        widths: Mapping[str, Widths],
        *,
        sampling: Sampling = "sandwich",
        samples: int = 4,
        non_uniform: bool = False,
        distillation: float = 0.3,
        label_weight: float = 0.0,
        narrow_to_tables: float = 0.0,
        boosters: Mapping[str, Network] | None = None,
        hint: Hint | None = None,
        gradient_to_tables: float = 1.0,
        label_smoothing: float = 0.0,
        calibration_rows: int = CALIBRATION_ROWS,
        shipped: str | None = None,
        seed: int = 0,
    ) -> None:
        ordered = sorted(widths, key=lambda role: tower.multiplications_at(widths[role]))
        views = {role: Network(embedding, FixedWidth(tower, widths[role])) for role in ordered}
        self.boosters = tuple(boosters or ())
        super().__init__(
            {**views, **(boosters or {})},
            (shipped or ordered[-1],),
            towers={SLIMMABLE: tower, **{role: network.tower for role, network in (boosters or {}).items()}},
        )
        if tower.norm == "switchable_batch_norm" and sampling != "list":
            raise ValueError('switchable batch norm knows the listed widths only: sampling = "list" goes with it')
        if sampling == "sandwich" and samples < 2:
            raise ValueError("the sandwich rule takes 2 samples at least: the largest width and the smallest")
        self.sampling: Sampling = sampling
        self.samples, self.non_uniform, self._seed = samples, non_uniform, seed
        self.widths = tuple(tower.channels(widths[role]) for role in reversed(ordered))
        """Widest first."""
        self._check_apart({role: tower.channels(widths[role]) for role in ordered})
        fractions = [width for width in widths.values() if isinstance(width, int | float)]
        self.range = (min(fractions, default=0.25), max(fractions, default=1.0))
        self.distillation, self.label_weight = distillation, label_weight
        self.narrow_to_tables, self.gradient_to_tables = narrow_to_tables, gradient_to_tables
        self.hint, self.label_smoothing = hint or Hint(), label_smoothing
        if tower.norm == "universal_batch_norm":
            self.calibration_rows = calibration_rows

    def _check_apart(self, channels: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse widths that rounding has made one: they would be trained, and told, as if they were several."""
        for each in self.widths:
            same = [role for role, widths in channels.items() if widths == each]
            if len(same) > 1:
                raise ValueError(
                    f"{' and '.join(sorted(same))} are one tower, {list(each)}: channels are rounded to multiples of "
                    f"{self.tower.multiple}; give a lower `multiple`, wider hidden layers, or other `widths`"
                )

    @property
    def tower(self) -> SlimmableMLP:
        """The one."""
        found = self.towers[SLIMMABLE]
        assert isinstance(found, SlimmableMLP)
        return found

    def tower_name(self, role: str) -> str:
        """The same for all widths."""
        return role if role in self.boosters else SLIMMABLE

    # --- widths of a step

    def step_widths(self, step: int) -> list[tuple[int, ...]]:
        """Channels of the widths of a step, widest first."""
        if self.sampling == "list" or not self.training:
            return list(self.widths)
        rng = np.random.default_rng((self._seed, step))
        if self.sampling == "random":
            drawn = [self._drawn(rng) for _ in range(self.samples)]
            return sorted(drawn, key=self.tower.multiplications_at, reverse=True)
        return [self.widths[0], *(self._drawn(rng) for _ in range(self.samples - 2)), self.widths[-1]]

    def _drawn(self, rng: np.random.Generator) -> tuple[int, ...]:
        low, high = self.range
        sizes = self.tower.hidden
        fractions = rng.uniform(low, high, len(sizes) if self.non_uniform else 1).tolist()
        return tuple(
            self.tower.rounded(fractions[index if self.non_uniform else 0], size) for index, size in enumerate(sizes)
        )

    # --- losses

    def losses(self, batch: Batch, step: int = 0, turn: int = 0) -> dict[str, Tensor]:
        """Of the widths, and of the boosters."""
        read = read_embeddings(self.networks().values(), batch)
        widest_B, *narrower = self._logits(read(self._embedding).x_BX, self.step_widths(step))
        reaches = self.narrow_to_tables if self.gradient_to_tables else 0.0
        scale = 1 / (1 + self.label_weight * reaches * len(narrower))
        found = {"widest": self._label_loss(widest_B, batch) * scale}
        if narrower:
            target_B = widest_B.detach()
            losses = [self._narrow_loss(logit_B, target_B, batch) for logit_B in narrower]
            found["narrower"] = torch.stack(losses).sum(0) * scale
        if self.boosters:
            boosters = self._booster_logits(read)
            found |= {role: self._label_loss(logit_B, batch) for role, logit_B in boosters.items()}
            teacher_B = mean_probability(list(boosters.values())).detach()
            hints = [self.hint(logit_B, teacher_B) for logit_B in (widest_B, *narrower)]
            found["hint"] = torch.stack(hints).sum(0) * (scale * self.hint.weight_at(step))
        return found

    def _logits(self, x_BX: Tensor, widths: Sequence[tuple[int, ...]]) -> list[Tensor]:
        if self.gradient_to_tables != 1:
            x_BX = scaled(x_BX, self.gradient_to_tables)
        if self.narrow_to_tables == 1:
            return [logit_B for _, logit_B in self.tower.traces(x_BX, widths)]
        widest = self.tower.traces(x_BX, widths[:1])
        narrower = self.tower.traces(scaled(x_BX, self.narrow_to_tables), widths[1:]) if len(widths) > 1 else []
        return [logit_B for _, logit_B in (*widest, *narrower)]

    def _label_loss(self, logit_B: Tensor, batch: Batch) -> Tensor:
        return batch_label_loss(logit_B, batch, self.label_smoothing)

    def _narrow_loss(self, logit_B: Tensor, widest_B: Tensor, batch: Batch) -> Tensor:
        loss_B = self.distillation * soft_bce(logit_B, widest_B)
        return loss_B + self.label_weight * self._label_loss(logit_B, batch) if self.label_weight else loss_B

    # --- networks

    @property
    def _embedding(self) -> Embedding:
        return self.inference_model().embedding

    def _booster_logits(self, read: Read) -> dict[str, Tensor]:
        return {role: self.networks()[role].logit(read) for role in self.boosters}

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        """Of every width in `widths` and of the boosters, from one look-up."""
        read = read_embeddings(self.networks().values(), batch)
        return {role: network.logit(read) for role, network in self.networks().items()}

    @torch.no_grad()
    def calibrate_batch_norm(self, batches: Iterable[Batch]) -> None:
        """Measure the statistics of every width, of a universally slimmable batch norm."""
        calibrate_widths(self.tower, [self._embedding.vectors(batch).x_BX for batch in batches])
