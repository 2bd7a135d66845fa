"""Scores of other models, impressions without a label, and a share of the labels: from the log to the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctrkit.data.columns import LABEL, TEACHER, WEIGHT
from ctrkit.data.loader import Loader, Share
from ctrkit.data.prepare import prepare
from ctrkit.data.prepared import PreparedLog
from ctrkit.errors import UserError
from tests.data import small_log
from tests.data.small_log import data, schema

FEATURES = {name: small_log.FEATURES[name] for name in ("user_id", "recent_items", "item_id", "price")}


def made(folder: Path, changes: dict[str, Any], **columns: Any) -> PreparedLog:
    """The small log with other columns, prepared."""
    log = small_log.table()
    for name, values in changes.items():
        array = values if isinstance(values, pa.Array) else pa.array(values)
        log = log.set_column(log.schema.get_field_index(name), name, array) if name in log.schema.names else (
            log.append_column(name, array)
        )  # fmt: skip
    raw = small_log.write_parts(folder / "raw", log)
    return prepare(data(raw, row_group_rows=32), schema(FEATURES, **columns), folder / "prepared")


def scores(rows: int = 300) -> list[float | None]:
    """Probabilities with gaps, the ends of the range among them."""
    drawn = np.random.default_rng(1).random(rows).round(6).tolist()
    found: list[float | None] = [None if i % 7 == 3 else p for i, p in enumerate(drawn)]
    found[0], found[1], found[2] = 0.0, 1.0, float("nan")
    return found


def logits(values: list[float | None]) -> npt.NDArray[np.float64]:
    p = np.array([np.nan if v is None else v for v in values], np.float64).clip(1e-6, 1 - 1e-6)
    found: npt.NDArray[np.float64] = np.log(p / (1 - p))
    return found


def test_a_teachers_logits_come_with_their_impressions(tmp_path: Path) -> None:
    # truth numbers the rows: a score must stay with its impression however rows are shuffled
    second = [i / 1000 for i in range(300)]
    log = made(tmp_path, {"score": scores(), "other": second, "price": [float(i) for i in range(300)]},
               teachers=("other", "score"))  # fmt: skip
    expected = {"score": logits(scores()), "other": logits([*second])}
    stored = log.read_columns("train", [TEACHER + "score"]).column(0).to_numpy()
    np.testing.assert_allclose(stored, expected["score"][:180], rtol=1e-6)
    missing = 1 + sum(i % 7 == 3 for i in range(180))
    assert np.isnan(stored).sum() == missing
    assert [line for line in log.manifest["warnings"] if "no score of the teacher" in line] == [
        f"{missing} of 180 rows of the train part have no score of the teacher 'score'; losses that need it leave "
        "them out"
    ]
    loader = Loader(log.schema, log.files("train"), batch_size=16, shuffle_rows=50, teachers=["score", "other"])
    scaling = log.encoding.scalings["price"]
    seen = []
    for batch in loader.epoch(3):
        assert list(batch.teachers) == ["score", "other"]
        row_B = (batch.dense_BD[:, 0].double().numpy() * scaling.std + scaling.mean).round().astype(int)
        for name in ("score", "other"):
            np.testing.assert_allclose(batch.teachers[name].numpy(), expected[name][row_B], rtol=1e-5)
        seen += row_B.tolist()
    assert sorted(seen) == list(range(180))


def test_only_the_scores_that_are_asked_for_are_read(tmp_path: Path) -> None:
    log = made(tmp_path, {"score": scores(), "other": scores()}, teachers=("score", "other"))
    read = next(Loader(log.schema, log.files("train"), batch_size=8, teachers=["other"]).epoch())
    assert list(read.teachers) == ["other"]
    assert next(Loader(log.schema, log.files("train"), batch_size=8).epoch()).teachers == {}


def test_an_empty_batch_has_teachers_too(tmp_path: Path) -> None:
    log = made(tmp_path, {"score": scores()}, teachers=("score",))
    batch = Loader(log.schema, log.files("train"), batch_size=8, teachers=["score"]).empty()
    assert batch.teachers["score"].shape == (0,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.5], "row 2: teacher 'score' is 1.5; write click probabilities, in [0, 1]"),
        ([-0.1], "row 1: teacher 'score' is -0.1; write click probabilities, in [0, 1]"),
        ([0.5, 0.5, float("inf")], "row 3: teacher 'score' is inf; write click probabilities, in [0, 1]"),
    ],
)
def test_what_is_no_probability_is_refused_with_its_row(tmp_path: Path, values: list[float], message: str) -> None:
    with pytest.raises(UserError) as raised:
        made(tmp_path, {"score": [*values, *[0.5] * (300 - len(values))]}, teachers=("score",))
    assert message in str(raised.value)
    assert "train.parquet" in str(raised.value)


def test_scores_that_are_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.parquet: teacher 'score' is string; write probabilities"):
        made(tmp_path, {"score": ["0.5"] * 300}, teachers=("score",))


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'score'.*columns\.teachers"):
        made(tmp_path, {}, teachers=("score",))


def test_a_score_in_requests_and_bundles_is_nobodys_business(tmp_path: Path) -> None:
    log = made(tmp_path, {"score": scores()}, teachers=("score",))
    assert log.schema.serving().teachers == ()
    assert "score" not in log.requests.read_text()


# --- impressions without a label


def some_unlabelled(parts: slice) -> pa.Array:
    click = small_log.table()["click"].to_pylist()
    return pa.array([None if i in range(*parts.indices(300)) else c for i, c in enumerate(click)], pa.int8())


def test_impressions_without_a_label_are_kept_for_those_who_ask(tmp_path: Path) -> None:
    log = made(tmp_path, {"click": some_unlabelled(slice(0, 180, 3))}, unlabelled=True)
    loader = Loader(log.schema, log.files("train"), batch_size=64)
    label = np.concatenate([batch.label_B.numpy() for batch in loader.epoch()])
    expected = np.array(small_log.table()["click"].to_pylist()[:180], np.float32)
    expected[::3] = np.nan
    np.testing.assert_array_equal(label, expected)
    assert log.manifest["parts"]["train"]["clicks"] == int(np.nansum(expected))
    assert (
        "60 of 180 rows of the train part have no label; losses that need it leave them out"
        in (log.manifest["warnings"])
    )


def test_a_missing_label_is_an_error_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 7: label 'click' is empty"):
        made(tmp_path, {"click": some_unlabelled(slice(6, 7))})


@pytest.mark.parametrize(("rows", "part", "row"), [(slice(200, 202), "valid", 21), (slice(299, 300), "test", 60)])
def test_only_the_training_part_may_lack_labels(tmp_path: Path, rows: slice, part: str, row: int) -> None:
    said = rf"{part}\.parquet, row {row}: an impression of the {part} part has no label; columns.unlabelled is for"
    with pytest.raises(UserError, match=said):
        made(tmp_path, {"click": some_unlabelled(rows)}, unlabelled=True)


def test_a_missing_label_is_found_among_the_parts_of_one_file(tmp_path: Path) -> None:
    log = small_log.table()  # fifty rows a day, of which the fifth is the valid part
    log = log.set_column(log.schema.get_field_index("click"), "click", some_unlabelled(slice(140, 230)))
    pq.write_table(log, tmp_path / "log.parquet")
    by_day = data(tmp_path / "log.parquet", split={"by": "column", "column": "day"})
    with pytest.raises(UserError, match=r"log\.parquet, row 201: an impression of the valid part has no label"):
        prepare(by_day, schema(FEATURES, unlabelled=True), tmp_path / "prepared")


def test_a_label_that_is_no_label_is_an_error_also_among_missing_ones(tmp_path: Path) -> None:
    click = [None, 2, *[1] * 298]
    with pytest.raises(UserError, match="row 2: label 'click' is 2"):
        made(tmp_path, {"click": pa.array(click, pa.int8())}, unlabelled=True)


def test_no_click_among_the_labelled_is_said(tmp_path: Path) -> None:
    click = [None if i % 2 else 0 for i in range(180)] + small_log.table()["click"].to_pylist()[180:]
    with pytest.raises(UserError, match="column 'click' has no click in the 90 rows of the train part"):
        made(tmp_path, {"click": pa.array(click, pa.int8())}, unlabelled=True)


# --- a share of the labels

ROWS, GROUP_ROWS = 4000, 500


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared log whose dense feature numbers the rows."""
    path = tmp_path_factory.mktemp("log") / "part.parquet"
    table = pa.table(
        {
            LABEL: (np.arange(ROWS) % 4 == 0).astype(np.float32),
            WEIGHT: np.full(ROWS, 2.0, np.float32),
            "price": np.arange(ROWS, dtype=np.float32),
        }
    )
    pq.write_table(table, path, row_group_size=GROUP_ROWS)
    return path


