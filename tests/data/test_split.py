from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctrkit.data import sampling, source
from ctrkit.data.sampling import Reservoir, quantiles
from ctrkit.data.split import PARTS, Part, SplitLog, open_split
from ctrkit.errors import UserError
from tests.data.small_log import data

LOG = pa.table(
    {"row": range(1000), "day": [i // 100 for i in range(1000)], "time": [5 * (i // 3) for i in range(1000)]}
)


def write(folder: Path, log: pa.Table = LOG) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(4):
        pq.write_table(log.slice(i * 250, 250), folder / f"{i}.parquet", row_group_size=60)
    return folder


def open_(path: Path, split: dict[str, Any], time: str | None = None) -> SplitLog:
    return open_split(str(path), data(path, split=split), time)


def rows(log: SplitLog, parts: Sequence[Part] = PARTS, column: str = "row") -> dict[str, list[int]]:
    found: dict[str, list[int]] = {part: [] for part in parts}
    for chunk, codes in log.stream([column], parts):
        for code, part in enumerate(PARTS):
            if part in found:
                found[part] += np.asarray(chunk.columns.column(column))[codes == code].tolist()
    return found


def test_files_of_each_part(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    pq.write_table(LOG.slice(0, 300), tmp_path / "train" / "a.parquet")
    pq.write_table(LOG.slice(300, 300), tmp_path / "train" / "b.parquet")
    pq.write_table(LOG.slice(600, 200), tmp_path / "valid.parquet")
    pq.write_table(LOG.slice(800, 200), tmp_path / "eval_7.parquet")
    log = open_(tmp_path, {"by": "files", "test": "eval_*.parquet"})
    assert rows(log) == {"train": [*range(600)], "valid": [*range(600, 800)], "test": [*range(800, 1000)]}
    assert log.rows() == 1000
    assert log.rows(["train"]) == 600
    assert len({chunk.file for chunk, _ in log.stream(["row"], ["train"])}) == 2


@pytest.mark.parametrize(
    ("split", "valid", "test"),
    [
        ({"valid": 1, "test": 1}, {8}, {9}),
        ({"valid": 2, "test": 3}, {5, 6}, {7, 8, 9}),
        ({"valid": [3], "test": [1, "2"]}, {3}, {1, 2}),
        ({"valid": [9], "test": 1}, {9}, {8}),
        ({"valid": 1, "test": [0]}, {9}, {0}),
    ],
)
@pytest.mark.parametrize("partitioned", [False, True])
def test_by_the_values_of_a_column(
    tmp_path: Path, split: dict[str, Any], valid: set[int], test: set[int], partitioned: bool
) -> None:
    if partitioned:
        for day in range(10):
            (tmp_path / f"day={day}").mkdir()
            pq.write_table(LOG.slice(day * 100, 100).drop(["day"]), tmp_path / f"day={day}" / "x.parquet")
    else:
        write(tmp_path)
    log = open_(tmp_path, {"by": "column", "column": "day", **split})
    parts = rows(log, column="day")
    assert (set(parts["valid"]), set(parts["test"])) == (valid, test)
    assert sum(map(len, parts.values())) == 1000
    assert set(parts["train"]) == set(range(10)) - valid - test
    if partitioned:  # files of other parts are not read
        assert len(list(log.stream(["row"], ["test"]))) == len(test)
        assert log.rows(["valid"]) == 100 * len(valid)


def test_by_a_column_of_texts_or_dates(tmp_path: Path) -> None:
    days = [date(2025, 3, 9 + i // 200) for i in range(1000)]  # as text, 2025-03-10 would follow 2025-03-1
    for kind in (pa.array(days), pa.array(map(str, days)), pa.array(map(str, days)).dictionary_encode()):
        log = open_(write(tmp_path, LOG.set_column(1, "day", kind)), {"by": "column", "column": "day"})
        assert rows(log) == {"train": [*range(600)], "valid": [*range(600, 800)], "test": [*range(800, 1000)]}
    log = open_(write(tmp_path), {"by": "column", "column": "day", "valid": 1, "test": ["9"]})
    assert rows(log)["test"] == [*range(900, 1000)]


KINDS = [
    pa.int64(),
    pa.float64(),
    pa.timestamp("s"),
    pa.timestamp("us", "UTC"),
    pa.date32(),
    pa.string(),
    pa.dictionary,
]


@pytest.mark.parametrize("kind", KINDS)
def test_by_time_equal_times_stay_together(tmp_path: Path, kind: pa.DataType) -> None:
    times = pa.array(LOG["time"].to_pylist(), pa.int32() if kind == pa.date32() else pa.int64())
    shuffled = np.random.default_rng(3).permutation(1000)
    if kind in (pa.string(), pa.dictionary):
        texts = [f"{value}Z" if kind == pa.string() else str(value) for value in times.cast(pa.timestamp("s"))]
        times = pa.array(texts).dictionary_encode() if kind == pa.dictionary else pa.array(texts)
    else:
        times = times.cast(kind)
    log = LOG.set_column(2, "time", times).take(shuffled)
    parts = rows(open_(write(tmp_path, log), {"by": "time", "valid": 0.1, "test": 0.2}, "time"))
    # Three rows have one time; the cuts stand before rows 699 and 798, the beginnings of their threes.
    assert {part: sorted(found) for part, found in parts.items()} == {
        "train": [*range(699)],
        "valid": [*range(699, 798)],
        "test": [*range(798, 1000)],
    }
    assert parts["train"] == [row for row in shuffled.tolist() if row < 699]  # row order is kept


def test_by_time_of_a_log_longer_than_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling.Reservoir.__init__, "__defaults__", (200,))
    parts = rows(open_(write(tmp_path), {"by": "time", "valid": 0.2, "test": 0.2}, "time"))
    assert abs(len(parts["train"]) - 600) < 120
    assert parts["train"] + parts["valid"] + parts["test"] == [*range(1000)]


def test_at_random_whatever_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = {"by": "random", "valid": 0.2, "test": 0.3, "seed": 5}
    parts = rows(open_(write(tmp_path), split))
    assert sorted(row for part in parts.values() for row in part) == [*range(1000)]
    assert abs(len(parts["valid"]) - 200) < 50
    assert abs(len(parts["test"]) - 300) < 60
    other = rows(open_(tmp_path, {**split, "seed": 6}))
    assert abs(len(set(parts["test"]) & set(other["test"])) - 90) < 40  # independent: 0.3 * 0.3
    monkeypatch.setattr(source, "CHUNK_ROWS", 13)
    assert rows(open_(tmp_path, split)) == parts


def test_a_row_without_a_time_is_named(tmp_path: Path) -> None:
    times = LOG["time"].to_pylist()
    times[777] = None
    write(tmp_path, LOG.set_column(2, "time", pa.array(times)))
    with pytest.raises(UserError, match=r"3\.parquet, row 28: time column 'time' is empty"):
        open_(tmp_path, {"by": "time"}, "time")


def test_a_column_of_too_many_values_is_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrkit.data.split._MAX_VALUES", 50)
    with pytest.raises(UserError, match="more than 50 values"):
        open_(write(tmp_path), {"by": "column", "column": "row"})


def test_reservoir_is_uniform_and_does_not_depend_on_chunks() -> None:
    stream = np.arange(10_000)
    samples = []
    for chunk in (10_000, 137, 1):
        reservoir = Reservoir(seed=1, size=500)
        for start in range(0, 10_000 if chunk > 1 else 2000, chunk):
            reservoir.add(stream[start : start + chunk])
        samples.append(reservoir.values())
    np.testing.assert_array_equal(samples[0], samples[1])
    assert len(samples[0]) == len(samples[2]) == 500
    assert abs(samples[0].mean() - 5000) < 4 * 10_000 / np.sqrt(12 * 500)
    assert np.bincount(samples[0] // 1000, minlength=10).min() > 20


def test_a_short_stream_is_kept_whole() -> None:
    reservoir = Reservoir(seed=1, size=500)
    reservoir.add(np.arange(400))
    np.testing.assert_array_equal(reservoir.values(), np.arange(400))
    assert len(Reservoir(seed=1).values()) == 0


def test_quantiles_are_values_of_the_sample() -> None:
    np.testing.assert_array_equal(
        quantiles(np.array([30, 10, 20, 40]), np.array([0.0, 0.25, 0.5, 0.99])), [10, 20, 30, 40]
    )


def test_time_may_be_a_timestamp_of_the_schema(tmp_path: Path) -> None:
    times = pa.array([datetime(2025, 3, 1 + i // 100) for i in range(1000)])
    parts = rows(open_(write(tmp_path, LOG.set_column(2, "time", times)), {"by": "time"}, "time"))
    assert parts["test"] == [*range(900, 1000)]
