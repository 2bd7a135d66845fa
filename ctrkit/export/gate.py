"""What an approximation costs on held-out rows, and whether that is little enough for it to be written."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctrkit.data.batch import Batch
from ctrkit.manifest import Approximation
from ctrkit.metrics.report import Report

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """The most that an approximation may change, for the better or for the worse: it is to be the same network."""

    gauc_change: float = 1e-4
    pcoc_change: float = 1e-3
    difference: float = 0.02


@dataclass(frozen=True)
class HeldOutRows:
    """Rows that decide, in an order that does not change, and how their scores are judged."""

    batches: Callable[[], Iterable[Batch]]
    report: Callable[[Probabilities], Report]
    """Of the probabilities of all those rows."""


def measured(exact: Probabilities, approximate: Probabilities, rows: HeldOutRows, limits: Limits) -> Approximation:
    """Changes of GAUC, PCOC and probability, and the verdict."""
    if not np.isfinite(approximate).all():
        return Approximation(
            rows=len(exact), gauc_change=None, pcoc_change=None, max_difference=1.0, accepted=False,
            reason="a probability is not finite",
        )  # fmt: skip
    before, after = rows.report(exact), rows.report(approximate)
    gauc, pcoc = _change(before.gauc, after.gauc), _change(before.pcoc, after.pcoc)
    difference = float(np.abs(exact - approximate).max(initial=0.0))
    broken = []
    if gauc is not None and abs(gauc) > limits.gauc_change:
        broken.append(f"GAUC {'rises' if gauc > 0 else 'falls'} by {abs(gauc):.2g}, more than {limits.gauc_change:g}")
    if pcoc is not None and abs(pcoc) > limits.pcoc_change:
        broken.append(f"PCOC changes by {pcoc:.2g}, more than {limits.pcoc_change:g}")
    if difference > limits.difference:
        broken.append(f"a probability changes by {difference:.2g}, more than {limits.difference:g}")
    return Approximation(
        rows=len(exact),
        gauc_change=gauc,
        pcoc_change=pcoc,
        max_difference=difference,
        accepted=not broken,
        reason="; ".join(broken),
    )


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
