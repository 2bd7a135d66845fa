"""Do the bootstrap's 95 % intervals cover the truth in 95 % of logs? A simulation in which the truth is known.

    python -m benchmarks.coverage [--quick] [--logs N] [--users N] [--runs N --run-spread X] [--out FILE]

Every log is drawn anew: users with their own click rates and heavy-tailed activity, and two models that see the true
logit through noise, b a little better than a. The truth is the difference over 2,000 times the users, whose own error
is about a hundredth of an interval. With --runs above 1, each model is trained that often: every run has an error of
its own (an offset, and how much it blurs), and the truth is the mean over 80 times the runs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import arguments, emit, table
from ctrkit.metrics import auc, gauc, log_loss, paired_bootstrap

METRICS = ("gauc", "auc", "log_loss")
NOISE = {"a": 1.1, "b": 1.0}
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
    """Probabilities [runs, rows] of a model; half its blur is shared with the other model, half is its own.

    spread: how much a run's offset (in logits) and its blur (in standard deviations) differ from the next one's.
    """
    own = rng.normal(size=len(log.y))
    seen = log.logit + noise * (log.blur + own) / np.sqrt(2)
    logits = [seen + spread * (rng.normal() + rng.normal() * log.blur) for _ in range(runs)]
    return np.asarray(1 / (1 + np.exp(-np.stack(logits))))


def values(log: Simulated, p: NDArray[np.float64]) -> NDArray[np.float64]:
    """The METRICS of one run."""
    return np.array([gauc(log.y, p, log.user).value, auc(log.y, p), log_loss(log.y, p)])


def true_differences(rng: np.random.Generator, users: int, runs: int, spread: float) -> dict[str, float]:
    """b - a of each metric over all users and all runs there could be: the mean over 80 large logs with new runs."""
    total = np.zeros(len(METRICS))
    for _ in range(80):
        log = simulate(rng, users)
        a, b = (predict(rng, log, noise, runs, spread) for noise in NOISE.values())
        for run_a, run_b in zip(a, b, strict=True):
            total += (values(log, run_b) - values(log, run_a)) / (80 * runs)
    return dict(zip(METRICS, total.tolist(), strict=True))


def covered(options: argparse.Namespace, truth: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The share of logs whose interval holds the truth, and the intervals' mean width."""
    hits = dict.fromkeys(METRICS, 0)
    width = dict.fromkeys(METRICS, 0.0)
    for i in range(options.logs):
        rng = np.random.default_rng([7, i])
        log = simulate(rng, options.users)
        a, b = (predict(rng, log, noise, options.runs, options.run_spread) for noise in NOISE.values())
        for name, each in paired_bootstrap(log.y, a, b, log.user, resamples=options.resamples, seed=i).items():
            hits[name] += each.low <= truth[name] <= each.high
            width[name] += (each.high - each.low) / options.logs
    return {name: hits[name] / options.logs for name in METRICS}, width


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, print, emit."""
    parser = arguments("Coverage of the bootstrap's 95 % intervals on simulated logs with a known truth.")
    parser.add_argument("--logs", type=int, help="logs to simulate; 1,000, or 200 with --quick")
    parser.add_argument("--users", type=int, default=500, help="users a log")
    parser.add_argument("--runs", type=int, default=1, help="training runs a model")
    parser.add_argument("--run-spread", type=float, default=0.0, help="how much runs differ, in logits")
    parser.add_argument("--resamples", type=int, default=1000, help="resamples a log")
    options = parser.parse_args(argv)
    options.logs = options.logs or (200 if options.quick else 1000)
    truth = true_differences(np.random.default_rng(1), 25 * options.users, options.runs, options.run_spread)
    share, width = covered(options, truth)
    error = 1.96 * np.sqrt(0.95 * 0.05 / options.logs)
    print(
        f"{options.logs} logs of {options.users} users; a true 95 % shows as {0.95 - error:.3f} to {0.95 + error:.3f}"
    )
    table(
        ("metric", "true difference", "mean width", "coverage"),
        [(name, f"{truth[name]:+.5f}", f"{width[name]:.5f}", f"{share[name]:.3f}") for name in METRICS],
    )
    settings = {name: getattr(options, name) for name in ("logs", "users", "runs", "run_spread", "resamples")}
    emit({"benchmark": "coverage", **settings, "truth": truth, "coverage": share, "mean_width": width}, options.out)


if __name__ == "__main__":
    main()
