import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from ctrkit.errors import UserError
from ctrkit.metrics import (
    auc,
    debias_probability,
    ece,
    log_loss,
    log_loss_from_logits,
    normalized_entropy,
    pcoc,
    rela_impr,
    reliability_curve,
)
from ctrkit.metrics.pointwise import EPSILON

Y, P = [1, 0, 0, 1], [0.8, 0.4, 0.1, 0.5]
W = [1.0, 2.0, 1.0, 4.0]
LOSS = [-math.log(0.8), -math.log(0.6), -math.log(0.9), -math.log(0.5)]


def test_log_loss_by_hand() -> None:
    assert log_loss(Y, P) == pytest.approx(sum(LOSS) / 4, abs=1e-15)
    weighted = (LOSS[0] + 2 * LOSS[1] + LOSS[2] + 4 * LOSS[3]) / 8
    assert log_loss(Y, P, sample_weight=W) == pytest.approx(weighted, abs=1e-15)
    assert math.isnan(log_loss([], []))
    assert math.isnan(log_loss(Y, P, sample_weight=[0, 0, 0, 0]))


def test_log_loss_clips_at_epsilon() -> None:
    assert log_loss([1, 0], [0.0, 1.0]) == pytest.approx(-math.log(EPSILON), rel=1e-12)
    assert log_loss([1, 0], [1.0, 0.0]) == pytest.approx(EPSILON, rel=1e-6)
    inside = 1.5 * EPSILON
    assert log_loss([1], [inside]) == pytest.approx(-math.log(inside), abs=1e-15)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(-12, 12), st.floats(0.01, 10)), min_size=2))
def test_log_loss_equals_sklearn_and_its_own_from_logits(rows: list[tuple[bool, float, float]]) -> None:
    y, logit, weight = (np.array(column) for column in zip(*rows, strict=True))
    p = 1 / (1 + np.exp(-logit))
    expected = sklearn_log_loss(y, p, labels=[False, True], sample_weight=weight)
    assert log_loss(y, p, sample_weight=weight) == pytest.approx(expected, abs=1e-11)
    assert log_loss_from_logits(y, logit, sample_weight=weight) == pytest.approx(expected, abs=1e-9)


def test_log_loss_from_logits_far_out() -> None:
    assert log_loss_from_logits([1, 0], [-1000.0, 1000.0]) == 1000.0
    assert log_loss_from_logits([1], [800.0]) == 0.0
    assert log_loss_from_logits([1], [40.0]) == pytest.approx(math.exp(-40), rel=1e-12)
    assert log_loss_from_logits([0, 1], [0.0, 0.0]) == pytest.approx(math.log(2), abs=1e-15)


def test_normalized_entropy_by_hand() -> None:
    assert normalized_entropy(Y, P) == pytest.approx(sum(LOSS) / 4 / math.log(2), abs=1e-15)
    rate = 5 / 8
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    weighted = (LOSS[0] + 2 * LOSS[1] + LOSS[2] + 4 * LOSS[3]) / 8 / entropy
    assert normalized_entropy(Y, P, sample_weight=W) == pytest.approx(weighted, abs=1e-15)
    assert math.isnan(normalized_entropy([0, 0], [0.1, 0.2]))


def test_pcoc_by_hand() -> None:
    assert pcoc(Y, P) == pytest.approx(1.8 / 2, abs=1e-15)
    assert pcoc(Y, P, sample_weight=W) == pytest.approx((0.8 + 0.8 + 0.1 + 2.0) / 5, abs=1e-15)
    assert math.isnan(pcoc([0, 0], [0.1, 0.2]))


def test_auc_by_hand() -> None:
    assert auc([0, 1, 0, 1, 0], [0.1, 0.4, 0.4, 0.8, 0.9]) == (1 + 0.5 + 2) / 6
    # clicks weigh 3 and 1, non-clicks 2, 1 and 5: 3 (2 + 1/2) + 1 (2 + 1) of 4 x 8
    weighted = auc([0, 1, 0, 1, 0], [0.1, 0.4, 0.4, 0.8, 0.9], sample_weight=[2, 3, 1, 1, 5])
    assert weighted == pytest.approx((3 * 2.5 + 3) / 32, abs=1e-15)
    assert math.isnan(auc([1, 1], [0.1, 0.2]))
    assert math.isnan(auc([], []))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0]),
            st.floats(0.01, 9),
        ),
        min_size=1,
    )
)
def test_auc_equals_sklearn(rows: list[tuple[bool, float, float]]) -> None:
    y, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    if y.all() or not y.any():
        assert math.isnan(auc(y, score))
        return
    assert auc(y, score) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert auc(y, score, sample_weight=weight) == pytest.approx(
        roc_auc_score(y, score, sample_weight=weight), abs=1e-12
    )


