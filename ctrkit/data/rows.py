"""Decoded rows of a prepared log, by their place in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ctrkit.data.columns import LABEL, TEACHER, WEIGHT
from ctrkit.errors import UserError
from ctrkit.schema import Schema, SequenceFeature


@dataclass(frozen=True)
class Rows:
    """Decoded rows: R impressions, S single-valued sparse features, D dense features, L a sequence's max_len."""

    single_RS: npt.NDArray[np.int32]
    sequences: dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]
    """By feature: rows_RL, padded with zeros, and length_R."""
    dense_RD: npt.NDArray[np.float32]
    label_R: npt.NDArray[np.float32]
    weight_R: npt.NDArray[np.float32]
    origin_R: npt.NDArray[np.int32]
    """Index of the row group."""
    teachers_RT: npt.NDArray[np.float32]
    """Logits of T other models."""

    def __len__(self) -> int:
        return len(self.label_R)

    def take(self, index: npt.NDArray[np.int64] | slice) -> "Rows":
        """Some of the rows."""
        return Rows(
            self.single_RS[index],
            {name: (rows[index], length[index]) for name, (rows, length) in self.sequences.items()},
            self.dense_RD[index],
            self.label_R[index],
            self.weight_R[index],
            self.origin_R[index],
            self.teachers_RT[index],
        )


@dataclass(frozen=True)
class RowGroup:
    """A row group of a prepared log."""

    file: int
    number: int
    """Within the file."""
    num_rows: int


class RowGroups:
    """The row groups of some prepared files.

    Args:
        schema: of the log.
        files: in row order.
        teachers: columns of other models' scores that are read too.
        label_rate: share of the labels that is told; the others are NaN.
        seed: of which ones.

    Raises:
        UserError: a file cannot be read.
    """

    def __init__(
        self,
        schema: Schema,
        files: Sequence[Path],
        teachers: Sequence[str] = (),
        *,
        label_rate: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.single = [f.name for f in schema.sparse_features if not isinstance(f, SequenceFeature)]
        self.sequences = {f.name: f.max_len for f in schema.sparse_features if isinstance(f, SequenceFeature)}
        self.dense = [f.name for f in schema.dense_features]
        self.teachers = list(teachers)
        self._label_rate, self._seed = label_rate, seed
        self.paths = list(files)
        self._files = [_open(path) for path in files]
        self._has_weight = bool(files) and WEIGHT in self._files[0].schema_arrow.names
        self.groups = [
            RowGroup(file, number, opened.metadata.row_group(number).num_rows)
            for file, opened in enumerate(self._files)
            for number in range(opened.metadata.num_row_groups)
        ]

    @property
    def num_rows(self) -> int:
        """Of all row groups."""
        return sum(group.num_rows for group in self.groups)

    def read(self, index: int) -> Rows:
        """Decode a row group; only the columns that a batch has are read.

        Raises:
            UserError: it cannot be read, or a page is not what was written; names file and row group.
        """
        group = self.groups[index]
        columns = [LABEL, *([WEIGHT] if self._has_weight else []), *self.single, *self.sequences, *self.dense]
        teachers = [TEACHER + name for name in self.teachers]
        try:
            table = self._files[group.file].read_row_group(group.number, columns=[*columns, *teachers])
        except (pa.ArrowException, OSError) as error:
            path = self.paths[group.file]
            raise UserError(
                f"{path}, row group {group.number}: cannot be read ({error}); run `ctrkit prepare` again"
            ) from error
        rows, label_R = table.num_rows, table[LABEL].to_numpy()
        if self._label_rate < 1:
            told_R = np.random.default_rng((self._seed, index)).random(rows) < self._label_rate
            label_R = np.where(told_R, label_R, np.float32(np.nan))
        return Rows(
            single_RS=_stack(table, self.single, np.int32),
            sequences={name: _padded(table[name], length) for name, length in self.sequences.items()},
            dense_RD=_stack(table, self.dense, np.float32),
            label_R=label_R,
            weight_R=table[WEIGHT].to_numpy() if self._has_weight else np.ones(rows, np.float32),
            origin_R=np.full(rows, index, np.int32),
            teachers_RT=_stack(table, teachers, np.float32),
        )


class OrderedRows:
    """Rows of a log whose row groups stand in some order, by their place in that order.

    The row group that was read last is kept, so that ranges that follow each other read each row group once.

    Args:
        groups: the log.
        order: indices of all its row groups.
    """

    def __init__(self, groups: RowGroups, order: npt.NDArray[np.int64]) -> None:
        self._groups, self._order = groups, order
        sizes = np.array([groups.groups[index].num_rows for index in order], dtype=np.int64)
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        self._last: tuple[int, Rows | UserError] | None = None

    def read(self, start: int, stop: int) -> tuple[Rows, npt.NDArray[np.int64], list[tuple[int, int, UserError]]]:
        """The rows in [start, stop).

        Returns:
            The rows that can be read; their places, counted from `start`; and what cannot: row group, rows, why.
        """
        parts, places, failed = [], [], []
        for at, low, high in self._segments(start, stop):
            index = int(self._order[at])
            if self._last is None or self._last[0] != index:
                self._last = (index, self._read(index))
            rows, first = self._last[1], int(self._starts[at])
            if isinstance(rows, UserError):
                failed.append((index, high - low, rows))
            else:
                parts.append(rows.take(slice(low - first, high - first)))
                places.append(np.arange(low - start, high - start))
        return concatenate(parts), np.concatenate([np.zeros(0, np.int64), *places]), failed

    def _segments(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Row groups by their place in the order, and what of them lies in [start, stop)."""
        at = int(np.searchsorted(self._ends, start, side="right"))
        while at < len(self._order) and self._starts[at] < stop:
            yield at, max(start, int(self._starts[at])), min(stop, int(self._ends[at]))
            at += 1

    def _read(self, index: int) -> Rows | UserError:
        try:
            return self._groups.read(index)
        except UserError as error:
            return error


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Rows one after another."""
    if not parts:
        return _NONE
    if len(parts) == 1:
        return parts[0]
    return Rows(
        np.concatenate([p.single_RS for p in parts]),
        {
            name: (
                np.concatenate([p.sequences[name][0] for p in parts]),
                np.concatenate([p.sequences[name][1] for p in parts]),
            )
            for name in parts[0].sequences
        },
        np.concatenate([p.dense_RD for p in parts]),
        np.concatenate([p.label_R for p in parts]),
        np.concatenate([p.weight_R for p in parts]),
        np.concatenate([p.origin_R for p in parts]),
        np.concatenate([p.teachers_RT for p in parts]),
    )


_NONE = Rows(
    np.zeros((0, 0), np.int32),
    {},
    np.zeros((0, 0), np.float32),
    np.zeros(0, np.float32),
    np.zeros(0, np.float32),
    np.zeros(0, np.int32),
    np.zeros((0, 0), np.float32),
)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `ctrkit prepare` again") from error


def _stack(table: pa.Table, names: Sequence[str], dtype: Any) -> npt.NDArray[Any]:
    out = np.empty((table.num_rows, len(names)), dtype)
    for i, name in enumerate(names):
        out[:, i] = table[name].to_numpy()
    return out


def _padded(column: pa.ChunkedArray, max_len: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    lists = column.combine_chunks()
    length_R = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int32)
    padded_RL = np.zeros((len(lists), max_len), np.int32)
    padded_RL[np.arange(max_len) < length_R[:, None]] = lists.flatten().to_numpy()
    return padded_RL, length_R
