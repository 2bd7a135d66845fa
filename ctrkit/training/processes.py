"""The processes that train together, as `torchrun` starts them; one by itself is the simplest case."""

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_PATIENCE = datetime.timedelta(days=7)  # the others wait as long as the first one prepares a log


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """Processes on this machine."""

    @classmethod
    def join(cls) -> "Processes":
        """Those that `torchrun` started with this one (it says so in the environment), connected; else this one alone.

        On CPU by gloo, on GPUs by NCCL.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
        local = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
        return cls(dist.get_rank(), dist.get_world_size(), *local)

    @property
    def is_first(self) -> bool:
        """Whether this one writes what there is once."""
        return self.rank == 0

    def on_first(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first process, on all of them; the others wait. It must be picklable."""
        if self.size == 1:
            return make()
        made: list[Any] = [None]
        if self.is_first:
            made = [make()]
        dist.broadcast_object_list(made, src=0)
        result: T = made[0]
        return result

    def wait(self) -> None:
        """For all."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T] | None:
        """The values of all processes, in their order, on the first; None on the others."""
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, gathered, dst=0)
        return gathered

    def sum(self, value: Tensor) -> Tensor:
        """Summed over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def largest(self, value: int) -> int:
        """The largest of all processes."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)
