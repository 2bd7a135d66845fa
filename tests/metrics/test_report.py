import json

import numpy as np
import pytest

from ctrkit.errors import UserError
from ctrkit.metrics import METRICS, Coverage, auc, ece, evaluate_scores, gauc, log_loss, normalized_entropy, pcoc
from ctrkit.metrics.inputs import WEIGHTS

RNG = np.random.default_rng(9)
USERS = RNG.integers(0, 30, 500)
P = RNG.beta(1, 4, 500)
Y = RNG.random(500) < P
W = RNG.random(500) + 0.5


@pytest.mark.parametrize("weight", [None, W])
def test_report_holds_what_the_functions_say(weight: np.ndarray | None) -> None:
    report = evaluate_scores(Y, P, USERS, weight)
    assert (report.rows, report.clicks) == (500, int(Y.sum()))
    assert report.base_rate == pytest.approx(np.average(Y, weights=weight), abs=1e-15)
    assert report.log_loss == log_loss(Y, P, sample_weight=weight)
    assert report.normalized_entropy == normalized_entropy(Y, P, sample_weight=weight)
    assert report.auc == auc(Y, P, sample_weight=weight)
    assert report.gauc == gauc(Y, P, USERS, sample_weight=weight).value
    assert report.coverage == gauc(Y, P, USERS).coverage
    assert report.pcoc == pcoc(Y, P, sample_weight=weight)
    assert report.ece == ece(Y, P, sample_weight=weight)


def test_report_of_rows_without_a_click() -> None:
    report = evaluate_scores([0, 0, 0], [0.5, 0.25, 0.0], ["a", "a", "b"])
    assert (report.clicks, report.base_rate) == (0, 0.0)
    assert report.auc is report.gauc is report.normalized_entropy is report.pcoc is None
    assert report.log_loss == pytest.approx((np.log(2) - np.log(0.75)) / 3, abs=1e-7)
    assert report.coverage == Coverage(groups_left_out=2, impressions_left_out=3)


@pytest.mark.parametrize("report", [evaluate_scores([], [], []), evaluate_scores([1], [0.5], [7], [0.0])])
def test_report_of_nothing_is_none(report: object) -> None:
    numbers = json.loads(json.dumps(report.as_dict(), allow_nan=False))  # type: ignore[attr-defined]
    names = set(numbers) - {"rows", "clicks", "coverage"}
    assert {name: numbers[name] for name in names} == dict.fromkeys(names)


def test_report_is_json() -> None:
    numbers = json.loads(json.dumps(evaluate_scores(Y, P, USERS).as_dict(), allow_nan=False))
    assert numbers["gauc"] == gauc(Y, P, USERS).value
    assert numbers["coverage"]["groups_kept"] == gauc(Y, P, USERS).coverage.groups_kept


def test_report_without_groups_has_no_gauc() -> None:
    report = evaluate_scores(Y, P)
    assert (report.gauc, report.coverage) == (None, None)
    assert report.auc == auc(Y, P)


def test_report_refuses_logits() -> None:
    with pytest.raises(UserError, match="are they logits"):
        evaluate_scores([0, 1], [-1.0, 2.0], [1, 1])


def test_direction_of_every_metric() -> None:
    """A better score set must win on each metric in the direction that METRICS names."""
    worse = evaluate_scores(Y, np.clip(0.6 - P, 0, 1), USERS).as_dict()
    better = evaluate_scores(Y, P, USERS).as_dict()
    assert set(METRICS) == {"log_loss", "normalized_entropy", "auc", "gauc", "ece"}
    for name, larger_is_better in METRICS.items():
        assert (better[name] > worse[name]) is larger_is_better


@pytest.mark.parametrize("scale", WEIGHTS)
def test_weights_as_small_and_as_large_as_they_may_be(scale: float) -> None:
    """Weights of another unit change nothing but the last digits."""
    weight = np.random.default_rng(1).integers(1, 5, len(Y)).astype(float)
    found = evaluate_scores(Y, P, USERS, weight * np.clip(scale, 1e-100, 1e100 / 4)).as_dict()
    for name, value in evaluate_scores(Y, P, USERS, weight).as_dict().items():
        assert found[name] == (value if name == "coverage" else pytest.approx(value, rel=1e-12)), name


def test_one_weight_against_all_others() -> None:
    report = evaluate_scores([1, 0, 0], [0.5, 0.25, 0.75], ["a"] * 3, [1e-100, 1.0, 1e100])
    assert report.gauc == report.auc == pytest.approx(1e-100)
    assert report.pcoc == pytest.approx(0.75e200)
