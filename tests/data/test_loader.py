"""Batches: every row once, in an order that (seed, epoch) gives, with the values that the file holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.data.batch import Batch
from ctrkit.data.columns import GROUP, LABEL, WEIGHT
from ctrkit.data.loader import Loader, Share
from ctrkit.data.rows import RowGroups, Rows
from ctrkit.errors import UserError
from ctrkit.schema import Schema

FEATURES: dict[str, dict[str, Any]] = {
    "row": {"side": "context", "kind": "dense"},
    "user": {"side": "user"},
    "recent": {"side": "user", "kind": "sequence", "table": "item", "max_len": 3},
    "item": {"side": "item"},
    "tags": {"side": "item", "kind": "sequence", "max_len": 2},
    "price": {"side": "item", "kind": "dense"},
}
GROUP_ROWS = (7, 1, 12, 5, 9)
"""Row groups of the first and second file: three and two."""
ROWS = sum(GROUP_ROWS)


def schema(names: Sequence[str] = tuple(FEATURES), **columns: Any) -> Schema:
    return Schema.from_mapping({n: FEATURES[n] for n in names}, label="click", group="user_id", **columns)


def prepared(rows: int = ROWS) -> pa.Table:
    """Rows of a prepared log; the feature `row` numbers them."""
    rng = np.random.default_rng(3)

    def lists(longest: int) -> pa.Array:
        return pa.array(
            [rng.integers(0, 50, rng.integers(0, longest + 1)).tolist() for _ in range(rows)], pa.list_(pa.int32())
        )

    return pa.table(
        {
            LABEL: rng.integers(0, 2, rows).astype(np.float32),
            GROUP: [f"u{i % 5}" for i in range(rows)],
            WEIGHT: (rng.random(rows) + 0.5).astype(np.float32),
            "row": np.arange(rows, dtype=np.float32),
            "user": rng.integers(0, 2**31, rows).astype(np.int32),
            "recent": lists(3),
            "item": rng.integers(0, 50, rows).astype(np.int32),
            "tags": lists(2),
            "price": rng.normal(size=rows).astype(np.float32),
        }
    )


def write(path: Path, table: pa.Table, groups: Sequence[int]) -> Path:
    start = 0
    with pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True) as writer:
        for rows in groups:
            writer.write_table(table.slice(start, rows))
            start += rows
    assert start == table.num_rows
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, table = tmp_path_factory.mktemp("log"), prepared()
    first = sum(GROUP_ROWS[:3])
    return [
        write(folder / "part-0.parquet", table.slice(0, first), GROUP_ROWS[:3]),
        write(folder / "part-1.parquet", table.slice(first), GROUP_ROWS[3:]),
    ]


def rows_of(batches: Sequence[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.dense_BD[:, 0]]


def values_of(batch: Batch) -> list[dict[str, Any]]:
    """A batch as one dictionary an impression."""
    jagged = batch.sparse.to_dict() if len(batch) else {}
    lists = {name: [t.tolist() for t in jagged[name].to_dense()] for name in jagged}
    return [
        {
            **{name: values[i] for name, values in lists.items()},
            "dense": batch.dense_BD[i].tolist(),
            "label": batch.label_B[i].item(),
            "weight": batch.weight_B[i].item(),
        }
        for i in range(len(batch))
    ]


@given(
    batch_size=st.integers(1, 40),
    shuffle_rows=st.integers(0, 45),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_an_epoch_has_every_row_once_and_can_be_entered_anywhere(
    files: list[Path], batch_size: int, shuffle_rows: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    loader = Loader(schema(), files, batch_size=batch_size, shuffle_rows=shuffle_rows, seed=seed)
    batches = list(loader.epoch(epoch))
    assert sorted(rows_of(batches)) == list(range(ROWS))
    assert loader.num_rows == ROWS
    assert len(batches) == loader.num_batches
    assert all(len(batch) == batch_size for batch in batches[:-1])
    skip = data.draw(st.integers(0, len(batches)))
    tail = list(loader.epoch(epoch, skip_batches=skip))
    assert [values_of(b) for b in tail] == [values_of(b) for b in batches[skip:]]


def test_the_order_of_the_log_is_kept_without_shuffling(files: list[Path]) -> None:
    assert rows_of(list(Loader(schema(), files, batch_size=4).epoch(2))) == list(range(ROWS))


def test_order_is_a_function_of_seed_and_epoch(files: list[Path]) -> None:
    def order(seed: int, epoch: int, batch_size: int = 4) -> list[int]:
        loader = Loader(schema(), files, batch_size=batch_size, shuffle_rows=16, seed=seed)
        list(loader.epoch(5))  # what was read before does not matter
        return rows_of(list(loader.epoch(epoch)))

    assert order(0, 0) == order(0, 0)
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len(set(map(tuple, orders))) == 9


def test_a_buffer_mixes_row_groups(tmp_path: Path) -> None:
    file = write(tmp_path / "log.parquet", prepared(400), [40] * 10)
    loader = Loader(schema(), [file], batch_size=50, shuffle_rows=400)
    batches = list(loader.epoch())
    assert all(len(set(batch.origin_B.tolist())) >= 7 for batch in batches)
    # a buffer of the whole log is a uniform permutation: rows far from their place, no trend left
    rows = np.array(rows_of(batches))
    assert abs(np.corrcoef(rows, np.arange(400))[0, 1]) < 0.2
    assert np.abs(np.diff(rows)).mean() == pytest.approx(400 / 3, rel=0.15)


def test_a_small_buffer_still_permutes_the_row_groups(tmp_path: Path) -> None:
    file = write(tmp_path / "log.parquet", prepared(400), [40] * 10)
    loader = Loader(schema(), [file], batch_size=40, shuffle_rows=40)
    firsts = [int(batch.origin_B[0]) for batch in loader.epoch()]
    assert sorted(firsts) == list(range(10))
    assert firsts != list(range(10))


def test_in_log_order_only_the_buffer_is_permuted(tmp_path: Path) -> None:
    file = write(tmp_path / "log.parquet", prepared(400), [40] * 10)
    loader = Loader(schema(), [file], batch_size=40, shuffle_rows=80, in_log_order=True)
    buffers = np.array(rows_of(list(loader.epoch())), dtype=np.int64).reshape(5, 80)
    for i, rows in enumerate(buffers):
        assert sorted(rows) == list(range(80 * i, 80 * (i + 1)))
        assert abs(np.corrcoef(rows, np.arange(80))[0, 1]) < 0.4
    assert not np.array_equal(buffers[0], np.array(rows_of(list(loader.epoch(1))), dtype=np.int64)[:80])


@pytest.mark.parametrize("shuffle_rows", [0, 20])
def test_values_land_in_the_right_impression(files: list[Path], shuffle_rows: int) -> None:
    loader = Loader(schema(weight="importance"), files, batch_size=8, shuffle_rows=shuffle_rows)
    expected = prepared().to_pylist()
    found = [(row, values) for b in loader.epoch() for row, values in zip(rows_of([b]), values_of(b), strict=True)]
    assert len(found) == ROWS
    for row, values in found:
        raw = expected[row]
        assert values == {
            "user": [raw["user"]],
            "recent": raw["recent"],
            "item": [raw["item"]],
            "tags": raw["tags"],
            "dense": [raw["row"], raw["price"]],
            "label": raw[LABEL],
            "weight": raw[WEIGHT],
        }


def test_a_log_without_weights_weighs_every_impression_alike(tmp_path: Path) -> None:
    file = write(tmp_path / "log.parquet", prepared().drop_columns([WEIGHT]), GROUP_ROWS)
    batch = next(Loader(schema(), [file], batch_size=ROWS).epoch())
    assert batch.weight_B.tolist() == [1.0] * ROWS


def test_large_ids_are_exact(tmp_path: Path) -> None:
    # float32 holds integers up to 2^24: 2^24 + 1 would become 2^24
    ids = np.array([0, 2**24, 2**24 + 1, 2**24 + 3, 2**31 - 2, 2**31 - 1], np.int32)
    table = pa.table(
        {
            LABEL: np.zeros(6, np.float32),
            "user": ids,
            "recent": pa.array([[int(i), int(i) - 1] if i else [] for i in ids], pa.list_(pa.int32())),
        }
    )
    file = write(tmp_path / "log.parquet", table, [6])
    loader = Loader(schema(["user", "recent"]), [file], batch_size=6, shuffle_rows=6)
    jagged = next(loader.epoch()).sparse.to_dict()
    assert sorted(jagged["user"].values().tolist()) == ids.tolist()
    assert sorted(jagged["recent"].values().tolist()) == sorted(int(i) - d for i in ids if i for d in (0, 1))


def test_origin_names_file_and_row_group(files: list[Path]) -> None:
    loader = Loader(schema(), files, batch_size=5, shuffle_rows=20)
    ends = np.cumsum(GROUP_ROWS)
    for batch in loader.epoch():
        for row, origin in zip(rows_of([batch]), batch.origin_B.tolist(), strict=True):
            group = int(np.searchsorted(ends, row, side="right"))
            assert loader.origin(origin) == ((files[0], group) if group < 3 else (files[1], group - 3))


def test_no_sparse_features(files: list[Path]) -> None:
    batches = list(Loader(schema(["row", "price"]), files, batch_size=10).epoch())
    assert rows_of(batches) == list(range(ROWS))
    assert all(list(batch.sparse.keys()) == [] and batch.dense_BD.shape == (len(batch), 2) for batch in batches)


def test_no_dense_features(files: list[Path]) -> None:
    batches = list(Loader(schema(["recent", "item"]), files, batch_size=10).epoch())
    assert [row["item"][0] for b in batches for row in values_of(b)] == prepared()["item"].to_pylist()
    assert all(batch.dense_BD.shape == (len(batch), 0) for batch in batches)


def test_only_sequences(files: list[Path]) -> None:
    batches = list(Loader(schema(["tags", "recent"]), files, batch_size=10, shuffle_rows=20).epoch())
    found = sorted((row["tags"], row["recent"]) for b in batches for row in values_of(b))
    table = prepared()
    assert found == sorted(zip(table["tags"].to_pylist(), table["recent"].to_pylist(), strict=True))


def _damage(path: Path, group: int, column: str) -> None:
    """Flip one bit in the middle of a column chunk."""
    metadata = pq.ParquetFile(path).metadata.row_group(group)
    names = [metadata.column(i).path_in_schema for i in range(metadata.num_columns)]
    chunk = metadata.column(names.index(column))
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("column", ["price", "item", LABEL])
def test_a_damaged_row_group_is_named(tmp_path: Path, column: str) -> None:
    file = write(tmp_path / "log.parquet", prepared(300), [100] * 3)
    _damage(file, 1, column)
    loader = Loader(schema(), [file], batch_size=100)
    with pytest.raises(UserError, match=r"log\.parquet, row group 1: cannot be read .*prepare"):
        list(loader.epoch())


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "log.parquet", prepared(300), [300])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"log\.parquet: cannot be read .*prepare"):
        Loader(schema(), [file], batch_size=100)


# --- several processes


def shares(files: Sequence[Path], processes: int, *, shards: int = 4, **settings: Any) -> list[list[Batch]]:
    """The batches of each process."""
    loaders = [
        Loader(schema(), files, share=Share.of_process(rank, processes, shards), **settings)
        for rank in range(processes)
    ]
    assert len({loader.num_batches for loader in loaders}) == 1
    return [list(loader.epoch(1)) for loader in loaders]


@given(
    batch_size=st.integers(1, 40),
    shuffle_rows=st.integers(1, 45),
    processes=st.sampled_from([1, 2, 4]),
    in_log_order=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_processes_together_see_the_batches_that_one_sees(
    files: list[Path], batch_size: int, shuffle_rows: int, processes: int, in_log_order: bool
) -> None:
    """Whatever the number of processes: so a run may go on with another number."""
    how = {"batch_size": batch_size, "shuffle_rows": shuffle_rows, "in_log_order": in_log_order}
    (alone,) = shares(files, 1, **how)
    together = zip(*shares(files, processes, **how), strict=True)
    for batch, parts in zip(alone, together, strict=True):
        assert rows_of([batch]) == rows_of(parts)
        assert [values for part in parts for values in values_of(part)] == values_of(batch)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 4 // processes  # a row a shard
    assert sorted(rows_of(alone)) == list(range(ROWS))


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are read from now on."""
    read: list[int] = []
    original = RowGroups.read

    def noted(self: RowGroups, index: int) -> Rows:
        read.append(index)
        return original(self, index)

    monkeypatch.setattr(RowGroups, "read", noted)
    return read


