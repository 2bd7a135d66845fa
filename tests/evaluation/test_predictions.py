"""Predictions in Parquet: what is read, and what is refused with which words."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctrkit.errors import UserError
from ctrkit.evaluation.predictions import Predictions

RNG = np.random.default_rng(0)
ROWS = 1000


def table(**changed: Any) -> pa.Table:
    columns: dict[str, Any] = {
        "label": RNG.integers(0, 2, ROWS),
        "group": RNG.integers(0, 50, ROWS).astype(str),
        "probability": RNG.random(ROWS),
        "position": RNG.integers(1, 6, ROWS),
    }
    return pa.table(columns | changed)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three row groups of a file."""
    pq.write_table(table(), tmp_path / "p.parquet", row_group_size=400)
    return tmp_path / "p.parquet"


def test_rows_come_in_the_order_of_the_file(path: Path) -> None:
    predictions = Predictions.open(path)
    whole = pq.read_table(path)
    assert (predictions.num_rows, predictions.columns) == (ROWS, ["label", "group", "probability", "position"])
    batches = list(predictions.batches(["probability", "position"], rows=128))
    assert max(batch.num_rows for batch in batches) <= 128
    assert pa.Table.from_batches(batches) == whole.select(["probability", "position"])
    read = predictions.read()
    assert read.column_names == ["label", "probability", "group"]
    assert read["label"].to_pylist() == [bool(label) for label in whole["label"].to_pylist()]
    assert read["group"] == whole["group"]


def test_folder_of_files_and_days(tmp_path: Path) -> None:
    for day in ("2026-11-20", "2026-11-21"):
        (tmp_path / f"day={day}").mkdir()
        for part in range(2):
            pq.write_table(table().slice(0, 10), tmp_path / f"day={day}" / f"part-{part}.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    predictions = Predictions.open(tmp_path)
    assert predictions.num_rows == 40
    assert predictions.read(["day"])["day"].to_pylist() == ["2026-11-20"] * 20 + ["2026-11-21"] * 20
    assert Predictions.open(f"{tmp_path}/day=2026-11-20").num_rows == 20


def test_names_of_other_tools_and_any_suffix(tmp_path: Path) -> None:
    pq.write_table(table().rename_columns(["y", "uid", "pctr", "w"]), tmp_path / "scores.out")
    predictions = Predictions.open(tmp_path / "scores.out", label="y", group="uid", score="pctr", weight="w")
    assert predictions.roles == ["y", "pctr", "uid", "w"]
    assert predictions.read().schema.field("w").type == pa.float64()


def test_group_may_be_missing_under_its_own_name_only(tmp_path: Path) -> None:
    pq.write_table(table().drop_columns(["group"]), tmp_path / "p.parquet")
    assert Predictions.open(tmp_path / "p.parquet").group is None
    with pytest.raises(UserError, match=r"p\.parquet has no column 'user', which the group \(--group\) names"):
        Predictions.open(tmp_path / "p.parquet", group="user")


def test_no_column_is_named_group_by_mistake(path: Path) -> None:
    assert Predictions.open(path).group == "group"
    assert Predictions.open(path, group=None).group is None


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([True, False]),
        pa.array([1.0, 0.0], pa.float32()),
        pa.array(["1", "0"]),
        pa.array(["1", "0"]).dictionary_encode(),
        pa.array([Decimal("1"), Decimal("0")]),
    ],
)
def test_labels_of_any_type(tmp_path: Path, labels: pa.Array) -> None:
    pq.write_table(pa.table({"label": labels, "probability": [0.5, 0.25]}), tmp_path / "p.parquet")
    read = Predictions.open(tmp_path / "p.parquet").read()
    assert read["label"].to_pylist() == [True, False]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.float16()])
def test_scores_keep_their_width(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(
        pa.table({"label": [0, 1], "probability": pa.array(np.array([0.5, 0.25], kind.to_pandas_dtype()))}),
        tmp_path / "p.parquet",
    )
    read = Predictions.open(tmp_path / "p.parquet").read(["probability"])
    assert read["probability"].type == (pa.float64() if kind == pa.float64() else pa.float32())


@pytest.mark.parametrize(
    ("column", "at", "value", "message"),
    [
        ("label", 700, None, r"p\.parquet, row 701: column 'label' is missing; a label is 0 or 1"),
        ("label", 0, 2, r"row 1: column 'label' is 2\.0; a label is 0 or 1"),
        ("probability", 999, 1.5, r"row 1,000: column 'probability' is 1\.5; .*logit"),
        ("probability", 3, float("nan"), r"row 4: column 'probability' is nan; a score is a probability in \[0, 1\]$"),
        ("probability", 3, None, r"row 4: column 'probability' is missing; a score is a probability in \[0, 1\]$"),
        ("group", 450, None, r"row 451: column 'group' is missing; .* one user"),
        ("weight", 450, -1.0, r"row 451: column 'weight' is -1\.0; a weight is 0, or 1e-100 to 1e\+100"),
        ("weight", 450, float("inf"), r"row 451: column 'weight' is inf"),
    ],
)
def test_wrong_values_are_refused_with_their_row(
    tmp_path: Path, column: str, at: int, value: Any, message: str
) -> None:
    whole = table(weight=np.ones(ROWS))
    values = whole[column].to_pylist()
    values[at] = value
    changed = whole.set_column(whole.column_names.index(column), column, pa.array(values))
    pq.write_table(changed, tmp_path / "p.parquet", row_group_size=300)
    predictions = Predictions.open(tmp_path / "p.parquet", weight="weight")
    with pytest.raises(UserError, match=message):
        list(predictions.batches(rows=128))


def test_labels_that_are_no_numbers(tmp_path: Path) -> None:
    pq.write_table(table(label=["yes"] * ROWS), tmp_path / "p.parquet")
    with pytest.raises(UserError, match="column 'label' is string, not all numbers"):
        Predictions.open(tmp_path / "p.parquet").read()


def test_damage_names_the_file_and_the_row_group(path: Path) -> None:
    start = pq.ParquetFile(path).metadata.row_group(1).column(2).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"p\.parquet: .*damaged.*; it is row group 1 \(from 0\) of 3"):
        Predictions.open(path).read()


