"""GAUC side by side: ctrkit, a bare numpy.sort, the per-user scikit-learn loop, FuxiCTR and polars.

    python -m benchmarks.gauc [--quick] [--out FILE]

A log of 5 M rows and 200 k users, activity by Zipf's law, int64 users, float32 scores; the slow ways get 200 k rows of
20 k users. `sort_ratio` is ctrkit's time over that of numpy.sort for as many random 64-bit keys, both the best of
interleaved runs; `loop_speedup` and `fuxictr_speedup` are the times of the scikit-learn loop and of FuxiCTR over
ctrkit's. Where FuxiCTR is not installed its algorithm is timed, as its row says. Without --quick there are more runs,
and one of 50 M rows with its peak memory.
"""

import importlib
import multiprocessing
import resource
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import arguments, emit, table
from ctrkit.metrics import gauc

Row = tuple[str, int, float, float | None]
"""Way, rows, seconds, value."""
FUXICTR = "FuxiCTR's gAUC"
_REWRITTEN = "not installed, the same algorithm"


@dataclass(frozen=True)
class Log:
    """Labels bool, scores float32, users int64, all [rows]."""

    y: NDArray[np.bool_]
    score: NDArray[np.float32]
    user: NDArray[np.int64]


def make_log(rows: int, users: int, seed: int = 0) -> Log:
    """Users by Zipf's law (exponent 1), none without a row; click rate about a tenth, scores that know something."""
    rng = np.random.default_rng(seed)
    share = np.cumsum(1.0 / np.arange(1, users + 1))
    user = np.concatenate((np.arange(users), np.searchsorted(share, rng.random(rows - users) * share[-1])))
    rng.shuffle(user)
    logit = rng.normal(-2.5, 1.0, rows)
    y = rng.random(rows) < 1 / (1 + np.exp(-logit))
    score = 1 / (1 + np.exp(-logit - rng.normal(size=rows)))
    return Log(y, score.astype(np.float32), rng.permutation(users)[user])


