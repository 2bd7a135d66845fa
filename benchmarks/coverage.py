"""Do the bootstrap's 95 % intervals cover the truth in 95 % of logs? A simulation in which the truth is known.

    python -m benchmarks.coverage [--quick] [--logs N] [--users N ...] [--runs N ...] [--run-spread X] [--out FILE]

Every log is drawn anew: users with their own click rates and heavy-tailed activity, and three models that see the true
logit through noise: a, b a little better, and c, which is as good as b. Three intervals are judged: of model b alone,
of the difference b - a, and of c - b, whose truth is 0, so that what it does not cover is a false alarm. The
truth is the mean over a million users, whose own error is a few hundredths of an interval. With --runs above 1, each
model is trained that often: every run has an error of its own (an offset, and how much it blurs), and the truth is the
mean over 80 times the runs.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import arguments, emit, table
from ctrkit.metrics import Difference, Interval, auc, bootstrap_intervals, gauc, log_loss, paired_bootstrap

METRICS = ("gauc", "auc", "log_loss")
JUDGED = ("b", "b - a", "c - b")
NOISE = {"a": 1.1, "b": 1.0, "c": 1.0}
"""How blurred each model sees the true logit, in standard deviations."""


@dataclass(frozen=True)
class Simulated:
    """Labels, users and rows' true logits [rows], and what both models share of their blur."""

    y: NDArray[np.bool_]
    user: NDArray[np.int64]
    logit: NDArray[np.float64]
    blur: NDArray[np.float64]


def simulate(rng: np.random.Generator, users: int, rows_per_user: int = 12) -> Simulated:
    """A log of `users` users of a Pareto number of rows, with random click rates; about a sixth is clicked."""
    activity = np.minimum(1 + rng.pareto(1.5, users) * rows_per_user / 3, 60 * rows_per_user).astype(np.int64)
    user = np.repeat(np.arange(users), activity)
    logit = -2.2 + rng.normal(size=users)[user] * 0.8 + rng.normal(size=len(user))
    y = rng.random(len(user)) < 1 / (1 + np.exp(-logit))
    return Simulated(y, user, logit, rng.normal(size=len(user)))


def predict(rng: np.random.Generator, log: Simulated, noise: float, runs: int, spread: float) -> NDArray[np.float64]:
    """Probabilities [runs, rows] of a model; half its blur is shared with the other models, half is its own.

    spread: how much a run's offset (in logits) and its blur (in standard deviations) differ from the next one's.
    """
    own = rng.normal(size=len(log.y))
    seen = log.logit + noise * (log.blur + own) / np.sqrt(2)
    logits = [seen + spread * (rng.normal() + rng.normal() * log.blur) for _ in range(runs)]
    return np.asarray(1 / (1 + np.exp(-np.stack(logits))))


def values(log: Simulated, p: NDArray[np.float64]) -> NDArray[np.float64]:
    """The METRICS of one run."""
    return np.array([gauc(log.y, p, log.user).value, auc(log.y, p), log_loss(log.y, p)])


def truth(users: int, runs: int, spread: float) -> dict[tuple[str, str], float]:
    """Of each of JUDGED, each metric over all users and all runs there could be: the mean over 80 large logs."""
    rng = np.random.default_rng(1)
    total = {name: np.zeros(len(METRICS)) for name in ("a", "b")}
    for _ in range(80):
        log = simulate(rng, users)
        for name, sums in total.items():
            for run in predict(rng, log, NOISE[name], runs, spread):
                sums += values(log, run) / (80 * runs)
    of_all = {"b": total["b"], "b - a": total["b"] - total["a"], "c - b": np.zeros(len(METRICS))}
    return {(judged, metric): float(of_all[judged][i]) for judged in JUDGED for i, metric in enumerate(METRICS)}


def intervals(seed: int, users: int, runs: int, options: argparse.Namespace) -> dict[str, Mapping[str, Any]]:
    """The intervals of one log, of each of JUDGED by metric."""
    rng = np.random.default_rng([7, seed])
    log = simulate(rng, users)
    a, b, c = (predict(rng, log, noise, runs, options.run_spread if runs > 1 else 0.0) for noise in NOISE.values())
    settings: dict[str, Any] = {"resamples": options.resamples, "seed": seed}
    return {
        "b": bootstrap_intervals(log.y, b, log.user, **settings),
        "b - a": paired_bootstrap(log.y, a, b, log.user, **settings),
        "c - b": paired_bootstrap(log.y, b, c, log.user, **settings),
    }


def case(users: int, runs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Coverage and mean width of the intervals on logs of so many users, for models of so many runs."""
    true = truth(12_500, runs, options.run_spread if runs > 1 else 0.0)
    hits = dict.fromkeys(true, 0)
    width = dict.fromkeys(true, 0.0)
    for seed in range(options.logs):
        for judged, of_metrics in intervals(seed, users, runs, options).items():
            for metric, each in of_metrics.items():
                assert isinstance(each, Interval | Difference)
                hits[judged, metric] += each.low <= true[judged, metric] <= each.high
                width[judged, metric] += (each.high - each.low) / options.logs
    print(f"\n{options.logs} logs of {users} users, {runs} runs a model")
    share = {key: hits[key] / options.logs for key in true}
    rows = [(*key, f"{true[key]:+.5f}", f"{width[key]:.5f}", f"{share[key]:.3f}") for key in true]
    table(("judged", "metric", "truth", "mean width", "coverage"), rows)
    columns = ("judged", "metric", "truth", "mean_width", "coverage")
    found = [dict(zip(columns, (*key, true[key], width[key], share[key]), strict=True)) for key in true]
    return {"users": users, "runs": runs, "intervals": found}


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, print, emit."""
    parser = arguments("Coverage of the bootstrap's 95 % intervals on simulated logs with a known truth.")
    parser.add_argument("--logs", type=int, help="logs to simulate; 1,000, or 100 with --quick")
    parser.add_argument("--users", type=int, nargs="+", default=[500, 100], help="users a log")
    parser.add_argument("--runs", type=int, nargs="+", default=[1], help="training runs a model")
    parser.add_argument("--run-spread", type=float, default=0.1, help="how much runs differ, in logits")
    parser.add_argument("--resamples", type=int, default=1000, help="resamples a log")
    options = parser.parse_args(argv)
    options.logs = options.logs or (100 if options.quick else 1000)
    error = 1.96 * np.sqrt(0.95 * 0.05 / options.logs)
    print(f"over {options.logs} logs a true 95 % shows as {0.95 - error:.3f} to {0.95 + error:.3f}")
    cases = [case(users, runs, options) for runs, users in itertools.product(options.runs, options.users)]
    settings = {name: getattr(options, name) for name in ("logs", "run_spread", "resamples")}
    emit({"benchmark": "coverage", "level": 0.95, **settings, "cases": cases}, options.out)


if __name__ == "__main__":
    main()