def told(path: Path, epoch: int = 0, *, seed: int = 0, **settings: Any) -> dict[int, float]:
    """The label of each row that has one, by its number; all rows are checked to be there once."""
    known = schema({"price": small_log.FEATURES["price"]})
    loader = Loader(known, [path], batch_size=64, shuffle_rows=300, seed=seed, **settings)
    found: dict[int, float] = {}
    rows: list[int] = []
    for batch in loader.epoch(epoch):
        row_B, label_B = batch.dense_BD[:, 0].long().tolist(), batch.label_B.tolist()
        rows += row_B
        found |= {row: label for row, label in zip(row_B, label_B, strict=True) if not np.isnan(label)}
    assert len(rows) == len(set(rows))
    if "share" not in settings and "negative_rate" not in settings:
        assert sorted(rows) == list(range(ROWS))
    return found


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_a_share_of_the_labels_the_same_in_every_epoch(numbered: Path, rate: float) -> None:
    first = told(numbered, label_rate=rate)
    assert len(first) / ROWS == pytest.approx(rate, abs=0.03)
    assert all(label == (row % 4 == 0) for row, label in first.items())
    clicks = sum(first.values()) / len(first)
    assert clicks == pytest.approx(0.25, abs=0.06)  # told by chance, not by what they are
    assert told(numbered, epoch=1, label_rate=rate) == first
    assert told(numbered, epoch=7, label_rate=rate) == first
    assert told(numbered, seed=1, label_rate=rate) != first


