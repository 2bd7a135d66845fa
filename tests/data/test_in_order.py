import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from ctrkit.data.in_order import in_order


def test_results_come_in_order_whatever_finishes_first() -> None:
    second = threading.Event()

    def slow() -> str:
        assert second.wait(10)
        return "slow"

    def fast() -> str:
        second.set()
        return "fast"

    with ThreadPoolExecutor(2) as pool:
        found = list(in_order(pool, [(0, [slow]), (1, [fast]), (2, [])]))
    assert found == [(0, ["slow"]), (1, ["fast"]), (2, [])]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_is_begun_than_asked_for(ahead: int) -> None:
    begun: list[int] = []

    def work() -> Iterator[tuple[int, list[Callable[[], int]]]]:
        for i in range(6):
            begun.append(i)
            yield i, [partial(int, i)]

    with ThreadPoolExecutor(2) as pool:
        for i, (context, results) in enumerate(in_order(pool, work(), ahead)):
            assert (context, results) == (i, [i])
            assert len(begun) == min(i + ahead + 1, 6)


def test_the_first_error_is_raised_after_what_came_before_it() -> None:
    def fail(name: str) -> str:
        raise ValueError(name)

    work: list[tuple[int, list[Callable[[], str]]]] = [
        (0, [partial(str, "ok")]),
        (1, [partial(fail, "first")]),
        (2, [partial(fail, "other")]),
    ]
    seen = []
    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="first"):  # noqa: PT012
        for context, _ in in_order(pool, work):
            seen.append(context)
    assert seen == [0]
