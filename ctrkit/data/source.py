"""A raw click log, Parquet or CSV, on any filesystem: its files, its schema, and its rows as a stream of chunks."""

import fnmatch
import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from ctrkit.errors import UserError

Format = Literal["auto", "parquet", "csv"]

CHUNK_ROWS = 1 << 18
SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".csv.gz": "csv"}
_CSV_BLOCK_BYTES = 8 << 20  # column types of a CSV file are inferred from its first block
_CSV_NULLS = ["", "NULL", "null", "\\N", "NaN", "nan"]
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


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
    found = [item for path in ([paths] if isinstance(paths, str) else paths) for item in _find(path, format)]
    keys = _partition_keys([info.path for _, info in found])
    files = [_open_file(filesystem, info, format, keys) for filesystem, info in found]
    return ClickLog(tuple(files), _common_schema(files, keys))


def exists(path: str, format: Format = "auto") -> bool:
    """Whether a log lies at `path`: at least one file of a known format."""
    filesystem, inner = filesystem_of(path)
    return bool(_list(filesystem, inner, format))


def filesystem_of(path: str) -> tuple[Any, str]:
    """The filesystem of a path or URI (pyarrow's, or else fsspec's), and the path inside it.

    Raises:
        UserError: no filesystem is known for the URI, or its package is not installed.
    """
    if "://" not in path:
        return pafs.LocalFileSystem(), path
    try:
        return pafs.FileSystem.from_uri(path)  # type: ignore[no-any-return]
    except (pa.ArrowException, OSError):
        pass
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"{path}: no filesystem opens it ({error}); install the fsspec package for it") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), inner


def _find(path: str, format: Format) -> list[tuple[Any, Any]]:
    filesystem, inner = filesystem_of(path)
    found = _list(filesystem, inner, format)
    if found:
        return [(filesystem, info) for info in found]
    info = filesystem.get_file_info(inner)
    if glob.has_magic(inner):
        raise UserError(f"{path}: no Parquet or CSV file matches; quote the pattern if the shell expands it")
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"{path}: no such file or folder; check data.path, which is relative to where you are")
    if info.type == pafs.FileType.Directory:
        raise UserError(f"{path}: the folder has no file that ends in {', '.join(SUFFIXES)}; set data.format if it has")
    raise UserError(f"{path}: neither Parquet nor CSV by its name; set data.format = 'parquet' or 'csv'")


def _list(filesystem: Any, path: str, format: Format) -> list[Any]:
    """File infos below a file, folder or glob, by path; hidden files and those of no known format left out."""
    root, pattern = _split_glob(path)
    try:
        infos = filesystem.get_file_info([root])
        if infos[0].type == pafs.FileType.Directory:
            infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise UserError(f"{path}: cannot be listed ({error})") from error
    files = [info for info in infos if info.type == pafs.FileType.File]
    if pattern is not None:
        files = [info for info in files if _matches(info.path, pattern)]
    elif len(files) == 1 and files[0].path == root:
        return files if format != "auto" or format_of(root) else []
    below = len(PurePosixPath(root).parts)
    visible = [i for i in files if not any(p[0] in "._" for p in PurePosixPath(i.path).parts[below:])]
    return sorted((i for i in visible if format != "auto" or format_of(i.path)), key=lambda info: str(info.path))


def _split_glob(path: str) -> tuple[str, str | None]:
    """The folder that a glob starts from, and the glob; the path itself and None if it is no glob."""
    if not glob.has_magic(path):
        return path.rstrip("/") or "/", None
    parts = PurePosixPath(path).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return str(PurePosixPath(*parts[:first])), path


def _matches(path: str, pattern: str) -> bool:
    """Whether the path, or a folder that it lies in, matches the glob."""
    wanted, parts = PurePosixPath(pattern).parts, PurePosixPath(path).parts
    return len(parts) >= len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def format_of(path: str) -> str | None:
    """`parquet` or `csv` by the file's name; None if it says neither."""
    return next((format for suffix, format in SUFFIXES.items() if path.lower().endswith(suffix)), None)


def _partition_keys(paths: Sequence[str]) -> dict[str, pa.DataType]:
    """Columns that stand in the folders' names, with int64 if all their values are whole numbers, else string."""
    values: dict[str, list[Any]] = {}
    for path in paths:
        for key, value in _partition_of(path).items():
            values.setdefault(key, []).append(value)
    incomplete = [key for key, seen in values.items() if len(seen) < len(paths)]
    if incomplete:
        raise UserError(f"only some files lie in folders named {incomplete[0]}=...; give a path that holds one layout")
    return {key: pa.int64() if all(map(_is_integer, seen)) else pa.string() for key, seen in values.items()}


def _is_integer(value: str | None) -> bool:
    return value is None or (value.lstrip("-").isdecimal() and str(int(value)) == value)


def _partition_of(path: str) -> dict[str, str | None]:
    pairs = [part.split("=", 1) for part in PurePosixPath(path).parts[:-1] if "=" in part]
    return {key: None if value == _HIVE_NULL else unquote(value) for key, value in pairs}


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
        for key, value in _partition_of(path).items()
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


def unchanged_since(files: Sequence[LogFile]) -> list[tuple[str, int, int]]:
    """(path, size, time of change) of each file: what a fingerprint of the input is made of."""
    return [(file.path, file.size, file.modified) for file in files]
