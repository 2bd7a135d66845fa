"""Predictions that are judged from partitions on the disk: the same values, in bounded memory, nothing left behind."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrkit.errors import UserError
from ctrkit.evaluation import stream
from ctrkit.evaluation.in_memory import evaluate_predictions
from ctrkit.evaluation.predictions import Predictions
from ctrkit.evaluation.report import EvalConfig, Evaluation, Rows
from ctrkit.evaluation.spill import Spill, spill_directory
from ctrkit.evaluation.stream import evaluate_stream
from ctrkit.metrics import evaluate_scores
from ctrkit.metrics.score_table import ScoreTable
from tests.evaluation.small_predictions import ROWS, table, write

EVERYTHING = EvalConfig(
    slices=("position", "device", "ad", "user_activity"), fields=("ad", "device"), negative_rate=0.5, max_values=4
)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are far smaller than partitions, as in a long log."""
    monkeypatch.setattr(Predictions.batches, "__defaults__", (None, 97))


def exactly(evaluation: Evaluation) -> str:
    """All digits of what does not depend on how sums of fields were rounded."""
    content = evaluation.as_dict()
    del content["partitions"], content["fields"]
    return json.dumps(content)


def same(streamed: Evaluation, in_memory: Evaluation) -> None:
    assert streamed.partitions > 1 == in_memory.partitions
    assert exactly(streamed) == exactly(in_memory)
    assert streamed.slices == in_memory.slices
    for name, field in in_memory.fields.items():
        assert streamed.fields[name].error == pytest.approx(field.error, abs=1e-12)
        assert streamed.fields[name].values == field.values
        assert [each.value for each in streamed.fields[name].worst[:3]] == [each.value for each in field.worst[:3]]


@pytest.mark.parametrize("weight", [None, "weight"])
@pytest.mark.parametrize("group", ["group", None])
def test_equals_all_rows_in_memory(tmp_path: Path, weight: str | None, group: str | None) -> None:
    config = EVERYTHING if group else EvalConfig(EVERYTHING.slices[:-1], EVERYTHING.fields, 0.5, max_values=4)
    predictions = Predictions.open(write(tmp_path / "p.parquet"), weight=weight, group=group)
    whole = evaluate_predictions(predictions, config)
    assert (whole.report.rows, whole.partitions, len(whole.slices["ad"])) == (ROWS, 1, 5)
    for rows in (300, 1111, 3999):
        same(evaluate_stream(predictions, config, partition_rows=rows), whole)
    assert list(tmp_path.iterdir()) == [tmp_path / "p.parquet"]


def test_zeros_of_both_signs(tmp_path: Path) -> None:
    content = table()
    score = np.where(np.arange(ROWS) % 3 == 0, -0.0, content["probability"].to_numpy())
    for kind in (np.float32, np.float64):
        zeros = content.set_column(2, "probability", pa.array(score.astype(kind)))
        predictions = Predictions.open(write(tmp_path / "p.parquet", zeros))
        same(evaluate_stream(predictions, EvalConfig(), partition_rows=500), evaluate_predictions(predictions))


def test_equals_evaluate_scores(tmp_path: Path) -> None:
    content = table()
    predictions = Predictions.open(write(tmp_path / "p.parquet"))
    streamed = evaluate_stream(predictions, EvalConfig(), partition_rows=500)
    users, score = content["group"].to_pylist(), content["probability"].to_numpy()
    assert streamed.report == evaluate_scores(content["label"].to_numpy(), score, users)
    assert streamed.partitions == 8


@pytest.mark.parametrize(
    "cast",
    [
        pa.array,
        lambda users: pa.array(users).dictionary_encode(),
        lambda users: pa.array(users).cast(pa.large_string()),
        lambda users: pa.array(users).cast(pa.string_view()),
        lambda users: pa.array([key.encode() for key in users]),
        lambda users: pa.array([int(key[1:]) - 150 for key in users], pa.int16()),
        lambda users: pa.array([2**64 - 1 - int(key[1:]) for key in users], pa.uint64()),
    ],
)
def test_users_of_any_type(tmp_path: Path, cast: Any) -> None:
    content = table()
    content = content.set_column(1, "group", cast(content["group"].to_pylist()))
    predictions = Predictions.open(write(tmp_path / "p.parquet", content))
    config = EvalConfig(slices=("user_activity",))
    same(evaluate_stream(predictions, config, partition_rows=500), evaluate_predictions(predictions, config))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.integers(0, 9), st.sampled_from("abc")), max_size=60),
    st.integers(1, 30),
)
def test_any_log_and_any_size_of_partition(
    tmp_path: Path, rows: list[tuple[bool, float, int, str]], partition_rows: int
) -> None:
    label, probability, group, position = ([row[i] for row in rows] for i in range(4))
    columns = {
        "label": pa.array(label, pa.bool_()),
        "probability": pa.array(probability, pa.float64()),
        "group": pa.array(group, pa.int64()),
        "position": pa.array(position, pa.string()),
    }
    predictions = Predictions.open(write(tmp_path / "p.parquet", pa.table(columns)))
    config = EvalConfig(slices=("position", "user_activity"), max_values=2)
    streamed = evaluate_stream(predictions, config, partition_rows=partition_rows)
    assert exactly(streamed) == exactly(evaluate_predictions(predictions, config))


