"""Checkpoints of one run: there whole or not at all, written by any number of processes and read by any other.

    DIRECTORY/step-00000123/manifest.json   size and checksum of every other file
                            values.json     progress, history and whatever else is no tensor
                            .metadata, *.distcp
                                            the tensors, in the format of torch.distributed.checkpoint

Tensors are stored in chunks of rows, so that saving and loading need little memory beside them, however large one is.

`.metadata` is a pickle, which torch reads without a question: a checkpoint is to be trusted as code is.
"""

import hashlib
import json
import math
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import (
    DEFAULT_SUFFIX,
    FileSystem,
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ctrkit.atomic import sync
from ctrkit.errors import UserError
from ctrkit.training.ranks import Ranks

CHUNK_BYTES = 64 << 20
"""Largest part of a tensor that is copied at once."""

_MANIFEST, _VALUES = "manifest.json", "values.json"
_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")


@dataclass(frozen=True)
class Found:
    """A checkpoint whose files are all there (their content is looked at when it is opened)."""

    path: Path
    step: int
    values: dict[str, Any]
    is_best: bool
    """Whether it was the best so far when it was saved."""


@dataclass(frozen=True)
class TensorSpec:
    """What a checkpoint says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoints:
    """The checkpoints of one run.

    All ranks call each method together, with the same arguments but for their own shards, and see the same directory;
    what one of them raises, all do.

    Args:
        directory: theirs alone.
        keep: how many of the newest are kept beside the best one.
        ranks: who saves and loads together; `Ranks()` is this process by itself. Those of the default process group
            if not given.
        say: told what is wrong but stops nothing, a line at a time.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 1,
        ranks: Ranks | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        assert keep >= 1, "the newest one is kept"
        self.directory = directory
        self.keep = keep
        self.ranks = Ranks.of_group() if ranks is None else ranks
        self.say = say

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, best: bool) -> Found:
        """Write a checkpoint; older ones than the last `keep` and the best are removed afterwards.

        Args:
            step: that it is of.
            tensors: by name; a `ShardedTensor` is written by the ranks that hold its shards, any other one, taken to be
                the same on all ranks, by one of them.
            values: what JSON can hold; rank 0's are written.
            best: whether it is the best one so far.

        Raises:
            OSError: a file cannot be written (the disk is full); what was there before is kept.
        """
        new, target = self.ranks.on_first(lambda: self._begin(step))
        try:
            written = self.ranks.on_each(lambda: _write(new, tensors, self.ranks))
            files = {name: entry for each in written for name, entry in each.items()}
            self.ranks.on_first(lambda: _complete(new, target, files, step, values, best))
        finally:
            if self.ranks.rank == 0:
                shutil.rmtree(new, ignore_errors=True)
        self.ranks.on_first(self._remove_superseded)
        return Found(target, step, dict(values), best)

    def all(self) -> list[Found]:
        """All whole checkpoints, the newest first."""
        return self.ranks.on_first(self._all)

    def latest(self) -> Found | None:
        """The newest whole checkpoint."""
        return next(iter(self.all()), None)

    def best(self) -> Found | None:
        """The newest whole checkpoint that was saved as the best."""
        return next((found for found in self.all() if found.is_best), None)

    def open(self, found: Found) -> "StoredTensors":
        """Its tensors, after every byte of it has been checked.

        Raises:
            UserError: a file is damaged; names it.
        """
        files = sorted(_manifest(found.path)["files"].items())
        mine = files[self.ranks.rank :: self.ranks.size]
        self.ranks.on_each(lambda: _verify(found.path, mine))
        return StoredTensors(found.path)

    def load(self, found: Found, tensors: Mapping[str, Tensor], *, partial: bool = False) -> None:
        """Fill tensors in place, bit for bit; see `open` and `StoredTensors.load`."""
        stored = self.open(found)
        self.ranks.on_each(lambda: stored.load(tensors, partial=partial))

    def remove(self, found: Found) -> None:
        """Remove a checkpoint that is no longer wanted."""
        self.ranks.on_first(lambda: _remove(found.path))

    def clear(self) -> None:
        """Remove all checkpoints, whole or not, and what killed processes left."""
        self.ranks.on_first(self._clear)

    def remove_leftovers(self) -> None:
        """Remove what processes left that were killed as they wrote; `save` does so too."""
        self.ranks.on_first(self._remove_leftovers)

    # --- what rank 0 does

    def _begin(self, step: int) -> tuple[Path, Path]:
        self._remove_leftovers()
        name = f"step-{step:08d}"
        taken = [number for path, at, number in self._named() if at == step]
        target = self.directory / (f"{name}.{max(taken) + 1}" if taken else name)
        new = self.directory / f".{target.name}.new-{os.getpid()}"
        new.mkdir(parents=True)
        return new, target

    def _named(self) -> list[tuple[Path, int, int]]:
        """Path, step and number among those of that step of whatever has a checkpoint's name, the newest first."""
        if not self.directory.is_dir():
            return []
        matches = [(path, _NAME.fullmatch(path.name)) for path in self.directory.iterdir()]
        named = [(path, int(match[1]), int(match[2] or 0)) for path, match in matches if match]
        return sorted(named, key=lambda each: each[1:], reverse=True)

    def _all(self) -> list[Found]:
        found = []
        for path, _, _ in self._named():
            try:
                found.append(_find(path))
            except UserError as error:
                self.say(f"  warning: {error}")
        return found

    def _remove_superseded(self) -> None:
        found = self._all()
        best = [each for each in found if each.is_best][:1]
        kept = {each.path for each in (*found[: self.keep], *best)}
        for path, _, _ in self._named():
            if path not in kept:
                _remove(path)

    def _remove_leftovers(self) -> None:
        for pattern in (".step-*.new-*", ".step-*.old-*"):
            for path in self.directory.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _clear(self) -> None:
        self._remove_leftovers()
        for path, _, _ in self._named():
            _remove(path)


