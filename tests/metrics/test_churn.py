import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.errors import UserError
from ctrkit.metrics.churn import Churn, churn, mean_churn


def slow_tau(a: list[float], b: list[float]) -> float:
    """Kendall's tau-b, pair by pair."""
    signs = [(np.sign(a[j] - a[i]), np.sign(b[j] - b[i])) for i, j in combinations(range(len(a)), 2)]
    untied_a, untied_b = (sum(sign[side] != 0 for sign in signs) for side in (0, 1))
    if not untied_a or not untied_b:
        return math.nan
    return float(sum(of_a * of_b for of_a, of_b in signs)) / math.sqrt(untied_a * untied_b)


def slow_churn(y: list[int], a: list[float], b: list[float], groups: list[str], k: int) -> Churn:
    taus, tops, overlaps = [], [], []
    for user in set(groups):
        rows = [row for row, group in enumerate(groups) if group == user]
        of_a, of_b = [a[row] for row in rows], [b[row] for row in rows]
        taus.append(slow_tau(of_a, of_b))
        highest = [{i for i, p in enumerate(each) if p == max(each)} for each in (of_a, of_b)]
        first_k = [set(sorted(range(len(rows)), key=lambda i: (-each[i], i))[:k]) for each in (of_a, of_b)]
        if len(rows) > 1:
            tops.append(float(not highest[0] & highest[1]))
        if len(rows) > k:
            overlaps.append(len(first_k[0] & first_k[1]) / k)
    change = float(np.mean(np.abs(np.subtract(a, b))))
    defined = [tau for tau in taus if not math.isnan(tau)]
    return Churn(
        change,
        change / float(np.mean(y)) if any(y) else math.nan,
        float(np.mean(defined)) if defined else math.nan,
        float(np.mean(tops)) if tops else math.nan,
        float(np.mean(overlaps)) if overlaps else math.nan,
        k,
    )


def numbers(each: Churn) -> list[float]:
    return [each.mean_change, each.relative_change, each.kendall_tau, each.top_changed, each.top_k_overlap, each.k]


row = st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 6), st.sampled_from("abcd"))


@settings(deadline=None)
@given(st.lists(row, min_size=1, max_size=40), st.integers(1, 4))
def test_equals_the_slow_reading(rows: list[tuple[int, int, int, str]], k: int) -> None:
    y, a, b, groups = [list(column) for column in zip(*rows, strict=True)]
    a, b = [p / 8 for p in a], [p / 8 for p in b]
    expected = numbers(slow_churn(y, a, b, groups, k))
    assert numbers(churn(y, a, b, groups, k=k)) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert numbers(churn(y, b, a, groups, k=k)) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_large_users() -> None:
    """More rows a user than any power of two at hand, with few ties."""
    rng = np.random.default_rng(4)
    groups = rng.choice(["x", "y", "z"], 700, p=[0.8, 0.15, 0.05])
    a = rng.random(700)
    b = np.round(np.clip(a + rng.normal(size=700) / 5, 0, 1), 2)
    y = rng.random(700) < a
    slow = slow_churn(y.tolist(), a.tolist(), b.tolist(), groups.tolist(), 10)
    assert numbers(churn(y, a, b, groups, k=10)) == pytest.approx(numbers(slow), abs=1e-12)


def test_by_hand() -> None:
    """User u keeps its order, user v turns it round, user w has one row."""
    y = [1, 0, 0, 0, 0, 1, 0, 0]
    groups = ["u", "u", "u", "v", "v", "v", "v", "w"]
    a = [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.4, 0.5]
    b = [0.1, 0.2, 0.4, 0.4, 0.3, 0.2, 0.1, 0.5]
    each = churn(y, a, b, groups, k=2)
    assert each.mean_change == pytest.approx(0.9 / 8)
    assert each.relative_change == pytest.approx(0.9 / 8 / 0.25)
    assert each.kendall_tau == pytest.approx(0.0)  # 1 and -1
    assert each.top_changed == pytest.approx(0.5)
    assert each.top_k_overlap == pytest.approx(0.5)


def test_a_run_and_itself() -> None:
    each = churn([1, 0, 1, 0], [0.3, 0.1, 0.5, 0.2], [0.3, 0.1, 0.5, 0.2], ["a", "a", "b", "b"], k=1)
    assert each == Churn(0.0, 0.0, 1.0, 0.0, 1.0, 1)


def test_a_constant_is_no_order() -> None:
    each = churn([1, 0, 0, 0], [0.5] * 4, [0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1])
    assert math.isnan(each.kendall_tau)
    assert each.top_changed == 0.0


def test_mean_over_pairs_leaves_undefined_ones_out() -> None:
    pairs = [Churn(0.1, 0.4, 0.9, 0.0, 0.5, 3), Churn(0.2, math.nan, math.nan, 0.5, 1.0, 3)]
    assert numbers(mean_churn(pairs)) == pytest.approx([0.15, 0.4, 0.9, 0.25, 0.75, 3])


def test_without_rows_nothing_is_defined() -> None:
    assert all(map(math.isnan, numbers(churn([], [], [], []))[:-1]))


def test_errors() -> None:
    with pytest.raises(UserError, match="k is 0"):
        churn([1], [0.5], [0.5], ["u"], k=0)
    with pytest.raises(UserError, match="b: values outside"):
        churn([1], [0.5], [1.5], ["u"])
    with pytest.raises(UserError, match="groups has 2 rows"):
        churn([1], [0.5], [0.5], ["u", "v"])
