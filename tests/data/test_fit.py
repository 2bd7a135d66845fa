from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.data import counting, ids, source
from ctrkit.data.counting import KeyCounts, Moments
from ctrkit.data.fit import Fitted, fit
from ctrkit.data.split import open_split
from ctrkit.encoding import Buckets, HashBuckets, Vocabulary
from ctrkit.errors import UserError
from ctrkit.raw_values import hash_strings
from ctrkit.schema import Schema
from tests.data import small_log


def fit_columns(tmp_path: Path, features: dict[str, dict[str, Any]], **values: Any) -> Fitted:
    """Fit on a training part of these columns; validation and test have the same values negated or another text."""
    rows = len(next(iter(values.values())))
    log = pa.table({"click": [i % 2 for i in range(rows)], "user_id": [0] * rows, **values})
    for part in ("train", "valid", "test"):
        pq.write_table(log, tmp_path / f"{part}.parquet", row_group_size=10)
    schema = Schema.from_mapping(features, label="click", group="user_id")
    return fit(open_split(str(tmp_path), small_log.data(tmp_path), None), schema, lambda rows: None)


def vocabulary(fitted: Fitted, table: str) -> dict[int, int]:
    found = fitted.encoding.tables[table]
    assert isinstance(found, Vocabulary)
    return dict(zip(found.keys_V.tolist(), found.counts_V.tolist(), strict=True))


def test_a_vocabulary_counts_all_features_of_its_table(tmp_path: Path) -> None:
    fitted = fit_columns(
        tmp_path,
        {"item": {"side": "item"}, "recent": {"side": "user", "kind": "sequence", "table": "item", "max_len": 2}},
        item=pa.array([7, -3, None, 7]),
        recent=pa.array([[7, 9, 1000], None, [], [None, 9]]),
    )
    assert vocabulary(fitted, "item") == {-3: 1, 7: 3, 9: 2}  # 1000 stands behind max_len
    assert fitted.encoding.raw_types == {"item": "int", "recent": "int"}
    assert (fitted.rows, fitted.clicks) == (4, 2)


def test_min_count_leaves_rare_ids_out(tmp_path: Path) -> None:
    fitted = fit_columns(tmp_path, {"x": {"side": "item", "min_count": 2}}, x=["a", "b", "a", "c", "b"])
    keys = hash_strings(np.array(["a", "b"], object)).tolist()
    assert vocabulary(fitted, "x") == {keys[0]: 2, keys[1]: 2}
    fitted = fit_columns(tmp_path, {"x": {"side": "item", "min_count": 9}}, x=["a", "b", "a", "c", "b"])
    assert vocabulary(fitted, "x") == {}
    assert fitted.warnings == ["table 'x': no id occurs 9 times or more in the train part; it tells the model nothing"]
    fitted = fit_columns(tmp_path, {"x": {"side": "item"}}, x=pa.nulls(5, pa.string()))
    assert fitted.warnings == ["table 'x': no id occurs in the train part; it tells the model nothing"]


def test_only_the_training_part_is_fitted(tmp_path: Path) -> None:
    log = small_log.table()
    other = log.set_column(log.schema.get_field_index("item_id"), "item_id", pa.array(range(10_000, 10_300)))
    small_log.write_parts(tmp_path / "a", log)
    small_log.write_parts(tmp_path / "b", pa.concat_tables([log.slice(0, 180), other.slice(180)]))
    schema = small_log.schema()
    one, two = (
        fit(open_split(str(p), small_log.data(p), None), schema, lambda rows: None).encoding
        for p in (tmp_path / "a", tmp_path / "b")
    )
    assert one.fingerprint() == two.fingerprint()


def test_rows_of_other_parts_in_the_same_file_are_not_fitted(tmp_path: Path) -> None:
    log = small_log.table()
    pq.write_table(log, tmp_path / "x.parquet")
    data = small_log.data(tmp_path, split={"by": "column", "column": "day"})
    fitted = fit(open_split(str(tmp_path), data, None), small_log.schema(), lambda rows: None)
    train = log.slice(0, 200).to_pandas()
    assert fitted.rows == 200
    assert fitted.clicks == train["click"].sum()
    scaling = fitted.encoding.scalings["price"]
    np.testing.assert_allclose([scaling.mean, scaling.std], [train["price"].mean(), train["price"].std(ddof=0)])


