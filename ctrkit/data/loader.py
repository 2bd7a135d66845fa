"""Prepared row groups to shuffled batches, without a Python loop over rows."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.data.batch import Batch
from ctrkit.data.rows import OrderedRows, RowGroups, Rows, concatenate
from ctrkit.errors import UserError
from ctrkit.schema import Schema

SHARDS = 8
_DRAWN = 65_536  # rows whose fate is drawn at once
_STREAMED = 65_536  # rows of a buffer that is not shuffled


@dataclass(frozen=True)
class Share:
    """What one of several processes reads: the shards [first, stop) of `shards`."""

    first: int = 0
    stop: int = 1
    shards: int = 1

    @classmethod
    def of_process(cls, rank: int, world_size: int, shards: int = SHARDS) -> "Share":
        """The share of one process.

        Raises:
            UserError: the shards cannot be dealt evenly.
        """
        if shards % world_size:
            raise UserError(
                f"{world_size} processes cannot share {shards} shards evenly: start a number that divides it, or set "
                f"train.shards to a multiple of {world_size} (another value gives other batches)"
            )
        each = shards // world_size
        return cls(rank * each, (rank + 1) * each, shards)


@dataclass(frozen=True)
class _Buffer:
    """Rows in memory, and which of them each batch has."""

    rows: Rows
    batches: Sequence[npt.NDArray[np.int64]]


class Loader:
    """Batches of one part of a prepared log.

    In training the row groups are permuted and cut into buffers of `shuffle_rows` rows. A buffer is dealt, as it lies,
    to `shards` shards; each permutes its rows, and each gives the same number of rows to every batch. Which rows a
    batch has is a function of seed, epoch, batch_size, shuffle_rows and shards alone: processes that share the shards
    read only their own rows and see, together, the batches that one process would see. With `in_log_order` the row
    groups are read as they lie and only the buffer is permuted: in a log sorted by time, the newest impressions come
    last, and what is learnt last weighs most when the next day is served. `shuffle_rows=0` keeps the order of the log.

    The next buffer is read, part by part, and put together while one is used. Memory: three buffers of `shuffle_rows`
    rows and a row group, divided by the number of processes.

    Args:
        schema: of the log.
        files: of the part.
        batch_size: rows of a batch, over all processes.
        shuffle_rows: rows of a buffer, over all processes.
        in_log_order: see above.
        seed: of the order, and of the negatives that stay.
        negative_rate: share of the impressions without a click that stay, other ones in each epoch, their weight
            divided by it: the expected loss, and with it calibration, stay as they are. Batches are smaller then.
        label_rate: share of the labels that is told, the same ones in every epoch; the others are NaN.
        teachers: columns of other models' scores that batches have.
        share: of this process; all of the log by default.
        part: (i, n): only the i-th of n even parts of the rows, as they lie, for what is read without shuffling.
        on_unreadable: called with a message where a row group cannot be read; its rows are left out, the batches are
            smaller, and `unreadable` counts them. Without it, that is an error.

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
        negative_rate: float = 1.0,
        label_rate: float = 1.0,
        teachers: Sequence[str] = (),
        share: Share | None = None,
        part: tuple[int, int] = (0, 1),
        on_unreadable: Callable[[str], None] | None = None,
    ) -> None:
        self._groups = RowGroups(schema, files, teachers, label_rate=label_rate, seed=seed)
        self.share = share or Share()
        self.batch_size, self._shuffle_rows, self._seed = batch_size, shuffle_rows, seed
        self._negative_rate = negative_rate
        self._permute_groups = shuffle_rows > 0 and not in_log_order
        self._on_unreadable = on_unreadable
        self.unreadable: dict[tuple[Path, int], int] = {}
        """Rows that could not be read, by file and row group."""
        rows, (index, count) = self._groups.num_rows, part
        self._first_row = rows * index // count
        self.num_rows: int = rows * (index + 1) // count - self._first_row

    @property
    def num_batches(self) -> int:
        """Batches an epoch; the last one may be smaller."""
        return -(-self.num_rows // self.batch_size)

    def empty(self) -> Batch:
        """A batch without impressions: the part in a step of a process that has no more of its own."""
        return self._batch(concatenate([]))

    def origin(self, index: int) -> tuple[Path, int]:
        """File and row group that `Batch.origin_B` means."""
        group = self._groups.groups[index]
        return self._groups.paths[group.file], group.number

    def epoch(self, epoch: int = 0, *, skip_batches: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, in the order that (seed, epoch) gives, after the first `skip_batches`.

        What is skipped is not read.
        """
        count = len(self._groups.groups)
        order = np.arange(count)
        if self._permute_groups:
            order = np.random.default_rng((self._seed, epoch)).permutation(count)
        rows = OrderedRows(self._groups, order)
        per_buffer = -(-max(self._shuffle_rows or _STREAMED, self.batch_size) // self.batch_size)
        buffers = range(skip_batches // per_buffer, -(-self.num_batches // per_buffer))
        skip = skip_batches % per_buffer
        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(self._buffer, rows, epoch, number, per_buffer) for number in buffers[:1]]
            for number in buffers:
                buffer = ahead.pop().result()
                if number + 1 in buffers:
                    ahead.append(reader.submit(self._buffer, rows, epoch, number + 1, per_buffer))
                for index in buffer.batches[skip:]:
                    yield self._batch(buffer.rows.take(index))
                skip = 0

    def _buffer(self, rows: OrderedRows, epoch: int, number: int, per_buffer: int) -> _Buffer:
        """One buffer, as far as it is this process's."""
        start = number * per_buffer * self.batch_size
        size = min(self.num_rows - start, per_buffer * self.batch_size)
        sizes = _batch_sizes(size, self.batch_size)
        share = self.share
        before = _dealt(size, self.batch_size, share.first, share.shards)
        spans: list[list[npt.NDArray[np.int64]]] = [[] for _ in sizes]  # of each batch: rows of each shard
        first = before
        for shard in range(share.first, share.stop):
            stop = _dealt(size, self.batch_size, shard + 1, share.shards)
            order = np.arange(first, stop)
            if self._shuffle_rows:
                order = np.random.default_rng((self._seed, epoch, number, shard)).permutation(order)
            taken = 0
            for of_batch, batch in zip(spans, sizes, strict=True):
                count = batch * (shard + 1) // share.shards - batch * shard // share.shards
                of_batch.append(order[taken : taken + count])
                taken += count
            first = stop
        base = self._first_row + start
        found, place, failed = rows.read(base + before, base + first)
        batches = [np.concatenate(of_batch) - before for of_batch in spans]
        if failed:
            self._leave_out(failed)
            row_of_place = np.full(first - before, -1)
            row_of_place[place] = np.arange(len(place))
            batches = [row_of_place[batch] for batch in batches]
            batches = [batch[batch >= 0] for batch in batches]
        if self._negative_rate < 1:
            found, stays = self._without_negatives(found, place, epoch, base + before)
            batches = [batch[stays[batch]] for batch in batches]
        return _Buffer(found, batches)

    def _without_negatives(
        self, rows: Rows, place: npt.NDArray[np.int64], epoch: int, start: int
    ) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """The rows with their new weights, and which of them stay: by chance, but the same whoever reads them."""
        blocks = (start + place) // _DRAWN
        always = rows.label_R != 0  # impressions without a label too
        stays = always.copy()
        for block in np.unique(blocks):
            drawn = np.random.default_rng((self._seed, epoch, int(block), 0, 1)).random(_DRAWN)
            here = blocks == block
            stays[here] |= drawn[(start + place[here]) % _DRAWN] < self._negative_rate
        weight_R = np.where(always, rows.weight_R, rows.weight_R / self._negative_rate).astype(np.float32)
        return dataclasses.replace(rows, weight_R=weight_R), stays

    def _leave_out(self, failed: Sequence[tuple[int, int, UserError]]) -> None:
        if self._on_unreadable is None:
            raise failed[0][2]
        for index, count, error in failed:
            origin = self.origin(index)
            if origin not in self.unreadable:
                self._on_unreadable(f"its rows are left out: {error}")
            self.unreadable[origin] = self.unreadable.get(origin, 0) + count

    def _batch(self, rows: Rows) -> Batch:
        single, sequences = self._groups.single, self._groups.sequences
        values = [np.ascontiguousarray(rows.single_RS.T, dtype=np.int64).reshape(-1)]
        lengths = [np.ones(len(rows) * len(single), np.int64)]
        for name in sequences if len(rows) else ():
            padded_BL, length_B = rows.sequences[name]
            values.append(padded_BL[np.arange(padded_BL.shape[1]) < length_B[:, None]].astype(np.int64))
            lengths.append(length_B.astype(np.int64))
        sparse = KeyedJaggedTensor(
            keys=[*single, *sequences],
            values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(np.concatenate(lengths)),
            stride=len(rows),
        )
        return Batch(
            sparse=sparse,
            dense_BD=torch.from_numpy(np.ascontiguousarray(rows.dense_RD)).view(len(rows), len(self._groups.dense)),
            label_B=torch.from_numpy(np.array(rows.label_R)),
            weight_B=torch.from_numpy(np.array(rows.weight_R)),
            origin_B=torch.from_numpy(rows.origin_R.astype(np.int64)),
            teachers={
                name: torch.from_numpy(np.array(rows.teachers_RT[:, i] if len(rows) else rows.label_R))
                for i, name in enumerate(self._groups.teachers)
            },
        )


def _batch_sizes(rows: int, batch_size: int) -> list[int]:
    whole, rest = divmod(rows, batch_size)
    return [batch_size] * whole + ([rest] if rest else [])


def _dealt(rows: int, batch_size: int, shard: int, shards: int) -> int:
    """Rows of a buffer that the shards before `shard` have."""
    whole, rest = divmod(rows, batch_size)
    return whole * (batch_size * shard // shards) + rest * shard // shards
