"""What the adapters share: find raw files, read CSV strictly, sort on disk, write the three parts."""

from __future__ import annotations

import gzip
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ctrkit.errors import UserError

Ints = npt.NDArray[np.int64]

PARTS = ("train", "valid", "test")
BLOCK_BYTES = 1 << 25
ROW_GROUP_ROWS = 1 << 16


def raw_file(source: Path, *names: str, origin: str) -> Path:
    """The first of these names that ``source`` holds; ``origin`` says where the data set is to be had.

    Raises UserError that names the missing file.
    """
    for name in names:
        if (source / name).is_file():
            return source / name
    also = f" (nor {' nor '.join(names[1:])})" if names[1:] else ""
    raise UserError(f"{source / names[0]}: no such file{also}; it is part of {origin}: put the official files there")


def read_csv(
    path: Path,
    types: Mapping[str, pa.DataType],
    *,
    names: Sequence[str] | None = None,
    delimiter: str = ",",
    nulls: Sequence[str] = ("",),
    required: Collection[str] = (),
    progress: bool = True,
) -> Iterator[pa.Table]:
    """Stream a CSV file, gzipped or not, as tables of the columns in ``types``, in that order; empty fields are null.

    ``names`` are the column names of a file without a header. Raises UserError with file and line number at a line of
    the wrong number of fields, a value that is not of its type or an empty ``required`` field, and at a header without
    a wanted column.
    """
    header = 0 if names else 1
    names = names or _header(path, delimiter)
    if missing := [name for name in types if name not in names]:
        raise UserError(
            f"{path}: line 1: no column {', '.join(map(repr, missing))}; the header names {', '.join(names)}"
        )
    malformed: list[pc.InvalidRow] = []
    rows = 0

    def remember(row: pc.InvalidRow) -> str:
        malformed.append(row)
        return "skip"

    try:
        with (
            tqdm(unit=" rows", unit_scale=True, desc=path.name, disable=None if progress else True) as bar,
            pc.open_csv(
                path,
                # One thread: only then does Arrow number the rows it refuses.
                pc.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names, skip_rows=header),
                pc.ParseOptions(delimiter=delimiter, invalid_row_handler=remember),
                pc.ConvertOptions(
                    column_types=types, include_columns=list(types), null_values=list(nulls), strings_can_be_null=True
                ),
            ) as reader,
        ):
            for batch in reader:
                if malformed:
                    break
                for name in required:
                    if batch[name].null_count:
                        row = header + rows + np.flatnonzero(batch[name].is_null())[0] + 1
                        raise UserError(f"{path}: line {_line(path, row)}: {name} is empty; mend or remove that line")
                rows += batch.num_rows
                bar.update(batch.num_rows)
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        number = re.search(r"Row #(\d+)", str(error))
        where = f"line {_line(path, int(number[1]))}: " if number else ""
        raise UserError(f"{path}: {where}{error}; mend or remove that line") from error
    if malformed:
        row = malformed[0]
        raise UserError(
            f"{path}: line {_line(path, row.number)}: {row.actual_columns} fields where {row.expected_columns} belong: "
            f"{row.text[:80]!r}; mend or remove that line"
        )


def _header(path: Path, delimiter: str) -> list[str]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8-sig") as lines:
        return [name.strip() for name in str(lines.readline()).split(delimiter)]


