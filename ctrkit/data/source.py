"""A raw click log, Parquet or CSV, on any filesystem: its files, its schema, and its rows as a stream of chunks."""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as ds

from ctrkit.data.locate import Format, find_files, format_of, partition_of
from ctrkit.errors import UserError

CHUNK_ROWS = 1 << 18
_CSV_BLOCK_BYTES = 8 << 20  # column types of a CSV file are inferred from its first block
_CSV_NULLS = ["", "NULL", "null", "\\N", "NaN", "nan"]
_SAMPLE_PLACES = 10


@dataclass(frozen=True)
class LogFile:
    """One file of a log."""

    path: str
    size: int
    modified: int
    """Nanoseconds since 1970; 0 where the filesystem does not say."""
    fragment: Any = field(repr=False)
    partition: dict[str, Any]
    """Values of the columns that stand in its path (`day=2025-03-03`)."""
    rows: int | None
    """None for CSV, which does not say."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file."""

    columns: pa.RecordBatch
    file: str
    first_row: int
    """Its place in the file, from 0."""

    def place(self, row: int) -> str:
        """Where row `row` of the chunk is, for a message."""
        return f"{self.file}, row {self.first_row + row + 1:,}"


@dataclass(frozen=True)
class ClickLog:
    """Files with one schema, in the order of their paths; columns from `key=value` folders included."""

    files: tuple[LogFile, ...]
    schema: pa.Schema

    @property
    def rows(self) -> int | None:
        """Rows of all files, if they say so without being read."""
        known = [file.rows for file in self.files if file.rows is not None]
        return sum(known) if len(known) == len(self.files) else None

    def chunks(self, columns: Sequence[str], files: Sequence[LogFile] | None = None) -> Iterator[Chunk]:
        """Read `columns` of the files, in row order, at most `CHUNK_ROWS` rows at a time.

        Raises:
            UserError: a file turns out to be damaged, or its values not of the log's types.
        """
        for file in self.files if files is None else files:
            first_row = 0
            for batch in _coalesced(self._batches(file, columns)):
                yield Chunk(batch, file.path, first_row)
                first_row += batch.num_rows

    def sample(self, rows: int) -> pa.Table:
        """About `rows` rows from places spread evenly over the log: the beginnings of row groups, or of CSV files."""
        pieces = [piece for file in self.files for piece in _pieces(file)]
        row_group_rows = (self.rows or 0) / len(pieces) or rows
        count = min(len(pieces), max(_SAMPLE_PLACES, int(rows / row_group_rows) + 1))
        chosen = [pieces[i * len(pieces) // count] for i in range(count)]
        held = sum(piece.rows or rows for piece in chosen)
        batches: list[pa.RecordBatch] = []
        for piece in chosen:
            wanted = rows * (piece.rows or rows) // held + 1
            for batch in self._batches(piece, self.schema.names):
                batches.append(batch.slice(0, wanted))
                wanted -= batches[-1].num_rows
                if wanted == 0:
                    break
        return pa.Table.from_batches(batches, pa.schema([(f.name, f.type) for f in self.schema]))

    def _batches(self, file: LogFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        inside = [name for name in columns if name not in file.partition]
        row = 0
        try:
            # Without the partition columns the fragment cannot know them; they are added below.
            schema = pa.schema([f for f in self.schema if f.name not in file.partition])
            for batch in file.fragment.to_batches(
                schema=schema, columns=inside, batch_size=CHUNK_ROWS, batch_readahead=2, fragment_readahead=1
            ):
                arrays = [
                    _repeated(file.partition[name], self.schema.field(name).type, batch.num_rows)
                    if name in file.partition
                    else batch.column(name)
                    for name in columns
                ]
                row += batch.num_rows
                yield pa.RecordBatch.from_arrays(arrays, names=list(columns))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(_unreadable(file.path, file.rows is None, error, row)) from error


def _pieces(file: LogFile) -> list[LogFile]:
    """The row groups of a Parquet file, as files; a CSV file is one piece."""
    if file.rows is None:
        return [file]
    return [
        replace(file, fragment=piece, rows=piece.row_groups[0].num_rows) for piece in file.fragment.split_by_row_group()
    ]


def _repeated(value: Any, kind: pa.DataType, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), rows)


def _coalesced(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Small batches (a row group bounds them) put together, so that the work a chunk costs is spread over many rows."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if waiting and rows + batch.num_rows > CHUNK_ROWS:
            yield _concatenated(waiting)
            waiting, rows = [], 0
        if batch.num_rows:
            waiting.append(batch)
            rows += batch.num_rows
    if waiting:
        yield _concatenated(waiting)


def _concatenated(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def open_log(paths: str | Sequence[str], format: Format = "auto") -> ClickLog:
    """Open the log that lies at a path or at several: files, folders, globs or URIs.

    Raises:
        UserError: nothing lies there, a file is empty or damaged, or the files disagree about a column's type.
    """
    found = [item for path in ([paths] if isinstance(paths, str) else paths) for item in find_files(path, format)]
    keys = _partition_keys([info.path for _, info in found])
    files = [_open_file(filesystem, info, format, keys) for filesystem, info in found]
    return ClickLog(tuple(files), _common_schema(files, keys))


def _partition_keys(paths: Sequence[str]) -> dict[str, pa.DataType]:
    """Columns that stand in the folders' names, with int64 if all their values are whole numbers, else string."""
    values: dict[str, list[Any]] = {}
    for path in paths:
        for key, value in partition_of(path).items():
            values.setdefault(key, []).append(value)
    incomplete = [key for key, seen in values.items() if len(seen) < len(paths)]
    if incomplete:
        raise UserError(f"only some files lie in folders named {incomplete[0]}=...; give a path that holds one layout")
    return {key: pa.int64() if all(map(_is_integer, seen)) else pa.string() for key, seen in values.items()}


def _is_integer(value: str | None) -> bool:
    return value is None or (value.lstrip("-").isdecimal() and str(int(value)) == value)


def _open_file(filesystem: Any, info: Any, format: Format, keys: dict[str, pa.DataType]) -> LogFile:
    path = str(info.path)
    if info.size == 0:
        raise UserError(f"{path}: the file is empty; write it again or remove it")
    kind = format_of(path) if format == "auto" else format
    reader = _csv_format() if kind == "csv" else _parquet_format()
    try:
        fragment = reader.make_fragment(path, filesystem)
        names = fragment.physical_schema.names  # reads the footer, or the first block of a CSV file
        rows = fragment.metadata.num_rows if kind == "parquet" else None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(_unreadable(path, kind == "csv", error, 0)) from error
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: column '{repeated[0]}' stands in it twice; rename one of them")
    partition = {
        key: value if value is None or keys[key] != pa.int64() else int(value)
        for key, value in partition_of(path).items()
    }
    return LogFile(path, info.size, info.mtime_ns or 0, fragment, partition, rows)


def _parquet_format() -> Any:
    # Without checksums (not every writer writes them) a damaged page may be read as other values.
    return ds.ParquetFileFormat(
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    )


def _csv_format() -> Any:
    options = ds.CsvFragmentScanOptions(
        convert_options=pacsv.ConvertOptions(null_values=_CSV_NULLS, strings_can_be_null=True),
        read_options=pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
    )
    return ds.CsvFileFormat(default_fragment_scan_options=options)


def _common_schema(files: Sequence[LogFile], keys: dict[str, pa.DataType]) -> pa.Schema:
    """One type for each column: the widest of the files' numbers; a column of nulls only takes the others' type."""
    fields: dict[str, pa.DataType] = dict(keys)
    first: dict[str, str] = {}
    for file in files:
        for name, kind in zip(file.fragment.physical_schema.names, file.fragment.physical_schema.types, strict=True):
            if name in keys:
                continue
            if name not in fields or fields[name] == kind:
                fields[name], first[name] = kind, first.get(name, file.path)
                continue
            fields[name] = _wider(name, (fields[name], first[name]), (kind, file.path))
    return pa.schema([(n, pa.string() if kind == pa.null() else kind) for n, kind in fields.items()])


def _wider(name: str, one: tuple[pa.DataType, str], other: tuple[pa.DataType, str]) -> pa.DataType:
    schemas = [pa.schema([(name, kind)]) for kind, _ in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except pa.ArrowException as error:
        raise UserError(
            f"column '{name}' is {one[0]} in {one[1]}, but {other[0]} in {other[1]}; write it with one type"
        ) from error


def _unreadable(path: str, is_csv: bool, error: Exception, row: int) -> str:
    """What a person needs to know of Arrow's complaint."""
    first_line = str(error).strip().split("\n")[0].split("Invalid: ")[-1]
    if is_csv:
        return f"{path}: {first_line}; correct that row, or write the log as Parquet, which states its types"
    after = f" after row {row:,}" if row else ""
    return f"{path}: cannot be read as Parquet{after}, truncated or damaged ({first_line}); write the file again"


def require_columns(schema: pa.Schema, wanted: Mapping[str, str], where: str = "the log") -> None:
    """Refuse a log that lacks a column; `wanted` says for each which key of the recipe names it."""
    for column, key in wanted.items():
        if column not in schema.names:
            near = difflib.get_close_matches(column, schema.names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"its columns are {', '.join(schema.names)}"
            raise UserError(f"{where} has no column '{column}', which {key} names; {hint}")
