"""Which rows of a log are for training, for validation and for the test, as a recipe's `data.split` says."""

import difflib
import glob
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.config.data import DataConfig, Format, SplitAtRandom, SplitByColumn, SplitByFiles, SplitByTime
from ctrkit.data.columns import decoded_type, times_of, to_numpy
from ctrkit.data.locate import SUFFIXES, exists, filesystem_of, find_files
from ctrkit.data.log_file import LogFile
from ctrkit.data.sampling import Reservoir, quantiles
from ctrkit.data.source import Chunk, ClickLog, open_log, require_columns
from ctrkit.errors import UserError
from ctrkit.raw_values import mix

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")
_MAX_VALUES = 100_000

Codes = npt.NDArray[np.int8]


class Split(Protocol):
    """Assigns rows to parts, numbered as in `PARTS`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the log that it looks at."""

    def file_part(self, file: LogFile) -> int | None:
        """Part of all rows of a file; None if its rows have to be looked at."""

    def row_parts(self, chunk: Chunk, row: int) -> Codes:
        """Part of each row of a chunk whose first row is row `row` of the log."""


@dataclass(frozen=True)
class FileSplit:
    """Each part has its own files (a partition column's folders among them)."""

    part_by_path: Mapping[str, int]
    columns: tuple[str, ...] = ()

    def file_part(self, file: LogFile) -> int | None:
        """The file's part."""
        return self.part_by_path[file.path]

    def row_parts(self, chunk: Chunk, row: int) -> Codes:
        """The same part for all rows."""
        return np.full(chunk.columns.num_rows, self.part_by_path[chunk.file], np.int8)


@dataclass(frozen=True)
class ValueSplit:
    """The rows with these values of a column validate and test, all others train."""

    column: str
    values: tuple[pa.Array, pa.Array]
    """Of the validation part and of the test part."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column."""
        return (self.column,)

    def file_part(self, file: LogFile) -> int | None:
        """Rows have to be looked at."""
        return None

    def row_parts(self, chunk: Chunk, row: int) -> Codes:
        """By the column's values."""
        column = chunk.columns.column(self.column).cast(self.values[0].type)
        valid, test = (to_numpy(pc.is_in(column, value_set=values)).astype(np.int8) for values in self.values)
        return valid + 2 * test


@dataclass(frozen=True)
class TimeSplit:
    """Validation from one time on, the test from another; equal times stay together."""

    column: str
    cuts: tuple[Any, Any]

    @property
    def columns(self) -> tuple[str, ...]:
        """The time column."""
        return (self.column,)

    def file_part(self, file: LogFile) -> int | None:
        """Rows have to be looked at."""
        return None

    def row_parts(self, chunk: Chunk, row: int) -> Codes:
        """By the time column."""
        return np.searchsorted(np.asarray(self.cuts), times_of(chunk, self.column), side="right").astype(np.int8)


@dataclass(frozen=True)
class RandomSplit:
    """Rows at random, by a hash of their place in the log."""

    valid: float
    test: float
    seed: int
    columns: tuple[str, ...] = ()

    def file_part(self, file: LogFile) -> int | None:
        """Rows have to be looked at."""
        return None

    def row_parts(self, chunk: Chunk, row: int) -> Codes:
        """By the hash of (seed, place)."""
        place_N = np.arange(row, row + chunk.columns.num_rows, dtype=np.uint64)
        uniform_N = mix(place_N ^ mix(np.array([self.seed], np.uint64))) / 2.0**64
        return (uniform_N < self.valid + self.test).astype(np.int8) + (uniform_N < self.test)


@dataclass(frozen=True)
class SplitLog:
    """A click log and how it is split."""

    log: ClickLog
    split: Split

    def stream(
        self, columns: Collection[str], parts: Sequence[Part] = PARTS, encoded: Collection[str] = ()
    ) -> Iterator[tuple[Chunk, Codes]]:
        """Chunks in row order with the part of each row; files that have none of the parts asked for are not read.

        Columns of `encoded` may come as dictionaries.
        """
        wanted = list(dict.fromkeys([*columns, *self.split.columns]))
        codes = {PARTS.index(part) for part in parts}
        row = 0
        for file in self.log.files:
            if self.split.file_part(file) in codes | {None}:
                for chunk in self.log.chunks(wanted, [file], encoded):
                    yield chunk, self.split.row_parts(chunk, row)
                    row += chunk.columns.num_rows

    def rows(self, parts: Sequence[Part] = PARTS) -> int | None:
        """Rows that `stream` reads, if the files say so without being read."""
        codes = {PARTS.index(part) for part in parts} | {None}
        known = [file.rows for file in self.log.files if self.split.file_part(file) in codes]
        return None if None in known else sum(rows for rows in known if rows is not None)


def open_split(path: str, data: DataConfig, time: str | None, needed: Collection[str] = ()) -> SplitLog:
    """Open the log at `path` and settle its split; by column or by time reads that column once.

    If `data` says so, row groups are left out of which a column of `needed`, or the split's, cannot be read.

    Raises:
        UserError: no log lies there, or the split does not fit it.
    """
    match data.split:
        case SplitByFiles():
            return _by_files(path, data, data.split, needed)
        case SplitByColumn():
            return _by_column(_open(path, data, {*needed, data.split.column}), data.split)
        case SplitByTime():
            assert time is not None, "the recipe sees to it"
            return _by_time(_open(path, data, {*needed, time}), data.split, time)
        case SplitAtRandom():
            if data.split.valid + data.split.test >= 1:
                raise UserError("data.split: valid and test together leave no row for training; lower them")
            split = RandomSplit(data.split.valid, data.split.test, data.split.seed)
            return SplitLog(_open(path, data, needed), split)


