"""A raw click log: its files, its schema, and its rows as a stream of chunks."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from ctrkit.config.data import Format
from ctrkit.data.ahead import read_ahead
from ctrkit.data.locate import find_files, partition_of
from ctrkit.data.log_file import LogFile, Unreadable, is_refused, open_file
from ctrkit.errors import UserError

CHUNK_ROWS = 1 << 18
_SAMPLE_PLACES = 10
_OPENING_THREADS = 16


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
    unreadable: tuple[Unreadable, ...] = ()
    """What was left out of it."""

    @property
    def rows(self) -> int | None:
        """Rows of all files, if they say so without being read."""
        known = [file.rows for file in self.files if file.rows is not None]
        return sum(known) if len(known) == len(self.files) else None

    def chunks(
        self, columns: Sequence[str], files: Sequence[LogFile] | None = None, encoded: Collection[str] = ()
    ) -> Iterator[Chunk]:
        """Read `columns` of the files, in row order, at most `CHUNK_ROWS` rows at a time, a little ahead of the caller.

        Columns of `encoded` may come as dictionaries: see `LogFile.batches`.

        Raises:
            UserError: a file turns out to be damaged, or its values not of the log's types.
        """
        yield from read_ahead(self._chunks(columns, self.files if files is None else files, encoded))

    def _chunks(self, columns: Sequence[str], files: Sequence[LogFile], encoded: Collection[str]) -> Iterator[Chunk]:
        for file in files:
            for first_row, run in file.runs():
                row = first_row
                for batch in run.batches(columns, self.schema, CHUNK_ROWS, encoded):
                    if batch.num_rows:
                        yield Chunk(batch, file.path, row)
                        row += batch.num_rows

    def readable(self, columns: Sequence[str]) -> "ClickLog":
        """The log without the row groups of which any of these columns cannot be read; reads them all. CSV has none.

        Raises:
            UserError: nothing is left.
        """
        files, unreadable = [], list(self.unreadable)
        for file in self.files:
            damaged = list(file.unreadable([name for name in columns if name in self.schema.names]))
            unreadable += damaged
            if damaged:
                assert file.row_group_rows is not None
                lost = {found.row_group for found in damaged}
                file = replace(file, row_groups=tuple(set(range(len(file.row_group_rows))) - lost))
            if file.row_groups != ():
                files.append(file)
        if not files:
            raise UserError(f"no row group of the log can be read; the first is {unreadable[0]}")
        return replace(self, files=tuple(files), unreadable=tuple(unreadable))

    def sample(self, rows: int) -> pa.Table:
        """About `rows` rows from places spread evenly over the log: the beginnings of row groups, or of CSV files."""
        pieces = [piece for file in self.files for piece in file.pieces()]
        row_group_rows = (self.rows or 0) / len(pieces) or rows
        count = min(len(pieces), max(_SAMPLE_PLACES, int(rows / row_group_rows) + 1))
        chosen = [pieces[i * len(pieces) // count] for i in range(count)]
        held = sum(piece.rows or rows for piece in chosen)
        batches: list[pa.RecordBatch] = []
        for piece in chosen:
            wanted = rows * (piece.rows or rows) // held + 1
            for batch in piece.batches(self.schema.names, self.schema, CHUNK_ROWS):
                batches.append(batch.slice(0, wanted))
                wanted -= batches[-1].num_rows
                if wanted == 0:
                    break
        return pa.Table.from_batches(batches, pa.schema([(f.name, f.type) for f in self.schema]))


def open_log(paths: str | Sequence[str], format: Format = "auto", *, skip_unreadable: bool = False) -> ClickLog:
    """Open the log that lies at a path or at several: files, folders, globs or URIs.

    Args:
        paths: where it lies.
        format: of its files; by their names if "auto".
        skip_unreadable: leave out files that are empty or damaged, as `ClickLog.unreadable` then says.

    Raises:
        UserError: nothing lies there, a file is empty or damaged, or the files disagree about a column's type.
    """
    found = [item for path in ([paths] if isinstance(paths, str) else paths) for item in find_files(path, format)]
    keys = _partition_keys([info.path for _, info in found])

    def opened(item: tuple[Any, Any]) -> LogFile | Unreadable:
        try:
            return open_file(item[0], item[1], format, keys)
        except UserError as error:
            if not skip_unreadable or (error.__cause__ is not None and is_refused(error.__cause__)):
                raise
            return Unreadable(str(item[1].path), None, None, str(error).removeprefix(f"{item[1].path}: "))

    with ThreadPoolExecutor(_OPENING_THREADS) as pool:  # of remote files each footer is a round trip
        items = list(pool.map(opened, found))
    files = [item for item in items if isinstance(item, LogFile)]
    unreadable = tuple(item for item in items if isinstance(item, Unreadable))
    if not files:
        raise UserError(f"no file of the log can be read; the first is {unreadable[0]}")
    return ClickLog(tuple(files), _common_schema(files, keys), unreadable)


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


def _common_schema(files: Sequence[LogFile], keys: dict[str, pa.DataType]) -> pa.Schema:
    """One type for each column: the widest of the files' numbers; a column of nulls only takes the others' type.

    Of dictionaries that differ, as those of pandas do by the number of their values, it is that of the values.
    """
    fields: dict[str, pa.DataType] = dict(keys)
    first: dict[str, str] = {}
    for file in files:
        for name, kind in zip(file.schema.names, file.schema.types, strict=True):
            if name in keys:
                continue
            if name not in fields or fields[name] == kind:
                fields[name], first[name] = kind, first.get(name, file.path)
                continue
            fields[name] = _wider(name, (fields[name], first[name]), (kind, file.path))
    return pa.schema([(n, pa.string() if kind == pa.null() else kind) for n, kind in fields.items()])


def _wider(name: str, one: tuple[pa.DataType, str], other: tuple[pa.DataType, str]) -> pa.DataType:
    schemas = [
        pa.schema([(name, kind.value_type if pa.types.is_dictionary(kind) else kind)]) for kind, _ in (one, other)
    ]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except pa.ArrowException as error:
        raise UserError(
            f"column '{name}' is {one[0]} in {one[1]}, but {other[0]} in {other[1]}; write it with one type"
        ) from error


def require_columns(schema: pa.Schema, wanted: Mapping[str, str], where: str = "the log") -> None:
    """Refuse a log that lacks a column; `wanted` says for each which key of the recipe names it."""
    for column, key in wanted.items():
        if column not in schema.names:
            near = difflib.get_close_matches(column, schema.names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"its columns are {', '.join(schema.names)}"
            raise UserError(f"{where} has no column '{column}', which {key} names; {hint}")
