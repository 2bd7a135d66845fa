"""Each test is named after a way in which another toolkit's metric goes wrong, and would have caught it."""

import multiprocessing
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ctrkit.errors import UserError
from ctrkit.evaluation.predictions import Predictions
from ctrkit.evaluation.report import EvalConfig
from ctrkit.evaluation.stream import evaluate_stream
from ctrkit.metrics import (
    METRICS,
    GAUCPartial,
    auc,
    bootstrap_intervals,
    debias_probability,
    ece,
    evaluate_scores,
    gauc,
    group_aucs,
    normalized_entropy,
    pcoc,
    reliability_curve,
)
from ctrkit.metrics.gauc import Weighting

Log = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]


@pytest.fixture
def log() -> Log:
    rng = np.random.default_rng(11)
    users = np.sort(rng.zipf(1.4, 4000) % 400)
    score = rng.normal(size=4000).round(1)
    return rng.random(4000) < 1 / (1 + np.exp(1.0 - score)), score, users


Formula = Callable[[NDArray[Any], NDArray[Any]], float]


def by_mean_ranks(y: NDArray[Any], score: NDArray[Any]) -> float:
    """Mann and Whitney: the ranks of the clicks, ties sharing their mean rank, less the least that they can be."""
    rank = (score[:, None] > score).sum(axis=1) + ((score[:, None] == score).sum(axis=1) + 1) / 2
    clicks, others = y.sum(), (~y).sum()
    return float((rank[y].sum() - clicks * (clicks + 1) / 2) / (clicks * others))


def by_trapezoids(y: NDArray[Any], score: NDArray[Any]) -> float:
    """The area under the ROC curve, whose corners are the distinct scores."""
    thresholds = [np.inf, *sorted(set(score), reverse=True)]
    hits, alarms = ([float((score[of] >= t).mean()) for t in thresholds] for of in (y, ~y))
    return float(np.trapezoid(hits, alarms))


def by_scikit_learn(y: NDArray[Any], score: NDArray[Any]) -> float:
    """One call a user."""
    return float(roc_auc_score(y, score))


DEFINITIONS: dict[str, tuple[Weighting, Formula, Callable[[int, int], float]]] = {
    "RecBole GAUC: users weigh their clicks": ("clicks", by_mean_ranks, lambda rows, clicks: clicks),
    "FuxiCTR gAUC: users weigh their impressions": ("impressions", by_scikit_learn, lambda rows, clicks: rows),
    "FuxiCTR avgAUC: users weigh the same": ("uniform", by_scikit_learn, lambda rows, clicks: 1),
    "TorchEasyRec GroupedAUC: users weigh the same": ("uniform", by_trapezoids, lambda rows, clicks: 1),
    "EasyRec gauc, its default: users weigh the same": ("uniform", by_scikit_learn, lambda rows, clicks: 1),
    "EasyRec mean_by_sample_num: impressions": ("impressions", by_scikit_learn, lambda rows, clicks: rows),
    "EasyRec mean_by_positive_num: clicks": ("clicks", by_scikit_learn, lambda rows, clicks: clicks),
}
"""Toolkits whose GAUC is ours under a weighting, users of one class left out, each written from its formula."""


@pytest.mark.parametrize("definition", list(DEFINITIONS))
def test_equals_the_toolkits_whose_definition_is_the_same(log: Log, definition: str) -> None:
    weighting, auc_of, weight_of = DEFINITIONS[definition]
    y, score, users = log
    top = bottom = 0.0
    for user in np.unique(users):
        mine = users == user
        if 0 < y[mine].sum() < mine.sum():
            weight = weight_of(int(mine.sum()), int(y[mine].sum()))
            top, bottom = top + weight * auc_of(y[mine], score[mine]), bottom + weight
    assert gauc(*log, weighting=weighting).value == pytest.approx(top / bottom, abs=1e-12)


def test_weightings_are_told_apart(log: Log) -> None:
    values = {weighting: gauc(*log, weighting=weighting) for weighting in ("impressions", "clicks", "uniform")}
    assert len({round(result.value, 6) for result in values.values()}) == 3
    assert all(result.weighting == name for name, result in values.items())


def test_unsorted_input_drops_or_splits_users(log: Log) -> None:
    """RecIS, XDL: runs of one id within a batch stand for the user, and unsorted rows gave a GAUC of 1.000."""
    shuffled = np.random.default_rng(0).permutation(len(log[0]))
    y, score, users = (column[shuffled] for column in log)
    assert gauc(y, score, users) == gauc(*log)
    assert gauc(*log).value < 0.9


def test_first_and_last_user_are_dropped() -> None:
    """RecIS, XDL: the runs at a batch's edges are cut off."""
    result = gauc([0, 1, 0, 1], [0.1, 0.2, 0.4, 0.3], [1, 1, 2, 2])
    assert (result.value, result.coverage.groups_kept) == (0.5, 2)


