import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from ctrkit.config.recipe import Recipe, load_recipe
from ctrkit.data.prepare import prepare
from ctrkit.errors import UserError
from ctrkit.inspection import naming
from ctrkit.inspection.column_profile import _auc, depends_on
from ctrkit.inspection.inspect import Inspection, _train_settings, inspect_log
from ctrkit.schema import CategoricalFeature, DenseFeature, SequenceFeature

ROWS = 4000


def log(seed: int = 0, **columns: Any) -> pa.Table:
    """A click log whose every column is what its name says."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 200, ROWS), rng.integers(0, 300, ROWS)
    label = rng.random(ROWS) < 0.2
    content: dict[str, Any] = {
        "click": label.astype(np.int8),
        "user_id": [f"u{u}" for u in users],
        "age": users % 7,
        "recent_items": [rng.integers(0, 300, u % 4).tolist() for u in users],
        "item_id": items,
        "brand": [f"b{i % 11}" for i in items],
        "price": np.exp(rng.normal(size=300) * 1.5)[items],
        "hour": rng.integers(0, 24, ROWS),
        "device": np.array(["phone", "desktop"], dtype=object)[rng.integers(0, 2, ROWS)],
    }
    return pa.table(content | columns)


def look(folder: Path, table: pa.Table, **options: Any) -> tuple[Inspection, Recipe]:
    """Write the log as one file, look at it, and load the recipe."""
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "log.parquet", row_group_size=500)
    return loaded(folder, inspect_log(str(folder / "log.parquet"), label="click", group="user_id", **options))


def loaded(folder: Path, found: Inspection) -> tuple[Inspection, Recipe]:
    (folder / "recipe.toml").write_text(found.recipe)
    return found, load_recipe(folder / "recipe.toml")


def test_kinds_sides_and_tables(tmp_path: Path) -> None:
    found, recipe = look(tmp_path, log())
    schema = recipe.schema_()
    assert {f.name: f.side for f in schema.features} == {
        "user_id": "user",
        "age": "user",
        "recent_items": "user",
        "item_id": "item",
        "brand": "item",
        "price": "item",
        "hour": "context",
        "device": "context",
    }
    kinds = {f.name: f for f in schema.features}
    assert kinds["price"] == DenseFeature(name="price", side="item", kind="dense", transform="log")
    assert kinds["recent_items"] == SequenceFeature(
        name="recent_items", side="user", kind="sequence", table="item_id", max_len=3
    )
    assert kinds["item_id"] == CategoricalFeature(name="item_id", side="item")
    assert 'item_id = { side = "item" }  # 300 values\n' in found.recipe
    assert found.warnings == (
        "no column tells the time: the split is at random, which flatters models that know the user",
    )
    assert recipe.data.split.by == "random"


def test_the_recipe_is_what_the_defaults_train(tmp_path: Path) -> None:
    _, recipe = look(tmp_path, log())
    assert {name: tower.hidden for name, tower in recipe.towers.items()} == {
        "light": [200, 80],
        "booster": [720, 360, 240, 180, 90],
    }
    assert [(name, model.objective) for name, model in recipe.models.items()] == [
        ("light", "pointwise"),
        ("booster", "pointwise"),
        ("rocket", "rocket_launching"),
        ("distilled", "distillation"),
    ]
    assert recipe.models["distilled"].teachers == ["booster"]  # type: ignore[union-attr]
    prepared = prepare(recipe.data, recipe.schema_(), tmp_path / "prepared")
    assert sum(prepared.rows(part) for part in ("train", "valid", "test")) == ROWS


LABEL = log()["click"].to_numpy()
RNG = np.random.default_rng(5)


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("rating", LABEL * 3 + RNG.integers(1, 3, ROWS), "gives the label away"),
        ("outcome", np.where(LABEL == 1, "bought", "ignored"), "gives the label away"),
        ("paid", LABEL + RNG.normal(size=ROWS) * 0.1, "gives the label away"),
        ("unpaid", RNG.normal(size=ROWS) * 0.1 - LABEL, "gives the label away"),
        ("dwell", pa.array(np.where(LABEL == 1, 3.0, np.nan), from_pandas=True), "gives the label away"),
        ("bought", [["x"] * int(y) for y in LABEL], "gives the label away"),
        ("basket", pa.array([[1, 2] if y else None for y in LABEL]), "gives the label away"),
        ("position", RNG.integers(1, 9, ROWS), "known only after ranking"),
        ("old_score", RNG.random(ROWS), "looks like a score"),
        ("w", RNG.choice([0.5, 1.0, 3.0], ROWS), "looks like a weight"),
        ("sampleWeight", RNG.integers(1, 9, ROWS), "looks like a weight"),
        ("dwell_time", RNG.exponential(9.0, ROWS), "looks like a duration"),
        ("token", [f"t{i}" for i in range(ROWS)], "a value of its own in nearly every row"),
        ("serial", RNG.permutation(ROWS), "a value of its own in nearly every row"),
    ],
)
def test_columns_that_are_no_features_are_left_out_with_a_warning(
    tmp_path: Path, column: str, values: Any, why: str
) -> None:
    found, recipe = look(tmp_path, log(**{column: values}))
    assert column not in recipe.features
    assert any(f"'{column}'" in warning for warning in found.warnings)
    assert f"# {column}: {why}" in found.recipe


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("version", ["1"] * ROWS, "constant"),
        ("nothing", pa.nulls(ROWS, pa.int64()), "constant"),
        ("session_id", RNG.integers(0, 900, ROWS), "numbers requests"),
        ("seen_at", pa.array(np.arange(ROWS), pa.timestamp("us")), None),
        ("ts_ms", np.arange(ROWS) * 100, None),
        ("event_time_utc", np.arange(ROWS) + 0.5, None),
        ("angelegt", 1_760_000_000_000 + np.arange(ROWS), None),
    ],
)
def test_useless_columns_are_left_out(tmp_path: Path, column: str, values: Any, why: str | None) -> None:
    found, recipe = look(tmp_path, log(**{column: values}))
    assert column not in recipe.features
    if why is None:
        assert recipe.columns.time == column
    else:
        assert f"# {column}: {why}" in found.recipe


@pytest.mark.parametrize(
    ("values", "kind", "way_out"),
    [
        ([{"a": 1, "b": "x"}] * ROWS, "struct<a: int64, b: string>", "write each of its fields as a column of its own"),
        ([[{"a": 1}]] * ROWS, "a list of struct<a: int64>", "write each of its fields as a column of its own"),
        ([[[1, 2]]] * ROWS, "a list of list<", "flatten it"),
        ([b"x", b"y"] * (ROWS // 2), "binary", "write it as integers, strings or floats"),
        (
            pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())),
            "map<string, int64",
            "write it as integers, strings or floats",
        ),
    ],
    ids=["struct", "structs", "lists", "binary", "map"],
)
def test_columns_of_a_type_that_no_feature_takes(tmp_path: Path, values: Any, kind: str, way_out: str) -> None:
    found, recipe = look(tmp_path, log(meta=values))
    assert "meta" not in recipe.features
    assert [w for w in found.warnings if w.startswith(f"'meta' is {kind}") and w.endswith(f"left out; {way_out}")]
    assert f"# meta: type {kind.removeprefix('a list of ')}" in found.recipe


def test_an_honest_column_is_not_taken_for_a_leak(tmp_path: Path) -> None:
    weak = LABEL + RNG.normal(size=ROWS)  # AUC .76
    many = [f"x{i}" for i in RNG.integers(0, 2500, ROWS)]  # in sample, such values seem to know the label
    _, recipe = look(tmp_path, log(weak=weak, many=many))
    assert {"weak", "many"} <= set(recipe.features)


@pytest.mark.parametrize(
    ("values", "value"),
    [
        (np.where(LABEL & (np.arange(ROWS) % 40 < 2), "refund", "none"), "'refund'"),
        (np.where(LABEL & (np.arange(ROWS) % 40 < 2), 1, 0), "1"),
        (pa.array(RNG.integers(1, 4, ROWS), mask=(LABEL == 1) & (np.arange(ROWS) % 40 < 2)), "None"),
    ],
)
def test_a_rare_value_that_is_always_a_click_is_said(tmp_path: Path, values: Any, value: str) -> None:
    found, recipe = look(tmp_path, log(after=values))
    (warning,) = [w for w in found.warnings if "are clicks" in w]
    rows = int((LABEL & (np.arange(ROWS) % 40 < 2)).sum())
    assert warning.startswith(f"all {rows} rows of the sample in which 'after' is {value} are clicks; if it is known")
    assert "after" in recipe.features


def test_clicks_of_few_users_are_their_taste(tmp_path: Path) -> None:
    table = log()
    users = np.array([int(u[1:]) for u in table["user_id"].to_pylist()])
    clicks = (users < 19) | (LABEL == 1)  # these users click on all they see
    found, _ = look(tmp_path, log(zip=np.where(users < 19, 1, users % 7 + 2), click=clicks.astype(np.int8)))
    assert not [w for w in found.warnings if "are clicks" in w]


def test_a_side_that_no_name_tells_is_seen_in_the_rows(tmp_path: Path) -> None:
    table = log()
    users = np.array([int(u[1:]) for u in table["user_id"].to_pylist()])
    items = table["item_id"].to_numpy()
    found, recipe = look(tmp_path, log(C1=users % 13, C2=items % 17, C3=RNG.integers(0, 9, ROWS)))
    assert [recipe.features[name].side for name in ("C1", "C2", "C3")] == ["user", "item", "context"]
    assert found.recipe.count("the side is a guess") == 3


def test_time_and_days_order_the_split(tmp_path: Path) -> None:
    times = np.arange(ROWS) + 1_700_000_000
    _, recipe = look(tmp_path / "a", log(timestamp=times, publish_time=times - 5))
    assert (recipe.columns.time, recipe.data.split.by) == ("timestamp", "time")
    assert "publish_time" not in recipe.features
    days = [f"2025-03-{1 + i * 8 // ROWS:02d}" for i in range(ROWS)]
    _, recipe = look(tmp_path / "b", log(timestamp=times, day=days))
    assert recipe.data.split.model_dump() == {"by": "column", "column": "day", "valid": 1, "test": 1}
    assert "day" not in recipe.features
    _, recipe = look(tmp_path / "c", log(timestamp=times, day=days[:1] * ROWS))
    assert recipe.data.split.by == "time"


def test_parts_and_day_partitions(tmp_path: Path) -> None:
    for i, part in enumerate(("train", "valid", "test")):
        pq.write_table(log().slice(i * 1000, 1000), tmp_path / f"{part}.parquet")
        (tmp_path / "days" / f"day={i}").mkdir(parents=True)
        pq.write_table(log().slice(i * 1000, 1000), tmp_path / "days" / f"day={i}" / "x.parquet")
    _, recipe = loaded(tmp_path, inspect_log(str(tmp_path), label="click", group="user_id"))
    assert (recipe.data.split.by, recipe.data.path) == ("files", str(tmp_path))
    _, recipe = loaded(tmp_path, inspect_log(str(tmp_path / "days"), label="click", group="user_id"))
    assert recipe.data.split.by == "column"


def test_ids_stored_as_floats(tmp_path: Path) -> None:
    items = log()["item_id"].to_numpy().astype(np.float64)
    found, recipe = look(tmp_path, log(item_id=items, ctr=RNG.random(ROWS)))
    assert any("'item_id' holds whole numbers as floats" in warning for warning in found.warnings)
    assert recipe.features["item_id"].kind == "categorical"
    assert recipe.features["ctr"].kind == "dense"


def test_amounts_are_dense_and_codes_are_not(tmp_path: Path) -> None:
    amounts = RNG.integers(0, 100_000, ROWS // 2).repeat(2)
    _, recipe = look(tmp_path, log(item_price=amounts, item_code=amounts, num_ads=RNG.integers(0, 5, ROWS)))
    assert [recipe.features[name].kind for name in ("item_price", "item_code", "num_ads")] == [
        "dense",
        "categorical",
        "categorical",
    ]
    assert recipe.features["item_code"].min_count == 2  # type: ignore[union-attr]


def test_histories_share_the_table_whose_ids_they_hold(tmp_path: Path) -> None:
    lists = [RNG.integers(5000, 5040, 3).tolist() for _ in range(ROWS)]
    brands = [[f"b{i}" for i in RNG.integers(0, 11, 2)] for _ in range(ROWS)]
    table = log(campaign=RNG.integers(5000, 5040, ROWS), seen=lists, hist_brands=brands, tags=[["x", "y"]] * ROWS)
    _, recipe = look(tmp_path, table)
    tables = {name: recipe.features[name].table for name in ("seen", "hist_brands", "tags", "recent_items")}  # type: ignore[union-attr]
    assert tables == {"seen": "campaign", "hist_brands": "brand", "tags": None, "recent_items": "item_id"}


@pytest.mark.parametrize(
    ("columns", "warning"),
    [
        ({"click": [0] * ROWS}, "the sample has no click"),
        ({"click": [1] + [0] * (ROWS - 1)}, r"the click rate is 0\.025%"),
        ({"click": [0] + [1] * (ROWS - 1)}, "the click rate is 100%: is the label what it should be"),
        (
            {"user_id": [f"u{i // 2}" for i in range(ROWS)]},
            r"\(with .* of the rows\) have clicks only or none in the sample",
        ),
        (
            {"user_id": [None, "b"] * (ROWS // 2)},
            "2,000 rows of the sample have no 'user_id', which `ctrkit prepare` refuses: "
            "drop them from the log, or give each an id of its own",
        ),
        (
            {"user_id": pa.array([None, 2.0, float("nan"), 3.0] * (ROWS // 4))},
            "2,000 rows of the sample have no 'user_id'",
        ),
    ],
)
def test_what_is_wrong_with_the_log_as_a_whole(tmp_path: Path, columns: dict[str, Any], warning: str) -> None:
    found, _ = look(tmp_path, log(**columns))
    assert [w for w in found.warnings if re.search(warning, w)]


def test_rows_that_are_logged_twice(tmp_path: Path) -> None:
    found, _ = look(tmp_path, pa.concat_tables([log(), log().slice(0, 1000)]))
    assert [w for w in found.warnings if w.startswith("20% of the rows equal another row")]
    found, _ = look(tmp_path, log())
    assert not [w for w in found.warnings if "equal another row" in w]


def test_odd_names_are_quoted(tmp_path: Path) -> None:
    names = {'a "b" \\ c.d': "user", "x/y": "item", "x_y": "item", "": "no", "__label": "no", "prix €\n": "context"}
    columns: dict[str, Any] = {name: RNG.integers(0, 5, ROWS) for name in names}
    table = log(**columns)
    _, recipe = look(tmp_path, table)
    assert {'a "b" \\ c_d', "x_y", "x_y_2", "prix €\n"} <= set(recipe.features)
    assert [recipe.features[name].source for name in ("x_y", "x_y_2")] == ["x_y", "x/y"]
    assert not {"", "__label"} & {feature.source for feature in recipe.features.values()}
    prepare(recipe.data, recipe.schema_(), tmp_path / "prepared")


def test_rows_come_from_all_over_the_log(tmp_path: Path) -> None:
    found, _ = look(tmp_path, log(late=np.arange(ROWS) // 2000), rows=400)
    assert "guessed from 408 rows of 4,000" in found.recipe
    assert "late = " in found.recipe  # of the first 2,000 rows alone it would be constant


def test_csv(tmp_path: Path) -> None:
    pacsv.write_csv(log().drop(["recent_items"]), tmp_path / "log.csv")
    found, recipe = loaded(tmp_path, inspect_log(str(tmp_path / "log.csv"), label="click", group="user_id", rows=1000))
    assert len(recipe.features) == 7
    assert "guessed from 1,001 rows of 4,000:" in found.recipe
    assert recipe.train.epochs == 16  # as of the same log in Parquet, which says how many rows it has


@pytest.mark.parametrize(
    ("label", "group", "message"),
    [
        ("clicked", "user_id", "no column 'clicked', which the label names; did you mean 'click'"),
        ("click", "users", "no column 'users', which the group key names"),
        ("hour", "user_id", "label 'hour' has the values 2, 3, 4, 5, 6; name a column of 0"),
        (
            "brand",
            "user_id",
            r"label 'brand' is string \('b\d+', 'b\d+', 'b\d+'\); name a column of 0 .* or write it so",
        ),
    ],
)
def test_a_label_that_is_none(tmp_path: Path, label: str, group: str, message: str) -> None:
    pq.write_table(log(), tmp_path / "log.parquet")
    with pytest.raises(UserError, match=message):
        inspect_log(str(tmp_path / "log.parquet"), label=label, group=group)


@pytest.mark.parametrize("empty", [None, float("nan")])
def test_labels_that_are_empty_are_not_called_values(tmp_path: Path, empty: float | None) -> None:
    for other in (0.0, 7.0):
        click = pa.array([1.0, 0.0, empty, other] * (ROWS // 4), pa.float64())
        pq.write_table(log(click=click), tmp_path / "log.parquet")
        with pytest.raises(UserError) as caught:
            inspect_log(str(tmp_path / "log.parquet"), label="click", group="user_id")
        said = str(caught.value)
        assert "nan" not in said.removeprefix(str(tmp_path))
        assert "label 'click' is empty in 1,000 of 4,000 rows of the sample; drop such rows" in said
        assert ("has the values 7" in said) == (other == 7.0)


def test_an_empty_path() -> None:
    with pytest.raises(UserError, match="the path of the log is empty"):
        inspect_log("", label="click", group="user_id")


def test_a_log_without_rows_or_features(tmp_path: Path) -> None:
    pq.write_table(log().slice(0, 0), tmp_path / "log.parquet")
    with pytest.raises(UserError, match="the log has no rows"):
        inspect_log(str(tmp_path / "log.parquet"), label="click", group="user_id")


@pytest.mark.parametrize(
    ("name", "words"),
    [("recentItems", ["recent", "item"]), ("USER_ID", ["user", "id"]), ("categories", ["category"]), ("ads", ["ads"])],
)
def test_words_of_a_name(name: str, words: list[str]) -> None:
    assert naming.words(name) == words


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("user_city", "user"),
        ("item_age_hours", "item"),
        ("viewed_ads", "user"),
        ("ad_position", "context"),
        ("deviceType", "context"),
        ("cate_id", "item"),
        ("C14", None),
    ],
)
def test_sides_by_name(name: str, side: str | None) -> None:
    assert naming.side_of(name) == side


def test_auc_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 10, 200).astype(np.float64), rng.random(200) < 0.3
    pairs = np.sign(score[label][:, None] - score[~label][None, :])
    assert _auc(score, label) == pytest.approx((pairs.mean() + 1) / 2)
    assert _auc(score, np.zeros(200, np.bool_)) == 0.5
    assert _auc(score, np.ones(200, np.bool_)) == 0.5


def test_dependence_needs_parents_that_come_back() -> None:
    parent = np.arange(100)
    assert not depends_on(parent % 3, parent)
    assert depends_on(parent % 20 % 3, parent % 20)
    assert not depends_on(parent % 3, parent % 20)


def test_ids_that_the_lists_cannot_hold_are_not_shared(tmp_path: Path) -> None:
    large = pa.array(np.arange(ROWS, dtype=np.uint64) % 50 + np.uint64(2**63))
    _, recipe = look(tmp_path, log(item_id=large))
    feature = next(f for f in recipe.schema_().features if f.name == "recent_items")
    assert isinstance(feature, SequenceFeature)
    assert feature.table is None


def test_a_group_of_lists(tmp_path: Path) -> None:
    pq.write_table(log(), tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"group key 'recent_items' is list<.*; name a column of integers or strings"):
        inspect_log(str(tmp_path / "log.parquet"), label="click", group="recent_items")


@pytest.mark.parametrize("kind", [pa.string(), pa.decimal128(3, 1), pa.dictionary(pa.int8(), pa.int64())])
def test_labels_of_other_types_train(tmp_path: Path, kind: pa.DataType) -> None:
    click = pa.array(LABEL.astype(np.int64))
    click = click.dictionary_encode() if pa.types.is_dictionary(kind) else click.cast(pa.decimal128(20, 0)).cast(kind)
    _, recipe = look(tmp_path, log(click=click))
    prepared = prepare(recipe.data, recipe.schema_(), tmp_path / "prepared")
    assert sum(prepared.clicks(part) for part in ("train", "valid", "test")) == LABEL.sum()


def test_lists_of_fractions_are_left_out_with_a_warning(tmp_path: Path) -> None:
    found, recipe = look(tmp_path, log(vector=[[0.5, 0.25 * (i % 9)] for i in range(ROWS)]))
    assert "vector" not in recipe.features
    assert any("'vector' holds lists of numbers that are no ids" in warning for warning in found.warnings)


def test_without_a_user_of_both_classes_training_watches_log_loss(tmp_path: Path) -> None:
    found, recipe = look(
        tmp_path / "a", log(user_id=[f"u{i // 2}" for i in range(ROWS)], click=[0, 0, 1, 1] * (ROWS // 4))
    )
    assert recipe.train.monitor == "log_loss"
    assert any("training watches log loss" in warning for warning in found.warnings)
    found, recipe = look(tmp_path / "b", log())
    assert recipe.train.monitor == "gauc"
    assert "monitor" not in found.recipe


@pytest.mark.parametrize(("rows", "epochs"), [(None, 2), (80_000, 16), (1_000_000, 8), (6_000_000, 2), (10**9, 2)])
def test_a_small_log_is_passed_over_more_often(rows: int | None, epochs: int) -> None:
    assert _train_settings(rows, ranked=True).get("epochs", 2) == epochs


def test_a_weight_of_other_words_is_a_feature(tmp_path: Path) -> None:
    _, recipe = look(tmp_path, log(item_weight=RNG.random(ROWS)))
    assert recipe.features["item_weight"].kind == "dense"


def test_numbers_that_are_no_times_do_not_order_the_log(tmp_path: Path) -> None:
    _, recipe = look(
        tmp_path, log(watch_time=RNG.exponential(9.0, ROWS), page_id=1_760_000_000_000 + np.arange(ROWS) // 9)
    )
    assert recipe.columns.time is None
    found, recipe = look(tmp_path, log(timestamp=np.arange(ROWS), angelegt=1_760_000_000_000 + np.arange(ROWS) // 2))
    assert recipe.columns.time == "timestamp"
    assert "# angelegt: a time; that of the log is 'timestamp'" in found.recipe


def test_an_ad_that_no_name_tells_is_seen_in_the_rows(tmp_path: Path) -> None:
    users, items = RNG.integers(0, 200, ROWS), RNG.integers(0, 300, ROWS)
    table = pa.table(
        {"click": LABEL, "user_id": users, "alter": users % 7, "artikel": items, "farbe": items % 9}
        | {"preis": np.exp(RNG.normal(size=300))[items], "stunde": RNG.integers(0, 24, ROWS)}
    )
    found, recipe = look(tmp_path, table)
    sides = {name: feature.side for name, feature in recipe.features.items()}
    assert sides == {"user_id": "user", "alter": "user", "artikel": "item", "farbe": "item"} | {
        "preis": "item",
        "stunde": "context",
    }
    assert any("'artikel' is taken for it" in warning for warning in found.warnings)
    assert recipe.models["distilled"].unexposed == recipe.models["rocket"].unexposed == 1.0  # type: ignore[union-attr]


def test_without_an_ad_the_recipe_has_no_candidates_that_nobody_saw(tmp_path: Path) -> None:
    users, hours = RNG.integers(0, 200, ROWS), RNG.integers(0, 24, ROWS)
    found, recipe = look(tmp_path, pa.table({"click": LABEL, "user_id": users, "stunde": hours}))
    assert recipe.models["distilled"].unexposed == recipe.models["rocket"].unexposed == 0.0  # type: ignore[union-attr]
    assert any("no column seems to be of what was shown" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    "split",
    [
        {},
        {"timestamp": RNG.permutation(ROWS) + 1_700_000_000},
        {"day": [f"2025-03-{1 + i * 8 // ROWS:02d}" for i in range(ROWS)]},
    ],
    ids=["random", "time", "column"],
)
def test_where_gauc_would_rest_on_chance_training_watches_log_loss(tmp_path: Path, split: dict[str, Any]) -> None:
    click = (RNG.random(ROWS) < 0.005).astype(np.int8)  # two in a tenth of the rows, all of users with both classes
    users = RNG.integers(0, 5, ROWS)
    found, recipe = look(tmp_path / "a", log(click=click, user_id=users, **split))
    assert recipe.train.monitor == "log_loss"
    (warning,) = [w for w in found.warnings if w.startswith("too little for GAUC")]
    assert int(re.findall(r"about (\d+) rows", warning)[0]) < 12
    _, recipe = look(tmp_path / "b", log(click=(RNG.random(ROWS) < 0.5).astype(np.int8), user_id=users, **split))
    assert recipe.train.monitor == "gauc"
    _, recipe = look(tmp_path / "c", log(click=click, user_id=users, **split), rows=1000)  # of a sample nobody knows
    assert recipe.train.monitor == "gauc"


TIMES = np.datetime64("2025-03-01T00:00:00") + np.arange(ROWS) * np.timedelta64(200, "s")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("zeit", [str(time).replace("T", " ") for time in TIMES]),
        ("timestamp", pa.array([f"{time}.5+02:00" for time in TIMES]).dictionary_encode()),
        ("event_time", [f"{time}Z" for time in TIMES]),
    ],
)
def test_times_as_text_order_the_log(tmp_path: Path, column: str, values: Any) -> None:
    _, recipe = look(tmp_path, log(**{column: values}))
    assert (recipe.columns.time, recipe.data.split.by) == (column, "time")
    prepared = prepare(recipe.data, recipe.schema_(), tmp_path / "prepared")
    assert [prepared.rows(part) for part in ("train", "valid", "test")] == [3200, 400, 400]


def test_days_as_text_are_known_without_a_name(tmp_path: Path) -> None:
    _, recipe = look(tmp_path / "a", log(datum=[str(time)[:10] for time in TIMES]))
    assert recipe.data.split.model_dump() == {"by": "column", "column": "datum", "valid": 1, "test": 1}
    born = [f"19{u[-2:]:0>2}-03-01".replace("u", "0") for u in log()["user_id"].to_pylist()]
    _, recipe = look(tmp_path / "b", log(birth_date=born, release_time=TIMES))
    assert (recipe.data.split.by, recipe.columns.time) == ("random", None)  # neither tells when the ad was shown
    assert not {"birth_date", "release_time"} & set(recipe.features)


@pytest.mark.parametrize("kind", [pa.int64(), pa.timestamp("s")])
def test_a_time_with_holes_is_said(tmp_path: Path, kind: pa.DataType) -> None:
    times = pa.array(1_760_000_000 + np.arange(ROWS), pa.int64(), mask=np.arange(ROWS) < 3).cast(kind)
    found, recipe = look(tmp_path, log(ts=times))
    assert recipe.data.split.by == "random"
    assert "'ts' could order the log, but 3 of 4,000 rows of the sample have none: drop these" in "".join(
        found.warnings
    )


def test_a_last_day_that_was_cut_short_does_not_test(tmp_path: Path) -> None:
    days = np.minimum(np.arange(ROWS) // 660, 5) + (np.arange(ROWS) >= ROWS - 20)
    found, recipe = look(tmp_path / "a", log(day=days))
    assert recipe.data.split.by == "column"
    assert any("'day', which validate and test, one has 0.5% of the rows" in warning for warning in found.warnings)
    _, recipe = look(tmp_path / "b", log(day=days, ts=np.arange(ROWS)))
    assert recipe.data.split.by == "time"
    assert "day" not in recipe.features


def test_a_history_that_was_written_after_the_click_is_said(tmp_path: Path) -> None:
    table = log()
    items, lists = table["item_id"].to_pylist(), table["recent_items"].to_pylist()
    after = [
        [i for i in seen if i != item] + [item] * int(y) for seen, item, y in zip(lists, items, LABEL, strict=True)
    ]
    for kind in (pa.list_(pa.int64()), pa.large_list(pa.int32())):
        found, recipe = look(tmp_path, log(recent_items=pa.array(after, kind)))
        assert recipe.features["recent_items"].table == "item_id"  # type: ignore[union-attr]
        (warning,) = [w for w in found.warnings if "beside it are clicks" in w]
        assert warning.startswith(f"all {LABEL.sum()} rows of the sample in which 'recent_items' holds the 'item_id'")
    both = [[*seen[:1], item] for seen, item in zip(lists, items, strict=True)]  # also where it was not clicked
    found, _ = look(tmp_path, log(recent_items=both))
    assert not [w for w in found.warnings if "beside it are clicks" in w]
