"""Rows counted by score: all that AUC and calibration need to know of them, and what parts of a log merge into.

AUC and equal-mass bins compare rows of different users, so no sum a shard stands for its rows. What does is the table
of its distinct scores with the clicks and non-clicks of each. Tables merge exactly in any order, and a merged table is
bit for bit that of all rows at once: without weights it holds integers; with weights, a score has an entry for each
different weight, in ascending order, so whatever is summed is summed in the same order.

`ScoreSums` reads tables in ascending order of score and needs no more than one at a time: of a log that is too long for
one table, a table for each range of scores will do.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrkit.metrics.exact import exact_sum, exact_sums, ratio

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

BINS = 20
"""Bins of equal mass, unless told otherwise."""


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Distinct (score, weight) in ascending order and how many clicks and non-clicks have them, [entries] each.

    weight: None if every row weighs 1. Memory: 24 bytes a distinct score, 32 with weights.
    """

    score: Floats
    weight: Floats | None
    clicks: Counts
    others: Counts

    @classmethod
    def empty(cls, weighted: bool = False) -> "ScoreTable":
        """The table of no rows."""
        none, zero = np.zeros(0), np.zeros(0, dtype=np.int64)
        return cls(none, none if weighted else None, zero, zero)

    @classmethod
    def of(cls, clicks: NDArray[np.bool_], score: NDArray[np.floating], weight: Floats | None = None) -> "ScoreTable":
        """The table of rows: clicks, score and weight [rows]. Rows of weight 0 do not exist."""
        if weight is not None:
            order = np.lexsort((weight, score))
            order = order[weight[order] > 0]
            clicked = clicks[order].astype(np.int64)
            ordered = score[order].astype(np.float64) + 0.0  # -0.0 is 0.0
            return _counted(ordered, weight[order], clicked, 1 - clicked)
        (clicked_at, clicked), (other_at, others) = _runs(score[clicks]), _runs(score[~clicks])
        at = np.concatenate([clicked_at, other_at])
        order = np.argsort(at, kind="stable")  # two ascending halves: a merge
        clicked = np.concatenate([clicked, np.zeros(len(other_at), dtype=np.int64)])
        others = np.concatenate([np.zeros(len(clicked_at), dtype=np.int64), others])
        return _counted(at[order], None, clicked[order], others[order])

    @classmethod
    def merge(cls, tables: Iterable["ScoreTable"]) -> "ScoreTable":
        """The table of all the rows that the tables stand for; of those without rows it does not matter whether they
        are weighted.
        """
        parts = list(tables)
        parts = [part for part in parts if len(part.score)] or parts[:1]
        if len(parts) < 2:
            return parts[0] if parts else cls.empty()
        score, clicks, others = (
            np.concatenate([getattr(t, name) for t in parts]) for name in ("score", "clicks", "others")
        )
        weights = [part.weight for part in parts]
        if all(weight is None for weight in weights):
            order = np.argsort(score, kind="stable")
            return _counted(score[order], None, clicks[order], others[order])
        weight = np.concatenate([np.ones(len(t.score)) if t.weight is None else t.weight for t in parts])
        order = np.lexsort((weight, score))
        return _counted(score[order], weight[order], clicks[order], others[order])

    def masses(self) -> tuple[Floats, NDArray[np.int64] | Floats, NDArray[np.int64] | Floats]:
        """The distinct scores, and the weight of the clicks and of the non-clicks of each: counts without weights."""
        if self.weight is None:
            return self.score, self.clicks, self.others
        starts = np.flatnonzero(_differs(self.score))
        clicks, others = (np.add.reduceat(self.weight * count, starts) for count in (self.clicks, self.others))
        return self.score[starts], clicks, others


