"""What a difference is worth: bootstrap over users of GAUC, AUC and log loss.

The impressions of a user depend on each other, so the unit that is drawn is the user: a resample gives user u the
multiplicity m_u, (m_u) multinomial over all users, those of one class included. Nothing is evaluated again: the three
metrics are functions of m and of sums that every user has once (`ctrkit.metrics.resampling`), so thousands of resamples
take seconds.

Several runs of each model (different seeds, the same log): run s of A is paired with run s of B, and the difference of
two models is the mean over R pairs. A pair's difference is the models' difference, plus what its seeds brought, taken
to be normal, plus what these users brought, which all pairs share. So every resample of the users gets a draw of the
seeds' part as well: Student's t with R - 1 degrees of freedom, times the pairs' standard error. The interval is then
about the models as they are trained, not about these runs, and is wide if the runs are few: two tell next to nothing
about their spread, five are a fair start.

A plain percentile interval is too narrow where few users decide, for it takes the spread that this log shows for the
true one. So the deviation of a resample from the log's own value is multiplied by two factors. sqrt(U / (U - 1)): the
mean of U values spreads by that much more than its bootstrap does. sqrt(nu / chi2_nu), drawn for each resample: it
makes Student's t of a normal spread, as Hesterberg asks of percentile intervals (What Teachers Should Know about the
Bootstrap, The American Statistician 2015, "expanded percentile interval"). nu is not U - 1, since some users weigh more
than others: the variance is a sum over users of s_u^2, whose estimate has (sum s_u^2)^2 / sum s_u^4 degrees of freedom
(Satterthwaite, Biometrics 1946); psi_u^2 estimates s_u^2 and, where the influence psi_u of user u is normal, psi_u^4/3
estimates s_u^4, so nu = 3 (sum psi_u^2)^2 / sum psi_u^4. U counts the users with any influence; nu is U - 1 at most.

Chosen by simulation (`benchmarks/coverage.py`, docs/log.md), among: no correction; U - 1 degrees of freedom, which
still covers too little; BCa with the jackknife over users, which covers less than no correction for one model's AUC and
log loss; the studentised bootstrap, no better than no correction; Student's t with the jackknife's standard error,
which covers as well, but is wider.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctrkit.errors import UserError
from ctrkit.metrics import inputs
from ctrkit.metrics.gauc import Weighting
from ctrkit.metrics.resampling import COMPARABLE, UserSums, read_users, user_statistics

_STEP = 16  # resamples drawn at a time, so that memory does not grow with their number
_RANGE = {"gauc": (0.0, 1.0), "auc": (0.0, 1.0), "log_loss": (0.0, math.inf)}  # Student's t reaches beyond


@dataclass(frozen=True)
class Interval:
    """A metric of one model, and the interval of its value over resampled users.

    low, high: nan if there are less than two users that the metric looks at (for GAUC, those of both classes); never
    beyond the values that the metric can have.
    resamples: those that define the metric (one without a click has no AUC).
    """

    metric: str
    value: float
    low: float
    high: float
    level: float
    users: int
    runs: int
    resamples: int


@dataclass(frozen=True)
class Difference:
    """A metric of two models on one log: difference = b - a, its interval and two-sided p-value.

    p_value: twice the smaller share of resamples on one side of 0, each share (count + 1) / (resamples + 1): at most
    1 - level just when the interval leaves 0 out; nan when the interval is. Of less than 2 / (1 - level) resamples the
    interval is between the outermost, and no p-value is that small. runs: pairs of runs; users: users drawn.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float
    level: float
    users: int
    runs: int
    resamples: int


