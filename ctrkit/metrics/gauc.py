"""GAUC: AUC within every user, averaged over users. The metric that ads are ranked by.

Zhou et al., Deep Interest Network (KDD 2018), eq. 10: GAUC = sum(impressions_i AUC_i) / sum(impressions_i); its first
version allows clicks as weights too. Users whose impressions are all clicked or none have no AUC: they are left out of
numerator and denominator, and counted. Never compare values of different weightings.
"""

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctrkit.errors import UserError
from ctrkit.metrics import inputs
from ctrkit.metrics.exact import exact_sum, ratio
from ctrkit.metrics.grouping import group_codes
from ctrkit.metrics.pairs import count_pairs
from ctrkit.metrics.weighted import weigh_pairs

Weighting = Literal["impressions", "clicks", "uniform"]

ENOUGH = 50
"""Impressions of the rarer class, of users with both, on which GAUC has a standard error of about .04."""


@dataclass(frozen=True)
class Coverage:
    """How many groups, impressions and clicks have an AUC, and how many are left out for having one class only."""

    groups_kept: int = 0
    groups_left_out: int = 0
    impressions_kept: int = 0
    impressions_left_out: int = 0
    clicks_kept: int = 0
    clicks_left_out: int = 0

    @property
    def rarer_kept(self) -> int:
        """Impressions of the rarer class that have an AUC: what the standard error of GAUC goes by."""
        return min(self.clicks_kept, self.impressions_kept - self.clicks_kept)

    @property
    def is_too_little(self) -> bool:
        """Whether GAUC rests on too little to choose among networks by it."""
        return self.rarer_kept < ENOUGH

    def __add__(self, other: "Coverage") -> "Coverage":
        return Coverage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Coverage)))


@dataclass(frozen=True)
class GAUC:
    """A GAUC: its value (nan if no group is kept), the weighting that it was made with, and what it covers."""

    value: float
    weighting: Weighting
    coverage: Coverage

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class GAUCPartial:
    """What a shard adds to a GAUC. Partials of shards that split no group add up exactly, in any order.

    weighted_sum: sum of weight x AUC over the kept groups; weight: sum of their weights. Fractions, so adding does not
    round: the merged value is the whole log's to the last digit.
    """

    weighting: Weighting
    weighted_sum: Fraction = Fraction(0)
    weight: Fraction = Fraction(0)
    coverage: Coverage = Coverage()

    def __add__(self, other: "GAUCPartial") -> "GAUCPartial":
        if self.weighting != other.weighting:
            raise UserError(f"a GAUC weighted by {self.weighting} cannot be added to one by {other.weighting}")
        weighted_sum, weight = self.weighted_sum + other.weighted_sum, self.weight + other.weight
        return GAUCPartial(self.weighting, weighted_sum, weight, self.coverage + other.coverage)

    def gauc(self) -> GAUC:
        """The GAUC of what was added up."""
        return GAUC(ratio(self.weighted_sum, self.weight), self.weighting, self.coverage)


@dataclass(frozen=True)
class GroupAUCs:
    """The AUC of every group that has both classes, [groups] each, and the coverage of the whole.

    groups: keys, in no promised order; impressions, clicks: sums of sample weights (float64), or counts (int64)
    without them. The coverage counts rows either way.
    """

    groups: NDArray[Any]
    auc: NDArray[np.float64]
    impressions: NDArray[np.int64] | NDArray[np.float64]
    clicks: NDArray[np.int64] | NDArray[np.float64]
    coverage: Coverage

    def weights(self, weighting: Weighting) -> NDArray[np.int64] | NDArray[np.float64]:
        """The groups' weights under a weighting."""
        return weights_of(weighting, self.impressions, self.clicks)

    def partial(self, weighting: Weighting = "impressions") -> GAUCPartial:
        """The mergeable sums of a weighting."""
        weights = self.weights(weighting)
        return GAUCPartial(weighting, exact_sum(weights * self.auc), exact_sum(weights), self.coverage)


def gauc(
    y_true: ArrayLike,
    y_score: ArrayLike,
    groups: Any,
    *,
    weighting: Weighting = "impressions",
    sample_weight: ArrayLike | None = None,
) -> GAUC:
    """Group AUC: exact, half a pair for a tie, one-class groups left out and counted.

    Args:
        y_true: labels [rows], 0 or 1, numbers or bool.
        y_score: finite scores [rows]; only their order within a group matters.
        groups: group keys [rows], of any type but floats: integers, strings, bytes, objects; numpy, pandas, Arrow.
        weighting: a group's weight: its impressions (DIN eq. 10), its clicks, or 1 ("uniform").
        sample_weight: how many times a row counts [rows], 0 or more: in the group's AUC, which is then scikit-learn's
            roc_auc_score(sample_weight=), and in its impressions and clicks. The coverage counts rows of weight > 0.

    The value depends on no order of rows, to the last bit. O(rows log rows) in a sort of one
    64-bit key a row. Memory beside the inputs: 8 bytes a row for the keys, 1 for the labels, about 100 a group; groups
    that are no integers, float64 scores and sample weights may need up to 60 bytes a row more.

    Raises:
        UserError: labels outside {0, 1}, NaN or infinite scores, missing or float keys (each with the count and the
            first row), columns of different lengths, an unknown weighting.
    """
    return group_aucs(y_true, y_score, groups, sample_weight=sample_weight).partial(weighting).gauc()


def group_aucs(
    y_true: ArrayLike, y_score: ArrayLike, groups: Any, *, sample_weight: ArrayLike | None = None
) -> GroupAUCs:
    """The AUC, impressions and clicks of every group that has both classes; arguments and errors as for `gauc`."""
    clicks, scores = inputs.labels(y_true), inputs.scores(y_score)
    inputs.same_length(len(clicks), y_score=scores, groups=groups)
    weight = inputs.weights(sample_weight, len(clicks))
    grouping = group_codes(groups)
    pairs = count_pairs(clicks, scores, grouping) if weight is None else weigh_pairs(clicks, scores, grouping, weight)
    auc = pairs.auc
    kept = ~np.isnan(auc)
    rows, clicked = int(pairs.rows.sum()), int(pairs.clicks.sum())
    rows_kept, clicked_kept = int(pairs.rows[kept].sum()), int(pairs.clicks[kept].sum())
    groups_kept = int(kept.sum())
    coverage = Coverage(
        groups_kept, len(kept) - groups_kept, rows_kept, rows - rows_kept, clicked_kept, clicked - clicked_kept
    )
    return GroupAUCs(pairs.key[kept], auc[kept], pairs.weight[kept], pairs.click_weight[kept], coverage)


def weights_of(
    weighting: Weighting, impressions: NDArray[Any], clicks: NDArray[Any]
) -> NDArray[np.int64] | NDArray[np.float64]:
    """The weights of groups with these impressions and clicks. Raises UserError for an unknown weighting."""
    if weighting not in get_args(Weighting):
        raise UserError(f"weighting {weighting!r} is not one of {', '.join(get_args(Weighting))}")
    if weighting == "uniform":
        return np.ones(len(clicks), dtype=np.int64)
    return impressions if weighting == "impressions" else clicks
