"""Every metric by the values of a column, against one filter and one report a value."""

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.errors import UserError
from ctrkit.metrics import Other, evaluate_scores, evaluate_slices, user_activity
from ctrkit.metrics.slices import SliceValues
from ctrkit.metrics.values import distinct_values

RNG = np.random.default_rng(3)
ROWS = 600
USERS = RNG.integers(0, 40, ROWS).astype(str)
P = RNG.random(ROWS)
Y = RNG.random(ROWS) < P
W = RNG.random(ROWS)
POSITION = RNG.integers(1, 6, ROWS)


@pytest.mark.parametrize("weight", [None, W])
@pytest.mark.parametrize("users", [None, USERS])
def test_each_report_is_that_of_the_rows_with_the_value(weight: Any, users: Any) -> None:
    found = evaluate_slices(Y, P, users, {"position": POSITION, "odd": POSITION % 2 == 1}, weight)
    assert list(found["position"]) == [1, 2, 3, 4, 5]
    assert list(found["odd"]) == [False, True]
    for name, column in {"position": POSITION, "odd": POSITION % 2 == 1}.items():
        for value, report in found[name].items():
            mine = column == value
            of_users, of_weight = (None if each is None else each[mine] for each in (users, weight))
            assert report == evaluate_scores(Y[mine], P[mine], of_users, of_weight)


def test_rare_values_share_an_entry_that_counts_them() -> None:
    ads = np.minimum(RNG.geometric(0.2, ROWS), 60) - 1
    counts = np.bincount(ads)
    found = evaluate_slices(Y, P, USERS, {"ad": ads}, max_values=3)["ad"]
    assert list(found) == [0, 1, 2, Other((counts[3:] > 0).sum())]
    assert str(list(found)[-1]) == f"other ({(counts[3:] > 0).sum()} values)"
    assert found[list(found)[-1]] == evaluate_scores(Y[ads > 2], P[ads > 2], USERS[ads > 2])
    assert sum(report.rows for report in found.values()) == ROWS
    every = evaluate_slices(Y, P, USERS, {"ad": ads}, max_values=None)["ad"]
    assert len(every) == (counts > 0).sum()


def test_a_value_called_other_is_not_the_rest() -> None:
    column = ["other"] * 3 + ["a"] * 2 + ["b"]
    found = evaluate_slices([1, 0, 1, 0, 1, 0], [0.5] * 6, None, {"name": column}, max_values=1)["name"]
    assert {key: report.rows for key, report in found.items()} == {"other": 3, Other(2): 3}


def test_values_with_as_many_rows_go_by_their_text() -> None:
    assert SliceValues.choose({"b": 2, "a": 2, "c": 2}, 2).keys == ("a", "b", Other(1))
    assert SliceValues.choose({"b": 2, None: 9, "a": 3}, 1).keys == ("a", None, Other(1))
    assert SliceValues.choose({1: 2, "a": 3}).keys == ("a", 1)
    assert SliceValues.choose({}).keys == ()


MISSING: dict[str, Any] = {
    "list": ["a", None, "b", None],
    "floats": np.array([0.5, np.nan, 1.5, np.nan]),
    "float list": [0.5, float("nan"), 1.5, None],
    "dates": np.array(["2026-01-01", "NaT", "2026-01-02", "NaT"], dtype="M8[D]"),
    "nanoseconds": np.array(["2026-01-01", "NaT", "2026-01-02", "NaT"], dtype="M8[ns]"),
    "Series": pd.Series(["a", None, "b", None]),
    "Series of objects": pd.Series(["a", None, "b", pd.NA], dtype=object),
    "Int64": pd.Series([1, None, 2, None], dtype="Int64"),
    "Categorical": pd.Series(["a", None, "b", None], dtype="category"),
    "Arrow": pa.array(["a", None, "b", None]),
    "Arrow floats": pa.array([0.5, None, 1.5, float("nan")]),
    "Arrow dictionary": pa.array(["a", None, "b", None]).dictionary_encode(),
    "masked": np.ma.array([1, 0, 2, 0], mask=[False, True, False, True]),
    "bytes with a NUL": pd.Series([b"\0a", None, b"\0b", None]),
    "string views": pa.array(["a", None, "b", None]).cast(pa.string_view()),
    "dictionary of string views": pa.DictionaryArray.from_arrays(
        pa.array([0, None, 1, None], pa.uint32()), pa.array(["a", "b"]).cast(pa.string_view())
    ),
    "Arrow dictionary that names null": pa.DictionaryArray.from_arrays([0, 1, 2, 1], ["a", None, "b"]),
    "Arrow decimals": pa.array([Decimal("1.5"), None, Decimal("2.5"), None]),
    "chunks": pa.chunked_array([pa.array(["a", None]), pa.array(["b", None])]),
    "chunks of dictionaries": pa.chunked_array(
        [pa.array(["a", None]).dictionary_encode(), pa.array(["b", None]).dictionary_encode()]
    ),
}


