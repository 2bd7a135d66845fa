from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.errors import UserError
from ctrkit.raw_values import RawType, hash_strings, keys_of, mix, signed_log, typed_array


def _objects(*values: Any) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return array


PINNED = {
    "": 0,
    "a": 3488433156311077093,
    "abc": 2360929977971072221,
    "Ab c": 7889829095490319452,
    "日本語": -8659443483188881777,
    "\U0001f600": 6192423537210454434,
    "a\0": 3912739542450823643,
    "0" * 1024: -6016707212574967848,
    "0" * 1025: -3351818534786044914,
}


@pytest.mark.parametrize("text", PINNED)
def test_hashes_are_those_that_bundles_hold(text: str) -> None:
    assert hash_strings(_objects(text))[0] == PINNED[text]


def _hash_by_hand(text: str) -> int:
    mask = 2**64 - 1
    x = len(text)
    for character in text:
        x = ((x ^ ord(character)) * 0x9E3779B97F4A7C15) & mask
        x ^= x >> 32
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    x ^= x >> 31
    return x - 2**64 if x >= 2**63 else x


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=20))
def test_hash_of_a_string_is_its_own_whatever_stands_beside_it(texts: list[str]) -> None:
    by_hand = [_hash_by_hand(text) for text in texts]
    assert hash_strings(_objects(*texts)).tolist() == by_hand
    assert hash_strings(_objects(*texts, *reversed(texts), *texts)).tolist() == [*by_hand, *reversed(by_hand), *by_hand]


def test_hash_spreads_over_more_than_one_block() -> None:
    texts = [f"id_{i}" for i in range(40_000)]
    hashes = hash_strings(_objects(*texts))
    assert len(set(hashes.tolist())) == 40_000
    assert hashes[[0, 20_000, 39_999]].tolist() == [_hash_by_hand(texts[i]) for i in (0, 20_000, 39_999)]
    assert abs(np.mean(hashes % 2) - 0.5) < 0.02


def test_mix_is_splitmix64() -> None:
    # splitmix64 seeded with 1234567 gives the finaliser of seed + golden gamma first: the reference program prints it.
    assert mix(np.array([1234567 + 0x9E3779B97F4A7C15], np.uint64))[0] == 6457827717110365317


Case = tuple[Any, RawType, list[Any], list[bool]]
TAKEN: dict[str, Case] = {
    "ints": ([3, -(2**63), 2**63 - 1], "int", [3, -(2**63), 2**63 - 1], [False] * 3),
    "ints and None": ([3, None, 2**53 + 1], "int", [3, 0, 2**53 + 1], [False, True, False]),
    "large id beside a float": ([2**53 + 1, 1.0], "int", [2**53 + 1, 1], [False, False]),
    "uint64 beside a negative": ([2**63, -1], "int", [-(2**63), -1], [False, False]),
    "booleans": ([True, False], "int", [1, 0], [False, False]),
    "boolean and None": ([True, None], "int", [1, 0], [False, True]),
    "whole floats are ids": ([3.0, float("nan")], "int", [3, 0], [False, True]),
    "numpy scalars": ([np.int32(3), 4, np.uint8(5)], "int", [3, 4, 5], [False] * 3),
    "unsigned": (np.array([2**64 - 1, 1], np.uint64), "int", [-1, 1], [False, False]),
    "int8": (np.array([-3, 4], np.int8), "int", [-3, 4], [False, False]),
    "float32": (np.array([0.5, np.nan], np.float32), "float", [0.5, None], [False, True]),
    "ints for floats": ([1, 2, None], "float", [1.0, 2.0, 0.0], [False, False, True]),
    "int beyond 64 bits for a float": ([2**70, 0.5], "float", [2.0**70, 0.5], [False, False]),
    "infinity": ([float("inf"), 1.0], "float", [float("inf"), 1.0], [False, False]),
    "strings": (["a", "a\0", ""], "string", ["a", "a\0", ""], [False] * 3),
    "strings and None": (["a", None], "string", ["a", None], [False, True]),
    "strings and NaN": (["a", float("nan")], "string", ["a", None], [False, True]),
    "no string at all, as pandas has it": (np.array([np.nan, np.nan]), "string", [None, None], [True, True]),
    "numpy strings": (np.array(["ab", "c"]), "string", ["ab", "c"], [False, False]),
    "variable strings": (np.array(["ab", "c"], np.dtypes.StringDType()), "string", ["ab", "c"], [False, False]),
    "only None": ([None, None], "int", [0, 0], [True, True]),
    "nothing": ([], "string", [], []),
    "objects": (_objects(1, None, 2**60), "int", [1, 0, 2**60], [False, True, False]),
}


