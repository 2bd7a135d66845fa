"""Saves and loads checkpoints on several ranks, which are children of this program; run as one.

    python -m tests.training.checkpoint_ranks DIRECTORY

The process itself never computes, so that it can fork. It prints a JSON object of what was found.
"""

import errno
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharded_tensor.shard import Shard

from ctrkit.errors import UserError
from ctrkit.training import stored_tensors, tensor_writer
from ctrkit.training.checkpoints import Checkpoints

Box = tuple[int, tuple[int, int], tuple[int, int]]
"""A rank, and the rows and columns that it holds."""

SHAPES = {"uneven": (11, 4), "even": (8, 4), "one": (5, 4), "columns": (6, 8)}
LAYOUTS: dict[int, dict[str, list[Box]]] = {
    2: {
        "uneven": [(0, (0, 0), (0, 4)), (1, (0, 9), (0, 4)), (0, (9, 11), (0, 4))],  # a shard of no rows
        "even": [(0, (0, 4), (0, 4)), (1, (4, 8), (0, 4))],
        "one": [(1, (0, 5), (0, 4))],  # rank 0 has none
        "columns": [(0, (0, 6), (0, 3)), (1, (0, 6), (3, 8))],
    },
    4: {
        "even": [(3, (0, 3), (0, 4)), (0, (3, 4), (0, 4)), (2, (4, 8), (0, 4))],
        "uneven": [(r, (3 * r, min(11, 3 * r + 3)), (0, 4)) for r in range(4)],
        "one": [(0, (0, 5), (0, 4))],
        "columns": [(1, (0, 2), (0, 8)), (2, (2, 6), (0, 5)), (3, (2, 6), (5, 8))],
    },
}


def whole(name: str) -> Tensor:
    """The content of a tensor, different in each place."""
    rows, columns = SHAPES[name]
    return (torch.arange(rows * columns).view(rows, columns) + 1000 * len(name)).float()


def replicated() -> dict[str, Tensor]:
    """What every rank has."""
    return {"tower": torch.arange(40.0).view(5, 8).sin(), "step": torch.tensor(7.0)}


def everything() -> dict[str, Tensor]:
    """All tensors in one process."""
    return {**{name: whole(name) for name in SHAPES}, **replicated()}


def sharded(name: str, boxes: Sequence[Box], rank: int, *, empty: bool) -> ShardedTensor:
    """A tensor of which each rank holds boxes."""
    metadata = [
        ShardMetadata([low, left], [high - low, right - left], f"rank:{holder}/cpu")
        for holder, (low, high), (left, right) in boxes
    ]
    local = []
    for (holder, (low, high), (left, right)), shard in zip(boxes, metadata, strict=True):
        if holder == rank:
            content = whole(name)[low:high, left:right].contiguous()
            local.append(Shard(torch.zeros_like(content) if empty else content, shard))
    of_all = ShardedTensorMetadata(metadata, torch.Size(SHAPES[name]), TensorProperties(dtype=torch.float32))
    return ShardedTensor._init_from_local_shards_and_global_metadata(local, of_all)


def tensors(rank: int, size: int, *, empty: bool = False) -> dict[str, Any]:
    """Everything, the tables by shards; zeros if `empty`."""
    tables = {name: sharded(name, boxes, rank, empty=empty) for name, boxes in LAYOUTS[size].items()}
    return {**tables, **{n: torch.zeros_like(t) if empty else t for n, t in replicated().items()}}


def equal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether this rank's parts are the same bit for bit."""

    def parts(tensor: Any) -> list[Tensor]:
        return [shard.tensor for shard in tensor.local_shards()] if isinstance(tensor, ShardedTensor) else [tensor]

    return found.keys() == expected.keys() and all(
        torch.equal(*pair) for name in found for pair in zip(parts(found[name]), parts(expected[name]), strict=True)
    )


def save(directory: Path, rank: int, size: int) -> Any:
    """Save by all ranks."""
    own = {f"rng.{rank}": torch.tensor([rank])}
    found = Checkpoints(directory).save(size, {**tensors(rank, size), **own}, {"of": size, "by": rank}, best=True)
    return [found.path.name, found.step]


def load(directory: Path, rank: int, size: int) -> Any:
    """Load by all ranks."""
    store = Checkpoints(directory)
    found = store.latest()
    assert found is not None
    into = tensors(rank, size, empty=True)
    store.load(found, into, partial=True)
    return [found.values, equal(into, tensors(rank, size))]


def fail(directory: Path, rank: int, size: int) -> Any:
    """The last rank cannot write; then a file is damaged, that one of them looks at."""
    store = Checkpoints(directory)
    first = store.save(1, tensors(rank, size), {}, best=True)
    if rank == size - 1:

        def full(*_: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        setattr(tensor_writer._Summed, "write", full)  # noqa: B010
    try:
        store.save(2, tensors(rank, size), {}, best=True)
    except OSError as error:
        said = [str(error)]
    distributed.barrier()
    names = sorted(path.name for path in directory.iterdir())
    if rank == 0:
        with (first.path / "__1_0.distcp").open("r+b") as file:
            file.seek(100)
            file.write(b"?")
    distributed.barrier()
    try:
        store.load(first, tensors(rank, size, empty=True))
    except UserError as error:
        said.append(str(error))
    return [said, names]


def on_ranks(size: int, place: Path, work: Callable[[Path, int, int], Any]) -> list[Any]:
    """What work gives on each of some ranks."""
    readers, children = [], []
    store = place.with_name(f"{place.name}.{work.__name__}{size}.store")
    for rank in range(size):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                setattr(stored_tensors, "CHUNK_BYTES", 48)  # noqa: B010  # three rows of the tables
                distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
                os.write(writer, json.dumps(work(place, rank, size)).encode())
                distributed.barrier()
                distributed.destroy_process_group()
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(writer)
        readers.append(reader)
        children.append(child)
    results = []
    for reader in readers:
        with os.fdopen(reader) as file:
            results.append(json.loads(file.read() or "null"))
    fates = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(fates), fates
    return results


def main(directory: Path) -> None:
    """Save by two, load by four and the other way round; and what goes wrong."""
    found = {
        "saved": on_ranks(2, directory / "two", save),
        "four": on_ranks(4, directory / "two", load),
        "saved by four": on_ranks(4, directory / "four", save),
        "two": on_ranks(2, directory / "four", load),
        "by one": on_ranks(2, directory / "one", load),
        "failed": on_ranks(2, directory / "failed", fail),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
