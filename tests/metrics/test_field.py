"""Field-level calibration error, against its formula one value at a time."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.errors import UserError
from ctrkit.metrics import FieldPartial, field_calibration_error


def test_by_hand() -> None:
    y, p, ad = [1, 0, 0, 1, 0], [0.6, 0.2, 0.5, 0.5, 0.1], ["a", "a", "b", "b", None]
    found = field_calibration_error(y, p, ad)
    # a: |1 - 0.8| = 0.2; b: |1 - 1| = 0; missing: 0.1
    assert found.error == pytest.approx(0.3 / 5, abs=1e-15)
    assert found.values == 3
    worst = found.worst[0]
    assert (worst.value, worst.rows, worst.observed) == ("a", 2, 0.5)
    assert (worst.predicted, worst.share) == pytest.approx((0.4, 2 / 3), abs=1e-15)
    assert [each.value for each in found.worst] == ["a", None, "b"]
    assert len(field_calibration_error(y, p, ad, worst=1).worst) == 1


def test_right_on_the_whole_and_wrong_for_every_ad() -> None:
    ad = np.repeat([0, 1], 500)
    y = np.concatenate([np.arange(500) < 50, np.arange(500) < 150])
    p = np.full(1000, 0.2)
    assert field_calibration_error(y, p, np.zeros(1000, dtype=int)).error == pytest.approx(0.0, abs=1e-12)
    assert field_calibration_error(y, p, ad).error == pytest.approx(0.1, abs=1e-12)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(0, 1), st.integers(0, 4), st.just(0.0) | st.floats(1e-100, 4)), min_size=1
    ),
    st.integers(1, 4),
)
def test_equals_the_formula_in_any_shards(rows: list[tuple[bool, float, int, float]], shards: int) -> None:
    y, p, field, weight = (np.array(column) for column in zip(*rows, strict=True))
    for w in (None, weight):
        mass = np.ones(len(y)) if w is None else w
        off = [abs(float((mass * (y - p))[field == value].sum())) for value in np.unique(field)]
        expected = sum(off) / mass.sum() if mass.sum() else float("nan")
        found = field_calibration_error(y, p, field, w)
        assert found.error == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert found.values == len(np.unique(field[mass > 0]))
        parts = [
            FieldPartial.of(y[i::shards], p[i::shards], field[i::shards], None if w is None else w[i::shards])
            for i in range(shards)
        ]
        merged = pickle.loads(pickle.dumps(FieldPartial.merge(parts)))  # noqa: S301
        assert merged.calibration().error == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert sum(each.rows for each in merged.calibration().worst) == (mass > 0).sum()


def test_nothing() -> None:
    empty = field_calibration_error([], [], [])
    assert np.isnan(empty.error)
    assert (empty.values, empty.worst) == (0, ())
    assert FieldPartial.merge([]).calibration().values == 0
    perfect = field_calibration_error([1, 0], [1.0, 0.0], ["a", "b"])
    assert (perfect.error, [each.share for each in perfect.worst]) == (0.0, [0.0, 0.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"field": [1]}, "field has 1 rows"),
        ({"field": [[1], [2]]}, "field: values that cannot be told apart"),
        ({"probability": [0.1, 7]}, "are they logits"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"y_true": [0, 1], "probability": [0.1, 0.2], "field": [1, 2]}
    with pytest.raises(UserError, match=message):
        field_calibration_error(**(given | change))
