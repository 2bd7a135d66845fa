import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.encoding import (
    FIRST_ROW,
    MISSING,
    UNSEEN,
    Buckets,
    Counts,
    Encoding,
    HashBuckets,
    Scaling,
    Vocabulary,
)
from ctrkit.errors import UserError
from ctrkit.raw_values import hash_strings, typed_array
from ctrkit.schema import Schema

SCHEMA = Schema.from_mapping(
    {
        "item": {"side": "item"},
        "recent": {"side": "user", "kind": "sequence", "max_len": 3, "table": "item"},
        "city": {"side": "user"},
        "a/b .. c": {"side": "user"},
        "hashed": {"side": "user", "buckets": 10},
        "price": {"side": "item", "kind": "dense", "transform": "bucketize"},
        "age": {"side": "user", "kind": "dense"},
        "bid": {"side": "item", "kind": "dense", "transform": "log"},
    },
    label="click",
    group="user_id",
)


def _vocabulary(*keys: int) -> Vocabulary:
    return Vocabulary(np.array(sorted(keys), np.int64), np.arange(len(keys), dtype=np.int64))


def _hash(text: str) -> int:
    return int(hash_strings(np.array([text], object))[0])


def make_encoding(**changes: Any) -> Encoding:
    encoding = Encoding(
        schema=SCHEMA,
        raw_types={
            "item": "int", "recent": "int", "city": "string", "a/b .. c": "int", "hashed": "string",
            "price": "float", "age": "float", "bid": "float",
        },
        tables={
            "item": _vocabulary(-5, 10, 2**62),
            "city": _vocabulary(_hash("Oslo"), _hash("Bergen")),
            "a/b .. c": _vocabulary(1, 2),
            "hashed": HashBuckets(10),
            "price": Buckets((1.0, 2.0, 5.0), low=0.5, high=9.0),
        },
        scalings={
            "age": Scaling(log=False, mean=40.0, std=10.0, low=18.0, high=90.0),
            "bid": Scaling(log=True, mean=1.0, std=0.5, low=0.0, high=float(np.e**3 - 1)),
        },
        counts={"item": Counts(values=7, missing=1)},
    )  # fmt: skip
    return replace(encoding, **changes)


def _encode(name: str, values: Any) -> tuple[list[int], Counts]:
    encoding = make_encoding()
    rows, counts = encoding.encode_sparse(name, *typed_array(values, encoding.raw_types[name], name))
    assert rows.dtype == np.int64
    return rows.tolist(), counts


def test_vocabulary_rows() -> None:
    rows, counts = _encode("item", [10, -5, 2**62, 11, None, -6, 2**63 - 1])
    assert rows == [3, 2, 4, UNSEEN, MISSING, UNSEEN, UNSEEN]
    assert counts == Counts(values=7, missing=1, unseen=3)


def test_strings_have_the_row_of_their_hash() -> None:
    rows, counts = _encode("city", ["Oslo", None, "Bergen", "Paris", ""])
    first, second = sorted(["Oslo", "Bergen"], key=_hash)
    assert rows == [{first: 2, second: 3}["Oslo"], MISSING, {first: 2, second: 3}["Bergen"], UNSEEN, UNSEEN]
    assert counts == Counts(values=5, missing=1, unseen=2)


_INT64 = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None)
@given(
    st.sets(st.integers(-20, 20)) | st.sets(_INT64, max_size=9) | st.sets(st.integers(2**63 - 9, 2**63 - 1)),
    st.lists(st.integers(-25, 25) | _INT64),
)
def test_a_vocabulary_is_a_dictionary(known: set[int], asked: list[int]) -> None:
    row = {key: FIRST_ROW + i for i, key in enumerate(sorted(known))}
    asked = [*asked, *known, -(2**63), 2**63 - 1]
    expected = [row.get(key, UNSEEN) for key in asked]
    assert _vocabulary(*known).rows(np.array(asked, np.int64)).tolist() == expected


def test_empty_vocabulary_has_seen_nothing() -> None:
    assert _vocabulary().rows(np.array([0, 1])).tolist() == [UNSEEN, UNSEEN]
    assert _vocabulary().num_rows == FIRST_ROW