@pytest.mark.parametrize("case", TAKEN)
def test_takes(case: str) -> None:
    values, raw_type, expected, expected_missing = TAKEN[case]
    typed, missing = typed_array(values, raw_type, "f")
    assert missing.tolist() == expected_missing
    assert typed.dtype == {"int": np.int64, "float": np.float64, "string": object}[raw_type]
    assert [v for v, m in zip(typed.tolist(), missing, strict=True) if not m] == [
        v for v, m in zip(expected, expected_missing, strict=True) if not m
    ]


REFUSED: dict[str, tuple[Any, RawType, str]] = {
    "int for string": ([3], "string", r"'f' has string values in training, got 3 \(int\)"),
    "int among strings": (["a", 3], "string", r"got 3 \(int\)"),
    "int among strings and None": (["a", None, 3], "string", r"got 3 \(int\)"),
    "float for string": (np.array([1.5, np.nan]), "string", "got 1.5"),
    "string for int": (["7"], "int", r"'f' has int values in training, got '7' \(str\)"),
    "string among ints": ([7, "7"], "int", r"got '7' \(str\)"),
    "string array for float": (np.array(["x"]), "float", r"got 'x' \(str\)"),
    "bytes": ([b"x"], "string", "takes one string value, got bytes"),
    "complex": ([1j], "float", "takes one float value, got complex"),
    "list": ([[1]], "int", "takes one int value, got list"),
    "list in an array": (_objects([1], [2, 3]), "int", "takes one int value, got list"),
    "matrix": (np.ones((2, 2), np.int64), "int", r"array of shape \(2, 2\)"),
    "scalar array": (np.array(3), "int", r"array of shape \(\)"),
    "date": (np.array([1], "datetime64[s]"), "int", "takes one int value, got datetime"),
    "fraction as id": ([1.5], "int", "1.5 is no whole number"),
    "infinite id": ([float("inf")], "int", "inf is above 2"),
    "id that a float cannot hold": ([2.0**53], "int", "floats lose digits of an id"),
    "id of more than 64 bits": ([2**64], "int", "an integer of 65 bits does not fit into 64 bits"),
    "unprintable id": ([1, None, 10**5000], "int", "an integer of 16610 bits does not fit"),
    "float beyond double": ([10**400], "float", "an integer too large for a float"),
    "unprintable int for string": ([10**5000], "string", "got an integer of 16610 bits"),
    "bytes for a column": (b"abc", "int", "takes a list with one value an ad, got bytes"),
    "text for a column": ("abc", "string", "takes a list with one value an ad, got str"),
    "number for a column": (3, "int", "takes a list with one value an ad, got int"),
    "mapping for a column": ({1: 2}, "int", "takes a list with one value an ad, got dict"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    values, raw_type, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        typed_array(values, raw_type, "f")


_JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())


@settings(deadline=None, max_examples=300)
@given(st.lists(_JSON, max_size=6), st.sampled_from(["int", "string", "float"]))
def test_a_column_is_typed_or_refused_as_its_values_are(values: list[Any], raw_type: RawType) -> None:
    def one(value: Any) -> Any:
        typed, missing = typed_array([value], raw_type, "f")
        return None if missing[0] else typed[0]

    try:
        typed, missing = typed_array(values, raw_type, "f")
    except UserError:
        assert any(_is_refused(one, value) for value in values)
    else:
        assert [None if m else t for t, m in zip(typed, missing, strict=True)] == [one(value) for value in values]


def _is_refused(one: Any, value: Any) -> bool:
    try:
        one(value)
    except UserError:
        return True
    return False


def test_keys() -> None:
    assert keys_of(np.array([5, -1]), np.array([False, False])).tolist() == [5, -1]
    keys = keys_of(_objects("a", None, "b"), np.array([False, True, False]))
    assert keys.tolist() == [_hash_by_hand("a"), 0, _hash_by_hand("b")]


def test_signed_log() -> None:
    np.testing.assert_allclose(signed_log(np.array([0.0, np.e - 1, -(np.e**2 - 1)])), [0.0, 1.0, -2.0], rtol=1e-15)
