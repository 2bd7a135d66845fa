"""The bootstrap over users as a matrix product: sums that every user has once, times how often each user is drawn.

* GAUC = sum(m_u w_u AUC_u) / sum(m_u w_u) and log loss = sum(m_u loss_u) / sum(m_u rows_u), with m_u the multiplicity
  of user u, are ratios of sums.
* AUC counts pairs of rows, also of different users: its wins are the quadratic form m'Am, with A[u, v] the wins of u's
  clicks over v's non-clicks. With d = m - 1 it is 1'A1 + d'(A + A')1 + d'Ad. The first two terms are exact. The last,
  smaller by the square root of the number of users, is counted on BINS score bins of equal mass, a pair within a bin
  as half a win; it too is exact if there are no more than BINS different scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrkit.errors import UserError
from ctrkit.metrics import inputs
from ctrkit.metrics.gauc import Weighting, weights_of
from ctrkit.metrics.grouping import Grouping, group_codes
from ctrkit.metrics.pairs import count_pairs, dense_ranks
from ctrkit.metrics.pointwise import cross_entropy

BINS = 32
"""Score bins of the quadratic part of AUC: on logs of 200 and 2,000 users a resample's AUC is then within 3 % of a
standard deviation of the exact one, and the standard deviation itself within 0.2 %."""

_ONE_THREAD = 2**18  # multiplications up to which OpenBLAS keeps a product to one thread

COMPARABLE = ("gauc", "auc", "log_loss")
"""The metrics that can be resampled."""


@dataclass(frozen=True)
class Users:
    """What the scores do not change: number [rows] of every row's user, and rows, clicks, GAUC weight [users].

    weight is 0 for users of one class, who have no AUC.
    """

    number: NDArray[np.int64]
    clicked: NDArray[np.bool_]
    rows: NDArray[np.int64]
    clicks: NDArray[np.int64]
    weight: NDArray[np.int64]

    def total(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Sums over each user's rows [users] of values [rows]."""
        return np.bincount(self.number, values, minlength=len(self.rows)).astype(np.float64)


@dataclass(frozen=True)
class UserStatistics:
    """One set of scores as sums over each user [users]: all that a resample needs to know.

    gauc: weight x AUC; loss: log loss in nats; wins: d(wins of the whole log)/d(m_u) at m = 1; all_wins: the wins of
    the whole log, 1'A1; bins: float32 [users, 2, bins], the user's non-clicks and clicks in every score bin.
    """

    gauc: NDArray[np.float64]
    loss: NDArray[np.float64]
    wins: NDArray[np.float64]
    all_wins: float
    bins: NDArray[np.float32]


def read_users(clicked: NDArray[np.bool_], groups: Any, weighting: Weighting) -> Users:
    """The users of labels and group keys [rows]. Raises UserError without rows, and for keys as `group_codes` does."""
    inputs.same_length(len(clicked), groups=groups)
    number, count = group_codes(groups).numbers()
    if not count:
        raise UserError("y_true has no rows; a bootstrap needs users to draw")
    rows = np.bincount(number, minlength=count)
    clicks = np.bincount(number[clicked], minlength=count)
    both = (clicks > 0) & (clicks < rows)
    return Users(number, clicked, rows, clicks, np.where(both, weights_of(weighting, rows, clicks), 0))


def user_statistics(users: Users, score: NDArray[Any], *, log_loss: bool, bins: int = BINS) -> UserStatistics:
    """The sums of one set of scores [rows]; `log_loss` says whether they are probabilities and its loss is wanted."""
    number = Grouping(users.number, 0, max(len(users.rows) - 1, 0).bit_length(), dense=True)
    auc = count_pairs(users.clicked, score, number).auc
    loss = cross_entropy(users.clicked, score.astype(np.float64)) if log_loss else np.zeros(len(score))
    rank = dense_ranks(score)
    clicks, others = np.bincount(rank, users.clicked), np.bincount(rank, ~users.clicked)
    below, above = np.cumsum(others) - others / 2, clicks.sum() - np.cumsum(clicks) + clicks / 2
    wins = users.total(np.where(users.clicked, below[rank], above[rank]))
    return UserStatistics(
        gauc=np.where(users.weight > 0, users.weight * np.nan_to_num(auc), 0.0),
        loss=users.total(loss),
        wins=wins,
        all_wins=float((clicks * below).sum()),
        bins=_binned(users, _bin_of_rank(clicks, others, bins)[rank], bins),
    )


