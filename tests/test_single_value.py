"""One value goes a way of its own, to the row that arrays of values get."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.raw_values import RawType, keys_of, typed_array
from ctrkit.single_value import row_finder
from ctrkit.tables import MISSING, UNSEEN, Buckets, HashBuckets, Vocabulary


def vocabulary(keys: Any) -> Vocabulary:
    sorted_V = np.unique(np.asarray(keys, np.int64))
    return Vocabulary(sorted_V, np.ones(len(sorted_V), np.int64))


def by_arrays(table: Vocabulary | HashBuckets, raw_type: RawType, value: Any) -> int:
    values, missing = typed_array([value], raw_type, "x")
    return MISSING if missing[0] else int(table.rows(keys_of(values, missing))[0])


INTS = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(-5, 30))
TEXTS = st.one_of(st.none(), st.text(max_size=80), st.sampled_from(["a", "b", "", "日本"]))


@given(value=INTS, keys=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), near=st.integers(-3, 3))
@settings(deadline=None, max_examples=300)
def test_integers(value: int | None, keys: list[int], near: int) -> None:
    tables: list[Vocabulary | HashBuckets] = [
        vocabulary(keys),
        vocabulary(range(near, near + 20)),
        HashBuckets(7),
        HashBuckets(2**31),
    ]
    for table in tables:
        for asked in (value, *keys[:3], near - 1, near, near + 19, near + 20):
            find = row_finder(table, "int")
            assert find is not None
            assert find(asked) == by_arrays(table, "int", asked)


@given(value=TEXTS)
@settings(deadline=None, max_examples=300)
def test_texts(value: str | None) -> None:
    known = ["a", "b", "日本", "x" * 64, "\x00", "a\x00"]
    values, missing = typed_array(known, "string", "x")
    tables: list[Vocabulary | HashBuckets] = [vocabulary(keys_of(values, missing)), HashBuckets(11)]
    for table in tables:
        find = row_finder(table, "string")
        assert find is not None
        for asked in (value, *known):
            found = find(asked)
            assert found == by_arrays(table, "string", asked) or (found is None and len(asked or "") > 64)
    assert row_finder(vocabulary(keys_of(values, missing)), "string")("unheard of") == UNSEEN  # type: ignore[misc]


@pytest.mark.parametrize("value", [True, 3.0, np.int64(3), 2**63, -(2**63) - 1, "3", [3], float("nan")])
def test_what_is_no_plain_integer_goes_the_other_way(value: Any) -> None:
    find = row_finder(vocabulary([3]), "int")
    assert find is not None
    assert find(value) is None


def test_numbers_go_the_other_way() -> None:
    assert row_finder(Buckets((1.0,), 0.0, 2.0), "float") is None
    assert row_finder(None, "int") is None
    find = row_finder(vocabulary([3]), "string")
    assert find is not None
    assert find(3) is None
