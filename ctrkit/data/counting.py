"""What one pass over a stream counts: how often each key comes, and mean, variance and range of numbers."""

from dataclasses import dataclass, field

import numpy as np

from ctrkit.raw_values import Float64Array, Int64Array

_MERGE = 1 << 20  # new keys that wait before they are merged into the sorted ones
_BLOCK = 1 << 18  # numbers whose mean is taken at a time


@dataclass
class KeyCounts:
    """How often each 64-bit key occurred, and whether two different ids share one."""

    keys_V: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    counts_V: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    checks_V: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """A second, unrelated hash of each id: where it differs for one key, two ids have that key."""
    _shared: set[tuple[int, int]] = field(default_factory=set)
    """Key and check of the ids that share a key."""
    _waiting: list[tuple[Int64Array, Int64Array, Int64Array]] = field(default_factory=list)
    _num_waiting: int = 0

    @property
    def collisions(self) -> int:
        """Ids that share a key with another one, beyond the first of each key."""
        return len(self._shared) - len({key for key, _ in self._shared})

    def add(self, keys_D: Int64Array, counts_D: Int64Array, checks_D: Int64Array) -> None:
        """Count keys, each `counts_D` times."""
        self._waiting.append((keys_D, counts_D, checks_D))
        self._num_waiting += len(keys_D)
        if self._num_waiting > max(_MERGE, len(self.keys_V) // 4):  # so that each key is moved O(log) times
            self.merge()

    def merge(self) -> None:
        """Bring `keys_V` (sorted), `counts_V` and `collisions` up to date."""
        if self._num_waiting == 0:
            return
        keys, counts, checks = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        self._waiting, self._num_waiting = [], 0
        order = np.argsort(keys)
        keys, counts, checks = keys[order], counts[order], checks[order]
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        self._compare(keys, checks, np.repeat(checks[first], np.diff(first, append=len(keys))))
        keys, counts, checks = keys[first], np.add.reduceat(counts, first), checks[first]
        place = self.keys_V.searchsorted(keys)
        known = np.zeros(len(keys), np.bool_)
        if len(self.keys_V):
            known = self.keys_V.take(place, mode="clip") == keys
        self._compare(keys[known], checks[known], self.checks_V[place[known]])
        self.counts_V[place[known]] += counts[known]
        new = ~known
        if new.any():  # seldom, once most ids are known
            self.keys_V = np.insert(self.keys_V, place[new], keys[new])
            self.counts_V = np.insert(self.counts_V, place[new], counts[new])
            self.checks_V = np.insert(self.checks_V, place[new], checks[new])

    def _compare(self, keys: Int64Array, checks: Int64Array, others: Int64Array) -> None:
        for i in np.flatnonzero(checks != others):
            self._shared |= {(int(keys[i]), int(checks[i])), (int(keys[i]), int(others[i]))}


@dataclass
class Moments:
    """Mean, variance and range of a stream of numbers, merged block by block (Chan, Golub, LeVeque 1979).

    Blocks have one length, whatever chunks the stream comes in, so that not even a rounding depends on those.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""
    low: float = np.inf
    high: float = -np.inf
    _waiting: list[Float64Array] = field(default_factory=list)
    _num_waiting: int = 0

    def add(self, transformed_N: Float64Array, raw_N: Float64Array) -> None:
        """Add a chunk: mean and variance of `transformed_N`, range of `raw_N`."""
        if len(raw_N) == 0:
            return
        self.low, self.high = min(self.low, float(raw_N.min())), max(self.high, float(raw_N.max()))
        self._waiting.append(transformed_N)
        self._num_waiting += len(transformed_N)
        if self._num_waiting >= _BLOCK:
            waiting = np.concatenate(self._waiting)
            whole = len(waiting) // _BLOCK * _BLOCK
            for start in range(0, whole, _BLOCK):
                self._add_block(waiting[start : start + _BLOCK])
            self._waiting, self._num_waiting = [waiting[whole:].copy()], len(waiting) - whole

    def merge(self) -> None:
        """Bring `count`, `mean` and `squares` up to date: the last block may be shorter."""
        if self._num_waiting:
            self._add_block(np.concatenate(self._waiting))
            self._waiting, self._num_waiting = [], 0

    def _add_block(self, numbers_N: Float64Array) -> None:
        count, mean = len(numbers_N), float(numbers_N.mean())
        squares = float(np.square(numbers_N - mean).sum())
        total, delta = self.count + count, mean - self.mean
        self.mean += delta * count / total
        self.squares += squares + delta * delta * self.count * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0
