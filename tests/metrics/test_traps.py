"""Each test is named after a way in which another toolkit's metric goes wrong, and would have caught it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ctrkit.errors import UserError
from ctrkit.metrics import GAUCPartial, auc, evaluate_scores, gauc, group_aucs, normalized_entropy, pcoc
from ctrkit.metrics.gauc import Weighting

Log = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]


@pytest.fixture
def log() -> Log:
    rng = np.random.default_rng(11)
    users = np.sort(rng.zipf(1.4, 4000) % 400)
    score = rng.normal(size=4000).round(1)
    return rng.random(4000) < 1 / (1 + np.exp(1.0 - score)), score, users


def per_user(y: NDArray[Any], score: NDArray[Any], users: NDArray[Any]) -> list[tuple[int, int, float]]:
    """Impressions, clicks and AUC of every user with both classes."""
    table = []
    for user in np.unique(users):
        mine = users == user
        if 0 < y[mine].sum() < mine.sum():
            table.append((int(mine.sum()), int(y[mine].sum()), float(roc_auc_score(y[mine], score[mine]))))
    return table


@pytest.mark.parametrize(
    ("definition", "weighting", "weight"),
    [
        ("FuxiCTR gAUC", "impressions", lambda rows, clicks: rows),
        ("EasyRec gauc, mean_by_sample_num", "impressions", lambda rows, clicks: rows),
        ("FuxiCTR avgAUC", "uniform", lambda rows, clicks: 1),
        ("EasyRec gauc, its default", "uniform", lambda rows, clicks: 1),
        ("TorchEasyRec GroupedAUC", "uniform", lambda rows, clicks: 1),
        ("RecBole GAUC", "clicks", lambda rows, clicks: clicks),
        ("EasyRec gauc, mean_by_positive_num", "clicks", lambda rows, clicks: clicks),
    ],
)
def test_equals_the_toolkits_whose_definition_is_the_same(
    log: Log, definition: str, weighting: Weighting, weight: Callable[[int, int], float]
) -> None:
    table = per_user(*log)
    weights = [weight(rows, clicks) for rows, clicks, _ in table]
    expected = np.average([value for *_, value in table], weights=weights)
    assert gauc(*log, weighting=weighting).value == pytest.approx(expected, abs=1e-12), definition


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
