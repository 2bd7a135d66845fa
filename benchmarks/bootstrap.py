"""The paired bootstrap over users beside the naive way, which evaluates the drawn rows again.

    python -m benchmarks.bootstrap [--quick] [--out FILE]

A comparison of two models on 1 M rows of 100 k users with 2,000 resamples; of the naive way, which does the same with
scikit-learn's functions and ctrkit's GAUC on the rows of the drawn users, a few resamples are timed and scaled up.
"""

import time

import numpy as np
from numpy.typing import NDArray

from benchmarks.gauc import Log, make_log
from benchmarks.report import arguments, emit, table
from ctrkit.metrics import gauc, paired_bootstrap


def naive_resample(log: Log, other: NDArray[np.float64], rng: np.random.Generator) -> list[float]:
    """GAUC, AUC and log loss of both models on one resample, evaluated anew."""
    from sklearn.metrics import log_loss, roc_auc_score

    users = len(np.unique(log.user))
    times = np.bincount(rng.integers(0, users, users), minlength=int(log.user.max()) + 1)[log.user]
    rows = np.repeat(np.arange(len(log.y)), times)
    y, user = log.y[rows], log.user[rows]
    values = []
    for score in (log.score, other):
        drawn = score[rows]
        values += [gauc(y, drawn, user).value, float(roc_auc_score(y, drawn)), float(log_loss(y, drawn))]
    return values


def main() -> None:
    """Measure, print, emit."""
    options = arguments("The paired bootstrap over users beside evaluating each resample anew.").parse_args()
    resamples = 2000
    log = make_log(1_000_000, 100_000)
    other = np.clip(log.score.astype(np.float64) * np.random.default_rng(3).uniform(0.8, 1.2, len(log.y)), 0, 1)
    start = time.perf_counter()
    differences = paired_bootstrap(log.y, log.score, other, log.user, resamples=resamples)
    took = time.perf_counter() - start
    few = 2 if options.quick else 10
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(few):
        naive_resample(log, other, rng)
    naive = (time.perf_counter() - start) / few * resamples
    table(
        ("way", "resamples", "seconds"),
        [
            ("ctrkit", f"{resamples:,}", f"{took:.2f}"),
            (f"evaluate anew, scaled up from {few}", f"{resamples:,}", f"{naive:.0f}"),
        ],
    )
    table(
        ("metric", "a", "b", "difference", "95 % interval", "p"),
        [
            (
                name,
                f"{d.a:.6f}",
                f"{d.b:.6f}",
                f"{d.difference:+.6f}",
                f"[{d.low:+.6f}, {d.high:+.6f}]",
                f"{d.p_value:.4f}",
            )
            for name, d in differences.items()
        ],
    )
    result = {
        "benchmark": "bootstrap",
        "quick": options.quick,
        "rows": len(log.y),
        "users": differences["gauc"].users,
        "resamples": resamples,
    }
    emit({**result, "bootstrap_s": took, "naive_s": naive, "speedup": naive / took}, options.out)


if __name__ == "__main__":
    main()
