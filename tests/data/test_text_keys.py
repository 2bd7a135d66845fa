import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.data import text_keys as module
from ctrkit.data.text_keys import text_checks, text_keys
from ctrkit.errors import UserError
from ctrkit.raw_values import MAX_STRING, hash_strings

TEXTS = st.lists(
    st.one_of(
        st.none(),
        st.text(max_size=20),
        st.text("ab\0", max_size=30),
        st.sampled_from([MAX_STRING - 1, MAX_STRING, MAX_STRING + 1]).map(lambda n: "x" * n),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.integers(0, 5), st.integers(1, 9), st.sampled_from([pa.string(), pa.large_string()]))
def test_a_texts_key_is_its_hash_wherever_arrow_holds_it(
    texts: list[str | None], first: int, block: int, kind: pa.DataType
) -> None:
    array = pa.array(texts, kind).slice(first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        keys, checks = text_keys(array, "x").tolist(), text_checks(array, "x").tolist()
    expected = [0 if text is None else int(hash_strings(np.array([text], object))[0]) for text in array.to_pylist()]
    assert keys == expected
    present = [(text, check) for text, check in zip(array.to_pylist(), checks, strict=True) if text is not None]
    assert len(set(present)) == len({text for text, _ in present})  # equal texts have equal checks
    assert len({check for _, check in present}) == len({text for text, _ in present})  # others have others


def test_checks_tell_texts_apart_that_differ_anywhere() -> None:
    texts = ["", "a", "b", "a\0", "aaaaaaaa", "aaaaaaaab", "baaaaaaaa", "aaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaa"]
    assert len(set(text_checks(pa.array(texts), "x").tolist())) == len(texts)


def test_views_and_columns_without_a_text() -> None:
    assert text_keys(pa.nulls(3), "x").tolist() == [0, 0, 0]
    assert text_keys(pa.array([], pa.string()), "x").tolist() == []
    texts = ["a", "ein langer Text", None]
    assert text_keys(pa.array(texts, pa.string_view()), "x").tolist() == text_keys(pa.array(texts), "x").tolist()


def test_bytes_that_are_no_utf8_are_said() -> None:
    broken = pa.array([b"a", b"\xff\xfe"]).view(pa.string())
    for hashed in (text_keys, text_checks):
        with pytest.raises(UserError, match=r"feature 'x' has a text that is not UTF-8; write it as UTF-8"):
            hashed(broken, "x")
