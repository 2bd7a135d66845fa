import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ctrkit.schema import CategoricalFeature, DenseFeature, Schema, SequenceFeature

FEATURES: dict[str, dict[str, Any]] = {
    "city": {"side": "user", "min_count": 3},
    "recent": {"side": "user", "kind": "sequence", "table": "item", "column": "recent_items"},
    "price": {"side": "item", "kind": "dense", "transform": "bucketize"},
    "item": {"side": "item", "buckets": 100},
    "age": {"side": "user", "kind": "dense"},
    "bid": {"side": "item", "kind": "dense", "transform": "log"},
    "hour": {"side": "context"},
}
COLUMNS = {"label": "click", "group": "user_id", "time": "ts", "oracle": "p"}


def make_schema(**more: dict[str, Any]) -> Schema:
    return Schema.from_mapping({**FEATURES, **more}, **COLUMNS)


def test_features_keep_their_order_and_kind() -> None:
    schema = make_schema()
    assert [f.name for f in schema.features] == list(FEATURES)
    assert [f.name for f in schema.sparse_features] == ["city", "recent", "price", "item", "hour"]
    assert [f.name for f in schema.dense_features] == ["age", "bid"]
    assert [f.name for f in schema.side("item")] == ["price", "item", "bid"]
    assert [f.name for f in schema.side("context")] == ["hour"]
    city, recent, price = schema.features[:3]
    assert isinstance(city, CategoricalFeature)
    assert isinstance(recent, SequenceFeature)
    assert isinstance(price, DenseFeature)
    assert (recent.max_len, recent.pooling, recent.source, city.source) == (20, "mean", "recent_items", "city")


def test_tables_are_shared_by_name() -> None:
    schema = make_schema()
    assert {table: [f.name for f in members] for table, members in schema.tables().items()} == {
        "city": ["city"], "item": ["recent", "item"], "price": ["price"], "hour": ["hour"],
    }  # fmt: skip
    assert schema.table_settings("item") == (1, 100)  # stated by one member, meant for all
    assert schema.table_settings("city") == (3, None)
    assert schema.table_settings("hour") == (1, None)
    assert schema.table_settings("price") == (1, None)


REFUSED: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "reads the label": ({"x": {"side": "user", "column": "click"}}, "feature 'x' reads the label column 'click'"),
    "is the label": ({"click": {"side": "user"}}, "feature 'click' reads the label"),
    "reads the oracle": ({"p": {"side": "user"}}, "feature 'p' reads the oracle column 'p'"),
    "min_count in dispute": (
        {"a": {"side": "user", "table": "t", "min_count": 2}, "b": {"side": "user", "table": "t", "min_count": 3}},
        "features of table 't' disagree",
    ),
    "buckets in dispute": (
        {"a": {"side": "user", "table": "item", "buckets": 7}}, "features of table 'item' disagree",
    ),
    "shares buckets": ({"a": {"side": "item", "table": "price"}}, "table 'price' holds the buckets"),
    "no side": ({"a": {}}, "side"),
    "other side": ({"a": {"side": "ad"}}, "side"),
    "misspelt key": ({"a": {"side": "user", "bucket": 7}}, "bucket"),
    "other kind": ({"a": {"side": "user", "kind": "text"}}, "kind"),
    "empty name": ({"": {"side": "user"}}, "name"),
    "no bucket": ({"a": {"side": "user", "buckets": 0}}, "buckets"),
    "no length": ({"a": {"side": "user", "kind": "sequence", "max_len": 0}}, "max_len"),
    "max_len of one value": ({"a": {"side": "user", "max_len": 5}}, "max_len"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    more, message = REFUSED[case]
    with pytest.raises(ValidationError, match=re.escape(message)):
        make_schema(**more)


def test_refuses_two_features_of_one_name() -> None:
    twice = (CategoricalFeature(name="a", side="user"), CategoricalFeature(name="a", side="item"))
    with pytest.raises(ValidationError, match="feature 'a' is declared twice"):
        Schema(label="click", group="user_id", features=twice)


def test_refuses_no_feature() -> None:
    with pytest.raises(ValidationError, match="features"):
        Schema(label="click", group="user_id", features=())


def test_survives_the_disk_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    schema = make_schema()
    schema.save(tmp_path / "schema.json")
    loaded = Schema.load(tmp_path / "schema.json")
    assert loaded == schema
    assert loaded.fingerprint() == schema.fingerprint()


def test_fingerprint_tells_schemas_apart() -> None:
    reordered = Schema.from_mapping(dict(reversed(FEATURES.items())), **COLUMNS)
    schemas = [
        make_schema(),
        reordered,
        make_schema(extra={"side": "user"}),
        make_schema(hour={"side": "user"}),
        make_schema(hour={"side": "context", "column": "h"}),
        Schema.from_mapping(FEATURES, **{**COLUMNS, "label": "buy"}),
    ]
    assert len({schema.fingerprint() for schema in schemas}) == len(schemas)
    assert make_schema().fingerprint() == make_schema().fingerprint()


@pytest.mark.parametrize("slices", [("device", "device"), ("label",), ("probability", "device")])
def test_slices_once_and_no_name_that_predictions_use(slices: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match=r"slices: .*each column once, and no name that predictions use"):
        Schema(label="click", group="user_id", slices=slices, features=(CategoricalFeature(name="a", side="user"),))


def test_special_columns() -> None:
    features = (CategoricalFeature(name="a", side="user"),)
    schema = Schema(label="click", group="user_id", time="day", slices=("slot", "day"), features=features)
    assert schema.special_columns() == {"slot": "slices", "day": "time", "click": "label", "user_id": "group"}