def _open(paths: str | list[str], data: DataConfig, needed: Collection[str]) -> ClickLog:
    log = open_log(paths, data.format, skip_unreadable=data.skip_unreadable)
    return log.readable(sorted(needed)) if data.skip_unreadable else log


def find_parts(path: str, format: Format, split: SplitByFiles) -> dict[Part, list[str]]:
    """What lies at `path` for each part: `train` stands for `train`, `train.parquet`, `train.csv` or a glob."""
    filesystem_of(path)  # an empty path would mean the root folder below
    root = path.rstrip("/")
    found: dict[Part, list[str]] = {}
    for part in PARTS:
        name = getattr(split, part)
        names = [name] if glob.has_magic(name) else [name, *(name + suffix for suffix in SUFFIXES)]
        found[part] = [f"{root}/{n}" for n in names if exists(f"{root}/{n}", format)]
    return found


def _by_files(path: str, data: DataConfig, split: SplitByFiles, needed: Collection[str]) -> SplitLog:
    found = find_parts(path, data.format, split)
    for part, paths in found.items():
        name = getattr(split, part)
        if not paths:
            open_log(path, data.format)  # says so if nothing is there at all
            raise UserError(
                f"{path}: no files of the {part} part ({name}, {name}.parquet, {name}.csv); "
                f"name them in data.split.{part} or split by column, time or random"
            )
        if len(paths) > 1:
            raise UserError(f"{path}: both {' and '.join(paths)} could be the {part} part; name one in data.split")
    part_by_path: dict[str, int] = {}
    for code, part in enumerate(PARTS):
        for _, info in find_files(found[part][0], data.format):
            if info.path in part_by_path:
                raise UserError(
                    f"{info.path}: is in the {PARTS[part_by_path[info.path]]} part and in the {part} part; "
                    "a model that is tested on what it was trained on proves nothing"
                )
            part_by_path[info.path] = code
    return SplitLog(_open([paths[0] for paths in found.values()], data, needed), FileSplit(part_by_path))


def _by_column(log: ClickLog, split: SplitByColumn) -> SplitLog:
    require_columns(log.schema, {split.column: "data.split.column"})
    if all(split.column in file.partition for file in log.files):
        distinct = pa.array(
            [f.partition[split.column] for f in log.files], log.schema.field(split.column).type
        ).unique()
    else:
        distinct = _distinct(log, split.column)
    values = distinct.take(pc.array_sort_indices(distinct)).drop_null()
    valid, test = _held_out(values.to_pylist(), split)
    codes = dict.fromkeys(valid, 1) | dict.fromkeys(test, 2)
    if all(split.column in file.partition for file in log.files):
        return SplitLog(log, FileSplit({f.path: codes.get(f.partition[split.column], 0) for f in log.files}))
    return SplitLog(log, ValueSplit(split.column, (pa.array(valid, values.type), pa.array(test, values.type))))


def _distinct(log: ClickLog, column: str) -> pa.Array:
    distinct = pa.array([], decoded_type(log.schema.field(column).type))
    for chunk in log.chunks([column]):
        distinct = pa.concat_arrays([distinct, chunk.columns.column(column).cast(distinct.type).unique()]).unique()
        if len(distinct) > _MAX_VALUES:
            raise UserError(
                f"column '{column}' has more than {_MAX_VALUES:,} values; to split by it, name it columns.time and "
                'write split = { by = "time" }'
            )
    return distinct


def _held_out(values: list[Any], split: SplitByColumn) -> tuple[list[Any], list[Any]]:
    """Values of the validation part and of the test part: the listed ones, or so many of the last that are left."""
    test = _listed(values, split.test, split.column)
    if test is None:
        listed = _listed(values, split.valid, split.column) or []
        test = [value for value in values if value not in listed][-int(split.test) :]  # type: ignore[arg-type]
    valid = _listed(values, split.valid, split.column)
    if valid is None:
        valid = [value for value in values if value not in test][-int(split.valid) :]  # type: ignore[arg-type]
    if set(valid) & set(test):
        raise UserError(f"data.split: {split.column} {(set(valid) & set(test)).pop()!r} is in both valid and test")
    if len(values) - len(valid) - len(test) < 1 or not valid or not test:
        raise UserError(
            f"data.split: column '{split.column}' has {len(values)} values, {len(valid)} for valid and {len(test)} for "
            "test: each part needs at least one"
        )
    return valid, test


def _listed(values: list[Any], wanted: list[str | int] | int, column: str) -> list[Any] | None:
    if isinstance(wanted, int):
        return None
    by_text = {str(value): value for value in values}
    for item in wanted:
        if str(item) not in by_text:
            near = difflib.get_close_matches(str(item), by_text, n=1) or [", ".join(list(by_text)[-5:])]
            raise UserError(f"data.split: column '{column}' has no value {item!r}; it has {near[0]}")
    return [by_text[str(item)] for item in wanted]


def _by_time(log: ClickLog, split: SplitByTime, time: str) -> SplitLog:
    require_columns(log.schema, {time: "columns.time"})
    if split.valid + split.test >= 1:
        raise UserError("data.split: valid and test together leave no row for training; lower them")
    sample = Reservoir(seed=0)
    for chunk in log.chunks([time]):
        sample.add(times_of(chunk, time))
    times_N = sample.values()
    if len(times_N) == 0:
        raise UserError(f"{log.files[0].path}: the log has no rows")
    first, second = quantiles(times_N, np.array([1 - split.valid - split.test, 1 - split.test]))
    return SplitLog(log, TimeSplit(time, (first, second)))