class StoredTensors:
    """The tensors of one checkpoint; each process reads by itself what it needs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _metadata(self) -> Metadata:
        return FileSystemReader(self.path).read_metadata()

    @property
    def _stored(self) -> Mapping[str, TensorStorageMetadata]:
        return cast(Mapping[str, TensorStorageMetadata], self._metadata.state_dict_metadata)

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and type of each tensor, by name."""
        return {name: TensorSpec(tuple(each.size), each.properties.dtype) for name, each in self._stored.items()}

    def load(self, tensors: Mapping[str, Tensor], *, partial: bool = False) -> None:
        """Fill tensors in place, bit for bit: plain ones, views of others, or the shards of a `ShardedTensor` here.

        Args:
            tensors: by name.
            partial: the checkpoint may have others beside them.

        Raises:
            UserError: names, shapes or types are not those of the checkpoint.
        """
        self._check(tensors, partial)
        self._read((name, offsets, local) for name, tensor in tensors.items() for offsets, local in _local(tensor))

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start to stop of a tensor, read by themselves."""
        spec = self.specs[name]
        rows = torch.empty(stop - start, *spec.shape[1:], dtype=spec.dtype)
        self._read([(name, (start, *[0] * (rows.ndim - 1)), rows)])
        return rows

    def chunks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """Rows of a tensor, some at a time, each with the place of the first one."""
        spec = self.specs[name]
        step = _chunk_rows(spec.shape, spec.dtype)
        for start in range(0, spec.shape[0], step):
            yield start, self.rows(name, start, min(start + step, spec.shape[0]))

    def digest(self, names: Iterable[str]) -> str:
        """`weights_digest` of some of the tensors, read a chunk at a time."""
        digest = hashlib.sha256()
        for name in sorted(names):
            spec = self.specs[name]
            digest.update(_header(name, spec))
            if spec.shape:
                for _, rows in self.chunks(name):
                    digest.update(_bytes(rows))
            else:
                scalar = torch.empty((), dtype=spec.dtype)
                self._read([(name, (), scalar)])
                digest.update(_bytes(scalar))
        return digest.hexdigest()

    def _check(self, tensors: Mapping[str, Tensor], partial: bool) -> None:
        specs = self.specs
        missing, unasked = sorted(tensors.keys() - specs.keys()), sorted(specs.keys() - tensors.keys())
        if missing:
            raise UserError(f"{self.path}: the checkpoint has no tensor '{missing[0]}'{_more(missing)}")
        if unasked and not partial:
            raise UserError(f"{self.path}: this run has no tensor '{unasked[0]}'{_more(unasked)}, the checkpoint has")
        for name, tensor in tensors.items():
            spec, asked = specs[name], _spec(tensor)
            if spec != asked:
                raise UserError(
                    f"{self.path}: tensor '{name}' is {_text(spec)} in the checkpoint and {_text(asked)} in this run"
                )

    def _read(self, wanted: Iterable[tuple[str, tuple[int, ...], Tensor]]) -> None:
        """Fill each tensor with the part of the named one that begins at the offsets."""
        items, targets = [], {}
        for name, offsets, target in wanted:
            index = MetadataIndex(name, torch.Size(offsets))
            chunk = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=target.size())
            found = create_read_items_for_chunk_list(name, self._stored[name], [chunk]) if target.numel() else []
            if sum(math.prod(item.lengths) for item in found) != target.numel():
                raise UserError(f"{self.path}: the checkpoint holds tensor '{name}' in part only")
            items += found
            targets[index] = target.detach()
        reader = FileSystemReader(self.path)
        reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        reader.read_data(LoadPlan(items), _Targets(targets)).wait()


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and content: what identifies trained weights, whoever saved them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(_header(name, _spec(tensor)))
        for _, piece in _chunks((0,) * tensor.ndim, tensor.detach()):
            digest.update(_bytes(piece))
    return digest.hexdigest()


def _header(name: str, spec: TensorSpec) -> bytes:
    return json.dumps([name, str(spec.dtype), spec.shape]).encode()


def _bytes(tensor: Tensor) -> Any:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _spec(tensor: Tensor) -> TensorSpec:
    if isinstance(tensor, ShardedTensor):
        whole = tensor.metadata()
        return TensorSpec(tuple(whole.size), whole.tensor_properties.dtype)
    return TensorSpec(tuple(tensor.shape), tensor.dtype)


def _text(spec: TensorSpec) -> str:
    return f"{str(spec.dtype).removeprefix('torch.')} {list(spec.shape)}"


def _more(names: list[str]) -> str:
    return f" (nor {len(names) - 1} others)" if len(names) > 1 else ""


# --- parts of tensors


def _local(tensor: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """What this process holds of a tensor: where each part begins, and the part."""
    if isinstance(tensor, ShardedTensor):
        for shard in tensor.local_shards():
            yield tuple(shard.metadata.shard_offsets), shard.tensor.detach()
    else:
        yield (0,) * tensor.ndim, tensor.detach()


def _chunks(offsets: tuple[int, ...], tensor: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Chunks of rows, none larger than CHUNK_BYTES unless one row is."""
    if tensor.ndim == 0:
        yield offsets, tensor
        return
    step = _chunk_rows(tensor.shape, tensor.dtype)
    for start in range(0, len(tensor), step):
        yield (offsets[0] + start, *offsets[1:]), tensor[start : start + step]