def test_hash_buckets_see_every_id() -> None:
    rows, counts = _encode("hashed", [str(i) for i in range(2000)] + [None])
    assert counts == Counts(values=2001, missing=1)
    assert rows[-1] == MISSING
    assert min(rows[:-1]) == FIRST_ROW
    assert max(rows) == FIRST_ROW + 9
    assert np.bincount(rows)[FIRST_ROW:].min() > 120  # 200 are expected
    assert HashBuckets(10).num_rows == 12


def test_bucketized_value_is_in_the_bucket_of_its_boundaries() -> None:
    rows, counts = _encode("price", [0.0, 0.5, 0.99, 1.0, 2.0, 4.9, 5.0, 9.0, 100.0, None, float("nan"), float("inf")])
    assert rows == [2, 2, 2, 3, 4, 4, 5, 5, 5, MISSING, MISSING, 5]
    assert counts == Counts(values=12, missing=2, out_of_range=3)
    assert make_encoding().tables["price"].num_rows == 6


def test_dense_values_are_clipped_and_scaled() -> None:
    encoding = make_encoding()
    values, missing = typed_array([40, 50.0, 200, 0, None, float("inf")], "float", "age")
    scaled, counts = encoding.encode_dense("age", values, missing)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0.0, 1.0, 5.0, -2.2, 0.0, 5.0], rtol=1e-6)
    assert counts == Counts(values=6, missing=1, out_of_range=3)
    values, missing = typed_array([0.0, float(np.e - 1), 1e9, -4.0], "float", "bid")
    scaled, counts = encoding.encode_dense("bid", values, missing)
    np.testing.assert_allclose(scaled, [-2.0, 0.0, 4.0, -2.0], atol=1e-6)
    assert counts == Counts(values=4, out_of_range=2)


def test_sequences() -> None:
    lists: list[Any] = [[10, 11, -5, 10], [], None, [None, 10], np.array([2**62]), (10.0,)]
    rows, lengths, counts = make_encoding().encode_sequence("recent", lists)
    assert rows.tolist() == [3, UNSEEN, 2, MISSING, 3, 4, 3]
    assert lengths.tolist() == [3, 0, 0, 2, 1, 1]
    assert counts == Counts(values=7, missing=3, unseen=1, truncated=1)


def test_no_list_and_one_list() -> None:
    encoding = make_encoding()
    for lists, lengths, counts in (([], [], Counts()), ([None], [0], Counts(missing=1))):
        rows, length, seen = encoding.encode_sequence("recent", lists)
        assert (rows.tolist(), length.tolist(), seen) == ([], lengths, counts)


@pytest.mark.parametrize("value", ["10", 10, {10: 1}, b"10"])
def test_sequence_refuses_what_is_no_list(value: Any) -> None:
    with pytest.raises(UserError, match="'recent' takes a"):
        make_encoding().encode_sequence("recent", [[10], value])


def test_sequence_of_another_type_is_refused() -> None:
    with pytest.raises(UserError, match="'recent' has int values in training, got '10'"):
        make_encoding().encode_sequence("recent", [[10], ["10"]])


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(st.integers(-6, 12) | st.none(), max_size=5), max_size=5))
def test_lists_together_are_lists_one_by_one(lists: list[Any]) -> None:
    encoding = make_encoding()
    together, lengths, counts = encoding.encode_sequence("recent", lists)
    total, rows = Counts(), []
    for length, values in zip(lengths.tolist(), lists, strict=True):
        alone, (alone_length,), one = encoding.encode_sequence("recent", [values])
        assert length == alone_length == len(alone)
        rows += alone.tolist()
        total.add(one)
    assert together.tolist() == rows
    assert counts == total


def test_counts_add_up() -> None:
    counts = Counts(1, 2, 3, 4, 5)
    counts.add(Counts(10, 20, 30, 40, 50))
    assert counts == Counts(11, 22, 33, 44, 55)


