"""One file of a raw log, Parquet or CSV: what it says of itself, and its rows as record batches."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ctrkit.data.locate import Format, format_of, partition_of
from ctrkit.errors import UserError

_CSV_BLOCK_BYTES = 8 << 20  # column types of a CSV file are inferred from its first block
_CSV_NULLS = ["", "NULL", "null", "\\N", "NaN", "nan"]


@dataclass(frozen=True)
class LogFile:
    """One file of a log."""

    path: str
    filesystem: Any = field(repr=False)
    size: int
    modified: int
    """Nanoseconds since 1970; 0 where the filesystem does not say."""
    schema: pa.Schema
    """Of the columns that stand in the file."""
    partition: Mapping[str, Any]
    """Values of the columns that stand in its path (`day=2025-03-03`)."""
    row_group_rows: tuple[int, ...] | None
    """None for CSV, which has none."""
    row_groups: tuple[int, ...] | None = None
    """Those that are read, if not all."""

    @property
    def rows(self) -> int | None:
        """Rows that are read; None for CSV, which does not say."""
        if self.row_group_rows is None:
            return None
        read = range(len(self.row_group_rows)) if self.row_groups is None else self.row_groups
        return sum(self.row_group_rows[i] for i in read)

    def pieces(self) -> list["LogFile"]:
        """Each row group of a Parquet file by itself; a CSV file is one piece."""
        if self.row_group_rows is None:
            return [self]
        return [replace(self, row_groups=(i,)) for i in range(len(self.row_group_rows))]

    def batches(self, columns: Sequence[str], schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        """Read `columns`, of the types in `schema`, in row order, at most `rows` rows at a time.

        Raises:
            UserError: the file is damaged, or a value does not fit its column's type.
        """
        inside = [name for name in columns if name not in self.partition]
        done = 0
        try:
            for batch in self._read(inside or self.schema.names[:1], schema, rows):
                arrays = [
                    pa.repeat(pa.scalar(self.partition[name], schema.field(name).type), batch.num_rows)
                    if name in self.partition
                    else self._as_type(batch.column(name), name, schema.field(name).type)
                    for name in columns
                ]
                yield pa.RecordBatch.from_arrays(arrays, names=list(columns))
                done += batch.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(_unreadable(self.path, self.row_group_rows is None, error, done)) from error

    def _as_type(self, array: pa.Array, name: str, kind: pa.DataType) -> pa.Array:
        try:
            return array if array.type == kind else array.cast(kind)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{self.path}: column '{name}' is {array.type} here and {kind} elsewhere, which cannot hold it; write "
                f"it with one type ({error})"
            ) from error

    def _read(self, columns: Sequence[str], schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        if self.row_group_rows is None:
            types = {name: schema.field(name).type for name in columns}
            with _open_csv(self.filesystem, self.path, types) as reader:
                for batch in reader:
                    yield from (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))
        else:
            with _open_parquet(self.filesystem, self.path) as reader:
                yield from reader.iter_batches(rows, self.row_groups, columns=list(columns))


def open_file(filesystem: Any, info: Any, format: Format, partition_types: Mapping[str, pa.DataType]) -> LogFile:
    """Open a file: read the footer of Parquet, the first block of CSV.

    Raises:
        UserError: it is empty or damaged.
    """
    path = str(info.path)
    if info.size == 0:
        raise UserError(f"{path}: the file is empty; write it again or remove it")
    is_csv = (format_of(path) if format == "auto" else format) == "csv"
    try:
        if is_csv:
            with _open_csv(filesystem, path, {}) as reader:
                schema, row_group_rows = reader.schema, None
        else:
            with _open_parquet(filesystem, path) as reader:
                schema, metadata = reader.schema_arrow, reader.metadata
                row_group_rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        names = schema.names  # decodes them, which fails on a header that is no UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(_unreadable(path, is_csv, error, 0)) from error
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: column '{repeated[0]}' stands in it twice; rename one of them")
    partition = {
        key: value if value is None or partition_types[key] != pa.int64() else int(value)
        for key, value in partition_of(path).items()
    }
    return LogFile(path, filesystem, info.size, info.mtime_ns or 0, schema, partition, row_group_rows)


def _open_parquet(filesystem: Any, path: str) -> Any:
    # Pre-buffering keeps what it has read until the file is closed. Where the writer wrote no checksums, a damaged page
    # may be read as other values; where it did, it is found.
    return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=False, page_checksum_verification=True)


def _open_csv(filesystem: Any, path: str, types: Mapping[str, pa.DataType]) -> Any:
    return pacsv.open_csv(
        filesystem.open_input_stream(path),
        pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False),  # threads lose the number of a bad row
        convert_options=pacsv.ConvertOptions(
            include_columns=list(types), column_types=types, null_values=_CSV_NULLS, strings_can_be_null=True
        ),
    )


def _unreadable(path: str, is_csv: bool, error: Exception, row: int) -> str:
    """What a person needs to know of Arrow's complaint."""
    first_line = str(error).strip().split("\n")[0].split("Invalid: ")[-1]
    if isinstance(error, UnicodeDecodeError):
        return f"{path}: not written as UTF-8 ({first_line}); convert it, as `iconv -f latin1 -t utf-8` does"
    if is_csv:
        return f"{path}: {first_line}; correct that row, or write the log as Parquet, which states its types"
    after = f" after row {row:,}" if row else ""
    return f"{path}: cannot be read as Parquet{after}, truncated or damaged ({first_line}); write the file again"
