import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.data.ahead import read_ahead
from ctrkit.data.columns import cut_lists
from ctrkit.data.ids import distinct

TYPES = [pa.int8(), pa.int16(), pa.uint8(), pa.int64(), pa.uint64()]


@settings(deadline=None)
@given(st.sampled_from(TYPES), st.data(), st.integers(1, 300))
def test_distinct_values_give_the_column_back(kind: pa.DataType, data: st.DataObject, repeat: int) -> None:
    low, high = (
        (0, 2**kind.bit_width - 1)
        if str(kind)[0] == "u"
        else (-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1)
    )
    ends = st.sampled_from([low, low + 1, high - 1, high])
    values = data.draw(st.lists(ends | st.integers(max(low, -9), 9) | st.none(), min_size=1, max_size=8)) * repeat
    array = pa.array(values, kind)
    for column in (array, array.dictionary_encode(), array.slice(1)):
        found, codes_N = distinct(column)
        assert found.take(pa.array(codes_N)).to_pylist() == column.to_pylist()
        assert len(set(found.to_pylist())) == len(found)


@settings(deadline=None)
@given(st.lists(st.none() | st.sampled_from("abcdefgh"), max_size=200), st.integers(0, 150), st.integers(0, 50))
def test_distinct_values_of_a_large_dictionary_are_those_that_stand_here(
    values: list[str | None], first: int, length: int
) -> None:
    """A dictionary may be of a whole file, hold null, and have indices too small for one value more."""
    dictionary = pa.array([*"abcdefgh", None, *(f"x{i}" for i in range(119))])
    indices = pa.array([None if v is None else "abcdefgh".index(v) for v in values], pa.int8())
    column = pa.DictionaryArray.from_arrays(indices, dictionary).slice(first, length)
    found, codes_N = distinct(column)
    assert found.take(pa.array(codes_N)).to_pylist() == column.to_pylist() == values[first : first + length]
    assert len(column) >= 128 or set(found.to_pylist()) == set(column.to_pylist())


def test_close_integers_at_the_end_of_the_range_stay_integers() -> None:
    values = [2**63 - 1, 2**63 - 2] * 9
    found, codes_N = distinct(pa.array(values))
    assert found.type == pa.int64()
    assert found.take(pa.array(codes_N)).to_pylist() == values


def test_close_integers_of_a_narrow_type_do_not_wrap() -> None:
    array = pa.array([*range(-128, 128)] * 9, pa.int8())
    found, codes_N = distinct(array)
    assert found.to_pylist() == [*range(-128, 128)]
    assert codes_N.tolist() == [*range(256)] * 9


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(st.integers(0, 9), max_size=5), max_size=12), st.integers(1, 6), st.integers(0, 4))
def test_lists_are_cut_as_python_cuts_them(lists: list[list[int] | None], max_len: int, start: int) -> None:
    array = pa.array(lists, pa.list_(pa.int64())).slice(start)
    cut = cut_lists(array, max_len)
    expected = [(values or [])[:max_len] for values in lists[start:]]
    assert [cut.values.to_pylist()[a:b] for a, b in zip(cut.offsets_N1, cut.offsets_N1[1:], strict=False)] == expected
    assert cut.truncated == sum(len(values or []) > max_len for values in lists[start:])
    assert len(cut.values) == sum(map(len, expected))


def test_read_ahead_keeps_the_order_and_stays_a_little_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    for i, item in enumerate(read_ahead(items(), depth=3)):
        assert item == i
        assert len(made) <= i + 6
    assert made == [*range(50)]


def test_read_ahead_raises_what_the_maker_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no third")

    ahead = read_ahead(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="no third"):
        next(ahead)


def test_read_ahead_ends_its_thread_when_the_caller_stops() -> None:
    def forever() -> Iterator[np.ndarray[tuple[int], np.dtype[np.float64]]]:
        while True:
            yield np.zeros(3)

    before = threading.active_count()
    ahead = read_ahead(forever())
    next(ahead)
    assert threading.active_count() == before + 1
    ahead.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