def _line(path: Path, row: int) -> int:
    """The line at which row number ``row`` stands: Arrow numbers from 1, without blank lines."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        filled = (number for number, line in enumerate(lines, 1) if line.strip(b"\r\n"))
        return next((number for count, number in enumerate(filled, 1) if count == row), row)


class Buckets(AbstractContextManager["Buckets"]):
    """Rows on disk by a small integer key: a log larger than memory can be joined or sorted bucket by bucket."""

    def __init__(self, directory: Path) -> None:
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=directory, prefix=".buckets-")))
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def add(self, table: pa.Table, key: Ints) -> None:
        """Append row i to the bucket ``key[i]``; within a bucket rows keep their order."""
        order = np.argsort(key, kind="stable")
        keys, begin = np.unique(key[order], return_index=True)
        table = table.take(pa.array(order))
        for bucket, first, last in zip(keys.tolist(), begin, [*begin[1:], len(key)], strict=True):
            if bucket not in self._writers:
                writer = pa.ipc.new_stream(
                    # Arrow's own format: many small appends cost far less than in Parquet.
                    self._folder / f"{bucket}.arrow",
                    table.schema,
                    options=pa.ipc.IpcWriteOptions(compression="lz4"),
                )
                self._writers[bucket] = self._stack.enter_context(writer)
            self._writers[bucket].write_table(table.slice(first, last - first))

    def filled(self) -> list[int]:
        """The keys of the buckets that have rows, ascending."""
        return sorted(self._writers)

    def read(self, key: int) -> pa.Table:
        """The rows of one filled bucket; nothing can be added to it afterwards."""
        self._writers[key].close()
        with pa.ipc.open_stream(self._folder / f"{key}.arrow") as reader:
            return reader.read_all().combine_chunks()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class PartWriter(AbstractContextManager["PartWriter"]):
    """Writes train.parquet, valid.parquet and test.parquet; a part that got no rows by the end is a UserError."""

    def __init__(self, target: Path, origin: str) -> None:
        self.rows = dict.fromkeys(PARTS, 0)
        self._target, self._origin = target, origin
        self._stack = ExitStack()
        self._writers: dict[str, pq.ParquetWriter] = {}

    def write(self, part: str, table: pa.Table) -> None:
        """Append rows to a part."""
        if not table.num_rows:
            return
        if part not in self._writers:
            writer = pq.ParquetWriter(self._target / f"{part}.parquet", table.schema, compression="zstd")
            self._writers[part] = self._stack.enter_context(writer)
        self._writers[part].write_table(table, row_group_size=ROW_GROUP_ROWS)
        self.rows[part] += table.num_rows

    def write_days(self, hours: Buckets) -> None:
        """Write buckets by hour, each sorted by time: the last day is test, the day before it valid, the rest train."""
        days = sorted({hour // 24 for hour in hours.filled()})
        for hour in hours.filled():
            table = hours.read(hour).sort_by("timestamp")
            self.write("test" if hour // 24 == days[-1] else "valid" if hour // 24 in days[-2:] else "train", table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if error is None and (empty := [part for part in PARTS if not self.rows[part]]):
            raise UserError(
                f"{self._origin}: the {' and '.join(empty)} part has no rows; are the raw files whole? ({self.rows})"
            )


def lookup(values: Ints, ids: Ints) -> Ints:
    """Row of each value in ``ids`` (unique, any order), -1 where it is not there."""
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids, values, sorter=order), len(ids) - 1)
    row = order[place]
    return np.where(ids[row] == values, row, -1)


def preceding(group: Ints, time: Ints, event_group: Ints, event_time: Ints, limit: int) -> tuple[Ints, Ints]:
    """For each query, the last ``limit`` events of its group before its time, newest first.

    ``group`` and ``time`` [Q] are queries; events [E] must be sorted by (group, time). Events of the query's own time
    are not before it. Returns list offsets [Q+1] and the flat event rows.
    """
    start = int(min(time.min(initial=0), event_time.min(initial=0)))
    time, event_time = time - start, event_time - start
    span = int(max(time.max(initial=0), event_time.max(initial=0))) + 1
    names, query = np.unique(np.concatenate([event_group, group]), return_inverse=True)
    event, query = query[: len(event_group)], query[len(event_group) :]
    assert len(names) * span < 2**62, "group and time do not fit one key"
    key = event * span + event_time
    end = np.searchsorted(key, query * span + time)
    count = np.minimum(end - np.searchsorted(key, query * span), limit)
    offsets = np.concatenate([[0], np.cumsum(count)])
    flat = np.repeat(end - 1 + offsets[:-1], count) - np.arange(offsets[-1])
    return offsets, flat


def lists(offsets: Ints, values: pa.Array) -> pa.ListArray:
    """A list column from offsets and flat values."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
