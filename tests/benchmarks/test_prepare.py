"""The benchmark of prepare: logs of two sizes hold the same ids, and what is measured is a whole prepare."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import prepare as benchmark


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {name: (spec, min(ids, 50), stored) for name, (spec, ids, stored) in benchmark.COLUMNS.items()}
    monkeypatch.setattr(benchmark, "COLUMNS", columns)
    monkeypatch.setattr(benchmark, "ROW_GROUP", 400)
    monkeypatch.setattr(benchmark, "FILE_ROWS", 1000)


@pytest.mark.usefixtures("small")
def test_a_log_has_the_rows_row_groups_and_columns_that_it_says(tmp_path: Path) -> None:
    benchmark.make_log(tmp_path / "log", 2500)
    files = [pq.ParquetFile(file) for file in sorted((tmp_path / "log").iterdir())]
    groups = [[f.metadata.row_group(i).num_rows for i in range(f.num_row_groups)] for f in files]
    assert groups == [[400, 400, 200], [400, 400, 200], [400, 100]]
    log = pa.concat_tables([file.read() for file in files])
    wanted = {feature.source for feature in benchmark.SCHEMA.features} | set(benchmark.SCHEMA.special_columns())
    assert set(log.column_names) == wanted
    assert len(benchmark.SCHEMA.features) == 10
    assert log.schema.field("device_id").type == pa.string()
    assert (np.diff(log["time"].to_numpy()) >= 0).all()
    missing = {name for name in log.column_names if log[name].null_count}
    assert missing == set(benchmark.MAY_BE_MISSING)


@pytest.mark.usefixtures("small")
def test_logs_of_two_sizes_have_the_same_ids(tmp_path: Path) -> None:
    ids = []
    for rows in (1000, 3000):
        benchmark.make_log(tmp_path / str(rows), rows)
        found = benchmark.prepare_log(tmp_path / str(rows), tmp_path / f"{rows}.prepared")
        assert found["rows"] == rows
        ids.append(found["ids"])
    of_columns = [min(count, 50) + 2 for _, count, _ in benchmark.COLUMNS.values()]
    assert ids == [sum(of_columns)] * 2  # each table has the row of the missing and of the unseen, too


def test_a_measurement_leaves_nothing_behind_and_a_small_disk_is_said(tmp_path: Path) -> None:
    found = benchmark.measure(3000, tmp_path)
    assert (found["rows"], found["peak_gib"] > 0.05, found["seconds"] > 0) == (3000, True, True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match=r"bytes free, .* give another --folder"):
        benchmark.measure(10**15, tmp_path)