def test_a_process_reads_its_own_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "log.parquet", prepared(400), [40] * 10)
    loader = Loader(schema(), [file], batch_size=40, shuffle_rows=400, share=Share.of_process(1, 2, 2))
    read = reads(monkeypatch)
    rows = rows_of(list(loader.epoch()))
    assert len(read) == len(set(read)) == 5
    assert {row // 40 for row in rows} == set(read)
    assert len(rows) == 200


def test_what_is_skipped_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "log.parquet", prepared(400), [40] * 10)
    loader = Loader(schema(), [file], batch_size=10, shuffle_rows=80, seed=4)
    read = reads(monkeypatch)
    assert len(list(loader.epoch(0, skip_batches=26))) == 14
    assert len(read) == 4


def test_parts_of_the_rows_follow_each_other(files: list[Path]) -> None:
    loaders = [Loader(schema(), files, batch_size=4, part=(index, 3)) for index in range(3)]
    assert [row for loader in loaders for row in rows_of(list(loader.epoch()))] == list(range(ROWS))
    assert max(loader.num_rows for loader in loaders) - min(loader.num_rows for loader in loaders) <= 1


def test_shards_that_cannot_be_dealt_evenly() -> None:
    with pytest.raises(UserError, match=r"3 processes cannot share 8 shards evenly.*train\.shards"):
        Share.of_process(0, 3, 8)