def paired_bootstrap(
    y_true: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    groups: Any,
    *,
    metrics: Sequence[str] = COMPARABLE,
    weighting: Weighting = "impressions",
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """The difference b - a of two models' scores on one log, with interval and p-value, for each metric.

    Args:
        y_true: labels [rows], 0 or 1.
        a, b: scores [rows], or [runs, rows] for several runs of each, run s of a paired with run s of b.
        groups: users [rows], as for `gauc`.
        metrics: of COMPARABLE; log_loss needs probabilities.
        weighting: of GAUC.
        resamples, level, seed: how many, the interval's coverage, and where the draws start.

    Both models are judged on the same resamples. The model behind it, and for several runs, is described in this
    module. Memory: about 400 bytes a user and run, and 100 a row; resamples add nothing.

    Raises:
        UserError: what `gauc` and `log_loss` raise; unknown metrics; a and b of different numbers of runs.
    """
    _check_level(level)
    runs_a, runs_b = _runs(a, "a"), _runs(b, "b")
    if len(runs_a) != len(runs_b):
        raise UserError(f"a has {len(runs_a)} runs and b has {len(runs_b)}; runs are paired, so give as many of each")
    resampled = _resample(y_true, [*runs_a, *runs_b], groups, metrics, weighting, resamples, seed)
    count = len(runs_a)
    a_then_b = slice(None, count), slice(count, None)
    differences = {}
    for metric, values in resampled.items():
        of_a, of_b = (float(values.whole[runs].mean()) for runs in a_then_b)
        drawn = (values.runs(a_then_b[1]) - values.runs(a_then_b[0])).spread(seed)
        smallest, largest = _RANGE[metric]
        low, high = values.interval(drawn, level, (smallest - largest, largest - smallest))
        p = two_sided(drawn) if values.counted > 1 else math.nan
        differences[metric] = Difference(
            metric, of_a, of_b, of_b - of_a, low, high, p, level, values.users, count, len(drawn)
        )
    return differences


@dataclass(frozen=True)
class Ratio:
    """(b - a) / (c - a) of a metric: the share of the gap between a and c that b closes, and its interval.

    low, high: None where the interval has no such bound.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    level: float
    runs: int


def share_of_gap(
    y_true: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    c: ArrayLike,
    groups: Any,
    *,
    metric: str = "gauc",
    weighting: Weighting = "impressions",
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Ratio | None:
    """How much of the way from model a to model c model b goes, with its interval; arguments as for `paired_bootstrap`.

    The interval has the shares g for which zero lies in the interval of (b - a) - g (c - a), users drawn and runs
    paired (Fieller, JRSS B 1954, with the bootstrap in the place of the normal law). None where c is not better than a
    by its own interval: there is no gap to close.
    """
    _check_level(level)
    runs = [_runs(scores, name) for name, scores in (("a", a), ("b", b), ("c", c))]
    if len({len(each) for each in runs}) > 1:
        raise UserError("a, b and c have different numbers of runs; runs are paired, so give as many of each")
    count = len(runs[0])
    values = _resample(y_true, [run for of in runs for run in of], groups, [metric], weighting, resamples, seed)[metric]
    of_a, of_b, of_c = (values.runs(slice(i * count, (i + 1) * count)) for i in range(3))
    gained, gap = of_b - of_a, of_c - of_a

    def may_be(share: float) -> bool:
        """Whether b may be at that share of the way."""
        low, high = percentiles((gained - gap.times(share)).spread(seed), level)
        return low <= 0 <= high

    low, high = percentiles(gap.spread(seed), level)
    if values.counted < 2 or not (high < 0 if metric == "log_loss" else low > 0):
        return None
    middle = float(gained.whole.mean() / gap.whole.mean())
    return Ratio(metric, middle, _bound(may_be, middle, -1), _bound(may_be, middle, 1), level, count)


def _bound(inside: Callable[[float], bool], start: float, direction: int) -> float | None:
    """Where `inside` ends, from `start` on; None if it does not within a thousand."""
    step = 0.01
    while inside(start + direction * step):
        step *= 2
        if step > 1000:
            return None
    near, far = step / 2 if step > 0.01 else 0.0, step
    for _ in range(30):
        middle = (near + far) / 2
        near, far = (middle, far) if inside(start + direction * middle) else (near, middle)
    return start + direction * near


def bootstrap_intervals(
    y_true: ArrayLike,
    score: ArrayLike,
    groups: Any,
    *,
    metrics: Sequence[str] = COMPARABLE,
    weighting: Weighting = "impressions",
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """The interval of each metric of one model; arguments and errors as for `paired_bootstrap`."""
    _check_level(level)
    runs = _runs(score, "score")
    intervals = {}
    for metric, values in _resample(y_true, runs, groups, metrics, weighting, resamples, seed).items():
        drawn = values.spread(seed)
        low, high = values.interval(drawn, level, _RANGE[metric])
        value = float(values.whole.mean())
        intervals[metric] = Interval(metric, value, low, high, level, values.users, len(runs), len(drawn))
    return intervals


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values [tests]: below alpha, the family-wise error over all tests is below alpha.

    The i-th smallest (from 0) of m is multiplied by m - i; none gets below one before it (Holm, Scandinavian Journal of
    Statistics 1979). Raises UserError for values outside [0, 1].
    """
    p = inputs.probabilities(p_values, "p_values")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def multiplicities(rng: np.random.Generator, users: int, resamples: int) -> NDArray[np.float64]:
    """How often each user is drawn [resamples, users], when as many are drawn as there are."""
    drawn = np.empty((resamples, users))
    for row in drawn:
        row[:] = np.bincount(rng.integers(0, users, users, dtype=np.int32), minlength=users)
    return drawn


def degrees_of_freedom(influence: NDArray[np.float64]) -> tuple[float, int]:
    """Degrees of freedom of the variance that users' influences [users] estimate, and how many users have any.

    Satterthwaite's, as this module describes; users alike have about their number, one who outweighs all others has
    three. At least 1.
    """
    square = influence**2
    total = square.sum()
    count = int((square > 1e-24 * total).sum())
    if count < 2:
        return 1.0, count
    return max(1.0, min(3 * total**2 / float((square**2).sum()), count - 1)), count


@dataclass(frozen=True)
class _Resampled:
    """A metric of every run: of the log itself [runs], of resamples [resamples, runs], users' influence [users, runs].

    users: how many were drawn; counted: how many of them the metric looks at.
    """

    whole: NDArray[np.float64]
    drawn: NDArray[np.float64]
    influence: NDArray[np.float64]
    counted: int

    @property
    def users(self) -> int:
        return len(self.influence)

    def runs(self, which: slice) -> "_Resampled":
        return _Resampled(self.whole[which], self.drawn[:, which], self.influence[:, which], self.counted)

    def times(self, factor: float) -> "_Resampled":
        return _Resampled(self.whole * factor, self.drawn * factor, self.influence * factor, self.counted)

    def __sub__(self, other: "_Resampled") -> "_Resampled":
        whole, drawn = self.whole - other.whole, self.drawn - other.drawn
        return _Resampled(whole, drawn, self.influence - other.influence, self.counted)

    def interval(self, drawn: NDArray[np.float64], level: float, bounds: tuple[float, float]) -> tuple[float, float]:
        """The interval of draws [resamples] of the mean over runs, within the bounds."""
        if self.counted < 2:
            return math.nan, math.nan
        low, high = percentiles(drawn, level)
        return max(low, bounds[0]), min(high, bounds[1])

    def spread(self, seed: int) -> NDArray[np.float64]:
        """Draws [resamples] of the mean over runs that percentiles can be read off, undefined ones left out."""
        value, runs = self.whole.mean(), len(self.whole)
        deviation = self.drawn.mean(axis=1) - value
        degrees, users = degrees_of_freedom(self.influence.mean(axis=1))
        if users > 1:
            deviation *= np.sqrt(users / (users - 1))
            deviation *= np.sqrt(degrees / np.random.default_rng([seed, 0]).chisquare(degrees, len(deviation)))
        if runs > 1:
            standard_error = self.whole.std(ddof=1) / np.sqrt(runs)
            deviation += standard_error * np.random.default_rng([seed, runs]).standard_t(runs - 1, len(deviation))
        return np.asarray(value + deviation[~np.isnan(deviation)])


def _resample(
    y_true: ArrayLike,
    runs: Sequence[ArrayLike],
    groups: Any,
    metrics: Sequence[str],
    weighting: Weighting,
    resamples: int,
    seed: int,
) -> dict[str, _Resampled]:
    """Every metric over the resamples."""
    unknown = [metric for metric in metrics if metric not in COMPARABLE]
    if unknown:
        raise UserError(f"metrics: {', '.join(unknown)} cannot be resampled; choose of {', '.join(COMPARABLE)}")
    if resamples < 1:
        raise UserError(f"resamples is {resamples}; give 1 or more (2,000 makes a stable interval)")
    users = read_users(inputs.labels(y_true), groups, weighting)
    loss = "log_loss" in metrics
    read = inputs.probabilities if loss else inputs.scores
    statistics = []
    for run in runs:
        score = read(run, "score")
        inputs.same_length(len(users.number), score=score)
        statistics.append(user_statistics(users, score, log_loss=loss))
    sums = UserSums(users, statistics)
    rng = np.random.default_rng(seed)
    sizes = [min(_STEP, resamples - start) for start in range(0, resamples, _STEP)]
    draws = [sums.metrics(multiplicities(rng, len(users.rows), size), metrics) for size in sizes]
    drawn = np.concatenate(draws, axis=1)
    whole = sums.metrics(np.ones((1, len(users.rows))), metrics)[:, 0]
    influence = sums.influence(whole, metrics)
    counted = {metric: int((users.weight > 0).sum()) if metric == "gauc" else len(users.rows) for metric in metrics}
    return {metric: _Resampled(whole[i], drawn[i], influence[i], counted[metric]) for i, metric in enumerate(metrics)}


def _runs(scores: ArrayLike, name: str) -> list[ArrayLike]:
    """One array a run, from [rows] or [runs, rows]."""
    array = np.asarray(scores)
    if array.ndim not in (1, 2) or (array.ndim == 2 and not len(array)):
        raise UserError(f"{name} has shape {array.shape}; give scores [rows], or [runs, rows] for several runs")
    return [array] if array.ndim == 1 else list(array)


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise UserError(f"level is {level}; give the interval's coverage, in (0, 1)")


def percentiles(drawn: NDArray[np.float64], level: float) -> tuple[float, float]:
    """The interval of draws [resamples], between two of them, so that it leaves 0 out just when the p-value says so."""
    if not drawn.size:
        return math.nan, math.nan
    beyond = max(1, int((1 - level) / 2 * (len(drawn) + 1)))
    ordered = np.sort(drawn)
    return float(ordered[beyond - 1]), float(ordered[-beyond])


def two_sided(drawn: NDArray[np.float64]) -> float:
    """The p-value of draws [resamples] of a difference, see `Difference`."""
    if not drawn.size:
        return math.nan
    side = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(drawn) + 1))