def test_survives_the_disk(tmp_path: Path) -> None:
    encoding = make_encoding()
    encoding.save(tmp_path / "encoding")
    loaded = Encoding.load(tmp_path / "encoding")
    assert loaded.fingerprint() == encoding.fingerprint()
    assert loaded.schema == SCHEMA
    assert loaded.counts == encoding.counts
    assert loaded.num_rows() == {"item": 5, "city": 4, "a/b .. c": 4, "hashed": 12, "price": 6}
    vocabulary = loaded.tables["item"]
    assert isinstance(vocabulary, Vocabulary)
    np.testing.assert_array_equal(vocabulary.counts_V, [0, 1, 2])
    for name, values in {"item": [10, 3], "city": ["Oslo"], "hashed": ["x"], "price": [1.5], "a/b .. c": [2]}.items():
        typed = typed_array(values, encoding.raw_types[name], name)  # type: ignore[arg-type]
        assert loaded.encode_sparse(name, *typed)[0].tolist() == encoding.encode_sparse(name, *typed)[0].tolist()


def test_every_file_stays_in_its_directory(tmp_path: Path) -> None:
    make_encoding().save(tmp_path / "encoding")
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} == {"encoding"}
    assert (tmp_path / "encoding" / "a%2Fb%20..%20c.keys.npy").is_file()


def test_counts_stay_out_of_a_bundle(tmp_path: Path) -> None:
    encoding = make_encoding()
    encoding.save(tmp_path, counts=False)
    assert not list(tmp_path.glob("*.counts.npy"))
    loaded = Encoding.load(tmp_path)
    assert loaded.fingerprint() == encoding.fingerprint()
    assert loaded.counts == {}


def test_empty_vocabulary_survives_the_disk(tmp_path: Path) -> None:
    encoding = make_encoding(tables={**make_encoding().tables, "item": _vocabulary()})
    encoding.save(tmp_path)
    loaded = Encoding.load(tmp_path)
    assert loaded.encode_sparse("item", np.array([10]), np.array([False]))[0].tolist() == [UNSEEN]


def test_fingerprint_tells_encodings_apart() -> None:
    base = make_encoding()
    changed = [
        base,
        make_encoding(tables={**base.tables, "item": _vocabulary(-5, 11, 2**62)}),
        make_encoding(tables={**base.tables, "hashed": HashBuckets(11)}),
        make_encoding(tables={**base.tables, "price": Buckets((1.0, 2.0, 5.1), low=0.5, high=9.0)}),
        make_encoding(scalings={**base.scalings, "age": replace(base.scalings["age"], mean=40.1)}),
        make_encoding(raw_types={**base.raw_types, "item": "string"}),
    ]
    assert len({encoding.fingerprint() for encoding in changed}) == len(changed)
    assert make_encoding(counts={}).fingerprint() == base.fingerprint()


def _edit(directory: Path, **changes: Any) -> None:
    path = directory / "encoding.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _drop(directory: Path, key: str) -> None:
    path = directory / "encoding.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))


BROKEN: dict[str, Any] = {
    "no directory": lambda d: [path.unlink() for path in d.iterdir()] and d.rmdir(),
    "no encoding.json": lambda d: (d / "encoding.json").unlink(),
    "no JSON": lambda d: (d / "encoding.json").write_text("{"),
    "no text": lambda d: (d / "encoding.json").write_bytes(b"\xff\xfe"),
    "a list": lambda d: (d / "encoding.json").write_text("[]"),
    "tables a list": lambda d: _edit(d, tables=[1]),
    "no fingerprint": lambda d: _drop(d, "fingerprint"),
    "no schema": lambda d: _drop(d, "schema"),
    "bad schema": lambda d: _edit(d, schema={"label": "x"}),
    "other table": lambda d: _edit(d, tables={"item": {"type": "tree"}}),
    "no keys": lambda d: (d / "item.keys.npy").unlink(),
    "keys empty": lambda d: (d / "item.keys.npy").write_bytes(b""),
    "keys cut": lambda d: (d / "item.keys.npy").write_bytes((d / "item.keys.npy").read_bytes()[:-1]),
    "keys no array": lambda d: (d / "item.keys.npy").write_bytes(b"keys"),
    "keys pickled": lambda d: np.save(d / "item.keys.npy", np.array([{}], object), allow_pickle=True),
    "keys changed": lambda d: np.save(d / "item.keys.npy", np.array([1, 2, 3])),
    "mean changed": lambda d: _edit(d, raw_types={"item": "string"}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refuses_a_broken_encoding(tmp_path: Path, case: str) -> None:
    directory = tmp_path / "encoding"
    make_encoding().save(directory)
    BROKEN[case](directory)
    with pytest.raises(UserError, match=r"encoding: .*run `ctrkit prepare` again"):
        Encoding.load(directory)