def _chunk_rows(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return max(1, CHUNK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))


class _Chunked(DefaultSavePlanner):
    """Plans a tensor's chunks one by one."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.chunks: dict[MetadataIndex, Tensor] = {}

    def create_local_plan(self) -> SavePlan:
        items = []
        for name, tensor in self.state_dict.items():
            shape = torch.Size(_spec(tensor).shape)
            for at, part in _local(tensor):
                # A part of no rows would begin where the next one does and be taken for it.
                parts = _chunks(at, part) if part.numel() else [(at, part)] if 0 in shape else []
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


class _Targets(DefaultLoadPlanner):
    """Where read chunks go."""

    def __init__(self, targets: Mapping[MetadataIndex, Tensor]) -> None:
        super().__init__()
        self.targets = targets

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.targets[index]


# --- files


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


def _write(new: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, dict[str, Any]]:
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


def _complete(new: Path, target: Path, files: dict[str, Any], step: int, values: Mapping[str, Any], best: bool) -> None:
    """Write what makes the checkpoint whole, and move it to its place."""
    content = json.dumps(values).encode()
    _write_file(new / _VALUES, content)
    files[_VALUES] = {"bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}
    manifest = {"step": step, "best": best, "files": files}
    _write_file(new / _MANIFEST, json.dumps({**manifest, "crc32": _manifest_checksum(manifest)}, indent=1).encode())
    sync(new)
    new.rename(target)
    sync(target.parent)


def _manifest_checksum(manifest: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}"


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        checksum = manifest.pop("crc32")
        whole = checksum == _manifest_checksum(manifest)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path / _MANIFEST) from error
    if not whole:
        raise _damaged(path / _MANIFEST)
    assert isinstance(manifest, dict)
    return manifest


def _find(path: Path) -> Found:
    manifest = _manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise _damaged(file)
    _verify(path, [(_VALUES, manifest["files"][_VALUES])])
    values = json.loads((path / _VALUES).read_bytes())
    return Found(path, manifest["step"], values, manifest["best"])


def _verify(path: Path, files: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    for name, entry in files:
        checksum = size = 0
        try:
            with (path / name).open("rb", buffering=0) as file:
                buffer = memoryview(bytearray(1 << 20))
                while read := file.readinto(buffer):
                    checksum, size = zlib.crc32(buffer[:read], checksum), size + read
        except OSError as error:
            raise _damaged(path / name) from error
        if {"bytes": size, "crc32": f"{checksum:08x}"} != entry:
            raise _damaged(path / name)


def _damaged(file: Path) -> UserError:
    return UserError(
        f"{file}: damaged or missing, so the checkpoint cannot be used; without {file.parent.parent} the model is "
        "trained anew"
    )


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    path.rename(old)  # at once: what is left of it is never taken for a checkpoint
    shutil.rmtree(old)
