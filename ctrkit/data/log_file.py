"""One file of a raw log, Parquet, CSV or TSV: what it says of itself, and its rows as record batches."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ctrkit.config.data import Format
from ctrkit.data.locate import PACKINGS, format_of, partition_of
from ctrkit.errors import UserError

_CSV_BLOCK_BYTES = 8 << 20  # column types of a CSV file are inferred from its first block
# Bytes of a column read at a time: without, all of a row group's, which may be a whole file's. Of remote files each
# read is a round trip.
_LOCAL_BUFFER, _REMOTE_BUFFER = 1 << 16, 1 << 23
_CHECKED_ROWS = 1 << 16
_DICTIONARY_ROWS = 1 << 16  # rows of a row group for which its dictionaries pay
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What Arrow raises of a file that it cannot read."""
_HEADER_BYTES = 1 << 16
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_CSV_NULLS = ["", "NULL", "null", "\\N", "NaN", "nan"]


@dataclass(frozen=True)
class Unreadable:
    """A row group that cannot be read, or a whole file."""

    file: str
    row_group: int | None
    """From 0; None for a file whose footer cannot be read."""
    rows: int | None
    """None where nothing says how many."""
    why: str

    def __str__(self) -> str:
        where = self.file if self.row_group is None else f"{self.file}, row group {self.row_group}"
        return f"{where}{'' if self.rows is None else f' ({self.rows:,} rows)'}: {self.why}"


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
    """None for text, which has none."""
    delimiter: str | None
    """Of the columns of text; None for Parquet."""
    dictionaries: frozenset[str] = frozenset()
    """Columns of texts that every row group holds as a dictionary and indices, and may be read so."""
    row_groups: tuple[int, ...] | None = None
    """Those that are read, if not all."""

    @property
    def rows(self) -> int | None:
        """Rows that are read; None for text, which does not say."""
        if self.row_group_rows is None:
            return None
        read = range(len(self.row_group_rows)) if self.row_groups is None else self.row_groups
        return sum(self.row_group_rows[i] for i in read)

    def pieces(self) -> list["LogFile"]:
        """Each row group of a Parquet file by itself; a text is one piece."""
        if self.row_group_rows is None:
            return [self]
        read = range(len(self.row_group_rows)) if self.row_groups is None else self.row_groups
        return [replace(self, row_groups=(i,)) for i in read]

    def runs(self) -> Iterator[tuple[int, "LogFile"]]:
        """Row groups that follow one another, with the row of the file that each run begins with."""
        if self.row_group_rows is None or self.row_groups is None:
            yield 0, self
            return
        first_row = [0, *accumulate(self.row_group_rows)]
        for _, run in groupby(enumerate(self.row_groups), lambda pair: pair[1] - pair[0]):
            groups = tuple(group for _, group in run)
            yield first_row[groups[0]], replace(self, row_groups=groups)

    def batches(
        self, columns: Sequence[str], schema: pa.Schema, rows: int, encoded: Collection[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        """Read `columns`, of the types in `schema`, in row order, at most `rows` rows at a time.

        Texts of `encoded` come as dictionary and indices where the file holds them so: no text is built for a row.

        Raises:
            UserError: the file is damaged (file and row group named), or a value does not fit its column's type.
        """
        inside = [name for name in columns if name not in self.partition] or self.schema.names[:1]
        done = 0
        try:
            for batch in self._read(inside, schema, rows, self.dictionaries & set(encoded)):
                arrays = [
                    pa.repeat(pa.scalar(self.partition[name], schema.field(name).type), batch.num_rows)
                    if name in self.partition
                    else self._as_type(batch.column(name), name, schema.field(name).type)
                    for name in columns
                ]
                yield pa.RecordBatch.from_arrays(arrays, names=list(columns))
                done += batch.num_rows
            if self.rows is not None and done != self.rows:
                why, done = f"{done:,} rows, its footer says {self.rows:,}", 0  # any row group may be the short one
                raise pa.ArrowInvalid(why)
        except UNREADABLE as error:
            found = next(self.unreadable(inside, after=done), None)
            where = f"; it is row group {found.row_group} (from 0) of {len(self.row_group_rows or ())}" if found else ""
            raise UserError(_unreadable(self.path, self.row_group_rows is None, error, done) + where) from error

    def unreadable(self, columns: Sequence[str], after: int = 0) -> Iterator[Unreadable]:
        """The row groups of a Parquet file of which a column cannot be read, those of the first `after` rows left out.

        Raises:
            UserError: the system does not let the file be read, which is no damage.
        """
        inside = [name for name in columns if name not in self.partition] or self.schema.names[:1]
        end = 0
        for piece in self.pieces() if self.row_group_rows is not None else []:
            assert piece.row_groups is not None
            assert piece.rows is not None
            end += piece.rows
            # twice, lest a network's hiccup pass for damage
            if end > after and piece._damage(inside) and (why := piece._damage(inside)):
                yield Unreadable(self.path, piece.row_groups[0], piece.rows, why)

    def _damage(self, columns: Sequence[str]) -> str:
        """Why it cannot be read; empty if it can."""
        done = 0
        try:
            for batch in self._read(columns, self.schema, _CHECKED_ROWS):
                batch.validate(full=True)  # texts are UTF-8, lists and dictionaries within their bounds
                done += batch.num_rows
        except UNREADABLE as error:
            if is_refused(error):
                raise UserError(_unreadable(self.path, False, error, done)) from error
            return _first_line(error)
        return "" if done == self.rows else f"{done:,} rows, its footer says {self.rows:,}"

    def _as_type(self, array: pa.Array, name: str, kind: pa.DataType) -> pa.Array:
        if array.type == kind or (name in self.dictionaries and pa.types.is_dictionary(array.type)):
            return array
        try:
            return array.cast(kind)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{self.path}: column '{name}' is {array.type} here and {kind} elsewhere, which cannot hold it; write "
                f"it with one type ({error})"
            ) from error

    def _read(
        self, columns: Sequence[str], schema: pa.Schema, rows: int, encoded: Collection[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        if self.delimiter is not None:
            types = {name: schema.field(name).type for name in columns}
            with _open_text(self.filesystem, self.path, types, self.delimiter) as reader:
                for batch in reader:
                    yield from (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))
        else:
            with _open_parquet(self.filesystem, self.path, encoded) as reader:
                yield from reader.iter_batches(rows, self.row_groups, columns=list(columns))


def open_file(filesystem: Any, info: Any, format: Format, partition_types: Mapping[str, pa.DataType]) -> LogFile:
    """Open a file: read the footer of Parquet, the first block of text.

    Raises:
        UserError: it is empty or damaged.
    """
    path = str(info.path)
    if info.size == 0:
        raise UserError(f"{path}: the file is empty; write it again or remove it")
    delimiter = _DELIMITERS.get(str(format_of(path) if format == "auto" else format))
    try:
        if delimiter is not None:
            with _open_text(filesystem, path, {}, delimiter) as reader:
                schema, row_group_rows, dictionaries = reader.schema, None, frozenset[str]()
        else:
            with _open_parquet(filesystem, path) as reader:
                schema, metadata = reader.schema_arrow, reader.metadata
                row_group_rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
                dictionaries = _dictionaries(schema, metadata)
        names = schema.names  # decodes them, which fails on a header that is no UTF-8
    except UNREADABLE as error:
        if delimiter is not None:
            _check_separator(filesystem, path, delimiter)
        raise UserError(_unreadable(path, delimiter is not None, error, 0)) from error
    if delimiter is not None and len(names) == 1:
        _check_separator(filesystem, path, delimiter)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: column '{repeated[0]}' stands in it twice; rename one of them")
    partition = {
        key: value if value is None or partition_types[key] != pa.int64() else int(value)
        for key, value in partition_of(path).items()
    }
    return LogFile(
        path,
        filesystem,
        info.size,
        info.mtime_ns or 0,
        schema,
        partition,
        row_group_rows,
        delimiter,
        dictionaries,
    )


def _open_parquet(filesystem: Any, path: str, encoded: Collection[str] = ()) -> Any:
    # Pre-buffering keeps what it has read until the file is closed. Where the writer wrote no checksums, a damaged page
    # may be read as other values; where it did, it is found.
    return pq.ParquetFile(
        path,
        filesystem=filesystem,
        pre_buffer=False,
        buffer_size=_LOCAL_BUFFER if isinstance(filesystem, pafs.LocalFileSystem) else _REMOTE_BUFFER,
        page_checksum_verification=True,
        read_dictionary=sorted(encoded),
    )


def _dictionaries(schema: pa.Schema, metadata: Any) -> frozenset[str]:
    """Columns of texts that all row groups hold as dictionaries; none if row groups are small.

    A batch ends where a dictionary does. Where a row group has none, Arrow makes one for the file, which grows.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if metadata.num_rows < _DICTIONARY_ROWS * len(groups):
        return frozenset()
    texts = {name for name, kind in zip(schema.names, schema.types, strict=True) if kind == pa.string()}
    places = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path in texts]
    return frozenset(
        metadata.schema.column(i).path for i in places if all(group.column(i).has_dictionary_page for group in groups)
    )


def _open_text(filesystem: Any, path: str, types: Mapping[str, pa.DataType], delimiter: str) -> Any:
    return pacsv.open_csv(
        _open_stream(filesystem, path),
        pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False),  # threads lose the number of a bad row
        # what writes tabs writes no quotes: in a text that begins with one they would swallow rows
        pacsv.ParseOptions(delimiter=delimiter, quote_char='"' if delimiter == "," else False),
        convert_options=pacsv.ConvertOptions(
            include_columns=list(types), column_types=types, null_values=_CSV_NULLS, strings_can_be_null=True
        ),
    )


def _open_stream(filesystem: Any, path: str) -> Any:
    """The text of a file, unpacked by its name's ending, in letters of any size."""
    packed = next((name for ending, name in PACKINGS.items() if path.lower().endswith(ending)), None)
    return filesystem.open_input_stream(path, compression=packed)


def _check_separator(filesystem: Any, path: str, delimiter: str) -> None:
    """Refuse a file whose header has another separator than its own: all of it would be one column."""
    with _open_stream(filesystem, path) as stream:
        header = stream.read(_HEADER_BYTES).partition(b"\n")[0]
    marks = [mark for mark in _SEPARATORS if mark.encode() in header] if delimiter.encode() not in header else []
    if marks:
        known = next((format for format, mark in _DELIMITERS.items() if mark == marks[0]), None)
        other = f'call it .{known}, or set data.format = "{known}"' if known else "write it with commas"
        raise UserError(
            f"{path}: its columns are separated by {_SEPARATORS[marks[0]]}; {other}, with decimal points, or "
            "write it as Parquet"
        )


def _unreadable(path: str, is_text: bool, error: Exception, row: int) -> str:
    """What a person needs to know of Arrow's complaint."""
    first_line = _first_line(error)
    if isinstance(error, UnicodeDecodeError):
        return f"{path}: not written as UTF-8 ({first_line}); convert it, as `iconv -f latin1 -t utf-8` does"
    if is_text:
        return f"{path}: {first_line}; correct that row, or write the log as Parquet, which states its types"
    after = f" after row {row:,}" if row else ""
    return f"{path}: cannot be read as Parquet{after}, truncated or damaged ({first_line}); write the file again"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split("Invalid: ")[-1]


def is_refused(error: BaseException) -> bool:
    """Whether the system did not let a file be read, as for want of a permission: that is no damage."""
    return isinstance(error, OSError) and error.errno is not None
