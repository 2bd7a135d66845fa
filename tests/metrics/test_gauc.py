import json
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ctrkit.errors import UserError
from ctrkit.metrics import Coverage, GAUCPartial, auc, gauc, group_aucs, inputs
from ctrkit.metrics.gauc import Weighting

WEIGHTINGS: tuple[Weighting, ...] = ("impressions", "clicks", "uniform")


def sklearn_gauc(
    y: NDArray[Any], score: NDArray[Any], groups: NDArray[Any], weighting: Weighting, weight: NDArray[Any] | None = None
) -> float:
    """The definition, one user at a time."""
    top = bottom = 0.0
    for key in set(groups.tolist()):
        of_group = np.array([each == key for each in groups.tolist()])
        label, w = y[of_group], np.ones(int(of_group.sum())) if weight is None else weight[of_group]
        if len(set(label.tolist())) < 2:
            continue
        auc = roc_auc_score(label, score[of_group], sample_weight=w)
        share = {"impressions": w.sum(), "clicks": (w * label).sum(), "uniform": 1.0}[weighting]
        top, bottom = top + share * auc, bottom + share
    return top / bottom if bottom else float("nan")


KEYS: list[st.SearchStrategy[Any]] = [
    st.integers(0, 5),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([-(2**63), -1, 0, 2**62, 2**63 - 1]),
    st.text(max_size=2),
    st.binary(max_size=2),
    st.sampled_from([("a", 1), ("a", 2), "a", b"a"]),
]
SCORES: list[st.SearchStrategy[float]] = [
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1e3, 1e3, width=32),
    st.sampled_from([-0.0, 0.0, 5e-324, 1e-300, 0.1, 0.1 + 2**-56, 1.0, 1e300]),
    st.sampled_from([0.25, 0.5]),
]