def test_average_over_batches_is_not_gauc(log: Log) -> None:
    """torchrec: sessions are those of one batch. Only shards that split no user may be merged, and those exactly."""
    y, score, users = log
    batches = [slice(start, start + 256) for start in range(0, len(y), 256)]
    average = np.nanmean([gauc(y[part], score[part], users[part]).value for part in batches])
    assert abs(average - gauc(*log).value) > 1e-3
    merged = GAUCPartial("impressions")
    for start, stop in ((0, 20), (20, 21), (21, 400)):
        mine = (users >= start) & (users < stop)
        merged += group_aucs(y[mine], score[mine], users[mine]).partial()
    assert merged.gauc() == gauc(*log)


def test_single_class_user_gives_nan() -> None:
    """torch-rechub: scikit-learn's nan for one user becomes the nan of the whole log."""
    result = gauc([0, 1, 1, 1, 0], [0.1, 0.2, 0.3, 0.4, 0.5], ["both", "both", "clicks", "clicks", "none"])
    assert (result.value, result.coverage.groups_left_out) == (1.0, 2)


def test_single_class_user_counts_as_half() -> None:
    """torchrec compute_auc_per_group: users without an AUC pull the mean to 0.5."""
    assert gauc([0, 1, 1, 1], [0.1, 0.2, 0.3, 0.4], [1, 1, 2, 2], weighting="uniform").value == 1.0


def test_user_of_equal_scores_is_skipped() -> None:
    """torchrec GAUC: a user to whom the model gave one score for all ads is half right, not left out."""
    result = gauc([0, 1, 0, 1], [0.5, 0.5, 0.1, 0.9], [1, 1, 2, 2])
    assert (result.value, result.coverage.groups_kept) == (0.75, 2)


@pytest.mark.parametrize("clicks_first", [True, False])
def test_ties_are_broken_by_row_number(clicks_first: bool) -> None:
    """TorchEasyRec's SQL ranks by ROW_NUMBER(): the order of rows decides, between 0 and 1."""
    y = [1, 1, 0, 0] if clicks_first else [0, 0, 1, 1]
    assert gauc(y, [0.3] * 4, ["u"] * 4).value == 0.5
    assert auc(y, [0.3] * 4) == 0.5


def test_ties_take_the_lowest_rank() -> None:
    """EasyRec's SQL uses RANK(): all of a tie get its lowest rank, so ties lose."""
    assert gauc([0, 1, 0, 1], [0.2, 0.2, 0.1, 0.3], ["u"] * 4).value == 3.5 / 4


def test_hashed_group_keys_merge_users() -> None:
    """TorchEasyRec groups by a hash bucket. Keys that are equal modulo 2**31, 2**32 or 2**53 are different users."""
    for step in (2**31, 2**32, 2**53, 2**62):
        users = np.array([5, 5, 5 + step, 5 + step])
        result = gauc([0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4], users)
        assert (result.value, result.coverage.groups_kept) == (0.5, 2)
    collide = ["1", 1, "1", 1]  # one type, one user, if numpy makes them an array
    assert gauc([0, 1, 1, 0], [0.1, 0.4, 0.3, 0.2], collide).coverage.groups_kept == 2


def test_ids_through_float32() -> None:
    """DeepCTR-Torch, torch-rechub: ids above 2**24 merge in float32, above 2**53 in float64."""
    ids = np.array([2**53, 2**53, 2**53 + 1, 2**53 + 1])
    assert gauc([0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4], ids).coverage.groups_kept == 2
    for dtype in (np.float32, np.float64):
        with pytest.raises(UserError, match="in which large ids merge"):
            gauc([0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4], ids.astype(dtype))


def test_auc_on_200_thresholds() -> None:
    """TorchEasyRec, RecIS: scores that differ by less than a bin are no tie. Click rates are small, so many do."""
    rng = np.random.default_rng(4)
    score = rng.random(2000) * 1e-3
    y = rng.random(2000) < score * 500
    assert auc(y, score) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert auc(y, np.floor(score * 200)) == 0.5


def test_auc_and_gauc_cannot_be_had_together(log: Log) -> None:
    """RecBole: ranking and value metrics exclude each other."""
    y, score, users = log
    report = evaluate_scores(y, 1 / (1 + np.exp(-score)), users)
    assert report.auc == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert report.gauc == gauc(*log).value
    assert report.coverage == gauc(*log).coverage


def test_pcoc_is_inverted() -> None:
    """Some call observed over predicted by this name: who bids too high must see a number above 1."""
    assert pcoc([0, 0, 0, 1], [0.5, 0.5, 0.5, 0.5]) == 2.0


def test_entropy_of_another_base_rate() -> None:
    """Normalised entropy: the constant that it is compared with is the click rate of the same rows."""
    assert normalized_entropy([0, 0, 0, 1], [0.25] * 4) == pytest.approx(1.0, abs=1e-15)
    assert normalized_entropy([0, 0, 0, 1], [0.5] * 4) > 1.2