def best(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """Seconds of each function, the best of interleaved runs, so that a busy moment does not hit one of them alone."""
    seconds = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds


def sklearn_loop(log: Log) -> float:
    """The usual way: scikit-learn once a user, on rows sorted by user."""
    from sklearn.metrics import roc_auc_score

    order = np.argsort(log.user, kind="stable")
    y, score, user = log.y[order], log.score[order], log.user[order]
    cuts = np.flatnonzero(np.diff(user)) + 1
    top = bottom = 0.0
    for label, of_user in zip(np.split(y, cuts), np.split(score, cuts), strict=True):
        if 0 < label.sum() < len(label):
            top += len(label) * roc_auc_score(label, of_user)
            bottom += len(label)
    return top / bottom


def polars_gauc(log: Log) -> float:
    """Average ranks within each user, all cores, one lazy query."""
    import polars as pl

    frame = pl.LazyFrame({"y": log.y, "score": log.score, "user": log.user})
    won = (pl.col("score").rank("average") * pl.col("y")).sum()
    users = frame.group_by("user").agg(rows=pl.len(), clicks=pl.col("y").sum(), ranks=won)
    clicks, rows = pl.col("clicks").cast(pl.Float64), pl.col("rows").cast(pl.Float64)
    auc = (pl.col("ranks") - clicks * (clicks + 1) / 2) / (clicks * (rows - clicks))
    both = users.filter((clicks > 0) & (clicks < rows))
    return float(both.select((auc * rows).sum() / rows.sum()).collect().item())


def fuxictr_gauc(log: Log) -> float:
    """FuxiCTR's own gAUC, where it is installed."""
    metrics = importlib.import_module("fuxictr.metrics")
    return float(metrics.evaluate_metrics(log.y.astype(float), log.score, metrics=["gAUC"], group_id=log.user)["gAUC"])


def fuxictr_algorithm(log: Log) -> float:
    """FuxiCTR's algorithm: polars parts the log by user, a pool of half the cores calls scikit-learn for each."""
    import polars as pl

    parts = pl.DataFrame({"user": log.user, "y": log.y.astype(float), "score": log.score}).partition_by("user")
    with multiprocessing.Pool(max(1, multiprocessing.cpu_count() // 2)) as pool:
        tasks = [pool.apply_async(_weighed_auc, (part,)) for part in parts]
        weighed = np.array([task.get() for task in tasks])
    return float(weighed[:, 0].sum() / weighed[:, 1].sum())


def _weighed_auc(part: Any) -> tuple[float, float]:
    """A user's AUC times its rows, and its rows; nothing for a user of one class."""
    from sklearn.metrics import roc_auc_score

    y = part["y"].to_numpy()
    return (len(y) * roc_auc_score(y, part["score"].to_numpy()), len(y)) if 0 < y.sum() < len(y) else (0.0, 0.0)


def fast_ways(log: Log, repeats: int) -> list[Row]:
    """Ways that can take the whole log: ctrkit on several column types beside the bare sort, then polars."""
    rows = len(log.y)
    keys = np.random.default_rng(1).integers(0, 2**63, rows, dtype=np.uint64)
    wide = log.score.astype(np.float64) + np.random.default_rng(2).random(rows) * 1e-9
    spread = log.user * np.int64(0x1E3779B97F4A7C15)
    ways: dict[str, Callable[[], Any]] = {
        "numpy.sort of uint64": lambda: np.sort(keys),
        "ctrkit": lambda: gauc(log.y, log.score, log.user).value,
        "ctrkit, float64 scores": lambda: gauc(log.y, wide, log.user).value,
        "ctrkit, 64-bit hashed users": lambda: gauc(log.y, log.score, spread).value,
    }
    seconds = best(repeats, *ways.values())
    result: list[Row] = [
        (name, rows, took, None if "sort" in name else way())
        for (name, way), took in zip(ways.items(), seconds, strict=True)
    ]
    try:
        result.append(("polars", rows, best(2, lambda: polars_gauc(log))[0], polars_gauc(log)))
    except ImportError as error:
        print(f"polars: skipped, {error}")
    return result


def slow_ways(log: Log) -> list[Row]:
    """Ways that need a small log."""
    rows = len(log.y)
    result: list[Row] = [
        ("ctrkit", rows, best(20, lambda: gauc(log.y, log.score, log.user))[0], gauc(log.y, log.score, log.user).value)
    ]
    ways = (
        ("scikit-learn loop", sklearn_loop),
        (FUXICTR, fuxictr_gauc),
        (f"{FUXICTR}: {_REWRITTEN}", fuxictr_algorithm),
    )
    for name, way in ways:
        if name.startswith(FUXICTR) and any(done[0] == FUXICTR for done in result):
            continue  # the real one has run
        start = time.perf_counter()
        try:
            value = way(log)
        except ImportError as error:
            print(f"{name}: skipped, {error}")
            continue
        result.append((name, rows, time.perf_counter() - start, value))
    return result


def large_log() -> dict[str, float]:
    """50 M rows of 2 M users: seconds, memory beside the log, and the process's peak, the log's making included."""
    log = make_log(50_000_000, 2_000_000)
    took = best(1, lambda: gauc(log.y, log.score, log.user))[0]
    tracemalloc.start()
    gauc(log.y, log.score, log.user)
    beside = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "large_rows": 50_000_000,
        "large_s": took,
        "large_log_gib": (log.y.nbytes + log.score.nbytes + log.user.nbytes) / 2**30,
        "large_beside_log_gib": beside / 2**30,
        "large_process_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Measure, print, emit."""
    parser = arguments("GAUC side by side: ctrkit, numpy.sort, scikit-learn, FuxiCTR, polars.")
    options = parser.parse_args()
    large = {} if options.quick else large_log()
    fast = fast_ways(make_log(5_000_000, 200_000), repeats=5 if options.quick else 15)
    slow = slow_ways(make_log(200_000, 20_000))
    table(
        ("way", "rows", "seconds", "rows/s", "GAUC"),
        [
            (name, f"{rows:,}", f"{took:.4f}", f"{rows / took:,.0f}", "" if value is None else f"{value:.9f}")
            for name, rows, took, value in [*fast, *slow]
        ],
    )
    seconds = {name: took for name, _, took, _ in fast}
    few = {name: took for name, _, took, _ in slow}
    fuxictr = next((name for name in few if name.startswith(FUXICTR)), None)
    emit(
        {
            "benchmark": "gauc",
            "quick": options.quick,
            "rows": 5_000_000,
            "users": 200_000,
            "sort_ratio": seconds["ctrkit"] / seconds["numpy.sort of uint64"],
            "sort_ratio_float64": seconds["ctrkit, float64 scores"] / seconds["numpy.sort of uint64"],
            "loop_rows": slow[0][1],
            "loop_speedup": few["scikit-learn loop"] / few["ctrkit"],
            "fuxictr_speedup": few[fuxictr] / few["ctrkit"] if fuxictr else None,
            "fuxictr_speedup_against": fuxictr,
            "rows_per_s": 5_000_000 / seconds["ctrkit"],
            "seconds": {f"{name}, {rows} rows": took for name, rows, took, _ in [*fast, *slow]},
            **large,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