def test_row_groups_do_not_tell_the_same_places(numbered: Path) -> None:
    rows = sorted(told(numbered, label_rate=0.5))
    places = [{row % GROUP_ROWS for row in rows if row // GROUP_ROWS == group} for group in range(2)]
    assert places[0] != places[1]


def test_processes_are_told_the_same_labels(numbered: Path) -> None:
    whole = told(numbered, label_rate=0.3, share=Share.of_process(0, 1))
    parts = [told(numbered, label_rate=0.3, share=Share.of_process(rank, 4)) for rank in range(4)]
    assert {row: label for part in parts for row, label in part.items()} == whole
    assert sum(len(part) for part in parts) == len(whole)


def test_all_labels_by_default(numbered: Path) -> None:
    assert len(told(numbered)) == ROWS


def test_impressions_without_a_label_are_no_negatives(numbered: Path) -> None:
    # a share of the negatives is left out, unlabelled ones stay with the weight that they have
    known = schema({"price": small_log.FEATURES["price"]})
    loader = Loader(known, [numbered], batch_size=64, shuffle_rows=300, label_rate=0.5, negative_rate=0.1)
    label_N, weight_N = (
        np.concatenate(parts)
        for parts in zip(*((b.label_B.numpy(), b.weight_B.numpy()) for b in loader.epoch()), strict=True)
    )
    unknown_N = np.isnan(label_N)
    assert unknown_N.sum() == ROWS - len(told(numbered, label_rate=0.5))
    assert (weight_N[unknown_N] == 2.0).all()
    assert (weight_N[label_N == 0] == 20.0).all()
    assert (label_N == 0).sum() == pytest.approx(0.1 * 0.75 * 0.5 * ROWS, abs=50)