def test_rela_impr_is_that_of_the_din_paper() -> None:
    assert 100 * rela_impr(0.6083, 0.5970) == pytest.approx(11.65, abs=0.005)
    assert math.isnan(rela_impr(0.6, 0.5))


def test_reliability_curve_by_hand() -> None:
    curve = reliability_curve([0, 1, 0, 0, 1, 1], [0.1, 0.3, 0.2, 0.4, 0.9, 0.7], bins=3)
    assert curve.predicted == pytest.approx([0.15, 0.35, 0.8], abs=1e-15)
    assert curve.observed == pytest.approx([0.0, 0.5, 1.0], abs=1e-15)
    assert curve.weight.tolist() == [2, 2, 2]
    assert (curve.low.tolist(), curve.high.tolist()) == ([0.1, 0.3, 0.7], [0.2, 0.4, 0.9])
    assert curve.ece == pytest.approx((0.15 + 0.15 + 0.2) / 3, abs=1e-15)
    assert ece([0, 1], [0.0, 1.0]) == 0.0
    assert math.isnan(ece([], []))


def test_bins_have_equal_mass_at_the_base_rates_of_clicks() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(1, 99, 10_000)
    curve = reliability_curve(rng.random(10_000) < p, p, bins=20)
    assert curve.weight.tolist() == [500] * 20
    by_weight = reliability_curve(rng.random(10_000) < p, p, bins=20, sample_weight=1 + (p > 0.01))
    assert by_weight.weight == pytest.approx(np.full(20, by_weight.weight.sum() / 20), abs=2)


def test_equal_probabilities_share_a_bin_whatever_the_row_order() -> None:
    p = np.array([0.2] * 30 + [0.1] * 2 + [0.6] * 8)
    y = np.array([1] * 6 + [0] * 26 + [1] * 5 + [0] * 3)
    shuffled = np.random.default_rng(1).permutation(40)
    for order in (np.arange(40), shuffled):
        curve = reliability_curve(y[order], p[order], bins=10)
        assert curve.predicted == pytest.approx([0.1, 0.2, 0.6], abs=1e-15)
        assert curve.weight.tolist() == [2, 30, 8]
        assert curve.ece == pytest.approx((2 * 0.1 + 0 + 8 * (0.625 - 0.6)) / 40, abs=1e-15)
    weight = np.array([1.0] * 30 + [0.1] * 2 + [9.0, 0.1, 5.0, 0.2, 7.0, 1.0, 1.0, 0.7])
    bins = [
        reliability_curve(y[order], p[order], bins=10, sample_weight=weight[order])
        for order in (np.arange(40), np.arange(40)[::-1], shuffled)
    ]
    for curve in bins:
        assert curve.weight == pytest.approx([0.2, 30.0, 24.0], abs=1e-12)


def test_debias_inverts_negative_down_sampling() -> None:
    q, w = np.array([0.001, 0.02, 0.3]), 0.05
    sampled = q / (q + (1 - q) * w)  # the share of clicks among all clicks and w of the non-clicks
    assert debias_probability(sampled, w) == pytest.approx(q, abs=1e-15)
    assert debias_probability([0.0, 0.5, 1.0], 5e-324).tolist() == [0.0, 0.0, 1.0]
    assert debias_probability([0.0, 0.5, 1.0], 1.0) == pytest.approx([0.0, 0.5, 1.0])
    assert pcoc([0] * 99 + [1], debias_probability(np.full(100, 1 / (1 + 99 * w)), w)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("metric", [log_loss, normalized_entropy, pcoc, ece, reliability_curve])
@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        (
            [0, 1],
            [0.1, 1.2],
            r"probability: values outside \[0, 1\]: 1 of 2 rows, the first is row 1 \(1.2\); .* logits",
        ),
        ([0, 1], [np.nan, 0.5], "probability: NaN or infinite values: 1 of 2 rows, the first is row 0"),
        ([0, 3], [0.5, 0.5], "labels outside"),
        ([0, 1], [0.5], "probability has 1 rows, y_true has 2"),
    ],
)
def test_errors(metric: Callable[..., Any], y: list[int], p: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        metric(y, p)


def test_errors_of_single_arguments() -> None:
    with pytest.raises(UserError, match="sampling_rate is 0"):
        debias_probability([0.5], 0)
    with pytest.raises(UserError, match="bins is 0"):
        ece(Y, P, bins=0)
    with pytest.raises(UserError, match="logit: NaN"):
        log_loss_from_logits([1], [np.nan])
