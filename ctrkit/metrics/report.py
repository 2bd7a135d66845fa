"""The report of one model on one log: every metric that a decision needs, side by side."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ctrkit.metrics import inputs
from ctrkit.metrics.auc import auc
from ctrkit.metrics.gauc import Coverage, gauc
from ctrkit.metrics.pointwise import ece, log_loss, mean, normalized_entropy, pcoc

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


def evaluate_scores(
    y_true: ArrayLike, probability: ArrayLike, groups: Any = None, sample_weight: ArrayLike | None = None
) -> Report:
    """Every metric of one set of probabilities, all [rows]; without `groups` there is no GAUC.

    Raises UserError for labels outside {0, 1}, probabilities outside [0, 1], NaN and missing keys, each with the count
    and the first row. Rows of one class are no error: what they do not define is None.
    """
    clicks = inputs.labels(y_true)
    weight = inputs.weights(sample_weight, len(clicks))
    p = inputs.probabilities(probability)
    grouped = None if groups is None else gauc(clicks, p, groups, sample_weight=weight)
    return Report(
        rows=len(clicks),
        clicks=int(clicks.sum()),
        base_rate=_defined(mean(clicks.astype(np.float64), weight)),
        log_loss=_defined(log_loss(clicks, p, sample_weight=weight)),
        normalized_entropy=_defined(normalized_entropy(clicks, p, sample_weight=weight)),
        auc=_defined(auc(clicks, p, sample_weight=weight)),
        gauc=None if grouped is None else _defined(grouped.value),
        coverage=None if grouped is None else grouped.coverage,
        pcoc=_defined(pcoc(clicks, p, sample_weight=weight)),
        ece=_defined(ece(clicks, p, sample_weight=weight)),
    )


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