def test_entropy_in_bits_or_in_nats() -> None:
    """torchrec takes log2, TorchEasyRec ln: the ratio is the same, if both its sides take the same."""
    y, p = np.array([1, 0, 0, 1, 0]), np.array([0.7, 0.2, 0.4, 0.6, 0.1])
    loss = -np.mean(np.log2(np.where(y, p, 1 - p)))
    rate = y.mean()
    bits = -(rate * np.log2(rate) + (1 - rate) * np.log2(1 - rate))
    assert normalized_entropy(y, p) == pytest.approx(loss / bits, abs=1e-15)


def test_users_that_span_batches_are_split(log: Log, tmp_path: Path) -> None:
    """RecIS, XDL, torchrec: a user whose rows lie in several batches counts as several, or not at all."""
    y, score, users = log
    order = np.random.default_rng(1).permutation(len(y))
    p = 1 / (1 + np.exp(-score))
    columns = {"label": y[order], "group": users[order], "probability": p[order]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet", row_group_size=64)
    report = evaluate_stream(Predictions.open(tmp_path / "p.parquet"), EvalConfig(), partition_rows=500).report
    assert (report.gauc, report.coverage) == (gauc(*log).value, gauc(*log).coverage)


def test_users_of_one_row_count_as_half() -> None:
    """A user of one row has no pair: left out, and told apart from one who is ranked like a coin."""
    result = gauc([0, 1, 1], [0.2, 0.9, 0.4], ["a", "a", "b"])
    assert (result.value, result.coverage.groups_left_out, result.coverage.impressions_left_out) == (1.0, 1, 1)


@pytest.mark.parametrize("weighted", [False, True])
def test_one_heavy_user_pads_all_the_others(weighted: bool) -> None:
    """torchrec pads every user to the longest: here to 20,001 users times 131,072 rows, or 20 GB."""
    users = np.concatenate([np.zeros(100_000, dtype=int), np.repeat(np.arange(1, 20_001), 2)])
    rng = np.random.default_rng(0)
    y, score = rng.random(len(users)) < 0.3, rng.random(len(users))
    tracemalloc.start()
    result = gauc(y, score, users, sample_weight=np.ones(len(users)) if weighted else None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * len(users) + 60 * 2**20
    assert result.coverage.groups_kept > 5000


def test_a_pool_of_processes_for_every_evaluation(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """FuxiCTR forks half the cores' number of processes each time, on machines that others use too."""

    def forbidden(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(os, "fork", forbidden)
    monkeypatch.setattr(multiprocessing.Process, "start", forbidden)
    assert gauc(*log).value > 0.5


def test_gauc_is_there_but_training_cannot_choose_by_it() -> None:
    """torch-rechub has a GAUC that its trainer does not know."""
    assert METRICS["gauc"] is True


def test_no_rows_are_an_exception() -> None:
    """EasyRec's booster metric and others fail on an empty list of batches: no rows define nothing, and that is all."""
    report = evaluate_scores([], [], [])
    assert (report.rows, report.gauc, report.auc, report.log_loss) == (0, None, None, None)


def test_calibration_of_the_sampled_log() -> None:
    """PCOC is 1 on a log whose negatives were down-sampled, and far from 1 online, unless the scores are de-biased."""
    rng = np.random.default_rng(3)
    q = rng.beta(1, 60, 400_000)
    y = rng.random(len(q)) < q
    w = 0.1
    sampled = q / (q + (1 - q) * w)
    kept = y | (rng.random(len(q)) < w)
    assert pcoc(y[kept], sampled[kept]) == pytest.approx(1.0, abs=0.05)
    assert pcoc(y, sampled) > 5
    assert pcoc(y, debias_probability(sampled, w)) == pytest.approx(1.0, abs=0.05)


def test_bins_of_equal_width() -> None:
    """At click rates of a percent, ten bins of equal width are one: what is wrong at both ends cancels inside."""
    p = np.repeat([0.01, 0.03], 10_000)
    y = np.concatenate([np.arange(10_000) < 200, np.arange(10_000) < 200])  # 2 % of each
    equal_width = abs(p.mean() - y.mean())
    assert equal_width == pytest.approx(0.0, abs=1e-12)
    assert ece(y, p) == pytest.approx(0.01, abs=1e-12)
    assert len(reliability_curve(y, p).weight) == 2


def test_impressions_of_a_user_count_as_independent() -> None:
    """DeLong, binomial z-tests: every row copied makes the interval narrower, though no user is added."""
    rng = np.random.default_rng(7)
    users = rng.integers(0, 60, 600)
    p = rng.random(600)
    y = rng.random(600) < p
    once, copied = (
        bootstrap_intervals(*(np.tile(each, times) for each in (y, p, users)), metrics=["auc"], resamples=300)["auc"]
        for times in (1, 9)
    )
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_scores_through_float32() -> None:
    """DeepCTR-Torch, torch-rechub: float64 scores that differ in their last bits tie as float32."""
    score = np.array([0.3, np.nextafter(0.3, 1)])
    assert gauc([0, 1], score, ["u", "u"]).value == auc([0, 1], score) == 1.0
    assert evaluate_scores([0, 1], score, ["u", "u"]).auc == 1.0