def test_integers_of_every_kind_are_their_own_keys(tmp_path: Path) -> None:
    features = {name: {"side": "item"} for name in ("b", "u64", "i8", "f", "d")}
    fitted = fit_columns(
        tmp_path,
        features,
        b=pa.array([True, None, False]),
        u64=pa.array([2**64 - 1, 1, None], pa.uint64()),
        i8=pa.array([-128, 127, None], pa.int8()),
        f=pa.array([3.0, None, np.nan]),
        d=pa.array([2**62, 2**62, None]).dictionary_encode(),
    )
    assert set(fitted.encoding.raw_types.values()) == {"int"}
    found = {name: set(vocabulary(fitted, name)) for name in features}
    assert found == {"b": {0, 1}, "u64": {-1, 1}, "i8": {-128, 127}, "f": {3}, "d": {2**62}}
    assert fitted.warnings == ["feature 'f': ids stored as floats (column 'f') are taken as integers"]


@pytest.mark.parametrize(("value", "why"), [(0.5, "no whole number"), (2.0**53, "above 2\\^53")])
def test_floats_that_are_no_ids_are_refused(tmp_path: Path, value: float, why: str) -> None:
    with pytest.raises(UserError, match=rf"train\.parquet, column 'f', rows 1 to 2: feature 'f'.*{why}"):
        fit_columns(tmp_path, {"f": {"side": "item"}}, f=[1.0, value])


def test_a_hashed_table_keeps_no_ids(tmp_path: Path) -> None:
    fitted = fit_columns(tmp_path, {"x": {"side": "item", "buckets": 5}}, x=["a", "b"])
    assert fitted.encoding.tables["x"] == HashBuckets(5)
    assert fitted.encoding.raw_types == {"x": "string"}


def test_dense_moments_are_sound_over_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "CHUNK_ROWS", 11)
    rng = np.random.default_rng(0)
    values = 1e9 + rng.normal(size=500)  # a sum of squares would lose all digits of the deviation
    values[::7] = np.nan
    values[3], values[5] = np.inf, -np.inf
    feature = {"side": "item", "kind": "dense", "column": "x"}
    fitted = fit_columns(
        tmp_path, {"s": feature, "l": {**feature, "transform": "log"}}, x=pa.array(values, from_pandas=False)
    )
    finite = values[np.isfinite(values)]
    scaling = fitted.encoding.scalings["s"]
    np.testing.assert_allclose(scaling.mean, finite.mean(), rtol=1e-15)
    np.testing.assert_allclose(scaling.std, (finite - 1e9).std(), rtol=1e-6)
    assert (scaling.low, scaling.high) == (finite.min(), finite.max())
    log = fitted.encoding.scalings["l"]
    np.testing.assert_allclose(log.mean, np.log1p(finite).mean(), rtol=1e-15)
    assert (log.low, log.high) == (finite.min(), finite.max())


def test_quantile_buckets_hold_equal_shares(tmp_path: Path) -> None:
    values = np.random.default_rng(0).permutation(np.arange(1000.0) ** 2)
    fitted = fit_columns(
        tmp_path, {"x": {"side": "item", "kind": "dense", "transform": "bucketize", "num_buckets": 8}}, x=values
    )
    table = fitted.encoding.tables["x"]
    assert isinstance(table, Buckets)
    np.testing.assert_array_equal(np.bincount(table.rows(values))[2:], [125] * 8)
    assert (table.low, table.high) == (0.0, 999.0**2)


def test_few_values_make_few_buckets(tmp_path: Path) -> None:
    fitted = fit_columns(
        tmp_path,
        {"x": {"side": "item", "kind": "dense", "transform": "bucketize"}},
        x=[1.0] * 50 + [2.0] * 30 + [9.0] * 20,
    )
    assert fitted.encoding.tables["x"] == Buckets((2.0, 9.0), 1.0, 9.0)