def test_no_more_rows_at_once_than_the_stated_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows read from the disk at once: a partition by user, or a range of scores; batches beside that are small."""
    partials: list[int] = []
    tables: list[int] = []
    entries: list[int] = []
    of_rows, of_scores = Rows.partial, ScoreTable.of

    def partial(self: Rows, *, scores: bool) -> Any:
        assert not scores
        partials.append(len(self.clicks))
        return of_rows(self, scores=scores)

    def of(clicks: Any, score: Any, weight: Any = None) -> ScoreTable:
        tables.append(len(clicks))
        made = of_scores(clicks, score, weight)
        entries.append(len(made.score))
        return made

    predictions = Predictions.open(write(tmp_path / "p.parquet"))
    users = np.unique(table()["group"].to_numpy(zero_copy_only=False), return_counts=True)[1]
    monkeypatch.setattr(Rows, "partial", partial)
    monkeypatch.setattr(ScoreTable, "of", of)
    evaluate_stream(predictions, EvalConfig(), partition_rows=500)
    assert len(partials) == 8
    assert sum(partials) == sum(tables) == ROWS
    assert max(partials) < 2 * 500 + users.max()
    assert max(tables) < 500 + 97
    assert max(entries) <= 500


def test_one_score_for_all_rows_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range of scores cannot be cut within a score: it is read in pieces, whose tables are one entry each."""
    content = table().set_column(2, "probability", pa.array(np.full(ROWS, 0.2)))
    predictions = Predictions.open(write(tmp_path / "p.parquet", content))
    whole = evaluate_predictions(predictions)
    tables: list[ScoreTable] = []
    merge = ScoreTable.merge

    def merged(parts: list[ScoreTable]) -> ScoreTable:
        tables.extend(parts)
        return merge(parts)

    monkeypatch.setattr(ScoreTable, "merge", merged)
    same(evaluate_stream(predictions, EvalConfig(), partition_rows=500), whole)
    assert max(len(each.score) for each in tables) == 1
    assert len(tables) >= 2 * (ROWS // (500 + 97) - 1)


def test_there_are_never_more_files_than_can_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_MOST_PARTITIONS", 5)
    predictions = Predictions.open(write(tmp_path / "p.parquet"))
    assert evaluate_stream(predictions, EvalConfig(), partition_rows=10).partitions == 5


def test_long_predictions_are_streamed_below_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    written: list[Path] = []
    open_file = Spill._open

    def opened(self: Spill, path: Path) -> Any:
        written.append(path)
        return open_file(self, path)

    monkeypatch.setattr(Spill, "_open", opened)
    predictions = Predictions.open(write(tmp_path / "p.parquet"))
    evaluate_predictions(predictions, rows_in_memory=ROWS)
    assert not written
    evaluate_predictions(predictions, rows_in_memory=ROWS - 1, tmp=tmp_path / "tmp")
    assert written
    assert all(path.is_relative_to(tmp_path / "tmp") for path in written)
    assert not list((tmp_path / "tmp").iterdir())


def test_a_full_disk_is_told_and_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spill, "_open", lambda self, path: pa.OSFile("/dev/full", "wb"))
    predictions = Predictions.open(write(tmp_path / "p.parquet"))
    with pytest.raises(UserError, match=r"the disk is full; .* --tmp a folder with more"):
        evaluate_stream(predictions, EvalConfig())
    assert list(tmp_path.iterdir()) == [tmp_path / "p.parquet"]


def test_a_wrong_value_late_in_the_file_leaves_nothing_behind(tmp_path: Path) -> None:
    content = table()
    labels = content["label"].cast(pa.int8()).to_pylist()
    labels[3500] = 7
    predictions = Predictions.open(write(tmp_path / "p.parquet", content.set_column(0, "label", pa.array(labels))))
    with pytest.raises(UserError, match=r"row 3,501: column 'label' is 7"):
        evaluate_stream(predictions, EvalConfig(), partition_rows=500)
    assert list(tmp_path.iterdir()) == [tmp_path / "p.parquet"]


def test_tmp_that_cannot_be_written(tmp_path: Path) -> None:
    predictions = Predictions.open(write(tmp_path / "p.parquet"))
    with pytest.raises(UserError, match=r"gone: cannot be written \(No such file or directory\); give --tmp another"):
        evaluate_stream(predictions, EvalConfig(), tmp=tmp_path / "gone")


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from ctrkit.evaluation.spill import spill_directory\n"
        "with spill_directory(Path(sys.argv[1])) as directory:\n"
        "    (directory / 'users').mkdir(); (directory / 'users' / '0.arrow').write_bytes(b'rows')\n"
        "    os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert (left / "users" / "0.arrow").read_bytes() == b"rows"
    elsewhere = tmp_path / ".ctrkit-evaluate-another_machine-1"
    elsewhere.mkdir()
    with spill_directory(tmp_path) as living:
        assert not left.exists()
        with spill_directory(tmp_path) as beside:
            assert set(tmp_path.iterdir()) == {living, beside, elsewhere}
        assert set(tmp_path.iterdir()) == {living, elsewhere}
    assert set(tmp_path.iterdir()) == {elsewhere}


def test_other_errors_are_not_disguised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Spill, path: Path) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Spill, "_open", broken)
    predictions = Predictions.open(write(tmp_path / "p.parquet"))
    with pytest.raises(OSError, match="Input/output error"):
        evaluate_stream(predictions, EvalConfig())


def test_intervals_need_all_rows(tmp_path: Path) -> None:
    predictions = Predictions.open(write(tmp_path / "p.parquet"))
    with pytest.raises(UserError, match="4,000 are more than 10; raise --rows-in-memory"):
        evaluate_predictions(predictions, EvalConfig(resamples=5), rows_in_memory=10)
