import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from ctrkit.bundle import Golden
from ctrkit.encoding import Counts
from ctrkit.errors import UserError
from ctrkit.request import Request
from ctrkit_serving import denormals
from ctrkit_serving.scorer import Scorer
from tests.serving.tiny import (
    AGES,
    CONTEXT,
    ITEM_IDS,
    ITEMS,
    REQUEST,
    USER,
    Weights,
    columns_of,
    expected_scores,
    make_bundle,
    save_graph,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("scorer") / "bundle").directory


@pytest.fixture
def scorer(directory: Path) -> Scorer:
    return Scorer.load(directory)


def test_scores_equal_the_ones_computed_by_hand(scorer: Scorer) -> None:
    scores = scorer.score(USER, ITEMS, CONTEXT)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected_scores(Weights(), USER, ITEMS, CONTEXT), rtol=0, atol=1e-6)
    assert len(set(scores.tolist())) == 4


def test_random_requests_score_as_by_hand(scorer: Scorer) -> None:
    rng = np.random.default_rng(3)
    pool: dict[str, Callable[[], Any]] = {
        "item_id": lambda: rng.choice([*ITEM_IDS, 1, -3]).item(),
        "tags": lambda: rng.choice(["red", "new", "日本", ""], size=rng.integers(4)).tolist(),
        "price": lambda: float(rng.choice([-1.0, 0.0, 1.0, 9.9, 10.0, 99.0, 1e9])),
        "ctr": lambda: rng.normal(),
        "bid": lambda: float(rng.integers(-5, 100)),
    }
    for _ in range(50):
        user = {"age": rng.choice([*AGES, "?"]).item(), "recent_items": rng.choice(ITEM_IDS, rng.integers(6)).tolist()}
        items = [
            {name: None if rng.random() < 0.1 else draw() for name, draw in pool.items()}
            for _ in range(rng.integers(1, 9))
        ]
        context = {"hour": int(rng.integers(24))}
        expected = expected_scores(Weights(), user, items, context)
        np.testing.assert_allclose(scorer.score(user, items, context), expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(scorer.score(user, columns_of(items), context), expected, rtol=0, atol=1e-6)


def test_columns_as_arrays(scorer: Scorer) -> None:
    n = 6
    columns: dict[str, Any] = {
        "item_id": np.array([5, 7, 900, 2**40, 8, 5]),
        "tags": np.array([["red", "new"]] * n, object),
        "price": np.linspace(0, 200, n, dtype=np.float32),
        "ctr": np.array([0.5, np.nan, 0.1, 2.0, -1.0, 0.0]),
        "bid": np.arange(n, dtype=np.uint8),
    }
    rows = [{name: column[i].tolist() for name, column in columns.items()} for i in range(n)]
    rows[1]["ctr"] = None
    user = {"age": np.str_("35+"), "recent_items": np.array([7, 5])}
    scores = scorer.score(user, columns, {"hour": np.int32(3)})
    expected = expected_scores(Weights(), {"age": "35+", "recent_items": [7, 5]}, rows, {"hour": 3})
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)


def test_context_once_is_context_repeated(scorer: Scorer) -> None:
    hours = [1, 2, None, 23]
    by_row = scorer.score(USER, ITEMS, [{"hour": hour} for hour in hours])
    one_by_one = [scorer.score(USER, [item], {"hour": hour})[0] for item, hour in zip(ITEMS, hours, strict=True)]
    np.testing.assert_allclose(by_row, one_by_one, rtol=0, atol=1e-7)


def test_no_ad_gives_no_score(scorer: Scorer) -> None:
    nothing: tuple[Any, ...] = ([], {name: [] for name in ITEMS[0]})
    for items in nothing:
        scores = scorer.score(USER, items, CONTEXT)
        assert scores.shape == (0,)
        assert scores.dtype == np.float32


