"""Shards of a log merge to the report of the whole, to the last bit."""

import json
import pickle
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ctrkit.errors import UserError
from ctrkit.metrics import ReportPartial, evaluate_scores
from ctrkit.metrics.score_table import ScoreSums, ScoreTable

PROBABILITIES = [st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.7, 1.0]), st.floats(0, 1, width=32)]
WEIGHTS = [
    st.none(),
    st.just(0.0) | st.floats(1e-100, 9),
    st.sampled_from([0.1, 0.2, 0.3, 0.7]),
    st.integers(0, 3).map(float),
]


@st.composite
def logs(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Labels, probabilities, users and weights or None."""
    p, w = draw(st.sampled_from(PROBABILITIES)), draw(st.sampled_from(WEIGHTS))
    rows = draw(st.lists(st.tuples(st.booleans(), p, st.integers(0, 6), w), max_size=50))
    label, probability, user, weight = (np.array([row[i] for row in rows]) for i in range(4))
    weighted = bool(rows) and rows[0][3] is not None
    return label.astype(bool), probability.astype(float), user.astype(np.int64), weight if weighted else None


def part(log: tuple[Any, ...], rows: Any) -> tuple[Any, ...]:
    return tuple(None if column is None else column[rows] for column in log)


@settings(deadline=None, max_examples=200)
@given(logs(), st.lists(st.integers(0, 3), min_size=7, max_size=7), st.randoms(use_true_random=False))
def test_any_shards_in_any_order_give_the_whole(log: tuple[Any, ...], shard_of_user: list[int], random: Any) -> None:
    """Rows are shuffled, users put into shards at will, partials pickled and merged pairwise in any order."""
    order = list(range(len(log[0])))
    random.shuffle(order)
    shuffled = part(log, order)
    shard = np.array(shard_of_user)[shuffled[2]]
    partials = [ReportPartial.of(*part(shuffled, shard == i)) for i in range(4)]
    while len(partials) > 1:
        random.shuffle(partials)
        pair = pickle.loads(pickle.dumps(partials.pop())) + partials.pop()  # noqa: S301
        partials.append(pair)
    assert json.dumps(partials[0].report().as_dict()) == json.dumps(evaluate_scores(*log).as_dict())


@settings(deadline=None, max_examples=100)
@given(logs(), st.lists(st.floats(0, 1), max_size=3))
def test_ranges_of_scores_give_what_one_table_gives(log: tuple[Any, ...], cuts: list[float]) -> None:
    label, probability, users, weight = log
    whole = ReportPartial.of(*log)
    sums = ScoreSums(whole.weight)
    edges = [-1.0, *sorted(cuts), 1.0]
    for low, high in pairwise(edges):
        inside = (probability > low) & (probability <= high)
        sums.add(ScoreTable.of(label[inside], probability[inside], None if weight is None else weight[inside]))
    by_user = ReportPartial.merge(ReportPartial.of(*part(log, users % 2 == i), scores=False) for i in range(2))
    assert json.dumps(by_user.report(sums).as_dict()) == json.dumps(whole.report().as_dict())
    one = ScoreSums(whole.weight)
    one.add(whole.scores)
    for name in ("predicted", "observed", "weight", "low", "high"):
        assert getattr(sums.curve(), name).tolist() == getattr(one.curve(), name).tolist()


def test_equal_to_scikit_learn_on_many_rows() -> None:
    rng = np.random.default_rng(2)
    p = rng.beta(1, 9, 300_000).round(4)
    y, weight = rng.random(300_000) < p, rng.gamma(2.0, size=300_000)
    for w in (None, weight):
        parts = [ReportPartial.of(y[i::7], p[i::7], None, None if w is None else w[i::7]) for i in range(7)]
        assert ReportPartial.merge(parts).report() == evaluate_scores(y, p, None, w)
        expected = roc_auc_score(y, p, sample_weight=w)
        assert ReportPartial.merge(parts).report().auc == pytest.approx(expected, abs=1e-12)


def test_weights_that_round_differently_in_every_order() -> None:
    """Long ties of irregular weights, by users and by score: row order, shards and ranges change no bit."""
    rng = np.random.default_rng(4)
    p, users = rng.integers(0, 40, 20_000) / 40, rng.integers(0, 20, 20_000)
    y, weight = rng.random(20_000) < 0.3, rng.gamma(0.5, size=20_000)
    whole = evaluate_scores(y, p, users, weight)
    for shards in (1, 3, 5):
        order = rng.permutation(20_000)
        log = (y[order], p[order], users[order], weight[order])
        parts = [ReportPartial.of(*part(log, log[2] % shards == i)) for i in range(shards)]
        merged = ReportPartial.merge(parts)
        assert merged.report() == whole
        sums = ScoreSums(merged.weight)
        for low in range(0, 41, 8):
            inside = (p >= low / 40) & (p < (low + 8) / 40)
            sums.add(ScoreTable.of(y[inside], p[inside], weight[inside]))
        assert merged.report(sums) == whole


def test_table_holds_each_score_once() -> None:
    table = ScoreTable.of(np.array([True, False, True, False, False]), np.array([0.5, 0.5, 0.1, 0.9, 0.5]))
    assert table.score.tolist() == [0.1, 0.5, 0.9]
    assert (table.clicks.tolist(), table.others.tolist()) == ([1, 1, 0], [0, 2, 1])
    twice = ScoreTable.merge([table, table])
    assert (twice.score.tolist(), twice.others.tolist()) == ([0.1, 0.5, 0.9], [0, 4, 2])


def test_weighted_and_unweighted_shards_merge() -> None:
    y, p = [1, 0, 0, 1], [0.5, 0.5, 0.2, 0.1]
    merged = ReportPartial.of(y, p) + ReportPartial.of(y, p, None, [2.0, 1.0, 1.0, 0.5])
    assert merged.report() == evaluate_scores(y * 2, p * 2, None, [1.0] * 4 + [2.0, 1.0, 1.0, 0.5])


def test_an_empty_shard_adds_nothing() -> None:
    y, p, users = [1, 0, 0, 1], [0.5, 0.5, 0.2, 0.1], ["a", "a", "b", "b"]
    merged = ReportPartial.merge([ReportPartial.of([], [], []), ReportPartial.of(y, p, users)])
    assert merged.report() == evaluate_scores(y, p, users)
    assert ReportPartial.merge([]).report() == evaluate_scores([], [])


def test_logs_with_more_pairs_than_int64_counts() -> None:
    """Eight tables of 2**32 rows each: 2**69 pairs."""
    half = np.array([2**31])
    sums = ScoreSums(2**35)
    for i in range(8):
        sums.add(ScoreTable(np.array([i / 8]), None, half, half))
    assert sums.auc() == 0.5
    assert sums.curve().weight.tolist() == [2.0**32] * 8
    assert sums.curve().predicted.tolist() == [i / 8 for i in range(8)]


def test_groups_for_all_shards_or_for_none() -> None:
    with pytest.raises(UserError, match="1 of 2 partials have groups"):
        ReportPartial.of([1, 0], [0.5, 0.1], [1, 1]) + ReportPartial.of([1, 0], [0.5, 0.1])


def test_sums_are_what_they_are_called() -> None:
    partial = ReportPartial.of([1, 0], [0.5, 0.25], ["a", "a"], [2.0, 4.0])
    assert (partial.rows, partial.clicks) == (2, 1)
    assert [partial.weight, partial.clicked, partial.predicted] == [Fraction(6), Fraction(2), Fraction(2)]
    assert partial.loss == Fraction(-2 * np.log(0.5)) + Fraction(-4 * np.log(0.75))