@pytest.mark.parametrize("transform", ["standardize", "log", "bucketize"])
@pytest.mark.parametrize(
    ("values", "what"), [([4.0] * 3, "always 4"), ([None] * 3, "never given"), ([np.nan, None, np.inf], "never given")]
)
def test_a_dense_feature_without_variance_is_said(
    tmp_path: Path, transform: str, values: list[float], what: str
) -> None:
    features = {"x": {"side": "item", "kind": "dense", "transform": transform}}
    fitted = fit_columns(tmp_path, features, x=pa.array(values, pa.float64()))
    assert fitted.warnings == [f"feature 'x': {what} in the train part; it tells the model nothing"]
    if transform != "bucketize":
        scaled, _ = fitted.encoding.encode_dense("x", np.array([4.0, 7.0, 0.0]), np.zeros(3, np.bool_))
        assert fitted.encoding.scalings["x"].std == 1.0
        np.testing.assert_array_equal(scaled, [0.0, 0.0, 0.0])
    else:
        rows, _ = fitted.encoding.encode_sparse("x", np.array([4.0, 7.0]), np.array([False, True]))
        np.testing.assert_array_equal(rows, [2, 0])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 5)), max_size=30), max_size=8), st.integers(1, 40)
)
def test_key_counts_are_those_of_a_counter(chunks: list[list[tuple[int, int]]], merge: int) -> None:
    counts, expected = KeyCounts(), Counter[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_MERGE", merge)
        for chunk in chunks:
            keys, times = (np.array([pair[i] for pair in chunk], np.int64) for i in (0, 1))
            counts.add(keys, times, keys * 3)
            for key, time in chunk:
                expected[key] += time
    counts.merge()
    assert counts.keys_V.tolist() == sorted(expected)
    assert dict(zip(counts.keys_V.tolist(), counts.counts_V.tolist(), strict=True)) == expected
    assert counts.collisions == 0


def test_strings_of_equal_hash_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "text_keys", lambda texts, name: np.array([len(t) for t in texts.to_pylist()]))
    monkeypatch.setattr(source, "CHUNK_ROWS", 7)
    fitted = fit_columns(tmp_path, {"x": {"side": "item"}}, x=["aa", "bb", "c", "bb"] * 10)
    assert fitted.warnings == ["table 'x': 1 ids share a row with another id of equal hash"]


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=20), max_size=6), st.integers(1, 30))
def test_each_id_that_shares_a_key_is_counted_once(chunks: list[list[tuple[int, int]]], merge: int) -> None:
    counts = KeyCounts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_MERGE", merge)
        for chunk in chunks:
            keys, checks = (np.array([pair[i] for pair in chunk], np.int64) for i in (0, 1))
            counts.add(keys, np.ones(len(keys), np.int64), checks)
    counts.merge()
    ids = {pair for chunk in chunks for pair in chunk}
    assert counts.collisions == len(ids) - len({key for key, _ in ids})


@pytest.mark.parametrize("label", [0, 1])
def test_a_training_part_of_one_class_is_refused(tmp_path: Path, label: int) -> None:
    with pytest.raises(UserError, match="no click" if label == 0 else "nothing but clicks"):
        fit_columns(tmp_path, {"x": {"side": "item"}}, x=[1, 2], click=[label, label])


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12))
def test_moments_do_not_depend_on_chunks_by_a_bit(sizes: list[int], block: int) -> None:
    numbers = np.random.default_rng(0).normal(size=sum(sizes))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_BLOCK", block)
        for chunks in ([numbers], np.split(numbers, np.cumsum(sizes)[:-1])):
            moments = Moments()
            for chunk in chunks:
                moments.add(chunk, chunk)
            moments.merge()
            found.append((moments.count, moments.mean, moments.std, moments.low, moments.high))
    assert found[0] == found[1]
    if len(numbers):
        np.testing.assert_allclose(found[0][1:3], [numbers.mean(), numbers.std()], atol=1e-12)