@st.composite
def logs(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Labels, scores, keys and weights of a small log with ties, one-row users and users of one class."""
    keys, scores = draw(st.sampled_from(KEYS)), draw(st.sampled_from(SCORES))
    rows = draw(st.lists(st.tuples(st.booleans(), scores, keys, st.integers(1, 1000)), max_size=40))
    groups = np.empty(len(rows), dtype=object)
    groups[:] = [row[2] for row in rows]
    if all(isinstance(key, int) for key in groups) and rows:
        groups = groups.astype(np.int64)
    label = np.array([row[0] for row in rows], dtype=np.int64)
    score = np.array([row[1] for row in rows], dtype=np.float64)
    return label, score, groups, np.array([row[3] for row in rows]) / 16


@settings(deadline=None, max_examples=150)
@given(logs(), st.sampled_from(WEIGHTINGS), st.sampled_from([1, 3, 1 << 17]))
def test_equals_the_sklearn_loop(log: tuple[Any, ...], weighting: Weighting, chunk: int) -> None:
    y, score, groups, weight = log
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "CHUNK_ROWS", chunk)
        plain = gauc(y, score, groups, weighting=weighting)
        weighted = gauc(y, score, groups, weighting=weighting, sample_weight=weight)
    assert plain.value == pytest.approx(sklearn_gauc(y, score, groups, weighting), abs=1e-12, nan_ok=True)
    expected = sklearn_gauc(y, score, groups, weighting, weight)
    assert weighted.value == pytest.approx(expected, abs=1e-12, nan_ok=True)
    both = [set(y[[each == key for each in groups]].tolist()) == {0, 1} for key in groups]
    assert (plain.coverage.impressions_kept, plain.coverage.clicks_kept) == (sum(both), y[both].sum())
    assert plain.coverage.impressions_kept + plain.coverage.impressions_left_out == len(y)
    assert plain.coverage == weighted.coverage


@settings(deadline=None, max_examples=60)
@given(logs(), st.randoms(use_true_random=False), st.sampled_from(WEIGHTINGS))
def test_row_order_changes_no_bit(log: tuple[Any, ...], random: Any, weighting: Weighting) -> None:
    y, score, groups, _ = log
    order = list(range(len(y)))
    random.shuffle(order)
    before, after = (
        gauc(y, score, groups, weighting=weighting),
        gauc(y[order], score[order], groups[order], weighting=weighting),
    )
    assert repr(before) == repr(after)


@settings(deadline=None, max_examples=60)
@given(logs(), st.integers(1, 4), st.sampled_from(WEIGHTINGS))
def test_shards_partitioned_by_user_merge_to_the_whole(log: tuple[Any, ...], shards: int, weighting: Weighting) -> None:
    y, score, groups, _ = log
    shard = np.array([hash(key) % shards for key in groups], dtype=np.int64)
    merged = GAUCPartial(weighting)
    for i in reversed(range(shards)):
        mine = shard == i
        merged += pickle.loads(pickle.dumps(group_aucs(y[mine], score[mine], groups[mine]).partial(weighting)))  # noqa: S301
    assert repr(merged.gauc()) == repr(gauc(y, score, groups, weighting=weighting))


@pytest.fixture
def log() -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(5)
    users = rng.integers(0, 300, 6000)
    score = rng.normal(size=6000)
    return rng.random(6000) < 1 / (1 + np.exp(1.5 - score)), score, users


def test_by_hand() -> None:
    #  user 7: one click over two of three non-clicks, tied with the third -> 2.5 / 3; user 9: both pairs lost -> 0
    y = [0, 0, 0, 1, 1, 0, 0, 1, 1, 0]
    score = [0.1, 0.2, 0.5, 0.5, 0.1, 0.3, 0.2, 0.9, 0.8, 0.4]
    users = [7, 7, 7, 7, 9, 9, 9, 11, 11, 13]
    result = gauc(y, score, users)
    assert result.value == pytest.approx((4 * 2.5 / 3 + 3 * 0.0) / 7, abs=1e-15)
    assert result.weighting == "impressions"
    assert result.coverage == Coverage(
        groups_kept=2, groups_left_out=2, impressions_kept=7, impressions_left_out=3, clicks_kept=2, clicks_left_out=2
    )
    assert gauc(y, score, users, weighting="clicks").value == pytest.approx(2.5 / 6, abs=1e-15)
    assert gauc(y, score, users, weighting="uniform").value == pytest.approx(2.5 / 6, abs=1e-15)
    table = group_aucs(y, score, users)
    assert dict(zip(table.groups, table.auc, strict=True)) == {7: 2.5 / 3, 9: 0.0}
    assert (table.impressions.tolist(), table.clicks.tolist()) == ([4, 3], [1, 1])


def test_sample_weight_counts_a_row_that_often(log: tuple[Any, ...]) -> None:
    y, score, users = log
    times = np.random.default_rng(0).integers(0, 4, len(y))
    repeated = np.repeat(np.arange(len(y)), times)
    for weighting in WEIGHTINGS:
        weighted = gauc(y, score, users, weighting=weighting, sample_weight=times).value
        assert weighted == pytest.approx(
            gauc(y[repeated], score[repeated], users[repeated], weighting=weighting).value, abs=1e-12
        )


def test_small_users_keep_their_digits_under_weights() -> None:
    """A running sum over the log would leave the light user nothing but the rounding errors of the heavy one."""
    y, score = np.array([0, 1, 0, 1, 0]), np.array([0.3, 0.1, 0.2, 0.8, 0.9])
    heavy, light = np.full(5, 1e12), np.array([3e-9, 7e-9, 1e-9, 2e-9, 5e-9])
    table = group_aucs(
        np.tile(y, 2), np.tile(score, 2), np.repeat([0, 1], 5), sample_weight=np.concatenate([heavy, light])
    )
    assert table.auc == pytest.approx(
        [roc_auc_score(y, score, sample_weight=heavy), roc_auc_score(y, score, sample_weight=light)], abs=1e-12
    )


def as_columns(users: NDArray[np.int64]) -> dict[str, Any]:
    text = np.array([f"user-{user}" for user in users])
    arrow = pa.array(text)
    return {
        "int16": (users - 150).astype(np.int16),
        "uint64 above int64": users.astype(np.uint64) + np.uint64(2**63),
        "hashes": users * np.int64(0x1E3779B97F4A7C15),
        "str": text,
        "bytes": text.astype("S"),
        "object": text.astype(object),
        "numpy strings": text.astype(np.dtypes.StringDType()),
        "list": text.tolist(),
        "tuples": [(user, "x") for user in users],
        "dates": users.astype("M8[D]"),
        "Series of int": pd.Series(users),
        "Series of Int64": pd.Series(users, dtype="Int64"),
        "Series of str": pd.Series(text),
        "Series of object": pd.Series(text, dtype=object),
        "Categorical": pd.Series(text, dtype="category"),
        "Categorical with unused categories": pd.Categorical(text, [*sorted(set(text)), "nobody"]),
        "Index": pd.Index(text),
        "Arrow int": pa.array(users),
        "Arrow string": arrow,
        "Arrow large string": arrow.cast(pa.large_string()),
        "Arrow binary": arrow.cast(pa.binary()),
        "Arrow dictionary": arrow.dictionary_encode(),
        "chunked": pa.chunked_array([arrow[:7], arrow[7:]]),
        "chunked dictionaries": pa.chunked_array([arrow[:7].dictionary_encode(), arrow[7:].dictionary_encode()]),
        "dictionary that names a key twice": pa.DictionaryArray.from_arrays(pa.array(np.arange(len(text))), arrow),
    }


@pytest.mark.parametrize("key_type", list(as_columns(np.arange(300))))
def test_every_key_type_gives_the_same(log: tuple[Any, ...], key_type: str) -> None:
    y, score, users = log
    column = as_columns(users)[key_type]
    assert gauc(y, score, column) == gauc(y, score, users)
    table, plain = group_aucs(y, score, column), group_aucs(y, score, users)
    wanted = {}
    for user, key in zip(
        users.tolist(), np.asarray(column, dtype=object) if key_type != "tuples" else column, strict=True
    ):
        wanted[user] = key
    auc_of = dict(zip(table.groups.tolist(), table.auc, strict=True))
    for user, value in zip(plain.groups.tolist(), plain.auc, strict=True):
        assert auc_of[wanted[user]] == value


def test_keys_without_pyarrow(log: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    y, score, users = log
    expected = gauc(y, score, users)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert gauc(y, score, users * np.int64(0x1E3779B97F4A7C15)) == expected
    assert gauc(y, score, users.astype(str)) == expected
    assert gauc(y, score, users.astype("S")) == expected


def test_labels_and_scores_of_any_library(log: tuple[Any, ...]) -> None:
    y, score, users = log
    expected = gauc(y, score, users)
    for label in (
        y.astype(np.float32),
        y.astype(np.uint8),
        pd.Series(y),
        pa.array(y),
        pd.Series(y, dtype="Int64"),
        y.tolist(),
    ):
        for values in (score, pd.Series(score), pa.array(score), pd.Series(score, dtype="Float64")):
            assert gauc(label, values, users) == expected


def test_float64_scores_are_never_rounded_to_float32() -> None:
    base = 0.3
    score = np.array([base, np.nextafter(base, 1), np.nextafter(base, 0), base])
    assert np.unique(score.astype(np.float32)).size == 1
    assert gauc([0, 1, 0, 0], score, ["u"] * 4).value == 1.0


def test_scores_that_share_a_grid_cell_are_told_apart() -> None:
    """One score far out leaves all the others in one cell of the grid that float64 scores are packed with."""
    rng = np.random.default_rng(2)
    users = rng.integers(0, 50, 2000)
    score, y = rng.normal(size=2000), rng.random(2000) < 0.3
    score[0] = 1e280
    expected = sklearn_gauc(y, score, users, "impressions")
    assert gauc(y, score, users).value == pytest.approx(expected, abs=1e-12)
    assert expected != 0.5


def test_ties_across_steps_of_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    y, score, users = rng.random(500) < 0.4, rng.integers(0, 3, 500) / 4, rng.integers(0, 2, 500)
    expected = gauc(y, score, users)
    assert expected.value == pytest.approx(sklearn_gauc(y, score, users, "impressions"), abs=1e-12)
    for rows in (1, 2, 7, 64, 499):
        monkeypatch.setattr(inputs, "CHUNK_ROWS", rows)
        assert gauc(y, score, users) == expected


@pytest.mark.parametrize("kind", ["S", "U"])
def test_keys_that_agree_up_to_a_nul_are_told_apart(kind: str) -> None:
    """Digests hold zero bytes."""
    keys = np.array([b"a\0b", b"a\0b", b"a\0c", b"a\0c"] if kind == "S" else ["\0b", "\0b", "\0c", "\0c"])
    assert keys.dtype.kind == kind
    result = group_aucs([0, 1, 1, 0], [0.1, 0.4, 0.2, 0.3], keys)
    assert sorted(zip(result.groups.tolist(), result.auc.tolist(), strict=True)) == [(keys[0], 1.0), (keys[2], 0.0)]


def test_keys_that_few_libraries_can_write() -> None:
    y, score = [0, 1, 1, 0], [0.1, 0.4, 0.2, 0.3]
    for keys in (
        np.array(["\ud800", "\ud800", "\udfff", "\udfff"]),
        pa.array([b"0" * 16] * 2 + [b"1" * 16] * 2, pa.uuid()),
        pa.array(["a", "a", "b", "b"]).cast(pa.string_view()),
        np.ma.array([1, 1, 2, 2], mask=False),
    ):
        assert gauc(y, score, keys).coverage.groups_kept == 2
    assert gauc([], [], pa.array([], pa.null())).coverage == Coverage()


def test_keys_of_polars() -> None:
    pl = pytest.importorskip("polars")
    y, score = [0, 1, 1, 0], [0.1, 0.4, 0.2, 0.3]
    objects = [("a", int(i)) for i in "1122"]  # to Arrow, polars gives their addresses
    for keys in (pl.Series(objects, dtype=pl.Object), pl.Series(list("aabb"), dtype=pl.Categorical)):
        assert gauc(y, score, keys).coverage.groups_kept == 2
    with pytest.raises(UserError, match="cannot be grouped"):
        gauc(y, score, pl.Series([1, 1, 2, 2], dtype=pl.Int128))


def test_no_user_with_both_classes_is_nan_and_counted() -> None:
    result = gauc([1, 1, 0], [0.1, 0.2, 0.3], ["a", "a", "b"])
    assert np.isnan(result.value)
    assert result.coverage == Coverage(groups_left_out=2, impressions_left_out=3, clicks_left_out=2)
    assert np.isnan(gauc([], [], []).value)


def test_no_rounding_takes_a_weighted_auc_past_one() -> None:
    weight = np.exp(np.random.default_rng(0).normal(size=(300, 6)) * 8)
    y, score = [1, 0, 1, 0, 1, 0], [0.9, 0.1, 0.8, 0.2, 0.7, 0.3]
    for row in weight:
        for value in (gauc(y, score, [1] * 6, sample_weight=row).value, auc(y, score, sample_weight=row)):
            assert 1 - 1e-14 < value <= 1.0


@pytest.mark.parametrize(
    ("rows", "clicks", "rarer", "little"),
    [(5000, 50, 50, False), (5000, 49, 49, True), (5000, 4951, 49, True), (0, 0, 0, True)],
)
def test_what_gauc_cannot_choose_by(rows: int, clicks: int, rarer: int, little: bool) -> None:
    coverage = Coverage(groups_kept=50, impressions_kept=rows, impressions_left_out=10**6, clicks_kept=clicks)
    assert (coverage.rarer_kept, coverage.is_too_little) == (rarer, little)


def test_zero_weights_leave_rows_out() -> None:
    y, score, users = [1, 0, 1, 1, 0], [0.2, 0.1, 0.3, 0.9, 0.5], [1, 1, 2, 2, 2]
    result = gauc(y, score, users, sample_weight=[1, 0, 1, 2, 1])
    assert result.value == pytest.approx(2 / 3, abs=1e-15)
    assert result.coverage == Coverage(1, 1, 3, 1, 2, 1)
    assert np.isnan(gauc(y, score, users, sample_weight=[0] * 5).value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_true": [0, 2, 1, -1]}, r"y_true: labels outside \{0, 1\}: 2 of 4 rows, the first is row 1 \(2\)"),
        ({"y_true": [0, 1, np.nan, 1]}, r"y_true: labels outside \{0, 1\}: 1 of 4 rows, the first is row 2 \(nan\)"),
        ({"y_true": pa.array([0, 1, None, 1])}, r"labels outside \{0, 1\}: 1 of 4 rows, the first is row 2"),
        ({"y_true": ["no", "yes", "no", "no"]}, "y_true: .* not all numbers"),
        ({"y_score": [0.1, np.nan, np.inf, 0.2]}, r"y_score: NaN or infinite values: 2 of 4 rows, the first is row 1"),
        ({"y_score": [0.1, 0.2, 0.3, -np.inf]}, r"NaN or infinite values: 1 of 4 rows, the first is row 3 \(-inf\)"),
        ({"y_score": pd.array([0.1, None, 0.2, 0.3], dtype="Float64")}, "1 of 4 rows, the first is row 1"),
        ({"y_score": np.array([1, 2**53 + 1, 3, 4])}, "float64 cannot hold"),
        ({"y_score": [0.1, 0.2]}, "y_score has 2 rows, y_true has 4"),
        ({"y_score": [[0.1], [0.2], [0.3], [0.4]]}, "one dimension"),
        ({"groups": [1, 2]}, "groups has 2 rows, y_true has 4"),
        ({"groups": ["a", None, "a", None]}, "groups: 2 of 4 keys are missing, the first in row 1"),
        ({"groups": pa.array(["a", "a", None, "b"])}, "1 of 4 keys are missing, the first in row 2"),
        ({"groups": pa.array([1, 1, None, 2])}, "1 of 4 keys are missing, the first in row 2"),
        ({"groups": pd.Series(["a", "b", None, "c"], dtype="category")}, "1 of 4 keys are missing, the first in row 2"),
        ({"groups": pd.Series([1, pd.NA, 2, 2], dtype=object)}, "1 of 4 keys are missing, the first in row 1"),
        ({"groups": np.array(["2020-01-01", "NaT", "2020-01-01", "NaT"], dtype="M8[D]")}, "2 of 4 keys are missing"),
        (
            {"groups": pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 2]), pa.array(["a", None, "b"]))},
            "first in row 1",
        ),
        ({"groups": np.ones((4, 1), dtype=int)}, "one dimension"),
        ({"groups": None}, "groups is a NoneType; give a column"),
        ({"groups": [1.0, 1.0, 2.0, 2.0]}, "in which large ids merge"),
        ({"groups": pd.Categorical([1.0, 1.0, 2.0, 2.0])}, "in which large ids merge"),
        ({"groups": pa.array([1.0, 1.0, np.nan, np.nan]).dictionary_encode()}, "in which large ids merge"),
        ({"groups": pa.array([[1], [1], [2], [2]])}, r"keys of type list<item: int64> cannot be grouped"),
        ({"groups": pd.DataFrame({"user": [1, 1, 2, 2]})}, "cannot be grouped"),
        ({"groups": [[1], [1], [2], [2]]}, "keys that cannot be grouped .*unhashable"),
        (
            {"groups": np.ma.array([1, 1, 2, 2], mask=[False, False, True, True])},
            "2 of 4 keys are missing, the first in row 2",
        ),
        (
            {"y_score": np.ma.array([0.1, 0.2, 0.3, 0.4], mask=[False, True, False, False])},
            "1 of 4 rows, the first is row 1",
        ),
        ({"y_true": np.ma.array([0, 1, 0, 1], mask=[False, False, True, False])}, "1 of 4 rows, the first is row 2"),
        ({"y_score": [2**70, 2**70 + 1, 0, 1]}, "y_score: .* that float64 cannot hold"),
        ({"y_score": [2**2000, 1, 2, 3]}, "y_score: .* not all numbers"),
        ({"y_score": np.array([1, 2, 3, 4], dtype="M8[ns]")}, r"y_score: datetime64\[ns\] values are no numbers"),
        ({"sample_weight": [1, np.nan, 1, 1]}, "sample_weight: NaN or infinite values: 1 of 4 rows"),
        ({"sample_weight": [1, 1e200, 1, 1]}, r"sample_weight: .*1 of 4 rows, the first is row 1 \(1e\+200\)"),
        ({"sample_weight": [1, 1e-200, 1, 1]}, r"sample_weight: .*1 of 4 rows, the first is row 1 \(1e-200\)"),
        ({"groups": np.ones(4, dtype=complex)}, "cannot be grouped"),
        ({"sample_weight": [1, -1, 1, 1]}, r"sample_weight: .*1 of 4 rows, the first is row 1 \(-1.0\)"),
        ({"sample_weight": [1, 1]}, "sample_weight has 2 rows"),
        ({"weighting": "rows"}, "weighting 'rows' is not one of impressions, clicks, uniform"),
    ],
)
def test_errors_name_the_column_the_count_and_the_first_row(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "CHUNK_ROWS", 2)  # the count and the row are those of the log, not of a step
    arguments: dict[str, Any] = {
        "y_true": [0, 1, 0, 1],
        "y_score": [0.1, 0.2, 0.3, 0.4],
        "groups": ["a", "a", "b", "b"],
    }
    arguments |= change
    with pytest.raises(UserError, match=message):
        gauc(**arguments)


def test_partials_of_different_weightings_do_not_add() -> None:
    with pytest.raises(UserError, match="weighted by clicks"):
        GAUCPartial("clicks") + GAUCPartial("uniform")


def test_importing_metrics_imports_no_heavy_library() -> None:
    code = (
        "import sys, json, numpy, ctrkit.metrics as m;"
        "m.gauc([0, 1], [.1, .2], numpy.array([1, 1]));"
        "m.evaluate_scores([0, 1], [.1, .2], numpy.array([1, 1]));"
        "heavy = ('torch', 'pandas', 'pyarrow', 'sklearn', 'polars', 'scipy');"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
