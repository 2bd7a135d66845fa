"""An open loop within this process: one thread that scores requests as they become due."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ctrkit.errors import UserError
from ctrkit_serving.bench.answers import Answers

STALL_MS = 100.0


def open_loop(
    score: Callable[[int], object],
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Answers:
    """Score request 0, 1, ... at Poisson times, each as soon as it is due and the one before is done.

    Args:
        score: of the number of a request.
        rate: requests a second.
        seconds: how long requests become due.
        seed: of the times.
        clock: seconds.
    """
    rng, answers = np.random.default_rng(seed), Answers()
    gaps = rng.exponential(1 / rate, size=int(rate * seconds * 1.2) + 20)
    start = clock()
    dues = start + np.cumsum(gaps)
    for i, due in enumerate(dues[dues < start + seconds].tolist()):
        while clock() < due:  # who sleeps wakes up late
            pass
        sent = clock()
        score(i)
        end = clock()
        answers.status.append(200)
        answers.from_due_ms.append((end - due) * 1e3)
        answers.from_sent_ms.append((end - sent) * 1e3)
    answers.seconds = max(seconds, clock() - start)
    return answers


def closed_loop(score: Callable[[int], object], *, seconds: float) -> Answers:
    """One request after the other: the most that this thread can do."""
    answers, start = Answers(), time.perf_counter()
    while not answers.status or time.perf_counter() - start < seconds:
        score(len(answers.status))
        answers.status.append(200)
    answers.seconds = time.perf_counter() - start
    return answers


def see_a_stall(
    clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
) -> dict[str, Any]:
    """What the open loop tells of a kernel that stalls once: proof that a stall cannot hide.

    Raises:
        UserError: it does not see it.
    """

    def stalls(i: int) -> None:
        if i == 200:
            sleep(STALL_MS / 1e3)

    found = open_loop(stalls, rate=1000, seconds=0.5, clock=clock)
    due, sent = float(np.quantile(found.from_due_ms, 0.95)), float(np.quantile(found.from_sent_ms, 0.95))
    if due < STALL_MS / 10:
        raise UserError(f"a stall of {STALL_MS:g} ms is not seen (p95 {due:.3g} ms); trust no figure of this machine")
    return {"stall_ms": STALL_MS, "p95_ms": due, "p95_service_ms": sent}
