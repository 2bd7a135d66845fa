"""Where a run stands."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class Progress:
    """Where a run stands: what a checkpoint keeps beside weights and optimizers."""

    epoch: int = 0
    batches: int = 0
    """Batches of the epoch that are done."""
    step: int = 0
    best: float | None = None
    """Best value of the monitored metric."""
    best_step: int = 0
    best_role: str = ""
    """Of the network that it was measured on: the one that ships."""
    stale: int = 0
    """Evaluations since then."""
    seconds: float = 0.0
    """Spent in training, loading included, evaluations excluded."""
    rows: int = 0


class RunningLosses:
    """Mean of each loss term since the last evaluation."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, losses: Mapping[str, float]) -> None:
        """Count a step; each term by itself, since networks that learn in turn have theirs in different steps."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """By name, to six digits: hints at small click rates are small."""
        return {name: float(f"{total / self._counts[name]:.6g}") for name, total in self._sums.items()}

    def clear(self) -> None:
        """Begin anew."""
        self._sums, self._counts = {}, {}
