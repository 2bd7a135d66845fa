"""Prediction churn: how much the scores of one log change when a model is trained again, or replaced.

Two models of the same quality may disagree on most users, and whoever depends on the scores (bids, budgets, caches)
meets every disagreement. The churn between two seeds of one model is what cannot be avoided; it is the measure for the
churn between two models.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctrkit.errors import UserError
from ctrkit.metrics import inputs
from ctrkit.metrics.grouping import group_codes

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Churn:
    """What changes between two runs' probabilities; nan where no user defines it.

    mean_change: mean |p_b - p_a|. relative_change: that over the click rate. kendall_tau: mean over users of Kendall's
    tau-b between the two orders of the user's rows (1: the same order), users with one score for all their rows left
    out. top_changed: share of users of two rows or more none of whose highest rows stays highest. top_k_overlap: mean
    share of a user's k highest rows that stay among the k highest, over users of more than k rows.
    """

    mean_change: float
    relative_change: float
    kendall_tau: float
    top_changed: float
    top_k_overlap: float
    k: int


def churn(y_true: ArrayLike, a: ArrayLike, b: ArrayLike, groups: Any, *, k: int = 3) -> Churn:
    """The churn between two runs' probabilities a and b of one log, all [rows].

    k: how many rows of a user `top_k_overlap` looks at; of equal scores the one that comes first in the log is higher.
    Everything is symmetric in a and b. Time: a few sorts, and a pass for each bit of the rows of the largest user.
    Raises UserError as `gauc` does, for probabilities outside [0, 1], and for k below 1.
    """
    if k < 1:
        raise UserError(f"k is {k}; give how many of a user's highest rows to look at, 1 or more")
    clicks = inputs.labels(y_true)
    of_a, of_b = inputs.probabilities(a, "a"), inputs.probabilities(b, "b")
    inputs.same_length(len(clicks), a=of_a, b=of_b, groups=groups)
    user, users = group_codes(groups).numbers()
    change = float(np.abs(of_b - of_a).mean()) if len(user) else float("nan")
    rows = np.bincount(user, minlength=users)
    rank_a, rank_b = _ranks(user, of_a), _ranks(user, of_b)
    return Churn(
        mean_change=change,
        relative_change=change / float(clicks.mean()) if clicks.any() else float("nan"),
        kendall_tau=_mean(_kendall_tau(user, rows, rank_a, rank_b)),
        top_changed=_mean(_top_changed(user, rows, rank_a, rank_b)[rows > 1]),
        top_k_overlap=_mean(_top_k_overlap(user, rows, (of_a, of_b), k)[rows > k]),
        k=k,
    )


def mean_churn(churns: list[Churn]) -> Churn:
    """The mean of each figure over pairs of runs, pairs that do not define it left out. All have the same k."""
    names = [field.name for field in fields(Churn) if field.name != "k"]
    means = {name: _mean(np.array([getattr(each, name) for each in churns])) for name in names}
    return Churn(**means, k=churns[0].k)


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _ranks(user: Int, score: NDArray[np.float64]) -> Int:
    """Dense rank [rows] of every score among its user's distinct scores, from 0 for the lowest."""
    order = np.lexsort((score, user))
    first = np.diff(user[order], prepend=-1) != 0
    count = np.cumsum(np.diff(score[order], prepend=-1.0) != 0)
    rank = np.empty_like(user)
    rank[order] = count - np.maximum.accumulate(np.where(first, count, 0))
    return rank


def _top_changed(user: Int, rows: Int, rank_a: Int, rank_b: Int) -> NDArray[np.float64]:
    """1 for every user [users] of whom no row is highest in both."""
    highest = []
    for rank in (rank_a, rank_b):
        top = np.zeros_like(rows)
        np.maximum.at(top, user, rank)
        highest.append(rank == top[user])
    stays = np.bincount(user[highest[0] & highest[1]], minlength=len(rows)) > 0
    return np.where(stays, 0.0, 1.0)


def _top_k_overlap(user: Int, rows: Int, scores: tuple[NDArray[np.float64], ...], k: int) -> NDArray[np.float64]:
    """The share of every user's [users] k highest rows that both scores agree on."""
    start = np.cumsum(rows) - rows
    in_both = np.ones(len(user), dtype=np.bool_)
    for score in scores:
        order = np.lexsort((-score, user))
        place = np.empty_like(user)
        place[order] = np.arange(len(user)) - start[user[order]]
        in_both &= place < k
    return np.bincount(user[in_both], minlength=len(rows)) / k


def _kendall_tau(user: Int, rows: Int, rank_a: Int, rank_b: Int) -> NDArray[np.float64]:
    """Kendall's tau-b [users]: (concordant - discordant) / sqrt(pairs untied in a x pairs untied in b); nan for 0 / 0.

    Kendall, The treatment of ties in ranking problems (Biometrika 1945). With pairs all, tied in a, in b and in both:
    concordant - discordant = all - tied_a - tied_b + tied_both - 2 discordant.
    """
    order = np.lexsort((rank_b, rank_a, user))
    user, rank_a, rank_b = user[order], rank_a[order], rank_b[order]
    pairs = rows * (rows - 1) // 2
    tied_a, tied_both = _tied_pairs(len(rows), user, rank_a), _tied_pairs(len(rows), user, rank_a, rank_b)
    again = np.lexsort((rank_b, user))
    tied_b = _tied_pairs(len(rows), user, rank_b[again])
    difference = pairs - tied_a - tied_b + tied_both - 2 * _inversions(user, rank_b, len(rows))
    with np.errstate(invalid="ignore"):
        return np.asarray(difference / np.sqrt((pairs - tied_a).astype(np.float64) * (pairs - tied_b)))


def _tied_pairs(users: int, user: Int, *ranks: Int) -> Int:
    """Pairs [users] of rows with the same ranks; rows of the same user and ranks lie side by side."""
    changes = np.diff(user, prepend=-1) != 0
    for rank in ranks:
        changes |= np.diff(rank, prepend=-1) != 0
    starts = np.flatnonzero(changes)
    length = np.diff(starts, append=len(user))
    tied = np.zeros(users, dtype=np.int64)
    np.add.at(tied, user[starts], length * (length - 1) // 2)
    return tied


def _inversions(user: Int, rank: Int, users: int) -> Int:
    """Pairs [users] of a user's rows of which the earlier has the larger rank; a user's rows lie side by side.

    Bit by bit, from the highest: two ranks are ordered by the first bit in which they differ, so among the rows that
    agree in the bits before, every one whose bit is 0 is inverted with those before it whose bit is 1. Then the rows
    are parted by this bit, in the order that they have.
    """
    found = np.zeros(users, dtype=np.int64)
    block = user
    for bit in reversed(range(int(rank.max(initial=0)).bit_length())):
        one = (rank >> bit) & 1
        ones = np.cumsum(one)
        first = np.diff(block, prepend=-1) != 0
        before = np.maximum.accumulate(np.where(first, ones - one, 0))
        np.add.at(found, user, np.where(one == 0, ones - before, 0))
        block = 2 * block + one
        order = np.argsort(block, kind="stable")
        user, rank, block = user[order], rank[order], block[order]
    return found
