"""Work in threads whose results come in the order in which it was handed out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

Context = TypeVar("Context")
T = TypeVar("T")


def in_order(
    pool: Executor, work: Iterable[tuple[Context, Sequence[Callable[[], T]]]], ahead: int = 1
) -> Iterator[tuple[Context, list[T]]]:
    """Each context with the results of its tasks; the tasks of the next `ahead` contexts are done meanwhile.

    What a task raises is raised here, after the contexts before it; what has not begun by then is left undone.
    """
    waiting: deque[tuple[Context, list[Future[T]]]] = deque()
    try:
        for context, tasks in work:
            waiting.append((context, [pool.submit(task) for task in tasks]))
            if len(waiting) > ahead:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        for _, futures in waiting:
            for future in futures:
                future.cancel()


def _finished(context: Context, futures: list["Future[T]"]) -> tuple[Context, list[T]]:
    return context, [future.result() for future in futures]