def _bin_of_rank(clicks: NDArray[Any], others: NDArray[Any], bins: int) -> NDArray[np.int64]:
    """The bin of every distinct score: its own if there are few, else one of equal shares of clicks and non-clicks."""
    if len(clicks) <= bins:
        return np.arange(len(clicks))
    mass = clicks / max(clicks.sum(), 1) + others / max(others.sum(), 1)
    cell = np.minimum((np.cumsum(mass) - mass / 2) / mass.sum() * bins, bins - 1)
    return np.asarray(cell, dtype=np.int64)


def _binned(users: Users, bin_of_row: NDArray[np.int64], bins: int) -> NDArray[np.float32]:
    cells, counts = np.unique((users.number * 2 + users.clicked) * bins + bin_of_row, return_counts=True)
    binned = np.zeros(len(users.rows) * 2 * bins, dtype=np.float32)
    binned[cells] = counts
    return binned.reshape(len(users.rows), 2, bins)


class UserSums:
    """All users' statistics of all runs side by side, so that resampling is a matrix product."""

    def __init__(self, users: Users, statistics: Sequence[UserStatistics]) -> None:
        self.runs, self.bins = len(statistics), statistics[0].bins.shape[2]
        shared = np.stack([users.rows, users.clicks, users.weight], axis=1)
        own = [np.stack([getattr(s, name) for s in statistics], axis=1) for name in ("gauc", "loss", "wins")]
        self.linear = np.concatenate([shared, *own], axis=1)
        self.binned = [s.bins.reshape(len(users.rows), 2 * self.bins) for s in statistics]
        self.all_wins = np.array([s.all_wins for s in statistics])

    def metrics(self, drawn: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
        """The metrics [names, resamples, runs] of resamples of these multiplicities [resamples, users]."""
        sums = _product(drawn, self.linear)
        rows, clicks, weight = (sums[:, [i]] for i in range(3))
        gauc, loss, wins = np.split(sums[:, 3:], 3, axis=1)
        values = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            values["gauc"], values["log_loss"] = gauc / weight, loss / rows
            if "auc" in names:
                linear = self.all_wins + wins - self.linear[:, -self.runs :].sum(axis=0)
                pairs = clicks * (rows - clicks)
                values["auc"] = np.where(pairs > 0, linear + self._quadratic(drawn), np.nan) / pairs
        return np.stack([values[name] for name in names])

    def influence(self, whole: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
        """The derivative of each metric by each user's multiplicity, at 1 [names, users, runs]; its sum is 0.

        whole: the metrics of the log itself [names, runs]. nan where the metric is.
        """
        rows, clicks, weight = (self.linear[:, [i]] for i in range(3))
        gauc, loss, wins = np.split(self.linear[:, 3:], 3, axis=1)
        others = rows - clicks
        derivatives = np.empty((len(names), len(rows), self.runs))
        with np.errstate(invalid="ignore", divide="ignore"):
            for value, derivative, name in zip(whole, derivatives, names, strict=True):
                if name == "gauc":
                    derivative[:] = (gauc - value * weight) / weight.sum()
                elif name == "log_loss":
                    derivative[:] = (loss - value * rows) / rows.sum()
                else:
                    expected = value * (clicks * others.sum() + others * clicks.sum())
                    derivative[:] = (wins - expected) / (clicks.sum() * others.sum())
        return derivatives

    def _quadratic(self, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        """d'Ad [resamples, runs], with d = multiplicities - 1, on score bins."""
        difference = drawn.astype(np.float32)
        difference -= 1
        terms = np.empty((len(drawn), self.runs))
        for run, binned in enumerate(self.binned):
            change = _product(difference, binned).astype(np.float64).reshape(len(drawn), 2, self.bins)
            others, clicks = change[:, 0], change[:, 1]
            terms[:, run] = (clicks * (np.cumsum(others, axis=1) - others / 2)).sum(axis=1)
        return terms


def _product(drawn: NDArray[Any], sums: NDArray[Any]) -> NDArray[Any]:
    """drawn @ sums, [resamples, users] by [users, columns], in blocks of users that BLAS does not split over threads.

    Its threads spin while they wait for each other: on a machine that is busy with something else, that cost ten times
    what the second core brings.
    """
    block = max(1, _ONE_THREAD // (len(drawn) * sums.shape[1]))
    whole = len(sums) - len(sums) % block
    blocks = drawn[:, :whole].reshape(len(drawn), -1, block).transpose(1, 0, 2)
    of_blocks = blocks @ sums[:whole].reshape(-1, block, sums.shape[1])
    return np.asarray(of_blocks.sum(axis=0) + drawn[:, whole:] @ sums[whole:])
