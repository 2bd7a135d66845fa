"""Writes the tensors of a checkpoint: a chunk of rows after the other, each file with its size and checksum."""

import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, FileSystem, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ctrkit.training.ranks import Ranks
from ctrkit.training.stored_tensors import chunks_of, local_parts, spec_of


def write_tensors(new: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Write this rank's part of the tensors; size and checksum of its files."""
    writer = _Writer(new)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # so it is meant
        try:
            save(dict(tensors), storage_writer=writer, planner=_Chunked(), no_dist=ranks.size == 1)
        except CheckpointException as failed:
            error = min(failed.failures.items())[1][0]
            raise error from None
    return writer.files.entries


class _Chunked(DefaultSavePlanner):
    """Plans a tensor's chunks one by one."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.chunks: dict[MetadataIndex, Tensor] = {}

    def create_local_plan(self) -> SavePlan:
        items = []
        for name, tensor in self.state_dict.items():
            shape = torch.Size(spec_of(tensor).shape)
            for at, part in local_parts(tensor):
                # A part of no rows would begin where the next one does and be taken for it.
                parts = chunks_of(at, part) if part.numel() else [(at, part)] if 0 in shape else []
                for offsets, chunk in parts:
                    index = MetadataIndex(name, torch.Size(offsets))
                    self.chunks[index] = chunk
                    items.append(_write_item(index, chunk, shape))
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self.chunks[write_item.index]


def _write_item(index: MetadataIndex, chunk: Tensor, size: torch.Size) -> WriteItem:
    assert index.offset is not None
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(offsets=index.offset, sizes=chunk.size()),
        properties=TensorProperties.create_from_tensor(chunk),
        size=size,
    )
    return WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)


class _Summed:
    """A file that is written once through, with size and checksum of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = self.checksum = 0

    def write(self, content: Any) -> int:
        self.checksum = zlib.crc32(content, self.checksum)
        self.size += len(content)
        return self.file.write(content)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()

    @property
    def entry(self) -> dict[str, Any]:
        return {"bytes": self.size, "crc32": f"{self.checksum:08x}"}


class _SummedFiles(FileSystem):
    """Keeps size and checksum of every file written."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        assert mode == "wb"
        with Path(path).open("wb") as file:
            summed = _Summed(file)
            try:
                yield summed
            except RuntimeError as error:  # torch's own, about its archive, hides what the system said
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        self.entries[Path(path).name] = summed.entry

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.entries[Path(new_path).name] = self.entries.pop(Path(path).name)


class _Writer(FileSystemWriter):
    """Writes a chunk after the other; torch's own holds on to a copy of one of each tensor."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.directory = path
        self.fs = self.files = _SummedFiles()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
        results = []
        with self.files.create_stream(self.directory / name, "wb") as file:
            for item in plan.items:
                start = file.tell()
                torch.save(_alone(cast(Tensor, planner.resolve_data(item))), file)
                length = file.tell() - start
                results.append(WriteResult(item.index, length, _StorageInfo(name, start, length)))
            file.flush()
            os.fsync(file.fileno())
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future


def _alone(chunk: Tensor) -> Tensor:
    """A chunk by itself, in its place: of a view, torch would save all that it is a view of."""
    chunk = chunk.cpu().contiguous()
    start = chunk.storage_offset() * chunk.itemsize
    memory: torch.UntypedStorage = chunk.untyped_storage()[start : start + chunk.nbytes]
    return torch.empty(0, dtype=chunk.dtype).set_(memory, 0, chunk.size(), chunk.stride())