def test_counts_what_became_of_values(scorer: Scorer) -> None:
    assert scorer.counts["item"] == Counts()  # the golden check left no trace
    scorer.score(USER, ITEMS, CONTEXT)
    scorer.score_request(REQUEST)
    counts = scorer.counts
    assert counts["age"] == Counts(values=2)
    assert counts["recent"] == Counts(values=6, unseen=2, truncated=2)
    assert counts["item"] == Counts(values=8, missing=2, unseen=2)
    assert counts["tags"] == Counts(values=6, missing=4, truncated=2)
    assert counts["price"] == Counts(values=8, missing=2, out_of_range=2)
    assert counts["ctr"] == Counts(values=8, missing=2, out_of_range=4)
    assert counts["bid"] == Counts(values=8, missing=2, out_of_range=2)
    counts["age"].values = 99
    assert scorer.counts["age"].values == 2


def test_a_refused_request_is_not_counted(scorer: Scorer) -> None:
    with pytest.raises(UserError):
        scorer.score(USER, [{**ITEMS[0], "bid": "free"}], CONTEXT)
    assert all(counts == Counts() for counts in scorer.counts.values())


def _without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


REFUSED: dict[str, tuple[Any, Any, Any, str]] = {
    "user feature absent": (_without(USER, "age"), ITEMS, CONTEXT, "user: no value for feature 'age'"),
    "user no mapping": ([1], ITEMS, CONTEXT, "user: takes values by name, got list"),
    "misspelt": ({**_without(USER, "age"), "agee": 1}, ITEMS, CONTEXT, "'age'.*'agee' is no name it knows"),
    "unknown": ({**USER, "aged": 1}, ITEMS, CONTEXT, "user: .* no 'aged', nearest is 'age'; it knows age"),
    "wrong side": ({**USER, "item_id": 5}, ITEMS, CONTEXT, "user: the model knows no 'item_id'"),
    "item absent in a row": (USER, [ITEMS[0], _without(ITEMS[1], "ctr")], CONTEXT, "item 1: no value for.*'ctr'"),
    "item misnamed in a row": (
        USER, [ITEMS[0], {**_without(ITEMS[1], "ctr"), "ctrr": 1}], CONTEXT, "item 1: no value for feature 'ctr'",
    ),
    "item absent in columns": (USER, _without(columns_of(ITEMS), "ctr"), CONTEXT, "items: no value for feature 'ctr'"),
    "item unknown": (USER, [{**ITEMS[0], "color": 1}], CONTEXT, "item 0: the model knows no 'color'"),
    "item no mapping": (USER, [3], CONTEXT, "item 0: takes values by name, got int"),
    "items a number": (USER, 3, CONTEXT, "items: takes a list"),
    "items text": (USER, "abc", CONTEXT, "items: takes a list"),
    "column a number": (USER, {**columns_of(ITEMS), "ctr": 3}, CONTEXT, "items: column 'ctr' is int"),
    "column short": (USER, {**columns_of(ITEMS), "ctr": [0.5]}, CONTEXT, "column 'ctr' has 1 values for 4 ads"),
    "int for string": ({**USER, "age": 3}, ITEMS, CONTEXT, "feature 'age' has string values in training, got 3"),
    "string for int": (USER, [{**ITEMS[0], "item_id": "5"}], CONTEXT, "feature 'item' has int values.*got '5'"),
    "one string among ints": (
        USER, {**columns_of(ITEMS), "item_id": [5, "5", 7, None]}, CONTEXT, "feature 'item' has int values.*got '5'",
    ),
    "fraction for id": (USER, [{**ITEMS[0], "item_id": 5.5}], CONTEXT, "feature 'item'.*5.5 is no whole number"),
    "list for one value": ({**USER, "age": ["18-24"]}, ITEMS, CONTEXT, "'age' takes one string value, got list"),
    "one value for list": ({**USER, "recent_items": 5}, ITEMS, CONTEXT, "'recent' takes a list of values, got int"),
    "text for list": (USER, [{**ITEMS[0], "tags": "red"}], CONTEXT, "feature 'tags' takes a list of values, got str"),
    "list of lists": ({**USER, "recent_items": [[5]]}, ITEMS, CONTEXT, "'recent' takes one int value, got list"),
    "context absent": (USER, ITEMS, None, "context: no value for feature 'hour'"),
    "context rows": (USER, ITEMS, [CONTEXT], "context: 1 rows for 4 ads"),
    "context column": (USER, ITEMS, {"hour": [1, 2, 3, 4]}, "feature 'hour' takes one int value, got list"),
    "context a number": (USER, ITEMS, 3, "context: int for 4 ads"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(scorer: Scorer, case: str) -> None:
    user, items, context, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        scorer.score(user, items, context)


def test_rows_may_be_any_mapping(scorer: Scorer) -> None:
    rows = [ITEMS[0], *(MappingProxyType(item) for item in ITEMS[1:])]
    np.testing.assert_array_equal(scorer.score(USER, rows, CONTEXT), scorer.score(USER, ITEMS, CONTEXT))
    misnamed = defaultdict(float, {**_without(ITEMS[1], "ctr"), "ctrr": 1})
    with pytest.raises(UserError, match="item 1: no value for feature 'ctr'"):
        scorer.score(USER, [ITEMS[0], misnamed], CONTEXT)


def test_explicit_null_is_missing_and_ignore_unknown_ignores(directory: Path, scorer: Scorer) -> None:
    missing = scorer.score({"age": None, "recent_items": None}, ITEMS, CONTEXT)
    expected = expected_scores(Weights(), {"age": None, "recent_items": None}, ITEMS, CONTEXT)
    np.testing.assert_allclose(missing, expected, rtol=0, atol=1e-6)
    lenient = Scorer.load(directory, ignore_unknown=True)
    more = [{**item, "color": "red"} for item in ITEMS]
    np.testing.assert_array_equal(
        lenient.score({**USER, "city": 3}, more, {**CONTEXT, "x": 1}), scorer.score(USER, ITEMS, CONTEXT)
    )
    with pytest.raises(UserError, match="user: no value for feature 'age'"):
        lenient.score(_without(USER, "age"), ITEMS, CONTEXT)


def test_two_threads_score_and_count(scorer: Scorer) -> None:
    expected = [scorer.score(USER, ITEMS[:n], CONTEXT) for n in (2, 4)]
    before = scorer.counts["item"].values
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(200):
            if not np.array_equal(scorer.score(USER, ITEMS[: (2, 4)[which]], CONTEXT), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert scorer.counts["item"].values - before == 200 * (2 + 4)
    assert scorer.counts["age"].values == 2 + 400


def test_refuses_wrong_golden_scores(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", golden=Golden((REQUEST,), ((0.1, 0.2, 0.3, 0.4),)))
    with pytest.raises(UserError, match="bundle: golden request 0 scores"):
        Scorer.load(bundle.directory)
    assert len(Scorer.load(bundle.directory, verify_golden=False).score_request(REQUEST)) == 4


def test_refuses_golden_request_that_does_not_fit(tmp_path: Path) -> None:
    request = Request({"age": "35+"}, ITEMS[:1], CONTEXT)
    bundle = make_bundle(tmp_path / "bundle", golden=Golden((request,), ((0.5,),)))
    with pytest.raises(UserError, match="golden request 0: user: no value for feature 'recent_items'"):
        Scorer.load(bundle.directory)


def test_refuses_nan_weights(tmp_path: Path) -> None:
    weights = Weights()
    golden = Golden((REQUEST,), (tuple(expected_scores(weights, USER, ITEMS, CONTEXT)),))
    weights.linear[0] = np.nan
    bundle = make_bundle(tmp_path / "bundle", weights, golden=golden)
    with pytest.raises(UserError, match=r"model.onnx: a score is not finite"):
        Scorer.load(bundle.directory)


def test_never_answers_with_a_score_that_is_not_finite(tmp_path: Path) -> None:
    weights = Weights()
    request = Request({**USER, "recent_items": []}, [ITEMS[0]], CONTEXT)
    golden = Golden((request,), (tuple(expected_scores(weights, request.user, ITEMS[:1], CONTEXT)),))
    weights.tables["item"][3] = np.inf  # of an ad that the golden request has not
    weights.tables["item"][3, 0] *= -np.sign(weights.linear[4] * weights.linear[5])[0]  # inf - inf
    scorer = Scorer.load(make_bundle(tmp_path / "bundle", weights, golden=golden).directory)
    with pytest.raises(UserError, match="not finite"):
        scorer.score({**USER, "recent_items": []}, [{**ITEMS[0], "item_id": 7}], CONTEXT)


def test_scores_where_the_switch_for_denormals_is_not_known(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scorer.score(USER, ITEMS, CONTEXT)
    monkeypatch.setattr(denormals, "_SWITCH", None)
    np.testing.assert_array_equal(scorer.score(USER, ITEMS, CONTEXT), expected)


@pytest.mark.skipif(denormals._SWITCH is None, reason="not known for this system")
def test_takes_denormals_for_zero_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    """In every thread, whichever session came first."""
    weights = Weights()
    weights.linear[-1] = 1e38  # of bid
    golden = Golden((Request({"age": None, "recent_items": []}, [{**ITEMS[0], "bid": None}], CONTEXT),), ((0.5,),))
    scorer = Scorer.load(make_bundle(tmp_path / "b", weights, golden=golden).directory, verify_golden=False)
    feeds = scorer.encode(USER, ITEMS[:1], CONTEXT)
    scores: list[Any] = []
    for bid in (0.0, 1e-40, 1e-37):  # the second is denormal, and times 1e38 no longer small
        feeds["dense_item"][:, 1] = bid
        scores.append(scorer.score_ids(feeds)[0])
    thread = threading.Thread(target=lambda: scores.append(scorer.score_ids({**feeds, "dense_item": denormal})[0]))
    denormal = feeds["dense_item"].copy()
    denormal[:, 1] = 1e-40
    thread.start()
    thread.join()
    assert scores[0] == scores[1] == scores[3] != scores[2]
    assert (np.array([1e-40], np.float32) * np.float32(1) > 0).all()


def test_denormal_weights_are_exported_as_zero(tmp_path: Path) -> None:
    weights = Weights()
    weights.tables["age"][:] = 1e-40
    weights.linear[:2] = 1e38
    model = save_graph(tmp_path / "graph", weights)
    stored = np.frombuffer((model / "model.onnx.data").read_bytes(), np.float32)
    assert (stored == 0).any()
    assert not ((stored != 0) & (np.abs(stored) < np.finfo(np.float32).tiny)).any()


def test_imports_neither_torch_nor_pyarrow_nor_pandas() -> None:
    code = (
        "import sys, json, pkgutil, importlib, ctrkit_serving\n"
        "for m in pkgutil.iter_modules(ctrkit_serving.__path__): importlib.import_module(f'ctrkit_serving.{m.name}')\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert {"ctrkit_serving", "onnxruntime"} <= loaded
    assert not loaded & {"torch", "torchrec", "pyarrow", "pandas", "onnx", "sklearn", "scipy", "fsspec"}


def test_encodes_by_the_graph_contract(scorer: Scorer) -> None:
    feeds = scorer.encode(USER, ITEMS, CONTEXT)
    assert set(feeds) == {
        "ids_user", "recent_ids", "recent_length", "ids_context", "ids_item", "tags_ids", "tags_length", "dense_item",
    }  # fmt: skip
    assert feeds.keys() == scorer.inputs.keys()
    np.testing.assert_array_equal(feeds["ids_item"][:, 0], [2, 5, 1, 0])
    np.testing.assert_array_equal(feeds["recent_ids"], [[4, 1, 2]])
    np.testing.assert_array_equal(feeds["recent_length"], [3])
    np.testing.assert_array_equal(feeds["tags_length"], [2, 0, 1, 0])
    assert (feeds["tags_ids"][[1, 3]] == 0).all()
    np.testing.assert_allclose(feeds["dense_item"][:, 0], [-0.3, 1.5, 0.0, -0.5], rtol=1e-6)
    assert len(scorer.encode(USER, ITEMS, [CONTEXT] * 4)["ids_context"]) == 4


def test_scores_ids_as_it_scores_raw_values(scorer: Scorer) -> None:
    feeds = scorer.encode(USER, ITEMS, CONTEXT)
    assert scorer.inputs.keys() == feeds.keys()
    other = {name: x.astype(np.int32) if x.dtype == np.int64 else x.astype(np.float64) for name, x in feeds.items()}
    repeated = {name: np.repeat(x, 4, axis=0) if len(x) == 1 else x for name, x in feeds.items()}
    for inputs in (feeds, other, repeated, {name: np.asfortranarray(x) for name, x in feeds.items()}):
        np.testing.assert_allclose(scorer.score_ids(inputs), scorer.score(USER, ITEMS, CONTEXT), rtol=0, atol=1e-7)


def _changed(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda feeds: feeds.update({name: change(feeds[name].copy())})


def _set(value: Any) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[-1] = value
        return array

    return change


REFUSED_IDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "absent": (lambda f: f.pop("dense_item"), "an input 'dense_item', which is not given"),
    "unknown": (lambda f: f.update(age=np.zeros(1)), "no input 'age'; it takes ids_user, recent_ids"),
    "no table": (lambda f: f.update(ads=np.zeros(4)), "'ads': the bundle has no item table"),
    "floats for ids": (_changed("ids_item", lambda x: x.astype(np.float32)), "'ids_item' is int64, got float32"),
    "ids for floats": (_changed("dense_item", lambda x: x.astype(np.int64)), "'dense_item' is float32, got int64"),
    "one dimension": (_changed("ids_item", lambda x: x[:, 0]), r"has shape \[-1, 2\] \(-1 is its rows\), got \[4\]"),
    "columns": (_changed("ids_item", lambda x: x[:, :1]), r"has shape \[-1, 2\] \(-1 is its rows\), got \[4, 1\]"),
    "rows": (_changed("dense_item", lambda x: x[:2]), "'dense_item' has 2 rows, there are 4 in input 'ids_item'"),
    "rows of one side": (lambda f: f.update(recent_ids=f["recent_ids"][[0, 0]]), "'recent_ids' has 2 rows, there"),
    "context": (lambda f: f.update(ids_context=f["ids_context"][[0, 0]]), "'ids_context' has 2 rows for 4 ads"),
    "negative": (_changed("ids_item", _set(-1)), "'ids_item': a number is negative or beyond its table"),
    "beyond one table": (_changed("ids_item", _set([6, 0])), "'ids_item': a number is negative or beyond its table"),
    "beyond in a list": (_changed("tags_ids", _set(7)), "'tags_ids': a number is negative or beyond"),
    "too long": (_changed("recent_length", _set(4)), "'recent_length': a number is negative or beyond"),
    "not finite": (_changed("dense_item", _set(np.nan)), "'dense_item': a number is not finite"),
    "too large": (
        lambda f: f.update(dense_item=f["dense_item"].astype(np.float64) + 1e300), "'dense_item': .* is not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_IDS)
def test_refuses_ids(scorer: Scorer, case: str) -> None:
    spoil, message = REFUSED_IDS[case]
    feeds = dict(scorer.encode(USER, ITEMS, CONTEXT))
    spoil(feeds)
    with pytest.raises(UserError, match=message):
        scorer.score_ids(feeds)