def test_truncated_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    for where in (path, path.parent, f"{path.parent}/*.parquet"):
        with pytest.raises(UserError, match=r"p\.parquet: cannot be read as Parquet, truncated or damaged"):
            Predictions.open(where)
    path.rename(path.with_name("data.parquet"))
    with pytest.raises(UserError, match=r"data\.parquet: cannot be read as Parquet, truncated or damaged"):
        Predictions.open(path.parent)


def test_what_is_no_predictions(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.csv").write_text("label,probability\n1,0.5\n")
    (tmp_path / "nothing.parquet").write_bytes(b"")
    for name, message in {
        "empty": "the folder has no Parquet file",
        "gone.parquet": "no such file or folder; predictions are",
        "gone/*.parquet": "no such file or folder; predictions are",
        "text.csv": "predictions are Parquet",
        "nothing.parquet": "the file is empty",
    }.items():
        with pytest.raises(UserError, match=message):
            Predictions.open(tmp_path / name)
    (tmp_path / "nothing.parquet").unlink()
    with pytest.raises(UserError, match=r"text\.csv: predictions are Parquet"):
        Predictions.open(tmp_path)


def test_columns_that_are_not_there(path: Path) -> None:
    with pytest.raises(UserError, match=r"has no column 'pctr', which the score \(--score\) names; its columns are"):
        Predictions.open(path, score="pctr")
    with pytest.raises(UserError, match="did you mean 'label'"):
        Predictions.open(path, label="lable")
    with pytest.raises(UserError, match="did you mean 'position'"):
        Predictions.open(path).read(["positon"])


def test_a_run_is_no_predictions_but_has_some(tmp_path: Path) -> None:
    for place in ("data/train", "predictions/test"):
        (tmp_path / "run" / place).mkdir(parents=True)
        pq.write_table(table(), tmp_path / "run" / place / "light.parquet")
    (tmp_path / "run" / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match=r"run/: is the directory of a run; .* /\S*run/predictions/test/NETWORK\."):
        Predictions.open(f"{tmp_path}/run/")
    assert Predictions.open(tmp_path / "run" / "predictions" / "test").num_rows


@pytest.mark.parametrize("named", [{"score": "label"}, {"weight": "probability"}, {"group": "label"}])
def test_a_column_of_two_roles(path: Path, named: dict[str, str]) -> None:
    (role, column), *_ = named.items()
    with pytest.raises(UserError, match=rf"p\.parquet: column '{column}' is named .* the {role}"):
        Predictions.open(path, **named)


@pytest.mark.parametrize(
    "keys",
    [
        pa.array(np.arange(4.0)),
        pa.array(np.arange(4, dtype=np.float16)),
        pa.array(np.arange(4.0)).dictionary_encode(),
        pa.array([[1]] * 4),
        pa.array([{"id": 1}] * 4),
    ],
)
def test_columns_that_are_no_keys(tmp_path: Path, keys: pa.Array) -> None:
    pq.write_table(pa.table({"label": [0, 1] * 2, "probability": [0.5] * 4, "group": keys}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet: column 'group' is .*; group by integers or strings"):
        Predictions.open(tmp_path / "p.parquet")


def test_views_come_as_what_arrow_can_take_rows_of(tmp_path: Path) -> None:
    views = {"group": pa.string_view(), "ad": pa.binary_view()}
    columns = {name: pa.array(["a", "b"]).cast(kind) for name, kind in views.items()}
    pq.write_table(pa.table({"label": [0, 1], "probability": [0.5, 0.5], **columns}), tmp_path / "p.parquet")
    read = Predictions.open(tmp_path / "p.parquet").read(["group", "ad"])
    assert read.schema.types == [pa.large_string(), pa.large_binary()]
    assert read["group"].take(pa.array([1, 0])).to_pylist() == ["b", "a"]


def test_file_of_no_rows(tmp_path: Path) -> None:
    pq.write_table(table().slice(0, 0), tmp_path / "p.parquet")
    predictions = Predictions.open(tmp_path / "p.parquet")
    assert (predictions.num_rows, predictions.read().num_rows) == (0, 0)
    assert predictions.read()["label"].type == pa.bool_()


def test_a_folder_with_predictions_of_several_models_is_refused(tmp_path: Path) -> None:
    light = table()
    pq.write_table(light, tmp_path / "light.parquet")
    pq.write_table(light.set_column(2, "probability", pa.array([0.5] * len(light))), tmp_path / "rocket.parquet")
    with pytest.raises(UserError, match=r"light\.parquet and .*rocket\.parquet hold the same impressions"):
        Predictions.open(tmp_path)