# --- unreadable row groups


@pytest.mark.parametrize("shuffle_rows", [0, 150])
def test_an_unreadable_row_group_is_left_out_and_counted_if_asked(tmp_path: Path, shuffle_rows: int) -> None:
    file = write(tmp_path / "log.parquet", prepared(300), [100] * 3)
    _damage(file, 1, "price")
    said: list[str] = []
    loader = Loader(schema(), [file], batch_size=40, shuffle_rows=shuffle_rows, on_unreadable=said.append)
    for _ in range(2):
        batches = list(loader.epoch())
        assert sorted(rows_of(batches)) == [*range(100), *range(200, 300)]
        assert len(batches) == loader.num_batches
    assert loader.unreadable == {(file, 1): 200}
    (message,) = said
    assert "log.parquet, row group 1: cannot be read" in message
    assert "left out" in message


# --- negatives left out


def test_negatives_stay_by_chance_and_weigh_as_many_as_they_stand_for(tmp_path: Path) -> None:
    table = prepared(4000)
    file = write(tmp_path / "log.parquet", table, [500] * 8)
    loader = Loader(schema(), [file], batch_size=400, shuffle_rows=1000, negative_rate=0.25)
    batches = list(loader.epoch())
    label, weight = np.array(table[LABEL]), np.array(table[WEIGHT])
    found = rows_of(batches)
    assert len(set(found)) == len(found)
    assert {row for row in range(4000) if label[row] == 1} <= set(found)
    kept = [row for row in found if label[row] == 0]
    assert len(kept) == pytest.approx(0.25 * (label == 0).sum(), rel=0.1)
    for batch in batches:
        for row, value in zip(rows_of([batch]), batch.weight_B.tolist(), strict=True):
            assert value == pytest.approx(weight[row] * (1 if label[row] else 4), rel=1e-6)
    other = rows_of(list(loader.epoch(1)))
    assert set(other) != set(found)  # other ones in each epoch
    again = Loader(schema(), [file], batch_size=400, shuffle_rows=1000, negative_rate=0.25)
    assert rows_of(list(again.epoch(0, skip_batches=3))) == rows_of(batches[3:])


def test_processes_leave_out_the_same_negatives(tmp_path: Path) -> None:
    file = write(tmp_path / "log.parquet", prepared(1000), [100] * 10)
    how: dict[str, Any] = {"batch_size": 64, "shuffle_rows": 300, "negative_rate": 0.3}
    (alone,) = shares([file], 1, **how)
    together = zip(*shares([file], 4, **how), strict=True)
    for batch, parts in zip(alone, together, strict=True):
        assert rows_of([batch]) == rows_of(parts)
