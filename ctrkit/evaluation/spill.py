"""Rows put into partitions on the disk, so that each can be read by itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ctrkit.atomic import is_disk_full, temporary_directory
from ctrkit.errors import UserError


@contextmanager
def spill_directory(parent: Path) -> Iterator[Path]:
    """A `temporary_directory` below `parent`.

    Raises:
        UserError: it cannot be written, or the disk is full.
    """
    try:
        with temporary_directory(parent, "ctrkit-evaluate") as directory:
            yield directory
    except OSError as error:
        if is_disk_full(error):
            what = "the disk is full; free some space, or give --tmp a folder with more"
            raise UserError(f"{parent}: {what} (about as much as the columns that are read, uncompressed)") from error
        if error.filename is not None and parent in (Path(error.filename), Path(error.filename).parent):
            raise UserError(f"{parent}: cannot be written ({error.strerror}); give --tmp another folder") from error
        raise


class Spill:
    """Partitions of rows, each an Arrow stream in a file of its own. Memory: the batch that is being written."""

    def __init__(self, directory: Path, partitions: int) -> None:
        self.directory = directory
        self.rows = np.zeros(partitions, dtype=np.int64)
        self._files: dict[int, tuple[Any, Any]] = {}

    def write(self, batch: pa.RecordBatch, partition: NDArray[np.int64]) -> None:
        """Put every row of the batch into its partition [rows]."""
        order = np.argsort(partition, kind="stable")
        batch = batch.take(pa.array(order))
        rows = np.bincount(partition, minlength=len(self.rows))
        start = 0
        for number in np.flatnonzero(rows).tolist():
            self._writer(number, batch.schema).write_batch(batch.slice(start, int(rows[number])))
            start += int(rows[number])
        self.rows += rows

    def close(self) -> None:
        """Flush all files; then they can be read."""
        for writer, sink in self._files.values():
            writer.close()
            sink.close()
        self._files.clear()

    def read(self, partition: int, rows: int | None = None, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a partition in the order in which they came: all, or at least `rows` of them, at a time."""
        if not self.rows[partition]:
            return
        with pa.OSFile(str(self._path(partition)), "rb") as source, pa.ipc.open_stream(source) as reader:
            waiting: list[pa.RecordBatch] = []
            held = 0
            for batch in reader:
                waiting.append(batch if columns is None else batch.select(columns))
                held += batch.num_rows
                if rows is not None and held >= rows:
                    yield pa.Table.from_batches(waiting)
                    waiting, held = [], 0
            if waiting:
                yield pa.Table.from_batches(waiting)

    def remove(self, partition: int) -> None:
        """Give the disk back what a partition takes."""
        self._path(partition).unlink(missing_ok=True)

    def _path(self, partition: int) -> Path:
        return self.directory / f"{partition}.arrow"

    def _writer(self, partition: int, schema: pa.Schema) -> Any:
        if partition not in self._files:
            sink = self._open(self._path(partition))
            self._files[partition] = pa.ipc.new_stream(sink, schema), sink
        return self._files[partition][0]

    def _open(self, path: Path) -> Any:
        path.parent.mkdir(exist_ok=True)
        return pa.OSFile(str(path), "wb")
