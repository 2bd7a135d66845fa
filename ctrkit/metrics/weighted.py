"""Weighted pair counts: a row counts `sample_weight` times.

Weights are not integers, so sums round, and a running sum over the whole log would leave a small user with the rounding
errors of all the users before it. Groups of about the same size are therefore laid out as the rows of a matrix, and
every running sum stays within its group.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrkit.metrics.grouping import Grouping
from ctrkit.metrics.inputs import BoolArray, FloatArray
from ctrkit.metrics.pairs import exact_code, pack_keys

_CELLS = 1 << 20


@dataclass(frozen=True)
class WeightedPairs:
    """What weighted AUC needs of every group, [groups] each.

    key: the group's. rows, clicks: int64 counts of rows of positive weight. weight, click_weight: sums of weights.
    auc: nan where clicks or non-clicks have no weight.
    """

    key: NDArray[Any]
    rows: NDArray[np.int64]
    clicks: NDArray[np.int64]
    weight: NDArray[np.float64]
    click_weight: NDArray[np.float64]
    auc: NDArray[np.float64]


def weigh_pairs(clicks: BoolArray, scores: FloatArray, groups: Grouping, weight: NDArray[np.float64]) -> WeightedPairs:
    """Weighted AUC of every group: sum of w_i w_j over pairs (click i, non-click j) won, over the sum over all pairs.

    A tie is half won. It equals scikit-learn's roc_auc_score(sample_weight=) within the group. Rows of weight 0 do not
    exist. Memory: about 60 bytes a row.
    """
    groups, code = exact_code(groups, scores)
    keys = pack_keys(groups, code, clicks)
    order = np.lexsort((weight, keys))  # the rows of a tie in one order, so that their sum is one
    order = order[weight[order] > 0]
    keys, clicks, weight = keys[order], clicks[order], weight[order]
    member = keys >> np.uint64(code.bits + 1)
    starts, tie_starts = changes(member), changes(keys >> np.uint64(1))
    if not starts.size:
        none = np.zeros(0)
        return WeightedPairs(groups.keys(member), none.astype(int), none.astype(int), none, none, none)
    lost = np.add.reduceat(np.where(clicks, 0.0, weight), tie_starts)
    won = np.add.reduceat(np.where(clicks, weight, 0.0), tie_starts)
    rows = np.diff(starts, append=len(keys))
    click_rows = np.add.reduceat(clicks, starts, dtype=np.int64)
    sums = _sums_by_group(won, lost, np.searchsorted(tie_starts, starts))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.minimum(sums[0] / (sums[1] * sums[2]), 1.0)  # rounding may take it past 1
        auc = np.where((click_rows > 0) & (click_rows < rows), ratio, np.nan)
    return WeightedPairs(groups.keys(member[starts]), rows, click_rows, sums[1] + sums[2], sums[1], auc)


def changes(ordered: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where the runs of equal values begin."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])


def _sums_by_group(
    won: NDArray[np.float64], lost: NDArray[np.float64], starts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Credit, click weight and non-click weight [3, groups] from the weights of ties, in ascending order of score."""
    sums = np.zeros((3, len(starts)))
    lengths = np.diff(starts, append=len(won))
    for which, width in _like_sized(lengths):
        at = starts[which][:, None] + np.arange(width)
        inside = np.arange(width) < lengths[which][:, None]
        at[~inside] = 0
        positive, negative = np.where(inside, won[at], 0.0), np.where(inside, lost[at], 0.0)
        below = np.cumsum(negative, axis=1) - negative
        sums[0, which] = (positive * (below + negative / 2)).sum(axis=1)
        sums[1, which], sums[2, which] = positive.sum(axis=1), negative.sum(axis=1)
    return sums


def _like_sized(lengths: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Groups whose lengths round up to the same power of two, and that width, about _CELLS cells at a time."""
    powers = np.frexp(lengths - 0.5)[1]
    for power in np.unique(powers):
        members, width = np.flatnonzero(powers == power), 1 << int(power)
        step = max(1, _CELLS // width)
        for start in range(0, len(members), step):
            yield members[start : start + step], width
