"""Every kind of bad input that prepare or a recipe can meet, with what the person is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctrkit.config.data import DataConfig
from ctrkit.config.recipe import load_recipe
from ctrkit.data.prepare import prepare
from ctrkit.errors import UserError
from ctrkit.schema import Schema
from tests.data import small_log
from tests.data.small_log import table, write_parts

Case = tuple[DataConfig, Schema]


def case(path: Path | str, data: dict[str, Any] | None = None, **schema: Any) -> Case:
    return small_log.data(path, **(data or {})), small_log.schema(**schema)


def replaced(name: str, values: Any, **schema: Any) -> Callable[[Path], Case]:
    """The small log with another column `name`, in three parts."""

    def make(folder: Path) -> Case:
        log = table()
        column = values(log[name].to_pylist()) if callable(values) else values
        place = log.schema.get_field_index(name)
        return case(write_parts(folder / "log", log.set_column(place, name, pa.array(column))), **schema)

    return make


def with_value(row: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:row], value, *values[row + 1 :]]


def features(**spec: dict[str, Any]) -> dict[str, Any]:
    return {"features": spec}


def one_file(folder: Path, name: str, content: bytes | str, split: dict[str, Any] | None = None) -> Case:
    write_parts(folder / "log")
    path = folder / "log" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    return case(folder / "log", {"split": split} if split else None)


def csv_alone(folder: Path, content: bytes) -> Case:
    (folder / "log").mkdir()
    (folder / "log" / "x.csv").write_bytes(content)
    return case(folder / "log", {"split": {"by": "random"}})


def truncated(folder: Path) -> Case:
    return one_file(folder, "train.parquet", (write_parts(folder / "log") / "train.parquet").read_bytes()[:-200])


def damaged(folder: Path) -> Case:
    content = bytearray((write_parts(folder / "log") / "valid.parquet").read_bytes())
    content[4 : len(content) // 4] = bytes(len(content) // 4 - 4)
    return one_file(folder, "valid.parquet", bytes(content))


def csv(folder: Path, text: str) -> Case:
    (folder / "log").mkdir()
    for part in ("train", "valid", "test"):
        (folder / "log" / f"{part}.csv").write_text("click,user_id,x\n1,u,1\n0,u,2\n")
    (folder / "log" / "train.csv").write_text(text)
    return case(folder / "log", features={"x": {"side": "item"}})


def without_column_in_one_file(folder: Path) -> Case:
    path = write_parts(folder / "log") / "test.parquet"
    pq.write_table(pq.read_table(path).drop(["price"]), path)
    return case(folder / "log")


def other_type_in_one_file(folder: Path) -> Case:
    path = write_parts(folder / "log") / "test.parquet"
    log = pq.read_table(path)
    pq.write_table(log.set_column(4, "item_id", log["item_id"].cast(pa.string())), path)
    return case(folder / "log")


def large_integers_beside_floats(folder: Path) -> Case:
    path = write_parts(folder / "log") / "test.parquet"
    log = pq.read_table(path)
    pq.write_table(log.set_column(4, "item_id", pa.array([2**53 + 1] * 60)), path)
    path = folder / "log" / "train.parquet"
    log = pq.read_table(path)
    pq.write_table(log.set_column(4, "item_id", log["item_id"].cast(pa.float64())), path)
    return case(folder / "log")


def column_twice(folder: Path) -> Case:
    log = table()
    pq.write_table(log.append_column("price", log["price"]), folder / "x.parquet")
    return case(folder / "x.parquet", {"split": {"by": "random"}})


def same_file_twice(folder: Path) -> Case:
    return case(write_parts(folder / "log"), {"split": {"by": "files", "valid": "t*.parquet"}})


def one_time(folder: Path) -> Case:
    make = replaced("time", [7] * 300)
    return case(make(folder)[0].path or "", {"split": {"by": "time"}}, time="time")


def split_by(split: dict[str, Any], **schema: Any) -> Callable[[Path], Case]:
    return lambda folder: case(write_parts(folder / "log"), {"split": split}, **schema)


def unknown_files(folder: Path) -> Case:
    (folder / "readme.txt").write_text("no log")
    return case(folder, {"split": {"by": "random"}})


def other_name(folder: Path) -> Case:
    (folder / "log.txt").write_text("a,b\n")
    return case(folder / "log.txt", {"split": {"by": "random"}})


def no_part(folder: Path) -> Case:
    (write_parts(folder / "log") / "valid.parquet").unlink()
    return case(folder / "log")


def part_in_two_places(folder: Path) -> Case:
    write_parts(folder / "log" / "train")
    return case(write_parts(folder / "log"))


def flat(adapter: str, folder: Path) -> Case:
    return case(folder, {"adapter": adapter})


DAY = {"by": "column", "column": "day"}
SEQUENCE = {"side": "user", "kind": "sequence"}
DENSE = {"side": "item", "kind": "dense"}

LOGS: dict[str, tuple[Callable[[Path], Case], str]] = {
    # files
    "no path": (lambda _: (DataConfig(), small_log.schema()), r"names no log; give data\.path"),
    "no such path": (lambda f: case(f / "none"), r"none: no such file or folder; a path \(data\.path in a recipe\)"),
    "no such path, split at random": (lambda f: case(f / "none", {"split": {"by": "random"}}), "no such file"),
    "empty folder": (lambda f: case(f), r"the folder has no file that ends in \.parquet"),
    "no file of a known format": (unknown_files, r"the folder has no file that ends in \.parquet"),
    "a file of another name": (other_name, r"log\.txt: neither Parquet, CSV nor TSV by its name: it does not end in"),
    "a glob that matches nothing": (
        lambda f: case(f / "*.parquet", {"split": DAY}),
        "no Parquet, CSV or TSV file matches",
    ),
    "empty file": (lambda f: one_file(f, "train.parquet", b""), r"train\.parquet: the file is empty; write it again"),
    "truncated Parquet": (truncated, r"train\.parquet: cannot be read as Parquet, truncated or damaged"),
    "damaged Parquet": (damaged, r"valid\.parquet: cannot be read as Parquet.*, truncated or damaged"),
    "no Parquet at all": (lambda f: one_file(f, "test.parquet", "click"), r"test\.parquet: cannot be read as Parquet"),
    "CSV with a ragged line": (
        lambda f: csv(f, "click,user_id,x\n1,u,1\n0,u\n"),
        r"train\.csv: CSV parse error: Row #3: Expected 3 columns, got 2",
    ),
    "CSV whose type changes": (
        lambda f: csv(f, "click,user_id,x\n" + "1,u,1\n" * 2_000_000 + "0,u,seven\n"),
        r"train\.csv: In CSV column #2: Row #2000002: .*invalid value 'seven'; correct that row",
    ),
    "CSV in Latin-1": (
        lambda f: csv_alone(f, "click,user_id,prénom\n1,u,1\n".encode("latin-1")),
        r"x\.csv: not written as UTF-8 .*; convert it",
    ),
    "CSV with a header alone": (lambda f: csv(f, "click,user_id,x\n"), "leaves the train part empty"),
    "CSV that is no text": (lambda f: csv(f, "click,user_id,x\n\0\0\n1,u\n"), r"train\.csv: CSV parse error"),
    "no rows": (lambda f: case(write_parts(f / "log", table(0))), "leaves the train part empty"),
    # columns
    "missing column": (
        lambda f: case(write_parts(f / "log"), features={"item_ids": {"side": "item"}}),
        r"train\.parquet has no column 'item_ids', which features\.item_ids names; did you mean 'item_id'\?",
    ),
    "missing label": (
        lambda f: (small_log.data(write_parts(f / "log")), small_log.schema().model_copy(update={"label": "clicked"})),
        r"no column 'clicked', which columns\.label names; did you mean 'click'\?",
    ),
    "column missing in one file": (without_column_in_one_file, r"test\.parquet has no column 'price'"),
    "column of two types": (
        other_type_in_one_file,
        "column 'item_id' is int64 in .*, but string in .*; write it with one type",
    ),
    "column of two types, one too narrow": (
        large_integers_beside_floats,
        r"test\.parquet: column 'item_id' is int64 here and double elsewhere, which cannot hold it",
    ),
    "column twice in a file": (column_twice, r"x\.parquet: column 'price' stands in it twice; rename one"),
    # label, group, weight, time
    "label outside 0 and 1": (
        replaced("click", with_value(100, 2)),
        r"train\.parquet, row 101: label 'click' is 2, neither 0 \(no click\) nor 1 \(click\); correct or drop",
    ),
    "label missing": (replaced("click", with_value(250, None)), r"test\.parquet, row 11: label 'click' is empty"),
    "label between 0 and 1": (replaced("click", with_value(7, 0.5)), r"train\.parquet, row 8: label 'click' is 0\.5"),
    "label of text": (replaced("click", ["yes"] * 300), "label 'click' is string; write 0"),
    "no positive": (replaced("click", [0] * 300), "no click in the 180 rows of the train part"),
    "no negative": (replaced("click", [1] * 300), "nothing but clicks in the 180 rows of the train part"),
    "group missing": (
        replaced("user_id", with_value(190, None)),
        r"valid\.parquet, row 11: group key 'user_id' is emp",
    ),
    "group of times": (
        replaced("user_id", pa.array([1] * 300, pa.timestamp("us")), **features(item_id={"side": "item"})),
        r"group key 'user_id' is timestamp\[us\]; write integers or strings",
    ),
    "weight NaN": (
        replaced("importance", with_value(3, np.nan), weight="importance"),
        r"row 4: weight 'importance' is n",
    ),
    "weight negative": (
        replaced("importance", with_value(3, -1.0), weight="importance"),
        "row 4: weight .* is -1.0; it",
    ),
    "weight infinite": (replaced("importance", with_value(3, np.inf), weight="importance"), "row 4: weight .* is inf"),
    "weight infinite in single precision": (
        replaced("importance", with_value(3, 1e39), weight="importance"),
        r"row 4: weight .* is 1e\+39; it must lie between 0 and 3\.4",
    ),
    "weight of text": (replaced("importance", ["a"] * 300, weight="importance"), "weight 'importance' is string"),
    "oracle outside [0, 1]": (replaced("truth", with_value(299, 1.5), oracle="truth"), r"test.parquet, row 60: oracle"),
    # features
    "ids over 2^53 as floats": (
        replaced("item_id", [float(2**53)] * 300),
        r"train\.parquet, column 'item_id', rows 1 to 180: feature 'item_id' has ids, but 9007199254740992\.0 is above",
    ),
    "ids with a fraction": (replaced("item_id", [0.5] * 300), r"0\.5 is no whole number; .* or declare it kind"),
    "ids with a fraction in the test part alone": (
        replaced("item_id", [1.0] * 280 + [0.5] * 20, **features(item_id={"side": "item"})),
        r"test\.parquet, near row 1, column 'item_id': .*no whole number",
    ),
    "struct": (replaced("city", [{"name": "Lima"}] * 300), r"feature 'city' \(column 'city', struct.*no feature takes"),
    "timestamp as a feature": (
        replaced("city", pa.array([1] * 300, pa.timestamp("us"))),
        r"city', timestamp\[us\]\) has a",
    ),
    "bytes": (replaced("city", [b"Lima"] * 300), r"city', binary\) has a type that no feature takes; write it as"),
    "list declared categorical": (
        lambda f: case(write_parts(f / "log"), **features(recent_items={"side": "user"})),
        r"feature 'recent_items' .* is a list; declare it kind = \"sequence\"",
    ),
    "categorical declared a list": (
        lambda f: case(write_parts(f / "log"), **features(item_id=SEQUENCE)),
        r"feature 'item_id' .* is declared kind = \"sequence\", but is no list",
    ),
    "list declared dense": (
        lambda f: case(write_parts(f / "log"), **features(recent_items=DENSE)),
        r"feature 'recent_items' .* is a list; declare it",
    ),
    "list of lists": (replaced("recent_items", [[[1]]] * 300), "a list of lists is too deep; flatten it"),
    "text declared dense": (
        lambda f: case(write_parts(f / "log"), **features(city=DENSE)),
        r"feature 'city' .* is declared kind = \"dense\", but is no number",
    ),
    "a table of integers and texts": (
        lambda f: case(
            write_parts(f / "log"),
            **features(city={"side": "user", "table": "t"}, item_id={"side": "item", "table": "t"}),
        ),
        "features 'city' and 'item_id' share table 't', but one has string values, the other int",
    ),
    "a column of a reserved name": (
        lambda f: case(
            write_parts(f / "log", table().rename_columns({"city": "__label"})),
            **features(city={"side": "user", "column": "__label"}),
        ),
        r"column '__label', which features\.city names: ctrkit uses the name; rename",
    ),
    "a reserved name": (
        lambda f: case(write_parts(f / "log"), **features(__label={"side": "user", "column": "city"})),
        r"features\.__label: the name is used for something else",
    ),
    # split
    "a part without files": (
        no_part,
        r"no files of the valid part \(valid, valid\.parquet, valid\.csv\); name them in",
    ),
    "a part in two places": (
        part_in_two_places,
        r"both .*train and .*train\.parquet could be the train part; name one",
    ),
    "a file in two parts": (same_file_twice, r"train\.parquet: is in the train part and in the valid part"),
    "all rows of one time": (one_time, "leaves the train part empty"),
    "a time of text": (
        split_by({"by": "time"}, time="city"),
        r", row 1: time column 'city' has '.*', which is no time; write numbers, timestamps",
    ),
    "a list of times, split at random": (
        split_by({"by": "random"}, time="recent_items"),
        r"time column 'recent_items' is list<.*; write numbers, timestamps",
    ),
    "a row without a time": (
        lambda f: case(
            replaced("time", with_value(200, None))(f)[0].path or "", {"split": {"by": "time"}}, time="time"
        ),
        r"row 21: time column 'time' is empty",
    ),
    "no row for training": (split_by({"by": "random", "valid": 0.5, "test": 0.5}), "leave no row for training; lower"),
    "no row for training by time": (
        split_by({"by": "time", "valid": 0.5, "test": 0.5}, time="time"),
        "leave no row for training; lower",
    ),
    "too few values": (
        split_by({**DAY, "valid": 3, "test": 3}),
        "column 'day' has 6 values, 3 for valid and 3 for test",
    ),
    "an unknown value": (split_by({**DAY, "test": ["22"]}), r"column 'day' has no value '22'; it has 2"),
    "a value in both": (split_by({**DAY, "test": [5], "valid": [5]}), "day 5 is in both valid and test"),
    "an unknown split column": (
        split_by({**DAY, "column": "days"}),
        r"which data\.split\.column names; did you mean 'day'",
    ),
    # adapters
    "an adapter without files": (
        lambda f: flat("movielens_1m", f),
        r"neither a flat log .* nor the official raw files",
    ),
    "an adapter without a folder": (lambda f: flat("movielens_1m", f / "none"), r"neither .* \(no such folder\); put"),
    "an unknown adapter": (lambda f: flat("movielens", f), "no adapter 'movielens'; did you mean 'movielens_1m'"),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_bad_log_is_answered_clearly(tmp_path: Path, name: str) -> None:
    make, message = LOGS[name]
    (tmp_path / "in").mkdir()
    data, schema = make(tmp_path / "in")
    with pytest.raises(UserError, match=message) as caught:
        prepare(data, schema, tmp_path / "run" / "prepared")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "prepared").exists()


def test_nan_and_infinity_in_a_dense_feature_are_counted_not_refused(tmp_path: Path) -> None:
    price = np.linspace(1, 2, 300)
    price[[0, 70, 280]] = np.nan
    price[[5, 290]] = np.inf, -np.inf
    data, schema = replaced("price", pa.array(price, from_pandas=False), **features(price=DENSE))(tmp_path)
    log = prepare(data, schema, tmp_path / "out")
    counts = {part: log.manifest["counts"][part]["price"] for part in ("train", "test")}
    assert (counts["train"]["missing"], counts["train"]["out_of_range"]) == (2, 1)
    assert counts["test"]["missing"] == 1
    assert counts["test"]["out_of_range"] == 59  # all of them lie above the training part, one below
    values = log.read_columns("train", ["price"]).column(0).to_numpy()
    assert np.isfinite(values).all()
    assert values[0] == values[70] == 0.0
    assert values[5] == values.max()


RECIPE = """
name = "x"
[data]
path = "log"
[columns]
label = "click"
group = "user_id"
[features]
user_id = { side = "user" }
item_id = { side = "item" }
[towers]
light = { hidden = [20, 8] }
[models.light]
objective = "pointwise"
tower = "light"
"""

RECIPES: dict[str, tuple[str, str, str]] = {
    "no TOML": ("[data]", "[data", "not valid TOML"),
    "a misspelt key": (
        'side = "item" }',
        'side = "item", mincount = 2 }',
        "mincount: unknown key; did you mean 'min_count'",
    ),
    "a misspelt section": ("[towers]", "[tower]", "tower: unknown key; did you mean 'towers'"),
    "a missing key": ('label = "click"\n', "", r"columns\.label: required key is missing"),
    "a feature twice": ("[towers]", 'item_id = { side = "user" }\n[towers]', "not valid TOML"),
    "a wrong type": ("[20, 8]", '"wide"', r"towers\.light\.hidden: .*list"),
    "a negative width": ("[20, 8]", "[20, -8]", r"towers\.light\.hidden.*greater than"),
    "an unknown kind": (
        'side = "item" }',
        'side = "item", kind = "image" }',
        r"features\.item_id.*'categorical', 'seq",
    ),
    "an unknown side": ('side = "item" }', 'side = "ad" }', r"features\.item_id\.side.*'user', 'item' or 'context'"),
    "an unknown tower": ('tower = "light"', 'tower = "heavy"', "model 'light' names tower 'heavy'"),
    "the label as a feature": ("item_id = {", 'leak = { column = "click",', "reads the label column 'click'"),
    "split by time without one": ('path = "log"', 'path = "log"\nsplit = { by = "time" }', r"needs columns\.time"),
    "an unknown split": ('path = "log"', 'path = "log"\nsplit = { by = "moon" }', r"data\.split.*'files', 'column'"),
    "two sources": ('path = "log"', 'path = "log"\nsynthetic = { rows = 9 }', "either path or synthetic"),
    "a share of all": (
        'path = "log"',
        'path = "log"\nsplit = { by = "random", test = 1 }',
        r"data\.split\.test: .*less",
    ),
    "no feature": ('user_id = { side = "user" }\nitem_id = { side = "item" }', "", "features: "),
    "tables that disagree": (
        'side = "item" }',
        'side = "item", table = "t", min_count = 2 }\nb = { side = "item", table = "t", min_count = 3 }',
        "features of table 't' disagree",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_bad_recipe_is_answered_clearly(tmp_path: Path, name: str) -> None:
    old, new, message = RECIPES[name]
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    load_recipe(path)
    assert old in RECIPE
    path.write_text(RECIPE.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_overrides_and_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    with pytest.raises(UserError, match=r"recipe\.toml: cannot read the recipe"):
        load_recipe(path)
    path.write_text(RECIPE)
    for override, message in {
        "train.epochs": "write KEY=VALUE",
        "train.epoch=2": "did you mean 'epochs'",
        "name.x=2": "'name' is a value, not a table",
    }.items():
        with pytest.raises(UserError, match=message):
            load_recipe(path, [override])