@pytest.mark.parametrize("kind", list(MISSING))
def test_missing_values_are_a_value_of_their_own(kind: str) -> None:
    found = evaluate_slices([1, 0, 1, 0], [0.6, 0.5, 0.4, 0.3], None, {"x": MISSING[kind]})["x"]
    keys = list(found)
    assert keys[-1] is None
    assert len(keys) == 3
    assert keys[0] < keys[1]
    assert [report.rows for report in found.values()] == [1, 1, 2]
    assert (found[None].clicks, found[keys[0]].clicks) == (0, 1)


def test_values_are_what_python_calls_them() -> None:
    days = np.array(["2026-01-02", "2026-01-01"], dtype="M8[D]")
    assert distinct_values(days)[1] == [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)]
    assert distinct_values(days.astype("M8[ns]"))[1][0] == datetime.datetime(2026, 1, 1)
    number, values = distinct_values(np.array([7, 5, 7], dtype=np.int8))
    assert [values[i] for i in number] == [7, 5, 7]
    assert {type(value) for value in values} == {int}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(0, 1), st.integers(0, 3), st.sampled_from(["a", "b", "c", None])), min_size=1
    ),
    st.integers(1, 4),
)
def test_property_slices_part_the_log(rows: list[tuple[bool, float, int, str | None]], max_values: int) -> None:
    y, p, users = (np.array([row[i] for row in rows]) for i in range(3))
    column = [row[3] for row in rows]
    found = evaluate_slices(y, p, users, {"x": column}, max_values=max_values)["x"]
    assert sum(report.rows for report in found.values()) == len(rows)
    assert sum(report.clicks for report in found.values()) == y.sum()
    assert len([key for key in found if isinstance(key, str)]) <= max_values
    for key, report in found.items():
        if not isinstance(key, Other):
            mine = np.array([value == key for value in column])
            assert report == evaluate_scores(y[mine], p[mine], users[mine])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slices": {"ad": [1, 2]}}, "ad has 2 rows, y_true has 4"),
        ({"slices": {"ad": pa.array([[1], [2], [3], [4]])}}, "ad: values of type list.* cannot be told apart"),
        ({"slices": {"ad": [[1], [2], [3], [4]]}}, "ad: values that cannot be told apart"),
        ({"slices": {"ad": np.zeros((4, 1))}}, r"ad has shape \(4, 1\)"),
        ({"max_values": 0}, "max_values is 0"),
        ({"groups": [1]}, "groups has 1 rows"),
        ({"probability": [0.1, 0.2, 0.3, 1.4]}, "are they logits"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "y_true": [0, 1, 0, 1],
        "probability": [0.1, 0.2, 0.3, 0.4],
        "groups": [1, 1, 2, 2],
        "slices": {"ad": [1, 2, 3, 4]},
    }
    with pytest.raises(UserError, match=message):
        evaluate_slices(**(given | arguments))


def test_activity_by_hand() -> None:
    """Users a, b, c, d with 1, 2, 3 and 4 impressions in halves and in quarters."""
    groups = list("abbcccdddd")
    assert user_activity(groups, 2).tolist() == [1] * 3 + [2] * 7
    assert user_activity(groups, 4).tolist() == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4]
    assert user_activity(groups, 1).tolist() == [1] * 10
    assert user_activity([]).tolist() == []
    with pytest.raises(UserError, match="quantiles is 0"):
        user_activity(groups, 0)


def test_users_with_as_many_impressions_share_a_quantile() -> None:
    """Six of ten users have one impression: they fill the lowest six deciles and lie in the one of their middle."""
    groups = [*"abcdef", *"ghij" * 2, *"j" * 5]
    by_user = dict(zip(groups, user_activity(groups).tolist(), strict=True))
    assert by_user == {**dict.fromkeys("abcdef", 4), **dict.fromkeys("ghi", 8), "j": 10}


def test_activity_does_not_depend_on_the_order_of_rows() -> None:
    groups = RNG.zipf(1.5, 3000) % 500
    order = RNG.permutation(3000)
    assert np.array_equal(user_activity(groups)[order], user_activity(groups[order]))
    decile = user_activity(groups)
    impressions = np.bincount(groups)[groups]
    assert np.all(np.diff(decile[np.argsort(impressions, kind="stable")]) >= 0)
    assert (decile.min() >= 1, decile.max()) == (True, 10)
