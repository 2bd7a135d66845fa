"""The tensors of a checkpoint, in the format of torch.distributed.checkpoint: read whole, or some rows at a time.

Tensors are stored in chunks of rows, so that saving and loading need little memory beside them, however large one is.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)  # fmt: skip
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from ctrkit.errors import UserError

CHUNK_BYTES = 64 << 20
"""Largest part of a tensor that is copied at once."""


@dataclass(frozen=True)
class TensorSpec:
    """What a checkpoint says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


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
        self._read((name, offsets, local) for name, tensor in tensors.items() for offsets, local in local_parts(tensor))

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
            spec, asked = specs[name], spec_of(tensor)
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
        digest.update(_header(name, spec_of(tensor)))
        for _, piece in chunks_of((0,) * tensor.ndim, tensor.detach()):
            digest.update(_bytes(piece))
    return digest.hexdigest()


def _header(name: str, spec: TensorSpec) -> bytes:
    return json.dumps([name, str(spec.dtype), spec.shape]).encode()


def _bytes(tensor: Tensor) -> Any:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def spec_of(tensor: Tensor) -> TensorSpec:
    """Of the whole tensor, whoever has its shards."""
    if isinstance(tensor, ShardedTensor):
        whole = tensor.metadata()
        return TensorSpec(tuple(whole.size), whole.tensor_properties.dtype)
    return TensorSpec(tuple(tensor.shape), tensor.dtype)


def _text(spec: TensorSpec) -> str:
    return f"{str(spec.dtype).removeprefix('torch.')} {list(spec.shape)}"


def _more(names: list[str]) -> str:
    return f" (nor {len(names) - 1} others)" if len(names) > 1 else ""


# --- parts of tensors


def local_parts(tensor: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """What this process holds of a tensor: where each part begins, and the part."""
    if isinstance(tensor, ShardedTensor):
        for shard in tensor.local_shards():
            yield tuple(shard.metadata.shard_offsets), shard.tensor.detach()
    else:
        yield (0,) * tensor.ndim, tensor.detach()


def chunks_of(offsets: tuple[int, ...], tensor: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Chunks of rows, none larger than CHUNK_BYTES unless one row is."""
    if tensor.ndim == 0:
        yield offsets, tensor
        return
    step = _chunk_rows(tensor.shape, tensor.dtype)
    for start in range(0, len(tensor), step):
        yield (offsets[0] + start, *offsets[1:]), tensor[start : start + step]


def _chunk_rows(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return max(1, CHUNK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))


class _Targets(DefaultLoadPlanner):
    """Where read chunks go."""

    def __init__(self, targets: Mapping[MetadataIndex, Tensor]) -> None:
        super().__init__()
        self.targets = targets

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.targets[index]
