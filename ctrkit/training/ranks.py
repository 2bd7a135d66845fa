"""What the processes of one run do together, so that an error of one is an error of all."""

import datetime
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")

_PATIENCE = datetime.timedelta(days=1)  # the others wait as long as the first one prepares a log


@dataclass(frozen=True)
class Ranks:
    """This process among those of the default process group; by itself as `Ranks()`.

    What one of them raises, all of them raise: none is left waiting for another.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """Ranks on this machine."""

    @classmethod
    def join(cls) -> "Ranks":
        """Those that `torchrun` started with this one (it says so in the environment), connected; else this one alone.

        On CPU they speak by gloo, on GPUs by NCCL.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        # of TorchRec's and torch's own calls of each other
        for category in (FutureWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=r"torch(rec)?\.")
        warnings.filterwarnings("ignore", message="Please use DTensor")  # TorchRec shards tables as ShardedTensors
        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend, timeout=_PATIENCE)
        local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
        return cls(distributed.get_rank(), size, local_rank, local_size)

    def leave(self) -> "Ranks":
        """Part when all have come here; this process alone."""
        if self.size > 1:
            distributed.barrier()
            distributed.destroy_process_group()
        return Ranks()

    @classmethod
    def of_group(cls) -> "Ranks":
        """Those of the default process group; this process by itself if there is none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def sum(self, value: Tensor) -> Tensor:
        """Summed over all ranks, in place."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def largest(self, value: int) -> int:
        """The largest of all ranks."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def gather(self, value: T) -> list[T] | None:
        """The values of all ranks, by rank, on the first one; None on the others. They must be picklable."""
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.rank == 0 else None
        distributed.gather_object(value, gathered, dst=0)
        return gathered

    def on_each(self, work: Callable[[], T]) -> list[T]:
        """Work that every rank does; the results, by rank. They must be picklable."""
        outcome = _attempt(work)
        outcomes: list[Any] = [outcome]
        if self.size > 1:
            outcomes = [None] * self.size
            distributed.all_gather_object(outcomes, outcome)
        for _, error in (outcome, *outcomes):  # its own error first: it still has its traceback
            if error is not None:
                raise _of_all(error)
        return [result for result, _ in outcomes]

    def on_first(self, work: Callable[[], T]) -> T:
        """Work that rank 0 does; its result, which must be picklable."""
        outcome: Any = _attempt(work) if self.rank == 0 else None
        if self.size > 1:
            told = [outcome]
            distributed.broadcast_object_list(told, src=0)
            outcome = outcome or told[0]
        result, error = outcome
        if error is not None:
            raise _of_all(error)
        return result  # type: ignore[no-any-return]


def _of_all(error: Exception) -> Exception:
    """Marked, so that one rank speaks for all (`ctrkit.cli`)."""
    error.raised_by_all = True  # type: ignore[attr-defined]
    return error


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error
