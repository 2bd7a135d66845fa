"""The report of one model on one log: every metric that a decision needs, side by side."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from numpy.typing import ArrayLike

from ctrkit.errors import UserError
from ctrkit.metrics import inputs
from ctrkit.metrics.exact import exact_sum, ratio
from ctrkit.metrics.gauc import Coverage, GAUCPartial, group_aucs
from ctrkit.metrics.pointwise import cross_entropy, entropy, weighted_sum
from ctrkit.metrics.score_table import ScoreSums, ScoreTable

METRICS: Mapping[str, bool] = MappingProxyType(
    {"log_loss": False, "normalized_entropy": False, "auc": True, "gauc": True, "ece": False}
)
"""Metrics that a model can be chosen by -> whether larger is better. PCOC is none of them: it is best at 1."""


@dataclass(frozen=True)
class Report:
    """Metrics of one set of scores; None where the rows do not define one (AUC without a click, GAUC without a user).

    rows, clicks: counts of rows. base_rate: click rate, by weight if there are weights; normalized_entropy is against
    it. gauc: weighted by impressions. coverage: the groups, impressions and clicks behind gauc; None without groups.
    """

    rows: int
    clicks: int
    base_rate: float | None
    log_loss: float | None
    normalized_entropy: float | None
    auc: float | None
    gauc: float | None
    coverage: Coverage | None
    pcoc: float | None
    ece: float | None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it: numbers, None and, for the coverage, a dict."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class ReportPartial:
    """What a shard of a log adds to its report. Shards that split no group merge exactly, in any order.

    The merged report is that of the whole log bit for bit, with sample weights too: sums are fractions, and AUC and ECE
    come from the merged table of scores. It can be pickled. Memory: that of `ScoreTable`, at most 32 bytes a row.

    rows, clicks: counts of rows. weight, clicked, predicted, loss: sums over rows of the weight, and of the weight
    times label, probability and log loss. gauc: None without groups.
    """

    rows: int = 0
    clicks: int = 0
    weight: Fraction = Fraction(0)
    clicked: Fraction = Fraction(0)
    predicted: Fraction = Fraction(0)
    loss: Fraction = Fraction(0)
    gauc: GAUCPartial | None = None
    scores: ScoreTable = dataclasses.field(default_factory=ScoreTable.empty)

    @classmethod
    def of(
        cls,
        y_true: ArrayLike,
        probability: ArrayLike,
        groups: Any = None,
        sample_weight: ArrayLike | None = None,
        *,
        scores: bool = True,
    ) -> "ReportPartial":
        """The partial of a shard; arguments and errors as for `evaluate_scores`.

        `scores=False` leaves the table of scores out, where `report` is given their sums.
        """
        clicks = inputs.labels(y_true)
        weight = inputs.weights(sample_weight, len(clicks))
        p = inputs.probabilities(probability)
        inputs.same_length(len(clicks), probability=p)
        return cls(
            rows=len(clicks),
            clicks=int(clicks.sum()),
            weight=Fraction(len(clicks)) if weight is None else exact_sum(weight),
            clicked=weighted_sum(clicks, weight),
            predicted=weighted_sum(p, weight),
            loss=weighted_sum(cross_entropy(clicks, p), weight),
            gauc=None if groups is None else group_aucs(clicks, p, groups, sample_weight=weight).partial(),
            scores=ScoreTable.of(clicks, p, weight) if scores else ScoreTable.empty(),
        )

    @classmethod
    def merge(cls, partials: Iterable["ReportPartial"]) -> "ReportPartial":
        """The partial of all shards together. Raises UserError if some have groups and others have not."""
        parts = list(partials)
        grouped = [part.gauc for part in parts if part.gauc is not None]
        if len(grouped) not in (0, len(parts)):
            raise UserError(f"{len(grouped)} of {len(parts)} partials have groups; give groups to all or to none")
        sums = ("rows", "clicks", "weight", "clicked", "predicted", "loss")
        return cls(
            **{name: sum(getattr(part, name) for part in parts) for name in sums},
            gauc=sum(grouped[1:], grouped[0]) if grouped else None,
            scores=ScoreTable.merge(part.scores for part in parts),
        )

    def __add__(self, other: "ReportPartial") -> "ReportPartial":
        return ReportPartial.merge([self, other])

    def report(self, scores: ScoreSums | None = None) -> Report:
        """The report of what was merged. scores: the sums of all its scores, where it holds no table of them."""
        if scores is None:
            scores = ScoreSums(self.weight)
            scores.add(self.scores)
        rate, loss = ratio(self.clicked, self.weight), ratio(self.loss, self.weight)
        gauc = None if self.gauc is None else self.gauc.gauc()
        return Report(
            rows=self.rows,
            clicks=self.clicks,
            base_rate=_defined(rate),
            log_loss=_defined(loss),
            normalized_entropy=_defined(loss / entropy(rate)),
            auc=_defined(scores.auc()),
            gauc=None if gauc is None else _defined(gauc.value),
            coverage=None if gauc is None else gauc.coverage,
            pcoc=_defined(ratio(self.predicted, self.clicked)),
            ece=_defined(scores.curve().ece),
        )


def evaluate_scores(
    y_true: ArrayLike, probability: ArrayLike, groups: Any = None, sample_weight: ArrayLike | None = None
) -> Report:
    """Every metric of one set of probabilities, all [rows]; without `groups` there is no GAUC.

    Raises UserError for labels outside {0, 1}, probabilities outside [0, 1], NaN and missing keys, each with the count
    and the first row. Rows of one class are no error: what they do not define is None.
    """
    return ReportPartial.of(y_true, probability, groups, sample_weight).report()


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