def _differs(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a value is another than the one before it."""
    return np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]


def _runs(scores: NDArray[np.floating]) -> tuple[Floats, Counts]:
    """The distinct scores in ascending order and how often each is there."""
    ordered = np.sort(scores)
    starts = np.flatnonzero(_differs(ordered))
    return ordered[starts].astype(np.float64) + 0.0, np.diff(starts, append=len(ordered))


def _counted(score: Floats, weight: Floats | None, clicks: Counts, others: Counts) -> ScoreTable:
    """The table of ordered entries, equal ones added up."""
    new = _differs(score) if weight is None else _differs(score) | _differs(weight)
    starts = np.flatnonzero(new)
    if len(starts) == len(score):
        return ScoreTable(score, weight, clicks, others)
    clicks, others = np.add.reduceat(clicks, starts), np.add.reduceat(others, starts)
    return ScoreTable(score[starts], None if weight is None else weight[starts], clicks, others)


@dataclass(frozen=True)
class ReliabilityCurve:
    """Bins of about equal weight in ascending order of probability, [bins] each.

    predicted: mean probability; observed: click rate; weight: rows, or sum of weights; low, high: the bin's lowest and
    highest probability.
    """

    predicted: Floats
    observed: Floats
    weight: Floats
    low: Floats
    high: Floats

    @property
    def ece(self) -> float:
        """Expected calibration error: the weighted mean of |predicted - observed|."""
        if not self.weight.size:
            return float("nan")
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.weight))


class ScoreSums:
    """AUC and reliability curve of a log, from its score tables in ascending order of score.

    The result is the same bit for bit however the scores are cut into tables, as long as equal scores are in one.
    """

    def __init__(self, mass: Fraction | int, bins: int = BINS) -> None:
        """`mass`: the weight of all rows to come, or their count; it places the bins. No bins: AUC alone."""
        self._mass, self._bins = float(mass), bins
        self._end = self._below = self._clicks = self._others = self._won = Fraction(0)
        self._last = -np.inf
        self._sums = [[Fraction(0)] * bins for _ in range(3)]  # weight, weight of clicks, weight x score
        self._low, self._high = np.full(bins, np.nan), np.full(bins, np.nan)

    def add(self, table: ScoreTable) -> None:
        """Read the next table, all of whose scores are above those before."""
        if not len(table.score):
            return
        score, clicks, others = table.masses()
        assert score[0] > self._last, "tables must come in ascending order of score"
        self._last = float(score[-1])
        self._count_pairs(clicks, others)
        if self._bins:
            self._fill_bins(score, clicks, clicks + others)

    def _count_pairs(self, clicks: Counts | Floats, others: Counts | Floats) -> None:
        counted = others.dtype.kind == "i"  # integers start from 0 in every table, so that they stay small
        start, base = (Fraction(0), self._others) if counted else (self._below, Fraction(0))
        below = _running_sum(others, start)
        self._won += exact_sum(clicks * (2 * below[:-1] + others)) + 2 * base * exact_sum(clicks)
        self._below = Fraction(below[-1].item())
        self._clicks, self._others = self._clicks + exact_sum(clicks), self._others + exact_sum(others)

    def _fill_bins(self, score: Floats, clicks: Counts | Floats, mass: Counts | Floats) -> None:
        end = _running_sum(mass, self._end)
        self._end = Fraction(end[-1].item())
        middle = (end[:-1] + end[1:]) / 2
        bins = np.minimum((middle / self._mass * self._bins).astype(np.int64), self._bins - 1)
        for sums, values in zip(self._sums, (mass, clicks, mass * score), strict=True):
            for i, value in enumerate(exact_sums(values, bins, self._bins)):
                sums[i] += value
        first = np.flatnonzero(_differs(bins))
        present = bins[first]
        self._low[present] = np.fmin(self._low[present], score[first])
        self._high[present] = score[np.append(first[1:], len(score)) - 1]

    def auc(self) -> float:
        """Area under the ROC curve, a tie half won; nan if the rows are of one class."""
        pairs = 2 * self._clicks * self._others
        return ratio(min(self._won, pairs), pairs)  # running sums of weights round

    def curve(self) -> ReliabilityCurve:
        """The bins that hold rows."""
        weight, clicks, predicted = self._sums
        filled = [i for i in range(self._bins) if weight[i]]
        return ReliabilityCurve(
            predicted=np.array([ratio(predicted[i], weight[i]) for i in filled]),
            observed=np.array([ratio(clicks[i], weight[i]) for i in filled]),
            weight=np.array([float(weight[i]) for i in filled]),
            low=self._low[filled],
            high=self._high[filled],
        )


def _running_sum(values: Counts | Floats, start: Fraction) -> NDArray[Any]:
    """The sum before every value, and after the last [values + 1]; one addition after the other, wherever it starts."""
    return np.cumsum(np.append(np.array(float(start)).astype(values.dtype), values))
