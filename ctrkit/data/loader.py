"""Prepared row groups to shuffled batches, without a Python loop over rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.data.batch import Batch
from ctrkit.data.columns import LABEL, WEIGHT
from ctrkit.errors import UserError
from ctrkit.schema import Schema, SequenceFeature


@dataclass(frozen=True)
class _Rows:
    """Decoded rows: R impressions, S single-valued sparse features, D dense features, L a sequence's max_len."""

    single_RS: npt.NDArray[np.int32]
    sequences: dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]
    """By feature: rows_RL, padded with zeros, and length_R."""
    dense_RD: npt.NDArray[np.float32]
    label_R: npt.NDArray[np.float32]
    weight_R: npt.NDArray[np.float32]
    origin_R: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.label_R)

    def take(self, index: npt.NDArray[np.int64] | slice) -> "_Rows":
        return _Rows(
            self.single_RS[index],
            {name: (rows[index], length[index]) for name, (rows, length) in self.sequences.items()},
            self.dense_RD[index],
            self.label_R[index],
            self.weight_R[index],
            self.origin_R[index],
        )


class Loader:
    """Batches of one part of a prepared log.

    In training the row groups are permuted, gathered into a buffer of about `shuffle_rows` rows, and the rows of the
    buffer are permuted; the order is a function of (seed, epoch) alone. With `in_log_order` the row groups are read as
    they lie and only the buffer is permuted: in a log sorted by time, the newest impressions come last, and what is
    learnt last weighs most when the next day is served. `shuffle_rows=0` keeps the order of the log.
    Memory: two buffers of `shuffle_rows` rows.

    Raises:
        UserError: a file or a row group cannot be read, or a page is not what was written; names file and row group.
    """

    def __init__(
        self,
        schema: Schema,
        files: Sequence[Path],
        *,
        batch_size: int,
        shuffle_rows: int = 0,
        in_log_order: bool = False,
        seed: int = 0,
    ) -> None:
        self._schema = schema
        self._single = [f.name for f in schema.sparse_features if not isinstance(f, SequenceFeature)]
        self._sequences = {f.name: f.max_len for f in schema.sparse_features if isinstance(f, SequenceFeature)}
        self._dense = [f.name for f in schema.dense_features]
        self._keys = [f.name for f in schema.sparse_features]
        self._files = [_open(path) for path in files]
        self._groups = [
            (file, group, self._files[file].metadata.row_group(group).num_rows)
            for file in range(len(files))
            for group in range(self._files[file].metadata.num_row_groups)
        ]
        self._paths = list(files)
        self._has_weight = bool(files) and WEIGHT in self._files[0].schema_arrow.names
        self.batch_size, self._shuffle_rows, self._seed = batch_size, shuffle_rows, seed
        self._permute_groups = shuffle_rows > 0 and not in_log_order
        self.num_rows: int = sum(rows for _, _, rows in self._groups)

    @property
    def num_batches(self) -> int:
        """Batches an epoch; the last one may be smaller."""
        return -(-self.num_rows // self.batch_size)

    def origin(self, index: int) -> tuple[Path, int]:
        """File and row group that `Batch.origin_B` means."""
        file, group, _ = self._groups[index]
        return self._paths[file], group

    def epoch(self, epoch: int = 0, *, skip_batches: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, in the order that (seed, epoch) gives, after the first `skip_batches`."""
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(len(self._groups)) if self._permute_groups else np.arange(len(self._groups))
        produced = 0
        for rows in self._buffers(order, random):
            for start in range(0, len(rows), self.batch_size):
                if produced >= skip_batches:
                    yield self._batch(rows.take(slice(start, start + self.batch_size)))
                produced += 1

    def _buffers(self, order: npt.NDArray[np.int64], random: np.random.Generator) -> Iterator[_Rows]:
        """Buffers whose length is a multiple of the batch size, the last one excepted."""
        pending: list[_Rows] = []
        count = 0
        target = max(self._shuffle_rows, self.batch_size)
        for index in order:
            pending.append(self._read(int(index)))
            count += len(pending[-1])
            if count >= target:
                rows = self._permuted(pending, random)
                whole = len(rows) - len(rows) % self.batch_size
                yield rows.take(slice(0, whole))
                pending, count = [rows.take(slice(whole, len(rows)))], len(rows) - whole
        if count:
            yield self._permuted(pending, random)

    def _permuted(self, parts: list[_Rows], random: np.random.Generator) -> _Rows:
        rows = _concatenate(parts)
        return rows.take(random.permutation(len(rows))) if self._shuffle_rows else rows

    def _read(self, index: int) -> _Rows:
        file, group, _ = self._groups[index]
        columns = [LABEL, *([WEIGHT] if self._has_weight else []), *self._keys, *self._dense]
        try:
            table = self._files[file].read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError) as error:
            path = self._paths[file]
            raise UserError(
                f"{path}, row group {group}: cannot be read ({error}); run `ctrkit prepare` again"
            ) from error
        rows = table.num_rows
        return _Rows(
            single_RS=_stack(table, self._single, np.int32),
            sequences={name: _padded(table[name], length) for name, length in self._sequences.items()},
            dense_RD=_stack(table, self._dense, np.float32),
            label_R=table[LABEL].to_numpy(),
            weight_R=table[WEIGHT].to_numpy() if self._has_weight else np.ones(rows, np.float32),
            origin_R=np.full(rows, index, np.int32),
        )

    def _batch(self, rows: _Rows) -> Batch:
        single = {name: i for i, name in enumerate(self._single)}
        values, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        ones = np.ones(len(rows), np.int64)
        single_SB = np.ascontiguousarray(rows.single_RS.T)
        for key in self._keys:
            if key in single:
                values.append(single_SB[single[key]])
                lengths.append(ones)
            else:
                padded_BL, length_B = rows.sequences[key]
                values.append(padded_BL[np.arange(padded_BL.shape[1]) < length_B[:, None]])
                lengths.append(length_B.astype(np.int64))
        sparse = KeyedJaggedTensor.from_lengths_sync(
            keys=self._keys,
            values=torch.from_numpy(np.concatenate(values).astype(np.int64)),
            lengths=torch.from_numpy(np.concatenate(lengths)),
        )
        return Batch(
            sparse=sparse,
            dense_BD=torch.from_numpy(np.ascontiguousarray(rows.dense_RD)),
            label_B=torch.from_numpy(np.array(rows.label_R)),
            weight_B=torch.from_numpy(np.array(rows.weight_R)),
            origin_B=torch.from_numpy(rows.origin_R.astype(np.int64)),
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


def _concatenate(parts: Sequence[_Rows]) -> _Rows:
    if len(parts) == 1:
        return parts[0]
    return _Rows(
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
    )
